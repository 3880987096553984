"""Accuracy over the prior of the novel classes: what mu trades, and what was chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.draw import PALETTE, save_figure

COLUMNS = 3  # panels in a row
KINDS = ("all", "novel", "base")  # labels in the order of the palette
WORDS = {"all": "all images", "novel": "those of novel classes", "base": "those of base classes"}


@dataclass(frozen=True)
class Curve:
    """Accuracy in percent at each prior, all classes in the label space."""

    priors: Sequence[float]  # mu in 0..1
    novel: Sequence[float]
    base: Sequence[float]
    all: Sequence[float]

    def __post_init__(self) -> None:
        lengths = {len(self.priors), *(len(vars(self)[kind]) for kind in KINDS)}
        if len(lengths) > 1:
            raise ValueError(f"a curve has as many values as priors, not {sorted(lengths)}.")


def draw_prior(path: Path, curves: Mapping[int, Curve], chosen: Mapping[int, float]) -> None:
    """Write a PNG with a panel for each n: curves of all, novel and base, the chosen mu marked.

    chosen: mu of each n, which the classes for cross-validation have given; may lack some.
    """
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    columns = min(COLUMNS, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * lines + 0.4), dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    for panel, n in zip(panels.flat, sorted(curves), strict=False):
        curve = curves[n]
        for kind, color in zip(KINDS, PALETTE, strict=False):
            shade = [channel / 255 for channel in color]
            panel.plot(curve.priors, vars(curve)[kind], label=WORDS[kind], color=shade)
        title = f"n = {n}"
        if n in chosen:
            panel.axvline(chosen[n], color="0.3", linestyle=":", label="chosen on cv")
            title += f", mu = {chosen[n]:g}"
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    for panel in panels[-1]:
        panel.set_xlabel("prior mu of the novel classes")
    for line in panels:
        line[0].set_ylabel("top-5 in %")
    save_figure(figure, path)
