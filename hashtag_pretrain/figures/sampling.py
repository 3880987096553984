"""What replication does: how often each tag is seen, and how well head and tail are known."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.draw import palette, save_figure

GROUPS = 4  # of tags, from the most frequent quarter to the rarest
FEW = 60  # tags up to which each is drawn as a point
Row = Mapping[str, float | str]  # of a tag: tag, frequency, seen, AP


def draw_sampling(path: Path, report: Sequence[Row]) -> None:
    """Write a PNG of one run: the tags' frequencies, as they are and as drawn, and their AP."""
    compare_sampling(path, {"drawn": report}, {"held-out hashtags": by_group(report)}, unit="AP")


def compare_sampling(
    path: Path,
    reports: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Sequence[float]],
    *,
    unit: str = "top-1 in %",
) -> None:
    """Write a PNG: left, how often each tag is seen, by its rank; right, scores of groups of tags.

    reports: name of a run -> its tags, the same ones in each. scores: name -> a score for each
    group of tags, from the most frequent to the rarest (see `by_group`); nan is left out.
    """
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_frequencies(left, reports)
    draw_scores(right, scores, unit)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    save_figure(figure, path)


def draw_frequencies(axes: Any, reports: Mapping[str, Sequence[Row]]) -> None:
    """Shares of images with each tag over its rank among the unique images, both logarithmic."""
    lines: dict[str, list[float]] = {}
    for name, report in reports.items():
        order = rank(report)
        lines.setdefault("unique images", [float(row["frequency"]) for row in order])
        lines[name] = [float(row["seen"]) for row in order]
    for number, (name, values) in enumerate(lines.items()):
        points = [
            (k, v) for k, v in enumerate(values, 1) if v > 0
        ]  # a logarithm has no place for 0
        axes.plot(
            [k for k, _ in points],
            [v for _, v in points],
            label=name,
            color="0.55" if number == 0 else shade(number - 1),
            linewidth=1.6,
            marker="." if len(values) <= FEW else "",
        )
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="rank of the tag", ylabel="share of images with it")


def draw_scores(axes: Any, scores: Mapping[str, Sequence[float]], unit: str) -> None:
    """Bars of each group of tags, side by side for all names."""
    width = 0.8 / max(1, len(scores))
    count = max((len(values) for values in scores.values()), default=0)
    for number, (name, values) in enumerate(scores.items()):
        places = [i + (number - (len(scores) - 1) / 2) * width for i in range(len(values))]
        drawn = axes.bar(places, values, width, label=name, color=shade(number))
        words = ["" if math.isnan(value) else f"{value:.0f}" for value in values]
        axes.bar_label(drawn, words, padding=1, fontsize=8)
    axes.set_xticks(range(count), name_groups(count))
    axes.set(xlabel="tags, by frequency", ylabel=unit)
    axes.margins(y=0.25)  # for the names


def name_groups(count: int) -> list[str]:
    """What groups of tags are called, from the head to the tail."""
    if count < 2:
        return ["all"] * count
    return ["most frequent", *[""] * (count - 2), "rarest"]


def rank(report: Sequence[Row]) -> list[Row]:
    """The tags, the most frequent first; equal ones in their order."""
    return sorted(report, key=lambda row: -float(row["frequency"]))


def by_group(
    report: Sequence[Row],
    scores: Mapping[str, float] | None = None,
    groups: int = GROUPS,
) -> list[float]:
    """Mean score of groups of tags of equal size, from the most frequent to the rarest.

    scores: of each tag by its name, such as a probe's accuracy of the class; without them the AP. A
    tag without one, or with nan, does not count; a group without any is nan.
    """
    order = rank(report)
    found = []
    for group in range(min(groups, len(order))):
        first, last = (len(order) * k // min(groups, len(order)) for k in (group, group + 1))
        values = [
            float(row["AP"]) if scores is None else scores.get(str(row["tag"]), math.nan)
            for row in order[first:last]
        ]
        known = [value for value in values if not math.isnan(value)]
        found.append(sum(known) / len(known) if known else math.nan)
    return found


def shade(number: int) -> list[float]:
    """A colour as matplotlib takes it."""
    return [channel / 255 for channel in palette(number + 1)[number]]
