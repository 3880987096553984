"""Accuracy over the budget: curves, the area under them, paired tests of runs.

S seeds. A curve is (replies bought, accuracy in percent), as metrics.jsonl has it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from scipy.stats import ttest_rel, wilcoxon

from common import draw
from common.run import log
from common.tables.markdown import markdown
from common.tables.runs import read_result

ONLINE: Final = "online"  # accuracy of the answerer as it stands
OFFLINE: Final = "offline"  # of a fresh one, on everything that was bought
AREA: Final = "area"

Curve = tuple[list[float], list[float]]
Runs = Mapping[str, Mapping[int, str | Path]]  # folders by name of the setting and by seed


def read_curve(folder: str | Path, column: str = ONLINE) -> Curve:
    """The replies bought and the accuracy at each evaluation; the last where one was repeated."""
    points = {
        float(line["asked"]): float(line[column])
        for line in log.read(folder)
        if line.get("asked") is not None and line.get(column) is not None
    }
    xs = sorted(points)
    return xs, [points[x] for x in xs]


def area(curve: Curve) -> float:
    """The mean accuracy over the budget, by trapezoids, in percent; nan below two points."""
    xs, ys = (np.array(values) for values in curve)
    if len(xs) < 2:
        return math.nan
    return float(np.trapezoid(ys, xs) / (xs[-1] - xs[0]))


def read_figure(folder: str | Path, column: str) -> float:
    """A figure of a run: `area`, or a metric of result.json; nan where it has none."""
    if column == AREA:
        return area(read_curve(folder))
    result = read_result(Path(folder))
    value = None if result is None else result["metrics"].get(column)
    return math.nan if value is None else float(value)


class Difference(NamedTuple):
    """The mean of paired differences, its standard error and two p-values; nan where undefined."""

    mean: float
    error: float
    t_test: float
    wilcoxon: float
    pairs: int


def pair(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Ours minus theirs over the seeds that both have, two-sided.

    The t test is Student's paired one; with fewer than 6 seeds Wilcoxon's signed ranks cannot
    reach 5 %.
    """
    seeds = [seed for seed in ours if math.isfinite(ours[seed] + theirs.get(seed, math.nan))]
    a = np.array([ours[seed] for seed in seeds])
    b = np.array([theirs[seed] for seed in seeds])
    if len(seeds) < 2:
        mean = float((a - b).mean()) if seeds else math.nan
        return Difference(mean, math.nan, math.nan, math.nan, len(seeds))
    gain = a - b
    error = float(gain.std(ddof=1) / math.sqrt(len(gain)))
    # Equal differences leave the t test without a variance, all of 0 Wilcoxon without ranks.
    t_test = float(ttest_rel(a, b).pvalue) if error > 0 else math.nan
    ranks = float(wilcoxon(a, b).pvalue) if gain.any() else math.nan
    return Difference(float(gain.mean()), error, t_test, ranks, len(seeds))


def compare(
    runs: Runs,
    baseline: str,
    columns: Sequence[str] = (AREA, ONLINE, OFFLINE),
    digits: int = 1,
) -> str:
    """A Markdown table: means ± standard error of each setting, and its difference to `baseline`.

    runs: folders by setting and seed; runs of one seed are paired. A column that no run has is left
    out. ValueError where there is no such setting.
    """
    if baseline not in runs:
        raise ValueError(f"{baseline!r} is none of the settings {', '.join(runs)}.")
    lines = []
    for column in columns:
        found = {
            name: {seed: read_figure(folder, column) for seed, folder in folders.items()}
            for name, folders in runs.items()
        }
        if not any(math.isfinite(value) for each in found.values() for value in each.values()):
            continue
        for name, figures in found.items():
            cells = [column, name, _mean(list(figures.values()), digits)]
            if name == baseline:
                lines.append([*cells, "", "", ""])
            else:
                gain = pair(figures, found[baseline])
                both = _plus_minus(gain.mean, gain.error, digits, sign=True)
                lines.append([*cells, both, _p(gain.t_test), _p(gain.wilcoxon)])
    head = ["figure", "setting", "mean ± s.e. (seeds)", f"minus {baseline}", "p, t test"]
    return markdown([*head, "p, Wilcoxon"], lines, left=2)


def _mean(values: Sequence[float], digits: int) -> str:
    good = np.array([value for value in values if math.isfinite(value)])
    if not len(good):
        return "–"
    error = float(good.std(ddof=1) / math.sqrt(len(good))) if len(good) > 1 else math.nan
    return f"{_plus_minus(float(good.mean()), error, digits)} ({len(good)})"


def _plus_minus(mean: float, error: float, digits: int, *, sign: bool = False) -> str:
    if not math.isfinite(mean):
        return "–"
    text = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
    return f"{text} ± {error:.{digits}f}" if math.isfinite(error) else text


def _p(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def draw_curves(path: Path, runs: Runs, *, column: str = ONLINE) -> None:
    """Write a PNG of accuracy over the replies bought, the mean of the seeds ± standard error.

    Seeds are averaged over the budget that all of a setting have reached. Nothing is written where
    no run has a point.
    """
    from matplotlib.figure import Figure  # takes half a second to import

    curves = {
        name: [curve for folder in folders.values() if (curve := read_curve(folder, column))[0]]
        for name, folders in runs.items()
    }
    curves = {name: several for name, several in curves.items() if several}
    if not curves:
        return
    crowded = len(curves) > 4  # so many names would cover the curves
    figure = Figure(figsize=(9.5 if crowded else 7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="replies bought", ylabel="right answers in %")
    for (name, several), shade in zip(curves.items(), draw.palette(len(curves)), strict=True):
        color = [channel / 255 for channel in shade]
        xs, mean, error = average(several)
        axes.plot(xs, mean, label=name, color=color, linewidth=1.6, marker="." * (len(xs) == 1))
        if len(several) > 1:
            axes.fill_between(xs, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if crowded:
        figure.legend(loc="outside right upper", frameon=False)
    else:
        axes.legend(frameon=False)
    draw.save_figure(figure, path)


def average(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replies, mean and standard error (0 of a single curve) at all points that all curves span."""
    low = max(xs[0] for xs, _ in curves)
    high = min(xs[-1] for xs, _ in curves)
    points = sorted({x for xs, _ in curves for x in xs if low <= x <= high})
    at = np.array(points or [low])
    values = np.array([np.interp(at, xs, ys) for xs, ys in curves])  # (S, points)
    S = len(values)
    error = values.std(0, ddof=1) / math.sqrt(S) if S > 1 else np.zeros(len(at))
    return at, values.mean(0), error
