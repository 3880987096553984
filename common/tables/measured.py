"""What the runs of a row measured, by seed."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .plan import Plan
from .runs import Run, read_result
from .table import Row, Table


@dataclass(frozen=True)
class Measured:
    """A row of a table, its runs, and the results of those that have finished, by seed."""

    row: Row
    runs: Sequence[Run]
    results: Mapping[int, dict[str, Any]]
    diverged: float  # what a diverged run counts as

    @property
    def lost(self) -> int:
        """How many of the runs diverged."""
        return sum(bool(result.get("diverged")) for result in self.results.values())

    def figures(self, column: str) -> dict[int, float]:
        """The column's figure by seed, `diverged` for a diverged run; those without it are out."""
        values = {
            seed: self.diverged if result.get("diverged") else result["metrics"].get(column)
            for seed, result in self.results.items()
        }
        return {seed: value for seed, value in values.items() if _is_number(value)}

    def healthy(self, column: str) -> list[float]:
        """The column's figures of the runs that did not diverge."""
        figures = self.figures(column)
        return [figures[s] for s in figures if not self.results[s].get("diverged")]


def measure(table: Table, plan: Plan) -> list[Measured]:
    """Read the results of all rows."""
    rows = []
    for row, runs in zip(table.rows, plan, strict=True):
        results = {run.seed: read_result(run.folder) for run in runs}
        finished = {seed: result for seed, result in results.items() if result is not None}
        rows.append(Measured(row, runs, finished, table.diverged))
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
