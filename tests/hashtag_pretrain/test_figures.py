"""Figures: frequencies and scores from head to tail, and held-out images with predictions."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from common.images import UnreadableImage
from hashtag_pretrain import config
from hashtag_pretrain.config import Config, Data, Sampling
from hashtag_pretrain.data import Hashtags, build
from hashtag_pretrain.figures.predictions import (
    BLACK,
    GREEN,
    SIDE,
    Example,
    choose,
    draw_example,
    draw_examples,
    draw_predictions,
    find_examples,
    shorten,
)
from hashtag_pretrain.figures.sampling import (
    Row,
    by_group,
    compare_sampling,
    draw_frequencies,
    draw_sampling,
    draw_scores,
)
from hashtag_pretrain.inputs.augment import Augment
from hashtag_pretrain.model import Network, build_model, normalise

from .small import image_bytes, make_shards, make_vocabulary, random_tags, write_tar

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
NAMES = ("cat", "dog", "owl", "fox", "bee", "ant", "elk", "yak")


def make_report() -> list[Row]:
    """Eight tags in mixed order: AP is 100 times the frequency, the sampling has 0.1 each."""
    frequencies = (0.1, 0.4, 0.02, 0.2, 0.05, 0.3, 0.01, 0.0)
    return [
        {"tag": name, "frequency": f, "seen": 0.1 * (f > 0), "AP": 100 * f if f else math.nan}
        for name, f in zip(NAMES, frequencies, strict=True)
    ]


def test_groups_go_from_the_most_frequent_tags_to_the_rarest() -> None:
    found = by_group(make_report(), groups=4)
    assert found[:3] == pytest.approx([35, 15, 3.5])
    assert found[3] == pytest.approx(1)  # the tag without an image has no AP
    assert by_group(make_report(), {"dog": 8.0, "ant": 6.0, "yak": 1.0}, groups=2) == [7, 1]
    nothing = by_group(make_report(), {"dog": 8.0}, groups=2)
    assert nothing[0] == 8
    assert math.isnan(nothing[1])
    assert len(by_group(make_report()[:2], groups=4)) == 2


def test_frequencies_are_drawn_in_the_order_of_the_unique_images() -> None:
    axes = Figure().add_subplot()
    draw_frequencies(axes, {"square root": make_report()}, {"square root": RED})
    drawn, unique = axes.lines
    assert [line.get_label() for line in axes.lines] == ["square root", "unique images"]
    assert list(unique.get_ydata()) == [0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01]  # type: ignore
    assert list(unique.get_xdata()) == list(range(1, 8))  # type: ignore[arg-type]
    assert list(drawn.get_ydata()) == [0.1] * 7  # type: ignore[arg-type]


def test_bars_stand_side_by_side_without_meeting() -> None:
    axes = Figure().add_subplot()
    scores = {"natural": [30.0, 10.0], "square root": [40.0, math.nan]}
    draw_scores(axes, scores, {"natural": RED, "square root": BLUE})
    bars = axes.patches
    heights = [bar.get_height() for bar in bars]  # type: ignore[attr-defined]
    assert heights[:3] == [30, 10, 40]
    colors = [bar.get_facecolor()[:3] for bar in bars]
    assert colors == [RED, RED, BLUE, BLUE]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)  # type: ignore
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(edges))
    assert {text.get_text() for text in axes.texts} == {"30", "10", "40", ""}


def test_pictures_of_one_run_and_of_several_are_written(tmp_path: Path) -> None:
    report = make_report()
    draw_sampling(tmp_path / "a" / "tags.png", report)
    several = {"natural": report, "square root": report}
    scores = {name: [40.0, 30.0, 20.0, 10.0] for name in several}
    compare_sampling(tmp_path / "both.png", several, scores)
    for path in (tmp_path / "a" / "tags.png", tmp_path / "both.png"):
        with Image.open(path) as image:
            assert image.width > image.height > 100


def test_a_report_of_many_tags_and_of_one_is_drawn(tmp_path: Path) -> None:
    many: list[Row] = [
        {"tag": str(i), "frequency": 1 / (i + 1), "seen": 0.1, "AP": math.nan} for i in range(200)
    ]
    draw_sampling(tmp_path / "many.png", many)
    draw_sampling(tmp_path / "one.png", many[:1])
    assert (tmp_path / "one.png").is_file()


def count(image: torch.Tensor, color: tuple[int, int, int]) -> int:
    """Pixels (3, H, W) of that colour."""
    return int((image == torch.tensor(color)[:, None, None]).all(0).sum())


def make_example(predicted: list[tuple[str, float]]) -> Example:
    image = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    return Example(image, ["RedBox"], ["redcube"], predicted)


def test_a_right_prediction_is_green_and_a_wrong_one_black() -> None:
    right = draw_example(make_example([("redcube", 0.9)]))
    wrong = draw_example(make_example([("bluecube", 0.9)]))
    assert right.shape == (3, SIDE, 2 * SIDE)
    assert count(right, GREEN) > 0
    assert count(wrong, GREEN) == 0
    assert count(wrong, BLACK) > count(right, BLACK)
    assert (right[:, :, :SIDE] == 200).all()


def test_images_of_any_size_and_tags_in_any_script_are_drawn() -> None:
    wide = torch.zeros(3, 40, 300, dtype=torch.uint8)
    examples = [Example(wide, ["café", "猫" * 60], ["cat"] * 20, [("cat", 1.0)] * 3)] * 5
    assert draw_examples(examples).shape[0] == 3
    assert shorten("Café") == "Cafe"
    assert shorten("猫") == "?"
    assert len(shorten("x" * 99)) == 44


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("tagged")
    make_shards(root / "shards", random_tags(["Cat", "kitty", "dog"], 40), per_shard=16)
    make_vocabulary(["cat", "kitty"], "dog").write(root / "vocabulary.json")
    return Config(
        batch_size=8,
        per_gpu=8,
        warmup_lr=0.0,
        data=Data(root=str(root), held_out=0.3, workers=0),
        augment=Augment(size=32, resize=32, crop="shift"),
        network=Network(name="small", width=8),
        sampling=Sampling(rule="natural"),
        test=config.Test(drawn=3),
    )


@pytest.fixture(scope="module")
def data(cfg: Config) -> Hashtags:
    return build(cfg)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(Network(name="small", width=8, fc_std=1.0), 2).train()


def test_examples_are_held_out_images_with_their_tags_and_the_likeliest_labels(
    cfg: Config, data: Hashtags, model: nn.Module
) -> None:
    before = {name: value.clone() for name, value in model.named_buffers()}
    examples = find_examples(cfg, data, model)
    assert len(examples) == 3
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    merged = {"cat": "cat", "kitty": "cat", "dog": "dog"}
    places = [place for _, place in choose(data, 3)]
    for place, example in zip(places, examples, strict=True):
        assert torch.equal(example.image, data.held_out[place][0])
        assert sorted({merged[tag] for tag in example.written}) == sorted(example.labels)
        with torch.no_grad():
            inputs = normalise(example.image[None], cfg.network.mean, cfg.network.std)
            expected = model.eval()(inputs).softmax(1)[0]
        model.train()
        assert [name for name, _ in example.predicted] == [
            ("cat", "dog")[label] for label in expected.argsort(descending=True).tolist()
        ]
        assert sum(value for _, value in example.predicted) == pytest.approx(1, abs=1e-5)


def test_an_image_that_cannot_be_read_is_not_drawn_where_it_may_be_skipped(
    tmp_path: Path, cfg: Config, model: nn.Module
) -> None:
    files = [
        part
        for key in "abcdefghijkl"
        for part in ((f"{key}.png", b"no image"), (f"{key}.json", b'{"tags": ["cat"]}'))
    ]
    files[0] = ("a.png", image_bytes())
    write_tar(tmp_path / "shards" / "0.tar", files)
    make_vocabulary("cat", "dog").write(tmp_path / "vocabulary.json")
    options = replace(cfg.data, root=str(tmp_path), held_out=0.5)
    held_out = build(replace(cfg, data=options))
    held_out.held_out.order = np.array([0, 1, 2])
    skipping = replace(cfg, data=replace(options, bad_images="skip"))
    assert len(find_examples(skipping, held_out, model)) == 1
    with pytest.raises(UnreadableImage, match=r"0\.tar: [bc] cannot be read"):
        find_examples(cfg, held_out, model)


def test_examples_go_from_the_most_frequent_labels_to_the_rarest(data: Hashtags) -> None:
    every = choose(data, 1000)
    assert sorted(place for _, place in every) == list(range(len(data.held_out)))
    counts = [data.tagged.counts[data.tagged.labels(index)].min() for index, _ in every]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 1
    assert choose(data, 1) == [every[len(every) // 2]]


def test_predictions_are_drawn_where_there_are_held_out_images(
    cfg: Config, data: Hashtags, model: nn.Module, tmp_path: Path
) -> None:
    draw_predictions(tmp_path / "predictions.png", cfg, data, model)
    assert Image.open(tmp_path / "predictions.png").width > 2 * SIDE
    data.held_out.order, kept = np.zeros(0, np.int64), data.held_out.order
    draw_predictions(tmp_path / "none.png", cfg, data, model)
    data.held_out.order = kept
    assert not (tmp_path / "none.png").exists()
