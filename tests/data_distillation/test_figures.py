"""Figures of labels and runs: what is drawn where, which images are chosen, how they are rated."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from common.draw import save_png
from common.scenes.annotate import KEYPOINTS, SKELETON
from data_distillation.figures.instances import (
    COLORS,
    IGNORED,
    OFF,
    SIDE,
    Skeleton,
    find_room,
    read_skeleton,
)
from data_distillation.figures.labels import (
    by_image,
    choose,
    describe,
    draw_compare,
    draw_found,
    draw_labels,
    draw_objects,
)
from data_distillation.figures.match import COCO_SIGMAS, Measure, measure_of
from data_distillation.inputs.builtin import SIGMAS

GREY = 90
CATEGORY = {
    "id": 1,
    "name": "solid",
    "keypoints": list(KEYPOINTS),
    "skeleton": [list(edge) for edge in SKELETON],
}
IMAGE = {"id": 5, "width": 64, "height": 64, "file_name": "a.png"}


def make_points(seed: int) -> list[float]:
    """Nine joints far from one another, all visible: x, y, flag."""
    random = np.random.default_rng(seed)
    places = random.permutation([(x, y) for x in (12, 32, 52) for y in (12, 32, 52)])
    return [float(v) for x, y in places for v in (x, y, 2)]


def make_object(seed: int = 0, **changed: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": 1, "image_id": 5, "category_id": 1, "iscrowd": 0}
    entry |= {"bbox": [8.0, 8.0, 48.0, 48.0], "area": 48.0**2, "keypoints": make_points(seed)}
    return entry | {"num_keypoints": 9} | changed


def pixel(drawn: Tensor, x: float, y: float) -> tuple[int, ...]:
    """The colour where pixel x, y of the small image has its centre."""
    factor = SIDE / 64
    return tuple(drawn[:, int((y + 0.5) * factor), int((x + 0.5) * factor)].tolist())


def grey() -> Tensor:
    return torch.full((3, 64, 64), GREY, dtype=torch.uint8)


def test_joints_are_drawn_at_their_place_in_the_colour_of_their_side() -> None:
    entry = make_object()
    drawn = draw_objects(grey(), [entry], {1: CATEGORY})
    assert drawn.shape == (3, SIDE, SIDE)
    points = torch.tensor(entry["keypoints"]).view(-1, 3)
    for name, (x, y, _) in zip(KEYPOINTS, points.tolist(), strict=True):
        side = next((side for side in ("left", "right") if side in name), "middle")
        assert pixel(drawn, x, y) == COLORS[side], name


def test_a_joint_that_was_dropped_is_absent_and_so_are_its_edges() -> None:
    entry = make_object()
    entry["keypoints"] = [0.0, 0.0, 0.0] * 8 + entry["keypoints"][24:]
    drawn = draw_objects(grey(), [entry], {1: CATEGORY})
    bare = draw_objects(grey(), [make_object(keypoints=[0.0] * 27)], {1: CATEGORY})
    changed = (drawn != bare).any(0).nonzero()
    x, y = entry["keypoints"][24:26]
    center = torch.tensor([(y + 0.5) * SIDE / 64, (x + 0.5) * SIDE / 64])
    assert len(changed)
    assert (changed - center).abs().max() <= 6
    assert pixel(bare, 0, 0) == (GREY,) * 3


def test_a_hidden_joint_of_the_truth_is_a_ring() -> None:
    points = [20.0, 40.0, 1.0] + [0.0] * 24
    drawn = draw_objects(grey(), [make_object(keypoints=points)], {1: CATEGORY})
    assert pixel(drawn, 20, 40) == (GREY,) * 3
    around = drawn[:, 155:169, 75:89]
    assert (around == torch.tensor(COLORS["middle"])[:, None, None]).all(0).any()


def test_an_edge_has_the_colour_of_the_side_that_it_touches() -> None:
    skeleton = read_skeleton({"keypoints": ["Left eye", "right_eye", "nose"], "skeleton": [[1, 3]]})
    assert skeleton == Skeleton(["left", "right", "middle"], [(0, 2)])
    assert skeleton.edge_color(0, 2) == COLORS["left"]
    assert skeleton.edge_color(1, 2) == COLORS["right"]
    assert skeleton.edge_color(0, 1) == skeleton.edge_color(2, 2) == COLORS["middle"]


def test_masks_tint_and_ignored_regions_are_outlined_in_grey() -> None:
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[20:30, 20:40] = 1
    entry = {"image_id": 5, "category_id": 1, "bbox": [20, 20, 20, 10], "iscrowd": 0}
    entry["segmentation"] = rle.encode(mask)
    crowd = make_object(bbox=[4.0, 40.0, 20.0, 20.0], iscrowd=1)
    drawn = draw_objects(grey(), [entry, crowd], {1: CATEGORY})
    assert pixel(drawn, 30, 25) != (GREY,) * 3
    assert pixel(drawn, 30, 33) == (GREY,) * 3
    assert tuple(drawn[:, 200, 16].tolist()) == IGNORED
    assert pixel(drawn, 12, 52) == (GREY,) * 3, "no joints of an ignored region"


def test_captions_hold_class_score_and_number_of_joints() -> None:
    entry = make_object(score=0.876, source="auto")
    entry["keypoints"][:3] = [0.0] * 3
    assert describe(entry, {1: CATEGORY}) == "0.88 8/9"
    assert describe(entry, {1: CATEGORY, 2: CATEGORY}) == "solid 0.88 8/9"
    assert describe(entry | {"iscrowd": 1}, {1: CATEGORY}) == "ignored 0.88"
    assert describe(make_object(), {1: CATEGORY}) == ""


def test_names_that_the_font_lacks_are_replaced() -> None:
    names = {1: "café", 2: "машина", 3: "猫"}
    categories = {number: {"id": number, "name": name} for number, name in names.items()}
    found = [describe({"category_id": number}, categories) for number in names]
    assert found == ["cafe", "class 2", "class 3"]


def test_captions_of_objects_in_one_place_do_not_overlap() -> None:
    entries = [make_object(keypoints=[], score=score) for score in (0.9, 0.8, 0.7)]
    bare = draw_objects(grey(), [make_object(keypoints=[])], {1: CATEGORY})
    heights = []
    for count in (1, 3):
        drawn = draw_objects(grey(), entries[:count], {1: CATEGORY})
        heights.append(int((drawn != bare).any(0).any(1).sum()))
    assert heights == [14, 42]  # rows of pixels
    assert [find_room(y, tops, 14, 100) for y, tops in ((30, [30]), (2, [2]), (90, [80]))] == [
        16,
        16,
        66,
    ]
    assert find_room(5, [5], 14, 20) == 5


def test_the_grid_of_labels_reads_the_folder_that_the_file_names(tmp_path: Path) -> None:
    images = [IMAGE | {"id": k, "file_name": f"{k}.png"} for k in range(6)]
    for number in range(6):
        save_png(grey(), tmp_path / f"{number}.png")
    content: dict[str, Any] = {
        "images": images,
        "categories": [CATEGORY],
        "info": {"folder": str(tmp_path)},
    }
    content["annotations"] = [make_object(k, image_id=k, score=0.9) for k in range(5)]
    sheet = draw_labels(content, 6)
    assert torch.equal(sheet, draw_labels(content, 6, tmp_path))
    assert sheet.shape[2] >= 4 * SIDE
    assert 2 * SIDE < sheet.shape[1] < 3 * SIDE, "two lines, a sentence and a legend"
    for side in COLORS.values():
        assert (sheet == torch.tensor(side, dtype=torch.uint8)[:, None, None]).all(0).any()


def make_runs(count: int = 6) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth with an object in each image, and detections that are exact."""
    images = [IMAGE | {"id": k + 1} for k in range(count)]
    annotations = [make_object(k, id=k + 1, image_id=k + 1) for k in range(count)]
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": [CATEGORY]}
    return truth, [copy.deepcopy(entry) | {"score": 0.9} for entry in annotations]


def shift(entry: dict[str, Any], pixels: float) -> None:
    entry["keypoints"] = [v + pixels * (k % 3 == 0) for k, v in enumerate(entry["keypoints"])]


def test_oks_is_that_of_pycocotools() -> None:
    truth, found = make_runs(1)
    truth["annotations"].append(make_object(9, id=2, image_id=1, area=700.0))
    truth["annotations"][0]["keypoints"][3:6] = [0.0] * 3  # not marked, so it does not count
    found += [make_object(k, image_id=1, score=0.8 - k / 10) for k in (2, 9)]
    for entry, pixels in zip(found, (3.0, 1.0, 5.0), strict=True):
        shift(entry, pixels)
    real = COCO()
    real.dataset = truth
    real.createIndex()
    evaluation = COCOeval(real, real.loadRes(found), "keypoints")
    evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
    evaluation._prepare()
    expected = np.asarray(evaluation.computeOks(1, 1)).T  # detections are sorted by score
    measure = measure_of(truth, SIGMAS)
    similar = measure.compare(truth["annotations"], found, truth["images"][0])
    np.testing.assert_allclose(similar.numpy(), expected, rtol=1e-9)


def test_another_number_of_sigmas_than_of_joints_is_refused() -> None:
    truth, _ = make_runs(1)
    with pytest.raises(ValueError, match="9 joints need as many sigmas; there are 17"):
        measure_of(truth, None)


def test_boxes_and_masks_are_compared_by_iou_within_a_class() -> None:
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[0, :4, :4], masks[1, 2:6, :4] = 1, 1
    codes = [rle.encode(np.asfortranarray(mask)) for mask in masks]
    one, other = (
        {"category_id": 1, "bbox": [0, top, 4, 4], "segmentation": code}
        for top, code in zip((0, 2), codes, strict=True)
    )
    size = {"height": 8, "width": 8}
    for kind in ("boxes", "masks"):
        similar = Measure(kind).compare([one], [one, other, one | {"category_id": 2}], size)
        torch.testing.assert_close(similar, torch.tensor([[1, 1 / 3, 0]], dtype=torch.float64))
    assert measure_of({"annotations": [one]}, None).kind == "masks"
    del one["segmentation"]
    assert measure_of({"annotations": [one]}, None).kind == "boxes"
    assert len(COCO_SIGMAS) == 17


def test_true_objects_share_out_what_is_found_so_that_all_fit_best() -> None:
    def box(x: float) -> dict[str, Any]:
        return {"category_id": 1, "bbox": [x, 0, 10, 10]}

    truth, found = [box(0), box(4), box(100)], [box(3), box(60), box(9)]
    pairs, value = Measure("boxes").match(truth, found, IMAGE)
    assert pairs == [0, 2, None]
    assert value == pytest.approx((7 / 13 + 5 / 15) / 3)
    assert Measure("boxes").match(truth, [], IMAGE) == ([None] * 3, 0.0)


def test_images_where_the_student_is_right_and_the_teacher_wrong_come_first() -> None:
    truth, student = make_runs()
    teacher = copy.deepcopy(student)
    shift(teacher[2], 6)
    shift(teacher[4], 3)
    shift(student[1], 4)
    del teacher[0]  # a miss gains most, but comes after all images where both find the object
    del truth["annotations"][5], student[5], teacher[4]
    runs = [by_image(teacher), by_image(student)]
    order = choose(truth, by_image(truth["annotations"]), runs, measure_of(truth, SIGMAS))
    assert order == [2, 4, 3, 1, 0]


def test_a_wrong_joint_is_joined_to_its_true_place_and_a_miss_is_outlined() -> None:
    truth = make_object()
    found = make_object(score=0.9)
    x, y = found["keypoints"][:2]
    found["keypoints"][0] = x - 10 if x > 40 else x + 10
    measure = Measure("keypoints", SIGMAS)
    drawn = draw_found(grey(), [truth], [found], [], {1: CATEGORY}, measure)
    assert pixel(drawn, x, y) == OFF
    right = draw_found(grey(), [truth], [truth], [], {1: CATEGORY}, measure)
    ink = torch.tensor(OFF, dtype=torch.uint8)[:, None, None]
    assert not (right == ink).all(0).any()
    missed = draw_found(grey(), [truth], [None], [found], {1: CATEGORY}, measure)
    assert (missed == ink).all(0).any()


@pytest.mark.parametrize("names", [["teacher"], ["teacher", "student", "control"]])
def test_a_line_of_the_comparison_is_an_image_under_the_truth_and_each_run(
    names: list[str],
) -> None:
    truth, found = make_runs()
    runs = dict.fromkeys(names, found)
    sheet = draw_compare(truth, runs, lambda number: grey(), 3, sigmas=SIGMAS)
    assert sheet.dtype == torch.uint8
    assert (1 + len(names)) * SIDE < sheet.shape[2] < (2 + len(names)) * SIDE
    assert 3 * SIDE < sheet.shape[1] < 4 * SIDE
