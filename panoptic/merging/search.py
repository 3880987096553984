"""The three thresholds of the merge by grid search on validation images, as in Sec. 7.

Shapes: N instances, H x W pixels. Many points of the grid give the same panoptic map of an image,
as no instance lies between their thresholds; each different map is made and compared once only. The
official script's thresholds are always among the points, so the best is never below them.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files.pixels import write_bytes
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
from ..quality import PanopticQuality, Scores, summarise

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
        return {
            "confidence": self.confidence,
            "overlap": self.overlap,
            "stuff_area": self.stuff_area,
        }

    @property
    def default(self) -> bool:
        """Whether these are the official script's."""
        return (self.confidence, self.overlap, self.stuff_area) == (CONFIDENCE, OVERLAP, STUFF_AREA)

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
    things: Iterable[int] = (),
) -> list[Point]:
    """Every point of the grid with its scores, by rising confidence, overlap and stuff area.

    examples: predictions, each with the true map (H, W) and its segments. categories: id -> whether
    it is a thing. things: values that are not painted besides the things among `categories`, see
    `merge.add_stuff`. Raises ValueError where there is no example.
    """
    grid = [sorted({*values}) for values in (confidences, overlaps, stuff_areas)]
    for values, default in zip(grid, (CONFIDENCE, OVERLAP, STUFF_AREA), strict=True):
        if default not in values:
            values.append(default)
            values.sort()
    skipped = frozenset([*things, *(c for c, thing in categories.items() if thing)])
    shape = *(len(values) for values in grid), len(categories), 5
    sums = torch.zeros(shape, dtype=torch.float64)
    found_any = False
    for prediction, truth, truth_segments in examples:
        found_any = True
        example = _Example(prediction, truth, truth_segments, categories, skipped)
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
        things: frozenset[int],
    ) -> None:
        self.prediction, self.truth, self.segments = prediction, truth, segments
        self.categories, self.things = categories, things
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


def table(points: Sequence[Point], *, top: int = 10) -> str:
    """Markdown: the `top` points by PQ and the official script's thresholds, in percent."""
    ranked = sorted(points, key=lambda p: (math.isnan(p.pq), -p.pq, not p.default))
    shown = ranked[:top] + [p for p in ranked[top:] if p.default]
    lines = [
        "| confidence | overlap | stuff area | PQ | PQ^Th | PQ^St | SQ | RQ |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for point in shown:
        metrics = point.scores.percent()
        figures = [metrics[name] for name in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ")]
        words = " | ".join("–" if math.isnan(value) else f"{value:.1f}" for value in figures)
        mark = " (official)" if point.default else ""
        lines.append(
            f"| {point.confidence:g} | {point.overlap:g} | {point.stuff_area:g}{mark} | {words} |"
        )
    return "\n".join(lines)


def rows(points: Iterable[Point]) -> list[dict[str, float]]:
    """One row a point, for a CSV file: thresholds, then PQ, SQ, RQ of all, things and stuff."""
    return [point.thresholds | point.scores.percent() for point in points]


AXES = {"confidence": "score at least", "overlap": "hidden at most", "stuff_area": "stuff area"}


def draw(points: Sequence[Point], path: Path | str) -> None:
    """Write a PNG of three heat maps of PQ through the best point, one for each pair of thresholds.

    A star marks the best point, a ring the official script's where the map passes through it.
    """
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    winner = best(points)
    values = [100 * p.pq for p in points if not math.isnan(p.pq)] or [0.0]
    figure = Figure(figsize=(15, 4.6), dpi=120, layout="constrained")
    plots = figure.subplots(1, 3)
    for axes, third in zip(plots, ("stuff_area", "overlap", "confidence"), strict=True):
        fixed = winner.thresholds[third]
        across, up = (name for name in AXES if name != third)
        here = {
            (p.thresholds[across], p.thresholds[up]): p
            for p in points
            if p.thresholds[third] == fixed
        }
        columns, lines = (sorted({place[side] for place in here}) for side in (0, 1))
        cells = [[100 * here[x, y].pq for x in columns] for y in lines]
        picture = axes.imshow(
            cells, origin="lower", aspect="auto", vmin=min(values), vmax=max(values), cmap="viridis"
        )
        middle = (min(values) + max(values)) / 2
        for (x, y), point in here.items():
            place = columns.index(x), lines.index(y)
            ink = "white" if 100 * point.pq < middle else "black"
            axes.annotate(
                f"{100 * point.pq:.1f}", place, color=ink, ha="center", va="center", fontsize=7
            )
            for marked, sign, size in ((point is winner, "*", 9), (point.default, "o", 26)):
                if marked:
                    # The star sits beside its figure, the ring around it.
                    side = (place[0] + 0.36, place[1] + 0.3) if sign == "*" else place
                    axes.plot(*side, sign, color="red", markersize=size, markerfacecolor="none")
        axes.set_xticks(range(len(columns)), [f"{x:g}" for x in columns])
        axes.set_yticks(range(len(lines)), [f"{y:g}" for y in lines])
        axes.set(xlabel=AXES[across], ylabel=AXES[up], title=f"{AXES[third]} {fixed:g}")
    figure.colorbar(picture, ax=plots, label="PQ, %")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
