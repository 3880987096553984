"""The commands of panoptic as a user types them."""

import json

import torch

from tests.commands import run_alone
from tests.train_scripts import TrainScript, weights


class TestPanoptic(TrainScript):
    project = "panoptic"
    figure = "predictions.png"
    metrics = ("PQ", "SQ_th", "RQ_st", "separate_PQ_th", "components_PQ")
    typos = (
        ("merg.overlap=1", "merge.overlap"),
        ("predict.sourse=merged", "predict.source"),
        ("predict.source=merge", "merged"),
        ("model.part=semantic", "predict.source=separate"),
        ("merge.confidence=2", "merge.confidence"),
        ("data.scenes.together=9", "together"),
    )
    missing = ("data=coco",)
    batch = ("batch_size", 4, 8)

    def test_two_processes_train_as_one(self, commands, tmp_path):
        words = ("steps=3", "predict.pictures=0")
        one = self.run(commands, tmp_path / "one", *words, "accumulate=2")
        words = ("experiment=smoke", *words, "processes=2", f"hydra.run.dir={tmp_path}/two")
        two = run_alone(self.project, *words, FAIR_VISION_TIMEOUT="110")
        assert one.returncode == two.returncode == 0, one.stderr + two.stderr
        a, b = weights(tmp_path / "one", 3), weights(tmp_path / "two", 3)
        # Batch norm's averages are those of the images that a process sees; what learns is alike.
        learnt = [key for key in a if "running_" not in key and "num_batches" not in key]
        assert any("semantic" in key for key in learnt)
        assert any("instance" in key for key in learnt)
        for key in learnt:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
        figures = [
            json.loads((tmp_path / name / "result.json").read_text())["metrics"]
            for name in ("one", "two")
        ]
        assert figures[0].keys() == figures[1].keys()
