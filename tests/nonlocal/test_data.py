"""Splits: whose classes count, where lists lie, and what is wrong with them."""

from pathlib import Path

import pytest
import torch

from nonlocal_ import data
from nonlocal_.config import Data
from nonlocal_.net.detectors import Detector

from .small import DETECTOR, photos, settings, videos, write_array, write_list, write_photos


def test_numbers_are_classes_as_training_shows_them_and_validation_may_not_have_more(tmp_path):
    write_list(tmp_path, "train", ["0", "4", "1"])
    write_list(tmp_path, "val", ["2"])
    cfg = settings(tmp_path, data=videos(tmp_path, limit=1))
    training = data.build(cfg, training=True)
    assert training.names == ["0", "1", "2", "3", "4"]
    assert len(training.dataset) == 1
    assert data.build(cfg, training=False, like=training).names == training.names
    write_list(tmp_path, "val", ["5"])
    with pytest.raises(ValueError, match=r"val\.txt, line 1: label 5, and there are 5 classes"):
        data.build(cfg, training=False, like=training)


def test_folders_name_classes_and_validation_has_those_of_training(tmp_path):
    for split, names in (("train", ["b", "a", "c"]), ("val", ["c"])):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            write_array(tmp_path / split / name / "x.npy", 6)
    cfg = settings(tmp_path, data=videos(tmp_path, train="train", val="val"))
    training = data.build(cfg, training=True)
    assert training.names == ["a", "b", "c"]
    validation = data.build(cfg, training=False, like=training)
    assert [record.labels for record in validation.records] == [(2,)]
    (tmp_path / "val" / "d").mkdir()
    write_array(tmp_path / "val" / "d" / "x.npy", 6)
    with pytest.raises(ValueError, match="none of the 3 classes"):
        data.build(cfg, training=False, like=training)


def test_halves_of_videos_train_and_test(tmp_path):
    for name in ("a", "b"):
        write_array(tmp_path / f"{name}.npy", 20)
    options = {"train": ".", "val": ".", "class_by": "file"}
    parts = {"train_part": [0.0, 0.5], "val_part": [0.5, 1.0]}
    cfg = settings(tmp_path, data=videos(tmp_path, **options, **parts))
    training = data.build(cfg, training=True)
    validation = data.build(cfg, training=False, like=training)
    assert training.names == ["a", "b"]
    assert {record.part for record in training.records} == {(0.0, 0.5)}
    assert {record.part for record in validation.records} == {(0.5, 1.0)}


def test_a_list_may_lie_elsewhere_and_a_missing_one_is_named_with_its_root(tmp_path):
    (tmp_path / "videos").mkdir()
    write_list(tmp_path / "videos", "train", ["0", "1"])
    (tmp_path / "videos" / "train.txt").rename(tmp_path / "mine.txt")
    cfg = settings(tmp_path, data=videos(tmp_path / "videos", train=str(tmp_path / "mine.txt")))
    training = data.build(cfg, training=True)
    assert training.records[0].path == str(tmp_path / "videos" / "train0.npy")
    training.check()
    with pytest.raises(ValueError, match=r"val\.txt does not exist: data\.root=.*data\.val=val"):
        data.build(cfg, training=False, like=training)
    cfg.data.classes = "names.txt"
    with pytest.raises(ValueError, match=r"names\.txt cannot be read"):
        data.build(cfg, training=True)
    (tmp_path / "mine.txt").write_text("\n")
    cfg.data.classes = ""
    with pytest.raises(ValueError, match=r"mine\.txt lists no video"):
        data.build(cfg, training=True)


def test_videos_that_repeat_are_told_of(tmp_path, capsys):
    write_list(tmp_path, "train", ["0", "1"])
    (tmp_path / "val.txt").write_text("train1.npy 1\n")
    halves = {"train_part": [0.0, 0.5], "val_part": [0.5, 1.0]}
    for options, shared in (({}, True), (halves, False)):
        cfg = settings(tmp_path, data=videos(tmp_path, **options))
        splits = [data.build(cfg, training=training) for training in (True, False)]
        data.warn_of_repeats(cfg, *splits)
        told = capsys.readouterr().err
        assert ("1 videos of data.val are in data.train too, such as" in told) == shared
        assert len(told.splitlines()) == shared
    (tmp_path / "train.txt").write_text("train0.npy 0\ntrain0.npy 1\n")
    data.warn_of_repeats(cfg, data.build(cfg, training=True), splits[1])
    assert "1 videos of data.train have several labels" in capsys.readouterr().err


def test_several_labels_need_their_task(tmp_path):
    write_list(tmp_path, "train", ["0,1"])
    with pytest.raises(ValueError, match=r"train0\.npy has 2 labels: set task=multi_label"):
        data.build(settings(tmp_path, data=videos(tmp_path)), training=True)


def test_a_batch_of_views_is_cut_at_whole_videos_and_whole_frames_come_alone(tmp_path):
    write_list(tmp_path, "val", ["0", "1", "0"])
    cfg = settings(tmp_path, data=videos(tmp_path, train="val.txt"))
    for crops, mirror, size, shapes in (
        (3, False, 7, [(6, 32, 32)] * 3),
        (1, True, 5, [(4, 32, 32)] * 3),
        (0, False, 7, [(1, 32, 48)] * 6),
    ):
        cfg.test.clips, cfg.test.crops, cfg.test.mirror = 2, crops, mirror
        cfg.test.batch_size = size
        batches = list(data.views(data.build(cfg, training=False), cfg))
        assert [(len(c), *c.shape[-2:]) for c, _, _ in batches] == shapes
        for clips, labels, numbers in batches:
            assert len(clips) == len(labels) == len(numbers)
            assert [int(label) for label in labels] == [number % 2 for number in numbers]


def test_joints_other_than_cocos_stop_before_training(tmp_path):
    root = write_photos(tmp_path / "coco", ["nose", "left_hand", "right_hand"])
    cfg = photos(root, tmp_path)
    cfg.detector = Detector(**DETECTOR | {"kind": "keypoints"})
    with pytest.raises(ValueError, match=r"3 joints.*detector\.kind=masks"):
        data.build(cfg, training=True)


def test_the_share_of_each_process_is_checked(tmp_path, monkeypatch):
    write_list(tmp_path, "val", ["0", "1", "0"])
    cfg = settings(tmp_path, data=videos(tmp_path, train="val.txt"))
    (tmp_path / "val1.npy").write_bytes(b"no array")
    validation = data.build(cfg, training=False)
    monkeypatch.setattr("common.dist.world_size", lambda: 2)
    validation.check()  # rank 0 has the others
    monkeypatch.setattr("common.dist.rank", lambda: 1)
    with pytest.raises(ValueError, match=r"val1\.npy"):
        validation.check()


def test_clips_of_the_built_in_data_are_their_only_view(tmp_path):
    cfg = settings(tmp_path)
    validation = data.build(cfg, training=False)
    assert validation.names == ["different", "same"]
    found = list(data.views(validation, cfg))
    assert [number for _, _, numbers in found for number in numbers] == list(range(6))
    clips, labels, _ = found[0]
    assert torch.equal(clips[0], validation.dataset[0][0])
    assert int(labels[0]) == validation.dataset[0][1]


def test_no_limit_or_part_below_zero():
    with pytest.raises(ValueError, match=r"data\.limit"):
        Data(root="", limit=-1)
    with pytest.raises(ValueError, match=r"data\.val_part"):
        Data(root="", val_part=[0.0])


def test_the_folder_of_a_missing_root_is_named():
    cfg = settings(".", data=videos(Path("/no/such/folder")))
    with pytest.raises(ValueError, match="/no/such/folder"):
        data.build(cfg, training=True)


def test_photos_are_mirrored_in_training_as_often_as_clips(tmp_path):
    cfg = photos(write_photos(tmp_path / "coco"), tmp_path / "run")
    cfg.clip.flip = 0.0
    plain, there = data.build(cfg, training=True).dataset[0]
    cfg.clip.flip = 1.0
    image, target = data.build(cfg, training=True).dataset[0]
    assert torch.equal(image, plain.flip(-1))
    width = image.shape[-1]
    mirrored = torch.stack([width - there["boxes"][:, 2], width - there["boxes"][:, 0]], 1)
    torch.testing.assert_close(target["boxes"][:, ::2], mirrored)


def test_how_videos_are_read_and_labelled_is_as_the_options_say(tmp_path):
    options = {"clip_labels": False, "reader": "pyav", "damaged": "play"}
    clips = data.clips_of(settings(tmp_path, data=videos(tmp_path, **options)), ["a", "b"])
    assert {name: getattr(clips, name) for name in options} == options
