"""Entries of COCO panoptic JSONs: images and segments, checked before anything trusts them.

H, W height and width. Every function raises ValueError, beginning with `where`, in one sentence.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from .categories import Category, whole
from .ids import LIMIT, measure
from .pixels import MAX_PIXELS


def image_entries(content: Any, where: str) -> dict[int | str, dict[str, Any]]:
    """COCO's `images` by id; ValueError for entries without id or file_name, or of equal id."""
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"{where} has no list `images`")
    entries: dict[int | str, dict[str, Any]] = {}
    for image in images:
        number = image.get("id") if isinstance(image, dict) else None
        if not is_image_id(number):
            raise ValueError(
                f"{where}: an image has no `id` that is text or a whole number below 2^63: "
                f"{image!r:.80}"
            )
        if number in entries:
            raise ValueError(f"{where}: image id {number!r} appears twice")
        refuse_unsafe(image.get("file_name"), f"{where}: image {number!r}")
        entries[number] = image | _size(image, f"{where}: image {number!r}")
    return entries


def is_image_id(value: Any) -> TypeGuard[int | str]:
    """Whether it can be the id of an image: text, or a whole number that fits into 64 bits."""
    number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, str) or number


def _size(image: Mapping[str, Any], where: str) -> dict[str, int]:
    """Height and width of an entry as far as it has them; ValueError unless they are sound."""
    size: dict[str, int] = {}
    for side in {"height", "width"} & image.keys():
        pixels = whole(image[side])
        if pixels is None or not 0 < pixels <= MAX_PIXELS:
            raise ValueError(f"{where} has the {side} {image[side]!r:.40}: give it in pixels")
        size[side] = pixels
    if size.get("height", 1) * size.get("width", 1) > MAX_PIXELS:
        raise ValueError(
            f"{where} is {size['width']} x {size['height']} pixels: "
            f"panoptic.files.pixels.MAX_PIXELS = {MAX_PIXELS} are the most"
        )
    return size


def refuse_unsafe(name: Any, where: str) -> None:
    """Raise ValueError unless `name` is a file name that stays within its folder."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no `file_name`")
    if "\0" in name or not name.encode("utf-8", "ignore").decode() == name:  # half a character
        raise ValueError(f"{where}: file_name {name!r:.80} is no name of a file")
    parts = re.split(r"[/\\]", name)
    if not parts[0] or ":" in parts[0] or ".." in parts:
        raise ValueError(f"{where}: file_name {name!r} leads out of its folder")


def check_segments(
    segments: Any, categories: Collection[int] | None, where: str, *, zero: bool = False
) -> None:
    """Raise ValueError, naming the id, unless ids are unique and 1..2**24-1, categories known.

    categories: their ids; None for any whole number. zero: whether the id 0 is allowed.
    """
    if not isinstance(segments, list | tuple) or not all(isinstance(s, Mapping) for s in segments):
        raise ValueError(f"{where} has no list `segments_info` of objects {{id, category_id}}")
    seen: set[int] = set()
    for segment in segments:
        number, category = whole(segment.get("id")), whole(segment.get("category_id"))
        if number is None or not 0 <= number < LIMIT:
            raise ValueError(
                f"{where}: segment id {segment.get('id')!r:.40} is not within 1 to {LIMIT - 1}"
            )
        if number == 0 and not zero:
            raise ValueError(f"{where}: a segment has the id 0, which means void in the PNG")
        if number in seen:
            raise ValueError(f"{where}: segment id {number} appears twice")
        if category is None or (categories is not None and category not in categories):
            raise ValueError(
                f"{where}: segment {number} is of category {segment.get('category_id')!r:.40}, "
                "which is not one of the `categories`"
            )
        if segment.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"{where}: `iscrowd` of segment {number} is neither 0 nor 1")
        seen.add(number)


def complete(
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    *,
    where: str,
    categories: Mapping[int, Category] | None = None,
    strict: bool = True,
) -> list[dict[str, Any]]:
    """Copies of the segments of a map (H, W), with `iscrowd`, and `area` and `bbox` as counted.

    Raises ValueError, beginning with `where`, for ids that are 0, doubled, or in the map but not
    among the segments, and for unknown categories (where `categories` is given). If strict, also
    for segments without a pixel, which are otherwise left out, and for areas that differ from
    those counted, which are otherwise put right.
    """
    check_segments(segments, None if categories is None else categories.keys(), where)
    found, areas, boxes = measure(ids)
    counted = {
        int(number): (int(area), box)
        for number, area, box in zip(found, areas, boxes.tolist(), strict=True)
    }
    counted.pop(0, None)
    completed = []
    for segment in segments:
        area, box = counted.pop(int(segment["id"]), (0, []))
        if area == 0 and strict:
            raise ValueError(f"{where}: segment {segment['id']} is listed, but has no pixel")
        if strict and segment.get("area", area) != area:
            raise ValueError(
                f"{where}: segment {segment['id']} has {area} pixels, but its `area` is "
                f"{segment['area']}"
            )
        if area:
            plain = {"id": int(segment["id"]), "category_id": int(segment["category_id"])}
            iscrowd = int(segment.get("iscrowd", 0))
            completed.append({**segment, **plain, "iscrowd": iscrowd, "area": area, "bbox": box})
    if counted:
        number, (area, _) = next(iter(counted.items()))
        raise ValueError(
            f"{where}: id {number} is in the map ({area} pixels), but not among the segments"
        )
    return completed
