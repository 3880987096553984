"""A paper's tables: train the rows that are missing, print the paper's figures beside ours.

A project's `tables.py` declares its tables as data and ends with `main(TABLES, script=...)`:

    python tables.py                                     # the list of tables
    python tables.py table1b scale=mini seeds=3 jobs=2   # run or resume, then print
    python tables.py table1b seeds=1-3                   # the seeds 1, 2 and 3 instead of 0, 1, 2
    python tables.py table1b run=false                   # print what has been measured so far
    python tables.py table1b "rows=gamma = 0;gamma = 2"  # run only rows with this in their name
    python tables.py table1a table1b steps=500           # other words go to every run of train.py
    python tables.py table1b -- scale=2                  # so do all behind --, whatever their key

One run is `python train.py <overrides> seed=0 hydra.run.dir=<folder>`, in a folder that follows
from the settings these give: a row that stands in two tables is trained once, and a changed default
or experiment file makes other runs, never a mixture. It is finished when
train.py has left `result.json` in the folder; whatever else is there is resumed by train.py itself:

    {"metrics": {"AP": 33.1}, "seconds": 310.5, "device": "...",
     "diverged": null or {"step": 12, "part": "classification"}}

Only such files give figures of ours; what was not measured is a dash.
"""

import difflib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import PREEMPTED, UserError
from .plan import Plan, Request, clean, identity, plan
from .report import report
from .runs import Ending, Run, execute, read_result
from .table import Table, key_of, unknown

OPTIONS = ("scale", "seeds", "jobs", "run", "rows")


def main(
    tables: Sequence[Table],
    *,
    script: Path | str,
    words: Sequence[str] | None = None,
    compare: Callable[[Table, dict[str, list[Path]], Path], str] | None = None,
) -> None:
    """Run and print the tables that the command line names (`words`: instead of sys.argv).

    compare: (table, folders of the finished runs by row, path without ending) -> what is printed
    below a table, for comparisons that need more of the runs than their metrics.

    Exits with 2 after a typo, 1 if a run failed, 75 if one was pre-empted, 130 after Ctrl-C and 143
    after SIGTERM.
    """
    conf = Path(script).resolve().parent / "conf"
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("help", "-h", "--help"):
        for table in tables:
            scales = "|".join(table.scales)
            print(f"{table.name:12} {table.title} ({len(table.rows)} rows, scale={scales})")
        options = "scale=mini seeds=3 jobs=1 run=true rows=TEXT"
        print(f"\npython tables.py NAME {options} [key=value of train.py]")
        return
    try:
        request = _parse(words, tables)
        plans = [plan(table, request, conf) for table in request.tables]
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.status) from None
    endings: list[Ending] = []
    if request.run:
        wanted = [_choose(*pair, request.rows) for pair in zip(request.tables, plans, strict=True)]
        runs = {run.folder: run for runs in wanted for run in runs}
        missing = [run for run in runs.values() if read_result(run.folder) is None]
        print(f"{len(runs) - len(missing)} of {_runs(len(runs))} finished before.", flush=True)
        try:
            endings = list(execute(missing, conf.parent, request.jobs).values())
        except KeyboardInterrupt as stop:
            print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
            raise SystemExit(128 + (stop.args or (signal.SIGINT,))[0]) from None
    for table, rows in zip(request.tables, plans, strict=True):
        name = ",".join([table.name, *identity(request.extra)])
        stem = Path("outputs/tables", request.scale, clean(name))
        print("\n" + report(table, request, rows, stem=stem), flush=True)
        finished = {
            row.name: [run.folder for run in runs if read_result(run.folder) is not None]
            for row, runs in zip(table.rows, rows, strict=True)
        }
        if compare and (text := compare(table, finished, stem)):
            print("\n" + text, flush=True)
    stopped = sum(ending.kind == "stopped" for ending in endings)
    if stopped:
        print(f"\n{_runs(stopped)} pre-empted; the same command goes on from here.")
    failed = [ending for ending in endings if ending.kind == "failed"]
    if failed:
        print(f"\n{_runs(len(failed))} failed:\n{_summary(failed)}", file=sys.stderr)
    if failed or stopped:
        raise SystemExit(1 if failed else PREEMPTED)


def _parse(words: Sequence[str], tables: Sequence[Table]) -> Request:
    """The command line as a request; a slip stops with one sentence."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    by_name = {table.name: table for table in tables}
    chosen: list[Table] = []
    options: dict[str, str] = {}
    extra = words[cut + 1 :]
    for word in words[:cut]:
        key, equals, value = word.partition("=")
        if not equals:
            if word not in by_name:
                raise UserError(unknown(word, list(by_name)))
            chosen.append(by_name[word])
        elif key in OPTIONS:
            options[key] = value
        elif "." not in key and difflib.get_close_matches(key, OPTIONS, 1, 0.75):
            near = difflib.get_close_matches(key, OPTIONS, 1)[0]
            raise UserError(
                f"{key} is unknown; did you mean {near}? (-- {word} passes it to train.py)"
            )
        else:
            extra.append(word)
    if not chosen:
        raise UserError(f"Which table? Name one of {', '.join(by_name)}.")
    scale = options.get("scale", next(iter(chosen[0].scales)))
    for table in chosen:
        if scale not in table.scales:
            raise UserError(f"scale: {unknown(scale, list(table.scales))}")
    chosen = [table.at(scale) for table in chosen]
    for table in chosen:
        for word in extra:
            fixed = [row.name for row in table.rows if key_of(word) in map(key_of, row.at(scale))]
            if fixed:
                raise UserError(f"{word}: {table.name} itself sets {key_of(word)}, in {fixed[0]}")
    for word in extra:
        if key_of(word) in ("seed", "hydra.run.dir"):
            raise UserError(
                f"{word}: tables.py sets {key_of(word)} itself; seeds=3 runs the seeds 0, 1 and 2, "
                "seeds=1-3 the seeds 1, 2 and 3"
            )
    run = options.get("run", "true")
    if run not in ("true", "false"):
        raise UserError(f"run: {unknown(run, ['true', 'false'])}")
    seeds, jobs = _seeds(options.get("seeds", "1")), _count("jobs", options.get("jobs", "1"))
    rows = [text.strip() for text in options.get("rows", "").split(";") if text.strip()]
    names = [row.name for table in chosen for row in table.rows]
    for text in rows:
        if not any(text in name for name in names):
            raise UserError(f"rows: {unknown(text, names)}")
    return Request(chosen, scale, seeds, jobs, run == "true", extra, rows)


def _choose(table: Table, rows: Plan, texts: Sequence[str]) -> list[Run]:
    """The runs of the rows with one of `texts` in their name, or of all, seed by seed."""
    named = zip(table.rows, rows, strict=True)
    wanted = [runs for row, runs in named if not texts or any(text in row.name for text in texts)]
    return sorted((run for runs in wanted for run in runs), key=lambda run: run.seed)


def _summary(failed: Sequence[Ending]) -> str:
    """What failed and its last words; words that several runs share are said once."""
    by_words: dict[tuple[str, ...], list[str]] = {}
    for ending in failed:
        by_words.setdefault(tuple(ending.words), []).append(ending.text)
    blocks = (
        "\n".join([*texts, *(f"    {w}" for w in words)]) for words, texts in by_words.items()
    )
    return "\n\n".join(blocks)


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def _seeds(text: str) -> range:
    """The seeds that `3` or `1-3` names."""
    ends = re.fullmatch(r"(\d+)-(\d+)", text)
    if ends is None:
        return range(_count("seeds", text))
    first, last = map(int, ends.groups())
    if last < first:
        raise UserError(f"seeds={text}: the first is above the last")
    return range(first, last + 1)


def _count(key: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise UserError(f"{key}={text}: a whole number from 1 up is needed")
    return int(text)
