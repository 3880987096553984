"""Images in one folder per class: finding them, and saying what is wrong with the layout.

A folder may hold more than a million files: their names are kept as one array of bytes, which
loader processes share, instead of as many Python strings, which they would each copy.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from common.images import IMAGE_SUFFIXES, find_images

WNID = re.compile(r"n\d{8}")


class Files(Sequence[str]):
    """Paths below `folder`; names: an array of bytes, or a range whose numbers are the names."""

    def __init__(self, folder: str | Path, names: "np.ndarray | range") -> None:
        self.folder, self.names = str(folder), names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "Files": ...
    def __getitem__(self, i: int | slice) -> "str | Files":
        if isinstance(i, slice):
            return Files(self.folder, self.names[i])
        name = self.names[i]
        return f"{self.folder}/{os.fsdecode(name) if isinstance(name, bytes) else name}"

    def only(self, indices: Tensor) -> "Files":
        """The paths `indices` (M,) alone."""
        return Files(self.folder, np.asarray(self.names)[indices.numpy()])


def read_names(path: str | Path) -> list[str]:
    """Names in a text file, one a line, each once; empty lines are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of classes ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path} lists no classes: give one a line")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{path} lists the class {name!r} twice: give each once")
        seen.add(name)
    return names


def class_folders(folder: str | Path, *, wnids: bool = False) -> list[str]:
    """Sorted names of the class folders in `folder`; a ValueError where it holds anything else.

    wnids: whether they have to be WordNet ids such as n01440764.
    """
    folder = Path(folder)
    tree = f"{folder}/{'<wnid>' if wnids else '<class>'}/<image>"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: expected {tree}")
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    _require_sorted(folder, sorted(e.name for e in entries if not e.is_dir()), tree)
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise ValueError(f"{folder} has no class folders: expected {tree}")
    odd = [name for name in names if not WNID.fullmatch(name)] if wnids else []
    if odd:
        raise ValueError(
            f"{folder / odd[0]} is not named by a WordNet id such as n01440764 ({len(odd)} such "
            "folders): take it away, or set data.name=folder for other images"
        )
    return names


def _require_sorted(folder: Path, names: list[str], tree: str) -> None:
    """Raise ValueError for images and archives that lie beside the class folders."""
    loose = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if loose:
        raise ValueError(
            f"{folder / loose[0]} lies outside a class folder ({len(loose)} such images): "
            f"expected {tree}; ILSVRC's validation images come unsorted, so sort them by the "
            f"devkit's mapping: python prepare.py sort_val {folder} MAPPING"
        )
    archives = [name for name in names if name.lower().endswith(".tar")]
    if archives:
        raise ValueError(
            f"{folder / archives[0]} is still packed ({len(archives)} such archives): unpack each "
            f"into a folder of its own, expected {tree}"
        )


def find(folder: str | Path, classes: Sequence[str], names: Sequence[str]) -> tuple[Files, Tensor]:
    """All images (M) below the folders `names`, and their labels (M,) int64 in `classes`."""
    number = {name: label for label, name in enumerate(classes)}
    found: list[bytes] = []
    labels: list[int] = []
    for name, here in find_images(Path(folder), names):
        if not here:
            raise ValueError(
                f"class {name!r} has no images in {folder}/{name}: complete it, or take the "
                "empty folder away"
            )
        found += [os.fsencode(os.path.relpath(file, folder)) for file in here]
        labels += [number[name]] * len(here)
    return Files(folder, np.array(found)), torch.tensor(labels)


def require_same(train: Sequence[str], val: Sequence[str], folder: str | Path) -> None:
    """ValueError unless the validation split in `folder` has the classes of the training split."""
    missing, extra = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing or extra:
        said = [f"{len(missing)} are missing, first {missing[0]!r}"] if missing else []
        said += [f"{len(extra)} are in it alone, first {extra[0]!r}"] if extra else []
        raise ValueError(
            f"{folder} does not have the {len(train)} classes of the training images: "
            f"{' and '.join(said)}; complete the folders, or name the classes in data.classes "
            "and data.evaluated"
        )


def require_there(names: Sequence[str], there: Sequence[str], what: str, where: str | Path) -> None:
    """ValueError unless each of `names`, listed by `what`, is among those `there`, in `where`."""
    missing = [name for name in names if name not in set(there)]
    if missing:
        raise ValueError(
            f"{what} lists {missing[0]!r}, which {where} does not have ({len(missing)} such of "
            f"{len(names)}): correct the list or complete the folder"
        )
