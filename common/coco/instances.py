"""The instances of COCO-format files: which are sound, and what happens to the others.

Boxes in the files are x, y, width, height in pixels. Bad instances are dropped with one warning,
for `CocoDataset` and `evaluate` alike: what is not trained on does not count in the score.
"""

import warnings
from typing import Any

import numpy as np
from pycocotools import mask as rle

from .fields import excerpt, is_number
from .files import without_collector
from .masks import check_polygon, check_segmentation, encode

# How exporters write `iscrowd`; 0 and 1 also stand for 0.0, 1.0, false and true.
CROWD = {0: False, 1: True, None: False, "0": False, "1": True, "false": False, "true": True}
# Kinds of fault. They drop the instance, but where a remedy stands in (...).
FAULTS = UNKNOWN, FLAT, OUTSIDE, CLIPPED, UNUSABLE, PARTLY, COPY = (
    "a box that is not four finite numbers",
    "a box of no area",
    "a box outside the image",
    "a box beyond the image's border (clipped)",
    "an unusable segmentation",
    "an unusable polygon (left out)",
    "an exact copy before them",
)


@without_collector()
@np.errstate(over="ignore")  # of huge boxes as float32
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
    annotations, images = content["annotations"], content["images"]
    if kind == "masks" and annotations and not any(a.get("segmentation") for a in annotations):
        raise ValueError(f"{where} has no segmentations: only its boxes can be used")
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    joints, copies = count_joints(content), Copies()
    found: dict[int, list[dict]] = {image["id"]: [] for image in images}
    faulty: dict[str, list[dict]] = {fault: [] for fault in FAULTS}
    for a in annotations:
        crowd, size = _read_crowd(a, where), sizes[a["image_id"]]
        box, of_box = _read_box(a, *size)
        shape, of_shape = {}, None
        if kind == "masks":
            shape["segmentation"], of_shape = _read_mask(a, *size)
        elif kind == "keypoints":
            points = _read_keypoints(a, joints, crowd, where)
            shape = {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}
        faults = [fault for fault in (of_box, of_shape) if fault]
        sound = all(fault.endswith(")") for fault in faults)
        if sound and copies.has(a, box):
            sound, faults = False, [*faults, COPY]
        for fault in faults:
            faulty[fault].append(a)
        if sound:
            entry = {
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": box,
                "iscrowd": int(crowd),
                "area": _read_area(a, box),
                **shape,
            }
            found[a["image_id"]].append(entry)
    kept = [entry for entries in found.values() for entry in entries]
    for number, entry in enumerate(kept, 1):
        entry["id"] = number
    faulty = {fault: those for fault, those in faulty.items() if those}
    _report(faulty, len(annotations), len(kept), where, strict=strict, quiet=quiet)
    return (
        {"info": {}, **content, "annotations": kept},
        {fault: len(those) for fault, those in faulty.items()},
    )


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


def count_joints(content: dict[str, list[dict]]) -> int:
    """J: the joints that the categories name, else those of the first annotation with any."""
    named = [c["keypoints"] for c in content["categories"] if isinstance(c.get("keypoints"), list)]
    if named:
        return max(map(len, named))
    lists = (a.get("keypoints") for a in content["annotations"])
    return next((len(points) // 3 for points in lists if points and isinstance(points, list)), 0)


def _read_box(annotation: dict, height: int, width: int) -> tuple[list[float], str | None]:
    """`bbox`, or the box around the segmentation where there is none; and what is wrong with it.

    What is more than a pixel over the image's border is clipped; less is rounding and stays.
    """
    box = annotation.get("bbox")
    if box in (None, []):
        box = _box_around(annotation.get("segmentation"), height, width)
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return [], UNKNOWN
    x1, y1, w, h = box = [float(v) for v in box]
    x2, y2 = x1 + w, y1 + h
    if np.float32(x2) <= np.float32(x1) or np.float32(y2) <= np.float32(y1):  # as trained on
        return [], FLAT
    left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if right <= left or bottom <= top:
        return [], OUTSIDE
    if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
        return [left, top, right - left, bottom - top], CLIPPED
    return box, None


def _read_area(annotation: dict, box: list[float]) -> float:
    """`area`, or that of the box where there is none."""
    area: Any = annotation.get("area")
    return float(area) if is_number(area) and area >= 0 else box[2] * box[3]


def _box_around(segmentation: Any, height: int, width: int) -> list[float] | None:
    """Box x, y, width, height of a segmentation; None where none of it is sound."""
    if isinstance(segmentation, list):
        sound = [p for p in segmentation if not check_polygon(p, height, width)]
        points = np.array([v for p in sound for v in p], np.float64).reshape(-1, 2)
        if len(points):
            return [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]
    elif not check_segmentation(segmentation, height, width):
        return rle.toBbox(encode(segmentation, height, width)).tolist()
    return None


def _read_mask(annotation: dict, height: int, width: int) -> tuple[Any, str | None]:
    """`segmentation` without its bad polygons, and what is wrong with it."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        sound = [p for p in segmentation if check_polygon(p, height, width) is None]
        return sound, UNUSABLE if not sound else PARTLY if len(sound) < len(segmentation) else None
    fault = check_segmentation(segmentation, height, width)
    empty = fault or not rle.area(encode(segmentation, height, width))
    return segmentation, UNUSABLE if empty else None


def _read_keypoints(annotation: dict, joints: int, crowd: bool, where: str) -> list[float]:
    """`keypoints`, 3 J numbers x, y, visibility; zeros where a crowd has none."""
    points = annotation.get("keypoints")
    if not joints:
        return []
    if isinstance(points, list) and len(points) == 3 * joints and all(map(is_number, points)):
        return [float(v) for v in points]
    if crowd:
        return [0.0] * 3 * joints
    raise ValueError(
        f"{where}: annotation {annotation.get('id')} of image {annotation['image_id']} has "
        f"{excerpt(points)} as its `keypoints`, where {joints} joints need {3 * joints} finite "
        "numbers"
    )


class Copies:
    """Finds instances that repeat all that matters of an earlier one.

    Two exports in one file do that. pycocotools counts copies, of which a detector finds but one.
    """

    def __init__(self) -> None:
        self.first: dict[tuple, dict] = {}  # place -> first annotation there
        self.texts: dict[tuple, set[str]] = {}  # place -> what is there, if there are several

    def has(self, annotation: dict, box: list[float]) -> bool:
        """Whether an earlier annotation is the same; from now on this one is earlier."""
        place = (annotation["image_id"], *box)
        first = self.first.setdefault(place, annotation)
        if first is annotation:
            return False
        texts = self.texts.setdefault(place, {_describe(first)})
        before = len(texts)
        texts.add(_describe(annotation))
        return len(texts) == before


def _describe(annotation: dict) -> str:
    keys = ("image_id", "category_id", "bbox", "iscrowd", "segmentation", "keypoints")
    return repr([annotation.get(key) for key in keys])


def _report(
    faulty: dict[str, list[dict]], count: int, kept: int, where: str, *, strict: bool, quiet: bool
) -> None:
    """One warning of all faults (none if quiet), or an error if strict."""
    if not faulty:
        return
    parts = []
    for fault, those in faulty.items():
        ids, images = ([a.get(key) for a in those[:3]] for key in ("id", "image_id"))
        parts.append(f"{len(those)} with {fault} (first annotation ids {ids} of images {images})")
    message = f"{where}: of {count} instances, {', '.join(parts)}"
    if strict:
        raise ValueError(f"{message}: correct the file, or load it with strict=False")
    if not quiet:
        warnings.warn(
            f"{message}; {count - kept} dropped, in training and evaluation", stacklevel=5
        )
