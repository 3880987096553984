"""The lists of segments of an image, checked, and against the pixels of its maps."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..files.categories import whole
from .overlaps import LIMIT, Overlaps

Segments = Sequence[Mapping[str, Any]]  # dicts with COCO's keys: id, category_id, iscrowd, area
Row = tuple[int, int, int]  # ids of truth and prediction, pixels that they share


class Segment(NamedTuple):
    """An entry of a list of segments, checked."""

    category: int
    crowd: bool
    area: int | float


def read(
    segments: Segments,
    side: str,
    categories: Collection[int],
    *,
    where: str,
    zero: bool = False,
    area: bool = False,
) -> dict[int, Segment]:
    """Id -> segment, in the order of the list.

    side: "truth" or "prediction", and `where`: for messages. zero: the id 0 is allowed. area: the
    list's is needed. Raises ValueError for the first entry that makes no sense.
    """
    found: dict[int, Segment] = {}
    for number, entry in enumerate(segments):
        key, category, crowd = entry.get("id"), entry.get("category_id"), entry.get("iscrowd", 0)
        if type(key) is not int or type(category) is not int:
            name = f"{where}segment number {number} of the {side}"
            key, category = _whole(entry, "id", name), _whole(entry, "category_id", name)
        if (
            not (0 if zero else 1) <= key < LIMIT
            or key in found
            or category not in categories
            or crowd not in (0, 1)
        ):
            fault = _fault(key, category, crowd, categories, zero=zero, repeated=key in found)
            raise ValueError(f"{where}segment {key} of the {side}{fault}")
        size = _area(entry, f"{where}segment {key} of the {side}") if area else 0
        found[key] = Segment(category, crowd == 1, size)
    return found


def _whole(entry: Mapping[str, Any], key: str, name: str) -> int:
    value = whole(entry.get(key))
    if value is None:
        given = f"{entry[key]!r:.40} as {key!r}" if key in entry else f"no {key!r}"
        raise ValueError(f"{name} has {given}: give a whole number.")
    return value


def _fault(
    key: int, category: int, crowd: Any, categories: Collection[int], *, zero: bool, repeated: bool
) -> str:
    """What is wrong with an entry."""
    if key == 0 and not zero:
        return " has the id of void: number segments from 1."
    if not 0 <= key < LIMIT:
        return f": ids go from 1 to {LIMIT - 1}."
    if repeated:
        return " is listed twice: give every segment an id of its own."
    if category not in categories:
        return (
            f" has category {category}, which is not one of the {len(categories)} categories: add "
            "it there, or correct the segment."
        )
    return f" has iscrowd {crowd!r:.40}: give 0 or 1."


def _area(entry: Mapping[str, Any], name: str) -> int | float:
    """The area that a list states, which may have a fraction."""
    area = entry.get("area")
    number = whole(area)
    if number is None and isinstance(area, float) and math.isfinite(area):
        return area
    if number is None:
        found = "no area" if area is None else f"area {area!r:.40}"
        raise ValueError(f'{name} has {found}: give its pixels, or use areas="counted".')
    return number


def reconcile(
    pairs: Overlaps,
    predictions: dict[int, Segment],
    truths: dict[int, Segment],
    unlisted: str,
    where: str,
) -> tuple[list[Row], dict[int, int], dict[int, int | float]]:
    """Pixels by pair of ids, and areas of the prediction's and the truth's ids.

    unlisted: see `matching.Rules`. Under "void", entries without pixels are taken out of
    `predictions` and `truths`. Raises ValueError for ids that only one of list and map has.
    """
    rows: list[Row] = list(zip(*(column.tolist() for column in pairs), strict=True))
    if unlisted == "void":
        sums: dict[tuple[int, int], int] = defaultdict(int)
        for t, p, n in rows:
            sums[t if t in truths else 0, p if p in predictions else 0] += n
        rows = [(t, p, n) for (t, p), n in sorted(sums.items())]
    truth_area: dict[int, int | float] = defaultdict(int)
    prediction_area: dict[int, int] = defaultdict(int)
    for t, p, n in rows:
        truth_area[t] += n
        prediction_area[p] += n
    sides = (predictions, prediction_area, "prediction"), (truths, truth_area, "truth")
    for listed, drawn, side in sides:
        if unlisted == "void":
            for key in listed.keys() - drawn.keys():
                del listed[key]
        elif unlisted == "raise" or side == "prediction":
            _require_same(listed.keys(), drawn.keys() - {0}, side, where)
    return rows, prediction_area, truth_area


def _require_same(listed: Any, drawn: Any, side: str, where: str) -> None:
    if drawn - listed:
        raise ValueError(
            f"{where}the map of the {side} has id {min(drawn - listed)}, but its segments do not "
            'list it: add the segment, set the pixels to 0 (void), or use unlisted="void".'
        )
    if listed - drawn - {0}:
        raise ValueError(
            f"{where}segment {min(listed - drawn - {0})} of the {side} is listed, but has no pixel "
            'in its map: leave it out, or use unlisted="void".'
        )
