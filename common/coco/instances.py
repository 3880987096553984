"""The instances of COCO-format files: which are sound, and what happens to the others.

Boxes in the files are x, y, width, height in pixels. Bad instances are dropped with one warning,
for `CocoDataset` and `evaluate` alike: what is not trained on does not count in the score.
"""

import warnings
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as rle

from .fields import excerpt, is_number
from .files import without_collector
from .masks import check_polygon, check_segmentation, encode, is_outside

# How exporters write `iscrowd`; 0 and 1 also stand for 0.0, 1.0, false and true.
CROWD = {0: False, 1: True, None: False, "0": False, "1": True, "false": False, "true": True}
# Kinds of fault. They drop the instance, but where a remedy stands in (...).
UNKNOWN, FLAT, OUTSIDE, CLIPPED, UNUSABLE, PARTLY, COPY, BARE = (
    "a box that is not four finite numbers",
    "a box of no area",
    "a box outside the image",
    "a box beyond the image's border (clipped)",
    "an unusable segmentation",
    "an unusable polygon (left out)",
    "an exact copy before them",
    "a box only (kept)",
)
Faulty = dict[str, np.ndarray]  # kind of fault -> which (M,) instances have it


@dataclass
class Instances:
    """The M sound instances of a content, sorted by image; with J joints of kind "keypoints".

    image: (M,) place in the list of images. category: (M,) ids. xywh: (M, 4) float64, crowd: (M,)
    bool, area: (M,) float64. segmentations: M of kind "masks", None for a box only; else none.
    keypoints: (M, J, 3) float64, as in the file. problems: kind of fault -> number of instances.
    """

    image: np.ndarray
    category: np.ndarray
    xywh: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    segmentations: list[Any]
    keypoints: np.ndarray
    problems: dict[str, int]

    def to_content(self, content: dict[str, list[dict]], kind: str) -> dict[str, Any]:
        """The content with these instances only, each with all fields that pycocotools needs.

        They are numbered from 1, as 0 means "no match" to it.
        """
        ids = [content["images"][i]["id"] for i in self.image]
        columns = {
            "image_id": ids,
            "category_id": self.category.tolist(),
            "bbox": self.xywh.tolist(),
            "iscrowd": self.crowd.astype(int).tolist(),
            "area": self.area.tolist(),
            "id": range(1, len(ids) + 1),
        }
        if kind == "masks":
            columns["segmentation"] = self.segmentations
        elif kind == "keypoints":
            columns["keypoints"] = [points.ravel().tolist() for points in self.keypoints]
            columns["num_keypoints"] = (self.keypoints[..., 2] > 0).sum(1).tolist()
        rows = zip(*columns.values(), strict=True)
        annotations = [dict(zip(columns, row, strict=True)) for row in rows]
        return {"info": {}, **content, "annotations": annotations}


@without_collector()
@np.errstate(over="ignore", invalid="ignore")  # of huge and of unknown boxes
def find_sound(
    content: dict[str, list[dict]],
    where: str,
    *,
    kind: str,
    partial: bool = False,
    strict: bool = False,
    quiet: bool = False,
) -> Instances:
    """The sound instances of a content that `fields.check_structure` has passed.

    kind: "boxes", "masks" or "keypoints": what must be sound. partial: instances without a mask
    stay, with a box only. What is dropped is told in one warning, or none if quiet; strict raises
    ValueError instead.
    """
    annotations, images = content["annotations"], content["images"]
    needed = kind == "masks" and annotations and not partial
    if needed and not any(a.get("segmentation") for a in annotations):
        raise ValueError(f"{where} has no segmentations: only its boxes can be used")
    place = {image["id"]: i for i, image in enumerate(images)}
    image = np.array([place[a["image_id"]] for a in annotations], np.int64)
    listed = [(entry["height"], entry["width"]) for entry in images]
    sizes = np.array(listed, np.int64).reshape(-1, 2)[image]
    crowd = np.array([_read_crowd(a, where) for a in annotations], bool)
    xywh, faulty = _check_boxes(_read_boxes(annotations, sizes), sizes)
    segmentations: list[Any] = []
    if kind == "masks":
        pairs = zip(annotations, sizes.tolist(), strict=True)
        read = [_read_mask(a, *size, partial=partial) for a, size in pairs]
        segmentations = [segmentation for segmentation, _ in read]
        faults = np.array([fault or "" for _, fault in read], str)
        faulty |= {fault: faults == fault for fault in (UNUSABLE, PARTLY)}
    joints = _count_joints(content) if kind == "keypoints" else 0
    keypoints = _read_keypoints(annotations, joints, crowd, where)
    sound = ~np.any([those for fault, those in faulty.items() if not fault.endswith(")")], axis=0)
    faulty[COPY] = _find_copies(annotations, image, xywh, sound)
    sound &= ~faulty[COPY]
    if partial:
        faulty[BARE] = sound & np.array([mask is None for mask in segmentations], bool)
    _report(faulty, annotations, int((~sound).sum()), where, strict=strict, quiet=quiet)
    kept = np.flatnonzero(sound)
    kept = kept[np.argsort(image[kept], kind="stable")]
    area = _read_numbers([a.get("area") for a in annotations])
    area = np.where(area >= 0, area, xywh[:, 2:].prod(1))  # NaN where it is missing
    return Instances(
        image=image[kept],
        category=np.array([a["category_id"] for a in annotations], np.int64)[kept],
        xywh=xywh[kept],
        crowd=crowd[kept],
        area=area[kept],
        segmentations=[segmentations[i] for i in kept] if segmentations else [],
        keypoints=keypoints[kept],
        problems={fault: int(those.sum()) for fault, those in faulty.items() if those.any()},
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


def _count_joints(content: dict[str, list[dict]]) -> int:
    """J: the joints that the categories name, else those of the first annotation with any."""
    named = [c["keypoints"] for c in content["categories"] if isinstance(c.get("keypoints"), list)]
    if named:
        return max(map(len, named))
    lists = (a.get("keypoints") for a in content["annotations"])
    return next((len(points) // 3 for points in lists if points and isinstance(points, list)), 0)


def _read_numbers(values: list) -> np.ndarray:
    """(n,) float64; NaN for what is not a finite number."""
    if set(map(type, values)) <= {int, float}:
        with suppress(OverflowError):  # of whole numbers of more than 308 digits
            numbers = np.fromiter(values, np.float64, len(values))
            return np.where(abs(numbers) < 1e300, numbers, np.nan)
    return np.array([v if is_number(v) else np.nan for v in values], np.float64)


def _read_rows(annotations: list[dict], key: str, count: int) -> np.ndarray:
    """(M, count) float64 of one key; NaN where it is not a list of `count` finite numbers."""
    missing, rows = [np.nan] * count, [a.get(key) for a in annotations]
    fit = [r if isinstance(r, list | tuple) and len(r) == count else missing for r in rows]
    numbers = _read_numbers(list(chain.from_iterable(fit))).reshape(len(rows), count)
    numbers[np.isnan(numbers).any(1)] = np.nan
    return numbers


def _read_boxes(annotations: list[dict], sizes: np.ndarray) -> np.ndarray:
    """`bbox` (M, 4), or the box around the segmentation where there is none; NaN: unknown."""
    xywh = _read_rows(annotations, "bbox", 4)
    for i in np.flatnonzero(np.isnan(xywh[:, 0])):
        if annotations[i].get("bbox") in (None, []):
            box = _box_around(annotations[i].get("segmentation"), *sizes[i].tolist())
            xywh[i] = np.nan if box is None else box
    return xywh


def _check_boxes(xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, Faulty]:
    """Boxes (M, 4), clipped where they are far over the border of their image; what is wrong.

    What is more than a pixel over the image's border is clipped; less is rounding and stays.
    """
    limit = sizes[:, ::-1].astype(float)  # width, height
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    inner_low, inner_high = low.clip(0), np.minimum(high, limit)
    unknown = np.isnan(xywh[:, 0])
    flat = (high.astype(np.float32) <= low.astype(np.float32)).any(1)  # as trained on
    outside = ~flat & (inner_high <= inner_low).any(1)
    over = ((low < -1) | (high > limit + 1)).any(1) & ~flat & ~outside
    inner = np.concatenate([inner_low, inner_high - inner_low], 1)
    faulty = {UNKNOWN: unknown, FLAT: flat, OUTSIDE: outside, CLIPPED: over}
    return np.where(over[:, None], inner, xywh), faulty


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


def _read_mask(
    annotation: dict, height: int, width: int, *, partial: bool
) -> tuple[Any, str | None]:
    """`segmentation` without its bad polygons, and what is wrong with it.

    partial: one that is empty, or outside the image, is None, and nothing is wrong with it.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        sound = [p for p in segmentation if check_polygon(p, height, width) is None]
        if not all(is_outside(p, height, width) for p in sound):
            return sound, PARTLY if len(sound) < len(segmentation) else None
        empty = all(p in sound or _is_short(p) for p in segmentation)
    else:
        fault = check_segmentation(segmentation, height, width)
        if not fault and rle.area(encode(segmentation, height, width)):
            return segmentation, None
        runs = segmentation.get("counts", 0) if isinstance(segmentation, dict) else segmentation
        empty = not fault or runs in (None, [], "", b"")
    return None, None if partial and empty else UNUSABLE


def _is_short(polygon: Any) -> bool:
    """Whether it is a polygon of fewer than 3 points."""
    return isinstance(polygon, list) and len(polygon) < 6 and all(map(is_number, polygon))


def _read_keypoints(
    annotations: list[dict], joints: int, crowd: np.ndarray, where: str
) -> np.ndarray:
    """`keypoints` (M, J, 3): x, y, visibility; zeros where a crowd has none."""
    points = _read_rows(annotations, "keypoints", 3 * joints)
    missing = np.isnan(points).any(1)
    points[missing & crowd] = 0
    for i in np.flatnonzero(missing & ~crowd)[:1]:
        a = annotations[i]
        raise ValueError(
            f"{where}: annotation {a.get('id')} of image {a['image_id']} has "
            f"{excerpt(a.get('keypoints'))} as its `keypoints`, where {joints} joints need "
            f"{3 * joints} finite numbers"
        )
    return points.reshape(len(annotations), joints, 3)


def _find_copies(
    annotations: list[dict], image: np.ndarray, xywh: np.ndarray, sound: np.ndarray
) -> np.ndarray:
    """Which (M,) of the sound instances repeat all that matters of an earlier one.

    Two exports in one file do that. pycocotools counts copies, of which a detector finds but one.
    """
    rows = np.column_stack([image.astype(np.float64), xywh]).view(np.uint64)  # (M, 5)
    place = (rows * np.array([3, 5, 7, 11, 13], np.uint64) ** np.uint64(25)).sum(1)  # a hash
    _, group, count = np.unique(place, return_inverse=True, return_counts=True)
    copies = np.zeros(len(annotations), bool)
    seen: set[str] = set()
    for i in np.flatnonzero(sound & (count[group] > 1)):
        text = _describe(annotations[i])
        copies[i] = text in seen
        seen.add(text)
    return copies


def _describe(annotation: dict) -> str:
    keys = ("image_id", "category_id", "bbox", "iscrowd", "segmentation", "keypoints")
    return repr([annotation.get(key) for key in keys])


def _report(
    faulty: Faulty, annotations: list[dict], dropped: int, where: str, *, strict: bool, quiet: bool
) -> None:
    """One warning of all faults (none if quiet), or an error if strict."""
    parts = []
    for fault, those in faulty.items():
        if those.any():
            first = [annotations[i] for i in np.flatnonzero(those)[:3]]
            ids, images = ([a.get(key) for a in first] for key in ("id", "image_id"))
            parts.append(
                f"{those.sum()} with {fault} (first annotation ids {ids} of images {images})"
            )
    message = f"{where}: of {len(annotations)} instances, {', '.join(parts)}"
    if strict and any(those.any() for fault, those in faulty.items() if fault != BARE):
        raise ValueError(f"{message}: correct the file, or load it with strict=False")
    if parts and not quiet:
        warnings.warn(f"{message}; {dropped} dropped, in training and evaluation", stacklevel=5)
