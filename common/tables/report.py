"""Read what the runs of a table measured, and write it beside the paper's figures.

A row shows the best point of its grid: the mean over seeds in the table's first column decides.
"""

from __future__ import annotations

import csv
import io
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import files
from common.files import shown
from common.tables.claims import Beside, mean_std
from common.tables.runs import Run, divergence, duration, read_result

if TYPE_CHECKING:  # tables.py imports this file
    from common.tables.command import Plan, Point, Request, Table

DASH = "–"
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


def report(table: Table, request: Request, rows: Plan, *, stem: Path) -> str:
    """The table in Markdown, also written to `stem`.md, with every run in .csv and a chart in .png.

    Without any result there is no chart.
    """
    runs = [run for points in rows for point in points for run in point.runs]
    read = {run.folder: read_result(run.folder) for run in runs}
    results = {folder: result for folder, result in read.items() if result is not None}
    choices = [choose(table, points, results) for points in rows]
    text = f"**{table.name}: {table.title}** (ours: scale {request.scale}"
    text += "".join(f", `{word}`" for word in request.extra) + ")\n\n"
    text += _markdown(*_cells(table, request, choices)) + "\n"
    if table.note:
        text += f"\n{table.note}\n"
    by_name = {row.name: choice for row, choice in zip(table.rows, choices, strict=True)}
    for claim in table.claims:
        if isinstance(claim, Beside):
            results_of = by_name[claim.row].results
            both = {name: figures(table, results_of, name) for name in (claim.column, claim.other)}
            text += f"\n- {claim.verdict(both, digits=table.digits)}"
            continue
        ours = {name: figures(table, by_name[name].results, claim.column) for name in claim.names}
        better = table.smaller_is_better
        text += f"\n- {claim.verdict(ours, digits=table.digits, smaller_is_better=better)}"
    _write(Path(f"{stem}.md"), text.rstrip() + "\n")
    _write(Path(f"{stem}.csv"), _csv(table, rows, results))
    if results:
        _chart(Path(f"{stem}.png"), table, request.scale, choices)
    return text.rstrip()


def _cells(
    table: Table, request: Request, choices: Sequence[Choice]
) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the Markdown table."""
    grid = [key for key in table.grid_of(request.scale) if key in choices[0].point.values]
    points = math.prod(len(table.grid_of(request.scale)[key]) for key in grid)
    columns = _known(table, choices)
    head = [table.name, *(f"{column} {who}" for column in columns for who in ("paper", "ours"))]
    head += ["seeds", *grid, "run", "hardware, time"]
    lines = []
    for row, choice in zip(table.rows, choices, strict=True):
        line = [row.name]
        for column in columns:
            paper = row.paper.get(column)
            line.append(DASH if paper is None else f"{paper:.{table.digits}f}")
            if column in row.memory:
                line[-1] += " [memory]"
            line.append(_ours(table, choice, column))
        done = len(choice.results)
        line.append(f"{done}" if done == request.seeds else f"{done} of {request.seeds}")
        part = f" ({choice.tried} of {points} tried)" if choice.tried < points else ""
        line += [choice.point.values[key] + part if done else DASH for key in grid]
        command = [
            word
            for word in choice.run.overrides
            if done or word.partition("=")[0] not in grid  # nothing chosen yet
        ]
        line.append(f"`{shlex.join(command)}`")
        line.append(_hardware(choice))
        lines.append(line)
    return head, lines


def _known(table: Table, choices: Sequence[Choice]) -> list[str]:
    """The columns that the paper or a run has a figure for; all, as long as no run has finished."""
    done = [choice for choice in choices if choice.results]
    return [
        column
        for column in table.columns
        if not done
        or any(column in row.paper for row in table.rows)
        or any(figures(table, choice.results, column) for choice in done)
    ]


def _ours(table: Table, choice: Choice, column: str) -> str:
    """The cell of what was measured: mean ± std over the seeds that did not diverge."""
    values = choice.healthy(table, column)
    lost = sum(bool(result.get("diverged")) for result in choice.results.values())
    if not values:
        return "diverged" if lost else DASH
    text = mean_std(values, table.digits)
    return f"{text} ({lost} of {len(choice.results)} diverged)" if lost else text


def _hardware(choice: Choice) -> str:
    """On what the shown runs ran, and how long one took on average."""
    names, times = [], []
    for run in choice.point.runs:
        if run.seed in choice.results:
            result, host = choice.results[run.seed], _host(run.folder)
            on_cpu = host.get("device") == "cpu"
            names.append(str(host["cpu"] if on_cpu else result.get("device", "unknown")))
            seconds = host.get("seconds") or result.get("seconds")  # the former counts resumed runs
            times += [seconds] if seconds else []
    if not names:
        return DASH
    time = duration(statistics.fmean(times) if times else None)
    return f"{', '.join(dict.fromkeys(names))}, {time}"


def _host(folder: Path) -> dict[str, Any]:
    """What `common.run.log` noted of the run's machine and time; empty where it left nothing."""
    return files.read_json(folder / "run.json")


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also flush in a terminal; figures to the right."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (head, *lines)]
    columns = []
    for title, *column in zip(*cells, strict=True):
        right = title.endswith((" paper", " ours")) or title == "seeds"
        width = max(3, *map(len, (title, *column)))
        rule = "-" * (width - 1) + ":" if right else ":" + "-" * (width - 1)
        texts = (title, rule, *column)
        columns.append([text.rjust(width) if right else text.ljust(width) for text in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def _csv(table: Table, rows: Plan, results: Results) -> str:
    """One line per run, every point of the grid included."""
    names = dict.fromkeys(table.columns)
    for result in results.values():
        names.update(dict.fromkeys(result["metrics"]))
    keys = list(rows[0][0].values)
    about = ["seconds", "steps", "device"]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["row", *keys, "seed", "status", *names, *about, "overrides", "folder"])
    for row, points in zip(table.rows, rows, strict=True):
        for point in points:
            for run in point.runs:
                result = results.get(run.folder, {})
                status = divergence(result) or ("finished" if result else "missing")
                metrics = [result.get("metrics", {}).get(name, "") for name in names]
                facts = [*metrics, *(result.get(key, "") for key in about)]
                command = [shlex.join(run.overrides), shown(run.folder)]
                out.writerow([row.name, *point.values.values(), run.seed, status, *facts, *command])
    return text.getvalue()


def _chart(path: Path, table: Table, scale: str, choices: Sequence[Choice]) -> None:
    """Paper and ours as points with error bars, for the rows that were measured."""
    from common import draw  # imports torch and matplotlib: only who draws waits for them

    present = [(row, c) for row, c in zip(table.rows, choices, strict=True) if c.results]
    panels: dict[str, dict[str, Sequence[draw.Interval]]] = {}
    for column in _known(table, choices):
        theirs: list[draw.Interval] = []
        measured: list[draw.Interval] = []
        for row, choice in present:
            paper = row.paper.get(column)
            values = choice.healthy(table, column)
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            theirs.append(None if paper is None else (paper, 0.0))
            measured.append((statistics.fmean(values), std) if values else None)
        panels[column] = {"paper": theirs, f"ours, scale {scale}": measured}
    names = [
        f"{row.name} (diverged)" if all(r.get("diverged") for r in c.results.values()) else row.name
        for row, c in present
    ]
    draw.intervals(path, names, panels, title=f"{table.name}: {table.title}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _write(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
