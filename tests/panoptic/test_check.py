"""Faults of a data set show before the first step, and `check_data.py` finds the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import run as run_command
from common.run import checkpoint
from panoptic import check_data, train
from panoptic.config import Config, Data, Merge, Model, Predict
from panoptic.files.coco import write_ids
from tests.panoptic.test_data import coco_set


@pytest.fixture
def root(tmp_path):
    """A set of one image in each split."""
    coco_set(tmp_path)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    names = ("annotations/panoptic_train", "annotations/panoptic_val")
    shutil.copytree(tmp_path / names[0], tmp_path / names[1])
    shutil.copy(tmp_path / f"{names[0]}.json", tmp_path / f"{names[1]}.json")
    return tmp_path


def change(root: Path, edit) -> None:
    """Edit the JSON of the validation split."""
    file = root / "annotations" / "panoptic_val.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def draw(root: Path, ids: np.ndarray) -> None:
    write_ids(root / "annotations" / "panoptic_val" / "one.png", ids)


def garble(path: Path) -> None:
    path.write_bytes(b"x" * 60)


FAULTS = {
    "differ in their categories: 3 is 'dog' .thing. in the one and absent": lambda root: change(
        root, lambda c: c["categories"].pop(2)
    ),
    "has no images": lambda root: change(root, lambda c: c.update(annotations=[], images=[])),
    r"panoptic_val/one\.png does not exist": lambda root: (
        root / "annotations/panoptic_val/one.png"
    ).unlink(),
    r"val/one\.png does not exist": lambda root: (root / "val/one.png").unlink(),
    r"one\.png .image 5.: id 4 is in the map": lambda root: draw(root, np.full((20, 30), 4)),
    r"one\.png is 20 x 30 pixels, but image 5": lambda root: draw(root, np.ones((30, 20), int)),
    r"one\.png is 9 x 9 pixels, but its panoptic map": lambda root: Image.new("RGB", (9, 9)).save(
        root / "val/one.png"
    ),
    r"one\.png cannot be read as": lambda root: garble(root / "val/one.png"),
    r"one\.png is not a PNG": lambda root: garble(root / "annotations/panoptic_val/one.png"),
    "image 5 has the height None": lambda root: change(
        root, lambda c: c["images"][0].update(height=None)
    ),
    "image 5 has no list `segments_info`": lambda root: change(
        root, lambda c: c["annotations"][0].update(segments_info=None)
    ),
}


def settings(root: Path, folder: Path) -> Config:
    return Config(
        steps=1,
        batch_size=1,
        data=Data(root=str(root), short_side=[32], test_short_side=32, workers=0),
        model=Model(backbone="mini", norm="gn", freeze_at=0),
        merge=Merge(confidence=0.0),
        predict=Predict(batch_size=1, pictures=0),
        output_dir=str(folder),
    )


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_of_the_validation_split_shows_before_the_first_step(
    root, message, tmp_path, monkeypatch
):
    def too_late(*_):
        raise AssertionError("training begins")

    FAULTS[message](root)
    monkeypatch.setattr(train.dist, "wrap", too_late)
    with pytest.raises(ValueError, match=message):
        train.train(settings(root, tmp_path / "run"))
    checkpoint.unlock(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        check_data.check("coco", root)


def test_a_sound_set_is_counted_and_trains(root, tmp_path, capsys):
    run_command(lambda: check_data.main(["coco", str(root), "--workers", "0"]))
    printed = capsys.readouterr().out
    assert "val: 1 images (0 without segments)" in printed
    assert [line.split() for line in printed.splitlines() if " cat " in line] == [
        ["7", "cat", "thing", "1", "0"]
    ] * 2
    assert printed.endswith("no fault found\n")
    assert "PQ" in train.train(settings(root, tmp_path / "run"))
    checkpoint.unlock(tmp_path / "run")


def test_a_set_without_things_says_which_network_learns_from_it(root, capsys):
    for split in ("train", "val"):
        file = root / "annotations" / f"panoptic_{split}.json"
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["isthing"] = 0
        file.write_text(json.dumps(content))
    check_data.check("coco", root)
    assert "only model.part=semantic can learn from it" in capsys.readouterr().out


def test_the_command_ends_with_one_sentence_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: check_data.main(["coco", str(tmp_path)]))
    assert ended.value.code == 2
    assert "has no panoptic annotations of 'train'" in capsys.readouterr().err


def test_a_finished_run_is_not_checked_twice(root, tmp_path, monkeypatch):
    cfg = settings(root, tmp_path / "run")
    train.train(cfg)
    checkpoint.unlock(cfg.output_dir)
    monkeypatch.setattr(train.data, "check_validation", None)
    train.train(replace(cfg, only_evaluate=True))
    checkpoint.unlock(cfg.output_dir)
