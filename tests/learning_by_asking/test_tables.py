"""The tables' rows: every one composes, and builds the networks that it names."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig
from PIL import Image

from common.config import to_dataclass
from common.run.result import write
from common.tables.claims import Beside
from common.tables.plan import compose_rows
from common.tables.table import Table
from learning_by_asking.config import Config
from learning_by_asking.model import ANSWERERS, build_answerer
from learning_by_asking.tables import TABLES, WORLDS, compare

BY_NAME = {table.name: table for table in TABLES}
CONF = Path(__file__).resolve().parents[2] / "learning_by_asking" / "conf"


@cache
def read(words: tuple[str, ...]) -> DictConfig:
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["output_dir=unused", *words])


@cache
def settings(table: str, scale: str) -> dict[str, Config]:
    """What each row of a table is at a scale."""
    runs = compose_rows([BY_NAME[table]])
    start = f"{table} {scale}: "
    found = {label: words for label, words in runs if label.startswith(start)}
    return {
        label.removeprefix(start).removesuffix(", seed 0"): to_dataclass(read(tuple(words)))
        for label, words in found.items()
    }


def test_every_row_of_every_table_composes_at_every_scale():
    count = 0
    for table in TABLES:
        for scale in table.scales:
            found = settings(table.name, scale)
            assert list(found) == [row.name for row in table.at(scale).rows]
            count += len(found)
            for label, cfg in found.items():
                assert not cfg.versus, label
                assert cfg.offline.steps > 0, label
                assert all(budget <= cfg.budget for budget in cfg.offline_at), label
    assert count > 60


def test_every_row_builds_its_answerers():
    """Questions in words have no arity: `modules`, which runs programs, stops there."""
    every = [settings(table.name, scale) for table in TABLES for scale in table.scales]
    sizes: dict = {"tokens": 40, "feature_size": (16, 6, 6)}
    for name, cfg in (item for rows in every for item in rows.items()):
        arity = [1] * 40 if cfg.question_form == "program" else None
        assert set(cfg.models) <= set(ANSWERERS), name
        for model in {cfg.answerer.name, *cfg.models}:
            with torch.device("meta"):
                build_answerer(replace(cfg.answerer, name=model), arity=arity, **sizes)


def test_no_two_rows_of_a_table_are_one_run():
    for table in TABLES:
        for scale in table.scales:
            found = [repr(cfg) for cfg in settings(table.name, scale).values()]
            assert len(set(found)) == len(found), (table.name, scale)


def test_rows_differ_by_what_they_name():
    sources = [cfg.source for cfg in settings("sources", "mini").values()]
    assert sources == ["lba", "passive", "passive_images", "passive_active", "generator_passive"]
    scores = settings("scores", "mini")
    assert {name: cfg.policy.score for name, cfg in scores.items()} == {n: n for n in scores}
    ours = [(c.generator.kind, c.relevance.kind) for c in settings("proposals", "mini").values()]
    assert ours[:2] == [("typed", "none"), ("lstm", "none")]
    assert [kind for _, kind in ours[3:6]] == ["learned", "refreshed", "oracle"]
    assert not settings("proposals", "mini")["no grammar mask"].generator.mask
    assert settings("proposals", "mini")["generator of the image alone"].generator.condition == (
        "image"
    )
    for scale in ("mini", "paper"):
        asked, passive = settings("cogent", scale).values()
        assert (asked.source, passive.source) == ("lba", "passive")
        assert asked.data == passive.data
        assert (asked.data.train, asked.data.also) == ("trainA", ["valB"])


def test_rows_of_a_table_learn_offline_alike_from_one_budget():
    """Within a world, where a table has several: another one has other questions."""
    for table in TABLES:
        for scale in table.scales:
            same: dict[str, set] = {}
            for name, cfg in settings(table.name, scale).items():
                world = name.partition(": ")[0] if ": " in name else ""
                shared = (cfg.budget, cfg.offline, cfg.offline_at, cfg.models, cfg.rounds, cfg.data)
                same.setdefault(world, set()).add(repr((*shared, cfg.answerer)))
            assert all(len(found) == 1 for found in same.values()), (table.name, scale)


# The claims that a scale's rows can show: the better row, the other one, the column.
CLAIMS = {
    "headline": [("asked", "passive", "offline"), ("passive", "sa_offline", "lstm_offline")],
    "humans": [("asked", "passive", "offline")],
    "proposals": [
        ("generator, no filter", "random programs of the grammar", "validity"),
        ("generator, relevance learned once", "generator, no filter", "validity"),
        ("generator, relevance refreshed", "generator, no filter", "validity"),
        ("generator, perfect relevance", "generator, relevance refreshed", "validity"),
    ],
    "curriculum": [
        (f"{world}: the score", f"{world}: random", "order_by_loss") for world in WORLDS
    ],
    "selection paper": [("lba", "random", "offline"), ("random", "entropy", "offline")],
    "selection mini": [
        *((f"{world}: the score", f"{world}: random", "offline") for world in WORLDS),
        *((f"{world}: the score", f"{world}: passive", "offline") for world in WORLDS),
        *((f"{world}: random", f"{world}: entropy", "offline") for world in WORLDS),
    ],
}


def test_claims_name_rows_of_their_scale():
    def listed(table: Table) -> list[tuple]:
        return [
            (claim.row, claim.column, claim.other)
            if isinstance(claim, Beside)
            else (claim.better, *claim.than, claim.column)
            for claim in table.claims
        ]

    for table in TABLES:
        for scale in table.scales:
            wanted = CLAIMS.get(table.name, CLAIMS.get(f"{table.name} {scale}", []))
            assert listed(table.at(scale)) == wanted, (table.name, scale)


def test_the_paper_has_no_confirmed_figure():
    assert all(not row.paper for table in TABLES for row in table.rows)


def test_two_worlds_differ_in_how_often_is_asked_for_what_nobody_sees():
    last, tenth = (
        to_dataclass(read(("experiment=mini", *WORLDS[f"a {name} unlearnable"])))
        for name in ("third", "tenth")
    )
    counts = [Counter(cfg.generator.types) for cfg in (last, tenth)]
    assert [each.pop("query_color") for each in counts] == [11, 2]
    assert counts[0] == counts[1]
    assert set(counts[0].values()) == {1}
    assert replace(tenth, generator=last.generator) == last
    assert last.data.builtin.hidden == ["color"]
    assert last.data.builtin.untested == ["query_color"]


def test_in_every_world_proposals_make_sense_so_that_the_choice_alone_differs():
    found = settings("selection", "mini")
    assert {cfg.relevance.kind for cfg in found.values()} == {"oracle"}
    choices = [(cfg.source, cfg.policy.score) for cfg in found.values()][:4]
    assert choices == [("lba", "lba"), ("lba", "random"), ("lba", "entropy"), ("passive", "lba")]
    assert [(cfg.source, cfg.policy.score) for cfg in found.values()] == 3 * choices


def test_rows_are_compared_with_the_first_of_their_world(tmp_path):
    def run(name: str, seed: int, online: float) -> Path:
        folder = tmp_path / name / f"seed{seed}"
        folder.mkdir(parents=True)
        write(folder, {"online": online}, steps=1, seconds=1.0, columns=["online"])
        return folder

    folders = {
        name: [run(name.replace(": ", "-"), seed, online + seed) for seed in (1, 2)]
        for name, online in (("a: first", 50), ("a: second", 53), ("b: first", 20), ("b: x", 10))
    }
    text = compare(BY_NAME["selection"], folders | {"c: first": []}, tmp_path / "stem")
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines()]
    assert ["online", "a: second", "54.5 ± 0.5 (2)", "+3.0 ± 0.0"] in cells
    assert ["online", "b: x", "11.5 ± 0.5 (2)", "-10.0 ± 0.0"] in cells
    assert text.count("\n\n") == 1
    assert not any("offline" in line for line in text.splitlines())


def test_curves_of_different_beginnings_are_drawn(tmp_path):
    folders = {}
    for name, right in (("10 to begin with: asked", 50.0), ("20 to begin with: asked", 60.0)):
        folder = tmp_path / name[:2] / "seed1"
        folder.mkdir(parents=True)
        lines = [{"step": step, "asked": 10 * step, "online": right + step} for step in (0, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write(folder, {"online": right}, steps=1, seconds=1.0, columns=["online"])
        folders[name] = [folder]
    compare(BY_NAME["beginning"], folders, tmp_path / "stem")
    with Image.open(tmp_path / "stem_curves.png") as picture:
        assert picture.width > 500
    sizes = [cfg.data.init for cfg in settings("beginning", "mini").values()]
    assert sizes == [500, 500, 1000, 1000, 2000, 2000]


def test_the_world_of_a_miniature_has_the_seed_of_its_run():
    cfg: Config = to_dataclass(read(("experiment=mini", "seed=7")))
    assert (cfg.seed, cfg.data.builtin.seed) == (7, 7)


def test_smaller_budgets_of_the_headline_are_columns():
    for scale in ("mini", "paper"):
        cfg = settings("headline", scale)["asked"]
        assert cfg.offline_at
        columns = BY_NAME["headline"].columns
        assert {f"offline_{budget}" for budget in cfg.offline_at} <= set(columns)


@pytest.mark.parametrize("name", ["demo", "mini", "smoke", "trap", "paper"])
def test_every_experiment_composes(name):
    cfg: Config = to_dataclass(read((f"experiment={name}",)))
    assert cfg.budget > 0
