"""What was measured for a row: the best point of its grid, and that point's figures by seed.

The mean over seeds in the table's first column decides which point is the best.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import Point
from .runs import Run
from .table import Table

Results = dict[Path, dict[str, Any]]  # result.json by folder


@dataclass(frozen=True)
class Choice:
    """What stands for a row: its best point, that point's results by seed, how many were tried."""

    point: Point
    results: dict[int, dict[str, Any]]
    tried: int  # points of the grid with a result

    @property
    def run(self) -> Run:
        """The first of the runs that the row shows, or would show."""
        return next(
            (run for run in self.point.runs if run.seed in self.results), self.point.runs[0]
        )

    def healthy(self, table: Table, column: str) -> list[float]:
        """The column's figures of the runs that did not diverge."""
        kept = {s: result for s, result in self.results.items() if not result.get("diverged")}
        return list(figures(table, kept, column).values())


def choose(table: Table, points: Sequence[Point], results: Results) -> Choice:
    """The point with the best mean over seeds in the first column, of those with most seeds run."""
    found = [
        {run.seed: results[run.folder] for run in point.runs if run.folder in results}
        for point in points
    ]
    most = max(len(seeds) for seeds in found)
    sign = -1 if table.smaller_is_better else 1

    def rank(number: int) -> float:
        values = figures(table, found[number], table.columns[0]).values()
        return sign * statistics.fmean(values) if values else -math.inf

    best = max((i for i, seeds in enumerate(found) if len(seeds) == most), key=rank)
    return Choice(points[best], found[best], sum(bool(seeds) for seeds in found))


def figures(table: Table, results: dict[int, dict[str, Any]], column: str) -> dict[int, float]:
    """The column's figure by seed: `table.diverged` for a diverged run, none for a missing one."""
    values = {
        seed: table.diverged if result.get("diverged") else result["metrics"].get(column)
        for seed, result in results.items()
    }
    return {seed: value for seed, value in values.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
