"""What G adds: gains over the baseline and over the best control, paired over the same draws."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.draw import palette, save_figure
from common.tables.markdown import markdown

from ..protocol.intervals import Interval, find_gain, find_interval

DRAWS = "draws.csv"  # of a run: phase, n, draw and accuracies in percent, a line for each draw
METRICS = {f"{kind}{top}": f"{kind}, top-{top}" for top in (5, 1) for kind in ("novel", "all")}
Scores = dict[int, np.ndarray]  # n -> (seeds, draws), percent
Cells = dict[int, tuple[Interval, str]]  # n -> the gain, and over which row where that varies


@dataclass(frozen=True)
class Comparison:
    """A gain in points of one metric, for each n; `gains` says over which row."""

    name: str
    metric: str
    cells: Cells


def gains(
    folders: Mapping[str, Sequence[Path]],
    baseline: str,
    controls: Sequence[str],
    *,
    learned: str = "",
    picture: Path | None = None,
    top: int = 5,
) -> str:
    """Markdown: each row's gain over the baseline, and the learned G's over its best control.

    folders: name of a row -> its runs, one per seed in the same order; a row without training may
    have one. baseline, controls, learned: names of rows; with `learned`, its gain over the control
    of the highest mean at each n is added. Being chosen on the test draws, that control is an
    upper bound of what the controls reach. picture: a PNG of the gains to be written. top: 5 or 1.
    """
    for name in (baseline, *controls, *filter(None, [learned])):
        if name not in folders:
            raise ValueError(f"there is no row {name!r}: choose of {', '.join(folders)}.")
    parts, compared = [], []
    for metric in (f"novel{top}", f"all{top}"):
        words = METRICS[metric]
        rows = {name: read_scores(runs, metric) for name, runs in folders.items()}
        ns = require_same_draws(rows)
        lines = [Comparison(name, metric, over(rows, name, [baseline])) for name in rows]
        lines = [line for line in lines if line.name != baseline]
        if learned and controls:
            name = f"{learned} over the best control"
            lines.append(Comparison(name, metric, over(rows, learned, controls)))
        head = [words, *(f"n = {n}" for n in ns)]
        first = [baseline, *(str(find_interval(rows[baseline][n])) for n in ns)]
        body = [[line.name, *(write_cell(*line.cells[n]) for n in ns)] for line in lines]
        parts.append(markdown(head, [first, *body]))
        compared += lines
    sizes = f"{max(map(len, folders.values()))} seeds x {rows[baseline][ns[0]].shape[1]} draws"
    parts.append(
        f"{baseline}: accuracy in percent. Other rows: points gained over it, paired over "
        f"{sizes}, with 95 % intervals over both."
    )
    if learned and controls:
        parts.append(conclude([line for line in compared if "best control" in line.name]))
    if picture:
        draw_gains(picture, compared)
    return "\n\n".join(parts)


def read_scores(runs: Sequence[Path], metric: str) -> Scores:
    """The scores of the test draws of runs that differ in their seeds."""
    read = [read_draws(Path(run) / DRAWS, metric) for run in runs]
    if not read:
        raise ValueError("a row has no runs: give the folder of at least one.")
    for run, scores in zip(runs, read, strict=True):
        if {n: len(row) for n, row in scores.items()} != {n: len(r) for n, r in read[0].items()}:
            raise ValueError(f"{run} has other draws than {runs[0]}: test both with the same test.")
    return {n: np.array([scores[n] for scores in read]) for n in read[0]}


def read_draws(path: Path, metric: str) -> dict[int, list[float]]:
    """The metric at each draw of each n, in order; ValueError names a file that lacks it."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: let that run end, which writes it.")
    found: dict[int, dict[int, float]] = {}
    with path.open(newline="") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            try:
                n, draw, value = int(line["n"]), int(line["draw"]), float(line[metric])
                phase = line["phase"]
            except (KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{path}, line {number}: it lacks phase, n, draw or {metric}: evaluate the run "
                    "again."
                ) from None
            if phase == "test" and draw in found.setdefault(n, {}):
                raise ValueError(f"{path}, line {number}: draw {draw} of n = {n} is there twice.")
            if phase == "test":
                found[n][draw] = value
    if not found:
        raise ValueError(f"{path} has no draw of the phase test: evaluate the run.")
    return {n: [found[n][draw] for draw in sorted(found[n])] for n in sorted(found)}


def require_same_draws(rows: Mapping[str, Scores]) -> list[int]:
    """The values of n that all rows have; ValueError where they, or the draws, differ."""
    first, *others = rows
    for name in others:
        shapes = [{n: row.shape[1] for n, row in rows[each].items()} for each in (first, name)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name!r} has draws {shapes[1]}, {first!r} {shapes[0]} (n: draws): test all with "
                "the same test.shots and test.draws."
            )
    return list(rows[first])


def over(rows: Mapping[str, Scores], name: str, others: Sequence[str]) -> Cells:
    """The gain of a row over the best of others at each n, and the name of that where several."""
    cells = {}
    for n, ours in rows[name].items():
        best = max(others, key=lambda other: rows[other][n].mean())
        gain = find_gain(ours, rows[best][n])
        cells[n] = (gain, best if len(others) > 1 else "")
    return cells


def write_cell(gain: Interval, best: str) -> str:
    """+1.2 ± 0.3, and the row that it is a gain over."""
    sign = "+" if gain.mean >= 0 else ""
    return f"{sign}{gain}" + f" ({best})" * bool(best)


def conclude(lines: Sequence[Comparison]) -> str:
    """One sentence for each metric: where the learned G is ahead of the best control."""
    sentences = []
    for line in lines:
        ahead = [n for n, (gain, _) in line.cells.items() if gain.mean - gain.half > 0]
        behind = [n for n, (gain, _) in line.cells.items() if gain.mean + gain.half < 0]
        found = [
            f"{word} at n = {', '.join(map(str, ns))}"
            for word, ns in (("ahead", ahead), ("behind", behind))
            if ns
        ]
        found = found or ["neither ahead nor behind beyond its interval at any n"]
        sentences.append(f"{METRICS[line.metric]}: {line.name}: {' and '.join(found)}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def draw_gains(path: Path, lines: Sequence[Comparison]) -> None:
    """Write a PNG: a panel for each metric, the gain of each row over n with its interval."""
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    names = list(dict.fromkeys(line.name for line in lines))
    colors = dict(zip(names, palette(len(names)), strict=True))
    figure = Figure(figsize=(9, 4.2), dpi=120, layout="constrained")
    metrics = list(dict.fromkeys(line.metric for line in lines))
    panels = figure.subplots(1, len(metrics), sharey=True)
    for panel, metric in zip(panels, metrics, strict=True):
        words = METRICS[metric]
        shown = [line for line in lines if line.metric == metric]
        for number, line in enumerate(shown):
            shift = 0.5 * ((number + 0.5) / len(shown) - 0.5)  # so that no bar hides another
            found = [gain for gain, _ in line.cells.values()]
            halves = [0 if math.isnan(gain.half) else gain.half for gain in found]
            panel.errorbar(
                [place + shift for place in range(len(found))],
                [gain.mean for gain in found],
                yerr=halves,
                label=line.name,
                color=[channel / 255 for channel in colors[line.name]],
                marker="o",
                markersize=4,
                linewidth=1.2,
                capsize=2,
            )
        panel.set_xticks(range(len(shown[0].cells)), list(map(str, shown[0].cells)))
        panel.set(title=words, xlabel="n, examples of a novel class")
        panel.axhline(0, color="0.3", linewidth=0.8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points gained")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)
