"""COCO AP on A, on B and on all classes."""

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from common.coco import evaluate as coco
from maskx_rcnn import data
from maskx_rcnn.config import Config
from maskx_rcnn.evaluate import columns, evaluate, only_of, subsets
from maskx_rcnn.inputs.paint import Paintings, World
from maskx_rcnn.model import MaskBranch, mask_rcnn
from tests.maskx_rcnn.small import settings

Result = dict[str, Tensor]
CLASSES, B = 16, {2, 4, 6, 8, 10, 12, 14, 16}  # category ids of the odd labels


def masks_of(target: dict) -> Result:
    return {
        "boxes": target["boxes"],
        "labels": target["labels"] + 1,
        "scores": torch.ones(len(target["labels"])),
        "masks": target["masks"][:, None].float(),
    }


def scores_of(cfg: Config, answer: Callable[[dict], Result], **options) -> dict[str, float]:
    """Figures of a model that gives `answer(target)` for each image, in turn."""
    dataset = data.PartialMasks(cfg.data, False)
    answers = iter([answer(dataset[index][1]) for index in range(len(dataset))])
    torch.manual_seed(0)
    model = mask_rcnn(CLASSES, cfg.network, cfg.branch)
    model.forward = lambda images: [next(answers) for _ in images]
    return evaluate(model, cfg, dataset, **options)


def detections(count: int) -> tuple[dict, list[dict]]:
    """The truth of some paintings, and detections somewhat beside it, a fifth of another class."""
    random = np.random.default_rng(0)
    paintings = Paintings(World(), count)
    found = []
    for index in range(count):
        target = paintings[index][1]
        shift = random.integers(-2, 3, 2).tolist()
        labels = target["labels"].numpy().copy()
        labels[random.random(len(labels)) < 0.2] = random.integers(CLASSES)
        found += coco.to_coco(
            target["image_id"],
            target["boxes"] + torch.tensor([*shift, *shift]),
            torch.from_numpy(random.random(len(labels))),
            torch.from_numpy(labels),
            paintings.category_ids,
            masks=target["masks"].roll(shift[::-1], (1, 2)),
        )
    return paintings.coco(), found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_of_b_alone_gives_all_12_figures_of_cocoevals_cat_ids(kind):
    truth, found = detections(20)
    own = [d for d in found if d["category_id"] in B]
    ours = coco.evaluate(only_of(truth, B), own, kind=kind)
    whole = COCO()
    whole.dataset = copy.deepcopy(truth)
    results = copy.deepcopy(found)
    if kind == "segm":
        for each in results:
            del each["bbox"]  # else its area would be that of the box
    with contextlib.redirect_stdout(io.StringIO()):
        whole.createIndex()
        theirs = COCOeval(whole, whole.loadRes(results), kind)
        theirs.params.catIds = sorted(B)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    stats = [math.nan if value == -1 else 100 * value for value in theirs.stats]
    assert len(ours) == 12
    assert list(ours.values()) == pytest.approx(stats, nan_ok=True, abs=1e-9)
    assert 5 < ours["AP"] < 95
    assert ours["AP"] != coco.evaluate(truth, found, kind=kind)["AP"]


def test_sizes_of_masks_are_those_of_masks_with_and_without_a_box():
    side, thin = 120, np.eye(120, dtype=bool)  # a diagonal: small, while its box is large
    masks = torch.from_numpy(np.stack([thin, np.ones_like(thin)]))
    boxes, labels = torch.tensor([[0.0, 0, side, side]] * 2), torch.tensor([0, 1])
    found = coco.to_coco(1, boxes, torch.ones(2), labels, [1, 2], masks=masks)
    truth = {
        "images": [{"id": 1, "width": side, "height": side}],
        "categories": [{"id": 1, "name": "thin"}, {"id": 2, "name": "full"}],
        "annotations": [
            {"id": n, "image_id": 1, "iscrowd": 0, "area": int(mask.sum())} | entry
            for n, (mask, entry) in enumerate(zip(masks, found, strict=True), 1)
        ],
    }
    with_boxes = coco.evaluate(truth, found, kind="segm")
    assert with_boxes["AP_small"] == pytest.approx(100)
    assert with_boxes["AP_large"] == pytest.approx(100)
    assert math.isnan(with_boxes["AP_medium"])
    extra = [*found, found[0] | {"category_id": 2, "score": 2.0}]  # wrong, of a small mask
    scored = coco.evaluate(truth, extra, kind="segm")
    assert scored["AP_large"] == pytest.approx(100)  # not a large one, so it does not count there
    assert scored["AP"] < 100
    bare = [{k: v for k, v in each.items() if k != "bbox"} for each in extra]
    assert coco.evaluate(truth, bare, kind="segm") == pytest.approx(scored, nan_ok=True)


def test_masks_of_b_count_for_b_and_for_all_classes(tmp_path):
    cfg = settings(tmp_path, images=6)

    def without_b(target: dict) -> Result:
        result = masks_of(target)
        result["masks"][target["labels"] % 2 == 1] = 0
        return result

    perfect, partial = scores_of(cfg, masks_of), scores_of(cfg, without_b)
    names = ("mask_AP", "mask_AP_A", "mask_AP_B", "box_AP", "box_AP_A", "box_AP_B")
    assert {name: perfect[name] for name in names} == dict.fromkeys(names, 100.0)
    assert partial["mask_AP_A"] == 100
    assert partial["mask_AP_B"] == 0
    assert 0 < partial["mask_AP"] < 100
    assert partial["box_AP_B"] == 100


def test_figures_are_those_of_each_subset_and_sizes_that_occur(tmp_path):
    scores = scores_of(settings(tmp_path), masks_of)
    for name in ("AP", "AP50", "AP75", "AP_small", "AR_100"):
        assert {f"{kind}_{name}{end}" for kind in ("box", "mask") for end in ("", "_A", "_B")} <= (
            scores.keys()
        )
    assert not any("large" in name for name in scores)  # the images have 48 pixels
    assert all(math.isfinite(value) for value in scores.values())


def test_per_class_figures_are_given_once(tmp_path):
    cfg = settings(tmp_path)
    cfg.test.per_class = True
    scores = scores_of(cfg, masks_of)
    each = {name for name in scores if "/" in name}
    assert {"mask_AP/hue 000", "mask_AR/hue 000", "box_AP/hue 000"} <= each
    assert not any(name.endswith(("_A", "_B")) for name in each)
    mean = np.mean([scores[name] for name in each if name.startswith("mask_AP/")])
    assert mean == pytest.approx(scores["mask_AP"])


def test_a_model_that_finds_nothing_scores_0(tmp_path):
    cfg = settings(tmp_path)

    def nothing(target: dict) -> Result:
        return {name: value[:0] for name, value in masks_of(target).items()}

    scores = scores_of(cfg, nothing, save=True)
    assert [scores[name] for name in columns(cfg)] == [0] * len(columns(cfg))
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert (tmp_path / "masks.png").exists()


def test_a_detector_has_no_masks_to_score(tmp_path):
    cfg = settings(tmp_path)
    cfg.stage = "detector"
    scores = scores_of(cfg, masks_of)
    assert set(columns(cfg)) <= scores.keys()
    assert not any(name.startswith("mask_") for name in scores)


@pytest.mark.parametrize("stage", ["detector", "e2e"])
def test_where_all_classes_have_masks_no_figure_of_b_is_undefined(tmp_path, stage):
    cfg = settings(tmp_path)
    cfg.stage, cfg.data.masks = stage, "all"
    scores = scores_of(cfg, masks_of)
    assert set(columns(cfg)) <= scores.keys()
    assert "box_AP_A" in scores
    assert not any(name.endswith("_B") for name in scores)
    assert all(math.isfinite(value) for value in scores.values())


def test_classes_in_neither_set_count_in_all_classes_alone(tmp_path):
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"A": ["hue 000", 5], "B": ["hue 045"]}))
    cfg = settings(tmp_path)
    cfg.data.masks = str(file)
    sets = subsets(data.PartialMasks(cfg.data, False))
    assert {name: list(labels) for name, labels in sets.items()} == {
        "": list(range(CLASSES)),
        "_A": [0, 4],
        "_B": [2],
    }


def test_evaluation_leaves_the_network_as_it_was(tmp_path):
    cfg = settings(tmp_path, images=2)
    torch.manual_seed(0)
    model = mask_rcnn(CLASSES, cfg.network, MaskBranch(source="cls")).train()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, cfg, data.PartialMasks(cfg.data, False))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
