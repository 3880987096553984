"""What a table is said to show, and whether the runs show it.

A claim compares rows of one table in one column, or two columns of a row, seed by seed;
`common.tables` prints the verdicts.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

Figures = Mapping[str, Mapping[int, float]]  # a row's (or column's) name -> its figure by seed


@dataclass(frozen=True)
class Gap:
    """A claim: `better` is ahead of the best of the rows `than` by `at_least` in `column`.

    The difference is taken seed by seed; the claim holds if its mean reaches `at_least`.
    """

    _: KW_ONLY
    better: str
    than: Sequence[str]
    column: str
    at_least: float = 0.0
    paper: float | None = None  # the gap that the paper prints

    @property
    def names(self) -> list[str]:
        """The rows that the claim is about."""
        return [self.better, *self.than]

    def verdict(self, ours: Figures, *, digits: int, smaller_is_better: bool) -> str:
        """Whether it held, by how much, and over how many seeds."""
        sign = -1 if smaller_is_better else 1
        best = max(self.than, key=lambda name: sign * statistics.fmean(ours[name].values() or [0]))
        rivals = " and ".join(f'"{name}"' for name in self.than)
        words = f'"{self.better}" at least {self.at_least:g} {self.column} ahead of {rivals}'
        words += _in_paper(self.paper, digits)
        gaps = [sign * gap for gap in _differences(ours, self.better, best)]
        if missing := _missing(ours, self.names, gaps):
            return f"not measured: {words}; {missing}"
        mean = statistics.fmean(gaps)
        ahead = mean > 0 or self.at_least < 0  # a tie is no lead
        held = "held" if ahead and mean >= self.at_least else "did not hold"
        return f'{held}: {words}; ours: {mean_std(gaps, digits)} ahead of "{best}", n = {len(gaps)}'


@dataclass(frozen=True)
class Near:
    """A claim: `row` and `to` differ in `column` by at most `within`, or by one std of `to`."""

    _: KW_ONLY
    row: str
    to: str
    column: str
    within: float
    paper: float | None = None  # row - to in the paper

    @property
    def names(self) -> list[str]:
        """The rows that the claim is about."""
        return [self.row, self.to]

    def verdict(self, ours: Figures, *, digits: int, smaller_is_better: bool) -> str:
        """Whether it held, by how much, and over how many seeds; either direction counts."""
        words = f'"{self.row}" within {self.within:g} {self.column} or one std of "{self.to}"'
        words += _in_paper(self.paper, digits)
        gaps = _differences(ours, self.row, self.to)
        if missing := _missing(ours, self.names, gaps):
            return f"not measured: {words}; {missing}"
        values = ours[self.to].values()
        allowed = max(self.within, statistics.stdev(values) if len(values) > 1 else 0.0)
        held = "held" if abs(statistics.fmean(gaps)) <= allowed else "did not hold"
        away = f'{mean_std(gaps, digits)} away from "{self.to}"'
        return f"{held}: {words}; ours: {away}, n = {len(gaps)}"


@dataclass(frozen=True)
class Beside:
    """A claim: in `row`, `column` less `other` lies in `low`..`high`; None leaves a side open."""

    _: KW_ONLY
    row: str
    column: str
    other: str
    low: float | None = None
    high: float | None = None
    paper: float | None = None  # column - other in the paper

    @property
    def names(self) -> list[str]:
        """The rows that the claim is about."""
        return [self.row]

    def verdict(self, ours: Figures, *, digits: int) -> str:
        """Whether it held, by how much, and over how many seeds; `ours` by column."""
        words = f'"{self.row}": {self.column} less {self.other} {self._range()}'
        words += _in_paper(self.paper, digits)
        gaps = _differences(ours, self.column, self.other)
        if missing := _missing(ours, [self.column, self.other], gaps):
            return f"not measured: {words}; {missing}"
        mean = statistics.fmean(gaps)
        low, high = (-math.inf if self.low is None else self.low), self.high
        held = "held" if low <= mean <= (math.inf if high is None else high) else "did not hold"
        return f"{held}: {words}; ours: {mean_std(gaps, digits)}, n = {len(gaps)}"

    def _range(self) -> str:
        if self.low == self.high:
            return f"is {self.low:g}"
        if self.high is None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low is None else f"{self.low:g} to {self.high:g}"


def mean_std(values: Sequence[float], digits: int = 1) -> str:
    """The mean; ± the sample standard deviation where there are several values."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _in_paper(value: float | None, digits: int) -> str:
    return "" if value is None else f" (paper: {value:.{digits}f})"


def _differences(ours: Figures, first: str, second: str) -> list[float]:
    """First row minus second, for the seeds that both have."""
    seeds = sorted(set(ours[first]) & set(ours[second]))
    return [ours[first][seed] - ours[second][seed] for seed in seeds]


def _missing(ours: Figures, names: Sequence[str], gaps: Sequence[float]) -> str:
    """What stands in the way of a verdict; empty: nothing."""
    lacking = [f'"{name}"' for name in names if not ours[name]]
    if lacking or not gaps:
        return f"lacking {', '.join(lacking) or 'a common seed'}"
    return ""
