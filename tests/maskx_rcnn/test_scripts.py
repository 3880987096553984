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
        ("lr=abc", "a number"),
        ("data.masks=evn", "even"),
        ("batch_size=3", "batch_size=3 is no multiple of 2"),
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

    def test_runs_share_a_detector_and_a_process_without_masks_does_not_hang(
        self, commands, tmp_path
    ):
        quick = ["experiment=smoke", "stage=masks", "steps=2", "test.images=0"]
        few = ["cached_rois=0", "processes=2", "data.mask_share=0.04"]
        printed = {}
        for name, words in {"one": ["branch.kind=agnostic"], "few": few}.items():
            words = [*quick, *words, f"hydra.run.dir={tmp_path / name}"]
            done = commands.run(tmp_path, *words, script=TRAIN, forking=True)
            assert done.returncode == 0, done.stderr
            printed[name] = done.stdout
        assert ["is trained first" in text for text in printed.values()] == [True, False]
        assert "1 of 48 objects have a mask" in printed["few"]  # no step has it in both processes
        assert [line["loss_mask"] > 0 for line in lines(tmp_path / "few")[:2]] == [False, True]
        (detector,) = (tmp_path / "outputs" / "detectors").glob("*-seed0")
        before = weights(detector, 4)
        kept = {key for key in before if not key.startswith(BRANCH)}
        for name in printed:
            after = weights(tmp_path / name, 2)
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

    @pytest.mark.parametrize(
        "word", ["network.backbone=vgg", "init=/no/such/file.pth", "data.masks=none.json"]
    )
    def test_what_cannot_be_built_is_said_in_one_sentence(self, word, commands, tmp_path):
        done = self.run(commands, tmp_path, word)
        assert done.returncode == 2
        assert word.split("=")[1] in done.stderr
        assert "Traceback" not in done.stderr
        assert "objects have a mask" not in done.stdout  # the table would hide it
