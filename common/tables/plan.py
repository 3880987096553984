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

# Options that leave the result as it is: they do not name another run.
NEUTRAL = ("data.root", "data.workers", "workers", "processes", "log_every", "save_every")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    tables: list[Table]
    scale: str
    seeds: range = range(1)
    jobs: int = 1
    run: bool = False  # start what is missing, for which all options must be given
    extra: list[str] = field(default_factory=list)  # overrides of every run
    rows: list[str] = field(default_factory=list)  # run only rows with one of these in their name


Plan = list[list[Run]]  # one list per row, one run per seed


def compose_rows(tables: Sequence[Table]) -> Iterator[tuple[str, list[str]]]:
    """Every run that the tables can ask for, in every scale: its label and its overrides."""
    for table in tables:
        for scale in table.scales:
            for run, *_ in plan(table.at(scale), Request([table], scale)):
                yield f"{table.name} {scale}: {run.label}", run.overrides


def plan(table: Table, request: Request, conf: Path | None = None) -> Plan:
    """The runs of the table: for each row its seeds.

    `conf`: Hydra's folder, from which the overrides are composed to tell one run from another;
    without it their text does.
    """
    rows: Plan = []
    for row in table.rows:
        groups = (table.scales[request.scale], row.at(request.scale), request.extra)
        overrides = list({key_of(word): word for group in groups for word in group}.values())
        name = _slug(overrides, conf, table.config, complete=request.run)
        home = Path("outputs/tables", request.scale, name).absolute()
        runs = [
            Run(home / f"seed{seed}", overrides, seed, f"{row.name}, seed {seed}", table.script)
            for seed in request.seeds
        ]
        rows.append(runs)
    return rows


def identity(overrides: Sequence[str]) -> list[str]:
    """The overrides that make another run, in one order."""
    return sorted(word for word in overrides if key_of(word) not in NEUTRAL)


def clean(text: str) -> str:
    """A name of a file or folder."""
    return re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", text)[:120]


def _slug(overrides: Sequence[str], conf: Path | None, config: str, *, complete: bool) -> str:
    """A folder's name: the overrides to be read, and the hash of what they give to be exact."""
    words = identity(overrides)
    settings = "\n".join(words)
    if conf is not None and conf.is_dir():
        settings = _settings(conf, overrides, config, complete=complete)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return f"{clean(','.join(word for word in words if key_of(word) != 'experiment'))}-{digest}"


def _settings(conf: Path, overrides: Sequence[str], config: str, *, complete: bool) -> str:
    """The composed configuration as JSON, without what leaves the result as it is.

    complete: raise UserError where an option that must be given is not.
    """
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            settings: Any = OmegaConf.to_container(compose(config, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    if complete and (missing := _missing(settings)):
        raise UserError(f"{missing[0]} is not set: give {missing[0]}= behind the table's name.")
    for key in ("output_dir", "seed", *NEUTRAL):
        *groups, name = key.split(".")
        node = settings
        for group in groups:
            node = node.get(group, {})
        node.pop(name, None)
    return json.dumps(settings, sort_keys=True)


def _missing(settings: dict[str, Any], before: str = "") -> list[str]:
    """The options that must be given and are not."""
    found = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _missing(value, f"{before}{name}.")
        elif value == "???":
            found.append(f"{before}{name}")
    return found
