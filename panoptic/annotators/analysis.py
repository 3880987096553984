"""What lies behind a PQ: PQ†, sizes, intervals and the IoU of matches.

All take a `PanopticQuality`, made with `keep_images=True` for all but PQ†. Metrics are fractions,
areas pixels. S samples, C classes, K outcomes.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..metric.records import Records
from ..metric.scores import Scores
from ..quality import PanopticQuality, group, summarise

SIZES = ("S", "M", "L")
MEASURES = ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st")


def dagger(metric: PanopticQuality) -> Scores:
    """Scores whose pq is PQ† of Seamless Scene Segmentation (arXiv 1905.01220, Eq. 2).

    A stuff class has one segment an image, so there is nothing to detect: its score is the mean
    IoU over the true segments, whatever the IoU, and false positives do not count. Things have
    their PQ.
    """
    classes = dict(metric.compute().classes)
    for (category, score), row in zip(classes.items(), metric.sums.tolist(), strict=True):
        if not metric.categories[category]:
            truths = score.tp + score.fn
            classes[category] = replace(score, pq=row[4] / truths if truths else math.nan)
    return group(classes, metric.categories)


def size_edges(metric: PanopticQuality, *, things: bool = False) -> tuple[float, float]:
    """Areas that part the smallest 25 %, the middle 50 % and the largest 25 % of the segments.

    They are those of both maps without crowds, all or only the things; nan without any. Table 2 of
    the paper.
    """
    records = metric.records
    listed = [category for category, thing in metric.categories.items() if thing or not things]
    wanted = np.isin(records.category, listed)
    areas = np.concatenate(
        [
            records.truth_area[wanted & (records.kind != 1)],
            records.prediction_area[wanted & (records.kind != 2)],
        ]
    )
    if not areas.size:
        return math.nan, math.nan
    low, high = np.quantile(areas, [0.25, 0.75])
    return float(low), float(high)


def by_size(metric: PanopticQuality, edges: tuple[float, float]) -> dict[str, Scores]:
    """Scores of small, medium and large segments: "S" up to and with edges[0], "L" above edges[1].

    TP and FN belong to the size of the true segment, FP to their own. Table 2 of the paper.
    """
    records = metric.records
    low, high = edges
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
    """Σ IoU, TP, FP and FN float64 (C, 4), each outcome counted `times` (K,)."""
    C = len(metric.categories)
    ids = np.array(list(metric.categories), np.int64)
    order = np.argsort(ids)
    place = order[np.searchsorted(ids[order], records.category)] if C else records.category
    iou = np.bincount(place, times * records.iou, C)
    counts = np.bincount(3 * place + records.kind, times, 3 * C).reshape(C, 3)
    return np.concatenate([iou[:, None], counts], 1)


def ious_of_matches(metric: PanopticQuality) -> np.ndarray:
    """IoU of all matches, rising, float64.

    With `threshold=0` these are all pairs of the best assignment, whose distribution shows how few
    the rule "IoU above 0.5" loses.
    """
    records = metric.records
    return np.sort(records.iou[records.kind == 0])
