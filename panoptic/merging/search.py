"""The three thresholds of the merge by grid search on validation images, as in Sec. 7.

Shapes: N instances, H x W pixels. Many points of the grid give the same panoptic map of an image,
as no instance lies between their thresholds; each different map is made and compared once only. The
official script's thresholds are always among the points, so the best is never below them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..merge import (
    CONFIDENCE,
    OVERLAP,
    STUFF_AREA,
    Array,
    Disjoint,
    Semantic,
    add_stuff,
    remove_overlaps,
    thing_segments,
)
from ..metric.scores import Scores
from ..quality import PanopticQuality, summarise

CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OVERLAPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
STUFF_AREAS = (0, 256, 1024, 2048, 4096, 8192, 16384)


class Prediction(NamedTuple):
    """What the two networks say of an image; the arguments of `merge.merge`."""

    masks: Array  # (N, H, W) bool
    scores: Array  # (N,)
    labels: Sequence[int]  # N category ids
    semantic: Semantic
    image: str | int = ""  # its name, for messages


@dataclass(frozen=True)
class Point:
    """Thresholds, and the quality of the panoptic maps that they give."""

    confidence: float
    overlap: float
    stuff_area: float
    scores: Scores

    @property
    def thresholds(self) -> dict[str, float]:
        """As `merge.merge` takes them."""
        return {name: getattr(self, name) for name in ("confidence", "overlap", "stuff_area")}

    @property
    def default(self) -> bool:
        """Whether these are the official script's."""
        return [*self.thresholds.values()] == [CONFIDENCE, OVERLAP, STUFF_AREA]

    @property
    def pq(self) -> float:
        """PQ of all classes, nan where there is nothing to find."""
        return self.scores.all.pq


def search(
    examples: Iterable[tuple[Prediction, Array, Sequence[Mapping[str, Any]]]],
    categories: Mapping[int, bool],
    *,
    confidences: Sequence[float] = CONFIDENCES,
    overlaps: Sequence[float] = OVERLAPS,
    stuff_areas: Sequence[float] = STUFF_AREAS,
) -> list[Point]:
    """Every point of the grid with its scores, by rising confidence, overlap and stuff area.

    examples: predictions, each with the true map (H, W) and its segments. categories: id -> whether
    it is a thing. Raises ValueError where there is no example.
    """
    given = (confidences, CONFIDENCE), (overlaps, OVERLAP), (stuff_areas, STUFF_AREA)
    grid = [sorted({*values, default}) for values, default in given]
    shape = *(len(values) for values in grid), len(categories), 5
    sums = torch.zeros(shape, dtype=torch.float64)
    found_any = False
    for prediction, truth, truth_segments in examples:
        found_any = True
        example = _Example(prediction, truth, truth_segments, categories)
        for j, overlap in enumerate(grid[1]):
            # The walk by score is the same for all confidences; a higher one ends it earlier.
            found = remove_overlaps(
                prediction.masks, prediction.scores, confidence=grid[0][0], overlap=overlap
            )
            for i, confidence in enumerate(grid[0]):
                number = sum(example.scores[instance] >= confidence for instance in found.kept)
                for k, area in enumerate(grid[2]):
                    sums[i, j, k] += example.sums(found, number, area)
    if not found_any:
        raise ValueError("there is no image to search the thresholds on")
    return [
        Point(confidence, overlap, area, summarise(sums[i, j, k], categories))
        for i, confidence in enumerate(grid[0])
        for j, overlap in enumerate(grid[1])
        for k, area in enumerate(grid[2])
    ]


class _Example:
    """One image, with the sums of each different panoptic map that was made of it."""

    def __init__(
        self,
        prediction: Prediction,
        truth: Array,
        segments: Sequence[Mapping[str, Any]],
        categories: Mapping[int, bool],
    ) -> None:
        self.prediction, self.truth, self.segments = prediction, truth, segments
        self.categories = categories
        self.things = {category for category, thing in categories.items() if thing}
        self.scores: list[float] = torch.as_tensor(prediction.scores).tolist()
        self.painted: dict[tuple[tuple[int, ...], float], Tensor] = {}
        self.compared: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def sums(self, found: Disjoint, number: int, stuff_area: float) -> Tensor:
        """(C, 5) of the first `number` instances and this limit, see `PanopticQuality.sums`."""
        kept = tuple(found.kept[:number])
        if (kept, stuff_area) not in self.painted:
            self.painted[kept, stuff_area] = self._compare(found, kept, stuff_area)
        return self.painted[kept, stuff_area]

    def _compare(self, found: Disjoint, kept: tuple[int, ...], stuff_area: float) -> Tensor:
        number = len(kept)
        first = Disjoint(found.owner * (found.owner <= number), [*kept], found.areas[:number])
        ids, stuff = add_stuff(
            first.owner,
            self.prediction.semantic,
            stuff_area=stuff_area,
            things=self.things,
            first=number + 1,
        )
        key = kept, tuple(segment["category_id"] for segment in stuff)  # they make the map
        if key not in self.compared:
            segments = thing_segments(first, self.prediction.labels, self.scores) + stuff
            metric = PanopticQuality(self.categories)
            metric.update(ids, segments, self.truth, self.segments, image=self.prediction.image)
            self.compared[key] = metric.sums
        return self.compared[key]


def best(points: Iterable[Point]) -> Point:
    """The point of the highest PQ; among equals the official script's, else the first."""
    return max(points, key=lambda p: (-math.inf if math.isnan(p.pq) else p.pq, p.default))
