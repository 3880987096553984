"""COCO's detection format, one annotation with a mask per segment, from and to panoptic maps.

H, W height and width. Masks are COCO's run-length encoding: `size` [H, W] and `counts`, the runs
of 0 and 1 in turn, column by column. Files may also hold polygons.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from common.coco import masks

from .categories import Category, to_entries, whole
from .coco import PanopticFiles, Result
from .entries import image_entries, is_image_id
from .ids import SegmentIds


def encode(ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """The mask of each id (H, W) but 0, as compressed run lengths, `counts` a str.

    The runs of all ids are found in one pass over the map, not one pass for each mask.
    """
    columns = ids.reshape(-1, order="F")
    starts = np.flatnonzero(np.concatenate([[True], columns[1:] != columns[:-1]]))
    ends = np.append(starts[1:], columns.size)
    values = columns[starts]
    order = np.argsort(values, kind="stable")
    found, firsts = np.unique(values[order], return_index=True)
    codes = {}
    for number, runs in zip(found.tolist(), np.split(order, firsts[1:]), strict=True):
        if number == 0:
            continue
        borders = np.stack([starts[runs], ends[runs]], axis=1).reshape(-1)
        counts = np.diff(borders, prepend=0, append=columns.size).tolist()
        if counts[-1] == 0:  # as COCO's own encoder, which does not write an empty last run
            counts.pop()
        mask = rle.frPyObjects({"size": list(ids.shape), "counts": counts}, *ids.shape)
        codes[number] = {"size": list(ids.shape), "counts": mask["counts"].decode()}
    return codes


def decode(segmentation: Any, height: int, width: int, *, where: str) -> np.ndarray:
    """The mask (H, W) bool of COCO's polygons or run lengths.

    Raises ValueError, beginning with `where`, for what `masks.check_segmentation` finds fault with.
    """
    require_sound(segmentation, height, width, where=where)
    return masks.decode_mask(segmentation, height, width)


def require_sound(segmentation: Any, height: int, width: int, *, where: str) -> None:
    """Raise ValueError, beginning with `where`, unless it is a mask of this size."""
    fault = masks.check_segmentation(segmentation, height, width)
    if fault:
        raise ValueError(f"{where} {fault}")


def run_lengths(segmentation: Any, height: int, width: int, *, where: str) -> np.ndarray:
    """Run lengths of 0 and 1 in turn, column by column, of the same; errors as of `decode`."""
    require_sound(segmentation, height, width, where=where)
    return masks.run_lengths(segmentation, height, width)


def to_detection(files: PanopticFiles, *, things_only: bool = False) -> dict[str, Any]:
    """COCO detection content (images, annotations, categories) of panoptic files.

    things_only: leave out stuff. Annotation ids count from 1: COCO's evaluator takes 0 for "no
    match". Categories keep `isthing`, so that the way back needs no other file.
    """
    annotations: list[dict[str, Any]] = []
    images = []
    for image in files.images:
        number = image["id"]
        ids, segments = files.read(number)
        codes = encode(ids)
        for segment in segments:
            if files.categories[segment["category_id"]].isthing or not things_only:
                mask = {"segmentation": codes[segment.pop("id")], "image_id": number}
                annotations.append({"id": len(annotations) + 1, **segment, **mask})
        images.append({"height": ids.shape[0], "width": ids.shape[1], **image})
    kept = {c.id: c for c in files.categories.values() if c.isthing or not things_only}
    return {"images": images, "annotations": annotations, "categories": to_entries(kept)}


def from_detection(
    content: Mapping[str, Any], categories: Mapping[int, Category], *, where: str
) -> Iterator[Result]:
    """Image id, ids and segments of COCO detection content, whose masks must not overlap.

    Images without annotations give maps of void. where: the file, for messages. Raises ValueError
    for masks that overlap (naming both annotations), are empty, or of an unknown class or image.
    """
    images = image_entries(content, where)
    by_image: dict[int | str, list[Mapping[str, Any]]] = {number: [] for number in images}
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(a, Mapping) for a in annotations):
        raise ValueError(f"{where} has no list `annotations` of objects {{id, image_id, ...}}")
    for a in annotations:
        image, category = a.get("image_id"), whole(a.get("category_id"))
        name = f"{where}: annotation {a.get('id')!r:.40}"
        if not is_image_id(image) or image not in images:
            raise ValueError(f"{name} is of image {image!r:.40}, which is not among the `images`")
        if category not in categories:
            raise ValueError(
                f"{name} of image {image!r} is of category {a.get('category_id')!r:.40}, which is "
                "not among the categories"
            )
        if a.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"{name} of image {image!r} has an `iscrowd` that is neither 0 nor 1")
        by_image[image].append({**a, "category_id": category})
    for number, entry in images.items():
        size = entry.get("height"), entry.get("width")
        if None in size:
            raise ValueError(f"{where}: image {number!r} has no `height` and `width`")
        yield number, *_paint(by_image[number], size, categories, f"{where}: image {number!r}")


def _paint(
    annotations: Sequence[Mapping[str, Any]],
    size: tuple[Any, Any],
    categories: Mapping[int, Category],
    where: str,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Ids (H, W) and segments of the annotations of one image."""
    ids = np.zeros(size, np.int32)
    new = SegmentIds(categories)
    segments: list[dict[str, Any]] = []
    owner: dict[int, Any] = {}
    for a in annotations:
        mask = decode(a.get("segmentation"), *size, where=f"{where}: annotation {a.get('id')}")
        if not mask.any():
            raise ValueError(f"{where}: annotation {a.get('id')} has an empty mask: remove it")
        taken = ids[mask].max()
        if taken:
            raise ValueError(
                f"{where}: annotations {owner[int(taken)]} and {a.get('id')} overlap, which "
                "segments of a panoptic map cannot: merge them by score with merge_files.py"
            )
        number = new.new(a["category_id"])
        ids[mask] = number
        owner[number] = a.get("id")
        iscrowd = int(a.get("iscrowd", 0))
        segments.append({"id": number, "category_id": a["category_id"], "iscrowd": iscrowd})
    return ids, segments
