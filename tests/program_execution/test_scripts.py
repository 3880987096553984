"""The commands of program_execution as a user types them."""

import json

import torch

from tests.commands import run_alone
from tests.train_scripts import TrainScript, weights


class TestProgramExecution(TrainScript):
    project = "program_execution"
    figure = "programs.png"
    metrics = ("accuracy", "exist", "count", "query_color", "compare_attribute")
    typos = (
        ("model.hiden=1", "model.hidden"),
        ("stage=jiont", "joint"),
        ("data.subset=frist", "first"),
        ("data.train=train:shrot", "train:short"),
        ("model.name=lstm", "stage=baseline"),
    )
    missing = ("data=clevr",)
    batch = ("ee.batch_size", 16, 8)

    def test_two_processes_train_as_one(self, smoke, tmp_path):
        words = ("experiment=smoke", "processes=2", f"hydra.run.dir={tmp_path}")
        two = run_alone(self.project, *words, FAIR_VISION_TIMEOUT="110")
        assert two.returncode == 0, two.stderr
        a, b = weights(smoke(self.project), 6), weights(tmp_path, 6)
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)
        one_, two_ = (
            json.loads((folder / "result.json").read_text())["metrics"]
            for folder in (smoke(self.project), tmp_path)
        )
        assert one_.keys() == two_.keys()
