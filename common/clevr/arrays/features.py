"""Feature maps of images, read from .npy and .h5 files, and batches that read each map once.

I images, C channels, H x W positions, B in a batch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

H5_SUFFIXES = (".h5", ".hdf5")


class Features:
    """Feature maps (I, C, H, W), one an image, read when they are asked for.

    Indexed with int (B,) they give float32 (B, C, H, W) in that order; float16 and float32 are
    taken as they are, uint8 (pixels) is scaled to 0..1. `source` is a .npy or .h5 file, of which
    each process opens its own handle, or an array in memory.
    """

    def __init__(self, source: str | Path | np.ndarray) -> None:
        self.path = None if isinstance(source, np.ndarray) else Path(source)
        self._rows: Any = source if self.path is None else None
        self._owner = os.getpid()
        rows = self._open()
        self.shape: tuple[int, ...] = tuple(rows.shape)
        self.dtype = np.dtype(rows.dtype)
        name = self.path or "the array of features"
        if len(self.shape) != 4 or self.dtype not in (np.float16, np.float32, np.uint8):
            raise ValueError(
                f"{name} holds {self.dtype} of shape {self.shape}: expected float16, float32 or "
                "uint8 of images x channels x height x width"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: np.ndarray | Tensor | Sequence[int]) -> Tensor:
        wanted = np.asarray(images)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise TypeError(f"index features with int (B,), not {wanted.dtype} {wanted.shape}")
        rows, places = np.unique(wanted, return_inverse=True)  # H5 wants them sorted, each once
        if rows.size and not 0 <= rows[0] <= rows[-1] < len(self):
            bad = int(rows[0] if rows[0] < 0 else rows[-1])
            raise ValueError(
                f"image {bad} is asked for, but {self.path or 'the array of features'} holds "
                f"images 0..{len(self) - 1}: extract the features of all images of this split"
            )
        maps = torch.from_numpy(np.asarray(self._open()[rows]).astype(np.float32))
        if self.dtype == np.uint8:
            maps /= 255
        return maps if len(rows) == len(wanted) and (rows == wanted).all() else maps[places]

    def __getstate__(self) -> dict:
        return self.__dict__ | ({} if self.path is None else {"_rows": None})

    def _open(self) -> Any:
        """What holds the rows; opened anew in a forked process, whose file position is shared."""
        if self.path is not None and (self._rows is None or self._owner != os.getpid()):
            if self.path.suffix in H5_SUFFIXES:
                file = open_h5(self.path)
                if not hasattr(file.get("features"), "shape"):  # absent, or a group
                    raise ValueError(f"{self.path} has no data set `features`")
                self._rows = file["features"]
            else:
                self._rows = map_array(self.path)
            self._owner = os.getpid()
        return self._rows


class ByImage:
    """Batches that keep the questions about an image together: a pure function of (seed, step).

    An epoch takes the images in random order and is cut into batches of `batch_size` questions; a
    last incomplete batch is dropped. So each map is read about once an epoch. A set smaller than a
    batch is repeated.
    """

    def __init__(self, image_idxs: np.ndarray | Sequence[int], batch_size: int, *, seed: int):
        if len(image_idxs) < 1 or batch_size < 1 or seed < 0:
            raise ValueError(
                f"ByImage needs questions, a batch_size >= 1 and a seed >= 0, not "
                f"{len(image_idxs)} questions, {batch_size} and {seed}"
            )
        images = np.asarray(image_idxs)
        self.batch_size, self.seed = batch_size, seed
        self.by_image = images.argsort(kind="stable")  # questions, image after image
        _, self.counts = np.unique(images, return_counts=True)
        self.starts = np.cumsum(self.counts) - self.counts
        self.repeats = -(-batch_size // len(images))
        self.steps_per_epoch = self.repeats * len(images) // batch_size
        self._epoch, self._order = 0, self._shuffle(0)

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Questions in the order of one epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        orders = []
        for _ in range(self.repeats):
            images = generator.permutation(len(self.counts))
            counts = self.counts[images]
            before = np.cumsum(counts) - counts
            places = np.arange(len(self.by_image)) - np.repeat(before, counts)
            orders.append(self.by_image[np.repeat(self.starts[images], counts) + places])
        return np.concatenate(orders)

    def batch(self, step: int) -> np.ndarray:
        """Questions (batch_size,) int64 of step 0, 1, 2, ..."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return self._order[k * self.batch_size : (k + 1) * self.batch_size]

    def share(self, step: int, rank: int, world: int) -> np.ndarray:
        """The consecutive part of `batch(step)` that process `rank` of `world` computes."""
        if self.batch_size % world:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared by {world} processes: choose a "
                "multiple of their number"
            )
        n = self.batch_size // world
        return self.batch(step)[rank * n : (rank + 1) * n]


def map_array(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a .npy file, or was cut off: {error}") from error


def h5py_for(path: str | Path) -> Any:
    """The module h5py, which is an extra; ValueError with the command where it is missing."""
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f'{path} needs h5py: pip install "fair-vision[h5]"') from error
    return h5py


def open_h5(path: Path) -> Any:
    """An H5 file opened for reading."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        return h5py_for(path).File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not an H5 file, or was cut off: {error}") from error
