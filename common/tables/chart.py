"""The chart of a table: for each metric the paper's order of the rows beside ours."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import files

PAPER, OURS = "#2d78d7", "#e45037"
ACROSS = 4  # panels side by side, at most

Ours = tuple[float, float] | None  # mean and std over the seeds


def chart(
    path: Path,
    names: Sequence[str],
    panels: Mapping[str, Sequence[tuple[float | None, Ours]]],
    *,
    title: str,
    ours: str,
) -> None:
    """Write a PNG with one panel per metric: for each name the paper's figure and ours, if any.

    Each of the two has an axis of its own, paper above and ours below, so that orders compare
    where sizes do not. `ours` is what our points are called.
    """
    down = math.ceil(len(panels) / ACROSS)
    across = math.ceil(len(panels) / down)  # five stand as three and two
    width = max(2.4, *(0.1 * len(metric) for metric in panels))
    size = (0.075 * max(map(len, names)) + width * across, 0.9 + down * (0.9 + 0.25 * len(names)))
    figure = Figure(figsize=(max(size[0], 6), size[1]), dpi=120, layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    handles = {}
    for axes, (metric, points) in zip(grid, panels.items(), strict=False):
        axes.set_title(metric, fontsize=10, fontweight="bold")
        axes.set(ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        theirs = [(i, paper, 0.0) for i, (paper, _) in enumerate(points) if paper is not None]
        measured = [(i, *point) for i, (_, point) in enumerate(points) if point is not None]
        if theirs:
            handles["paper"] = _profile(axes.twiny(), theirs, PAPER, "D", -0.12)
        if measured:
            handles[ours] = _profile(axes, measured, OURS, "o", 0.12)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False
    )
    figure.suptitle(title, fontsize=11, wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: figure.savefig(file, format="png"))


def _profile(
    axes: Axes, points: Sequence[tuple[int, float, float]], color: str, marker: str, shift: float
) -> Any:
    """Points (row, mean, std) from row to row, `shift` below the row's line."""
    rows, means, stds = zip(*points, strict=True)
    drawn = axes.errorbar(
        means,
        [row + shift for row in rows],
        xerr=[std or math.nan for std in stds],  # no bar for the paper or a single run
        fmt=marker,
        color=color,
        markersize=5,
        markerfacecolor="white" if marker == "D" else None,
        capsize=2.5,
    )
    axes.plot(means, [row + shift for row in rows], color=color, linewidth=0.8, alpha=0.35)
    axes.tick_params(axis="x", colors=color, labelsize=8)
    axes.spines[["left", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=6)  # room for "84.25" beside "84.50"
    return drawn if any(stds) else drawn.lines[0]  # no bar in the legend, either
