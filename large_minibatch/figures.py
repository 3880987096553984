"""Draw the paper's figures: 1 to 5 from finished runs, 7 and 8 from a model of the communication.

    python figures.py fig1 runs=outputs/tables/mini             # error against minibatch
    python figures.py fig2 runs=outputs/tables/mini             # warm-ups: training error
    python figures.py fig3 runs=outputs/tables/mini             # each minibatch and the reference
    python figures.py fig4 runs=outputs/tables/mini kn=256      # training and validation error
    python figures.py fig5 runs=outputs/tables/mini             # several rates at the reference
    python figures.py fig7 fig8 out=outputs/figures             # predicted, not measured

After `runs=` come folders of runs or above them, also several. Runs whose settings differ in the
seed alone are averaged. Of all runs a figure takes those that differ in nothing but what it shows;
where several sets do, the largest, then the one that the other runs are variations of. Beside Figs.
2-5 stands the distance of the training curves: the mean absolute difference after the warm-up.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.config import run as run_command
from common.draw import palette, save_figure
from large_minibatch import recipe
from large_minibatch.analysis import communication
from large_minibatch.analysis.finished import Group, collect, family, reference
from large_minibatch.tables import ERRORS

WARMUPS = {"none": "no warm-up", "constant": "constant warm-up", "gradual": "gradual warm-up"}
LARGE = {256: 8192, 32: 512}  # by reference minibatch: the large one of Figs. 2 and 4
GPUS = (8, 16, 32, 64, 128, 256, 352)  # Figs. 7 and 8
SHADES = [[channel / 255 for channel in color] for color in palette(12)]


@dataclass
class Panel:
    """Curves to draw into one plot, each with its label; dashed ones are validation errors."""

    title: str
    lines: list[tuple[str, Group, str]]  # label, runs, "train_error" or "val_error"


def fig1(groups: Sequence[Group], kn: int | None) -> Figure:
    """Error against minibatch; the bars are two standard deviations, as in the paper."""
    chosen = family(groups, {"batch_size"}, "fig1")
    figure, axes = _plot("minibatch kn", "validation error, %")
    points = [(group.kn, *recipe.mean_std(group.errors()), len(group.runs)) for group in chosen]
    for size, mean, std, runs in points:
        spread = "" if math.isnan(std) else f" ± {std:.2f}"
        print(f"kn = {_short(size)}: {mean:.2f}{spread} %, {runs} {'run' if runs == 1 else 'runs'}")
    places = [size for size, *_ in points]
    means = [mean for _, mean, *_ in points]
    bars = [0.0 if math.isnan(std) else 2 * std for _, _, std, _ in points]
    axes.errorbar(places, means, bars, marker="o", capsize=3, color=SHADES[1], label="ours")
    if chosen[0].settings["rate.base_batch"] == 256:  # at the paper's scale
        theirs = [(size, error) for size, error in ERRORS.items() if error is not None]
        axes.plot(*zip(*theirs, strict=True), "s--", color=SHADES[0], label="paper")
        places += [size for size, _ in theirs]
    axes.set_xscale("log", base=2)
    ticks = sorted(set(places))
    axes.set_xticks(ticks, [_short(size) for size in ticks])
    axes.legend(frameon=False)
    return figure


def fig2(groups: Sequence[Group], kn: int | None) -> Figure:
    """Training error of a large minibatch under each warm-up, beside the reference."""
    chosen = family(groups, {"batch_size", "rate.warmup"}, "fig2")
    base = reference(chosen, "fig2")
    large = kn or LARGE.get(base.kn) or max(group.kn for group in chosen)
    of = {g.settings["rate.warmup"]: g for g in chosen if g.kn == large}
    panels = [
        Panel(title, [_line(base), _line(of[warmup])])
        for warmup, title in WARMUPS.items()
        if warmup in of
    ]
    if not panels:
        raise ValueError(f"fig2: there is no run with kn = {large}: name another with kn=.")
    return draw(panels)


def fig3(groups: Sequence[Group], kn: int | None) -> Figure:
    """Training error of each minibatch beside the reference."""
    chosen = family(groups, {"batch_size"}, "fig3")
    base = reference(chosen, "fig3")
    others = [group for group in chosen if group is not base and kn in (None, group.kn)]
    return draw([Panel(f"kn = {_short(g.kn)}", [_line(base), _line(g)]) for g in others])


def fig4(groups: Sequence[Group], kn: int | None) -> Figure:
    """Training and validation error of a large minibatch and of the reference."""
    chosen = family(groups, {"batch_size"}, "fig4")
    base = reference(chosen, "fig4")
    wanted = kn or LARGE.get(base.kn)
    large = next((g for g in chosen if g.kn == wanted and g is not base), None)
    if large is None:
        sizes = ", ".join(str(group.kn) for group in chosen if group is not base)
        raise ValueError(f"fig4: there is no run with kn = {wanted}: give kn= one of {sizes}.")
    validation = [_line(group, "val_error") for group in (base, large)]
    return draw([Panel("training and validation", [_line(base), _line(large), *validation])])


def fig5(groups: Sequence[Group], kn: int | None) -> Figure:
    """Training error at the reference minibatch, or at `kn`, with several rates."""
    at = [g for g in groups if (g.reference if kn is None else g.kn == kn)]
    chosen = family(at, {"rate.base", "rate.start"}, "fig5")
    chosen.sort(key=lambda group: group.settings["rate.base"])
    lines = [(f"eta = {g.settings['rate.base']:g}", g, "train_error") for g in chosen]
    return draw([Panel(f"kn = {_short(chosen[0].kn)}", lines)])


def fig7() -> Figure:
    """Seconds of an iteration, and minutes of an epoch, against the minibatch: a model."""
    layers = _layers()
    work = communication.Work(jitter=communication.jitter_for(layers))
    figure, left = _plot("minibatch kn, 32 a GPU", "seconds an iteration (model)")
    right = left.twinx()
    right.set(ylabel="minutes an epoch (model)", yscale="log")
    plain = [communication.predict(gpus, layers) for gpus in GPUS]
    waiting = [communication.predict(gpus, layers, work=work) for gpus in GPUS]
    sizes = [point.images for point in plain]
    left.plot(sizes, [p.seconds for p in plain], "o:", color=SHADES[1], label="communication")
    left.plot(
        sizes,
        [p.seconds for p in waiting],
        "o-",
        color=SHADES[1],
        label="and waiting, fitted to the paper's + 12 %",
    )
    right.plot(sizes, [p.epoch() / 60 for p in waiting], "s-", color=SHADES[0], label="an epoch")
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [_short(size) for size in sizes])
    minutes = (0.5, 1, 2, 5, 10, 20)
    right.set_yticks(minutes, [f"{value:g}" for value in minutes])
    left.set_ylim(bottom=0)
    handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    left.legend(handles=handles, frameon=False, loc="lower left")
    for p in waiting:
        print(
            f"kn = {p.images}: {p.seconds:.3f} s an iteration, {p.epoch():.0f} s an epoch (model)"
        )
    return figure


def fig8() -> Figure:
    """Images a second against GPUs: a model."""
    layers = _layers()
    work = communication.Work(jitter=communication.jitter_for(layers))
    figure, axes = _plot("GPUs", "images a second (model)")
    variants: dict[str, dict[str, Any]] = {
        "halving/doubling": {},
        "ring": {"algorithm": "ring"},
        "halving/doubling after backprop": {"overlap": False},
    }
    first = communication.predict(GPUS[0], layers, work=work)
    for shade, (label, options) in zip(SHADES[1:], variants.items(), strict=False):
        points = [communication.predict(gpus, layers, work=work, **options) for gpus in GPUS]
        axes.plot(GPUS, [p.images_per_second for p in points], "o-", color=shade, label=label)
        share = points[-1].efficiency(first)
        print(f"{label}: {share:.0%} of ideal on {GPUS[-1]} GPUs (model)")
    print("The waiting is fitted to the paper's + 12 %, so the first share is no finding.")
    ideal = [first.images_per_second * gpus / GPUS[0] for gpus in GPUS]
    axes.plot(GPUS, ideal, ":", color="black", label="ideal")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    rates = [1000 * 2**power for power in range(6)]
    axes.set_yticks(rates, [f"{rate // 1000}k" for rate in rates])
    axes.legend(frameon=False)
    return figure


def _layers() -> list[communication.Gradient]:
    return communication.by_work(torchvision.models.resnet50(), 224)


def _line(group: Group, key: str = "train_error") -> tuple[str, Group, str]:
    rate = group.settings["rate.base"] * group.kn / group.settings["rate.base_batch"]
    rate = rate if group.settings["rate.rule"] == "linear" else group.settings["rate.base"]
    word = {"train_error": "", "val_error": " val"}[key]
    return f"kn = {_short(group.kn)}, eta = {rate:g}{word}", group, key


def _short(size: int) -> str:
    """8192 as 8k, as the paper writes it."""
    return f"{size // 1024}k" if size % 1024 == 0 else str(size)


def draw(panels: Sequence[Panel]) -> Figure:
    """The panels side by side, three in a row; bands are one standard deviation of the seeds."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(6.0, 4 * columns), 3.6 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    plots = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes in plots[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(plots, panels, strict=False):
        training = [group for _, group, key in panel.lines if key == "train_error"]
        apart = [training[0].distance(group) for group in training[1:]]
        words = ", ".join(f"{value:.2f}" for value in apart)
        print(f"{panel.title}: curve distance to {panel.lines[0][0]}: {words} points")
        _style(axes, "epoch", "error, %")
        axes.set_title(f"{panel.title}\ncurve distance {words} points", fontsize=10)
        shades = {id(group): shade for group, shade in zip(training, SHADES[1:], strict=False)}
        for label, group, key in panel.lines:
            means, stds = group.mean(key)
            epochs, middle = list(means), list(means.values())
            shade, dash = shades[id(group)], "-" if key == "train_error" else "--"
            axes.plot(epochs, middle, dash, color=shade, label=label, linewidth=1.6)
            low = [m - s for m, s in zip(middle, stds.values(), strict=True)]
            high = [m + s for m, s in zip(middle, stds.values(), strict=True)]
            axes.fill_between(epochs, low, high, color=shade, alpha=0.2, linewidth=0)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _plot(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    _style(axes, xlabel, ylabel)
    return figure, axes


def _style(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines["top"].set_visible(False)


MEASURED: dict[str, Callable[[Sequence[Group], int | None], Figure]] = {
    figure.__name__: figure for figure in (fig1, fig2, fig3, fig4, fig5)
}
PREDICTED: dict[str, Callable[[], Figure]] = {"fig7": fig7, "fig8": fig8}
USAGE = "usage: python figures.py fig1 [fig2 ...] [runs=FOLDER ...] [kn=256] [out=FOLDER]"


@dataclass
class Request:
    """What the command line asks for."""

    names: list[str]
    folders: list[Path]
    kn: int | None = None
    out: Path = Path("outputs/figures")


def parse(words: Sequence[str]) -> Request:
    """The request in the words of a command line; folders may hold `=` and commas."""
    request = Request([], [])
    for word in words:
        key, _, value = word.partition("=")
        if word in MEASURED | PREDICTED:
            request.names.append(word)
        elif key == "kn":
            if not value.isdecimal():
                raise ValueError(f"{word}: give the minibatch as a number, such as kn=256.")
            request.kn = int(value)
        elif key == "out" and value:
            request.out = Path(value)
        elif (key == "runs" and value) or (request.folders and Path(word).is_dir()):
            request.folders.append(Path(value if key == "runs" else word))
        else:
            raise ValueError(f"{word} is neither a figure, an option nor a folder; {USAGE}")
    if not request.names or (set(request.names) & MEASURED.keys() and not request.folders):
        raise ValueError(USAGE)
    return request


def main() -> None:
    """Draw what the command line asks for."""
    request = parse(sys.argv[1:])
    groups = collect(request.folders)
    for name in request.names:
        path = request.out / f"{name}.png"
        figure = MEASURED[name](groups, request.kn) if name in MEASURED else PREDICTED[name]()
        save_figure(figure, path)
        print(path)


if __name__ == "__main__":
    run_command(main)
