"""Data sets of which only the boxes are used, behind one with masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.coco.dataset import Categories, CocoDataset


class Joined(Dataset):
    """The images of `first`, then those of `others`, with one numbering of their classes.

    A class of `others` is that of `first` with its name, or else a new one behind all of these.
    Items and attributes are those of `CocoDataset(partial=True)`.

    first: partial; others: of kind "boxes".
    """

    def __init__(self, first: CocoDataset, others: Sequence[CocoDataset]) -> None:
        self.parts = [first, *others]
        self.names, self.category_ids = list(first.names), list(first.category_ids)
        self.labels: list[Tensor] = []  # of each set's own labels, what they are here
        for part in self.parts:
            for name in part.names:
                if name not in self.names:
                    self.names.append(name)
                    self.category_ids.append(max(self.category_ids) + 1)
            self.labels.append(torch.tensor([self.names.index(name) for name in part.names]))
        self.added = len(self.names) - len(first.names)  # classes that `first` lacks
        self.categories = Categories(self.category_ids, self.names, first.where)
        self.files = np.concatenate([part.files for part in self.parts])
        self.stops = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.stops[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        number, own = self.find(index)
        image, target = self.parts[number][own]
        return image, self.complete(target, number)

    def target(self, index: int, *, decode: bool = True) -> dict[str, Any]:
        """The target of one image, without reading the image; `decode`: with its masks."""
        number, own = self.find(index)
        return self.complete(self.parts[number].target(own, decode=decode), number)

    def find(self, index: int) -> tuple[int, int]:
        """The set that an image is of, and its place in it."""
        number = int(np.searchsorted(self.stops, index, side="right"))
        return number, index - int(self.stops[number]) + len(self.parts[number])

    def complete(self, target: dict[str, Any], number: int) -> dict[str, Any]:
        """A target of one of the sets with the labels here, and without masks but of the first."""
        target["labels"] = self.labels[number][target["labels"]]
        if number:
            target["has_mask"] = torch.zeros_like(target["iscrowd"])
            target["masks"] = torch.zeros(0, *target["size"], dtype=torch.bool)
        return target

    def aspect_groups(self) -> list[int]:
        """Per image 1 for portrait, else 0."""
        return [group for part in self.parts for group in part.aspect_groups()]


def read_boxes_only(pair: str, **options: Any) -> CocoDataset:
    """The data set of a `JSON:FOLDER` pair; options: of CocoDataset."""
    file, _, folder = pair.rpartition(":")
    fault = ""
    if not file or not folder:
        fault = "is no pair"
    elif not Path(file).is_file():
        fault = f"names {file}, which is no file"
    elif not Path(folder).is_dir():
        fault = f"names {folder}, which is no folder"
    if fault:
        raise ValueError(
            f"data.boxes_only: {pair} {fault}: give pairs like DIR/annotations/instances_train.json"
            ":DIR/images, a file in COCO's format and the folder of its images."
        )
    return CocoDataset(Path(folder), Path(file), kind="boxes", **options)
