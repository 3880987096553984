"""Maps of others, in which a stuff class has several segments: the format asks for one, Sec. 3."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..merge import Array, like, whole_map

LARGEST_ID = 2**24  # ids of a panoptic PNG are below


def join_stuff(
    ids: Array, segments: Sequence[Mapping[str, Any]], *, things: Collection[int]
) -> tuple[Any, list[dict[str, Any]]]:
    """The map with one segment for each class that is not among `things`, Sec. 3; its segments.

    ids: (H, W) whole numbers, of which negative ones are void. segments: with `id` and
    `category_id`. Of the segments of a stuff class the first keeps its id. Raises
    ValueError for ids of 2^24 and more, which no panoptic PNG holds.
    """
    labels = whole_map(ids).long().clamp(min=0)
    numbers = [segment["id"] for segment in segments]
    if labels.numel():
        numbers.append(int(labels.max()))
    if wrong := [number for number in numbers if not 0 <= number < LARGEST_ID]:
        raise ValueError(f"segment id {wrong[0]} is out of range: give 0 to {LARGEST_ID - 1}")
    table = torch.arange(1 + max(numbers, default=0))
    first: dict[int, int] = {}
    kept: list[dict[str, Any]] = []
    for segment in segments:
        category, number = segment["category_id"], segment["id"]
        if category in things:
            kept.append(dict(segment))
        elif category not in first:
            first[category] = number
            kept.append({key: value for key, value in segment.items() if key != "area"})
        else:
            table[number] = first[category]
    return like(table.int().to(labels.device)[labels], ids), kept
