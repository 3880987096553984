"""Augmented images in the place of imagined examples: `hallucination.kind=views`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.run import checkpoint
from lowshot_hallucination import data
from lowshot_hallucination.backbone.extract import extract
from lowshot_hallucination.backbone.loop import Backbone
from lowshot_hallucination.config import Config
from lowshot_hallucination.features.episodes import Episodes
from lowshot_hallucination.features.formats import Features, read_folder
from lowshot_hallucination.features.images import ImageData, Images
from lowshot_hallucination.features.pool import Pool, Source, as_names
from lowshot_hallucination.features.splits import ClassSplit
from lowshot_hallucination.features.transforms import View
from lowshot_hallucination.hallucinate import Hallucination, Support, augment_support
from lowshot_hallucination.model import Learner
from lowshot_hallucination.net.trunks import Trunk, build_trunk
from lowshot_hallucination.protocol.draws import Test, generate_views
from lowshot_hallucination.train import train
from tests.lowshot_hallucination.small import write_folder

TRUNK = Trunk("small", channels=8, mean=[0.5] * 3, std=[0.25] * 3)
VIEWS = Hallucination(kind="views", n_aug=12)
CLASSES, ROWS, WIDTH = 8, 9, 6


# Features of views


def test_features_of_views_are_those_of_images_or_mirrored_ones(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (8, 3, 16, 16), np.uint8), np.arange(8) % 4
    pool = Pool(as_names([f"{i}.png" for i in range(8)]), labels, pixels=pixels)
    source = Source(ClassSplit(list("abcd"), [0], [1], [2], [3]), pool, pool)
    images = Images("toy", source, View(16, 16, crop="none", flip=True))
    torch.manual_seed(0)
    network = build_trunk(TRUNK, 4)
    extract(network, images, tmp_path / "f", run="x", views=5, batch_size=3)
    found = read_folder(tmp_path / "f")[0]
    assert isinstance(found.views, np.memmap)
    assert found.views.shape == (8, 5, network.width)
    with torch.no_grad():
        both = [network.features(torch.from_numpy(x.copy())) for x in (pixels, pixels[..., ::-1])]
    views = torch.from_numpy(np.array(found.views))
    plain, mirrored = ((views - x[:, None]).abs().amax(2) < 1e-5 for x in both)
    assert (plain ^ mirrored).all()
    assert 10 <= mirrored.sum() <= 30  # half of 40
    assert any(0 < count < 5 for count in mirrored.sum(1).tolist())  # views of one image differ


def test_one_trunk_serves_features_with_and_without_views(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for k in range(4):
        (tmp_path / "photos" / str(k)).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(40 * k, 40 * k + 60, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / str(k) / f"{i}.png")
    photos = ImageData(name="folder", root=str(tmp_path / "photos"), size=16)
    recipe = Backbone(epochs=1, batch_size=2, lr=0.01)
    episodes, test = Episodes(shots=[1], queries=1), Test(shots=[1])
    cfg = Config(data=photos, trunk=TRUNK, backbone=recipe, episodes=episodes, test=test)
    folders = [data.prepare(replace(cfg, data=replace(photos, views=n))) for n in (0, 2)]
    assert len({*folders}) == 2
    (trunk,) = (tmp_path / "cache" / "lowshot_hallucination").glob("*.trunk")
    assert len([*trunk.glob("checkpoint-*.pt")]) == 1
    plain, more = (read_folder(folder)[0] for folder in folders)
    assert np.array_equal(plain.values, more.values)
    assert plain.views is None
    assert more.views.shape == (len(plain), 2, plain.width)


@pytest.mark.parametrize("shape", [(4, 3), (5, 2, 3), (4, 2, 2)])
def test_views_of_other_rows_or_another_width_are_refused(shape):
    with pytest.raises(ValueError, match=r"a\.npy .*its views have the shape"):
        Features(np.ones((4, 3)), np.zeros(4, int), "a.npy", np.ones(shape))


# Supports that are filled up with views


def numbered(counts=(1, 2, 7), views=3) -> tuple[Support, torch.Tensor, np.ndarray]:
    """A support, its rows among 20, and views of these as (row, number)."""
    rows = torch.full((len(counts), max(counts)), -1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for k, part in enumerate(order[: sum(counts)].split(counts)):
        rows[k, : len(part)] = part
    table = np.stack(np.mgrid[:20, :views], 2).astype(np.float16)
    features = torch.stack([rows.float(), torch.full_like(rows, -1).float()], 2)
    return Support(features, torch.tensor(counts)), rows, table


@pytest.mark.parametrize("n_aug", [2, 4, 5, 12])
def test_a_class_gets_views_of_its_own_images_each_once_before_one_comes_again(n_aug):
    real, rows, table = numbered()
    made = augment_support(real, n_aug, generate_views(rows, table))
    assert made.counts.tolist() == [max(count, n_aug) for count in (1, 2, 7)]
    for k, count in enumerate(real.counts.tolist()):
        assert torch.equal(made.features[k, :count], real.features[k, :count])
        added = [tuple(row) for row in made.features[k, count : made.counts[k]].long().tolist()]
        there = {(int(row), view) for row in rows[k, :count] for view in range(3)}
        assert {*added} <= there
        times = [added.count(each) for each in there]
        assert max(times) - min(times) <= 1


def test_views_are_drawn_equally_often_and_alike_under_one_seed():
    real, rows, table = numbered()
    generate = generate_views(rows, table)
    counts = torch.zeros(3)
    for seed in range(600):
        torch.manual_seed(seed)
        made = augment_support(real, 2, generate).features[0, 1]
        counts[int(made[1])] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 13.8  # 2 degrees of freedom, p = 0.001
    torch.manual_seed(599)
    assert torch.equal(augment_support(real, 2, generate).features[0, 1], made)


# Runs


def write_features(folder: Path) -> Path:
    """Noisy features of eight classes, far from their centres; the views are the centres."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), ROWS)
    centres = np.eye(CLASSES, WIDTH) + rng.random((CLASSES, WIDTH))
    noise = rng.normal(size=(2, len(labels), WIDTH))
    train, test = 5 + centres[labels] + noise * np.array([2, 0.01])[:, None, None]
    split = ClassSplit([str(k) for k in range(CLASSES)], [0, 1], [2, 3], [4, 5], [6, 7])
    parts = [Features(part.astype(np.float32), labels) for part in (train, test)]
    write_folder(folder, *parts, split, {})
    views = (5 + centres[labels])[:, None].repeat(2, 1)
    np.save(folder / "train_views.npy", views.astype(np.float32))
    return folder


def run(cfg: Config) -> dict[str, float]:
    try:
        return train(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)


def settings(folder: Path, name: str, **options) -> Config:
    """A short run on the features of `write_features`."""
    plain = {"features": str(folder / "features"), "output_dir": str(folder / name), "steps": 3}
    episodes = Episodes(shots=[1, 2], queries=2)
    return Config(**plain | options, episodes=episodes, test=Test(shots=[1], draws=2))


def test_views_at_the_centre_of_a_class_mend_its_prototype(tmp_path):
    write_features(tmp_path / "features")
    nearest = {"learner": Learner(method="nearest")}
    scores = []
    for name, n_aug in (("few", 2), ("many", 400)):
        kind = Hallucination(kind="views", n_aug=n_aug)
        metrics = run(settings(tmp_path, name, hallucination=kind, **nearest))
        scores.append(metrics["all_top1_1"])
    assert scores[0] < scores[1] == 100


def test_the_learner_is_trained_as_without_views(tmp_path):
    write_features(tmp_path / "features")
    weights = []
    for kind in ("none", "views"):
        run(settings(tmp_path, kind, hallucination=Hallucination(kind=kind)))
        stored = checkpoint.load(tmp_path / kind / "checkpoint-00000003.pt")["parts"]
        weights.append(stored["learner"])
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_views_are_divided_like_the_features(tmp_path):
    plain = data.build(settings(write_features(tmp_path / "features").parent, "run"))
    scaled = data.rescale(plain)
    factor = scaled.train.values / plain.train.values
    np.testing.assert_allclose(scaled.train.views, plain.train.views * factor[0, 0], rtol=1e-6)
    assert scaled.train.values[plain.train.labels < 4].mean() == pytest.approx(1)


def test_views_that_are_not_there_are_asked_for_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"kind=views needs data\.views=4"):
        Config(hallucination=VIEWS)
    assert Config(hallucination=VIEWS, data=ImageData(views=4)).data.views == 4
    (write_features(tmp_path / "features") / "train_views.npy").unlink()
    with pytest.raises(ValueError, match=r"train\.npy comes without train_views\.npy: .*views=4"):
        data.build(settings(tmp_path, "run", hallucination=VIEWS))


def test_a_view_that_is_not_finite_is_named(tmp_path):
    folder = write_features(tmp_path / "features")
    views = np.load(folder / "train_views.npy")
    views[7, 1, 2] = np.inf
    np.save(folder / "train_views.npy", views)
    with pytest.raises(ValueError, match=r"train_views\.npy: feature 2 of row 7 is inf"):
        read_folder(folder)
