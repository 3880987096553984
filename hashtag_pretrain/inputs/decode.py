"""The bytes of an image file as the square that training or evaluation takes of it.

The square is chosen from the size in the file's header, before a pixel is decoded. A JPEG that is
much larger than the square needs is decoded at 1/2, 1/4 or 1/8 of its size, and only the crop is
resized, by PyTorch, whose 8-bit instructions take half of Pillow's time. S pixels a side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from common.images import DAMAGE, MAX_PIXELS, UnreadableImage, to_rgb

PADDING = 4  # black pixels around a small image, as for CIFAR
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class View:
    """A square out of an image: `box` is resized to `scaled`, of which `corner` begins the square.

    box: top, left, height, width in pixels. scaled: height, width. corner, shift: top, left. The
    square has `size` pixels a side; with a shift it is taken out of the padded square.
    """

    box: tuple[int, int, int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: int
    flip: bool = False
    shift: tuple[int, int] | None = None

    def cut(self, pixels: Tensor) -> Tensor:
        """The square uint8 (3, S, S) from the pixels (3, h, w) of the box."""
        if tuple(pixels.shape[1:]) != self.scaled:
            (pixels,) = F.interpolate(pixels[None], self.scaled, mode="bilinear", antialias=True)
        pixels = self._square(pixels, self.corner)
        if self.shift is not None:
            pixels = self._square(F.pad(pixels, (PADDING,) * 4), self.shift)
        return (pixels.flip(2) if self.flip else pixels).contiguous()

    def _square(self, pixels: Tensor, corner: tuple[int, int]) -> Tensor:
        top, left = corner
        return pixels[:, top : top + self.size, left : left + self.size]


def decode_crop(data: bytes, name: str, choose: Callable[[int, int], View]) -> Tensor:
    """The view of an image as uint8 (3, S, S) RGB, upright by its EXIF tag.

    choose: the view of an image of a height and width, as Augment.draw. name: for messages. Raises
    UnreadableImage.
    """
    file = BytesIO(data)
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"its {image.width} x {image.height} pixels are more than "
                    f"common.images.MAX_PIXELS = {MAX_PIXELS}"
                )
            view, pixels = _read(image, choose)
    except DAMAGE as error:
        reason = str(error).replace(f" {file!r}", "")  # which has no name
        raise UnreadableImage(
            f"{name} cannot be read as an image ({reason}): replace it"
        ) from error
    return view.cut(pixels)


def _read(image: Image.Image, choose: Callable[[int, int], View]) -> tuple[View, Tensor]:
    """The view of an open image, and the pixels (3, h, w) of its box."""
    upright: Image.Image = image
    if image.getexif().get(_ORIENTATION, 1) != 1:
        upright = ImageOps.exif_transpose(image)
    view = choose(upright.height, upright.width)
    if upright is image:
        view = _shrink(image, view)
    top, left, height, width = view.box
    pixels = np.array(to_rgb(upright.crop((left, top, left + width, top + height))))
    return view, torch.from_numpy(pixels).permute(2, 0, 1)


def _shrink(image: Image.Image, view: View) -> View:
    """Let a JPEG be decoded at a size that still covers the view; the view of that.

    The sides of the box are rounded to pixels of the smaller image.
    """
    top, left, height, width = view.box
    full = image.size
    least = (-(-full[0] * view.scaled[1] // width), -(-full[1] * view.scaled[0] // height))
    drawn = image.draft("RGB", least)  # leaves other formats, and sizes below `least`, alone
    if drawn is None or image.size == full:
        return view
    scale = drawn[1][2] / full[0]  # 1/2, 1/4 or 1/8; the sides of the smaller image are rounded up
    top, bottom = round(top * scale), round((top + height) * scale)
    left, right = round(left * scale), round((left + width) * scale)
    return replace(view, box=(top, left, bottom - top, right - left))
