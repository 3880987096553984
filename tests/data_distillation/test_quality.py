"""AP of automatic labels against the hidden truth."""

import copy

import pytest

from data_distillation.labels.choose import Labels, choose
from data_distillation.labels.quality import label_quality, match_images, restrict_truth
from tests.data_distillation.labelling import counts, found

ROWS = [[0.9, 0.8], [0.7], []]


def labels_and_truth(kind="boxes", joints=0, shift=0):
    """Labels, and a truth that says the same under other image ids."""
    content, _ = choose(found(ROWS, joints=joints), counts(3, {1: 3}, 3 * joints), Labels(), kind)
    truth = copy.deepcopy(content)
    for number, entry in enumerate(truth["images"]):
        entry["id"] = 100 - number
    for number, annotation in enumerate(truth["annotations"]):
        x, y, width, height = annotation["bbox"]
        annotation |= {"image_id": 101 - annotation["image_id"], "id": number}
        annotation["bbox"] = [x + shift, y, width, height]
        del annotation["score"], annotation["source"]
    return content, truth


def test_the_truth_against_itself_is_perfect():
    content, truth = labels_and_truth()
    scores = label_quality(content, truth, "boxes")
    assert (scores["AP"], scores["AP50"], scores["AR_100"]) == pytest.approx((100, 100, 100))
    content, truth = labels_and_truth("keypoints", 3)
    scores = label_quality(content, truth, "keypoints", [0.1] * 3)
    assert scores["AP"] == pytest.approx(100)


def test_a_shift_costs_the_thresholds_above_its_iou():
    content, truth = labels_and_truth(shift=2.5)  # IoU 7.5 / 12.5 = .6
    scores = label_quality(content, truth, "boxes")
    assert scores["AP50"] == pytest.approx(100)
    assert scores["AP75"] == pytest.approx(0)
    assert scores["AP"] == pytest.approx(30)  # .5, .55, .6


def test_images_left_empty_count_as_missed_and_crowds_are_no_labels():
    content, truth = labels_and_truth()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    content["images"] = content["images"][:1]
    assert label_quality(content, truth, "boxes")["AP"] == pytest.approx(100 * 67 / 101)  # of 3
    content["annotations"][0]["iscrowd"] = 1
    assert label_quality(content, truth, "boxes")["AP"] == pytest.approx(100 * 34 / 101)


def test_the_truth_is_restricted_to_the_images_that_were_labelled():
    content, truth = labels_and_truth()
    part = restrict_truth(truth, content["images"][:1])
    assert [entry["id"] for entry in part["images"]] == [100]
    assert [a["image_id"] for a in part["annotations"]] == [100, 100]


def test_images_are_told_by_path_then_by_name():
    truth = {"images": [{"id": 5, "file_name": "val/a.png"}, {"id": 6, "file_name": "b.png"}]}
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "deep/b.png"}]
    assert match_images(images, truth) == {1: 5, 2: 6}
    with pytest.raises(ValueError, match=r"the truth has no image c\.png"):
        match_images([{"id": 1, "file_name": "c.png"}], truth)
    truth["images"].append({"id": 7, "file_name": "train/a.png"})  # two of this name
    with pytest.raises(ValueError, match=r"the truth has no image a\.png"):
        match_images(images, truth)
    assert match_images([{"id": 1, "file_name": "train/a.png"}], truth) == {1: 7}
