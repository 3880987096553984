"""The classes of a panoptic data set: which are things, which are stuff, and in which colour.

L = L_St ∪ L_Th (Sec. 3.1): a class is stuff or a thing by decision of the data set, never both.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LIMIT = 1 << 31  # category ids are below


@dataclass(frozen=True)
class Category:
    """One class; id is the number that files use, which need not be contiguous."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int] = (0, 0, 0)  # red, green, blue, 0..255
    supercategory: str = ""


def whole(value: Any) -> int | None:
    """`value` as an int where it is a whole number, 3.0 included; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        integral = getattr(value, "is_integer", None)
        return int(value) if integral is not None and integral() else None


def read_categories(entries: Any, where: str) -> dict[int, Category]:
    """Categories by id, in the order of the file, from COCO's list of `categories`.

    entries: dicts with id, name, isthing (0 or 1) and, if they like, color and supercategory.
    where: the file, for messages. Raises ValueError for the first entry that is not of this form.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where}: `categories` is not a list of objects {{id, name, isthing}}")
    categories: dict[int, Category] = {}
    for entry in entries:
        category = _read(entry, where)
        if category.id in categories:
            raise ValueError(f"{where}: category id {category.id} appears twice")
        categories[category.id] = category
    return categories


def _read(entry: dict[str, Any], where: str) -> Category:
    number, name, isthing = whole(entry.get("id")), entry.get("name"), entry.get("isthing")
    if number is None or not 0 <= number < LIMIT:
        raise ValueError(
            f"{where}: a category has the id {entry.get('id')!r:.40}: give a whole number from 0 "
            f"to {LIMIT - 1}"
        )
    if not isinstance(name, str):
        raise ValueError(f"{where}: category {number} has no `name`")
    if isthing not in (0, 1):
        raise ValueError(
            f"{where}: category {number} ({name}) has no `isthing` of 0 or 1, which says whether "
            "it is stuff or a thing"
        )
    color = entry.get("color", [0, 0, 0])
    if not isinstance(color, list | tuple) or len(color) != 3:
        raise ValueError(f"{where}: the color of category {number} ({name}) is not [r, g, b]")
    red, green, blue = (-1 if (level := whole(value)) is None else level for value in color)
    if min(red, green, blue) < 0 or max(red, green, blue) > 255:
        raise ValueError(f"{where}: the color of category {number} ({name}) is not within 0..255")
    supercategory = str(entry.get("supercategory", ""))
    return Category(number, name, bool(isthing), (red, green, blue), supercategory)


def to_entries(categories: Mapping[int, Category]) -> list[dict[str, Any]]:
    """COCO's list of `categories`, the reverse of `read_categories`."""
    return [
        {
            "supercategory": category.supercategory,
            "color": list(category.color),
            "isthing": int(category.isthing),
            "id": category.id,
            "name": category.name,
        }
        for category in categories.values()
    ]


def kinds(categories: Mapping[int, Category]) -> dict[int, bool]:
    """Category id -> whether it is a thing: what `PanopticQuality` asks for."""
    return {number: category.isthing for number, category in categories.items()}


def require_equal(
    ours: Mapping[int, Category], theirs: Mapping[int, Category], *, files: Iterable[Any]
) -> None:
    """Raise ValueError, naming the first difference in ids, names and things, unless equal.

    files: the two files, for the message. The order, colours and super-categories may differ.
    """
    first, second = files
    for number in [*ours, *theirs]:
        texts = [_describe(categories.get(number)) for categories in (ours, theirs)]
        if texts[0] != texts[1]:
            raise ValueError(
                f"{first} and {second} differ in their categories: {number} is {texts[0]} in the "
                f"one and {texts[1]} in the other; give both files the same `categories`"
            )


def _describe(category: Category | None) -> str:
    if category is None:
        return "absent"
    return f"{category.name!r} ({'thing' if category.isthing else 'stuff'})"
