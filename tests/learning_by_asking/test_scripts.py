"""The commands of learning_by_asking as a user types them."""

import json
import shutil

import pytest
import torch

from common.clevr.questions import read_questions
from learning_by_asking.asking.history import read_history
from tests.train_scripts import TrainScript, weights


class TestLearningByAsking(TrainScript):
    project = "learning_by_asking"
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


@pytest.mark.slow
def test_the_demo_compares_three_ways_to_spend_one_budget(commands, tmp_path):
    words = [
        "experiment=demo",
        "budget=40",
        "start.steps=5",
        "offline.steps=5",
        "generator.steps=5",
    ]
    words += ["relevance.steps=5", "relevance.refresh_steps=2", "rounds.updates=2", "data.init=120"]
    words += ["data.builtin.train_images=40", "data.builtin.val_images=10", "rounds.images=20"]
    words += ["evaluate_every=1", f"hydra.run.dir={tmp_path}"]
    done = commands.run("learning_by_asking", *words)
    assert done.returncode == 0, done.stderr
    assert "| at random |" in done.stdout
    for name in ("versus.md", "curves.png", "curriculum.png", "questions.png"):
        assert (tmp_path / name).is_file(), name
