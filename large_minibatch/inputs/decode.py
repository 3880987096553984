"""Image files as a data set: decoding, and cutting out what a batch needs, quickly.

S pixels a side. Three things make it faster than Pillow's crop and resize of whole images, at
pixels that differ by 1 of 255 at most: only the crop leaves Pillow's memory, PyTorch resizes it in
8-bit vector instructions, and pixels stay bytes until they are on the training device.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from common import dist
from common.data import BadImages, eval_loader
from common.images import UnreadableImage, image_size, open_image, read_image

from .augment import DRAWS, Augment, View, pad, shift
from .folders import Files
from .memory import Batch, InMemory

_ORIENTATION = 0x0112  # EXIF tag


class ImageFiles(Dataset):
    """Image files of one split; items are (pixels uint8 (S, S, 3), label, file).

    In training the pixels are drawn anew from torch's global generator, which the loader seeds.
    upright: whether EXIF tags turn the image. draft: whether a JPEG that is much larger than
    needed is decoded at 1/2, 1/4 or 1/8 of its size: faster, but other pixels.
    """

    def __init__(
        self,
        files: Files,
        labels: Tensor,
        classes: list[str],
        augment: Augment,
        *,
        training: bool,
        upright: bool = True,
        draft: bool = False,
    ) -> None:
        self.files, self.labels, self.classes = files, labels, classes
        self.augment, self.training = augment, training
        self.upright, self.draft = upright, draft

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        file, label = self.files[index], int(self.labels[index])
        if not self.training:
            return self._cut(file), label, file
        row = torch.rand(1, DRAWS, dtype=torch.float64)
        pixels = self._cut(file, row[0].tolist())[None]
        if self.augment.crop == "pad":
            pixels = shift(pad(pixels, self.augment.fill), torch.zeros(1, dtype=torch.int64), row)
        return self.augment.finish(pixels, row)[0], label, file

    def _cut(self, file: str, u: Sequence[float] | None = None) -> Tensor:
        """The square (S, S, 3) of one image's random or centre crop."""
        fast = self._cut_rgb(file, u)
        if fast is not None:
            return fast
        pixels = read_image(file, exif=self.upright).permute(1, 2, 0)
        view = self._view(file, pixels.shape[0], pixels.shape[1], u)
        top, left, height, width = view.box
        box = pixels[top : top + height, left : left + width]
        return view.cut(box, self.augment.interpolation)

    def _cut_rgb(self, file: str, u: Sequence[float] | None) -> Tensor | None:
        """The same for RGB images that need no turning; None for others and unreadable ones.

        Only the box is copied out of Pillow's memory.
        """
        try:
            with open_image(file) as image:
                turned = self.upright and image.getexif().get(_ORIENTATION, 1) != 1
                if image.mode != "RGB" or turned:
                    return None
                view = self._view(file, image.height, image.width, u)
                if self.draft and _shrinks(image, view):
                    view = self._view(file, image.height, image.width, u)
                top, left, height, width = view.box
                pixels = np.array(image.crop((left, top, left + width, top + height)))
        except UnreadableImage:
            return None  # `read_image` says what is wrong, or knows how to read it
        return view.cut(torch.from_numpy(pixels), self.augment.interpolation)

    def _view(self, file: str, height: int, width: int, u: Sequence[float] | None) -> View:
        try:
            return self.augment.view(height, width, u)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def _shrinks(image: Image.Image, view: View) -> bool:
    """Whether the decoder now gives fewer pixels, but still as many as the view is resized to."""
    full = image.size
    sizes = zip(full, reversed(view.scaled), reversed(view.box[2:]), strict=True)
    width, height = (-(-side * scaled // box) for side, scaled, box in sizes)
    image.draft("RGB", (width, height))
    return image.size != full


def collate(items: list[tuple[Tensor, int, str]]) -> Batch:
    """A batch of a `ImageFiles` set's items."""
    images = torch.stack([pixels for pixels, _, _ in items]).permute(0, 3, 1, 2)
    labels = torch.tensor([label for _, label, _ in items])
    return Batch(images, labels, [file for _, _, file in items])


class Whole(Dataset):
    """The images of a set as they are; items as those of `ImageFiles`, but (H, W, 3)."""

    def __init__(self, source: ImageFiles) -> None:
        self.source, self.files = source, source.files
        self.size = self._first_size()

    def _first_size(self) -> tuple[int, int]:
        """Height and width of the first image that can be read; the loader names the others."""
        for file in self.files:
            try:
                return image_size(file, exif=self.source.upright)
            except UnreadableImage:
                continue
        return 0, 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        file = self.files[index]
        pixels = read_image(file, exif=self.source.upright).permute(1, 2, 0)
        if tuple(pixels.shape[:2]) != self.size:
            raise ValueError(
                f"data.in_memory=true with data.crop={self.source.augment.crop} needs images of "
                f"one size, but {file} has {pixels.shape[1]} x {pixels.shape[0]} pixels and "
                f"{self.files[0]} {self.size[1]} x {self.size[0]}: set data.in_memory=false"
            )
        return pixels.contiguous(), int(self.source.labels[index]), file


def decode_all(source: ImageFiles, *, workers: int, bad: BadImages) -> InMemory:
    """All images of a set, decoded once, by every process for itself."""
    augment, training = source.augment, source.training
    reader: ImageFiles | Whole = source
    if training and augment.resamples:
        reader = Whole(source)
    elif training:  # the centre crop, which is shifted and flipped when it is drawn
        reader = copy(source)
        reader.training = False
    loader = eval_loader(
        reader,
        64,
        workers=workers,
        collate=collate,
        rank=0,
        world=1,
        bad=bad if training else None,
    )
    parts: list[Batch] = list(
        tqdm(loader, "decode", unit="batch", leave=False, disable=None if dist.is_main() else True)
    )
    return InMemory(
        torch.cat([part.images for part in parts]).permute(0, 2, 3, 1),
        torch.cat([part.labels for part in parts]),
        [file for part in parts for file in part.files],
        source.classes,
        augment,
        training=training,
    )
