"""Figures of an evaluation, against loops over videos and views; section 7, oracles 11, 12, 14."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from nonlocal_ import config, data, evaluate
from nonlocal_.config import Config
from nonlocal_.evaluate import draw_versus, mean_average_precision, score_videos
from nonlocal_.model import Network, build_network
from nonlocal_.net.detectors import build_detector
from nonlocal_.net.resnet import VideoNetwork

from .small import photos, settings, videos, write_array, write_photos

pytestmark = [
    pytest.mark.filterwarnings("ignore:A non-local block sees a map"),
    pytest.mark.filterwarnings("ignore:No positive samples"),
]
CLASSES = 7
WINDOWS = [(0, 0), (0, 1), (1, 0), (1, 1)]
SIZES = [(33, 64, 81), (12, 90, 64), (5, 64, 64), (1, 64, 70)]  # frames, height, width


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four videos, shorter sides at 64: wide, square, tall; one of a single frame."""
    folder = tmp_path_factory.mktemp("videos")
    for number, (frames, height, width) in enumerate(SIZES):
        write_array(folder / f"{number}.npy", frames, height, width, seed=number)
    (folder / "val.txt").write_text("0.npy 6\n1.npy 2\n2.npy 0\n3.npy 3\n")
    (folder / "several.txt").write_text("0.npy 6,1\n1.npy 2\n2.npy 2,6\n3.npy 3\n")
    (folder / "names").write_text("".join(f"class {k}\n" for k in range(CLASSES)))
    return folder


@pytest.fixture(scope="module")
def model() -> VideoNetwork:
    """One that is surer of some classes than of others."""
    torch.manual_seed(0)
    made = build_network(Network(depth="small", at=["res3.0"]), settings(".").block, CLASSES)
    with torch.no_grad():
        made.fc.weight.normal_(std=2)
    return made.train()


def options(root: Path, folder: Path, **test: object) -> Config:
    cfg = settings(folder, data=videos(root, train="val.txt", classes="names"))
    cfg.clip.frames, cfg.clip.stride = 2, 4
    plain = {"size": 64, "images": 0, "batch_size": 7, "clips": 3, "crops": 1}
    return replace(cfg, test=config.Test(**plain | test))  # type: ignore[arg-type]


def score(model: VideoNetwork, cfg: Config) -> tuple[Tensor, Tensor]:
    return score_videos(model, cfg, data.build(cfg, training=False))


@torch.no_grad()
def views_by_hand(model: VideoNetwork, root: Path, test: config.Test) -> list[Tensor]:
    """The probabilities (views, K) of each video: of its windows the softmax, then the mean."""
    model.eval()
    found = []
    for number, (n, height, width) in enumerate(SIZES):
        frames = torch.from_numpy(np.load(root / f"{number}.npy"))
        views = []
        for k in range(test.clips):
            start = int(n / test.clips * k) % n
            clip = frames[[start, (start + 4) % n]].permute(3, 0, 1, 2)
            for position in range(max(1, test.crops)):
                top, left = (height - 64) // 2, (width - 64) // 2
                if test.crops == 3:
                    top, left = (top * position, left) if top > 0 else (top, left * position)
                whole = test.crops == 0
                part = clip if whole else clip[:, :, top : top + 64, left : left + 64]
                views += [part, part.flip(-1)] if test.mirror else [part]
        scores = []
        for view in views:
            x = model.features(view[None]).mean(2)[0]  # (C, H, W)
            windows = [
                model.fc(x[:, i : i + 7, j : j + 7].mean((1, 2))).softmax(0)
                for i in range(x.shape[1] - 6)
                for j in range(x.shape[2] - 6)
            ]
            scores.append(torch.stack(windows).mean(0))
        found.append(torch.stack(scores))
    model.train()
    return found


@pytest.mark.parametrize(
    "test",
    [
        {"clips": 10, "crops": 3},
        {"clips": 3, "crops": 1, "mirror": True, "fuse": "max"},
        {"clips": 2, "crops": 0},
    ],
    ids=["official", "max", "whole"],
)
def test_scores_are_those_of_a_loop_over_videos_clips_crops_and_windows(
    test, model, root, tmp_path
):
    cfg = options(root, tmp_path, **test)
    found, labels = score(model, cfg)
    assert model.training
    views = views_by_hand(model, root, cfg.test)
    assert len(views[0]) == {10: 30, 3: 6, 2: 2}[cfg.test.clips]
    fuse = cfg.test.fuse
    expected = torch.stack([v.mean(0) if fuse == "mean" else v.amax(0) for v in views])
    torch.testing.assert_close(found, expected.double(), atol=1e-5, rtol=0)
    assert labels.tolist() == [6, 2, 0, 3]
    assert (views[0].amax(0) - views[0].mean(0)).max() > 0.005  # max and mean differ


def test_the_softmax_comes_before_the_mean(model):
    x = torch.randn(64, 8, 8)  # 2 x 2 windows
    logits = torch.stack([model.fc(x[:, i : i + 7, j : j + 7].mean((1, 2))) for i, j in WINDOWS])
    before, after = logits.softmax(1).mean(0), logits.mean(0).softmax(0)
    model.features, kept = lambda clips: x[None, :, None], model.features  # type: ignore[assignment]
    try:
        found = model.scores(torch.zeros(1, 3, 4, 64, 64))[0]
    finally:
        model.features = kept  # type: ignore[method-assign]
    torch.testing.assert_close(found, before)
    assert (before - after).abs().max() > 1e-3


def test_top1_and_top5_are_those_of_a_loop_and_every_video_has_a_line(model, root, tmp_path):
    cfg = options(root, tmp_path, images=2)
    validation = data.build(cfg, training=False)
    metrics = evaluate.evaluate(model, cfg, validation, save=True)
    scores, labels = score(model, cfg)
    ranks = [int((s > s[k]).sum()) for s, k in zip(scores, labels, strict=True)]
    assert metrics == {f"top{n}": 100 * sum(r < n for r in ranks) / 4 for n in (1, 5)}
    assert set(metrics.values()) != {0.0}
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for number, (row, s) in enumerate(zip(rows, scores, strict=True)):
        assert row["file"] == str(root / f"{number}.npy")
        assert row["labels"] == [f"class {labels[number]}"]
        best = s.argsort(descending=True)[:5].tolist()
        assert list(row["top"]) == [f"class {k}" for k in best]
        assert list(row["top"].values()) == pytest.approx(s[best].tolist(), abs=1e-6)
    with Image.open(tmp_path / "attention.png") as picture:
        assert min(picture.size) > 64


def test_five_classes_or_fewer_have_no_top5_and_a_network_without_blocks_no_picture(tmp_path):
    cfg = settings(tmp_path, network=Network(depth="small"))
    cfg.test.images = 2
    validation = data.build(cfg, training=False)
    model = build_network(cfg.network, cfg.block, 2)
    metrics = evaluate.evaluate(model, cfg, validation, save=True)
    scores, labels = score(model, cfg)
    assert metrics == {"top1": 100 * int((scores.argmax(1) == labels).sum()) / 6}
    assert not (tmp_path / "attention.png").exists()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 6


def test_two_processes_find_what_one_does(model, root, tmp_path, monkeypatch):
    cfg = options(root, tmp_path)
    alone = score(model, cfg)
    parts: list[list] = []

    def gather(part: list) -> list[list]:
        parts.append(part)
        return copy.deepcopy(parts)

    monkeypatch.setattr("common.dist.world_size", lambda: 2)
    monkeypatch.setattr("common.dist.gather", gather)
    for rank in range(2):
        monkeypatch.setattr("common.dist.rank", lambda rank=rank: rank)
        found = score(model, cfg)
    assert [len(part) for part in parts] == [4, 4]  # clips in turn, of all videos
    torch.testing.assert_close(found[0], alone[0], atol=1e-6, rtol=0)
    assert torch.equal(found[1], alone[1])


def test_several_labels_have_a_sigmoid_each_and_map(model, root, tmp_path):
    cfg = replace(options(root, tmp_path, fuse="max"), task="multi_label")
    cfg.data.val = "several.txt"
    validation = data.build(cfg, training=False)
    metrics = evaluate.evaluate(model, cfg, validation, save=True)
    scores, labels = score(model, cfg)
    assert scores.sum(1).max() > 1
    assert labels.tolist()[0] == [0, 1, 0, 0, 0, 0, 1]
    theirs = multilabel_average_precision(scores, labels.long(), CLASSES, average="none")
    assert metrics == {"mAP": pytest.approx(100 * theirs[[1, 2, 3, 6]].mean().item())}
    first, *_ = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(first)["labels"] == ["class 1", "class 6"]


def test_map_equals_torchmetrics_with_ties_and_leaves_out_classes_without_positives():
    torch.manual_seed(0)
    scores = (torch.rand(60, 5) * 8).round() / 8
    labels = (torch.rand(60, 5) < 0.3).float()
    labels[:, 2] = 0
    theirs = multilabel_average_precision(scores, labels.long(), 5, average="none")
    expected = theirs[[0, 1, 3, 4]].mean().item()
    assert mean_average_precision(scores, labels) == pytest.approx(expected, abs=1e-6)
    assert mean_average_precision(scores.double(), labels.double()) == pytest.approx(
        expected, abs=1e-6
    )


def test_map_of_hand_values():
    def value(scores: list[float], labels: list[int]) -> float:
        return mean_average_precision(torch.tensor([scores]).T, torch.tensor([labels]).float().T)

    assert value([0.9, 0.8, 0.1], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert value([0.9, 0.9, 0.1], [1, 0, 1]) == pytest.approx((1 / 2 + 2 / 3) / 2)  # a tie
    assert value([0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]) == pytest.approx(1 / 4)
    assert math.isnan(value([0.9, 0.1], [0, 0]))


def test_a_detector_has_its_columns_and_writes_its_detections(tmp_path):
    cfg = photos(write_photos(tmp_path / "coco"), tmp_path)
    training = data.build(cfg, training=True)
    validation = data.build(cfg, training=False, like=training)
    validation.check()
    torch.manual_seed(0)
    model = build_detector(cfg.detector, cfg.block, 1)
    metrics = evaluate.evaluate(model, cfg, validation, save=True)
    assert {"box_AP", "box_AP50", "mask_AP", "mask_AP75"} <= metrics.keys()
    assert {each["image_id"] for each in json.loads((tmp_path / "detections.json").read_text())}
    assert evaluate.columns(cfg) == ("box_AP", "mask_AP")
    cfg.detector.kind = "keypoints"
    assert evaluate.columns(cfg) == ("box_AP", "keypoint_AP")


def test_the_picture_of_several_runs_is_that_of_the_first_with_a_block(tmp_path):
    cfg = settings(tmp_path)
    folders = {name: tmp_path / name for name in ("none", "one", "two")}
    for name, folder in folders.items():
        folder.mkdir()
        if name != "none":
            (folder / "attention.png").write_text(name)
    draw_versus(cfg, folders)
    assert (tmp_path / "attention.png").read_text() == "one"
