"""The built-in images: what they show, that they stay the same, and the cache."""

import colorsys

import numpy as np
import pytest

from lowshot_hallucination.features import builtin
from lowshot_hallucination.features.builtin import (
    BASE,
    HUES,
    NAMES,
    NOVEL,
    SHAPES,
    Builtin,
    builtin_source,
    draw_scenes,
    draw_split,
    read_images,
)


def test_classes_are_120_and_parted_60_base_60_novel_by_the_seed() -> None:
    split = draw_split(0)
    parts = split.base_1, split.base_2, split.novel_1, split.novel_2
    assert len(set(NAMES)) == len(SHAPES) * len(HUES) == 120
    assert tuple(map(len, parts)) == (*BASE, *NOVEL) == (30, 30, 24, 36)
    assert sorted(k for part in parts for k in part) == list(range(120))
    assert draw_split(0) == split
    assert draw_split(1) != split


def test_a_scene_shows_the_shape_and_about_the_hue_of_its_class() -> None:
    labels, places = np.arange(120), np.arange(120) % 7
    scenes = draw_scenes(Builtin(hue_jitter=0), "train", labels, places)
    for label, scene in enumerate(scenes):
        solid = scene.objects[0]
        assert f"{solid.color} {solid.shape}" == NAMES[label]
        hue = colorsys.rgb_to_hsv(*solid.rgb)[0]
        assert hue == pytest.approx(label % 10 / 10, abs=1e-6)


def test_a_second_solid_is_grey_and_there_as_often_as_asked() -> None:
    labels, places = np.zeros(400, np.int64), np.arange(400)
    scenes = draw_scenes(Builtin(occluded=0.4), "test", labels, places)
    others = [[o for o in s.objects[1:] if o.shape == "hexagon"] for s in scenes]
    assert max(map(len, others)) == 1
    assert all(len(set(other.rgb)) == 1 for each in others for other in each)
    count = sum(map(len, others))  # binomial, standard deviation 9.8
    assert 130 <= count <= 190


def test_an_image_does_not_depend_on_its_batch_or_on_the_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path))
    options = Builtin(train=3, support=2, queries=1, side=16)
    source = builtin_source(options)
    assert len(source.train) == 60 * 3 + 60 * 2
    assert len(source.test) == 120
    assert (np.diff(source.train.labels) >= 0).all()
    assert source.train.pixels is not None
    last = np.flatnonzero(source.train.labels == 100)[-1]
    place = int((source.train.labels[:last] == 100).sum())
    alone = read_images(options, "train", np.array([100]), np.array([place]))
    assert (source.train.pixels[last] == alone[0]).all()
    assert source.train[last] == f"builtin/train/{NAMES[100]}/{place}"


def test_images_are_rendered_once_and_read_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path))
    options = Builtin(train=1, support=1, queries=1, side=16)
    first = builtin_source(options).train.pixels
    monkeypatch.setattr(builtin, "draw_scenes", None)  # a call would fail
    again = builtin_source(options)
    assert (again.train.pixels == first).all()
    assert not (again.test.pixels == first).all()


def test_train_test_and_seeds_show_different_images() -> None:
    labels, places = np.array([5]), np.array([0])
    drawn = [
        draw_scenes(Builtin(seed=seed), split, labels, places)[0]
        for seed, split in ((0, "train"), (0, "test"), (1, "train"))
    ]
    assert len({scene.objects[0] for scene in drawn}) == 3


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"train": 0}, "data.builtin.train=0"),
        ({"queries": 10_001}, "data.builtin.queries"),
        ({"side": 4}, "data.builtin.side=4"),
        ({"occluded": 1.5}, "occluded=1.5"),
        ({"noise": -1.0}, "noise=-1.0"),
    ],
)
def test_bad_options_are_refused_with_their_key(options: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Builtin(**options)
