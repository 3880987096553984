"""The tables' rows: every one composes, and builds the networks that it names."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from common.config import to_dataclass
from common.tables.plan import compose_rows
from learning_by_asking.config import Config
from learning_by_asking.model import ANSWERERS
from learning_by_asking.tables import TABLES, TRAPS, WORLDS

CONF = Path(__file__).resolve().parents[2] / "learning_by_asking" / "conf"


@cache
def read(words: tuple[str, ...]) -> DictConfig:
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["output_dir=unused", *words])


def test_every_row_of_every_table_composes_at_every_scale():
    rows = list(compose_rows(TABLES))
    assert len(rows) > 60
    for label, words in rows:
        cfg: Config = to_dataclass(read(tuple(words)))
        assert not cfg.versus, label
        assert set(cfg.models) <= set(ANSWERERS), label
        assert cfg.offline.steps > 0, label
        assert all(budget <= cfg.budget for budget in cfg.offline_at), label


def test_the_paper_has_no_confirmed_figure():
    assert all(not row.paper for table in TABLES for row in table.rows)


def test_in_the_last_world_four_of_eleven_proposals_are_of_what_nobody_sees():
    assert (len(TRAPS), TRAPS.count("query_color")) == (11, 4)
    cfg: Config = to_dataclass(read(("experiment=mini", *WORLDS["a third unlearnable"])))
    assert cfg.generator.types == list(TRAPS)
    assert cfg.data.builtin.hidden == ["color"]
    assert cfg.data.builtin.untested == ["query_color"]


def test_smaller_budgets_of_the_headline_are_columns():
    (table,) = (table for table in TABLES if table.name == "headline")
    for scale in ("mini", "paper"):
        cfg: Config = to_dataclass(
            read(tuple(table.scales[scale]) + (("data.root=x",) if scale == "paper" else ()))
        )
        assert {f"offline_{budget}" for budget in cfg.offline_at} <= set(table.columns)


@pytest.mark.parametrize("name", ["demo", "mini", "smoke", "trap", "paper"])
def test_every_experiment_composes(name):
    cfg: Config = to_dataclass(read((f"experiment={name}",)))
    assert cfg.budget > 0
