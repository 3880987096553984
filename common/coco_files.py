"""Files of COCO format: where they lie, what they hold, and what is wrong with it.

N images, M instances, J keypoints. Boxes in the files are x, y, width, height in pixels.
"""

import gc
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

EXPECTED = """expected one of
  COCO 2017    ROOT/annotations/instances_{train,val}2017.json and ROOT/{train,val}2017/*.jpg
  COCO 2014    ROOT/annotations/instances_{train,valminusminival,minival}2014.json and
               ROOT/{train,val}2014/*.jpg
  COCO format  ROOT/annotations/{train,val,test}.json or instances_{train,val,test}.json, pictures
               in ROOT, ROOT/images, ROOT/{train,val,test} or ROOT/images/{train,val,test}
  Roboflow     ROOT/{train,valid,test}/_annotations.coco.json beside the pictures
(keypoints: person_keypoints_ in place of instances_)"""

# The names under which Detectron knows the two halves of COCO 2014; as 2017 they hold the same.
PARTS_2014 = {
    "train": ["train2014", "valminusminival2014"],
    "trainval35k": ["train2014", "valminusminival2014"],
    "val": ["minival2014"],
    "minival": ["minival2014"],
}
FOLDERS = {
    "valminusminival2014": "val2014",
    "minival2014": "val2014",
    "test-dev2017": "test2017",
}


def find_split(
    root: str | Path, split: str, *, kind: str = "boxes"
) -> tuple[list[Path], list[Path]]:
    """Image folders and annotation files of "train", "val", ... or an exact name ("val2014").

    They are the first two arguments of CocoDataset: lists of one entry, or of two where the split
    lies in two files (2014 trainval35k). Raises ValueError with the expected layout and the first
    missing path.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; {EXPECTED}")
    parts = _annotations(root, split, kind)
    if parts is None:
        wanted = next(_candidates(root, split, kind))[0][0]
        raise ValueError(f"no annotations of {split!r}: {wanted} does not exist; {EXPECTED}")
    return [_image_folder(root, file, name) for file, name in parts], [file for file, _ in parts]


def has_split(root: str | Path, split: str, *, kind: str = "boxes") -> bool:
    """Whether `find_split` would find annotations."""
    return _annotations(Path(root), split, kind) is not None


def _annotations(root: Path, split: str, kind: str) -> list[tuple[Path, str]] | None:
    """(annotation file, name of the image folder) of each part of a split; None: not there."""
    candidates = _candidates(root, split, kind)
    return next((parts for parts in candidates if all(f.is_file() for f, _ in parts)), None)


def _candidates(root: Path, split: str, kind: str) -> Iterator[list[tuple[Path, str]]]:
    """Where the parts of a split may be, best first."""
    folder = root / "annotations"
    stem = "person_keypoints" if kind == "keypoints" else "instances"
    named = {"train": "train2017", "val": "val2017"}.get(split, split)
    for parts in ([named], PARTS_2014.get(split, [])):
        if parts:
            yield [(folder / f"{stem}_{part}.json", FOLDERS.get(part, part)) for part in parts]
    yield [(folder / f"image_info_{split}.json", FOLDERS.get(split, split))]
    for file in (folder / f"{split}.json", folder / f"{stem}_{split}.json", root / f"{split}.json"):
        yield [(file, split)]
    for name in (split, "valid") if split == "val" else (split,):
        yield [(root / name / "_annotations.coco.json", name)]


def _image_folder(root: Path, file: Path, name: str) -> Path:
    """The folder in which the first picture of an annotation file lies."""
    folders = [root / name, root / "images" / name, root / "images", root]
    first = _first_file_name(file)
    if first is None:  # no pictures, or no COCO format: `read_annotations` tells
        return root
    for folder in folders:
        if (folder / first).is_file():
            return folder
    raise ValueError(f"{folders[0] / first}, the first picture of {file}, is missing; {EXPECTED}")


def _first_file_name(file: Path) -> str | None:
    """The first `file_name` of a JSON file, without reading all of it."""
    text = ""
    with open(file, encoding="utf-8", errors="replace") as stream:
        while block := stream.read(1 << 20):
            text = text[-4096:] + block
            found = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', text)
            if found:
                return str(json.loads(found[1]))
    return None


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the garbage collector, which else visits millions of small lists again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def read_json(path: str | Path) -> Any:
    """Content of a JSON file; errors name the file and the position."""
    try:
        with without_collector():
            return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON, or was cut off: {error.msg} at line {error.lineno}, "
            f"column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}, byte {error.start}") from error


def read_annotations(files: Sequence[Path], roots: Sequence[Path]) -> dict[str, list[dict]]:
    """The joint content of COCO-format files, with `file_name` made a path below its root."""
    joint: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    for file, root in zip(files, roots, strict=True):
        content = read_json(file)
        if file.name.startswith("image_info_"):  # COCO's test sets: pictures only
            content.setdefault("annotations", [])
        absent = [k for k in joint if not isinstance(content, dict) or k not in content]
        if absent:
            raise ValueError(f"{file} has no list `{absent[0]}`: it is not in COCO format")
        for key in joint:
            if not all(isinstance(entry, dict) for entry in content[key]):
                raise ValueError(f"{file}: an entry of `{key}` is not an object {{...}}")
        for image in content["images"]:
            if not whole(image.get("id")) or not isinstance(image.get("file_name"), str):
                raise ValueError(f"{file}: an image has no whole `id` or no `file_name`: {image}")
            _refuse_unsafe(image["file_name"], file)
            image["file_name"] = os.path.join(root, image["file_name"])
        joint["images"] += content["images"]
        joint["annotations"] += content["annotations"]
        categories = sorted(content["categories"], key=lambda c: str(c.get("id")))
        if joint["categories"] and categories != joint["categories"]:
            raise ValueError(f"{file} has other categories than {files[0]}")
        joint["categories"] = categories
    _check_images(joint["images"], ", ".join(map(str, files)))
    return joint


def _check_images(images: list[dict], where: str) -> None:
    refuse_repeated([i["id"] for i in images], f"image id of {where}")
    refuse_repeated([i["file_name"] for i in images], f"file_name of {where}")
    for image in images:
        if not (whole(image.get("height"), 1) and whole(image.get("width"), 1)):
            raise ValueError(f"{where}: image {image['id']} has no width and height in pixels")
    missing = first_missing(i["file_name"] for i in images)
    if missing:
        raise ValueError(f"{missing} is listed in {where}, but does not exist")


def whole(value: Any, least: int = 0) -> bool:
    """Whether a value is a whole number, and at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _refuse_unsafe(name: str, file: Path) -> None:
    parts = re.split(r"[/\\]", name)
    if not parts[0] or ":" in parts[0] or ".." in parts:  # /etc, C:, ..
        raise ValueError(f"{file}: file_name {name!r} leads out of the image folder")


def refuse_repeated(values: Iterable[Any], what: str) -> None:
    """Raise ValueError naming the first value that appears twice."""
    seen: set = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what}: {value!r} appears twice")
        seen.add(value)


def first_missing(paths: Iterable[str]) -> str | None:
    """The first path that does not exist; each folder is listed only once."""
    listed: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            return path
    return None


def category_names(entries: list[dict], where: str) -> dict[int, str]:
    """Category id -> name, by rising id; a repeated name gets its id added."""
    for entry in entries:
        if not whole(entry.get("id")) or "name" not in entry:
            raise ValueError(f"{where}: category without a whole `id` and a `name`: {entry}")
    refuse_repeated([entry["id"] for entry in entries], f"category id of {where}")
    names = [str(entry["name"]) for entry in entries]
    named = {
        entry["id"]: name if names.count(name) == 1 else f"{name} ({entry['id']})"
        for entry, name in zip(entries, names, strict=True)
    }
    return dict(sorted(named.items()))


def check_references(
    annotations: list[dict], images: Iterable[int], categories: Iterable[int], where: str
) -> None:
    """Raise ValueError for the first annotation of an unknown image or category."""
    images, categories = set(images), set(categories)
    for a in annotations:
        if a.get("image_id") not in images:
            raise ValueError(
                f"{where}: annotation {a.get('id')} is of image {a.get('image_id')}, which is not "
                "in `images`"
            )
        if a.get("category_id") not in categories:
            raise ValueError(
                f"{where}: annotation {a.get('id')} of image {a['image_id']} is of category "
                f"{a.get('category_id')}, which is not one of {sorted(categories)}"
            )


def numbers(annotations: list[dict], key: str, count: int) -> np.ndarray:
    """(M, count) float64 of one key; what is missing or malformed is NaN."""
    try:
        return np.array([a[key] for a in annotations], np.float64).reshape(-1, count)
    except (KeyError, TypeError, ValueError):  # some are not as they should be: one by one
        values = np.full((len(annotations), count), np.nan)
    for i, annotation in enumerate(annotations):
        value = annotation.get(key)
        row = value if isinstance(value, list) else [value]
        if len(row) == count and all(isinstance(v, int | float) for v in row):
            values[i] = row
    return values


def check_boxes(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Boxes (M, 4) as x1, y1, x2, y2 clipped to their image, and problem -> which (M,).

    xywh: (M, 4); sizes: (M, 2), height and width of each box's image.
    """
    with np.errstate(invalid="ignore"):
        limit = sizes[:, ::-1].astype(float)  # width, height
        low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
        unknown = ~np.isfinite(xywh).all(1)
        flat = ~unknown & (xywh[:, 2:] <= 0).any(1)
        boxes = np.concatenate([low.clip(0), np.minimum(high, limit)], 1)
        sound = ~unknown & ~flat
        outside = sound & (boxes[:, 2:] <= boxes[:, :2]).any(1)
        over = (low < -1).any(1) | (high > limit + 1).any(1)  # less than a pixel is rounding
    return boxes, {
        "box missing or not finite": unknown,
        "box of no area": flat,
        "box outside the image": outside,
        "box beyond the image's border (clipped)": sound & ~outside & over,
    }


def check_masks(
    annotations: list[dict], sizes: np.ndarray, where: str
) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """Each segmentation pickled without its bad polygons, and problem -> which (M,)."""
    if annotations and not any(a.get("segmentation") for a in annotations):
        raise ValueError(f"{where} has no segmentations: load it with kind='boxes'")
    kept, bad = [], np.zeros(len(annotations), bool)
    for i, (a, (height, width)) in enumerate(zip(annotations, sizes.tolist(), strict=True)):
        segmentation = a.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = [p for p in segmentation if _sound_polygon(p)]
        elif not _sound_run_lengths(segmentation, height, width):
            segmentation = None
        bad[i] = not segmentation
        kept.append(pickle.dumps(segmentation))
    return kept, {"unusable segmentation": bad}


def _sound_polygon(polygon: Any) -> bool:
    """At least three points, all finite."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    return all(isinstance(v, int | float) for v in polygon) and bool(np.isfinite(polygon).all())


def _sound_run_lengths(code: Any, height: int, width: int) -> bool:
    """Of the picture's size, and not empty."""
    if not isinstance(code, dict) or code.get("size") != [height, width]:
        return False
    counts = code.get("counts")
    if isinstance(counts, list):
        sound = all(whole(n) for n in counts)
        return sound and sum(counts) == height * width and sum(counts[1::2]) > 0
    return isinstance(counts, str) and bool(counts) and int(rle.area(code)) > 0


def check_keypoints(annotations: list[dict], categories: list[dict], where: str) -> np.ndarray:
    """Keypoints (M, J, 3) float32: x, y, visibility; zeros where a crowd has none."""
    named = [len(c["keypoints"]) for c in categories if c.get("keypoints")]
    listed = (len(a["keypoints"]) // 3 for a in annotations if a.get("keypoints"))
    joints = max(named) if named else next(listed, 0)
    values = np.zeros((len(annotations), joints, 3), np.float32)
    for i, a in enumerate(annotations):
        points = a.get("keypoints") or ([0] * 3 * joints if a.get("iscrowd") else [])
        if len(points) != 3 * joints or not np.isfinite(points).all():
            raise ValueError(
                f"{where}: annotation {a.get('id')} of image {a.get('image_id')} has {len(points)} "
                f"keypoint values, where {joints} joints need {3 * joints} finite ones"
            )
        values[i] = np.reshape(points, (joints, 3))
    return values


def report(problems: dict[str, np.ndarray], ids: list, where: str, strict: bool) -> np.ndarray:
    """Which instances (M,) to keep; one warning, or an error if strict, about all problems."""
    keep = np.ones(len(ids), bool)
    parts = []
    for name, bad in problems.items():
        if not name.endswith("(clipped)"):
            keep &= ~bad
        if bad.any():
            first = [ids[i] for i in np.flatnonzero(bad)[:3]]
            parts.append(f"{int(bad.sum())} with a {name} (first annotation ids {first})")
    if parts:
        message = f"{where}: of {len(ids)} instances, {', '.join(parts)}"
        if strict:
            raise ValueError(f"{message}: correct the file, or load it with strict=False")
        warnings.warn(f"{message}; {int((~keep).sum())} dropped", stacklevel=2)
    return keep
