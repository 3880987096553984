"""ADE20k's Places challenge 2017: from its semantic and instance PNGs to COCO panoptic files.

H, W height and width. The folder is ADEChallengeData2016, with the challenge's instance maps:

    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png           grey: 0 other, else class 1..150
    annotations_instance/{training,validation}/*.png  red: thing class 1..100, green: instance 1..
    objectInfo150.txt                                 the names of the 150 classes
    categoryMapping.txt                               thing class -> class: 100 of 150 are things

Category ids are the 1..150 of the semantic PNGs. Pixels of a thing class without an instance are
void. Where both maps speak of a pixel the instance is believed, as it was drawn on top.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Category
from .coco import Annotation
from .ids import SegmentIds, present, relabel
from .pixels import read_bytes, read_labels
from .raw import RawSplit


def read_categories(root: str | Path) -> tuple[dict[int, Category], dict[int, int]]:
    """The categories, and the category id of each thing class of the instance maps.

    Raises ValueError, naming the file, where one of the two text files is missing or malformed.
    """
    root = Path(root)
    mapping = root / "categoryMapping.txt"
    if not mapping.is_file():  # both places are in use
        mapping = root / "annotations_instance" / "categoryMapping.txt"
    things = {int(row[0]): int(row[1]) for row in _rows(mapping, split=None)}
    names_file = root / "objectInfo150.txt"
    names = {int(row[0]): row[-1].split(",")[0].strip() for row in _rows(names_file, split="\t")}
    absent = [c for c in things.values() if c not in names]
    if absent:
        raise ValueError(f"{mapping} speaks of class {absent[0]}, which is not in {names_file}")
    isthing = set(things.values())
    categories = {c: Category(c, name, c in isthing, palette(c)) for c, name in names.items()}
    return categories, things


def _rows(path: Path, *, split: str | None) -> list[list[str]]:
    """The lines that begin with a number, cut into words; the heading does not."""
    lines = read_bytes(path).decode("utf-8", "replace").splitlines()
    rows = [line.strip().split(split) for line in lines]
    rows = [row for row in rows if row and row[0].strip().isdigit()]
    bad = [row for row in rows if len(row) < 2 or (split is None and not row[1].isdigit())]
    if bad or not rows:
        what = f"has the line {bad[0]}" if bad else "has no numbered line"
        raise ValueError(f"{path} {what}: is it the file of ADEChallengeData2016?")
    return rows


def palette(label: int) -> tuple[int, int, int]:
    """A colour of its own for each label 0..255: its bits dealt out to red, green and blue."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (label >> bit & 1) << (7 - bit // 3)
    red, green, blue = color
    return red, green, blue


def open_split(root: str | Path, split: str) -> RawSplit:
    """The semantic PNG of each image of "training" or "validation" by image id, the file's stem."""
    folder = Path(root) / "annotations" / split
    files = sorted(folder.glob("*.png"))
    if not files:
        raise ValueError(
            f"{folder} has no *.png: expected ADEChallengeData2016/annotations/"
            "{training,validation}/*.png"
        )
    categories, things = read_categories(root)
    missing = next((file for file in files if not _instance_file(file).is_file()), None)
    if missing:
        raise ValueError(f"{_instance_file(missing)} does not exist: the instance map of {missing}")
    read = partial(decode, categories=categories, things=things)
    return RawSplit(categories, {file.stem: file for file in files}, read)


def _instance_file(semantic: Path) -> Path:
    """The instance map that belongs to a semantic one."""
    root = semantic.parents[2]
    return root / "annotations_instance" / semantic.parent.name / semantic.name


def decode(file: Path, *, categories: dict[int, Category], things: dict[int, int]) -> Annotation:
    """Ids (H, W) int32 and segments of a semantic PNG and the instance PNG that belongs to it.

    Raises ValueError, naming the file, for maps of two sizes and unknown classes.
    """
    semantic = read_labels(file)  # (H, W)
    instance = read_labels(_instance_file(file), channels=2)  # (H, W, 2)
    if semantic.shape != instance.shape[:2]:
        raise ValueError(
            f"{file}: the semantic map has the shape {semantic.shape}, the instance map "
            f"{instance.shape[:2]}"
        )
    unknown = [label for label in present(semantic) if label and label not in categories]
    if unknown:
        raise ValueError(f"{file}: class {unknown[0]} is not in objectInfo150.txt")
    stuff = relabel(semantic, {c.id: c.id for c in categories.values() if not c.isthing})
    packed = 256 * instance[..., 0] + instance[..., 1]
    packed[(instance == 0).any(axis=-1)] = 0  # a class without an instance, or the reverse
    keys = np.where(packed > 0, packed, stuff)  # below 256: a stuff class
    new = SegmentIds(categories)
    numbers: dict[int, int] = {}
    segments: list[dict[str, Any]] = []
    for key in present(keys):
        if key >= 256 and key // 256 not in things:
            raise ValueError(f"{file}: thing class {key // 256} is not in categoryMapping.txt")
        if key:
            category = things[key // 256] if key >= 256 else key
            numbers[key] = new.new(category)
            segments.append({"id": numbers[key], "category_id": category, "iscrowd": 0})
    return relabel(keys, numbers), segments


def panoptic_json(root: str | Path, split: str) -> Path:
    """The JSON of the converted split."""
    return Path(root) / f"ade20k_panoptic_{split}.json"
