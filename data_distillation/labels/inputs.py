"""What `annotate.py threshold` reads again, in inputs.json beside the records."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import files

from ..weights.teacher import NO_CLASS
from .counts import LabelledCounts


def remember(
    folder: Path,
    paths: Mapping[str, str],
    sigmas: Sequence[float],
    categories: Iterable[Mapping[str, Any]],
    joint_offset: float,
) -> None:
    """Write inputs.json; ValueError where nothing can be written.

    paths: by the word of the command. categories: of the labelled file. joint_offset: of the
    teacher, see `joint_shift`.
    """
    places = {name: path and str(Path(path).resolve()) for name, path in paths.items()}
    other: dict[str, Any] = {"sigmas": sigmas, "categories": outline(categories)}
    content = places | other | {"joint_offset": joint_offset}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "inputs.json", json.dumps(content))
    except OSError as error:
        raise ValueError(
            f"out={folder.parent}.json: {folder} cannot be written ({error.strerror}): give "
            "another place."
        ) from error


def recall(folder: Path) -> dict[str, Any]:
    """The content of inputs.json; empty where there is none."""
    return files.read_json(folder / "inputs.json")


def outline(categories: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Names of each category and of its joints, by its id in words, as JSON has it."""
    return {
        str(each["id"]): [str(each["name"]), *map(str, each.get("keypoints") or ())]
        for each in categories
    }


def require_categories(
    folder: Path, ids: Iterable[int], before: Mapping[str, Any], labelled: LabelledCounts
) -> None:
    """Raise ValueError unless the records in the folder are of the categories of labelled=.

    ids: of the records' categories. before: of `recall`; without names, the ids alone count.
    """
    now = outline(labelled.categories)
    there: dict[str, list[str]] = before.get("categories") or {
        str(each): now.get(str(each), ["present"]) for each in ids if each != NO_CLASS
    }
    key = next((key for key in [*there, *now] if there.get(key) != now.get(key)), None)
    if key is None:
        return
    pair = [each.get(key, ["missing"]) for each in (there, now)]
    if pair[0][0] == pair[1][0]:
        pair = [[f"joints {', '.join(each[1:])}"] for each in pair]
    old, new = (f"{each[0]:.100}" for each in pair)
    raise ValueError(
        f"{folder} has records of other categories than labelled={labelled.where}, id {key} is "
        f"{old} there and {new} in the file: give the labelled file of these records, or another "
        "out=."
    )
