"""Lists of images with labels, their views, and how they come to a network."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from common import dist
from common.config import require_choice
from common.data import BadImages
from common.images import read_image
from common.transforms import IMAGENET_MEAN, IMAGENET_STD

from ..model import normalise

AUGMENTATIONS = ("crop", "shift", "none")


class Listing:
    """Images below `folder` with a label each: `listing[i]` is (path, label).

    names: their paths in `folder`. ImageNet-9k has 10 million: the names are one array of bytes,
    which loader processes share. labels: int64 (n,).
    """

    def __init__(self, folder: str | Path, names: Sequence[str], labels: Sequence[int]) -> None:
        self.folder = Path(folder)
        self.names = np.array([os.fsencode(name) for name in names])
        self.labels = torch.tensor(labels, dtype=torch.int64)
        if len(self.names) != len(self.labels):
            raise ValueError(f"{len(self.names)} images, but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Path, int]:
        return self.folder / os.fsdecode(self.names[i]), int(self.labels[i])

    def only(self, indices: Tensor) -> "Listing":
        """The images `indices` int64 (m,) alone."""
        part = Listing(self.folder, [], [])
        part.names, part.labels = self.names[indices.numpy()], self.labels[indices]
        return part


class Images(Dataset):
    """(image uint8 (3, S, S), label) of a listing, after `transform`; the whole list `views` times.

    Example i is a view of image i modulo the number of images.
    """

    def __init__(
        self, listing: Listing, transform: Callable[[Tensor], Tensor], views: int = 1
    ) -> None:
        self.listing, self.transform, self.views = listing, transform, views

    def __len__(self) -> int:
        return len(self.listing) * self.views

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, label = self.listing[i % len(self.listing)]
        return self.transform(read_image(path)), label


def centre_view(size: int, resize: int) -> Callable[[Tensor], Tensor]:
    """Centre crop of `size` pixels of an image whose shorter side is `resize` (224 of 256)."""
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])


def random_view(size: int, augment: str) -> Callable[[Tensor], Tensor]:
    """Random view of `size` pixels, mirrored with probability 1/2; "none" is the centre crop.

    crop: 8 % to 100 % of the area, ratio 3/4 to 4/3, Sec. 3.1. shift: for images as small as the
    view, moved by up to 1/8 of it, as CIFAR's usually are.
    """
    if augment == "none":
        return centre_view(size, size)
    if augment == "crop":
        view = [v2.RandomResizedCrop(size, antialias=True)]
    else:
        view = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
        view.append(v2.RandomCrop(size, padding=size // 8))
    return v2.Compose([*view, v2.RandomHorizontalFlip()])


def require_sizes(option: str, size: int, resize: int, augment: str) -> None:
    """ValueError unless these options of `option` (probe, finetune) make views."""
    require_choice(f"{option}.augment", augment, AUGMENTATIONS)
    if not 8 <= size <= resize:
        raise ValueError(
            f"{option}.size={size}, {option}.resize={resize}: choose 8 <= size <= resize, pixels."
        )


@dataclass(frozen=True)
class Reading:
    """How images come to a network: its mean and std (0..1 RGB), and the loader's options."""

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    workers: int = 0  # loader processes per process
    bad_images: str = "raise"  # raise | skip: what an unreadable training image does
    option: str = "bad_images"  # the key of that

    def policy(self) -> BadImages:
        """What a loader of training images does; test images are never skipped."""
        return BadImages(self.bad_images, option=self.option)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> float32 on this process's device, (image / 255 - mean) / std."""
        return normalise(images.to(dist.device(), non_blocking=True), self.mean, self.std)
