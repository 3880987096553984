"""The runs that a table asks for: one folder for each, named after the settings that they give."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config import explain
from ..errors import UserError
from .runs import Run
from .table import Table, key_of

NEUTRAL = ("data.root", "data.workers", "workers", "processes", "log_every", "save_every")


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
    given = {key_of(word) for word in request.extra}
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
            overrides = list({key_of(word): word for group in groups for word in group}.values())
            name = _slug(overrides, neutral, conf, table.config)
            home = Path("outputs/tables", request.scale, name).absolute()
            label = ", ".join([row.name, *chosen])
            runs = [
                Run(home / f"seed{seed}", overrides, seed, f"{label}, seed {seed}", table.script)
                for seed in range(request.seeds)
            ]
            rows[-1].append(Point(point, runs))
    return rows


def identity(overrides: Sequence[str], neutral: Sequence[str]) -> list[str]:
    """The overrides that make another run, in one order."""
    return sorted(word for word in overrides if key_of(word) not in neutral)


def clean(text: str) -> str:
    """A name of a file or folder."""
    return re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", text)[:120]


def _slug(
    overrides: Sequence[str],
    neutral: Sequence[str],
    conf: Path | None = None,
    config: str = "config",
) -> str:
    """A folder's name: the overrides to be read, and the hash of what they give to be exact."""
    words = identity(overrides, neutral)
    settings = "\n".join(words)
    if conf is not None and conf.is_dir():
        settings = _settings(conf, overrides, neutral, config)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return f"{clean(','.join(word for word in words if key_of(word) != 'experiment'))}-{digest}"


def _settings(conf: Path, overrides: Sequence[str], neutral: Sequence[str], config: str) -> str:
    """The composed configuration as JSON, without what leaves the result as it is."""
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            settings: Any = OmegaConf.to_container(compose(config, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    for key in ("output_dir", "seed", *neutral):
        *groups, name = key.split(".")
        node = settings
        for group in groups:
            node = node.get(group, {})
        node.pop(name, None)
    return json.dumps(settings, sort_keys=True)
