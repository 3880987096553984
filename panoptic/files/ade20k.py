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

from pathlib import Path
from typing import Any

import numpy as np

from .categories import Category
from .coco import write_panoptic
from .ids import SegmentIds, present, relabel
from .pixels import png_size, read_bytes, read_labels


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


def from_maps(
    semantic: np.ndarray,
    instance: np.ndarray,
    categories: dict[int, Category],
    things: dict[int, int],
    *,
    where: str = "map",
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Ids (H, W) int32 and segments of a semantic map (H, W) and an instance map (H, W, 2).

    Raises ValueError, beginning with `where`, for maps of two sizes and unknown classes.
    """
    if semantic.shape != instance.shape[:2]:
        raise ValueError(
            f"{where}: the semantic map has the shape {semantic.shape}, the instance map "
            f"{instance.shape[:2]}"
        )
    new = SegmentIds(categories)
    owners: dict[int, int] = {}  # category by segment id
    stuff: dict[int, int] = {}
    for label in present(semantic):
        if label and label not in categories:
            raise ValueError(f"{where}: class {label} is not in objectInfo150.txt")
        if label and not categories[label].isthing:
            stuff[label] = new.new(label)
            owners[stuff[label]] = label
    packed = 256 * instance[..., 0] + instance[..., 1]
    packed[(instance == 0).any(axis=-1)] = 0  # a class without an instance, or the reverse
    objects: dict[int, int] = {}
    for value in present(packed):
        if value and value // 256 not in things:
            raise ValueError(f"{where}: thing class {value // 256} is not in categoryMapping.txt")
        if value:
            category = things[value // 256]
            objects[value] = new.new(category)
            owners[objects[value]] = category
    ids = np.where(packed > 0, relabel(packed, objects), relabel(semantic, stuff))
    found = set(np.unique(ids).tolist())  # an object may have covered all of a stuff class
    segments = [
        {"id": number, "category_id": category, "iscrowd": 0}
        for number, category in owners.items()
        if number in found
    ]
    return ids, segments


def maps(root: str | Path, split: str) -> dict[str, tuple[Path, Path]]:
    """The semantic and the instance PNG of each image of a split by image id, the file's stem."""
    folder = Path(root) / "annotations" / split
    files = sorted(folder.glob("*.png"))
    if not files:
        raise ValueError(
            f"{folder} has no *.png: expected ADEChallengeData2016/annotations/"
            "{training,validation}/*.png"
        )
    other = Path(root) / "annotations_instance" / split
    missing = next((file for file in files if not (other / file.name).is_file()), None)
    if missing:
        raise ValueError(f"{other / missing.name} does not exist: the instance map of {missing}")
    return {file.stem: (file, other / file.name) for file in files}


def read_maps(
    files: tuple[Path, Path], categories: dict[int, Category], things: dict[int, int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """`from_maps` of a pair of files."""
    semantic, instance = files
    labels = read_labels(semantic)
    pixels = read_labels(instance, channels=2)
    return from_maps(labels, pixels, categories, things, where=str(semantic))


def convert_ade20k(root: str | Path, split: str, out: str | Path | None = None) -> Path:
    """Write the COCO panoptic files of "training" or "validation", and return the JSON.

    out: the JSON; not given, ROOT/ade20k_panoptic_{split}.json, PNGs in the folder of that name.
    """
    categories, things = read_categories(root)
    files = maps(root, split)
    out = Path(out or Path(root) / f"ade20k_panoptic_{split}.json")
    images = []
    for number, (semantic, _) in files.items():
        height, width = png_size(semantic)
        size = {"width": width, "height": height}
        images.append({"id": number, **size, "file_name": f"{number}.jpg"})
    results = ((number, *read_maps(pair, categories, things)) for number, pair in files.items())
    write_panoptic(out, categories=categories, images=images, results=results)
    return out
