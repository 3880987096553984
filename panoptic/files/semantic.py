"""Semantic PNGs, one class label per pixel, from panoptic maps.

H, W height and width, S stuff classes. Three ways to number the classes:

    category    the category's id in the file; void is 0
    contiguous  0, 1, 2, ... in the order of the categories; void is 255
    stuff       0 for any thing, 1..S for stuff in the order of the categories; void is 255: the
                `panoptic_stuff` PNGs that detectron2's Panoptic FPN is trained on
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Category
from .coco import PanopticFiles
from .ids import paint

LAYOUTS = ("category", "contiguous", "stuff")


def class_labels(
    categories: Mapping[int, Category], layout: str, *, void: int | None = None
) -> tuple[dict[int, int], int]:
    """The label of each category id, and that of void.

    void: another label for void than the layout's. Raises ValueError for an unknown layout, and
    where void would be the label of a class or a label would not fit into 16 bits.
    """
    match layout:
        case "category":
            labels = {number: number for number in categories}
        case "contiguous":
            labels = {number: label for label, number in enumerate(categories)}
        case "stuff":
            stuff = [category.id for category in categories.values() if not category.isthing]
            labels = dict.fromkeys(categories, 0) | {c: label for label, c in enumerate(stuff, 1)}
        case _:
            raise ValueError(f"layout={layout} is unknown: choose from {', '.join(LAYOUTS)}")
    if void is None:
        void = 0 if layout == "category" else 255
    if void in labels.values():
        raise ValueError(f"void={void} is the label of a class in layout={layout}: give another")
    if not all(0 <= label < 1 << 16 for label in (void, *labels.values())):
        raise ValueError(f"layout={layout}: a label does not fit into the 16 bits of a grey PNG")
    return labels, void


def to_semantic(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], labels: Mapping[int, int], void: int
) -> np.ndarray:
    """Labels (H, W) of ids (H, W), uint8 or, where a label is beyond 255, uint16."""
    kind = np.uint8 if max(void, *labels.values()) < 256 else np.uint16
    classes = {segment["id"]: labels[segment["category_id"]] for segment in segments}
    return paint(ids, classes, void, kind)


def write_semantic(
    files: PanopticFiles, folder: str | Path, *, layout: str = "category", void: int | None = None
) -> int:
    """Write a semantic PNG of each image of panoptic files, of the same name; returns how many."""
    labels, label = class_labels(files.categories, layout, void=void)
    for image in files.images:
        number = image["id"]
        pixels = to_semantic(files.ids(number), files.segments(number), labels, label)
        files.write_beside(number, folder, pixels)
    return len(files)
