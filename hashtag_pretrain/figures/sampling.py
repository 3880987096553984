"""What replication does: how often each tag is seen, and how well head and tail are known."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.draw import palette, save_figure

GROUPS = 4  # of tags, from the most frequent quarter to the rarest
FEW = 60  # tags up to which each is drawn as a point
Row = Mapping[str, float | str]  # of a tag: tag, frequency, seen, AP
Colors = Mapping[str, Sequence[float]]  # red, green, blue of a name, 0..1


def draw_sampling(path: Path, report: Sequence[Row]) -> None:
    """Write a PNG of one run: the tags' frequencies, as they are and as drawn, and their AP."""
    unit = "AP on held-out hashtags"
    compare_sampling(path, {"as drawn": report}, {"as drawn": by_group(report)}, unit=unit)


def compare_sampling(
    path: Path,
    reports: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Sequence[float]],
    *,
    unit: str = "top-1 in %",
) -> None:
    """Write a PNG: left, how often each tag is seen, by its rank; right, scores of groups of tags.

    reports: name of a run -> its tags, the same ones in each. scores: name -> a score for each
    group of tags, from the most frequent to the rarest (see `by_group`); nan is left out. A name
    has the same colour on both sides.
    """
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys([*scores, *reports]))
    colors = {
        name: [channel / 255 for channel in color]
        for name, color in zip(names, palette(len(names)), strict=True)
    }
    draw_frequencies(left, reports, colors)
    draw_scores(right, scores, colors)
    right.set(ylabel=unit)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    if len(scores) > 1:
        right.legend(
            frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1)
        )  # above the bars
    save_figure(figure, path)


def draw_frequencies(axes: Any, reports: Mapping[str, Sequence[Row]], colors: Colors) -> None:
    """Shares of images with each tag over its rank among the unique images, both logarithmic."""
    for name, report in reports.items():
        values = [float(row["seen"]) for row in rank(report)]
        marker = "." if len(values) <= FEW else ""
        axes.plot(*points_of(values), label=name, color=colors[name], marker=marker)
    for report in list(reports.values())[:1]:  # above the others, as natural sampling is the same
        values = [float(row["frequency"]) for row in rank(report)]
        axes.plot(*points_of(values), label="unique images", color="0.2", linestyle=":")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="rank of the tag", ylabel="share of images with it")


def points_of(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Ranks from 1 and values; zeros are left out, as a logarithm has no place for them."""
    ranks = [place for place, value in enumerate(values, 1) if value > 0]
    return ranks, [value for value in values if value > 0]


def draw_scores(axes: Any, scores: Mapping[str, Sequence[float]], colors: Colors) -> None:
    """Bars of each group of tags, side by side for all names."""
    width = 0.8 / max(1, len(scores))
    count = max((len(values) for values in scores.values()), default=0)
    for number, (name, values) in enumerate(scores.items()):
        places = [i + (number - (len(scores) - 1) / 2) * width for i in range(len(values))]
        drawn = axes.bar(places, values, width, label=name, color=colors[name])
        words = ["" if math.isnan(value) else f"{value:.0f}" for value in values]
        axes.bar_label(drawn, words, padding=1, fontsize=8)
    axes.set_xticks(range(count), name_groups(count))
    axes.set(xlabel="tags, by frequency")
    axes.margins(y=0.1)  # for the figures


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
