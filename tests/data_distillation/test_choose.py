"""Thresholds by counting, and the file of labels, in COCO's format."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO

from common.coco.dataset import CocoDataset
from data_distillation.labels.choose import Labels, choose
from data_distillation.labels.counts import (
    count_labelled,
    hash_images,
    keep_sound,
    read_content,
)
from tests.data_distillation.labelling import counts, found, write_images, write_json

HAND = [[0.99, 0.95, 0.4, 0.1], [0.9, 0.9, 0.3], [0.85, 0.2, 0.05], []]


def chosen(rows, labelled, kind="boxes", categories=None, joints=0, **options):
    return choose(found(rows, categories, joints), labelled, Labels(**options), kind)


@pytest.mark.parametrize(
    ("instances", "images", "k", "threshold", "kept"),
    [
        (3, 2, 6, 0.4, 6),
        (5, 4, 5, 0.85, 5),
        (1, 2, 2, 0.95, 2),
        (3, 4, 3, 0.9, 4),  # a tie
        (10, 1, 40, -math.inf, 10),
        (0, 4, 0, math.inf, 0),
    ],
)
def test_hand_values_of_the_threshold(instances, images, k, threshold, kept):
    content, report = chosen(HAND, counts(images, {1: instances}))
    assert report.mu == instances / images
    assert report.k == {None: k}
    assert report.thresholds[None] == pytest.approx(threshold)
    assert report.kept == {None: kept}
    scores = sorted(a["score"] for a in content["annotations"])
    expected = sorted(x for row in HAND for x in row)[10 - kept :]
    assert scores == pytest.approx(expected)


def test_the_printed_numbers_are_those_of_the_choice():
    _, report = chosen(HAND, counts(4, {1: 3}))
    lines = str(report).splitlines()
    assert lines == [
        "labelled: 3 instances in 4 images, denominator 4 (all images), mu = 0.7500",
        "labels: 4 of 10 detections in 4 images, 1.0000 an image",
        "  all classes: k = 3, threshold 0.9, kept 4, 1 more by ties",
        "images without a label: 2, they stay as negatives",
        "labels of two classes in one place (IoU >= 0.9): 0 pairs",
        "warning: 1 label more than k by equal scores",
    ]
    _, report = chosen(HAND, counts(1, {1: 10}))
    assert str(report).splitlines()[-1] == (
        "warning: 10 detections, fewer than k = 40: all are kept; lower merge.score to find more"
    )
    assert "threshold none, all are kept" in str(report)
    _, report = chosen(HAND, counts(4, {1: 0}))
    assert "nothing is kept" in str(report)
    assert "train.json has no instance" in str(report)


def test_more_persons_come_from_another_teacher_not_from_another_merge():
    _, report = chosen([[0.9]], counts(1, {1: 2}, 4), "keypoints", joints=3)
    assert str(report).splitlines()[-1] == (
        "warning: 1 detection, fewer than k = 2: all are kept; a teacher of a lower "
        "network.score, or trained for longer, finds more"
    )


@pytest.mark.parametrize(("equal", "warned"), [(2, False), (3, True)])
def test_ties_of_more_than_a_tenth_of_k_are_warned_of(equal, warned):
    row = [0.9] * 9 + [0.5] + [0.5] * (equal - 1) + [0.1]  # k = 10
    _, report = chosen([row], counts(1, {1: 10}))
    assert report.kept == {None: 9 + equal}
    assert (f"warning: {equal - 1} labels more than k by equal scores" in str(report)) == warned


def test_a_class_whose_k_is_rounded_to_0_is_not_called_absent():
    _, report = chosen(HAND, counts(40, {1: 40, 2: 1, 3: 0}), per_class=True)
    assert report.k == {1: 4, 2: 0, 3: 0}
    text = str(report)
    assert "no label of class 2: k is rounded to 0 in so few images" in text
    assert "no label of class 3, which the labelled set lacks" in text


def test_counting_is_the_best_of_all_thresholds():
    generator = np.random.default_rng(0)
    for _ in range(50):
        images = int(generator.integers(1, 6))
        rows = [
            generator.integers(1, 30, generator.integers(0, 8)) / np.float32(32)
            for _ in range(images)
        ]
        labelled, instances = generator.integers(1, 9), generator.integers(0, 40)
        _, report = chosen(rows, counts(int(labelled), {1: int(instances)}))
        scores = np.concatenate(rows)
        kept = report.kept[None]
        mu = instances / labelled
        errors = {
            int((scores >= t).sum()): abs((scores >= t).sum() / images - mu)
            for t in [*scores, np.inf]
        }
        least = min(errors.values())
        # Ties stay, so the rule may keep more than the best; without ties it is the best.
        if len(set(scores.tolist())) == len(scores):
            assert errors[kept] == pytest.approx(least)
        else:
            assert kept in errors
            assert kept >= min(n for n, e in errors.items() if e == least)


def test_no_image_and_no_detection_give_no_label():
    content, report = chosen([], counts(4, {1: 9}))
    assert (content["images"], content["annotations"]) == ([], [])
    assert report.k == {None: 0}
    content, report = chosen([[], []], counts(4, {1: 8}))
    assert (len(content["images"]), content["annotations"]) == (2, [])
    content, _ = chosen([[], []], counts(4, {1: 8}, 24), "keypoints", joints=3)
    assert (content["images"], content["annotations"]) == ([], [])


def test_the_factor_is_exact_and_multiplies_mu():
    rows = [[x / 100 for x in range(99, 9, -1)]]
    for factor, kept in ((1, 15), (2, 30), (0.5, 8), (0.1, 2), (0.01, 0)):  # 7.5 and 1.5 go up
        _, report = chosen(rows, counts(1, {1: 15}), factor=factor)
        assert report.kept == {None: kept}, factor


def test_the_denominator_is_all_images_or_those_with_an_instance():
    labelled = counts(40, {1: 20}, annotated=10)
    _, report = chosen(HAND, labelled)
    assert (report.mu, report.k) == (0.5, {None: 2})
    _, report = chosen(HAND, labelled, denominator="annotated")
    assert (report.mu, report.k) == (2, {None: 8})
    assert "denominator 10 (images with such an instance), mu = 2.0000" in str(report)


def test_a_fixed_threshold_keeps_scores_from_it_on():
    content, report = chosen(HAND, counts(4, {1: 3}), match="fixed", score=0.9)
    assert [a["image_id"] for a in content["annotations"]] == [1, 1, 2, 2]
    assert report.k == {}
    assert "all classes: threshold 0.9, kept 4" in str(report)


def test_classes_are_matched_one_by_one_on_demand():
    categories = [[1, 2, 1, 2], [1, 1, 2], [2, 1, 3], []]
    labelled = counts(4, {1: 2, 2: 3, 3: 0, 9: 11})
    content, report = chosen(HAND, labelled, categories=categories, per_class=True)
    assert report.k == {1: 2, 2: 3, 3: 0, 9: 11}
    assert report.kept == {1: 3, 2: 3, 3: 0, 9: 0}  # a tie at 0.9
    scores = {n: [] for n in (1, 2, 3, 9)}
    for a in content["annotations"]:
        scores[a["category_id"]].append(round(a["score"], 3))
    assert scores == {1: [0.99, 0.9, 0.9], 2: [0.95, 0.3, 0.85], 3: [], 9: []}
    text = str(report)
    assert "k is below 10 for class 1, class 2: their thresholds say little" in text
    assert "no label of class 3, which the labelled set lacks" in text
    assert "0 detections of class 9, fewer than k = 11" in text
    assert content["info"]["thresholds"] == {
        "1": pytest.approx(0.9),
        "2": pytest.approx(0.3),
        "3": None,
        "9": None,
    }


def test_detections_below_the_threshold_become_crowds_on_demand():
    content, report = chosen(HAND, counts(2, {1: 3}), ignore=0.2)
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert [round(a["score"], 2) for a in crowds] == [0.3, 0.2]
    assert len(content["annotations"]) == 8
    assert [a["id"] for a in content["annotations"]] == list(range(1, 9))
    assert report.crowds == 2
    assert report.kept == {None: 6}
    assert "ignored: 2 detections" in str(report)
    plain, _ = chosen(HAND, counts(2, {1: 3}))
    assert not any(a["iscrowd"] for a in plain["annotations"])


def two_classes(second_box):
    records = found([[0.9, 0.8, 0.7]], [[1, 2, 1]])
    records.images[0].boxes[1] = second_box
    return records


def test_one_object_with_two_labels_is_counted_and_dropped_on_demand():
    records, labelled = two_classes([0, 0, 10, 19]), counts(1, {1: 2, 2: 1})  # IoU 0.95
    content, report = choose(records, labelled, Labels(), "boxes")
    assert (len(content["annotations"]), report.pairs) == (3, 1)
    assert "IoU >= 0.9): 1 pair\n" in str(report)
    assert "cross_class_nms" in str(report)
    content, report = choose(records, labelled, Labels(cross_class_nms=0.9), "boxes")
    assert [a["category_id"] for a in content["annotations"]] == [1, 1]
    assert report.pairs == 0
    content, _ = choose(records, labelled, Labels(cross_class_nms=0.96), "boxes")
    assert len(content["annotations"]) == 3
    apart = two_classes([0, 0, 10, 17])  # IoU 0.85
    assert choose(apart, labelled, Labels(), "boxes")[1].pairs == 0
    same = found([[0.9, 0.8]], [[1, 1]])
    same.images[0].boxes[1] = same.images[0].boxes[0]
    content, report = choose(same, counts(1, {1: 2}), Labels(cross_class_nms=0.5), "boxes")
    assert (len(content["annotations"]), report.pairs) == (2, 0)


@pytest.mark.parametrize(
    ("kind", "keep_empty", "listed"),
    [
        ("boxes", "auto", 4),
        ("boxes", "False", 3),
        ("keypoints", "auto", 3),
        ("keypoints", "true", 4),
    ],
)
def test_images_without_a_label_are_negatives_of_boxes_and_left_out_of_joints(
    kind, keep_empty, listed
):
    joints = 2 * (kind == "keypoints")
    labelled = counts(4, {1: 7}, 7 * joints)
    content, report = chosen(HAND, labelled, kind, joints=joints, keep_empty=keep_empty)
    assert len(content["images"]) == listed
    assert report.empty == 1
    assert ("left out" in str(report)) == (listed == 3)
    used = {a["image_id"] for a in content["annotations"]}
    assert used == {1, 2, 3}


# Joints.


def test_joints_are_kept_as_often_as_they_are_labelled():
    generator = np.random.default_rng(0)
    rows = [sorted(generator.random(5).tolist(), reverse=True) for _ in range(60)]
    records = found(rows, joints=9)
    for image in records.images:
        image.keypoints[..., 2] = generator.random((5, 9))
    labelled = counts(100, {1: 210}, 210 * 6 + 57)  # 6.271 joints each
    content, report = choose(records, labelled, Labels(), "keypoints")
    kept = [a["num_keypoints"] for a in content["annotations"]]
    assert len(kept) == report.k[None] == 126
    assert np.mean(kept) == pytest.approx(labelled.joints / 210, rel=0.01)
    assert report.joints_kept == np.mean(kept)
    by_confidence = sorted(
        confidence
        for image in records.images
        for score, own in zip(image.scores, image.keypoints, strict=True)
        for confidence in own[:, 2].tolist()
        if score >= report.thresholds[None]
    )
    assert report.joint_threshold == by_confidence[-report.joint_k]
    assert f"joints: {report.joints_kept:.3f} an instance, labelled 6.271" in str(report)
    assert content["info"]["keypoint_threshold"] == report.joint_threshold


def test_a_dropped_joint_is_zeros_and_a_kept_one_is_visible():
    # Confidences .9, .89, .88 and .5, .49, .48; 2 joints labelled an instance.
    labelled = counts(1, {1: 2}, 4)
    content, report = chosen([[0.9, 0.5]], labelled, "keypoints", joints=3)
    first, second = content["annotations"]
    assert first["keypoints"] == [0, 4, 2, 1, 4, 2, 2, 4, 2]  # pixel indices: less 0.5
    assert second["keypoints"] == [3, 4, 2, 0, 0, 0, 0, 0, 0]
    assert all(isinstance(v, int) for v in first["keypoints"][2::3])
    assert (first["num_keypoints"], second["num_keypoints"]) == (3, 1)
    assert (report.joint_k, report.joints, report.without_joints) == (4, 4, 0)


def test_an_instance_without_a_joint_stays_as_a_box():
    labelled = counts(1, {1: 2}, 3)
    content, report = chosen([[0.9], [0.5]], labelled, "keypoints", joints=3, factor=0.5)
    assert [a["num_keypoints"] for a in content["annotations"]] == [3, 0]
    assert content["annotations"][1]["keypoints"] == [0] * 9
    assert len(content["images"]) == 2
    assert "instances without a joint, which stay as boxes: 1" in str(report)


def test_joints_by_a_fixed_threshold_or_all_of_them():
    labelled = counts(1, {1: 2}, 1)
    fixed = {"keypoint_match": "fixed", "keypoint_score": 0.49}
    content, report = chosen([[0.9, 0.5]], labelled, "keypoints", joints=3, **fixed)
    assert [a["num_keypoints"] for a in content["annotations"]] == [3, 2]
    assert report.joint_k is None
    every, _ = chosen([[0.9, 0.5]], labelled, "keypoints", joints=3, keypoint_match="all")
    assert [a["num_keypoints"] for a in every["annotations"]] == [3, 3]


def test_equal_confidences_stay_and_are_told():
    records = found([[0.9, 0.8]], joints=3)
    records.images[0].keypoints[..., 2] = 0.25
    _, report = choose(records, counts(1, {1: 2}, 2), Labels(), "keypoints")
    assert (report.joint_k, report.joints) == (2, 6)
    assert "4 joints more than k by equal confidences" in str(report)


# The file.


def test_the_file_is_read_by_pycocotools_and_by_our_data_set(tmp_path):
    write_images(tmp_path, 2)
    records = found([[0.9, 0.8, 0.3], [0.7]], joints=3)
    for image in records.images:
        image.width = image.height = 48
    records.images[1].height = 32
    labelled = counts(2, {1: 3}, 9)
    labelled.categories[0]["keypoints"] = ["nose", "left eye", "right eye"]
    content, _ = choose(records, labelled, Labels(ignore=0.1), "keypoints")
    file = write_json(tmp_path / "auto.json", content)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        again = coco.loadRes([a for a in coco.dataset["annotations"] if not a["iscrowd"]])
    assert len(coco.anns) == 4
    assert len(again.anns) == 3
    assert coco.loadCats([1])[0]["keypoints"] == ["nose", "left eye", "right eye"]
    for a in content["annotations"]:
        assert a["area"] == pytest.approx(a["bbox"][2] * a["bbox"][3])
        assert a["source"] == "auto"
    dataset = CocoDataset(tmp_path, file, kind="keypoints", strict=True)
    _, target = dataset[0]
    image = records.images[0]
    assert torch.equal(target["boxes"], torch.from_numpy(image.boxes))
    assert target["iscrowd"].tolist() == [False, False, True]
    expected = image.keypoints[:2].copy()
    expected[..., 2] = 2
    assert torch.equal(target["keypoints"][:2], torch.from_numpy(expected))
    assert not target["keypoints"][2].any()


def test_masks_have_their_own_area():
    records = found([[0.9]])
    mask = np.zeros((80, 100), np.uint8, order="F")
    mask[5:10, 3:9] = 1
    code = rle.encode(mask)
    records.images[0].masks = [code | {"counts": code["counts"].decode()}]
    content, _ = choose(records, counts(1, {1: 1}), Labels(), "masks")
    (label,) = content["annotations"]
    assert label["area"] == 30
    assert np.array_equal(rle.decode(label["segmentation"]), mask)


def test_the_file_tells_where_its_labels_are_from():
    records = found(HAND)
    records.info |= {"transforms": {"scales": [400]}, "merge": {"nms": 0.5}, "shard": "0/2"}
    records.skipped = ["bad.png cannot be read"]
    content, report = choose(records, counts(2, {1: 3}), Labels(), "boxes")
    info = json.loads(json.dumps(content["info"], allow_nan=False))
    assert (info["teacher"], info["digest"], info["folder"]) == ("run", "abc", "/images")
    assert (info["transforms"], info["merge"]) == ({"scales": [400]}, {"nms": 0.5})
    assert (info["mu"], info["denominator"], info["k"]) == (1.5, 2, {"all": 6})
    assert info["thresholds"] == {"all": pytest.approx(0.4)}
    assert info["labels"]["match"] == "count"
    assert (info["labelled"], info["labelled_list"]) == ("train.json", "list")
    assert info["skipped"] == ["bad.png cannot be read"]
    assert "shard" not in info
    assert "images that could not be read: 1" in str(report)


# The labelled set.


def annotation(image: int, **changes):
    return {"id": 1, "image_id": image, "category_id": 4, "bbox": [1, 1, 5, 5]} | changes


def labelled_file(tmp_path, annotations, **category):
    content = {
        "images": [{"id": n, "width": 20, "height": 20, "file_name": f"{n}"} for n in range(5)],
        "categories": [{"id": 4, "name": "cat"} | category, {"id": 0, "name": "dog"}],
        "annotations": annotations,
    }
    return write_json(tmp_path / "train.json", content)


def test_instances_are_counted_without_crowds_whatever_their_ids(tmp_path):
    file = labelled_file(
        tmp_path,
        [
            annotation(0, id=908400416500.0),
            annotation(0, id=908400416500.0, bbox=[2, 2, 5, 5]),
            annotation(1, category_id=0, id=None),
            annotation(2, iscrowd=1),
        ],
    )
    content = keep_sound(read_content(file), str(file), "boxes")
    labelled = count_labelled(content, str(file))
    assert (labelled.images, labelled.annotated, labelled.joints) == (5, 2, 0)
    assert labelled.instances == {4: 2, 0: 1}
    assert labelled.categories == [{"id": 4, "name": "cat"}, {"id": 0, "name": "dog"}]
    ids = [entry["id"] for entry in content["images"]]
    assert labelled.digest == hash_images(ids[:2])  # those with an instance
    assert labelled.digest != hash_images(ids[1::-1])
    assert count_labelled(content, str(file), "of a run").digest == "of a run"


def test_of_keypoints_only_instances_with_a_visible_joint_count(tmp_path):
    file = labelled_file(
        tmp_path,
        [
            annotation(0, keypoints=[3, 3, 1, 4, 4, 2]),
            annotation(0, keypoints=[5, 3, 0, 4, 4, 2]),
            annotation(1, keypoints=[0, 0, 0, 0, 0, 0]),
            annotation(2, keypoints=[3, 3, 2, 4, 4, 2], iscrowd=1),
        ],
        keypoints=["a", "b"],
    )
    content = keep_sound(read_content(file), str(file), "keypoints")
    labelled = count_labelled(content, str(file))
    assert (labelled.annotated, labelled.instances, labelled.joints) == (1, {4: 2, 0: 0}, 3)


def test_counts_of_real_files_are_those_of_pycocotools(shared_data):
    for kind, stem in (("boxes", "instances"), ("keypoints", "person_keypoints")):
        file = shared_data / f"coco_mini/annotations/{stem}_val2017.json"
        labelled = count_labelled(keep_sound(read_content(file), str(file), kind), str(file))
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(file))
        single = coco.loadAnns(coco.getAnnIds(iscrowd=False))
        if kind == "keypoints":
            single = [a for a in single if a["num_keypoints"]]
            assert labelled.joints == sum(a["num_keypoints"] for a in single) > 0
        assert labelled.total == len(single) > 0
        assert labelled.annotated == len({a["image_id"] for a in single})
        assert labelled.images == len(coco.imgs)


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ({"match": "cuont"}, "Did you mean 'labels.match=count'"),
        ({"keypoint_match": "some"}, "labels.keypoint_match=some is unknown"),
        ({"denominator": "none"}, "labels.denominator=none is unknown"),
        ({"keep_empty": "yes"}, "labels.keep_empty=yes is unknown"),
        ({"ignore": 2}, "labels.ignore=2 is out of range"),
        ({"factor": -1}, "labels.factor=-1 is out of range"),
        ({"factor": math.nan}, "labels.factor=nan is out of range"),
        ({"score": math.nan}, "labels.score=nan is out of range"),
        ({"ignore": math.nan}, "labels.ignore=nan is out of range"),
        ({"keypoint_score": math.nan}, "labels.keypoint_score=nan: give a finite number"),
        ({"factor": 0}, "labels.factor=0 would keep no label: it must be above 0"),
        ({"score": 0.7}, "score=0.7 has no effect with labels.match=count: .* labels.match=fixed"),
        ({"factor": 2, "match": "fixed"}, "factor=2 has no effect with labels.match=fixed: leave"),
        ({"keypoint_score": 0.1}, "keypoint_score=0.1 has no effect with .*_match=count: leave"),
    ],
)
def test_an_option_that_is_unknown_or_without_effect_stops(option, fault):
    with pytest.raises(ValueError, match=fault):
        Labels(**option)
