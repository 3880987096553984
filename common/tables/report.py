"""Read what the runs of a table measured, and write it beside the paper's figures."""

import csv
import io
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..files import relative
from .claims import Beside, mean_std
from .markdown import markdown
from .measured import Measured, measure
from .plan import Plan, Request
from .runs import divergence, duration
from .table import Table

DASH = "–"
RECALLED = "†"
WIDTH = 110  # characters in a line of a table; what is wider is printed in blocks of columns


def report(table: Table, request: Request, plan: Plan, *, stem: Path) -> str:
    """The table in Markdown, also written to `stem`.md, with every run in .csv and a chart in .png.

    Without any result there is no chart.
    """
    rows = measure(table, plan)
    scale = ", ".join([f"scale {request.scale}", *(f"`{word}`" for word in request.extra)])
    parts = [
        f"**{table.name}: {table.title}** (ours: {scale})",
        _figures(table, rows),
        _legend(table, request),
        table.note,
        _verdicts(table, rows),
        _runs(request, rows),
    ]
    text = "\n\n".join(part for part in parts if part)
    stem.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(Path(f"{stem}.md"), text + "\n")
    files.write_text(Path(f"{stem}.csv"), _csv(table, rows))
    if any(row.results for row in rows):
        _chart(Path(f"{stem}.png"), table, request.scale, rows)
    return text


def _figures(table: Table, rows: Sequence[Measured]) -> str:
    """The rows in Markdown tables no wider than `WIDTH`, over which the columns are shared out."""
    heads, names = _columns(table, rows), [row.row.name for row in rows]
    lines = [[_cell(table, row, column) for column in heads] for row in rows]
    if _lies_on_its_side(names, heads):
        heads, names, lines = names, heads, [list(line) for line in zip(*lines, strict=True)]
    named, text = list(zip(names, lines, strict=True)), ""
    for share in range(len(heads), 0, -1):
        parts = [slice(start, start + share) for start in range(0, len(heads), share)]
        text = "\n\n".join(
            markdown([table.name, *heads[part]], [[name, *line[part]] for name, line in named])
            for part in parts
        )
        if max(map(len, text.splitlines())) <= WIDTH:
            break
    return text


def _lies_on_its_side(rows: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether there are so few rows that the metrics read better from top to bottom."""
    return len(rows) < 3 <= len(columns)


def _columns(table: Table, rows: Sequence[Measured]) -> list[str]:
    """The columns that the paper or a run has a figure for; all, as long as no run has finished."""
    done = [row for row in rows if row.results]
    return [
        column
        for column in table.columns
        if not done or _in_paper(table, column) or any(row.figures(column) for row in done)
    ]


def _in_paper(table: Table, column: str) -> bool:
    return any(column in row.paper for row in table.rows)


def _cell(table: Table, measured: Measured, column: str) -> str:
    """`paper → ours`; ours alone in a column that the paper does not have."""
    row, ours = measured.row, _ours(measured, column, table.digits)
    if not _in_paper(table, column):
        return ours
    paper = DASH
    if column in row.paper:
        paper = f"{row.paper[column]:.{table.digits}f}"
        paper += RECALLED if column in row.memory else ""
    return f"{paper} → {ours}" if (paper, ours) != (DASH, DASH) else DASH


def _ours(row: Measured, column: str, digits: int) -> str:
    """What was measured: mean ± std over the seeds that did not diverge."""
    values = row.healthy(column)
    if not values:
        return "diverged" if row.lost else DASH
    text = mean_std(values, digits)
    return f"{text} ({row.lost} of {len(row.results)} diverged)" if row.lost else text


def _legend(table: Table, request: Request) -> str:
    """What a cell says."""
    text = "paper → ours" if any(row.paper for row in table.rows) else "ours"
    if len(request.seeds) > 1:
        first, *_, last = request.seeds
        which = f"the seeds {first} to {last}" if first else f"{last + 1} seeds"
        text += f", mean ± std over {which}"
    if any(row.memory for row in table.rows):
        text += f"; {RECALLED} recalled, not checked against the paper"
    return text + "."


def _verdicts(table: Table, rows: Sequence[Measured]) -> str:
    """The table's claims, one a line."""
    named = {row.row.name: row for row in rows}
    lines = []
    for claim in table.claims:
        if isinstance(claim, Beside):
            columns = (claim.column, claim.other)
            both = {column: named[claim.row].figures(column) for column in columns}
            lines.append(claim.verdict(both, digits=table.digits))
            continue
        ours = {name: named[name].figures(claim.column) for name in claim.names}
        better = table.smaller_is_better
        lines.append(claim.verdict(ours, digits=table.digits, smaller_is_better=better))
    return "\n".join(f"- {line}" for line in lines)


def _runs(request: Request, rows: Sequence[Measured]) -> str:
    """How the rows were run: what they have in common, then what each has of its own."""
    hosts = [_host(row) for row in rows]
    machines = {machine for machine, _ in hosts if machine}
    times = [seconds for _, seconds in hosts if seconds is not None]
    seeds = [_seeds(len(row.results), len(request.seeds)) for row in rows]
    overrides = [row.runs[0].overrides for row in rows]
    shared = [word for word in overrides[0] if all(word in words for words in overrides)]
    common = []
    if len(set(seeds)) == 1:
        common.append(f"{seeds[0]} each" if len(rows) > 1 else seeds[0])
    if len(machines) == 1:
        ends = dict.fromkeys(duration(end) for end in (min(times), max(times))) if times else {}
        common.append(", ".join(machines) + (f", {' to '.join(ends)} a run" if ends else ""))
    if shared:
        common.append(f"every run with `{shlex.join(shared)}`")
    lines = ["; ".join(common) + "." if common else "Runs:"]
    for row, number, (machine, seconds), words in zip(rows, seeds, hosts, overrides, strict=True):
        own = [number] if len(set(seeds)) > 1 else []
        own += [f"{machine}, {duration(seconds)}"] if machine and len(machines) > 1 else []
        name = f"{row.row.name} ({', '.join(own)})" if own else row.row.name
        rest = shlex.join(word for word in words if word not in shared)
        lines.append(f"- {name}: " + (f"`{rest}`" if rest else DASH))
    return "\n".join(lines if len(rows) > 1 else lines[:1])


def _seeds(done: int, asked: int) -> str:
    number = f"{done}" if done == asked else f"{done} of {asked}"
    return f"{number} seed" if asked == 1 else f"{number} seeds"


def _host(row: Measured) -> tuple[str, float | None]:
    """On what the row's runs ran, and how many seconds one took on average."""
    names, times = [], []
    for run in row.runs:
        if run.seed in row.results:
            result = row.results[run.seed]
            host = files.read_json(run.folder / "run.json")  # which `common.run.log` left
            on_cpu = host.get("device") == "cpu"
            names.append(str(host["cpu"] if on_cpu else result.get("device", "unknown")))
            seconds = host.get("seconds") or result.get("seconds")  # the former counts resumed runs
            times += [seconds] if seconds else []
    return ", ".join(dict.fromkeys(names)), statistics.fmean(times) if times else None


def _csv(table: Table, rows: Sequence[Measured]) -> str:
    """One line per run."""
    names = dict.fromkeys(table.columns)
    for row in rows:
        for result in row.results.values():
            names.update(dict.fromkeys(result["metrics"]))
    about = ["seconds", "steps", "device"]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["row", "seed", "status", *names, *about, "overrides", "folder"])
    for row in rows:
        for run in row.runs:
            result = row.results.get(run.seed, {})
            status = divergence(result) or ("finished" if result else "missing")
            metrics = [result.get("metrics", {}).get(name, "") for name in names]
            facts = [*metrics, *(result.get(key, "") for key in about)]
            command = [shlex.join(run.overrides), relative(run.folder)]
            out.writerow([row.row.name, run.seed, status, *facts, *command])
    return text.getvalue()


def _chart(path: Path, table: Table, scale: str, rows: Sequence[Measured]) -> None:
    """Draw the rows that were measured."""
    from .chart import chart  # imports matplotlib: only who draws waits for it

    measured = [row for row in rows if row.results]
    names = [
        f"{row.row.name} (diverged)" if row.lost == len(row.results) else row.row.name
        for row in measured
    ]
    panels: dict[str, list[tuple[float | None, tuple[float, float] | None]]] = {}
    for column in _columns(table, rows):
        panels[column] = []
        for row in measured:
            values = row.healthy(column)
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            ours = (statistics.fmean(values), std) if values else None
            panels[column].append((row.row.paper.get(column), ours))
    panels = {name: points for name, points in panels.items() if any(ours for _, ours in points)}
    if _lies_on_its_side(names, list(panels)):
        points = zip(*panels.values(), strict=True)
        panels, names = dict(zip(names, map(list, points), strict=True)), list(panels)
    title = f"{table.name}: {table.title}" + " (smaller is better)" * table.smaller_is_better
    chart(path, names, panels, title=title, ours=f"ours, scale {scale}")
