"""COCO's AP of what a network finds, of its automatic labels, and with transforms."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN

from common.coco import evaluate as coco
from data_distillation import config, data
from data_distillation.config import Config
from data_distillation.distill import Merge, Transforms, distill
from data_distillation.evaluate import (
    check_sigmas,
    columns,
    draw_versus,
    evaluate,
    find,
    score,
    sigmas,
)
from data_distillation.model import build_detector
from tests.data_distillation.small import of_files, settings, thing, write_hidden, write_split

PLAIN = Transforms(scales=[], flip=False)


def network(cfg: Config, joints: int = 9) -> FasterRCNN:
    torch.manual_seed(0)
    return build_detector(cfg.task, 1, joints, cfg.network).eval()


def validation(cfg: Config) -> data.Labelled:
    return data.build_validation(cfg.data, cfg.task)


def truth_as_found(dataset: data.Labelled) -> list[dict[str, Any]]:
    return [{"score": 1.0} | copy.deepcopy(a) for a in dataset.ground_truth()["annotations"]]


@pytest.mark.parametrize("task", ["keypoints", "boxes", "masks"])
def test_the_truth_scores_100_and_nothing_found_0(task, tmp_path):
    cfg = replace(settings(tmp_path), task=task)
    dataset = validation(cfg)
    names = [name for name in columns(cfg) if name != "label_AP"]
    found = score(cfg, dataset, truth_as_found(dataset))
    assert [found[name] for name in names] == pytest.approx([100] * len(names))
    found = score(cfg, dataset, [])
    assert [found[name] for name in names] == [0] * len(names)


def test_detections_are_the_networks_own_in_cocos_format(tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path, split, [[thing()], [thing()]])
    cfg = of_files(tmp_path, tmp_path)
    dataset, model = validation(cfg), network(cfg, joints=3)
    found = find(model, cfg, dataset, PLAIN)
    with torch.no_grad():
        results = [model([dataset[index][0] / 255])[0] for index in range(2)]
    assert [d["image_id"] for d in found] == [n for n in (1, 2) for _ in results[n - 1]["boxes"]]
    assert len(found) > 2
    assert {d["category_id"] for d in found} == {1}
    boxes = torch.cat([result["boxes"] for result in results])
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    torch.testing.assert_close(torch.tensor([d["bbox"] for d in found]), xywh)
    points = torch.cat([result["keypoints"] for result in results])
    points[..., :2] -= 0.5  # files count from the centre of the first pixel
    points[..., 2] = 1
    given = torch.tensor([d["keypoints"] for d in found]).view(-1, 3, 3)
    torch.testing.assert_close(given, points)
    cfg.data.joint_offset = 0.0  # the network has learned what is in files
    raw = find(model, cfg, validation(cfg), PLAIN)
    points[..., :2] += 0.5
    torch.testing.assert_close(torch.tensor([d["keypoints"] for d in raw]).view(-1, 3, 3), points)


def test_transforms_at_test_time_are_scored_apart(tmp_path):
    cfg = settings(tmp_path)
    cfg.transforms, cfg.test.tta = Transforms(scales=[48]), True
    dataset, model = validation(cfg), network(cfg)
    found = evaluate(model, cfg, dataset, save=True)
    assert {"keypoint_AP", "tta_keypoint_AP", "tta_box_AP50"} <= found.keys()
    plain, views = find(model, cfg, dataset, PLAIN), find(model, cfg, dataset, cfg.transforms)
    assert [d["bbox"] for d in plain] == [d["bbox"] for d in views]  # boxes of the identity
    assert [d["keypoints"] for d in plain] != [d["keypoints"] for d in views]
    written = json.loads((tmp_path / "detections.json").read_text())
    assert written == json.loads(json.dumps(plain))
    during = evaluate(model, cfg, dataset)
    assert not any(name.startswith("tta_") for name in during)


def test_transforms_at_test_time_are_merged_as_the_run_says(tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path, split, [[thing()]])
    cfg, many = of_files(tmp_path, tmp_path), Transforms(scales=[56], max_size=96)
    dataset, model = validation(cfg), network(cfg, joints=3)
    points = {}
    for heatmaps in ("prob", "logit"):
        cfg.merge = Merge(heatmaps=heatmaps)
        (wanted,) = distill(model, [dataset[0][0] / 255], many, cfg.merge, (0, 2, 1))
        found = torch.tensor([d["keypoints"] for d in find(model, cfg, dataset, many)])
        points[heatmaps] = found.view(-1, 3, 3)[..., :2]
        torch.testing.assert_close(points[heatmaps], wanted["keypoints"][..., :2] - 0.5)
    assert len(points["prob"]) > 2
    assert not torch.equal(points["prob"], points["logit"])


def test_a_person_without_marked_joints_and_a_crowd_count_neither_way():
    """A sure detection on either is no false positive, and neither is missed."""
    fields = {"image_id": 1, "category_id": 1, "area": 1600, "iscrowd": 0}
    people = [
        {"bbox": [5, 5, 40, 40], "keypoints": [10, 10, 2, 30, 30, 2], "num_keypoints": 2},
        {"bbox": [60, 5, 40, 40], "keypoints": [0] * 6, "num_keypoints": 0},
        {"bbox": [120, 5, 60, 60], "keypoints": [0] * 6, "num_keypoints": 0, "iscrowd": 1},
    ]
    truth = {
        "images": [{"id": 1, "width": 600, "height": 400}],
        "categories": [{"id": 1, "name": "person", "keypoints": ["a", "b"]}],
        "annotations": [fields | {"id": n} | each for n, each in enumerate(people, 1)],
    }

    def ap(*points: list[int]) -> float:
        """Of detections, the surest first."""
        found = [
            {"image_id": 1, "category_id": 1, "score": 0.9 - n / 10, "keypoints": each}
            for n, each in enumerate(points)
        ]
        return coco.evaluate(truth, found, kind="keypoints", sigmas=[0.1] * 2)["AP"]

    unmarked, crowd = [75, 20, 1, 80, 30, 1], [140, 20, 1, 150, 30, 1]
    right, nowhere = [10, 10, 1, 30, 30, 1], [500, 350, 1, 520, 370, 1]
    assert ap(unmarked, crowd, right) == pytest.approx(100)
    assert ap(nowhere, right) == pytest.approx(50)


def test_joints_without_sides_are_tested_without_flips_and_lie_where_they_are_learned(
    tmp_path, capsys, recwarn
):
    for split in ("train", "val"):
        write_split(tmp_path, split, [[thing()]], joints=["a", "b", "c"])
    cfg = of_files(tmp_path, tmp_path, joint_offset=0.0)
    cfg.transforms, cfg.test.tta = Transforms(scales=[], flip=True), True
    dataset, model = validation(cfg), network(cfg, joints=3)
    found = evaluate(model, cfg, dataset, save=True)
    assert capsys.readouterr().out.startswith("warning: no flips, as the joints' names tell no")
    assert not [each for each in recwarn if "flips" in str(each.message)]
    assert found["tta_keypoint_AP"] == found["keypoint_AP"]


def test_labels_are_scored_where_their_truth_is_known(tmp_path):
    cfg = settings(tmp_path, automatic=str(write_hidden(tmp_path / "auto.json")))
    dataset, model = validation(cfg), network(cfg)
    model.roi_heads.score_thresh = 1.1
    found = evaluate(model, cfg, dataset, save=True)
    assert found["label_AP"] == pytest.approx(100)
    assert found["keypoint_AP"] == 0
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    for changes in ({"truth": ""}, {"automatic": ""}):
        cfg.data = replace(cfg.data, **changes)
        found = evaluate(model, cfg, dataset, save=True)
        assert math.isnan(found["label_AP"])
        assert not any(name.startswith("label_AP5") for name in found)


def test_figures_of_sizes_that_do_not_occur_are_left_out_and_each_class_is_given_on_demand(
    tmp_path,
):
    cfg = settings(tmp_path)
    cfg.test.per_class = True
    found = evaluate(network(cfg), cfg, validation(cfg))
    assert "box_AP_small" in found
    assert not any("large" in name for name in found)  # the images have 64 pixels
    assert {"box_AP/solid", "keypoint_AP/solid"} <= found.keys()
    assert found["keypoint_AP/solid"] == pytest.approx(found["keypoint_AP"])


def test_the_fall_off_of_joints_is_cocos_unless_it_is_given(tmp_path):
    cfg = settings(tmp_path)
    assert sigmas(cfg) == [0.067] * 9
    assert sigmas(Config(data=replace(cfg.data, name="coco"))) is None
    assert sigmas(replace(cfg, test=config.Test(sigmas=[0.1] * 9))) == [0.1] * 9


def test_joints_without_a_fall_off_stop_before_training(tmp_path):
    check_sigmas(settings(tmp_path), 9)
    check_sigmas(Config(task="boxes"), 0)
    with pytest.raises(ValueError, match=r"have 9 joints, but test.sigmas gives 17.*: give test"):
        check_sigmas(Config(), 9)


def test_pictures_show_some_images_of_one_run_and_of_several(tmp_path):
    cfg = settings(tmp_path / "one")
    (tmp_path / "one").mkdir()
    cfg.test.images = 2
    evaluate(network(cfg), cfg, validation(cfg), save=True)
    assert (tmp_path / "one" / "detections.png").stat().st_size > 1000
    cfg.output_dir = str(tmp_path)
    folders = {"one": tmp_path / "one", "two": tmp_path / "diverged"}
    draw_versus(cfg, folders)
    assert (tmp_path / "compare.png").stat().st_size > 1000
    cfg.test.images, cfg.output_dir = 0, str(tmp_path / "none")
    draw_versus(cfg, folders)
    assert not Path(cfg.output_dir, "compare.png").exists()


def test_a_test_set_without_objects_has_no_figure_and_no_picture(tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path, split, [[], []])
    cfg = replace(of_files(tmp_path, tmp_path), task="boxes")
    cfg.test.images = 2
    found = evaluate(network(cfg), cfg, validation(cfg), save=True)
    assert math.isnan(found["box_AP"])
    assert not (tmp_path / "detections.png").exists()


def test_evaluation_leaves_the_network_as_it_was(tmp_path):
    cfg = settings(tmp_path)
    cfg.transforms, cfg.test.tta = Transforms(scales=[48]), True
    model = network(cfg).train()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, cfg, validation(cfg), save=True)
    assert model.training
    assert model.transform.min_size == (64,)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
