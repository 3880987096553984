"""The commands of nonlocal as a user types them."""

import json
from pathlib import Path

import pytest
import torch

from tests.commands import Commands
from tests.train_scripts import TrainScript, weights

SGD = ["optimizer=sgd", "schedule=multistep", "lr=0.05", "steps=2", "network.dropout=0.5"]
FROZEN = ["network.norm=frozen", "block.norm=none", "block.zero_init=conv", "precise_norm=0"]


class TestNonlocal(TrainScript):
    project = "nonlocal"
    figure = "attention.png"
    metrics = ("top1",)
    typos = (("network.dept=resnet50", "network.depth"), ("blok.mode=gaussian", "block.mode"))
    missing = ("data=kinetics",)
    batch = ("batch_size", 4, 8)

    def test_the_built_in_clips_have_a_line_each(self, smoke):
        folder = smoke(self.project)
        rows = [json.loads(x) for x in (folder / "predictions.jsonl").read_text().splitlines()]
        assert [row["file"] for row in rows] == [f"clip {number}" for number in range(6)]
        assert all(set(row["top"]) == {"different", "same"} for row in rows)

    @pytest.mark.parametrize("more", [[], pytest.param(FROZEN, marks=pytest.mark.slow)])
    def test_two_processes_train_as_one(self, more, commands, tmp_path):
        """Gradients, which SGD shows, statistics of the norms, accuracy."""
        for processes in (1, 2):
            words = [*SGD, *more, f"processes={processes}", "test.images=0"]
            done = self.run(commands, tmp_path / str(processes), *words, forking=True)
            assert done.returncode == 0, done.stderr
        one, two = (weights(tmp_path / name, 2) for name in "12")
        assert one.keys() == two.keys()
        for key in (key for key in one if not key.endswith("batches_tracked")):
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
        found = [(tmp_path / name / "predictions.jsonl").read_text() for name in "12"]
        scores = [[json.loads(line)["top"]["same"] for line in text.splitlines()] for text in found]
        assert scores[1] == pytest.approx(scores[0], abs=1e-5)

    @pytest.mark.slow
    def test_a_run_that_was_killed_ends_as_never_stopped(self, smoke, commands, tmp_path):
        words = ("experiment=smoke", f"hydra.run.dir={tmp_path}")
        run = commands.start(self.project, *words)
        run.until(4)
        run.kill()
        assert self.run(commands, tmp_path).returncode == 0
        a, b = weights(smoke(self.project), 6), weights(tmp_path, 6)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_demo_compares_the_network_without_and_with_a_block(
    commands: Commands, tmp_path: Path
) -> None:
    words = ["steps=2", "batch_size=2", "per_gpu=2", "precise_norm=1", "test.images=2"]
    words += ["data.builtin={train: 8, test: 6}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = commands.run("nonlocal", *words, forking=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "run" / "versus.md").read_text()
    assert ["| C2D " in table, "| C2D + 1 block " in table, "top1" in table] == [True] * 3
    assert (tmp_path / "run" / "versus.png").exists()
    assert (tmp_path / "run" / "attention.png").exists()


@pytest.mark.slow
def test_a_table_runs_its_rows_and_prints_them(commands, tmp_path):
    words = [
        "table2b",
        "scale=mini",
        "rows=baseline",
        "steps=2",
        "data.builtin={train: 8, test: 6}",
    ]
    words += ["precise_norm=1", "batch_size=2", "per_gpu=2"]
    script = Path(__file__).resolve().parents[2] / "nonlocal" / "tables.py"
    done = commands.run(tmp_path, *words, script=str(script), forking=True)
    assert done.returncode == 0, done.stderr
    assert "71.8" in done.stdout


@pytest.mark.slow
def test_half_of_each_real_video_trains_and_the_other_half_tests(shared_data, commands, tmp_path):
    words = ["experiment=mini", "data=instances", f"data.root={shared_data / 'videos'}"]
    words += ["data.limit=4", "steps=2", "batch_size=2", "per_gpu=2", "precise_norm=0"]
    words += ["clip.frames=8", "clip.crop=48", "clip.jitter=[56,64]", "network.at=[res3.0]"]
    words += ["test.size=56", "test.clips=2", "test.crops=1", f"hydra.run.dir={tmp_path}"]
    done = commands.run("nonlocal", *words)
    assert done.returncode == 0, done.stderr
    assert "top5" in json.loads((tmp_path / "result.json").read_text())["metrics"]
