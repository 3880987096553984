"""Segment ids: as colours of a PNG, new ones for each class, and how many pixels each has.

H, W height and width, N ids. A panoptic map is `ids` (H, W); 0 is void. In COCO's PNGs the id is
red + 256 green + 65536 blue.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from .categories import Category

LIMIT = 1 << 24  # ids are below: three bytes
_NEAR = 30  # how far an id's red, green and blue are from its class's while there is room
_SIDE = 2 * _NEAR + 1
_STRIDE = 100_003  # a prime, so that its multiples visit each colour of the cube once


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 of ids (...) in [0, 2**24). Raises ValueError for others."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"ids are of type {ids.dtype}: expected whole numbers")
    if ids.size and not (ids.min() >= 0 and ids.max() < LIMIT):
        raise ValueError(f"ids reach from {ids.min()} to {ids.max()}: expected 0 to {LIMIT - 1}")
    padded = np.ascontiguousarray(ids, "<i4").reshape(*ids.shape, 1).view(np.uint8)
    return np.ascontiguousarray(padded[..., :3])


def measure(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What occurs in a map (H, W): ids (N,) rising, pixels (N,) int64, boxes (N, 4) int64.

    Boxes are x, y, width, height. Void is among the ids. Rows are cut into runs of equal ids
    first, as sorting some thousand runs is much quicker than sorting all pixels.
    """
    _, width = ids.shape
    starts_run = np.ones(ids.shape, bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=starts_run[:, 1:])
    starts = np.flatnonzero(starts_run)
    if starts.size == 0:
        return np.empty(0, ids.dtype), np.empty(0, np.int64), np.empty((0, 4), np.int64)
    lengths = np.diff(starts, append=ids.size)
    found, counts = np.unique(values := ids.reshape(-1)[starts], return_counts=True)
    order = np.argsort(values, kind="stable")
    firsts = np.cumsum(counts) - counts  # where each id's runs begin in that order
    rows, left = np.divmod(starts[order], width)
    right = left + lengths[order]
    x, y = np.minimum.reduceat(left, firsts), np.minimum.reduceat(rows, firsts)
    x_end, y_end = np.maximum.reduceat(right, firsts), np.maximum.reduceat(rows, firsts) + 1
    areas = np.add.reduceat(lengths[order], firsts)
    return found, areas, np.stack([x, y, x_end - x, y_end - y], axis=1)


def relabel(labels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Labels (H, W) within 0..65535 replaced by their `numbers`, int32; 0 where they have none."""
    table = np.zeros(1 << 16, np.int32)
    table[list(numbers)] = list(numbers.values())
    return table[labels]


def paint(ids: np.ndarray, values: Mapping[int, Any], void: Any, kind: Any) -> np.ndarray:
    """Ids (H, W) replaced by their `values`, numbers or tuples of the type `kind`, or by `void`."""
    found, place = np.unique(ids, return_inverse=True)
    table = np.array([values.get(number, void) for number in found.tolist()], kind)
    return table[place.reshape(ids.shape)]


def present(labels: np.ndarray) -> list[int]:
    """The labels (H, W) within 0..65535 that occur, rising."""
    return np.flatnonzero(np.bincount(labels.reshape(-1))).tolist()


class SegmentIds:
    """New ids for the segments of one image, each of a colour near its class's.

    The first segment of a stuff class gets the class's very colour, things get others, so that
    instances can be told apart. Ids are never repeated nor 0, also where classes share a colour or
    have black; they depend on nothing but the order of the calls.
    """

    def __init__(self, categories: Mapping[int, Category]) -> None:
        self._categories = categories
        self._taken = {0}
        self._candidates: dict[int, Iterator[int]] = {}

    def new(self, category_id: int) -> int:
        """An unused id for a segment of this class.

        Raises ValueError for an unknown class, and once all 2**24 - 1 ids are in use.
        """
        if category_id not in self._categories:
            raise ValueError(
                f"category {category_id} is unknown: there are {sorted(self._categories)}"
            )
        if category_id not in self._candidates:
            self._candidates[category_id] = _walk(self._categories[category_id])
        for candidate in self._candidates[category_id]:
            if candidate not in self._taken:
                self._taken.add(candidate)
                return candidate
        raise ValueError(f"an image has at most {LIMIT - 1} segments: no id is left")


def _walk(category: Category) -> Iterator[int]:
    """All ids: first those of the cube around the colour, scattered over it."""
    middle, number = _SIDE**3 // 2, _SIDE**3
    for k in chain(range(1, number), [0]) if category.isthing else range(number):
        rest, blue = divmod((middle + k * _STRIDE) % number, _SIDE)
        red, green = divmod(rest, _SIDE)
        near = [c + d - _NEAR for c, d in zip(category.color, (red, green, blue), strict=True)]
        if min(near) >= 0 and max(near) <= 255:
            yield near[0] + (near[1] << 8) + (near[2] << 16)
    yield from range(1, LIMIT)
