"""The commands of learning_by_asking as a user types them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.clevr.questions import read_questions
from learning_by_asking.asking.history import read_history
from tests.train_scripts import TrainScript, weights

PROJECT = "learning_by_asking"
SMALL = ["budget=40", "start.steps=5", "offline.steps=5", "generator.steps=5", "relevance.steps=5"]
SMALL += ["relevance.refresh_steps=2", "rounds.updates=2", "rounds.images=20", "evaluate_every=1"]
SMALL += ["data.init=120", "data.builtin.train_images=40", "data.builtin.val_images=10"]


class TestLearningByAsking(TrainScript):
    project = PROJECT
    part = "answerer"
    figure = "curriculum.csv"
    metrics = ("online", "offline", "offline_20", "validity", "qtype")
    typos = (("policy.epsilom=0.2", "policy.epsilon"), ("budge=3", "budget"))
    missing = ("data=clevr",)
    batch = ("rounds.batch_size", 8, 16)

    def test_resuming_gives_the_same_weights_as_never_stopping(self, smoke, commands, tmp_path):
        for name in ("checkpoint-00000003.pt", "ask_log.jsonl", "first_losses.json"):
            shutil.copy(smoke(self.project) / name, tmp_path)  # the log holds what is paid beyond
        resumed = self.run(commands, tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        a, b = (weights(f, 6, self.part) for f in (smoke(self.project), tmp_path))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
        logs = [(f / "ask_log.jsonl").read_bytes() for f in (smoke(self.project), tmp_path)]
        assert logs[0] == logs[1]

    def test_evaluating_without_weights_is_one_sentence(self, commands, tmp_path):
        (tmp_path / "checkpoint-00000003.pt").write_bytes(b"")
        done = self.run(commands, tmp_path)
        assert done.returncode == 2
        assert "checkpoint-00000003.pt" in done.stderr
        assert "Traceback" not in done.stderr

    def test_the_run_buys_its_budget_and_leaves_what_it_asked(self, smoke):
        folder = smoke(self.project)
        history = read_history(folder)
        assert len(history) == 60
        valid = [line for line in history if line.valid]
        assert json.loads((folder / "result.json").read_text())["metrics"]["valid"] == len(valid)
        if valid:
            assert len(list(read_questions(folder / "asked_questions.json"))) == len(valid)


def test_a_finished_run_shows_what_it_would_ask_about_an_image(smoke, commands, tmp_path):
    words = [f"run={smoke(PROJECT)}", "image=3", f"out={tmp_path}/proposals.png"]
    done = commands.run(PROJECT, *words, script="demo.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Image 3, by the agent of round 6\n")
    assert "| question " in done.stdout
    assert (tmp_path / "proposals.png").stat().st_size > 0


def test_the_oracle_s_speed_is_measured_and_written(commands, tmp_path):
    words = ["what=oracle", "programs=200", "repeats=2", f"out={tmp_path}/oracle.json"]
    done = commands.run(PROJECT, *words, script="benchmark.py")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "oracle.json").read_text())["results"]
    assert {row["name"] for row in rows} == {"ours", "plain loop"}
    assert "programs a second" in done.stdout


def test_the_tables_are_listed(commands):
    done = commands.run(PROJECT, script="tables.py")
    assert done.returncode == 0, done.stderr
    for name in ("headline", "proposals", "selection", "scores", "sources", "humans", "cogent"):
        assert f"{name:12} " in done.stdout


@pytest.mark.slow
def test_a_table_runs_its_rows_prints_them_and_compares(commands, tmp_path):
    script = Path(__file__).resolve().parents[2] / PROJECT / "tables.py"
    words = ["sources", "scale=mini", "rows=passive", "seeds=2", *SMALL]
    done = commands.run(tmp_path, *words, script=str(script), forking=True)
    assert done.returncode == 0, done.stderr
    assert "| passive, pairs of all images" in done.stdout
    assert "| passive, all questions of few images" in done.stdout
    assert "template" not in done.stdout.split("| passive")[-1]
    assert len(list(tmp_path.rglob("result.json"))) == 4


@pytest.mark.slow
def test_what_was_asked_trains_program_execution_by_its_own_command(commands, tmp_path):
    words = [*SMALL, "export=true", "relevance.kind=oracle", "oracle.relevance_free=true"]
    done = commands.run(PROJECT, "experiment=mini", *words, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    words = ["experiment=smoke", "data=clevr", f"data.root={tmp_path}/run/data", "stage=ee"]
    words += ["ee_programs=ground_truth", "evaluate.programs=ground_truth", "ee.steps=2"]
    done = commands.run("program_execution", *words, f"hydra.run.dir={tmp_path}/other")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in json.loads((tmp_path / "other" / "result.json").read_text())["metrics"]


@pytest.mark.slow
def test_the_demo_compares_ways_to_spend_one_budget(commands, tmp_path):
    words = [*SMALL, "data.init=100"]  # few questions do not speak of colours
    done = commands.run(PROJECT, "experiment=demo", *words, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "| at random " in done.stdout
    for name in ("versus.md", "curves.png", "curriculum.png", "questions.png"):
        assert (tmp_path / name).is_file(), name
