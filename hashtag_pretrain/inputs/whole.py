"""All images of a folder or of shards, described and compared. S pixels a side."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from common.data import eval_loader
from common.images import UnreadableImage, find_images

from ..duplicates.report import Pairs, find_duplicates
from ..shards.archive import Shards
from .decode import View, decode_crop


class WholeImages(Dataset):
    """Images squeezed to squares: (uint8 (3, S, S), number, ""), or black ones with what is wrong.

    path: a folder of shards, or of images anywhere below it. ValueError where it has none.
    """

    def __init__(self, path: str | Path, size: int) -> None:
        self.path, self.size = Path(path), size
        self.shards: Shards | None = None
        self.paths: list[str] = []  # not `files`, which a loader would look names up in
        if not self.path.is_dir():
            raise ValueError(f"{path} is not a folder of shards or images")
        if any(self.path.glob("*.tar")):
            self.shards = Shards(path)
        else:
            ((_, self.paths),) = find_images(self.path, ["."])
        if not len(self):
            raise ValueError(f"{path} has neither shards (*.tar) with images nor images")

    def __len__(self) -> int:
        return len(self.paths) if self.shards is None else len(self.shards)

    def name(self, index: int) -> str:
        """The key of an image in the shards, or its path below the folder."""
        if self.shards is None:
            return str(Path(self.paths[index]).relative_to(self.path))
        shard, i = self.shards.locate(index)
        return self.shards.keys(shard)[i]

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        try:
            if self.shards is None:
                name = self.paths[index]
                data = Path(name).read_bytes()
            else:
                name, data = self.shards.name(index), self.shards.read(index)
            return decode_crop(data, name, partial(squeeze, size=self.size)), index, ""
        except UnreadableImage as error:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), index, str(error)


def squeeze(height: int, width: int, *, size: int) -> View:
    """The whole image as a square, so that images of all shapes fit one batch."""
    return View((0, 0, height, width), (size, size), (0, 0), size)


@dataclass
class Copies:
    """Pairs of test and training images by their rows; images that cannot be read have none."""

    pairs: Pairs
    train: WholeImages
    test: WholeImages
    train_rows: list[int]  # the number of the image of each row
    test_rows: list[int]
    faults: list[str]

    def train_name(self, row: int) -> str:
        """The training image of a row."""
        return self.train.name(self.train_rows[row])

    def test_name(self, row: int) -> str:
        """The test image of a row."""
        return self.test.name(self.test_rows[row])


def find_copies(
    train: WholeImages,
    test: WholeImages,
    describe: Callable[[Tensor], Tensor],
    *,
    threshold: float,
    k: int,
    batch_size: int,
    workers: int,
    scratch: Path,
) -> Copies:
    """The test images that are among the training images, mirrored or not.

    describe: uint8 (N, 3, S, S) -> float32 (N, D). scratch: a folder for the descriptors of the
    training images while they are compared, which may be more than memory holds.
    """
    faults: list[str] = []
    train_rows, test_rows = [], []
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".descriptors.") as folder:
        file = Path(folder, "train.bin")
        with file.open("wb") as written:
            for images, numbers in read_batches(train, batch_size, workers, faults):
                written.write(describe(images).cpu().numpy().tobytes())
                train_rows += numbers
        sides = []
        for images, numbers in read_batches(test, batch_size, workers, faults):
            sides.append(torch.stack([describe(images), describe(images.flip(3))]).cpu())
            test_rows += numbers
        if not train_rows or not test_rows:
            path = test.path if train_rows else train.path
            raise ValueError(f"none of the images of {path} can be read: {faults[0]}")
        plain, mirrored = torch.cat(sides, 1)
        database = np.memmap(file, np.float32, "r", shape=(len(train_rows), plain.shape[1]))
        pairs = find_duplicates(database, plain, threshold, k, mirrored=mirrored)
        del database
    return Copies(pairs, train, test, train_rows, test_rows, faults)


def read_batches(
    images: WholeImages, batch_size: int, workers: int, faults: list[str]
) -> Iterator[tuple[Tensor, list[int]]]:
    """Readable images uint8 (N, 3, S, S) and their numbers; what is wrong goes to `faults`."""
    loader = eval_loader(images, batch_size, workers=workers, rank=0, world=1)
    for pixels, numbers, found in tqdm(loader, images.path.name, leave=False, disable=None):
        faults += filter(None, found)
        good = torch.tensor([not fault for fault in found])
        if good.any():
            yield pixels[good], numbers[good].tolist()
