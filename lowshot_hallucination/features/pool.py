"""The images of one split with their classes: files on disk, or pixels in memory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.images import read_image

from .splits import ClassSplit


@dataclass(frozen=True)
class Pool:
    """N images: `pool.read(i)` are the pixels of image i, `pool[i]` its name, also past the end.

    ImageNet has 1.3 million: the names are one array of bytes, which loader processes share.
    """

    names: np.ndarray  # (N,) bytes: paths below `folder`, or what stands for them in messages
    labels: np.ndarray  # (N,) int64: class ids
    folder: Path = Path()
    pixels: np.ndarray | None = None  # (N, 3 or 1, H, W) uint8; None: `names` are files

    def __post_init__(self) -> None:
        sizes = [len(self.names), len(self.labels)]
        sizes += [] if self.pixels is None else [len(self.pixels)]
        assert len(set(sizes)) == 1, f"names, labels and pixels differ in number: {sizes}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> str:
        return str(self.folder / os.fsdecode(self.names[i % len(self)]))

    def read(self, i: int) -> Tensor:
        """Image i as uint8 (3, H, W); UnreadableImage names the file."""
        if self.pixels is None:
            return read_image(self[i])
        return torch.from_numpy(self.pixels[i]).expand(3, -1, -1)

    def only(self, classes: Sequence[int]) -> "Pool":
        """The images of these classes, in the order that they have here."""
        return self.rows(np.isin(self.labels, np.asarray(classes, np.int64)))

    def rows(self, rows: np.ndarray) -> "Pool":
        """The images of these rows, int64 (M,) or bool (N,)."""
        pixels = None if self.pixels is None else self.pixels[rows]
        return replace(self, names=self.names[rows], labels=self.labels[rows], pixels=pixels)


class Source(NamedTuple):
    """What a source of images gives. train: pool of the support, and of the trunk's training."""

    split: ClassSplit
    train: Pool
    test: Pool  # the queries
    notes: tuple[str, ...] = ()  # sentences for the report


def as_names(names: Sequence[str]) -> np.ndarray:
    """Names (N,) as bytes, for `Pool`."""
    return np.array([os.fsencode(name) for name in names], "S")
