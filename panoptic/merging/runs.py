"""The merge of `merge.py` on run lengths, as files hold masks: none is decoded to an image.

H x W pixels, counted down the columns; R runs of 0 and 1 in turn, which fill the image. A mask
covers a small part of an image, so that a list of its pixels is much shorter than a map of all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..merge import (
    CONFIDENCE,
    OVERLAP,
    STUFF_AREA,
    Disjoint,
    check_numbers,
    check_scores,
    new_segment,
    thing_segments,
)

Runs = np.ndarray  # (R,) int64


def pixels_of(runs: Runs) -> np.ndarray:
    """Places (P,) int64 of the pixels that are set, rising."""
    ends = runs.cumsum()
    lengths = runs[1::2]
    shifts = ends[0::2][: len(lengths)]  # of each run of 1 from its place among those set
    shifts[1:] -= lengths[:-1].cumsum()
    return np.repeat(shifts, lengths) + np.arange(lengths.sum())


def merge_runs(
    masks: Sequence[Runs],
    scores: Sequence[float],
    labels: Sequence[int],
    semantic: Sequence[tuple[int, Runs]],
    size: tuple[int, int],
    *,
    confidence: float = CONFIDENCE,
    overlap: float = OVERLAP,
    stuff_area: float = STUFF_AREA,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """What `merge.merge` gives of the same masks: map (H, W) int32, 0 void, and its segments.

    masks: N run lengths; semantic: category ids with theirs. size: height and width. ValueError for
    two masks of one category of stuff, and for a score or threshold that is not a number.
    """
    check_scores(scores)
    check_numbers(confidence=confidence, overlap=overlap, stuff_area=stuff_area)
    height, width = size
    owner = np.zeros(height * width, np.int32)
    kept: list[int] = []
    areas: list[int] = []
    for i in sorted(range(len(masks)), key=lambda i: -scores[i]):  # equal ones stay in order
        if scores[i] < confidence:
            break
        pixels = pixels_of(masks[i])
        free = pixels[owner[pixels] == 0]
        if len(free) == 0 or (len(pixels) - len(free)) / len(pixels) > overlap:
            continue
        kept.append(i)
        areas.append(len(free))
        owner[free] = len(kept)
    segments = thing_segments(Disjoint(owner, kept, areas), labels, scores)
    seen: set[int] = set()
    for category, runs in semantic:
        if category in seen:  # stuff is one segment a class, Sec. 3
            raise ValueError(f"category {category} has two masks: join them into one")
        seen.add(category)
        pixels = pixels_of(runs)
        free = pixels[owner[pixels] == 0]
        if len(free) >= max(1.0, stuff_area):
            segments.append(new_segment(len(segments) + 1, category, len(free)))
            owner[free] = len(segments)
    return np.ascontiguousarray(owner.reshape(width, height).T), segments
