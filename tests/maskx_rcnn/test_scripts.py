"""The commands of maskx_rcnn as a user types them."""

import json

import pytest
import torch

from tests.commands import REPOSITORY
from tests.train_scripts import TrainScript, lines, weights

TRAIN = str(REPOSITORY / "maskx_rcnn" / "train.py")
BRANCH = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")


class TestMaskXRCNN(TrainScript):
    project = "maskx_rcnn"
    figure = "masks.png"
    metrics = ("mask_AP_A", "mask_AP_B", "mask_AP", "box_AP", "box_AP_B", "mask_AP50_B")
    typos = (
        ("branch.sorce=cls", "branch.source"),
        ("branch.source=bx", "branch.source=box"),
        ("branch.layers=4", "range"),
        ("lr=abc", "a number"),
        ("stage=mask", "masks"),
        ("data.masks=evn", "even"),
        ("batch_size=3", "batch_size=3 is no multiple of 2"),
        ("branch.source=embedding", "FILE.npy"),
    )
    missing = ("data=coco",)
    batch = ("batch_size", 4, 8)

    def test_two_processes_train_as_one(self, smoke, commands, tmp_path):
        done = self.run(commands, tmp_path, "processes=2", forking=True)
        assert done.returncode == 0, done.stderr
        a, b = weights(smoke(self.project), 6), weights(tmp_path, 6)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
        one, two = (
            json.loads((folder / "result.json").read_text())["metrics"]
            for folder in (smoke(self.project), tmp_path)
        )
        assert one.keys() == two.keys()

    def test_counts_of_masks_are_printed_before_the_first_step(self, commands, tmp_path):
        done = self.run(commands, tmp_path, "steps=1")
        assert done.returncode == 0, done.stderr
        printed = done.stdout.index("objects have a mask")
        assert "hue 000" in done.stdout[printed:]
        assert printed < done.stdout.index("step 1/1")

    def test_the_branch_alone_is_trained_on_a_detector_that_runs_share(self, commands, tmp_path):
        runs = {
            "one": [],
            "two": ["branch.kind=agnostic", "processes=2"],
            "images": ["cached_rois=0"],
        }
        for name, words in runs.items():
            words = ["experiment=smoke", "stage=masks", *words, f"hydra.run.dir={tmp_path / name}"]
            done = commands.run(tmp_path, *words, script=TRAIN, forking=True)
            assert done.returncode == 0, done.stderr
            assert ("is trained first" in done.stdout) == (name == "one")
        (detector,) = (tmp_path / "outputs" / "detectors").glob("*-seed0")
        before = weights(detector, 4)
        for name in runs:
            after = weights(tmp_path / name, 6)
            kept = {key for key in before if not key.startswith(BRANCH)}
            assert kept == {key for key in after if not key.startswith(BRANCH)}
            assert all(torch.equal(before[key], after[key]) for key in kept)
            assert {"loss_mask", "lr"} <= lines(tmp_path / name)[0].keys()

    def test_settings_are_compared_side_by_side_on_one_detector(self, commands, tmp_path):
        words = ["experiment=smoke", "stage=masks", "steps=2", f"hydra.run.dir={tmp_path / 'run'}"]
        words += ["+versus.agnostic=['branch.kind=agnostic']", "+versus.transfer=[]"]
        done = commands.run(tmp_path, *words, script=TRAIN, forking=True)
        assert done.returncode == 0, done.stderr
        table = (tmp_path / "run" / "versus.md").read_text()
        assert "| agnostic " in table
        assert "mask_AP_B" in table
        assert (tmp_path / "run" / "masks.png").exists()
        assert len(list((tmp_path / "outputs" / "detectors").glob("*-seed0"))) == 1

    def test_a_training_set_without_masks_stops_before_the_first_step(self, commands, tmp_path):
        done = self.run(commands, tmp_path, "data.mask_share=0")
        assert done.returncode == 2
        assert "has no masks for A" in done.stderr
        assert "step 1/" not in done.stdout
        assert (
            self.run(
                commands, tmp_path, "data.mask_share=0", "stage=detector", "steps=1"
            ).returncode
            == 0
        )

    @pytest.mark.parametrize("word", ["network.backbone=vgg", "init=/no/such/file.pth"])
    def test_what_cannot_be_built_is_said_in_one_sentence(self, word, commands, tmp_path):
        done = self.run(commands, tmp_path, word)
        assert done.returncode == 2
        assert word.split("=")[1] in done.stderr
        assert "Traceback" not in done.stderr
