"""The charts of the consistency study: the figures of Sec. 6, and the annotations side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.draw import grid, legend, save_figure, save_png

from ..files.categories import Category
from ..metric.matching import Matching
from ..metric.scores import Scores
from ..quality import PanopticQuality
from .draw import ERRORS, errors, overlay

THING, STUFF, ALL = "tab:red", "tab:blue", "black"
Annotated = tuple[np.ndarray, list[dict[str, Any]]]


def classes(path: Path, scores: Scores, categories: Mapping[int, Category]) -> None:
    """PQ of each class that occurs, the best first; things and stuff in their colours."""
    found = [(score.pq, number) for number, score in scores.classes.items()]
    ranked = sorted(((pq, n) for pq, n in found if not math.isnan(pq)), key=lambda x: -x[0])
    size = max(6.0, 1.5 + 0.17 * len(ranked)), 4.4
    figure, axes = _open("consistency by class", "", "PQ, %", size=size)
    places = range(len(ranked))
    shades = [THING if categories[number].isthing else STUFF for _, number in ranked]
    axes.bar(places, [100 * pq for pq, _ in ranked], color=shades, width=0.8)
    names = [categories[number].name for _, number in ranked]
    axes.set_xticks(places, names, rotation=90, fontsize=9 if len(ranked) <= 30 else 6)
    axes.set(xlim=(-0.8, max(len(ranked), 1) - 0.2), ylim=(0, 100))
    patches = [Patch(color=THING, label="things"), Patch(color=STUFF, label="stuff")]
    axes.legend(handles=patches, frameon=False)
    save_figure(figure, path)


def cdf(path: Path, metric: PanopticQuality) -> None:
    """Share of matched pairs up to each IoU; `metric` has the threshold 0, hence the best pairs."""
    figure, axes = _open(
        "optimal matching, any IoU", "IoU of a matched pair", "pairs up to here, %"
    )
    records = metric.records
    matched = records.kind == 0
    things = np.array([metric.categories[number] for number in records.category.tolist()], bool)
    for label, wanted, shade in (
        ("all", matched, ALL),
        ("things", matched & things, THING),
        ("stuff", matched & ~things, STUFF),
    ):
        values = np.sort(records.iou[wanted])
        if values.size:
            share = 100 * np.arange(1, values.size + 1) / values.size
            below = 100 * float((values < 0.5).mean())
            text = f"{label}: {values.size} pairs, {below:.1f} % below 0.5"
            axes.step([0, *values, 1], [0, *share, 100], where="post", color=shade, label=text)
    axes.axvline(0.5, color="grey", linestyle=":")
    axes.set(xlim=(0, 1), ylim=(0, 100))
    axes.legend(frameon=False)
    save_figure(figure, path)


def thresholds(path: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """PQ of all, things and stuff by IoU threshold."""
    figure, axes = _open("PQ by threshold", "a match needs an IoU above", "PQ, %")
    groups = (("all", "PQ", ALL), ("things", "PQ_th", THING), ("stuff", "PQ_st", STUFF))
    for place, (label, measure, shade) in enumerate(groups):
        heights = [values[measure] for values in found.values()]
        spots = [k + 0.26 * (place - 1) for k in range(len(found))]
        bars = axes.bar(spots, heights, 0.24, color=shade, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylim(0, 108)
    axes.legend(frameon=False, ncols=3, loc="upper right")
    save_figure(figure, path)


def weights(path: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """SQ against RQ for several weights of FP and FN."""
    figure, axes = _open("SQ and RQ", "RQ, % (by the points: weight α of FP and FN)", "SQ, %")
    for label, end, shade in (("all", "", ALL), ("things", "_th", THING), ("stuff", "_st", STUFF)):
        across = [values[f"RQ{end}"] for values in found.values()]
        up = [values[f"SQ{end}"] for values in found.values()]
        if any(map(math.isnan, across)):
            continue
        axes.plot(across, up, "o-", color=shade, label=label)
        last = -math.inf
        for alpha, x, y in zip(found, across, up, strict=True):
            if abs(x - last) > 2.5:  # else the words would lie on one another
                last = x
                axes.annotate(
                    alpha, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8
                )
    axes.set(xlim=(None, 102), ylim=(None, 102))
    axes.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def annotations(
    path: Path,
    pairs: Sequence[tuple[str, Annotated, Annotated, Matching]],
    categories: Mapping[int, Category],
) -> None:
    """Both annotations of some images, and what became of their segments: a against b."""
    cells, titles = [], []
    for name, (first, segments), (second, others), matching in pairs:
        a, b = (torch.from_numpy(np.asarray(ids)).int() for ids in (first, second))
        white = torch.full((3, *a.shape), 255, dtype=torch.uint8)
        scale = max(1, 256 // max(a.shape))
        cells += [
            overlay(white, a, segments, categories, alpha=1.0, scale=scale),
            overlay(white, b, others, categories, alpha=1.0, scale=scale),
            errors(white, a, b, matching, alpha=1.0, scale=scale),
        ]
        titles += [f"{name}: a", "b", "a against b"]
    cells.append(legend(list(ERRORS), colors=list(ERRORS.values())))
    save_png(grid(cells, 3, titles=[*titles, "a against b"]), path)


def _open(
    title: str, xlabel: str, ylabel: str, *, size: tuple[float, float] = (6, 4.2)
) -> tuple[Figure, Axes]:
    """A figure of these inches, and its axes to draw on."""
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
