"""The problem of a configuration: features from files of every kind, or made once from images."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.run import checkpoint
from lowshot_hallucination import data, train
from lowshot_hallucination.backbone.loop import Backbone
from lowshot_hallucination.config import Config, Problem
from lowshot_hallucination.features.episodes import Episodes
from lowshot_hallucination.features.formats import Features, read_folder, write_hdf5
from lowshot_hallucination.features.images import ImageData, Images, build_images
from lowshot_hallucination.features.problem import LowShot
from lowshot_hallucination.hallucinate import Hallucination
from lowshot_hallucination.model import Learner
from lowshot_hallucination.net.trunks import Trunk
from lowshot_hallucination.protocol.draws import Test
from lowshot_hallucination.weights.initialise import restore

from .small import NAMES, SPLIT, make_rows, settings, write_folder, write_root

TABLE = make_rows(8, 2)


def build(features: Path, **options: Any) -> LowShot:
    return data.build(settings(features, "unused", **options))


def write_table(folder: Path, kind: str, features: Features = TABLE) -> Path:
    path = folder / f"table.{kind}"
    if kind == "hdf5":
        pytest.importorskip("h5py")
        write_hdf5(path, features)
    elif kind == "npz":
        np.savez(path, features=features.values, labels=features.labels)
    else:
        np.save(path, features.values)
        np.save(folder / "table_labels.npy", features.labels)
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "hdf5"])
def test_a_table_in_any_file_is_parted_into_the_same_support_and_queries(tmp_path, kind):
    lowshot = build(write_table(tmp_path, kind))
    assert lowshot.split.names == [str(k) for k in range(24)]
    assert [len(lowshot.split.base), len(lowshot.split.novel)] == [12, 12]
    assert np.bincount(lowshot.train.labels).tolist() == [6] * 24
    assert np.bincount(lowshot.test.labels).tolist() == [2] * 24  # a quarter
    rows = np.concatenate([lowshot.train.values, lowshot.test.values])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, TABLE.values))
    (tmp_path / "other").mkdir()
    again = build(write_table(tmp_path / "other", "npz"))
    assert lowshot.digest() == again.digest()
    assert again.split == lowshot.split


def test_labels_may_be_anywhere_and_have_gaps(tmp_path):
    path = write_table(tmp_path, "npy", replace(TABLE, labels=3 * TABLE.labels + 1))
    (tmp_path / "table_labels.npy").rename(tmp_path / "classes.npy")
    with pytest.raises(ValueError, match=r"needs its classes: there is no .*give labels=FILE"):
        build(path)
    lowshot = build(path, labels=str(tmp_path / "classes.npy"))
    assert sorted(lowshot.split.base + lowshot.split.novel) == [3 * k + 1 for k in range(24)]
    assert lowshot.notes == ("base and novel classes are drawn by problem.seed",)
    with pytest.raises(ValueError, match=r"gone does not exist: give a file of features"):
        build(tmp_path / "gone")


def test_the_seed_and_the_share_of_a_table_are_the_problems(tmp_path):
    path = write_table(tmp_path, "npz")
    plain = build(path)
    other = build(path, problem=Problem(seed=1, queries_share=0.5))
    assert other.split != plain.split
    assert np.bincount(other.test.labels).tolist() == [4] * 24


def test_a_json_says_which_classes_are_base_and_novel(tmp_path):
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"base": [3, 5, 7, 9], "novel": ["2", "4"]}))
    lowshot = build(write_table(tmp_path, "npz"), problem=Problem(split=str(file)))
    assert (lowshot.split.base, lowshot.split.novel) == ([3, 5, 7, 9], [2, 4])
    assert set(lowshot.train.labels) == {2, 3, 4, 5, 7, 9}
    root = write_root(tmp_path / "folder")
    assert build(root).split == SPLIT
    file.write_text(json.dumps({"base": NAMES[:4], "novel": NAMES[4:8]}))
    renamed = build(root, problem=Problem(split=str(file)))
    assert renamed.split.base == [0, 1, 2, 3]
    assert renamed.split.names == NAMES
    file.write_text(json.dumps({"base": ["thing 99"], "novel": NAMES[4:8]}))
    with pytest.raises(ValueError, match=r"split\.json: base has the class 'thing 99'"):
        build(root, problem=Problem(split=str(file)))


def test_a_novel_class_with_too_few_rows_for_the_shots_is_named_before_any_step(tmp_path):
    test = Test(shots=[1, 7], draws=2)
    with pytest.raises(
        ValueError, match=r"novel class '\d+' .* has 6 rows .* the 7 of test\.shots"
    ):
        build(write_table(tmp_path, "npz"), test=test)


def test_split_files_give_the_rows_of_each_draw_and_as_many_as_are_tested(tmp_path):
    root = write_root(tmp_path / "folder")
    for k in (1, 2):
        rows = [[10 * c + (i + k) % 10 for i in range(4)] for c in range(24)]
        (tmp_path / f"splitfile_{k}.json").write_text(json.dumps(rows))
    lowshot = build(root, problem=Problem(split_files=str(tmp_path)))
    assert lowshot.picks is not None
    assert [picks[5, :2].tolist() for picks in lowshot.picks] == [[51, 52], [52, 53]]
    with pytest.raises(ValueError, match=r"splitfile_3\.json"):
        build(root, problem=Problem(split_files=str(tmp_path)), test=Test(shots=[1], draws=3))
    with pytest.raises(ValueError, match=r"split_files=.* a folder with the files train and test"):
        build(write_table(tmp_path, "npz"), problem=Problem(split_files=str(tmp_path)))


def test_the_header_says_where_top_5_of_few_classes_tells_nothing(tmp_path):
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"base": NAMES[:4], "novel": NAMES[4:8]}))
    cfg = settings(write_root(tmp_path / "f"), "unused", problem=Problem(split=str(file)))
    assert "top-5 of 2 novel classes is always right" in data.describe(data.build(cfg), cfg)
    assert "always right" not in data.describe(build(cfg.features), cfg)
    cfg.test.top = 1
    assert "always right" not in data.describe(data.build(cfg), cfg)


def test_rescaling_divides_everything_by_the_mean_of_the_base_classes(tmp_path):
    root = write_root(tmp_path / "folder")
    plain, scaled = build(root), build(root, problem=Problem(rescale=True))
    base = np.isin(plain.train.labels, SPLIT.base)
    mean = plain.train.values[base].mean(dtype=np.float64)
    for one, other in ((plain.train, scaled.train), (plain.test, scaled.test)):
        np.testing.assert_allclose(other.values, one.values / mean, rtol=1e-5)
        assert other.values.dtype == np.float32
    zeros = replace(TABLE, values=np.zeros_like(TABLE.values))
    with pytest.raises(ValueError, match=r"mean 0, .*: give problem\.rescale=false"):
        build(write_table(tmp_path, "npz", zeros), problem=Problem(rescale=True))


def test_rows_that_are_both_support_and_queries_are_reported(tmp_path, capsys):
    rows = make_rows(4, 1)
    write_folder(tmp_path / "folder", rows, rows.take(np.arange(0, 96, 4)), SPLIT, {})
    build(tmp_path / "folder")
    assert (
        "WARNING: 24 of 96 rows of the supports' pool are also queries" in capsys.readouterr().out
    )


def test_views_are_asked_for_where_the_folder_has_none(tmp_path):
    root = write_root(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"views: .*train\.npy comes without train_views\.npy"):
        build(root, hallucination=Hallucination("views"))


def test_the_header_says_what_is_tested_on_what(tmp_path):
    cfg = settings(write_root(tmp_path / "folder"), "unused")
    said = data.describe(data.build(cfg), cfg)
    assert said.startswith("pn, hallucination learned; 240 + 96 rows of 8 features; classes: ")
    for part in ("6 base_1", "6 base_2", "6 novel_1", "6 novel_2", "protocol new"):
        assert part in said


# Features of images


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Four images of 16 pixels of each of six classes."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(6):
        (root / f"class{k}").mkdir()
        for number in range(4):
            pixels = rng.integers(0, 60, (16, 16, 3)) + 35 * k
            file = root / f"class{k}" / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


def of_images(photos: Path, **options: Any) -> Config:
    plain = {
        "data": ImageData("folder", str(photos), size=16, resize=16, crop="none", jitter=0.0),
        "trunk": Trunk("small", channels=8),
        "backbone": Backbone(epochs=2, batch_size=4),
        "episodes": Episodes(shots=[1, 2], queries=1),
        "test": Test(shots=[1], draws=2),
    }
    return settings("", "unused", **plain | options)


@pytest.fixture
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_own_cache")
def test_features_of_images_are_made_once_and_serve_as_a_feature_folder(photos, capsys):
    cfg = of_images(photos)
    folder = Path(data.prepare(cfg))
    said = capsys.readouterr().out
    assert f"Features of folder are made once, in {folder}." in said
    train, test, content = read_folder(folder)
    assert train.values.shape == (18, 32)
    assert test.values.shape == (6, 32)
    assert content["names"] == [f"class{k}" for k in range(6)]
    assert content["trunk"]["folder"] == str(folder.with_suffix(".trunk"))
    before = (folder / "train.npy").stat().st_mtime_ns
    assert data.prepare(replace(cfg, seed=9, steps=1)) == str(folder)
    assert "made once" not in capsys.readouterr().out
    assert (folder / "train.npy").stat().st_mtime_ns == before
    lowshot = data.build(replace(cfg, features=str(folder)))
    assert "name=small" in data.describe(lowshot, cfg)


def test_the_trunk_follows_problem_seed_and_precision(photos, tmp_path):
    found = {}
    changes: dict[str, dict] = {
        "plain": {},
        "again": {},
        "seed": {"problem": Problem(seed=1)},
        "amp": {"amp": True},
    }
    for name, changed in changes.items():
        cfg = of_images(photos, **changed)
        data.train_trunk(cfg, build_images(cfg.data), tmp_path / name)
        checkpoint.unlock(tmp_path / name)
        found[name] = restore(tmp_path / name).head.weight
    assert torch.equal(found["plain"], found["again"])
    for name in ("seed", "amp"):
        assert not torch.allclose(found["plain"], found[name], rtol=0, atol=1e-7), name


@pytest.mark.usefixtures("_own_cache")
def test_a_class_of_too_few_images_is_named_before_a_trunk_is_trained(photos, tmp_path):
    def said(**options: Any) -> str:
        with pytest.raises(ValueError, match="has 3 images") as caught:
            data.prepare(of_images(photos, **options))
        return str(caught.value)

    assert "fewer than the 4 of test.shots" in said(test=Test(shots=[1, 4], draws=2))
    episodes = Episodes(shots=[1, 2], queries=2)
    assert "fewer than the 4 of episodes.shots, episodes.queries" in said(episodes=episodes)
    assert not (tmp_path / "cache").exists()
    nearest = Learner(method="nearest")
    plain = Hallucination(kind="none")
    data.require_images(*problem_of(photos, learner=nearest, hallucination=plain))


def test_an_image_that_cannot_be_read_is_named_before_a_trunk_is_trained(photos, tmp_path):
    damaged = sorted((photos).rglob("*.png"))[-1]  # of the test
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(ValueError, match=rf"{damaged.name}.*data.bad_images=skip"):
            data.prepare(of_images(photos))
    finally:
        damaged.write_bytes(content)
    assert not [*(tmp_path / "cache").rglob("checkpoint*")]


def test_the_record_of_a_trunk_says_its_steps(photos, tmp_path):
    cfg = replace(of_images(photos), output_dir=str(tmp_path / "run"))
    try:
        train.train_trunk(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["steps"] == 2 * (9 // 4)  # two epochs of 9 base images in batches of 4


def problem_of(photos: Path, **options: Any) -> tuple[Config, Images]:
    cfg = of_images(photos, episodes=Episodes(shots=[9], queries=9), **options)
    return cfg, build_images(cfg.data)


@pytest.mark.usefixtures("_own_cache")
def test_a_trunk_with_weights_is_not_trained(photos, tmp_path):
    first = Path(data.prepare(of_images(photos)))
    trunk = Trunk("small", channels=8, weights=str(first.with_suffix(".trunk")))
    second = Path(data.prepare(of_images(photos, trunk=trunk, backbone=Backbone(epochs=7))))
    assert second != first
    assert not second.with_suffix(".trunk").exists()
    np.testing.assert_array_equal(np.load(second / "train.npy"), np.load(first / "train.npy"))


def test_the_key_of_features_changes_with_what_they_depend_on_and_nothing_else(photos, tmp_path):
    cfg = of_images(photos)

    def key(each: Config) -> str:
        return data.key_of(each, build_images(each.data))

    plain = key(cfg)
    same = [
        replace(cfg, seed=5, lr=1.0, steps=9, processes=2, log_every=7),
        replace(cfg, data=replace(cfg.data, workers=2)),
        replace(cfg, data=replace(cfg.data, views=4)),
    ]
    assert {key(each) for each in same} == {plain}
    backbone, trunk, where = cfg.backbone, cfg.trunk, cfg.data
    others = [
        replace(cfg, problem=Problem(seed=1)),
        replace(cfg, amp=True),
        replace(cfg, backbone=replace(backbone, epochs=3)),
        replace(cfg, trunk=replace(trunk, channels=9)),
        replace(cfg, trunk=replace(trunk, mean=[0.5] * 3)),
        replace(cfg, data=replace(where, resize=17)),
        replace(cfg, data=replace(where, split_seed=1)),
    ]
    keys = [key(each) for each in others]
    assert len({plain, *keys}) == 1 + len(others)
    file = tmp_path / "weights.pt"
    weighted = replace(cfg, trunk=replace(trunk, weights=str(file)))
    found = set()
    for time in (1, 2):
        file.write_bytes(b"x")
        os.utime(file, (time, time))
        found.add(key(weighted))
    extra = photos / "class0" / "extra.png"
    extra.write_bytes((photos / "class0" / "0.png").read_bytes())
    found.add(key(cfg))
    extra.unlink()
    assert len({plain, *found}) == 4
    assert key(cfg) == plain
