"""What holds of every project's `train.py`: it runs, learns, resumes, and stops at typos.

A project's `tests/<project>/test_scripts.py` derives a class from `TrainScript`.
`experiment=smoke` is run once, as a user types it; the other tests copy its folder.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.run import checkpoint
from tests.commands import Commands


def weights(folder: Path, step: int, part: str = "model") -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"][part]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TrainScript:
    project: str
    part: str = "model"  # of a checkpoint: what is trained
    figure: str  # file of the folder that shows what the model predicts
    metrics: tuple[str, ...]
    typos: tuple[tuple[str, str], ...]  # on the command line, and what the sentence has to name
    missing: tuple[str, ...]  # a data set that wants a root
    batch: tuple[str, int, int]  # the option, and the smoke run's and another value

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "typo" in metafunc.fixturenames:
            metafunc.parametrize(("typo", "hint"), self.typos)

    def run(self, commands: Commands, folder: Path, *words: str, forking: bool = False):
        words = ("experiment=smoke", *words, f"hydra.run.dir={folder}")
        return commands.run(self.project, *words, forking=forking)

    def test_smoke_trains_evaluates_and_leaves_a_full_folder(self, smoke):
        folder = smoke(self.project)
        names = {path.name for path in folder.iterdir()}
        wanted = {".hydra", "metrics.jsonl", "run.json", "result.json", "curves.png"}
        assert wanted | {self.figure, "checkpoint-00000006.pt"} <= names
        result = json.loads((folder / "result.json").read_text())
        assert result["steps"] == 6
        assert result["diverged"] is None
        assert set(self.metrics) <= result["metrics"].keys()
        assert sorted({line["step"] for line in lines(folder)}) == [1, 2, 3, 4, 5, 6]

    def test_resuming_gives_the_same_weights_as_never_stopping(self, smoke, commands, tmp_path):
        shutil.copy(smoke(self.project) / "checkpoint-00000003.pt", tmp_path)
        resumed = self.run(commands, tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        a, b = (weights(f, 6, self.part) for f in (smoke(self.project), tmp_path))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert sorted({line["step"] for line in lines(tmp_path)}) == [4, 5, 6]

    def test_a_finished_run_started_again_only_evaluates(self, smoke, commands, tmp_path):
        folder = shutil.copytree(smoke(self.project), tmp_path / "run")
        again = self.run(commands, folder, "log_every=2")
        assert again.returncode == 0, again.stderr
        assert "log_every=2 from step 6 on; it was 1" in again.stderr
        before, after = (weights(f, 6, self.part) for f in (smoke(self.project), folder))
        assert all(torch.equal(before[key], value) for key, value in after.items())
        assert "step 1/6" not in again.stdout + again.stderr

    def test_another_batch_size_or_seed_does_not_resume(self, smoke, commands, tmp_path):
        folder = shutil.copytree(smoke(self.project), tmp_path / "run")
        option, old, new = self.batch
        done = self.run(commands, folder, f"{option}={new}", "seed=1")
        assert done.returncode == 2
        assert "batch_size" in done.stderr
        assert "seed=0" in done.stderr
        assert "seed=1" in done.stderr
        assert str(old) in done.stderr
        assert str(new) in done.stderr

    def test_a_typo_is_one_sentence_and_exit_code_2(self, typo, hint, commands, tmp_path):
        done = self.run(commands, tmp_path, typo)
        assert done.returncode == 2
        assert hint in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "metrics.jsonl").exists()

    def test_a_missing_root_is_one_sentence(self, commands, tmp_path):
        for words in (self.missing, (*self.missing, "data.root=/no/such/folder")):
            words = ("experiment=paper", *words, f"hydra.run.dir={tmp_path}")
            done = commands.run(self.project, *words)
            assert done.returncode == 2
            assert "data.root" in done.stderr or "/no/such/folder" in done.stderr
            assert "Traceback" not in done.stderr

    def test_evaluating_without_weights_is_one_sentence(self, commands, tmp_path):
        done = self.run(commands, tmp_path, "only_evaluate=true")
        assert done.returncode == 2
        assert "holds no checkpoint" in done.stderr
        assert "Traceback" not in done.stderr
