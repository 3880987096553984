"""What happens to an image and its panoptic map together before a network learns from them.

H x W pixels. A map is warped by copying ids, never by mixing them; what comes from outside the
image is void. Random choices come from torch's global generator, which the train loader seeds
for each example.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

FILL = (124, 116, 104)  # the mean colour of ImageNet, beside and around warped images


@dataclass(frozen=True)
class Augment:
    """The random changes of one recipe, applied in the order of the fields.

    short_side, long_side: one of the former (pixels) is drawn for the shorter side, less so that
        the longer side is at most the latter; empty: the image keeps its size.
    scale: bounds of a random factor on the size, drawn uniformly; (1, 1): none.
    rotate: largest angle in degrees. blur: probability of a Gaussian blur with a deviation of up to
        1 pixel. flip: probability of a mirror image.
    crop: side of a random square in pixels, the image padded to it where it is smaller; 0: none.
    """

    short_side: Sequence[int] = ()
    long_side: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    blur: float = 0.0
    flip: float = 0.5
    crop: int = 0

    def __call__(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Image uint8 (3, H, W) and ids (H, W), both of the new size."""
        if self.short_side:
            choice = self.short_side[int(torch.randint(len(self.short_side), ()))]
            image, ids = resize(image, ids, fit(ids.shape, choice, self.long_side))
        if self.scale != (1.0, 1.0):
            factor = uniform(*self.scale)
            height, width = (max(1, round(factor * side)) for side in ids.shape)
            image, ids = resize(image, ids, (height, width))
        if self.rotate:
            image, ids = rotate(image, ids, uniform(-self.rotate, self.rotate))
        if self.blur and torch.rand(()) < self.blur:
            image = F.gaussian_blur(image, [5, 5], [uniform(0.1, 1.0)])
        if torch.rand(()) < self.flip:
            image, ids = image.flip(-1), ids.flip(-1)
        return crop(image, ids, self.crop) if self.crop else (image, ids)


def uniform(low: float, high: float) -> float:
    """A number between the two."""
    return low + (high - low) * float(torch.rand(()))


def fit(size: Sequence[int], short: int, longest: int) -> tuple[int, int]:
    """Height and width with the shorter side at `short`, the longer at most at `longest`."""
    scale = min(short / min(size), longest / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def resize(image: Tensor, ids: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Both at `size` (height, width): the image smoothly, the ids by the nearest pixel."""
    if tuple(ids.shape) == size:
        return image, ids
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for old, new in zip(ids.shape, size, strict=True)
    )
    return F.resize(image, list(size), antialias=True), ids[rows[:, None], columns]


def rotate(image: Tensor, ids: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Both turned about their middle by `angle` degrees, in their own size."""
    image = F.rotate(image, angle, F.InterpolationMode.BILINEAR, fill=list(FILL))
    # As float32, which holds every id below 2^24: the nearest pixel is copied as it is.
    turned = F.rotate(ids[None].float(), angle, F.InterpolationMode.NEAREST, fill=0.0)
    return image, turned[0].to(ids.dtype)


def crop(image: Tensor, ids: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """A random square of `side` pixels of both; smaller images are padded right and below."""
    height, width = ids.shape
    down, right = max(0, side - height), max(0, side - width)
    if down or right:
        image = F.pad(image, [0, 0, right, down], fill=list(FILL))
        ids = F.pad(ids[None], [0, 0, right, down], fill=0)[0]
    height, width = ids.shape
    top = int(torch.randint(height - side + 1, ()))
    left = int(torch.randint(width - side + 1, ()))
    part = slice(top, top + side), slice(left, left + side)
    return image[:, *part], ids[part]
