"""Mapillary Vistas, research edition: from its 16-bit instance PNGs to COCO panoptic files.

H, W height and width. A pixel of `instances/*.png` is 256 times the label, its place in the list
`labels` of the configuration, plus a number of the instance. Two layouts are known:

    ROOT/config.json            ROOT/{training,validation}/instances/*.png            first release
    ROOT/config_{version}.json  ROOT/{training,validation}/{version}/instances/*.png  v1.2, v2.0

Category ids are the labels plus 1, and a segment's id is the pixel plus 256: label 0, instance 0
would else be void. Labels that are not evaluated (`"evaluate": false`) are void.
"""

from pathlib import Path
from typing import Any

import numpy as np

from .categories import Category
from .coco import read_json, write_panoptic
from .ids import present, relabel
from .pixels import png_size, read_labels


def read_labels_file(path: str | Path) -> tuple[list[Category], list[bool]]:
    """The category of each label of a Vistas configuration, and whether it is evaluated.

    Raises ValueError, naming the file and the label, where one lacks what is needed.
    """
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"{path} has no list `labels`: is it a configuration of Vistas?")
    categories, evaluated = [], []
    for place, label in enumerate(labels):
        try:
            name, isthing = str(label["name"]), bool(label["instances"])
            red, green, blue = (int(value) for value in label["color"])
            evaluated.append(bool(label.get("evaluate", True)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: label {place} has no proper `name`, `instances` and `color`"
            ) from error
        group = name.rpartition("--")[0]
        categories.append(Category(place + 1, name, isthing, (red, green, blue), group))
    return categories, evaluated


def from_instances(
    values: np.ndarray,
    categories: list[Category],
    evaluated: list[bool],
    *,
    where: str = "map",
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Ids (H, W) int32 and segments of an instance map (H, W); stuff is one segment a class.

    Raises ValueError, beginning with `where`, for a label that the configuration lacks.
    """
    numbers: dict[int, int] = {}
    segments: dict[int, dict[str, Any]] = {}
    for value in present(values):
        label = value // 256
        if label >= len(categories):
            raise ValueError(
                f"{where}: value {value} is of label {label}, but the configuration has only "
                f"{len(categories)} labels"
            )
        if evaluated[label]:
            category = categories[label]
            number = 256 + (value if category.isthing else label * 256)
            numbers[value] = number
            segments[number] = {"id": number, "category_id": category.id, "iscrowd": 0}
    return relabel(values, numbers), list(segments.values())


def instance_files(root: str | Path, split: str, version: str = "") -> tuple[Path, dict[str, Path]]:
    """The configuration, and the instance PNG of each image of a split by image id, the stem.

    version: "" for the first release's layout, else "v1.2" or "v2.0". Raises ValueError, with the
    layout that is expected, where there are none.
    """
    root = Path(root)
    config = root / (f"config_{version}.json" if version else "config.json")
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
    return config, {file.stem: file for file in files}


def convert_vistas(
    root: str | Path, split: str, out: str | Path | None = None, *, version: str = ""
) -> Path:
    """Write the COCO panoptic files of "training" or "validation", and return the JSON.

    out: the JSON; not given, ROOT/vistas_panoptic_{split}.json, PNGs in the folder of that name.
    """
    config, files = instance_files(root, split, version)
    categories, evaluated = read_labels_file(config)
    kept = {c.id: c for c, used in zip(categories, evaluated, strict=True) if used}
    out = Path(out or Path(root) / f"vistas_panoptic_{split}.json")
    images = []
    for number, file in files.items():
        height, width = png_size(file)
        size = {"width": width, "height": height}
        images.append({"id": number, **size, "file_name": f"{number}.jpg"})
    results = (
        (number, *from_instances(read_labels(file), categories, evaluated, where=str(file)))
        for number, file in files.items()
    )
    write_panoptic(out, categories=kept, images=images, results=results)
    return out
