"""Errors over the epochs of runs, and how far two training curves lie apart.

A curve maps the epochs done to an error in percent. The paper judges a large minibatch by eye: its
training curve "closely matches" the small one's once the warm-up is over (Sec. 5.2, Figs. 2-4),
while curves that differ may still end alike (Fig. 5). `distance` is a number for it.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Curve = dict[float, float]  # epochs done -> percent


def curve(lines: Iterable[Mapping[str, Any]], key: str) -> Curve:
    """The curve of `key` ("train_error", "val_error") in the lines of a metrics.jsonl.

    Lines without it are passed over; of two lines of one epoch the later counts.
    """
    found = {
        float(line["epoch"]): float(line[key])
        for line in lines
        if line.get("epoch") is not None and line.get(key) is not None
    }
    return dict(sorted(found.items()))


def mean(curves: Sequence[Curve]) -> tuple[Curve, Curve]:
    """Mean and standard deviation (n - 1; 0 for a single run) at the epochs that all runs have."""
    if not curves:
        raise ValueError("a mean needs one curve or more")
    epochs = sorted(set(curves[0]).intersection(*curves[1:]))
    values = {epoch: [run[epoch] for run in curves] for epoch in epochs}
    means = {epoch: statistics.fmean(v) for epoch, v in values.items()}
    stds = {epoch: statistics.stdev(v) if len(v) > 1 else 0.0 for epoch, v in values.items()}
    return means, stds


def distance(a: Curve, b: Curve, *, after: float) -> float:
    """Mean absolute difference of two curves in points, over the epochs > `after` that both have.

    `after`: epochs of the warm-up, where the curves differ by design. Raises ValueError where no
    epoch is left.
    """
    epochs = [epoch for epoch in a if epoch in b and epoch > after]
    if not epochs:
        raise ValueError(
            f"the curves, of {len(a)} and {len(b)} epochs, have none in common after epoch "
            f"{after:g}: compare runs that were evaluated in the same epochs"
        )
    return statistics.fmean(abs(a[epoch] - b[epoch]) for epoch in epochs)
