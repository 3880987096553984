"""The instances of COCO-format files: which are sound, and what happens to the others.

M instances, J keypoints. Boxes in the files are x, y, width, height in pixels. Bad instances are
dropped with one warning, for `CocoDataset` and `evaluate` alike: what is not trained on does not
count in the score.
"""

import warnings
from collections import Counter
from typing import Any

import numpy as np
from pycocotools import mask as rle

from .fields import category_names, excerpt, is_number
from .files import without_collector
from .masks import check_polygon, check_segmentation, encode

# How exporters write `iscrowd`; 0 and 1 also stand for 0.0, 1.0, false and true.
CROWD = {0: False, 1: True, None: False, "0": False, "1": True, "false": False, "true": True}

Problems = dict[str, np.ndarray]  # kind of fault, with its remedy in (...) -> which (M,) have it


@without_collector()
def find_sound(
    content: dict[str, list[dict]],
    where: str,
    *,
    kind: str,
    strict: bool = False,
    quiet: bool = False,
) -> tuple[dict[str, Any], dict[str, int]]:
    """A content that `fields.check_structure` has passed, with its sound instances only.

    And kind of fault -> number of instances. kind: "boxes", "masks" or "keypoints": what must be
    sound. What is dropped is told in one warning, or none if quiet; strict raises ValueError
    instead. Instances are sorted by image, have all fields that pycocotools needs, and are numbered
    from 1, as 0 means "no match" to it.
    """
    annotations = content["annotations"]
    place = {image["id"]: i for i, image in enumerate(content["images"])}
    image = np.array([place[a["image_id"]] for a in annotations], np.int64)
    listed = [(entry["height"], entry["width"]) for entry in content["images"]]
    sizes = np.array(listed, np.int64).reshape(-1, 2)[image]
    crowd = np.array([_read_crowd(a, where) for a in annotations], bool)
    xywh, problems = _check_boxes(_read_boxes(annotations, sizes), sizes)
    if kind == "masks":
        segmentations, bad = _check_masks(annotations, sizes, where)
        problems |= bad
    elif kind == "keypoints":
        keypoints = _read_keypoints(content, crowd, where)
    sound = _sound(problems)
    copies = _find_copies(annotations, image, xywh, sound)
    problems["an exact copy before them"] = copies
    _report(problems, annotations, where, strict=strict, quiet=quiet)
    area = _numbers(annotations, "area", 1)[:, 0]
    with np.errstate(over="ignore"):  # of boxes that are dropped
        area = np.where(area >= 0, area, xywh[:, 2:].prod(1))  # NaN where it is missing
    kept = np.flatnonzero(sound & ~copies)
    found = []
    for number, i in enumerate(kept[np.argsort(image[kept], kind="stable")].tolist(), 1):
        entry = {
            "id": number,
            "image_id": annotations[i]["image_id"],
            "category_id": annotations[i]["category_id"],
            "bbox": xywh[i].tolist(),
            "iscrowd": int(crowd[i]),
            "area": float(area[i]),
        }
        if kind == "masks":
            entry["segmentation"] = segmentations[i]
        elif kind == "keypoints":
            entry["keypoints"] = keypoints[i].flatten().tolist()
            entry["num_keypoints"] = int((keypoints[i, :, 2] > 0).sum())
        found.append(entry)
    names = category_names(content["categories"])
    categories = [{**c, "name": names[c["id"]]} for c in content["categories"]]
    return (
        {"info": {}, "images": content["images"], "categories": categories, "annotations": found},
        {name: int(bad.sum()) for name, bad in problems.items() if bad.any()},
    )


def _numbers(annotations: list[dict], key: str, count: int) -> np.ndarray:
    """(M, count) float64 of one key; a row that is not `count` finite numbers is NaN."""
    rows = []
    for value in (a.get(key) for a in annotations):
        row = value if isinstance(value, list | tuple) else [value]
        sound = len(row) == count and all(map(is_number, row))
        rows.append(row if sound else [np.nan] * count)
    return np.array(rows, np.float64).reshape(len(rows), count)


def _read_crowd(annotation: dict, where: str) -> bool:
    """`iscrowd`, in all the forms that plainly mean 0 or 1."""
    value = annotation.get("iscrowd")
    try:
        return CROWD[value.lower() if isinstance(value, str) else value]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: annotation {annotation.get('id')} of image {annotation['image_id']} has "
            f"{excerpt(value)} as its `iscrowd`: write 0 or 1"
        ) from error


def _read_boxes(annotations: list[dict], sizes: np.ndarray) -> np.ndarray:
    """(M, 4) of `bbox`; where there is none, around the polygons or run lengths."""
    xywh = _numbers(annotations, "bbox", 4)
    for i in np.flatnonzero(np.isnan(xywh).any(1)):
        if annotations[i].get("bbox") in (None, []):
            xywh[i] = _box_around(annotations[i].get("segmentation"), *sizes[i].tolist())
    return xywh


def _box_around(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Box x, y, width, height of a segmentation; NaN where none of it is sound."""
    if isinstance(segmentation, list):
        sound = [p for p in segmentation if not check_polygon(p, height, width)]
        points = np.array([v for p in sound for v in p], np.float64).reshape(-1, 2)
        if len(points):
            return np.concatenate([points.min(0), points.max(0) - points.min(0)])
    elif not check_segmentation(segmentation, height, width):
        return rle.toBbox(encode(segmentation, height, width))
    return np.full(4, np.nan)


def _check_boxes(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, Problems]:
    """Boxes (M, 4) of which those far over the border are clipped, and problem -> which (M,).

    xywh: (M, 4), NaN what is unknown; sizes: (M, 2), height and width of each box's image. What is
    less than a pixel over the border is rounding and stays.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        limit = sizes[:, ::-1].astype(float)  # width, height
        low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
        unknown = np.isnan(xywh).any(1)
        thin = high.astype(np.float32) <= low.astype(np.float32)  # as they are trained on
        flat = ~unknown & thin.any(1)
        inner_low, inner_high = low.clip(0), np.minimum(high, limit)
        outside = ~unknown & ~flat & (inner_high <= inner_low).any(1)
        over = (low < -1).any(1) | (high > limit + 1).any(1)
        clipped = over & ~unknown & ~flat & ~outside
        inner = np.concatenate([inner_low, inner_high - inner_low], 1)
    return np.where(clipped[:, None], inner, xywh), {
        "a box that is not four finite numbers": unknown,
        "a box of no area": flat,
        "a box outside the image": outside,
        "a box beyond the image's border (clipped)": clipped,
    }


def _check_masks(
    annotations: list[dict], sizes: np.ndarray, where: str
) -> tuple[list[Any], Problems]:
    """Each segmentation without its bad polygons, and problem -> which (M,)."""
    if annotations and not any(a.get("segmentation") for a in annotations):
        raise ValueError(f"{where} has no segmentations: only its boxes can be used")
    kept: list[Any] = []
    unusable, partly = np.zeros((2, len(annotations)), bool)
    for i, (a, (height, width)) in enumerate(zip(annotations, sizes.tolist(), strict=True)):
        segmentation = a.get("segmentation")
        if isinstance(segmentation, list):
            sound = [p for p in segmentation if check_polygon(p, height, width) is None]
            partly[i] = 0 < len(sound) < len(segmentation)
            unusable[i] = not sound
            kept.append(sound)
        else:
            fault = check_segmentation(segmentation, height, width)
            unusable[i] = fault or not rle.area(encode(segmentation, height, width))
            kept.append(segmentation)
    return kept, {"an unusable segmentation": unusable, "an unusable polygon (left out)": partly}


def count_joints(content: dict[str, list[dict]]) -> int:
    """J: the joints that the categories name, else those of the first annotation with any."""
    named = [c["keypoints"] for c in content["categories"] if isinstance(c.get("keypoints"), list)]
    if named:
        return max(map(len, named))
    lists = (a.get("keypoints") for a in content["annotations"])
    return next((len(points) // 3 for points in lists if points and isinstance(points, list)), 0)


def _read_keypoints(content: dict[str, list[dict]], crowd: np.ndarray, where: str) -> np.ndarray:
    """Keypoints (M, J, 3) float64: x, y, visibility; zeros where a crowd has none."""
    annotations, joints = content["annotations"], count_joints(content)
    values = _numbers(annotations, "keypoints", 3 * joints)
    values[crowd & np.isnan(values).any(1)] = 0
    for i in np.flatnonzero(np.isnan(values).any(1)):
        a = annotations[i]
        raise ValueError(
            f"{where}: annotation {a.get('id')} of image {a['image_id']} has "
            f"{excerpt(a.get('keypoints'))} as its `keypoints`, where {joints} joints need "
            f"{3 * joints} finite numbers"
        )
    return values.reshape(len(annotations), joints, 3)


def _find_copies(
    annotations: list[dict], image: np.ndarray, xywh: np.ndarray, sound: np.ndarray
) -> np.ndarray:
    """Which (M,) of the sound instances repeat all that matters of an earlier one.

    Two exports in one file do that. pycocotools counts copies, of which a detector finds but one.
    """
    places = list(map(bytes, np.column_stack([image.astype(np.float64), xywh])))
    count = Counter(places)
    fields = ("image_id", "category_id", "bbox", "iscrowd", "segmentation", "keypoints")
    seen: set[str] = set()
    copies = np.zeros(len(annotations), bool)
    for i in np.flatnonzero(sound):
        if count[places[i]] > 1:
            same = repr([annotations[i].get(field) for field in fields])
            copies[i] = same in seen
            seen.add(same)
    return copies


def _report(
    problems: Problems, annotations: list[dict], where: str, *, strict: bool, quiet: bool
) -> None:
    """One warning of all problems (none if quiet), or an error if strict."""
    parts = []
    for name, bad in problems.items():
        if bad.any():
            first = [annotations[i] for i in np.flatnonzero(bad)[:3]]
            ids, images = ([a.get(key) for a in first] for key in ("id", "image_id"))
            parts.append(
                f"{int(bad.sum())} with {name} (first annotation ids {ids} of images {images})"
            )
    message = f"{where}: of {len(annotations)} instances, {', '.join(parts)}"
    if parts and strict:
        raise ValueError(f"{message}: correct the file, or load it with strict=False")
    if parts and not quiet:
        dropped = int((~_sound(problems)).sum())
        warnings.warn(f"{message}; {dropped} dropped, in training and evaluation", stacklevel=3)


def _sound(problems: Problems) -> np.ndarray:
    """Which (M,) have no problem that drops them, as those do whose name has no (remedy)."""
    return ~np.any([bad for name, bad in problems.items() if not name.endswith(")")], axis=0)
