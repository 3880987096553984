"""Mapillary Vistas, research edition: from its 16-bit instance PNGs to COCO panoptic files.

H, W height and width. A pixel of `instances/*.png` is 256 times the label, its place in the list
`labels` of the configuration, plus a number of the instance. Two layouts are known:

    ROOT/config.json            ROOT/{training,validation}/instances/*.png            first release
    ROOT/config_{version}.json  ROOT/{training,validation}/{version}/instances/*.png  v1.2, v2.0

Category ids are the labels plus 1, and a segment's id is the pixel plus 256: label 0, instance 0
would be void. Labels that are not evaluated (`"evaluate": false`) are void.
"""

from functools import partial
from pathlib import Path
from typing import Any

from .categories import Category
from .coco import Annotation, read_json
from .ids import present, relabel
from .pixels import read_labels
from .raw import RawSplit

VERSIONS = ("", "v1.2", "v2.0")  # in the order in which they are looked for


def read_labels_file(path: str | Path) -> list[Category | None]:
    """The category of each label of a Vistas configuration; None where it is not evaluated.

    Raises ValueError, naming the file and the label, where one lacks what is needed.
    """
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"{path} has no list `labels`: is it a configuration of Vistas?")
    categories: list[Category | None] = []
    for place, label in enumerate(labels):
        try:
            name, isthing = str(label["name"]), bool(label["instances"])
            red, green, blue = (int(value) for value in label["color"])
            evaluated = label.get("evaluate", True)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: label {place} has no proper `name`, `instances` and `color`"
            ) from error
        group = name.rpartition("--")[0]
        category = Category(place + 1, name, isthing, (red, green, blue), group)
        categories.append(category if evaluated else None)
    return categories


def open_split(root: str | Path, split: str, version: str | None = None) -> RawSplit:
    """The instance PNG of each image of "training" or "validation" by image id, the stem.

    version: "" for the first release's layout, or "v1.2" or "v2.0"; None: the first one there.
    Raises ValueError, with the layout that is expected, where there are none.
    """
    root = Path(root)
    if version is None:
        version = next((v for v in VERSIONS if _config(root, v).is_file()), "")
    config = _config(root, version)
    if not config.is_file():
        raise ValueError(
            f"{config} does not exist: expected ROOT/config.json, or ROOT/config_v1.2.json with "
            "version=v1.2"
        )
    folder = root / split / version / "instances"
    files = sorted(folder.glob("*.png"))
    if not files:
        raise ValueError(
            f"{folder} has no *.png: expected ROOT/{{training,validation}}/{version or ''}"
            f"{'/' if version else ''}instances/*.png"
        )
    categories = read_labels_file(config)
    kept = {category.id: category for category in categories if category}
    read = partial(decode, categories=categories)
    return RawSplit(kept, {file.stem: file for file in files}, read)


def _config(root: Path, version: str) -> Path:
    return root / (f"config_{version}.json" if version else "config.json")


def decode(file: Path, *, categories: list[Category | None]) -> Annotation:
    """Ids (H, W) int32 and segments of an instance PNG; stuff is one segment a class.

    Raises ValueError, naming the file, for a label that the configuration lacks.
    """
    values = read_labels(file)
    numbers: dict[int, int] = {}
    segments: dict[int, dict[str, Any]] = {}
    for value in present(values):
        label = value // 256
        if label >= len(categories):
            raise ValueError(
                f"{file}: value {value} is of label {label}, but the configuration has only "
                f"{len(categories)} labels"
            )
        if category := categories[label]:
            number = 256 + (value if category.isthing else label * 256)
            numbers[value] = number
            segments[number] = {"id": number, "category_id": category.id, "iscrowd": 0}
    return relabel(values, numbers), list(segments.values())


def panoptic_json(root: str | Path, split: str) -> Path:
    """The JSON of the converted split."""
    return Path(root) / f"vistas_panoptic_{split}.json"
