"""A paper's tables: train the rows that are missing, print the paper's figures beside ours.

A project's `tables.py` declares its tables as data and ends with `main(TABLES, script=...)`:

    python tables.py                                     # the list of tables
    python tables.py table1b scale=mini seeds=3 jobs=2   # run or resume, then print
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

Only such files fill the column "ours"; what was not measured is a dash.
"""

import difflib
import hashlib
import json
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config import explain
from common.tables.claims import Beside, Gap, Near
from common.tables.report import report
from common.tables.runs import PREEMPTED, Ending, Run, execute, read_result

NEUTRAL = ("data.root", "data.workers", "workers", "processes", "log_every", "save_every")
OPTIONS = ("scale", "seeds", "jobs", "run", "rows")


class Row:
    """One row: its name, the overrides that give it, and the figures that the paper prints for it.

    A figure is named like its column; one that is absent or None is not in the paper. `memory`
    names the figures that were recalled and not confirmed. `instead` gives a scale overrides of its
    own, where the paper's would make no sense there: {"mini": ["data.test_short_side=64"]}.
    """

    def __init__(
        self,
        name: str,
        overrides: Sequence[str],
        *,
        memory: Iterable[str] = (),
        instead: Mapping[str, Sequence[str]] | None = None,
        **paper: float | None,  # the columns differ from table to table
    ) -> None:
        self.name = name
        self.overrides = list(overrides)
        self.instead = {scale: list(words) for scale, words in (instead or {}).items()}
        self.memory = frozenset(memory)
        self.paper = {column: value for column, value in paper.items() if value is not None}

    def at(self, scale: str) -> list[str]:
        """The overrides of this row at a scale."""
        return self.instead.get(scale, self.overrides)


@dataclass(frozen=True)
class Table:
    """A table of the paper, and the scales at which its rows can be run."""

    name: str
    title: str
    _: KW_ONLY
    rows: Sequence[Row]
    columns: Sequence[str]  # names in result.json's metrics; the first one chooses in the grid
    scales: dict[str, list[str]]  # overrides by scale; the first scale is the default
    grid: dict[str, Any] = field(default_factory=dict)  # {key: values}, or by scale: {"mini": ...}
    claims: Sequence[Gap | Near | Beside] = ()
    note: str = ""
    digits: int = 1
    smaller_is_better: bool = False
    diverged: float = 0.0  # what a diverged run counts as, in every column
    script: str = "train.py"  # another one's Hydra configuration has its name: conf/<name>.yaml

    def __post_init__(self) -> None:
        """Find slips in the declaration before hours are spent on it."""
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names) or not names or not self.scales:
            raise ValueError(f"{self.name}: rows need different names, and a table rows and scales")
        wanted = [(column, self.columns) for row in self.rows for column in row.paper]
        wanted += [(column, self.columns) for row in self.rows for column in row.memory]
        wanted += [(claim.column, self.columns) for claim in self.claims]
        wanted += [(name, names) for claim in self.claims for name in claim.names]
        beside = [claim for claim in self.claims if isinstance(claim, Beside)]
        wanted += [(claim.other, self.columns) for claim in beside]
        if not all(len(claim.names) > 1 for claim in self.claims if claim not in beside):
            raise ValueError(f"{self.name}: a claim needs rows to compare with")
        for word, choices in wanted:
            if word not in choices:
                raise ValueError(f"{self.name}: {_unknown(word, choices)}")
        for scale in self.scales:
            for row in self.rows:
                for key in {_key(word) for word in row.at(scale)} & set(self.grid_of(scale)):
                    raise ValueError(f"{self.name}: {row.name} fixes {key}, which the grid varies")

    @property
    def config(self) -> str:
        """Name of the script's Hydra configuration."""
        return "config" if self.script == "train.py" else Path(self.script).stem

    def grid_of(self, scale: str) -> dict[str, list[Any]]:
        """The values that every row tries at this scale, by key."""
        by_scale = set(self.grid) <= set(self.scales)
        return self.grid.get(scale, {}) if by_scale else self.grid


@dataclass(frozen=True)
class Point:
    """One point of a row's grid: the overrides by key, and one run per seed."""

    values: dict[str, str]
    runs: list[Run]


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    tables: list[Table]
    scale: str
    seeds: int = 1
    jobs: int = 1
    run: bool = True
    extra: list[str] = field(default_factory=list)  # overrides of every run
    rows: list[str] = field(default_factory=list)  # run only rows with one of these in their name


Plan = list[list[Point]]  # one list per row, one point per combination of the grid's values


def main(
    tables: Sequence[Table],
    *,
    script: Path | str,
    words: Sequence[str] | None = None,
    neutral: Sequence[str] = NEUTRAL,
) -> None:
    """Run and print the tables that the command line names (`words`: instead of sys.argv).

    `neutral` are the keys that leave the result as it is: they do not name another run. Exits with
    2 after a typo, 1 if a run failed, 75 if one was pre-empted, 130 after Ctrl-C and 143 after
    SIGTERM.
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
    request = _parse(words, tables)
    plans = [plan(table, request, neutral, conf) for table in request.tables]
    endings: list[Ending] = []
    if request.run:
        wanted = [
            _wanted(table, rows, request) for table, rows in zip(request.tables, plans, strict=True)
        ]
        runs = {run.folder: run for rows in wanted for run in _seed_by_seed(rows)}
        missing = [run for run in runs.values() if read_result(run.folder) is None]
        print(f"{len(runs) - len(missing)} of {_runs(len(runs))} finished before.", flush=True)
        try:
            endings = list(execute(missing, conf.parent, request.jobs).values())
        except KeyboardInterrupt as stop:
            print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
            raise SystemExit(128 + (stop.args or (signal.SIGINT,))[0]) from None
    for table, rows in zip(request.tables, plans, strict=True):
        name = ",".join([table.name, *_identity(request.extra, neutral)])
        stem = Path("outputs/tables", request.scale, _clean(name))
        print("\n" + report(table, request, rows, stem=stem), flush=True)
    stopped = sum(ending.kind == "stopped" for ending in endings)
    if stopped:
        print(f"\n{_runs(stopped)} pre-empted; the same command goes on from here.")
    failed = [ending for ending in endings if ending.kind == "failed"]
    if failed:
        print(f"\n{_runs(len(failed))} failed:\n{_summary(failed)}", file=sys.stderr)
    if failed or stopped:
        raise SystemExit(1 if failed else PREEMPTED)


def compose_rows(tables: Sequence[Table]) -> Iterator[tuple[str, list[str]]]:
    """Every run that the tables can ask for, in every scale: its label and its overrides."""
    for table in tables:
        for scale in table.scales:
            for points in plan(table, Request([table], scale)):
                for point in points:
                    yield f"{table.name} {scale}: {point.runs[0].label}", point.runs[0].overrides


def plan(
    table: Table, request: Request, neutral: Sequence[str] = NEUTRAL, conf: Path | None = None
) -> Plan:
    """The runs of the table: for each row the points of its grid, for each point its seeds.

    A key that the command line gives is taken out of the grid. `conf`: Hydra's folder, from which
    the overrides are composed to tell one run from another; without it their text does.
    """
    given = {_key(word) for word in request.extra}
    points: list[dict[str, str]] = [{}]
    for key, values in table.grid_of(request.scale).items():
        if key not in given:
            points = [point | {key: str(value)} for point in points for value in values]
    rows: Plan = []
    for row in table.rows:
        rows.append([])
        for point in points:
            chosen = [f"{key}={value}" for key, value in point.items()]
            groups = (table.scales[request.scale], row.at(request.scale), chosen, request.extra)
            overrides = list({_key(word): word for group in groups for word in group}.values())
            name = _slug(overrides, neutral, conf, table.config)
            home = Path("outputs/tables", request.scale, name).absolute()
            label = ", ".join([row.name, *chosen])
            runs = [
                Run(home / f"seed{seed}", overrides, seed, f"{label}, seed {seed}", table.script)
                for seed in range(request.seeds)
            ]
            rows[-1].append(Point(point, runs))
    return rows


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
                _stop(_unknown(word, list(by_name)))
            chosen.append(by_name[word])
        elif key in OPTIONS:
            options[key] = value
        elif "." not in key and difflib.get_close_matches(key, OPTIONS, 1, 0.75):
            near = difflib.get_close_matches(key, OPTIONS, 1)[0]
            _stop(f"{key} is unknown; did you mean {near}? (-- {word} passes it to train.py)")
        else:
            extra.append(word)
    if not chosen:
        _stop(f"Which table? Name one of {', '.join(by_name)}.")
    scale = options.get("scale", next(iter(chosen[0].scales)))
    for table in chosen:
        if scale not in table.scales:
            _stop(f"scale: {_unknown(scale, list(table.scales))}")
        for word in extra:
            fixed = [row.name for row in table.rows if _key(word) in map(_key, row.at(scale))]
            if fixed:
                _stop(f"{word}: {table.name} itself sets {_key(word)}, in {fixed[0]}")
    for word in extra:
        if _key(word) in ("seed", "hydra.run.dir"):
            _stop(f"{word}: tables.py sets {_key(word)} itself; seeds=3 runs the seeds 0, 1 and 2")
    run = options.get("run", "true")
    if run not in ("true", "false"):
        _stop(f"run: {_unknown(run, ['true', 'false'])}")
    seeds, jobs = (_count(key, options.get(key, "1")) for key in ("seeds", "jobs"))
    rows = [text.strip() for text in options.get("rows", "").split(";") if text.strip()]
    names = [row.name for table in chosen for row in table.rows]
    for text in rows:
        if not any(text in name for name in names):
            _stop(f"rows: {_unknown(text, names)}")
    return Request(chosen, scale, seeds, jobs, run == "true", extra, rows)


def _wanted(table: Table, rows: Plan, request: Request) -> Plan:
    """The rows that are to be run: all, or those that `rows=` names."""
    named = zip(table.rows, rows, strict=True)
    texts = request.rows
    return [points for row, points in named if not texts or any(t in row.name for t in texts)]


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


def _count(key: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        _stop(f"{key}={text}: a whole number from 1 up is needed")
    return int(text)


def _stop(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    raise SystemExit(2)


def _unknown(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1, 0.5)
    advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}."
    return f"{word!r} is unknown; {advice}"


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+~")


def _seed_by_seed(rows: Plan) -> list[Run]:
    """All runs, first seed 0 of every row: a whole table with one seed comes early."""
    runs = [run for points in rows for point in points for run in point.runs]
    return sorted(runs, key=lambda run: run.seed)


def _identity(overrides: Sequence[str], neutral: Sequence[str]) -> list[str]:
    return sorted(word for word in overrides if _key(word) not in neutral)


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", text)[:120]


def _slug(
    overrides: Sequence[str],
    neutral: Sequence[str],
    conf: Path | None = None,
    config: str = "config",
) -> str:
    """A folder's name: the overrides to be read, and the hash of what they give to be exact."""
    identity = _identity(overrides, neutral)
    settings = "\n".join(identity)
    if conf is not None and conf.is_dir():
        settings = _settings(conf, overrides, neutral, config)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return f"{_clean(','.join(word for word in identity if _key(word) != 'experiment'))}-{digest}"


def _settings(conf: Path, overrides: Sequence[str], neutral: Sequence[str], config: str) -> str:
    """The composed configuration as JSON, without what leaves the result as it is."""
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            settings: Any = OmegaConf.to_container(compose(config, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        _stop(explain(error))
    for key in ("output_dir", "seed", *neutral):
        *groups, name = key.split(".")
        node = settings
        for group in groups:
            node = node.get(group, {})
        node.pop(name, None)
    return json.dumps(settings, sort_keys=True)
