"""What lies behind a PQ: error weights, PQ†, sizes, intervals and the IoU of matches.

All take a `PanopticQuality`; `by_size`, `bootstrap` and `matched_ious` one that was made with
`keep_images=True`. Metrics are fractions, areas pixels. S samples, C classes, K outcomes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..quality import PanopticQuality, Records, Scores, summarise

SIZES = ("S", "M", "L")
MEASURES = ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st")


def weighted(metric: PanopticQuality, alpha: float) -> Scores:
    """Scores with FP and FN weighted by `alpha`: RQ^α = TP / (TP + α FP + α FN), PQ^α = SQ RQ^α.

    One half is PQ; a lower weight raises RQ and leaves SQ. ValueError for a negative weight.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha}: the weight of FP and FN is 0 or more.")
    return metric.compute(alpha=alpha)


@dataclass(frozen=True)
class Dagger:
    """PQ† by category id, nan where the class does not occur, and the means of those that do."""

    classes: dict[int, float]
    all: float
    things: float
    stuff: float


def dagger(metric: PanopticQuality) -> Dagger:
    """PQ† of Seamless Scene Segmentation (arXiv 1905.01220, Eq. 2).

    A stuff class has one segment an image, so there is nothing to detect: its score is the mean
    IoU over the true segments, whatever the IoU, and false positives do not count. Things have
    their PQ.
    """
    scores = metric.compute()
    classes = {}
    for (category, score), row in zip(scores.classes.items(), metric.sums.tolist(), strict=True):
        truths = score.tp + score.fn
        stuff = row[4] / truths if truths else math.nan
        classes[category] = score.pq if metric.categories[category] else stuff

    def mean(wanted: bool | None) -> float:
        values = [
            value
            for category, value in classes.items()
            if wanted in (None, metric.categories[category]) and not math.isnan(value)
        ]
        return sum(values) / len(values) if values else math.nan

    return Dagger(classes, mean(None), mean(True), mean(False))


def size_edges(metric: PanopticQuality) -> tuple[float, float]:
    """Areas that part the smallest 25 %, the middle 50 % and the largest 25 % of true segments.

    Crowds are not among them. Both are nan without true segments. Table 2 of the paper.
    """
    records = metric.records
    areas = records.truth_area[records.kind != 1]
    if not areas.size:
        return math.nan, math.nan
    low, high = np.quantile(areas, [0.25, 0.75])
    return float(low), float(high)


def by_size(metric: PanopticQuality, edges: tuple[float, float] | None = None) -> dict[str, Scores]:
    """Scores of small, medium and large segments: "S" up to and with edges[0], "L" above edges[1].

    TP and FN belong to the size of the true segment, FP to their own. edges: `size_edges` of this
    metric unless given, of both annotators' segments say. Table 2 of the paper.
    """
    records = metric.records
    low, high = edges or size_edges(metric)
    area = np.where(records.kind == 1, records.prediction_area, records.truth_area)
    size = (area > low).astype(int) + (area > high)
    return {
        name: summarise(torch.from_numpy(_sums(metric, records, size == i)), metric.categories)
        for i, name in enumerate(SIZES)
    }


def bootstrap(
    metric: PanopticQuality,
    *,
    samples: int = 1000,
    percentiles: Sequence[float] = (5, 95),
    seed: int = 0,
) -> dict[str, tuple[float, ...]]:
    """Percentiles of PQ, SQ and RQ (and _th, _st) over images drawn with replacement.

    Each sample draws as many images as there are and leaves out classes that do not occur in them;
    samples in which no class of a group occurs do not count for that group (nan if none is left).
    Fractions, one value for each of `percentiles`. ValueError without images.
    """
    records, n = metric.records, metric.count
    if n == 0 or samples < 1:
        raise ValueError(f"{n} images and samples={samples}: the bootstrap needs one of each.")
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(samples):
        times = np.bincount(generator.integers(n, size=n), minlength=n)
        sums = torch.from_numpy(_sums(metric, records, times[records.image]))
        for name, value in summarise(sums, metric.categories).percent().items():
            drawn[name].append(value / 100)
    intervals = {}
    for name, values in drawn.items():
        sound = np.array(values)[~np.isnan(values)]
        ends = np.percentile(sound, percentiles) if sound.size else [math.nan] * len(percentiles)
        intervals[name] = tuple(float(end) for end in ends)
    return intervals


def _sums(metric: PanopticQuality, records: Records, times: np.ndarray) -> np.ndarray:
    """Σ IoU, TP, FP and FN float64 (C, 4), each outcome counted so many `times` (K,)."""
    C = len(metric.categories)
    ids = np.array(list(metric.categories), np.int64)
    order = np.argsort(ids)
    place = order[np.searchsorted(ids[order], records.category)] if C else records.category
    iou = np.bincount(place, times * records.iou, C)
    counts = np.bincount(3 * place + records.kind, times, 3 * C).reshape(C, 3)
    return np.concatenate([iou[:, None], counts], 1)


def matched_ious(metric: PanopticQuality, *, category: int | None = None) -> np.ndarray:
    """IoU of all matches, rising, float64; of one category if given.

    With `threshold=0` these are all pairs of the best assignment, whose distribution shows how few
    the rule "IoU above 0.5" loses.
    """
    records = metric.records
    wanted = records.kind == 0
    if category is not None:
        if category not in metric.categories:
            raise ValueError(f"category={category} is not one of {list(metric.categories)}.")
        wanted &= records.category == category
    return np.sort(records.iou[wanted])


def cumulative(values: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """Share of sorted `values` that are at most each of `at`, 0..1; nan without values."""
    if not values.size:
        return np.full(len(at), math.nan)
    return np.searchsorted(values, at, side="right") / values.size
