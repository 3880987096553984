"""The paper's two-channel PNGs (Sec. 3.1): a class and an instance number for each pixel.

H, W height and width. Channel 0 is the id of the category, channel 1 tells the instances of one
thing class apart; a third channel is ignored. The instance number of stuff has no meaning: all its
pixels in an image are one segment. The format cannot tell crowds from instances.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Category
from .coco import PanopticFiles, Result, png_name
from .ids import SegmentIds, paint, present, relabel
from .pixels import read_labels


def from_two_channel(
    pixels: np.ndarray, categories: Mapping[int, Category], *, void: int = 0, where: str = "map"
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Ids (H, W) int32 and segments of pixels (H, W, 2), 0..255.

    void: the label of pixels outside of all classes. where: begins the message of the ValueError
    that is raised for a label that is no category, and where `void` is one.
    """
    _require_void(void, categories, where)
    labels = pixels[..., 0].astype(np.int32)
    unknown = [c for c in present(labels) if c != void and c not in categories]
    if unknown:
        raise ValueError(
            f"{where}: label {unknown[0]} is neither a category nor void ({void}): check the "
            "categories, or give another void label"
        )
    things = relabel(labels, {c: int(categories[c].isthing) for c in present(labels) if c != void})
    packed = 256 * labels + things * pixels[..., 1]
    new = SegmentIds(categories)
    numbers = {value: new.new(value // 256) for value in present(packed) if value // 256 != void}
    segments = [
        {"id": number, "category_id": value // 256, "iscrowd": 0}
        for value, number in numbers.items()
    ]
    return relabel(packed, numbers), segments


def to_two_channel(
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    categories: Mapping[int, Category],
    *,
    void: int = 0,
    where: str = "map",
) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of ids (H, W): category, instance 1, 2, ... or 0 for stuff, and 0.

    Raises ValueError, beginning with `where`, for what does not fit into 8 bits: categories from
    256 on, or more than 255 instances of a class; and where `void` is a category.
    """
    _require_void(void, categories, where)
    values: dict[int, tuple[int, int, int]] = {}
    counts: dict[int, int] = {}
    for segment in segments:
        category = categories[segment["category_id"]]
        counts[category.id] = counts.get(category.id, 0) + 1
        instance = counts[category.id] if category.isthing else 0
        if category.id > 255 or instance > 255:
            raise ValueError(
                f"{where}: segment {segment['id']} would be instance {instance} of category "
                f"{category.id}, and the two-channel format ends at 255"
            )
        values[segment["id"]] = (category.id, instance, 0)
    return paint(ids, values, (void, 0, 0), np.uint8)


def _require_void(void: int, categories: Mapping[int, Category], where: str) -> None:
    if void in categories or not 0 <= void <= 255:
        raise ValueError(
            f"{where}: void={void} is a category or beyond 255: give void another label, "
            "such as 255"
        )


def read_two_channel(
    folder: str | Path,
    images: Iterable[Mapping[str, Any]],
    categories: Mapping[int, Category],
    *,
    void: int = 0,
) -> Iterator[Result]:
    """Image id, ids and segments of the PNGs in a folder, named as the images are but .png."""
    for image in images:
        path = Path(folder) / png_name(image)
        where = f"{path} (image {image['id']!r})"
        pixels = read_labels(path, channels=2)
        yield image["id"], *from_two_channel(pixels, categories, void=void, where=where)


def write_two_channel(files: PanopticFiles, folder: str | Path, *, void: int = 0) -> int:
    """Write each image of COCO panoptic files as a two-channel PNG of the same name; how many."""
    for image in files.images:
        number = image["id"]
        pixels = to_two_channel(
            files.ids(number),
            files.segments(number),
            files.categories,
            void=void,
            where=f"{files.path(number)} (image {number!r})",
        )
        files.write_beside(number, folder, pixels)
    return len(files)
