"""The commands of large_minibatch as a user types them."""

import json
import shutil
from pathlib import Path

import torch

from tests.commands import run_alone
from tests.train_scripts import TrainScript, weights


def require_close(folder: Path, other: Path) -> None:
    a, b = weights(folder, 6), weights(other, 6)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


class TestLargeMinibatch(TrainScript):
    project = "large_minibatch"
    figure = "predictions.png"
    metrics = ("error", "val_error", "train_error")
    typos = (
        ("rates.base=1", "rate.base"),
        ("rate.warmups=none", "rate.warmup"),
        ("rate.rule=linaer", "linear"),
        ("batch_size=many", "a whole number"),
        ("batch_size=36", "nearest that works is 32 or 40"),
        ("norm.group=7", "group=7"),
    )
    missing = ("data=imagenet",)
    batch = ("batch_size", 32, 16)

    def test_two_processes_train_as_one_and_count_each_image_once(self, smoke, tmp_path):
        words = ("experiment=smoke", "processes=2", f"hydra.run.dir={tmp_path}")
        done = run_alone(self.project, *words, FAIR_VISION_TIMEOUT="60")
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        require_close(smoke(self.project), tmp_path)
        one, two = (
            json.loads((folder / "result.json").read_text())["metrics"]
            for folder in (smoke(self.project), tmp_path)
        )
        assert one["val_error"] == two["val_error"]
        assert one["train_error"] == two["train_error"]

    def test_our_own_allreduce_trains_as_ddp(self, smoke, commands, tmp_path):
        words = ("processes=2", "allreduce=halving_doubling", "overlap=false")
        done = self.run(commands, tmp_path, *words, forking=True)
        assert done.returncode == 0, done.stderr
        require_close(smoke(self.project), tmp_path)

    def test_another_number_of_processes_resumes_the_same_stream(self, smoke, commands, tmp_path):
        shutil.copy(smoke(self.project) / "checkpoint-00000003.pt", tmp_path)
        done = self.run(commands, tmp_path, "processes=2", forking=True)
        assert done.returncode == 0, done.stderr
        require_close(smoke(self.project), tmp_path)
