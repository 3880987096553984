"""The structure of COCO-format files: what their lists and fields must be, in one table.

`CocoDataset`, `evaluate` and `check_data` all read through it; the instances are looked through in
`instances`. What is wrong raises ValueError with one sentence.
"""

import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from common.images import MAX_PIXELS

from .files import first_missing, read_json, refuse_repeated, short_path


@dataclass(frozen=True)
class Field:
    """What a field of every entry must be; `least` and `most` limit whole numbers."""

    kinds: tuple[type, ...]
    wanted: str
    least: int = 0
    most: int = 2**63 - 1

    def fits(self, value: Any) -> bool:
        """Whether one value is as it must be."""
        if not isinstance(value, self.kinds) or isinstance(value, bool):
            return False
        return not isinstance(value, int | np.integer) or self.least <= int(value) <= self.most

    def find_misfit(self, values: list) -> int | None:
        """Index of the first value that does not fit; quick where all are plain whole numbers."""
        plain = int in self.kinds and set(map(type, values)) == {int}
        if plain and self.least <= min(values) and max(values) <= self.most:
            return None
        return next((i for i, value in enumerate(values) if not self.fits(value)), None)


ID = Field((int, np.integer), "a whole number from 0 to 2^63 - 1")
_SIDE = Field((int, np.integer), "a whole number of pixels from 1 to 65536", least=1, most=2**16)
_TEXT = Field((str,), "text")
_NAME = Field((str, int), "a name")
# Of annotations, which nothing refers to: those of COCO's minival are floats, some of them twice.
_ANY_ID = Field((int, np.integer, float, str, type(None)), "a number below 2^63, or text", -(2**63))

# List of the file -> what one of its entries is called, and its fields.
FIELDS = {
    "images": ("image", {"id": ID, "height": _SIDE, "width": _SIDE}),
    "annotations": ("annotation", {"id": _ANY_ID, "image_id": ID, "category_id": ID}),
    "categories": ("category", {"id": ID, "name": _NAME}),
}


def check_structure(content: Any, where: str) -> None:
    """Raise ValueError unless the lists, their entries and the fields of these are as they must be.

    content: of a COCO-format file; where: the file, for the message.
    """
    for key, (noun, fields) in FIELDS.items():
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{where} has no list `{key}`: it is not in COCO format")
        entries = content[key]
        if not isinstance(entries, list):
            raise ValueError(f"{where}: `{key}` is {excerpt(entries)}, not a list")
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{where}: an entry of `{key}` is not an object {{...}}")
        if not entries and key != "annotations":
            raise ValueError(f"{where}: the list `{key}` is empty")
        _check_fields(entries, fields, noun, where)
    for image in content["images"]:
        if image["height"] * image["width"] > MAX_PIXELS:
            raise ValueError(
                f"{where}: image {image['id']} has {image['width']} x {image['height']} pixels, "
                f"more than common.images.MAX_PIXELS = {MAX_PIXELS}: reduce it"
            )
    for key, noun in (("images", "image"), ("categories", "category")):
        ids = [entry["id"] for entry in content[key]]
        refuse_repeated(ids, f"{noun} id of {where}")
        unlisted = set(map(itemgetter(f"{noun}_id"), content["annotations"])).difference(ids)
        if unlisted:
            a = next(a for a in content["annotations"] if a[f"{noun}_id"] in unlisted)
            of = f" of image {a['image_id']}" if noun == "category" else ""
            raise ValueError(
                f"{where}: annotation {a.get('id')}{of} is of {noun} {a[f'{noun}_id']}, which is "
                f"not in `{key}`"
            )


def _check_fields(entries: list[dict], fields: dict[str, Field], noun: str, where: str) -> None:
    """Raise ValueError for the first entry with a field that is not as it must be."""
    for name, field in fields.items():
        i = field.find_misfit([entry.get(name) for entry in entries])
        if i is not None:
            entry = entries[i]
            of = f" of image {excerpt(entry.get('image_id'))}" if noun == "annotation" else ""
            raise ValueError(
                f"{where}: {noun} {excerpt(entry.get('id'))}{of} has {excerpt(entry.get(name))} as "
                f"its `{name}`, which must be {field.wanted}"
            )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    real = type(value) in (int, float) or isinstance(value, np.integer | np.floating)
    return real and -1e300 < value < 1e300


def excerpt(value: Any) -> str:
    """A value for a message: cut short where it is long, null, true and false as in JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return reprlib.repr(value)


@dataclass(frozen=True)
class Categories:
    """The categories of a training set, which other sets must follow.

    ids: of each label. names: of each label, None where they are not known. where: the file that
    they come from, for messages.
    """

    ids: Sequence[int]
    names: Sequence[str] | None = None
    where: str = "the training set"

    def by_id(self) -> dict[int, str]:
        """Category id -> name; empty where the names are not known."""
        return dict(zip(self.ids, self.names, strict=True)) if self.names else {}

    def state_dict(self) -> dict[str, list]:
        """What a checkpoint keeps, so that a run resumes with the same categories only."""
        return {"ids": list(self.ids), "names": list(self.names or [])}

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Raise ValueError unless a checkpoint has the same categories."""
        kept = dict(zip(state["ids"], state["names"], strict=True))
        check_same_categories(self.by_id(), self.where, kept, "the checkpoint")
        if list(self.ids) != state["ids"]:
            raise ValueError(f"it has the category ids {state['ids']}, {self.where} {self.ids}")


def category_names(entries: list[dict]) -> dict[int, str]:
    """Category id -> name, by rising id; a repeated name gets its id added."""
    names = [str(entry["name"]) for entry in entries]
    named = {
        entry["id"]: name if names.count(name) == 1 else f"{name} ({entry['id']})"
        for entry, name in zip(entries, names, strict=True)
    }
    return dict(sorted(named.items()))


def check_same_categories(
    found: Mapping[int, str], where: str, expected: Mapping[int, str], elsewhere: str
) -> None:
    """Raise ValueError where two files give one name two ids, or one id two names.

    found, expected: category id -> name; either may have categories that the other has not.
    """
    # Without the id that `category_names` adds to a name which one of the files has twice.
    plain = {number: name.removesuffix(f" ({number})") for number, name in expected.items()}
    ids = {name: number for number, name in plain.items()}
    for number, name in found.items():
        name = name.removesuffix(f" ({number})")
        if name in ids and plain.get(number) != name:
            fault = f"{name!r} has id {number} in {where}, but {ids[name]} in {elsewhere}"
        elif plain.get(number, name) != name:
            fault = f"{number} is {name!r} in {where}, but {plain[number]!r} in {elsewhere}"
        else:
            continue
        raise ValueError(f"category {fault}: give each category one id and one name in all files")


def read_annotations(
    files: Sequence[str | Path], roots: Sequence[Path] | None = None
) -> dict[str, list[dict]]:
    """The joint content of COCO-format files.

    roots: the image folder of each file; `file_name` becomes a path below it, which must exist.
    """
    joint: dict[str, list[dict]] = {key: [] for key in FIELDS}
    names: dict[int, str] = {}
    for i, file in enumerate(files):
        content = read_json(file)
        if Path(file).name.startswith("image_info_") and isinstance(content, dict):
            content.setdefault("annotations", [])  # COCO's test sets
        check_structure(content, str(file))
        if roots is not None:
            _place_images(content["images"], roots[i], str(file))
        found = category_names(content["categories"])
        check_same_categories(found, str(file), names, str(files[0]))
        content["categories"] = [c for c in content["categories"] if c["id"] not in names]
        names |= found
        for key in joint:
            joint[key] += content[key]
    where = ", ".join(map(str, files))
    refuse_repeated([image["id"] for image in joint["images"]], f"image id of {where}")
    if roots is not None:
        paths = [image["file_name"] for image in joint["images"]]
        refuse_repeated(paths, f"file_name of {where}")
        missing = first_missing(paths)
        if missing:
            raise ValueError(f"{short_path(missing)} is listed in {where}, but does not exist")
    return joint


def _place_images(images: list[dict], root: Path, where: str) -> None:
    """Make each `file_name` a path below `root`."""
    _check_fields(images, {"file_name": _TEXT}, "image", where)
    for image in images:
        parts = re.split(r"[/\\]", image["file_name"])
        if not parts[0] or ":" in parts[0] or ".." in parts:  # /etc, C:, ..
            raise ValueError(
                f"{where}: file_name {image['file_name']!r} leads out of the image folder"
            )
        image["file_name"] = os.path.join(root, image["file_name"])
