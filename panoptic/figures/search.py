"""What the search for thresholds found: the best points as a table, the whole grid as heat maps."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.draw import save_figure
from common.tables.markdown import markdown

from ..files.pixels import write_bytes
from ..merging.search import Point, best
from .report import cell, csv_text


def table(points: Sequence[Point], *, top: int = 10) -> str:
    """Markdown: the `top` points by PQ and the official script's thresholds, in percent."""
    ranked = sorted(points, key=lambda p: (math.isnan(p.pq), -p.pq, not p.default))
    shown = ranked[:top] + [p for p in ranked[top:] if p.default]
    head = ["confidence", "overlap", "stuff area", "PQ", "PQ^Th", "PQ^St", "SQ", "RQ"]
    lines = []
    for point in shown:
        mark = " (official)" if point.default else ""
        line = [f"{point.confidence:g}", f"{point.overlap:g}", f"{point.stuff_area:g}{mark}"]
        scores = point.scores.percent()
        lines.append([*line, *(cell(scores[n]) for n in ("PQ", "PQ_th", "PQ_st", "SQ", "RQ"))])
    return markdown(head, lines, left=0)


def rows(points: Iterable[Point]) -> list[dict[str, float]]:
    """One row a point, for a CSV file: thresholds, then PQ, SQ, RQ of all, things and stuff."""
    return [point.thresholds | point.scores.percent() for point in points]


def write_search(points: Sequence[Point], out: Path) -> tuple[Path, Path]:
    """Write the grid as CSV and as heat maps beside `out`."""
    sheet, maps = (out.with_name(f"{out.stem}_search{end}") for end in (".csv", ".png"))
    lines = rows(points)
    write_bytes(sheet, csv_text(lines[0], lines).encode())
    heat_maps(points, maps)
    return sheet, maps


AXES = {"confidence": "score at least", "overlap": "hidden at most", "stuff_area": "stuff area"}


def heat_maps(points: Sequence[Point], path: Path) -> None:
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
        shades = axes.imshow(
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
    figure.colorbar(shades, ax=plots, label="PQ, %")
    save_figure(figure, path)
