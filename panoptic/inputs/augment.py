"""What happens to an image and its panoptic map together before a network learns from them.

H x W pixels. A map is warped by copying ids, never by mixing them; what comes from outside the
image is void. Random choices come from torch's global generator, which the train loader seeds
for each example.
"""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from common.transforms import scaled_size

from ..config import Data

FILL = (124, 116, 104)  # the mean colour of ImageNet, beside and around warped images


def augment(image: Tensor, ids: Tensor, cfg: Data) -> tuple[Tensor, Tensor]:
    """Image uint8 (3, H, W) and ids (H, W), changed at random by the recipe, both of one new size.

    In this order: resizing, scaling, rotation, blur with a deviation of up to 1 pixel, flip, crop.
    """
    if cfg.resize:
        choice = cfg.short_side[int(torch.randint(len(cfg.short_side), ()))]
        image, ids = resize(image, ids, scaled_size(ids.shape, choice, cfg.long_side))
    if cfg.scale != [1.0, 1.0]:
        factor = uniform(*cfg.scale)
        height, width = (max(1, round(factor * side)) for side in ids.shape)
        image, ids = resize(image, ids, (height, width))
    if cfg.rotate:
        image, ids = rotate(image, ids, uniform(-cfg.rotate, cfg.rotate))
    if cfg.blur and torch.rand(()) < cfg.blur:
        image = F.gaussian_blur(image, [5, 5], [uniform(0.1, 1.0)])
    if torch.rand(()) < cfg.flip:
        image, ids = image.flip(-1), ids.flip(-1)
    return crop(image, ids, cfg.crop) if cfg.crop else (image, ids)


def uniform(low: float, high: float) -> float:
    """A number between the two."""
    return low + (high - low) * float(torch.rand(()))


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
