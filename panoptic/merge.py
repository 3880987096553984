"""Instances and semantics put together into one panoptic map: the machine baseline of Sec. 7.

Shapes: N instances, H x W pixels. Two steps, each usable alone:

1. `remove_overlaps`, much like non-maximum suppression: walk down the instances by score; each
   keeps the pixels that no accepted one has taken, and is discarded as a whole where too large a
   share of it is taken. Classes play no part. The result is disjoint, as the task format asks.
2. `add_stuff`: what instances left free goes to the semantic prediction's stuff classes. Where
   thing and stuff collide, the thing wins, so PQ of things is that of the instances alone.

The comparisons are those of the official script: dropped if score < `confidence`, discarded if
hidden / area > `overlap`, removed if a stuff segment's rest < `stuff_area`; equal values stay.
Empty masks are passed over, and instances of equal score go in the order given. An instance that is
hidden altogether is discarded whatever `overlap` is: a segment has pixels. Thresholds that others
use, and where their results differ from the official script's:

    the paper               found by a grid search (`search.py`), no `stuff_area`: 0 here
    the official script     0.5, 0.5, 64 * 64; with 0 it lists stuff segments without a pixel, which
                            its own evaluator refuses; never so here
    detectron2              the same; label 0 of its semantic map is "any thing": things={0}; among
                            equal scores its order is undefined
    Panoptic-DeepLab        another way to group pixels: `deeplab.py`

The areas are counted in integers and divided in float64, so that a tie is a tie on every device.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Tensor | np.ndarray
Semantic: TypeAlias = Array | Sequence[tuple[int, Array]]

CONFIDENCE, OVERLAP, STUFF_AREA = 0.5, 0.5, 64 * 64  # the official script's
LARGEST_CATEGORY = 2**16  # of a semantic map; beyond it is a mistake, and a table too large


class Disjoint(NamedTuple):
    """Instances without overlaps."""

    owner: Any  # (H, W) int32: k for the k-th accepted instance, counted from 1; 0 for nobody
    kept: list[int]  # indices into the masks given, by falling score
    areas: list[int]  # pixels that each of them keeps


def remove_overlaps(
    masks: Array, scores: Array, *, confidence: float = CONFIDENCE, overlap: float = OVERLAP
) -> Disjoint:
    """The instances that survive, each pixel with at most one of them.

    masks: (N, H, W) bool, may overlap; scores: (N,). Scores are compared as float64, as a JSON file
    would hold them. `owner` is a tensor on the masks' device, or an array for arrays; on a GPU
    there is one wait for the device at the end, not one an instance. Raises ValueError for other
    shapes and kinds, and for a score that is not a number.
    """
    given = masks
    masks, points = as_tensor(masks), as_tensor(scores).double().cpu()
    if masks.dim() != 3 or masks.dtype != torch.bool:
        raise ValueError(
            f"masks must be bool (N, H, W), not {_kind(masks)}: compare soft masks with 0.5 first"
        )
    if points.shape != masks.shape[:1]:
        raise ValueError(f"{len(masks)} masks come with scores of shape {tuple(points.shape)}")
    check_scores(points.tolist())
    check_numbers(confidence=confidence, overlap=overlap)
    ranked = points.argsort(descending=True, stable=True).tolist()
    order = [i for i in ranked if points[i] >= confidence]
    if masks.device.type == "cpu":
        found = _claim_cropped(masks.numpy(), order, overlap)
    else:
        found = _claim_on_device(masks, order, overlap)
    return found._replace(owner=like(found.owner, given))


def add_stuff(
    ids: Array,
    semantic: Semantic,
    *,
    stuff_area: float = STUFF_AREA,
    things: Collection[int] = (),
    first: int | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    """The map with its free pixels given to stuff, and the segments that were added.

    ids: (H, W) integers, 0 is free. semantic: a map (H, W) of category ids, painted by rising id,
    or pairs (category id, mask (H, W) bool), which may overlap and are painted in their order.
    `things` are the values that are not painted: thing classes, or a void label such as 255;
    negative values of a map are void too. The new ids go on from `first`, by default from the
    largest there is. The map is returned as int32, of the kind of `ids`.
    """
    labels = whole_map(ids).to(torch.int32)
    check_numbers(stuff_area=stuff_area)
    if first is None:
        first = int(labels.max()) + 1 if labels.numel() else 1
    least = max(1.0, stuff_area)  # an empty rest is no segment, whatever the limit
    if isinstance(semantic, Tensor | np.ndarray):
        labels, added = _paint_map(labels, as_tensor(semantic), least, things, first)
    else:
        labels, added = _paint_masks(labels, semantic, least, things, first)
    return like(labels, ids), added


def merge(
    masks: Array,
    scores: Array,
    labels: Array | Sequence[int],
    semantic: Semantic,
    *,
    confidence: float = CONFIDENCE,
    overlap: float = OVERLAP,
    stuff_area: float = STUFF_AREA,
    things: Collection[int] = (),
) -> tuple[Any, list[dict[str, Any]]]:
    """Panoptic map (H, W) int32, 0 void, and its segments, numbered from 1: things, then stuff.

    masks, scores: as for `remove_overlaps`; labels: (N,) category ids; semantic, things: as for
    `add_stuff`. Segments of things also have their "score" and "instance", the index into the masks
    given. Raises ValueError where the parts do not fit together.
    """
    categories = as_tensor(labels).tolist() if isinstance(labels, Tensor | np.ndarray) else labels
    if len(categories) != len(masks):
        raise ValueError(f"{len(masks)} masks come with {len(categories)} labels")
    found = remove_overlaps(masks, scores, confidence=confidence, overlap=overlap)
    segments = thing_segments(found, categories, as_tensor(scores).tolist())
    ids, stuff = add_stuff(
        found.owner, semantic, stuff_area=stuff_area, things=things, first=len(segments) + 1
    )
    return ids, segments + stuff


def thing_segments(
    found: Disjoint, labels: Sequence[int], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """Segments of the instances that survived; labels, scores: of all instances given."""
    return [
        {**new_segment(k, labels[i], area), "score": float(scores[i]), "instance": i}
        for k, (i, area) in enumerate(zip(found.kept, found.areas, strict=True), 1)
    ]


def scale_area(height: int, width: int, *, stuff_area: float = STUFF_AREA) -> int:
    """`stuff_area`, meant for 640 x 480 pixels, as the same share of an image of another size."""
    return round(stuff_area * height * width / (480 * 640))


def _claim_cropped(masks: np.ndarray, order: list[int], overlap: float) -> Disjoint:
    """One instance after the other, each within its bounding box."""
    owner = np.zeros(masks.shape[1:], np.int32)
    kept: list[int] = []
    areas: list[int] = []
    for i in order:
        rows = np.flatnonzero(masks[i].any(1))
        if len(rows) == 0:
            continue
        band = slice(rows[0], rows[-1] + 1)
        columns = np.flatnonzero(masks[i, band].any(0))
        box = band, slice(columns[0], columns[-1] + 1)
        mask, place = masks[i][box], owner[box]
        free = mask & (place == 0)  # accepted masks own all their pixels, so the rest is free
        area, left = int(np.count_nonzero(mask)), int(np.count_nonzero(free))
        if left == 0 or (area - left) / area > overlap:
            continue
        kept.append(i)
        areas.append(left)
        np.copyto(place, len(kept), where=free)
    return Disjoint(torch.from_numpy(owner), kept, areas)


def _claim_on_device(masks: Tensor, order: list[int], overlap: float) -> Disjoint:
    """The same without asking the device for an answer before the end."""
    owner = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    if not order:
        return Disjoint(owner, [], [])
    areas = masks.flatten(1).sum(1)  # (N,) int64
    number = torch.zeros((), dtype=torch.int32, device=masks.device)
    accepted, rests = [], []
    for i in order:
        free = masks[i] & (owner == 0)
        left = free.sum()
        hidden = (areas[i] - left).double() / areas[i].double()  # NaN for an empty mask
        stays = (hidden <= overlap) & (left > 0)
        number = number + stays
        owner += free * (number * stays)
        accepted.append(stays)
        rests.append(left)
    stayed, rest = torch.stack([torch.stack(accepted).long(), torch.stack(rests)]).tolist()
    kept = [i for i, stays in zip(order, stayed, strict=True) if stays]
    return Disjoint(owner, kept, [n for n, stays in zip(rest, stayed, strict=True) if stays])


def _paint_map(
    ids: Tensor, semantic: Tensor, least: float, things: Collection[int], first: int
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Stuff from a map of category ids, by rising id."""
    if semantic.is_floating_point() or semantic.dtype == torch.bool:
        raise ValueError(
            f"the semantic map must hold whole category ids, not {semantic.dtype}: take the argmax "
            "of logits first"
        )
    _check_size(semantic, ids, "the semantic map")
    free = (semantic.to(ids.device, torch.int64) + 1).masked_fill_(ids != 0, 0).clamp_(min=0)
    if free.numel() and int(free.max()) > LARGEST_CATEGORY:
        raise ValueError(
            f"the semantic map holds {int(free.max()) - 1}: category ids are below "
            f"{LARGEST_CATEGORY}, and void is negative or listed in `things`"
        )
    counts = torch.bincount(free.flatten(), minlength=1).tolist()  # of each category id + 1
    table = torch.zeros(len(counts), dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    for category, area in enumerate(counts[1:]):
        if area >= least and category not in things:
            table[category + 1] = first + len(segments)
            segments.append(new_segment(first + len(segments), category, area))
    return ids + table.to(ids.device)[free], segments


def _paint_masks(
    ids: Tensor,
    semantic: Sequence[tuple[int, Array]],
    least: float,
    things: Collection[int],
    first: int,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Stuff from one mask a category, in the order given."""
    ids = ids.clone()
    segments: list[dict[str, Any]] = []
    seen: set[int] = set()
    for category, given in semantic:
        if category in things:
            continue
        if category in seen:  # stuff is one segment a class, Sec. 3
            raise ValueError(f"category {category} has two masks: join them into one")
        seen.add(category)
        mask = as_tensor(given)
        if mask.dtype != torch.bool:
            raise ValueError(f"the mask of category {category} must be bool, not {mask.dtype}")
        _check_size(mask, ids, f"the mask of category {category}")
        free = mask.to(ids.device) & (ids == 0)
        area = int(free.count_nonzero())
        if area >= least:
            ids.masked_fill_(free, first + len(segments))
            segments.append(new_segment(first + len(segments), category, area))
    return ids, segments


def new_segment(number: int, category: float, area: int) -> dict[str, Any]:
    if category != int(category):
        raise ValueError(f"label {category} is no category id: give whole numbers")
    return {"id": number, "category_id": int(category), "iscrowd": 0, "area": area}


def check_scores(scores: Sequence[float]) -> None:
    """Raise ValueError for a score that is NaN: it has no place in an order."""
    for i, score in enumerate(scores):
        if math.isnan(score):
            raise ValueError(f"score {i} is not a number: leave such instances out")


def check_numbers(**thresholds: float) -> None:
    """Raise ValueError for a threshold that is NaN: nothing compares with it."""
    for name, value in thresholds.items():
        if math.isnan(value):
            raise ValueError(f"{name} is not a number: give one")


def _check_size(values: Tensor, ids: Tensor, what: str) -> None:
    if values.shape != ids.shape:
        raise ValueError(f"{what} is {tuple(values.shape)}, but the instances {tuple(ids.shape)}")


def whole_map(ids: Array) -> Tensor:
    """A map of ids as a tensor; ValueError unless it is (H, W) of whole numbers."""
    labels = as_tensor(ids)
    if labels.dim() != 2 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"ids must be whole numbers (H, W), not {_kind(labels)}")
    return labels


def _kind(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"


def as_tensor(values: Array) -> Tensor:
    """`values` as a tensor that shares memory where that is possible."""
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    # torch takes neither read-only arrays nor negative strides nor the other byte order.
    usable = array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if usable else array.astype(array.dtype.newbyteorder("=")))


def like(values: Tensor, given: Array) -> Array:
    """`values` as an array if `given` is one."""
    return values if isinstance(given, Tensor) else values.numpy()
