"""The tables' rows: every one composes, agrees with the paper's other tables, and claims add up."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from common.config import to_dataclass
from common.tables import main
from common.tables.claims import Beside, Gap
from common.tables.plan import Request, compose_rows, plan
from program_execution.all_stages import stages_of
from program_execution.config import Config
from program_execution.tables import TABLES

CONF = Path(__file__).resolve().parents[2] / "program_execution" / "conf"
BY_NAME = {table.name: table for table in TABLES}


def settings(overrides: list[str]) -> Config:
    """What a row would train."""
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    small = {"experiment=mini", "experiment=semi"} & set(overrides)
    given = [] if small else ["data.root=x"]
    given += ["data.scenes=x"] if "data.scenes=???" in overrides else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_dataclass(compose("config", [*overrides, *given, "output_dir=unused"]))


def test_every_row_of_every_table_composes_in_every_scale():
    rows = list(compose_rows(TABLES))
    assert len(rows) == sum(len(table.rows) * len(table.scales) for table in TABLES)
    for label, overrides in rows:
        cfg = settings(overrides)
        stages = [part.stage for part in stages_of(cfg)]
        columns = BY_NAME[label.split()[0]].columns
        assert ("tune" in stages) == any(name.startswith("tune_") for name in columns), label
        if cfg.model.name != "iep":
            assert stages[0] == "baseline", label
        if "lift" in columns and "18k" in label:
            assert stages == ["pg", "ee", "joint"], label
        if "drop" in columns:
            assert cfg.data.also, label


@pytest.mark.parametrize("name", ["demo", "mini", "semi", "smoke", "paper", "humans"])
def test_every_experiment_composes(name):
    cfg = settings([f"experiment={name}", "data=builtin"])
    assert (cfg.stage == "all") == (name in ("demo", "mini", "semi", "paper"))


def test_the_paper_s_recipe_is_the_default():
    cfg = settings(["experiment=paper", "data=clevr"])
    assert [stage.steps for stage in (cfg.pg, cfg.ee, cfg.joint)] == [32_000, 200_000, 100_000]
    assert [stage.lr for stage in (cfg.pg, cfg.ee, cfg.joint)] == [5e-4, 1e-4, 5e-5]
    assert {stage.batch_size for stage in (cfg.pg, cfg.ee, cfg.joint, cfg.baseline)} == {64}
    assert cfg.data.programs == 18_000
    assert cfg.ee_programs == "predicted"


def test_the_strong_row_learns_from_all_true_programs():
    rows = {row.name: row for row in BY_NAME["table1"].rows}
    for scale in ("mini", "paper"):
        table = BY_NAME["table1"]
        words = [*table.scales[scale], *rows["ours, strong: all programs"].at(scale)]
        cfg = settings(words)
        assert (cfg.data.programs, cfg.ee_programs, cfg.joint.steps) == (0, "ground_truth", 0)
        semi = settings([*table.scales[scale], *rows["ours, 9k programs"].at(scale)])
        assert semi.data.programs > 0
        assert semi.ee_programs == "predicted"


def test_all_figures_of_the_paper_are_marked_as_recalled():
    for table in TABLES:
        for row in table.rows:
            assert set(row.paper) == row.memory


def test_the_gaps_that_claims_quote_are_those_of_the_rows():
    for table in TABLES:
        rows = {row.name: row.paper for row in table.rows}
        for claim in table.claims:
            if isinstance(claim, Beside):
                continue  # of two columns in a row; the paper prints none of theirs
            names = [claim.better, *claim.than] if isinstance(claim, Gap) else [claim.row, claim.to]
            figures = [of(rows[name], claim.column) for name in names]
            if claim.paper is None:
                assert None in figures or not isinstance(claim, Gap)
                continue
            best = max(figures[1:])
            assert figures[0] - best == pytest.approx(claim.paper, abs=0.051), claim


def of(paper: dict[str, float], column: str) -> float | None:
    """A figure of the paper, or one that follows from others."""
    if column in paper:
        return paper[column]
    keys = list(paper)
    match column:
        case "drop":
            return paper["accuracy"] - paper["valB_accuracy"]
        case "recovery":
            return paper[keys[3]] - paper[keys[1]]
    return None


def test_the_figure_and_the_table_have_the_same_accuracies():
    table = {row.name: row.paper["accuracy"] for row in BY_NAME["table1"].rows}
    figure = {row.name: row.paper.get("accuracy") for row in BY_NAME["curve"].rows}
    assert figure["9k programs"] == table["ours, 9k programs"]
    assert figure["18k programs"] == table["ours, 18k programs"]
    assert figure["all programs"] == table["ours, strong: all programs"]


def test_a_row_of_two_tables_is_trained_once():
    ConfigStore.instance().store("schema", Config)

    def folders(name: str) -> set[Path]:
        table = BY_NAME[name]
        rows = plan(table, Request([table], "paper", extra=["data.root=x"]), conf=CONF)
        return {runs[0].folder for runs in rows}

    assert len(folders("table1") & folders("curve")) == 2


def test_the_list_and_the_figures_of_the_paper_are_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ConfigStore.instance().store("schema", Config)
    script = CONF.parent / "train.py"
    main(TABLES, script=script, words=[])
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in BY_NAME)
    main(TABLES, script=script, words=["cogent", "run=false"])
    printed = capsys.readouterr().out
    assert "73.7† →" in printed
    assert "not measured" in printed
