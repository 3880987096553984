"""Means with 95 % intervals over draws of the examples and seeds of the training.

S seeds, D draws. Every method sees the same draws, so a gain is the mean of paired differences.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # quantiles; scipy.stats takes a second to import


class Interval(NamedTuple):
    """mean ± half, 95 %; half is nan for a single value."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if math.isnan(self.half) else f"{self.mean:.1f} ± {self.half:.1f}"


def find_interval(values: np.ndarray) -> Interval:
    """The mean of values (D,) or (S, D) and Student's interval for it.

    value = mean + seed effect + draw effect + rest: both seeds and draws are samples, so that the
    interval speaks of new seeds and new draws. With one seed it speaks of that training run, with
    one draw of those examples. The mean's variance is (MS_seed + MS_draw - MS_rest) / SD, from
    the mean squares of a two-way layout, but at least that of either effect alone; the degrees of
    freedom are Satterthwaite's.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    S, D = values.shape
    mean = float(values.mean())
    if S == 1 or D == 1:
        if values.size == 1:
            return Interval(mean, math.nan)
        error = values.std(ddof=1) / math.sqrt(values.size)
        return Interval(mean, float(stdtrit(values.size - 1, 0.975) * error))
    seeds, draws = values.mean(1), values.mean(0)
    rest = values - seeds[:, None] - draws + mean
    squares = np.array([D * seeds.var(ddof=1), S * draws.var(ddof=1), (rest**2).sum()])
    degrees = np.array([S - 1, D - 1, (S - 1) * (D - 1)])
    squares[2] /= degrees[2]
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total == 0:
        return Interval(mean, 0.0)
    freedom = total**2 / (squares**2 / degrees).sum()
    return Interval(mean, float(stdtrit(max(freedom, 1), 0.975) * math.sqrt(total / (S * D))))


def find_gain(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """The interval of ours - theirs, each (D,) or (S, D) over the same draws in the same order.

    A method without training has one row, which stands against every seed of the other.
    """
    ours, theirs = np.atleast_2d(ours), np.atleast_2d(theirs)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"a gain over {ours.shape[1]} and {theirs.shape[1]} draws cannot be paired: test both "
            "with the same test.draws."
        )
    if 1 not in (len(ours), len(theirs)) and len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} seeds against {len(theirs)}: train both methods with the same seeds."
        )
    return find_interval(ours - theirs)
