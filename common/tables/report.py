"""Read what the runs of a table measured, and write it beside the paper's figures."""

import csv
import io
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..files import relative
from .choice import Choice, Results, choose, figures
from .claims import Beside, mean_std
from .markdown import markdown
from .plan import Plan, Request
from .runs import divergence, duration, read_result
from .table import Row, Table

DASH = "–"
RECALLED = "†"
WIDTH = 110  # characters in a line of a table; what is wider is printed in blocks of columns


def report(table: Table, request: Request, rows: Plan, *, stem: Path) -> str:
    """The table in Markdown, also written to `stem`.md, with every run in .csv and a chart in .png.

    Without any result there is no chart.
    """
    runs = [run for points in rows for point in points for run in point.runs]
    read = {run.folder: read_result(run.folder) for run in runs}
    results = {folder: result for folder, result in read.items() if result is not None}
    choices = [choose(table, points, results) for points in rows]
    scale = ", ".join([f"scale {request.scale}", *(f"`{word}`" for word in request.extra)])
    parts = [
        f"**{table.name}: {table.title}** (ours: {scale})",
        _figures(table, choices),
        _legend(table, request),
        table.note,
        _verdicts(table, choices),
        _runs(table, request, choices),
    ]
    text = "\n\n".join(part for part in parts if part)
    stem.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(Path(f"{stem}.md"), text + "\n")
    files.write_text(Path(f"{stem}.csv"), _csv(table, rows, results))
    if results:
        _chart(Path(f"{stem}.png"), table, request.scale, choices)
    return text


def _figures(table: Table, choices: Sequence[Choice]) -> str:
    """The rows in Markdown tables no wider than `WIDTH`, over which the columns are shared out."""
    heads, names = _columns(table, choices), [row.name for row in table.rows]
    pairs = list(zip(table.rows, choices, strict=True))
    lines = [[_cell(table, row, choice, column) for column in heads] for row, choice in pairs]
    if _lies_on_its_side(names, heads):
        heads, names, lines = names, heads, [list(line) for line in zip(*lines, strict=True)]
    rows, text = list(zip(names, lines, strict=True)), ""
    for share in range(len(heads), 0, -1):
        parts = [slice(start, start + share) for start in range(0, len(heads), share)]
        text = "\n\n".join(
            markdown([table.name, *heads[part]], [[name, *line[part]] for name, line in rows])
            for part in parts
        )
        if max(map(len, text.splitlines())) <= WIDTH:
            break
    return text


def _lies_on_its_side(rows: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether there are so few rows that the metrics read better from top to bottom."""
    return len(rows) < 3 <= len(columns)


def _columns(table: Table, choices: Sequence[Choice]) -> list[str]:
    """The columns that the paper or a run has a figure for; all, as long as no run has finished."""
    done = [choice for choice in choices if choice.results]
    return [
        column
        for column in table.columns
        if not done
        or _in_paper(table, column)
        or any(figures(table, choice.results, column) for choice in done)
    ]


def _in_paper(table: Table, column: str) -> bool:
    return any(column in row.paper for row in table.rows)


def _cell(table: Table, row: Row, choice: Choice, column: str) -> str:
    """`paper → ours`; ours alone in a column that the paper does not have."""
    ours = _ours(table, choice, column)
    if not _in_paper(table, column):
        return ours
    paper = DASH
    if column in row.paper:
        paper = f"{row.paper[column]:.{table.digits}f}"
        paper += RECALLED if column in row.memory else ""
    return f"{paper} → {ours}" if (paper, ours) != (DASH, DASH) else DASH


def _ours(table: Table, choice: Choice, column: str) -> str:
    """What was measured: mean ± std over the seeds that did not diverge."""
    values = choice.healthy(table, column)
    lost = sum(bool(result.get("diverged")) for result in choice.results.values())
    if not values:
        return "diverged" if lost else DASH
    text = mean_std(values, table.digits)
    return f"{text} ({lost} of {len(choice.results)} diverged)" if lost else text


def _legend(table: Table, request: Request) -> str:
    """What a cell says."""
    text = "paper → ours" if any(row.paper for row in table.rows) else "ours"
    if request.seeds > 1:
        text += f", mean ± std over {request.seeds} seeds"
    if any(row.memory for row in table.rows):
        text += f"; {RECALLED} recalled, not checked against the paper"
    return text + "."


def _verdicts(table: Table, choices: Sequence[Choice]) -> str:
    """The table's claims, one a line."""
    results = {row.name: choice.results for row, choice in zip(table.rows, choices, strict=True)}
    lines = []
    for claim in table.claims:
        if isinstance(claim, Beside):
            columns = (claim.column, claim.other)
            both = {column: figures(table, results[claim.row], column) for column in columns}
            lines.append(claim.verdict(both, digits=table.digits))
            continue
        ours = {name: figures(table, results[name], claim.column) for name in claim.names}
        better = table.smaller_is_better
        lines.append(claim.verdict(ours, digits=table.digits, smaller_is_better=better))
    return "\n".join(f"- {line}" for line in lines)


def _runs(table: Table, request: Request, choices: Sequence[Choice]) -> str:
    """How the rows were run: what they have in common, then what each has of its own."""
    hosts = [_host(choice) for choice in choices]
    machines = {machine for machine, _ in hosts if machine}
    times = [seconds for _, seconds in hosts if seconds is not None]
    facts = [_facts(table, request, choice) for choice in choices]
    if len(machines) > 1:
        for own, (machine, seconds) in zip(facts, hosts, strict=True):
            own += [f"{machine}, {duration(seconds)}"] if machine else []
    words = [_words(table, request, choice) for choice in choices]
    common = [fact for fact in facts[0] if all(fact in each for each in facts)]
    shared = [word for word in words[0] if all(word in each for each in words)]
    line = [f"{fact} each" if len(choices) > 1 else fact for fact in common]
    if len(machines) == 1:
        ends = dict.fromkeys(duration(end) for end in (min(times), max(times))) if times else {}
        line.append(
            f"{', '.join([*machines, ' to '.join(ends)])} a run" if ends else ", ".join(machines)
        )
    if shared:
        line.append(f"every run with `{shlex.join(shared)}`")
    lines = ["; ".join(line) + "."]
    for row, has, given in zip(table.rows, facts, words, strict=True):
        own = [fact for fact in has if fact not in common]
        rest = shlex.join(word for word in given if word not in shared)
        name = f"{row.name} ({', '.join(own)})" if own else row.name
        lines.append(f"- {name}: " + (f"`{rest}`" if rest else DASH))
    return "\n".join(lines[: None if len(choices) > 1 else 1])


def _facts(table: Table, request: Request, choice: Choice) -> list[str]:
    """How many seeds a row has, and how many points of its grid were tried."""
    done, seeds = len(choice.results), request.seeds
    facts = [f"{done} of {seeds}" if done < seeds else f"{done}"]
    facts[0] += " seed" if seeds == 1 else " seeds"
    points = math.prod(len(table.grid_of(request.scale)[key]) for key in choice.point.values)
    if points > 1 and done:
        facts.append(f"best of {choice.tried}" + f" tried of {points}" * (choice.tried < points))
    return facts


def _words(table: Table, request: Request, choice: Choice) -> list[str]:
    """The overrides that a row shows; those of its grid once a point is chosen."""
    grid = () if choice.results else choice.point.values
    return [word for word in choice.run.overrides if word.partition("=")[0] not in grid]


def _host(choice: Choice) -> tuple[str, float | None]:
    """On what the shown runs ran, and how many seconds one took on average."""
    names, times = [], []
    for run in choice.point.runs:
        if run.seed in choice.results:
            result = choice.results[run.seed]
            host = files.read_json(run.folder / "run.json")  # which `common.run.log` left
            on_cpu = host.get("device") == "cpu"
            names.append(str(host["cpu"] if on_cpu else result.get("device", "unknown")))
            seconds = host.get("seconds") or result.get("seconds")  # the former counts resumed runs
            times += [seconds] if seconds else []
    return ", ".join(dict.fromkeys(names)), statistics.fmean(times) if times else None


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
                command = [shlex.join(run.overrides), relative(run.folder)]
                out.writerow([row.name, *point.values.values(), run.seed, status, *facts, *command])
    return text.getvalue()


def _chart(path: Path, table: Table, scale: str, choices: Sequence[Choice]) -> None:
    """Draw the rows that were measured."""
    from .chart import chart  # imports matplotlib: only who draws waits for it

    shown = [
        (row, choice) for row, choice in zip(table.rows, choices, strict=True) if choice.results
    ]
    panels: dict[str, list[tuple[float | None, tuple[float, float] | None]]] = {}
    for column in _columns(table, choices):
        panels[column] = []
        for row, choice in shown:
            values = choice.healthy(table, column)
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            ours = (statistics.fmean(values), std) if values else None
            panels[column].append((row.paper.get(column), ours))
    names = [
        f"{row.name} (diverged)" if all(r.get("diverged") for r in c.results.values()) else row.name
        for row, c in shown
    ]
    if _lies_on_its_side(names, list(panels)):
        points = list(zip(*panels.values(), strict=True))
        names, panels = (
            list(panels),
            {name: list(row) for name, row in zip(names, points, strict=True)},
        )
    title = f"{table.name}: {table.title}" + " (smaller is better)" * table.smaller_is_better
    chart(path, names, panels, title=title, ours=f"ours, scale {scale}")
