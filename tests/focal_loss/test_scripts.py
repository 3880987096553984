"""The commands of focal_loss as a user types them."""

import json

import torch

from common.run import checkpoint
from tests.commands import run_alone
from tests.train_scripts import TrainScript, weights


class TestFocalLoss(TrainScript):
    project = "focal_loss"
    figure = "detections.png"
    metrics = ("AP", "AP50", "AP75")
    typos = (
        ("los.gamma=1", "loss.gamma"),
        ("loss.gama=1", "loss.gamma"),
        ("experiment=smok", "smoke"),
        ("lr=abc", "a number"),
        ("loss.kind=focul", "focal"),
        ("lr=-1", "range"),
        ("data.root_=x", "data.root"),
    )
    missing = ("data=coco",)
    batch = ("batch_size", 4, 8)

    def test_two_processes_train_as_one(self, commands, tmp_path):
        one = self.run(commands, tmp_path / "one", "loss.normalizer=world")
        assert one.returncode == 0, one.stderr
        words = ("experiment=smoke", "loss.normalizer=world", "processes=2")
        words = (*words, f"hydra.run.dir={tmp_path}/two")
        two = run_alone(self.project, *words, FAIR_VISION_TIMEOUT="60")
        assert two.returncode == 0, two.stderr
        a, b = weights(tmp_path / "one", 6), weights(tmp_path / "two", 6)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
        one_, two_ = (
            json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")
        )
        assert one_["metrics"].keys() == two_["metrics"].keys()

    def test_a_diverging_run_says_so_and_keeps_its_last_checkpoint(self, commands, tmp_path):
        done = self.run(commands, tmp_path, "steps=40", "lr=1e9", "save_every=1", "warmup=0")
        assert done.returncode == 1
        assert "not finite" in done.stderr
        assert "scenes/0/" in done.stderr  # the batch's images
        result = json.loads((tmp_path / "result.json").read_text())
        step = result["diverged"]["step"]
        checkpoint.load(tmp_path / f"checkpoint-{step - 1:08d}.pt")

    def test_versus_compares_settings_side_by_side(self, commands, tmp_path):
        other = "['loss.gamma=0', 'lr=1e9', 'warmup=0', 'steps=40']"
        words = ("+versus.a=[]", f"+versus.b={other}")
        done = self.run(commands, tmp_path, *words, forking=True)
        assert done.returncode == 0, done.stderr
        table = (tmp_path / "versus.md").read_text()
        assert "| a " in table
        assert "diverged at step" in table
        assert table.strip() in done.stdout
