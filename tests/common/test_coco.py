"""COCO-format files, their faults, and the official evaluation."""

import importlib.util
import json
import math
import os
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.coco.check_data import main as check_data
from common.coco.dataset import CocoDataset
from common.coco.evaluate import evaluate, save_results, to_coco
from common.coco.fields import Categories
from common.coco.files import find_split
from common.coco.masks import (
    check_polygon,
    check_rle,
    check_segmentation,
    decode_mask,
    is_outside,
    run_lengths,
)
from common.images import UnreadableImage, read_image
from common.scenes import Scenes, World
from common.scenes.annotate import KEYPOINT_FLIP
from common.transforms import HorizontalFlip, Resize

CATEGORIES = [{"id": 9, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 4, "name": "cow"}]


def instance(number, image_id, bbox, category_id=9, **more):
    entry = {"id": number, "image_id": image_id, "bbox": bbox, "category_id": category_id}
    return entry | {"iscrowd": 0} | more


@pytest.fixture
def content():
    """Three images of 30 x 40; ids with gaps and from 0; the last one is empty."""
    sizes = {"height": 30, "width": 40}
    return {
        "images": [{"id": i, "file_name": f"{i}.png"} | sizes for i in (0, 7, 5)],
        "annotations": [
            instance(0, 7, [1, 2, 10, 12]),
            instance(3, 0, [4, 4, 8, 8], 4, area=50.5),
            instance(8, 7, [20, 10, 20, 20], 0, iscrowd=1),
        ],
        "categories": CATEGORIES,
    }


def write(root, content, name="train"):
    """Lay out a COCO-format set; returns the first two arguments of CocoDataset."""
    (root / "annotations").mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    file = root / "annotations" / f"{name}.json"
    file.write_text(json.dumps(content))
    for i in (0, 5, 7):
        Image.new("RGB", (40, 30)).save(root / "images" / f"{i}.png")
    return root / "images", file


@pytest.fixture
def load(tmp_path, content):
    return lambda **options: CocoDataset(*write(tmp_path, content), **options)


def test_ids_with_gaps_zero_and_any_order_become_ranks(load):
    dataset = load()
    assert dataset.label_of == {0: 0, 4: 1, 9: 2}
    assert dataset.category_ids == [0, 4, 9]
    assert dataset.names == ["dog", "cow", "cat"]
    image, target = dataset[1]
    assert image.shape == (3, 30, 40)
    assert target["image_id"] == 7
    assert target["boxes"].tolist() == [[1, 2, 11, 14], [20, 10, 40, 30]]
    assert target["labels"].tolist() == [2, 0]
    assert target["iscrowd"].tolist() == [False, True]
    assert target["area"].tolist() == [120, 400]  # of the boxes, as the file has none
    assert dataset[0][1]["area"].tolist() == [50.5]
    assert dataset[2][1]["boxes"].shape == (0, 4)
    assert dataset[2][1]["size"] == (30, 40)
    assert dataset[2][1]["file"].endswith("5.png")


def test_images_without_a_plain_instance_may_be_left_out(load, content):
    content["annotations"][0]["iscrowd"] = 1
    dataset = load(keep_empty=False)
    assert dataset.ids.tolist() == [0]
    assert dataset[0][1]["labels"].tolist() == [1]
    assert [n.tolist() for n in dataset.counts()] == [[1], [[0, 0], [1, 0], [0, 0]]]


def test_a_set_without_annotations_loads(load, content):
    content["annotations"] = []
    assert [len(target["boxes"]) for _, target in load()] == [0, 0, 0]
    for kind in ("masks", "keypoints"):
        assert len(load(kind=kind)[0][1][kind]) == 0


def test_the_labels_of_the_training_set_may_be_given(load):
    assert load(categories=Categories([9, 4, 0]))[1][1]["labels"].tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"annotation 8 of image 7 is of category 0, .* \[4, 9\]"):
        load(categories=Categories([9, 4]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dog", "cow", "cat"], None),
        (["cow", "dog", "cat"], r"category 'dog' has id 0 in .*train.json, but 4 in a.json: give"),
        (["dog", "cow", "ox"], r"category 9 is 'cat' in .*train.json, but 'ox' in a.json: give"),
    ],
)
def test_ids_and_names_of_two_files_must_agree(load, content, tmp_path, names, message):
    expected = Categories([0, 4, 9], names, "a.json")
    other = content | {"images": [], "annotations": []}
    other["images"] = [{"id": 1, "file_name": "x.png", "height": 30, "width": 40}]
    other["categories"] = [{"id": i, "name": n} for i, n in zip([0, 4, 9], names, strict=True)]
    images, first = write(tmp_path, content, "first")
    second = write(tmp_path, other, "second")[1]
    Image.new("RGB", (40, 30)).save(images / "x.png")
    if message is None:
        assert load(categories=expected).names == names
        assert len(CocoDataset([images, images], [first, second])) == 4
        return
    with pytest.raises(ValueError, match=message):
        load(categories=expected)
    with pytest.raises(ValueError, match=r"^category .*second.json, but .*first.json: give each"):
        CocoDataset([images, images], [first, second])


def test_a_set_may_lack_categories_of_the_training_set(load, content):
    training = load()
    content["categories"] = [{"id": 9, "name": "cat"}]
    content["annotations"] = content["annotations"][:1]
    dataset = load(categories=training.categories)
    assert dataset.names == ["dog", "cow", "cat"]
    assert dataset[1][1]["labels"].tolist() == [2]
    # The model may find what is not there: it counts against no class that is.
    detections = [found(7, [1, 2, 10, 12]), found(7, [5, 5, 5, 5], category_id=4)]
    metrics = evaluate(dataset.ground_truth(), detections, per_class=True)
    assert metrics["AP"] == pytest.approx(100)
    assert math.isnan(metrics["AP/cow"])


def test_repeated_category_names_stay_apart(load, content):
    content["categories"] = [{"id": i, "name": "cat"} for i in (0, 4, 9)]
    assert load().names == ["cat (0)", "cat (4)", "cat (9)"]


BAD_BOXES = {
    "that is not four finite numbers": [math.nan, 1, 2, 3],
    "of no area": [1, 1, 0, 5],
    "outside the image": [41, 3, 5, 5],
}


@pytest.mark.parametrize("fault", BAD_BOXES)
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_bad_boxes_are_dropped_with_one_warning(load, content, fault, kind):
    square = [[1, 1, 5, 1, 5, 5]]
    for entry in content["annotations"]:
        entry["segmentation"] = square
    content["annotations"] += [
        instance(n, 7, BAD_BOXES[fault], segmentation=square) for n in (21, 5, 6, 4)
    ]
    with pytest.warns(UserWarning, match="7 instances") as caught:
        dataset = load(kind=kind)
    assert len(caught) == 1
    first = "(first annotation ids [21, 5, 6] of images [7, 7, 7])"
    assert f"4 with a box {fault} {first}; 4 dropped" in str(caught[0].message)
    assert dataset.problems == {f"a box {fault}": 4}
    assert len(dataset[1][1]["boxes"]) == 2
    with pytest.raises(ValueError, match=r"first annotation ids \[21, 5, 6\]"):
        load(kind=kind, strict=True)


@pytest.mark.parametrize(
    "box",
    [
        *(None, [1, 2], [1, 2, 3], [1, 2, 3, 4, 5], "1 2 3 4", ["1", "2", "3", "4"]),
        *([-5, 1, -3, 4], [1, 2, None, 4], [10**400, 1, 2, 3], [1, 2, 1e999, 3], {"x": 1}, 4.0),
        [20, 2, 1e-9, 3],
    ],
    ids=str,
)
def test_malformed_boxes_are_dropped_in_training_and_evaluation(load, content, box):
    detections = perfect(content)
    content["annotations"].append(instance(21, 7, box))
    with pytest.warns(
        UserWarning, match=r"ids \[21\] of images \[7\]\); 1 dropped, in training and"
    ):
        assert len(load()[1][1]["boxes"]) == 2
    with pytest.warns(UserWarning, match=r"ids \[21\] .* 1 dropped"):
        assert evaluate(content, detections)["AP"] == pytest.approx(100)


@pytest.mark.filterwarnings("error", "ignore:.*dropped, in training:UserWarning")
def test_numbers_near_the_largest_float_give_no_other_warning(load, content):
    detections = perfect(content)
    square = [[1, 1, 9, 1, 9, 9]]
    for entry in content["annotations"]:
        entry |= {"segmentation": square, "area": 50}
    low, high = -1e308, 1e308
    boxes = ([0, 0, high, high], [high, 0, high, 1], [low, low, high, high], [1, 1, 2, high])
    content["annotations"] += [
        instance(30 + i, 5, box, segmentation=square, area=high) for i, box in enumerate(boxes)
    ]
    target = load()[2][1]
    assert torch.isfinite(target["boxes"]).all()
    assert torch.isfinite(target["area"]).all()
    assert load(kind="masks")[1][1]["masks"].shape == (2, 30, 40)
    assert evaluate(content, detections)["AP50"] >= 0


def test_copies_of_an_annotation_count_once(load, content):
    detections = perfect(content)
    content["annotations"] += [a | {"id": 50 + a["id"]} for a in content["annotations"]]
    with pytest.warns(UserWarning, match=r"3 with an exact copy .* \[50, 53, 58\] .*; 3 dropped"):
        dataset = load()
    assert [len(target["boxes"]) for _, target in dataset] == [1, 2, 0]
    assert evaluate(dataset.ground_truth(), detections)["AP"] == pytest.approx(100)
    with pytest.warns(UserWarning, match="3 with an exact copy"):
        assert evaluate(content, detections)["AP"] == pytest.approx(100)
    content["annotations"][-1]["category_id"] = 4  # two objects in one place are no copies
    with pytest.warns(UserWarning, match="2 with an exact copy"):
        load()


@pytest.mark.parametrize(
    ("single", "crowd"),
    [(0, 1), ("0", "1"), (0.0, 1.0), (False, True), (None, 1), ("false", "True")],
)
def test_iscrowd_is_taken_as_it_is_plainly_meant(load, content, single, crowd):
    for entry in content["annotations"]:
        entry["iscrowd"] = single
    assert load()[1][1]["iscrowd"].tolist() == [False, False]
    detections = [{**a, "score": 1.0} for a in content["annotations"]]
    assert evaluate(content, detections, per_class=True)["AP/dog"] == pytest.approx(100)
    content["annotations"][0]["iscrowd"] = crowd
    assert load()[1][1]["iscrowd"].tolist() == [True, False]
    for strange in ("maybe", 2, [0], 0.5):
        content["annotations"][0]["iscrowd"] = strange
        with pytest.raises(ValueError, match=r"annotation 0 of image 7 has .* write 0 or 1"):
            load()


def test_an_instance_without_a_box_takes_that_of_its_segmentation(load, content):
    code = rle.encode(np.asfortranarray(decode_mask([[2, 3, 9, 3, 9, 8, 2, 8]], 30, 40), np.uint8))
    code["counts"] = code["counts"].decode()
    shapes = [[[1, 2, 11, 2, 11, 14], [5, 5, 12, 9, 8, 9.5]], code]
    content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 9, "segmentation": shape}
        for i, shape in enumerate(shapes)
    ]
    assert load()[1][1]["boxes"].tolist() == [[1, 2, 12, 14], [2, 3, 9, 8]]
    detections = [found(7, [1, 2, 11, 12]), found(7, [2, 3, 7, 5])]
    assert evaluate(content, detections)["AP"] == pytest.approx(100)


def test_boxes_that_are_shares_of_the_image_stop(load, content):
    for entry in content["annotations"]:
        entry["bbox"] = [0.25, 0.5, 0.2, 0.1]
    with pytest.raises(ValueError, match=r"all 3 boxes lie between 0 and 1, .* multiply them"):
        load()


def test_boxes_are_clipped_to_the_image(load, content):
    content["annotations"] = [instance(1, 0, [-0.5, -0.5, 41, 31])]
    assert load()[0][1]["boxes"].tolist() == [[0, 0, 40, 30]]  # rounding: no warning
    content["annotations"] = [instance(1, 0, [-4, 5, 100, 10])]
    with pytest.warns(UserWarning, match=r"1 with a box beyond .* \(clipped\) .*; 0 dropped"):
        assert load()[0][1]["boxes"].tolist() == [[0, 5, 40, 15]]
    with pytest.warns(UserWarning, match=r"\(clipped\)"):
        metrics = evaluate(content, [found(0, [0, 5, 40, 10])])
    assert metrics["AP"] == pytest.approx(100)


BAD_MASKS = {
    "two points": [[1, 1, 5, 5]],
    "odd": [[1, 1, 5, 5, 3, 3, 3]],
    "nan": [[1, 1, 5, 5, 3, math.nan]],
    "no polygon": [],
    "none": None,
    "other size": {"size": [40, 30], "counts": [0, 10, 1190]},
    "nothing set": {"size": [30, 40], "counts": [1200]},
    "all outside": [[41, 3, 45, 3, 45, 9], [5, -9, 9, -9, 9, 0]],
    "wrong sum": {"size": [30, 40], "counts": [10, 10, 10]},
    "empty string": {"size": [30, 40], "counts": ""},
    "no counts": {"size": [30, 40]},
    "far away": [[1, 1, 5, 5, 3, 1e7]],
    "text": [["1", "1", "5", "5", "3", "5"]],
    "400 digits": [[1, 1, 5, 5, 3, 10**400]],
    "flat": [1, 1, 5, 5, 3, 5],
    "negative run": {"size": [30, 40], "counts": [10, -10, 1200]},
    "garbage": {"size": [30, 40], "counts": "\u20ac~\x00"},
    "too long a run": {"size": [30, 40], "counts": "ooooooooooo1"},
    "half a string": {"size": [30, 40], "counts": "Pb0Z"},
    "counts of floats": {"size": [30, 40], "counts": [100.0, 1100.0]},
}


@pytest.mark.parametrize("fault", BAD_MASKS)
def test_unusable_segmentations_are_dropped(load, content, fault):
    good = decode_mask([[1, 1, 9, 1, 9, 9]], 30, 40)
    if BAD_MASKS[fault] and fault not in ("nothing set", "all outside"):
        with pytest.raises(ValueError, match="a mask of 40 x 30 pixels has"):
            decode_mask(BAD_MASKS[fault], 30, 40)
    content["annotations"] = [
        instance(1, 0, [1, 1, 8, 8], segmentation=[[1, 1, 9, 1, 9, 9], [1, 2]]),
        instance(2, 0, [1, 1, 8, 8], segmentation=BAD_MASKS[fault]),
    ]
    message = (
        r"1 with an unusable segmentation \(first annotation ids \[2\] of images \[0\]\), "
        r"1 with an unusable polygon \(left out\) \(first annotation ids \[1\] .*; 1 dropped"
    )
    with pytest.warns(UserWarning, match=message):
        target = load(kind="masks")[0][1]
    assert target["masks"].shape == (1, 30, 40)
    assert torch.equal(target["masks"][0], torch.from_numpy(good))
    assert len(load()[0][1]["boxes"]) == 2  # boxes alone do not need them
    code = rle.encode(np.asfortranarray(good, np.uint8))
    with pytest.warns(UserWarning, match=message):
        metrics = evaluate(content, [found(0, None, segmentation=code)], kind="segm")
    assert metrics["AP"] == pytest.approx(100)


def test_run_lengths_are_checked_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.5, 1):
        for height, width in ((1, 1), (30, 40), (300, 211)):
            mask = rng.random((height, width)) < share
            code = rle.encode(np.asfortranarray(mask, np.uint8))["counts"]
            assert check_rle(code, height, width) is None
            assert check_rle(code.decode(), height, width) is None
            assert "pixels, where the image has" in check_rle(code, height, width + 1)
            for i in range(min(len(code), 25)):  # never a crash, and what passes fills the image
                for letter in (code[i] ^ 1, code[i] ^ 32, 0, 255):
                    other = code[:i] + bytes([letter]) + code[i + 1 :]
                    if check_rle(other, height, width) is None:
                        rle.decode({"size": [height, width], "counts": other})
    assert check_rle([], 0, 0) is None
    assert check_rle(None, 1, 1) == "has run lengths that are neither a list nor text"


def test_a_polygon_outside_the_image_sets_no_pixel_and_nearly_all_others_do():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        points = (rng.uniform(-12, 12, (3, 2)) + rng.uniform(-15, 50, 2)).ravel().tolist()
        found.append((is_outside(points, 30, 40), decode_mask([points], 30, 40).any()))
    outside, drawn = np.array(found).T
    assert outside.sum() > 50
    assert not drawn[outside].any()
    assert drawn[~outside].mean() > 0.8  # but slivers and those beyond a corner


def test_polygons_may_leave_the_image_but_not_by_more_than_its_side():
    assert check_polygon([-40, 0, 80, 0, 5, 80.0], 30, 40) is None
    for points in ([-41, 0, 9, 0, 5, 5], [0, 0, 81, 0, 5, 5], [0, 0, math.inf, 0, 5, 5]):
        assert "far outside" in check_polygon(points, 30, 40)
    assert "no polygon and no run lengths" in check_segmentation([], 30, 40)


def test_masks_need_segmentations(load):
    with pytest.raises(ValueError, match="has no segmentations: only its boxes"):
        load(kind="masks")


SQUARE = [[1, 1, 9, 1, 9, 9]]
NO_MASKS = {
    "two points": BAD_MASKS["two points"],
    "no polygon": [],
    "empty polygons": [[], [3, 3, 4]],
    "none": None,
    "nothing set": BAD_MASKS["nothing set"],
    "all outside": BAD_MASKS["all outside"],
    "no runs": {"size": [30, 40], "counts": []},
    "empty string": BAD_MASKS["empty string"],
}
DAMAGED = [fault for fault in BAD_MASKS if fault not in NO_MASKS]


box_only = pytest.mark.filterwarnings("ignore:.* with a box only:UserWarning")


@pytest.fixture
def partial_masks(load):
    return lambda **options: load(kind="masks", partial=True, **options)


@box_only
def test_an_instance_without_the_key_keeps_its_box_in_a_partial_set(partial_masks, content):
    for number in (0, 2):  # the cat and the crowd of image 7; the cow of image 0 has none
        content["annotations"][number]["segmentation"] = SQUARE
    content["annotations"] += [instance(9, 7, [3, 3, 6, 6]), instance(10, 7, [5, 5, 9, 9], 4)]
    content["annotations"][-1]["segmentation"] = [[5, 5, 14, 5, 14, 14]]
    message = r"of 5 instances, 2 with a box only .* ids \[3, 9\] of images \[0, 7\]\); 0 dropped"
    with pytest.warns(UserWarning, match=message) as caught:
        dataset = partial_masks(strict=True)  # it is no fault
    assert len(caught) == 1
    assert dataset.problems == {"a box only (kept)": 2}
    target = dataset[1][1]
    assert target["boxes"].shape == (4, 4)
    assert target["has_mask"].tolist() == [True, True, False, True]
    expected = [decode_mask(shape, 30, 40) for shape in (SQUARE, SQUARE, [[5, 5, 14, 5, 14, 14]])]
    assert np.array_equal(target["masks"], expected)
    assert dataset.target(0)["has_mask"].tolist() == [False]
    for index in (0, 2):  # a box without a mask; no object at all
        assert dataset.target(index)["masks"].shape == (0, 30, 40)
    assert dataset.target(2)["has_mask"].shape == (0,)
    assert dataset.target(2)["boxes"].shape == (0, 4)
    assert len(partial_masks(keep_empty=False)) == 2


@pytest.mark.parametrize("empty", NO_MASKS)
def test_an_empty_segmentation_is_as_good_as_none_in_a_partial_set(
    partial_masks, load, content, empty
):
    square = instance(1, 0, [1, 1, 8, 8], segmentation=SQUARE)
    content["annotations"] = [
        instance(2, 0, [1, 1, 8, 8], segmentation=NO_MASKS[empty]),
        square,
        instance(3, 0, [2, 2, 8, 8]),
    ]
    with pytest.warns(UserWarning, match=r"3 instances, 2 with a box only .*; 0 dropped") as caught:
        dataset = partial_masks()
    assert str(caught[0].message).count(" with ") == 1
    target = dataset[0][1]
    assert target["has_mask"].tolist() == [False, True, False]
    assert torch.equal(target["masks"][0], torch.from_numpy(decode_mask(SQUARE, 30, 40)))
    with pytest.warns(UserWarning, match="2 with an unusable segmentation"):
        assert len(load(kind="masks")[0][1]["boxes"]) == 1  # where masks are needed


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_segmentation_is_dropped_from_a_partial_set(partial_masks, content, fault):
    content["annotations"] = [
        instance(1, 0, [1, 1, 8, 8], segmentation=BAD_MASKS[fault]),
        instance(2, 0, [1, 1, 8, 8]),
    ]
    message = r"1 with an unusable segmentation .*\[1\].*, 1 with a box only .*\[2\].*; 1 dropped"
    with pytest.warns(UserWarning, match=message) as caught:
        target = partial_masks()[0][1]
    assert len(caught) == 1
    assert target["has_mask"].tolist() == [False]
    with pytest.raises(ValueError, match="1 with an unusable segmentation"):
        partial_masks(strict=True)


def test_a_mask_of_zeros_is_a_mask(partial_masks, content):
    speck = [[4.1, 4.1, 4.2, 4.1, 4.2, 4.2]]
    content["annotations"] = [instance(1, 0, [4, 4, 1, 1], segmentation=speck)]
    target = partial_masks()[0][1]
    assert target["has_mask"].tolist() == [True]
    assert target["masks"].shape == (1, 30, 40)
    assert not target["masks"].any()


def test_a_file_without_any_segmentation_loads_as_a_partial_set(partial_masks, content):
    detections = perfect(content)
    with pytest.warns(UserWarning, match="3 instances, 3 with a box only"):
        dataset = partial_masks()
    for _, target in dataset:
        assert target["masks"].shape == (0, 30, 40)
        assert not target["has_mask"].any()
    assert dataset.ground_truth()["annotations"] == []
    assert evaluate(dataset.ground_truth(boxes=True), detections)["AP"] == pytest.approx(100)
    content["annotations"] = []
    assert [len(target["has_mask"]) for _, target in partial_masks()] == [0, 0, 0]


def test_boxes_of_no_area_and_copies_are_dropped_from_a_partial_set(partial_masks, content):
    content["annotations"] = [instance(i, 0, [1, 1, 8, 8]) for i in (1, 2)]
    content["annotations"].append(instance(3, 7, [0, 0, 0, 0]))
    message = (
        r"1 with a box of no area .*, 1 with an exact copy .*, 1 with a box only .*; 2 dropped"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        dataset = partial_masks()
    assert len(caught) == 1
    assert [t["boxes"].shape for _, t in dataset] == [(1, 4), (0, 4), (0, 4)]
    assert [t["masks"].shape for _, t in dataset] == [(0, 30, 40)] * 3
    with pytest.raises(ValueError, match="1 with a box of no area"):
        partial_masks(strict=True)


@box_only
def test_a_target_may_be_had_without_decoding_masks(partial_masks, content, monkeypatch):
    content["annotations"][0]["segmentation"] = SQUARE
    dataset = partial_masks()
    whole = dataset.target(1)
    monkeypatch.delattr("common.coco.dataset.pickle")  # with which masks are read
    target = dataset.target(1, decode=False)
    assert list(target) == [key for key in whole if key != "masks"]
    assert target["has_mask"].tolist() == [True, False]
    assert torch.equal(target["boxes"], whole["boxes"])
    with pytest.raises(NameError):
        dataset.target(1)


@box_only
def test_the_truth_of_a_partial_set_has_the_masks_or_all_boxes(partial_masks, content):
    content["annotations"][0]["segmentation"] = SQUARE
    content["annotations"][2]["segmentation"] = {"size": [30, 40], "counts": [600, 30, 570]}
    detections = perfect(content)
    dataset = partial_masks()
    assert dataset.target(1)["masks"].sum((1, 2)).tolist()[1] == 30  # a crowd's run lengths
    truth = dataset.ground_truth()
    assert [(a["image_id"], a["iscrowd"]) for a in truth["annotations"]] == [(7, 0), (7, 1)]
    code = rle.encode(np.asfortranarray(decode_mask(SQUARE, 30, 40), np.uint8))
    metrics = evaluate(truth, [found(7, None, segmentation=code)], kind="segm", per_class=True)
    assert metrics["AP/cat"] == pytest.approx(100)
    assert math.isnan(metrics["AP/cow"])  # its only instance has no mask
    boxes = dataset.ground_truth(boxes=True)
    assert evaluate(boxes, detections, per_class=True)["AP/cow"] == pytest.approx(100)


@box_only
@pytest.mark.parametrize("masked", [0, 1])
def test_transforms_carry_the_masks_of_a_partial_set(partial_masks, content, masked):
    if masked:
        content["annotations"][0]["segmentation"] = SQUARE
    image, target = partial_masks()[1]
    mask = decode_mask(SQUARE, 30, 40)
    for transform, changed in (
        (HorizontalFlip(1), mask[:, ::-1]),
        (Resize(60, 80), mask.repeat(2, 0).repeat(2, 1)),
    ):
        _, after = transform(image, target)
        assert after["has_mask"] is target["has_mask"]
        assert after["boxes"].shape == (2, 4)
        assert after["masks"].dtype == torch.bool
        assert np.array_equal(after["masks"], [changed][:masked] or np.zeros((0, *changed.shape)))


def test_sizes_of_masks_are_by_their_own_area_whether_results_have_boxes_or_not(content):
    square = [[0, 0, 40, 0, 40, 30, 0, 30]]
    content["annotations"] = [instance(1, 0, [0, 0, 40, 30], segmentation=square, area=1200)]
    code = rle.encode(np.asfortranarray(decode_mask(square, 30, 40), np.uint8))
    for box in ({}, {"bbox": [0, 0, 3, 3]}):
        detection = {"image_id": 0, "category_id": 9, "score": 1, "segmentation": code} | box
        metrics = evaluate(content, [detection], kind="segm")
        assert metrics["AP_medium"] == pytest.approx(100)
        assert math.isnan(metrics["AP_small"])


@box_only
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_and_transparent_images_of_a_partial_set_are_rgb(partial_masks, tmp_path, mode):
    dataset = partial_masks()
    Image.new(mode, (40, 30)).save(tmp_path / "images" / "7.png")
    assert dataset[1][0].shape == (3, 30, 40)


def test_only_masks_may_be_partial(load):
    with pytest.raises(ValueError, match="partial=True is of kind='masks', not 'boxes'"):
        load(partial=True)


def change(content, key, **values):
    content[key][0] |= values


FAULTS = [
    (lambda c: c.pop("images"), "train.json has no list `images`"),
    (lambda c: c.update(images=None), "train.json: `images` is null, not a list"),
    (lambda c: c.update(images=[]), "train.json: the list `images` is empty"),
    (lambda c: c.update(categories={}), "train.json: `categories` is {}, not a list"),
    (lambda c: c["images"].append(3), "an entry of `images` is not an object"),
    (lambda c: change(c, "images", id=5), "image id of .* 5 appears twice"),
    (lambda c: change(c, "images", file_name="7.png"), "7.png' appears twice"),
    (lambda c: change(c, "images", file_name="a/../7.png"), "leads out of the image folder"),
    (lambda c: change(c, "images", file_name="/etc/7.png"), "leads out of the image folder"),
    (lambda c: change(c, "images", file_name="C:7.png"), "leads out of the image folder"),
    (lambda c: change(c, "images", file_name="..\\7.png"), "leads out of the image folder"),
    (lambda c: change(c, "images", file_name=None), "image 0 has null as its `file_name`, which"),
    (lambda c: change(c, "images", file_name="1.png"), r"1\.png is listed in .* not exist"),
    (lambda c: change(c, "images", width=0), "image 0 has 0 as its `width`, which must be"),
    (lambda c: change(c, "images", height="30"), "image 0 has '30' as its `height`"),
    (lambda c: change(c, "images", height=10**400), "image 0 has 10+.*0 as its `height`"),
    (lambda c: change(c, "images", height=2**15, width=2**15), "32768 x 32768 pixels, more than"),
    (lambda c: change(c, "categories", id=4), "category id of .* 4 appears twice"),
    (lambda c: change(c, "categories", name=None), "category 9 has null as its `name`"),
    (lambda c: change(c, "annotations", image_id=1), "annotation 0 is of image 1, which"),
    (lambda c: change(c, "annotations", category_id=2), "annotation 0 of image 7 .* category 2"),
    (lambda c: change(c, "annotations", id=[1]), r"annotation \[1\] of image 7 has \[1\] as its"),
]
STRANGE_IDS = ([1], {"a": 1}, 2**63, 10**400, True, 7.0, "7", -1, None)
ID_FIELDS = [("images", "id"), ("categories", "id")]
ID_FIELDS += [("annotations", "image_id"), ("annotations", "category_id")]
FAULTS += [
    (partial(change, key=key, **{field: value}), rf"as its `{field}`, which must be a whole number")
    for value in STRANGE_IDS
    for key, field in ID_FIELDS
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS)
def test_a_faulty_file_stops_training_and_evaluation(load, content, spoil, message):
    content["categories"] = [dict(c) for c in CATEGORIES]
    spoil(content)
    with pytest.raises(ValueError, match=message):
        load()
    if "file_name" not in message and "png" not in message and "folder" not in message:
        with pytest.raises(ValueError, match=message.replace("train.json", "the ground truth")):
            evaluate(content, [])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_of_json_are_read(tmp_path, content, encoding):
    write(tmp_path, content, "val")
    file = tmp_path / "annotations" / "val.json"
    file.write_bytes(json.dumps(content).encode(encoding))
    assert len(CocoDataset(*find_split(tmp_path, "val"))) == 3


def test_a_cut_file_is_named_with_the_position(tmp_path, content):
    images, file = write(tmp_path, content)
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"train.json is not JSON, .* line 1, column"):
        CocoDataset(images, file)
    file.write_bytes(b'{"images": "\xff"}')
    with pytest.raises(ValueError, match=r"train.json is not UTF-8 text: .* byte 12"):
        CocoDataset(images, file)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"train.json is nested too deeply"):
        CocoDataset(images, file)
    file.write_text('{"images": ' + "1" * 5000 + "}")
    with pytest.raises(ValueError, match=r"train.json holds a number that is too long"):
        CocoDataset(images, file)
    file.unlink()
    os.mkfifo(file)  # opening it would wait for ever
    with pytest.raises(ValueError, match=r"train.json is not a regular file"):
        CocoDataset(images, file)
    with pytest.raises(ValueError, match="no annotations of 'train'"):
        find_split(tmp_path, "train")
    file.unlink()
    file.write_text("[]")
    with pytest.raises(ValueError, match="has no list `images`"):
        CocoDataset(images, file)
    with pytest.raises(ValueError, match=r"none.json does not exist"):
        CocoDataset(images, tmp_path / "none.json")
    with pytest.raises(ValueError, match="kind is 'box'"):
        CocoDataset(images, file, kind="box")


def test_an_image_of_another_size_is_named_unless_only_turned(load, tmp_path, capsys):
    dataset = load()
    path = tmp_path / "images" / "0.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    for size in ((40, 30), (30, 40)):  # listed as stored, listed as seen
        Image.new("RGB", size).save(path, exif=exif)
        assert dataset[0][0].shape == (3, 30, 40)
        assert check_data(["coco_format", str(tmp_path)]) == 0
    for width, height in ((41, 30), (30, 40)):
        Image.new("RGB", (width, height)).save(path)
        message = f"0.png is {width} x {height} pixels, but listed as 40 x 30"
        for look in (dataset.__getitem__, dataset.check_image):
            with pytest.raises(UnreadableImage, match=message):
                look(0)
        for options in ([], ["--decode"]):
            assert check_data(["coco_format", str(tmp_path), *options]) == 2
            assert message in capsys.readouterr().err


def test_keypoints_must_be_complete(load, content):
    content["categories"] = [c | {"keypoints": ["nose", "tail"]} for c in CATEGORIES]
    for entry in content["annotations"][:2]:
        entry["keypoints"] = [1, 2, 2, 0, 0, 0]
    assert load(kind="keypoints")[1][1]["keypoints"].tolist() == [
        [[1.5, 2.5, 2], [0, 0, 0]],  # the centre of a pixel
        [[0, 0, 0], [0, 0, 0]],  # the crowd has none
    ]
    for points in ([1, 2, 2], [1, 2, 2, 0, 0, None], [1, 2, 2, 0, 0, math.nan], "nose", None):
        content["annotations"][0]["keypoints"] = points
        with pytest.raises(ValueError, match=r"annotation 0 of image 7 has .* 2 joints need 6 fin"):
            load(kind="keypoints")
        with pytest.raises(ValueError, match=r"annotation 0 of image 7 has .* 2 joints need 6 fin"):
            evaluate(content, [], kind="keypoints")


def written(image, target, category_ids):
    """Joints as the results file would hold them."""
    count = len(target["boxes"])
    return [
        detection["keypoints"]
        for detection in to_coco(
            1, target["boxes"], torch.ones(count), target["labels"], category_ids,
            keypoints=target["keypoints"],
        )
    ]  # fmt: skip


def test_joints_survive_the_way_from_the_file_to_the_results(load, content):
    joints = [0, 0, 2, 39, 29, 1, 0, 0, 0, 12, 7, 2]  # corners, none, and one between
    content["categories"] = [c | {"keypoints": list("abcd")} for c in CATEGORIES]
    for entry in content["annotations"][:2]:
        entry["keypoints"] = joints
    dataset = load(kind="keypoints")
    image, target = dataset[0]
    assert written(image, target, dataset.category_ids) == [joints]
    flip = HorizontalFlip(1, mirrored=(1, 0, 2, 3))
    flipped = flip(image, target)
    once = [0, 29, 1, 39, 0, 2, 0, 0, 0, 27, 7, 2]
    assert written(*flipped, dataset.category_ids) == [once]
    assert written(*flip(*flipped), dataset.category_ids) == [joints]
    large = Resize(60, 80)(image, target)
    assert large[1]["keypoints"][0, 1].tolist() == [79, 59, 1]  # the centre of 2 x 2 pixels
    assert written(*Resize(30, 40)(*large), dataset.category_ids) == [joints]


def test_joints_of_the_built_in_scenes_follow_their_solids(tmp_path):
    scenes = Scenes(World(), count=2, cache=tmp_path, masks=True, keypoints=True)
    truth = scenes.coco("keypoints")
    joints = iter(a["keypoints"] for a in truth["annotations"])
    detections = []
    for i in range(2):
        image, target = scenes[i]
        assert written(image, target, scenes.category_ids) == [
            next(joints) for _ in target["boxes"]
        ]
        _, mirrored = HorizontalFlip(1, mirrored=KEYPOINT_FLIP)(image, target)
        for found, masks in ((target, target["masks"]), (mirrored, mirrored["masks"])):
            x, y, v = found["keypoints"].unbind(2)
            for k, j in (v == 2).nonzero().tolist():  # seen: in a pixel of its solid, or beside one
                row, column = int(y[k, j]), int(x[k, j])
                assert masks[k, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].any()
        detections += to_coco(
            target["image_id"], target["boxes"], torch.ones(len(target["boxes"])),
            target["labels"], scenes.category_ids, keypoints=target["keypoints"],
        )  # fmt: skip
    metrics = evaluate(truth, detections, kind="keypoints", sigmas=[1e-4] * 9)
    assert metrics["AP"] == pytest.approx(100)


@pytest.mark.parametrize("folder", [".", "images", "val", "images/val"])
@pytest.mark.parametrize("name", ["annotations/val.json", "annotations/instances_val.json"])
def test_images_of_a_plain_set_are_found(tmp_path, content, folder, name):
    (tmp_path / "annotations").mkdir()
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for i in (0, 5, 7):
        Image.new("RGB", (40, 30)).save(tmp_path / folder / f"{i}.png")
    assert len(CocoDataset(*find_split(tmp_path, "val"))) == 3


def test_the_2014_training_set_is_joined_from_two_files(tmp_path):
    def file(name, folder, number):
        picture = f"COCO_{folder}_{number}.png"
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / folder / picture)
        content = {
            "images": [{"id": number, "file_name": picture, "height": 30, "width": 40}],
            "annotations": [instance(number, number, [1, 1, number, 5])],
            "categories": CATEGORIES,
        }
        (tmp_path / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))

    (tmp_path / "annotations").mkdir()
    file("train2014", "train2014", 11)
    file("valminusminival2014", "val2014", 12)
    file("minival2014", "val2014", 13)
    for split in ("train", "trainval35k"):
        dataset = CocoDataset(*find_split(tmp_path, split))
        assert [t["boxes"].tolist() for _, t in dataset] == [[[1, 1, 12, 6]], [[1, 1, 13, 6]]]
    assert CocoDataset(*find_split(tmp_path, "minival")).ids.tolist() == [13]
    assert CocoDataset(*find_split(tmp_path, "train2014")).ids.tolist() == [11]
    assert check_data(["coco", str(tmp_path)]) == 0


def test_a_missing_set_split_or_image_shows_the_expected_tree(tmp_path, content, capsys):
    with pytest.raises(ValueError, match=r"(?s)none is not a folder; expected one of.*ROOT/anno"):
        find_split(tmp_path / "none", "train")
    write(tmp_path, content)
    with pytest.raises(ValueError, match=r"no annotations of 'val': .*instances_val2017.json"):
        find_split(tmp_path, "val")
    (tmp_path / "images" / "5.png").unlink()
    assert check_data(["coco_format", str(tmp_path)]) == 2
    assert "5.png is listed in" in capsys.readouterr().err
    (tmp_path / "images" / "0.png").unlink()
    assert check_data(["coco_format", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "train/0.png, the first image of" in error
    assert "expected one of" in error


def test_a_file_name_that_no_file_can_have_is_cut_short(load, tmp_path, content, capsys):
    content["images"][0]["file_name"] = "a" * 5000
    with pytest.raises(ValueError, match=r"/aaa.{100,300} characters\) is listed in") as caught:
        load()
    assert len(str(caught.value)) < 600
    assert check_data(["coco_format", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "aaa (50" in said
    assert "is missing; expected one of" in said
    assert len(said.splitlines()[0]) < 700


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in annToMask
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_masks_and_boxes_are_pycocotools(shared_data, split):
    dataset = CocoDataset(*find_split(shared_data / "coco_mini", split), kind="masks")
    reference = COCO(str(dataset.annotation_files[0]))
    for index in range(0, len(dataset), 3):
        image, target = dataset[index]
        entries = reference.imgToAnns[target["image_id"]]
        assert image.shape[1:] == target["size"] == target["masks"].shape[1:]
        assert len(target["boxes"]) == len(entries)
        for i, entry in enumerate(entries):
            assert np.array_equal(target["masks"][i], reference.annToMask(entry))
            x, y, w, h = entry["bbox"]
            assert target["boxes"][i].tolist() == pytest.approx([x, y, x + w, y + h], abs=1e-3)
            assert dataset.category_ids[target["labels"][i]] == entry["category_id"]
            assert bool(target["iscrowd"][i]) == bool(entry["iscrowd"])


def test_the_mini_set_is_counted_and_its_portraits_are_found(shared_data):
    dataset = CocoDataset(*find_split(shared_data / "coco_mini", "train"))
    _, per_class = dataset.counts()
    assert len(dataset) == 80
    assert per_class.sum(0).tolist() == [739, 8]
    assert dataset.category_ids[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert dataset.problems == {}
    portrait = dataset.aspect_groups()
    assert [i for i, (h, w) in enumerate(dataset.sizes) if h > w] == np.flatnonzero(
        portrait
    ).tolist()


def test_the_real_grey_image_is_read_as_rgb(shared_data):
    image = read_image(shared_data / "coco_mini" / "val2017" / "000000431848.jpg")
    assert image.shape[0] == 3
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_real_keypoints_are_those_of_the_file(shared_data):
    dataset = CocoDataset(
        *find_split(shared_data / "coco_mini", "val", kind="keypoints"), kind="keypoints"
    )
    assert dataset.names == ["person"]
    content = json.loads(dataset.annotation_files[0].read_text())
    first = content["annotations"][0]
    target = dataset.target(dataset.ids.tolist().index(first["image_id"]))
    assert written(None, target, dataset.category_ids)[0] == first["keypoints"]


@pytest.mark.parametrize(("split", "number", "kept"), [("train", 2288, 2804), ("val", 887, 1137)])
def test_the_two_boxes_of_no_area_are_reported_and_dropped(shared_data, split, number, kept):
    paths = find_split(shared_data / "bccd", split)
    with pytest.warns(UserWarning, match=rf"1 with a box of no area .*\[{number}\].*; 1 dropped"):
        dataset = CocoDataset(*paths)
    assert dataset.counts()[0].sum() == kept
    assert dataset.names == ["RBC", "WBC", "Platelets"]


def test_check_data_describes_real_sets(shared_data, capsys):
    assert check_data(["coco", str(shared_data / "coco_mini"), "--annotations", "masks"]) == 0
    printed = capsys.readouterr().out
    assert "80 images (0 without instances), 739 instances (8 crowds) of 80 classes" in printed
    assert check_data(["coco_format", str(shared_data / "bccd"), "--decode"]) == 0
    printed = capsys.readouterr().out
    assert "2804 instances" in printed
    assert "1 with a box of no area (first annotation ids [2288] of images [171])" in printed
    assert check_data(["coco", str(shared_data / "bccd")]) == 2


def found(image_id, bbox, score=0.9, category_id=9, **more):
    entry = {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
    return entry | more


def perfect(content):
    return [
        {
            k: a[k]
            for k in ("image_id", "category_id", "bbox", "segmentation", "keypoints")
            if k in a
        }
        | {"score": 1.0}
        for a in content["annotations"]
        if not a["iscrowd"] and a.get("num_keypoints", 1)
    ]


def test_perfect_detections_score_100_even_with_annotation_id_0(content):
    metrics = evaluate(content, perfect(content), per_class=True)
    for key in ("AP", "AP50", "AP75", "AP_small", "AR_1", "AR_100", "AP/cat", "AP/cow", "AR/cow"):
        assert metrics[key] == pytest.approx(100)
    assert math.isnan(metrics["AP/dog"])  # only a crowd: no ground truth
    assert math.isnan(metrics["AP_large"])
    assert content["annotations"][0]["id"] == 0  # the caller's own is left alone


def test_annotation_ids_may_be_floats_and_repeat_as_those_of_minival(load, content):
    for annotation in content["annotations"]:
        annotation["id"] = 908400416500.0
    assert len(load().target(1)["boxes"]) == 2
    found = [{"image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 12], "score": 0.9}]
    found.append({"image_id": 0, "category_id": 4, "bbox": [4, 4, 8, 8], "score": 0.9})
    assert evaluate(content, found)["AP"] == pytest.approx(100)


def test_no_detections_score_0_and_no_ground_truth_nan(content):
    assert evaluate(content, [])["AP"] == evaluate(content, [])["AR_100"] == 0
    nothing = content | {"annotations": []}
    assert all(map(math.isnan, evaluate(nothing, []).values()))
    assert all(map(math.isnan, evaluate(nothing, [found(7, [1, 1, 5, 5])]).values()))


def test_a_detection_on_a_crowd_counts_neither_way(content):
    detections = perfect(content)
    content["annotations"].append(instance(11, 5, [10, 10, 5, 5], 0))
    detections.append(found(5, [10, 10, 5, 5], 0.5, 0))
    on_crowd = found(7, [22, 12, 9, 9], 0.9, 0)
    assert evaluate(content, [*detections, on_crowd])["AP"] == pytest.approx(100)
    elsewhere = found(7, [1, 1, 9, 9], 0.9, 0)
    # Precision 1/2 at every recall of one of three classes.
    assert evaluate(content, [*detections, elsewhere])["AP"] == pytest.approx(
        100 * (1 + 1 + 0.5) / 3
    )


def test_hand_counted_average_precision(content):
    # IoU 96 / 120 = 0.8 with the cat: right at 0.5 ... 0.8, wrong at 0.85 ... 0.95.
    metrics = evaluate(content, [found(7, [1, 2, 8, 12])], per_class=True)
    assert metrics["AP/cat"] == pytest.approx(70)
    assert metrics["AP"] == pytest.approx(35)  # the cow was missed
    assert (metrics["AP50"], metrics["AP75"]) == pytest.approx((50, 50))


def test_only_the_best_of_an_image_count_below_the_limit(content):
    content["annotations"] += [instance(30 + i, 0, [5 * i, 15, 4, 9], 4) for i in range(7)]
    metrics = evaluate(content, perfect(content), max_detections=(2, 4, 8))
    assert metrics["AR_2"] == pytest.approx(100 * (1 + 2 / 8) / 2)
    assert metrics["AR_4"] == pytest.approx(100 * (1 + 4 / 8) / 2)
    assert (metrics["AR_8"], metrics["AP"]) == pytest.approx((100, 100))


def test_a_part_of_the_images_may_be_evaluated(content):
    assert evaluate(content, perfect(content)[:1])["AP"] == pytest.approx(50)
    assert evaluate(content, perfect(content)[:1], image_ids=[7])["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="no image 99"):
        evaluate(content, [], image_ids=[99])


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (found(7, [1, 1, 5, 5], math.nan), r"detection 1 \(image 7\): its score is nan"),
        (found(8, [1, 1, 5, 5]), r"detection 1 \(image 8\): the ground truth has no such image"),
        (found(7, [1, 1, 5, 5], 1, 1), "the ground truth has no category 1"),
        (found(7, [1, 1, 5, 5], 10**400), r"its score is 10+\.\.\.0+, not a finite number"),
        (found([7], [1, 1, 5, 5]), r"detection 1 \(image \[7\]\): the ground truth has no such"),
        (found(7, [1, 1, 5, 5], 1, {}), "the ground truth has no category {}"),
        (found(7, "1 2 3 4"), "has no `bbox`"),
        (7, "detection 1 is 7, not an object"),
        (found(7, [1, 1, math.inf, 5]), "its bbox is not finite"),
        (found(7, [1, 1, -4, 5]), "no x, y, width, height"),
        ({"image_id": 7, "category_id": 9, "score": 0.5}, "has no `bbox`"),
        ({"image_id": 7, "category_id": 9, "bbox": [1, 1, 5, 5]}, "its score is null"),
    ],
)
def test_bad_detections_are_named(content, detection, message):
    with pytest.raises(ValueError, match=message):
        evaluate(content, [found(7, [1, 1, 5, 5]), detection])


def test_detected_masks_must_be_run_lengths_of_the_images_size(content):
    for entry in content["annotations"]:
        entry["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    code = rle.encode(np.asfortranarray(decode_mask([[1, 1, 9, 1, 9, 9]], 30, 40).astype(np.uint8)))
    runs = {"size": [30, 40], "counts": run_lengths(code, 30, 40).tolist()}
    right = [found(7, None, segmentation=runs), found(0, None, 0.9, 4, segmentation=code)]
    assert evaluate(content, right, kind="segm")["AP"] == pytest.approx(100)
    bad = [code | {"size": [40, 30]}, code | {"counts": b"xyz"}, *BAD_MASKS.values()]
    for wrong in [[[1, 1, 9, 1, 9, 9]], *(b for b in bad if b != BAD_MASKS["nothing set"])]:
        with pytest.raises(ValueError, match=r"\(image 7\): it has "):
            evaluate(content, [found(7, None, segmentation=wrong)], kind="segm")


def test_unknown_kinds_backends_and_ground_truth_are_named(content, monkeypatch):
    with pytest.raises(ValueError, match="kind is 'box'"):
        evaluate(content, [], kind="box")
    with pytest.raises(ValueError, match="backend is 'slow'"):
        evaluate(content, [], backend="slow")
    with pytest.raises(ValueError, match="has no list `images`"):
        evaluate({}, [])
    with pytest.raises(ValueError, match="the ground truth has no segmentations"):
        evaluate(content, [], kind="segm")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[fast\]'"):
        evaluate(content, [], backend="faster")


def disturbed(content, kind):
    """Detections beside each of the annotations of a file."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    rng = np.random.default_rng(0)
    detections = []
    for a in content["annotations"]:
        shift = rng.normal(0, 0.06, 4) * a["bbox"][2] + 0.1
        entry = {"image_id": a["image_id"], "category_id": a["category_id"], "score": rng.random()}
        entry["bbox"] = np.abs(np.add(a["bbox"], shift)).tolist()
        if kind == "segm":
            mask = np.roll(decode_mask(a["segmentation"], *sizes[a["image_id"]]), 2, 1)
            entry["segmentation"] = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        if kind == "keypoints":
            entry["keypoints"] = (np.array(a["keypoints"]) + rng.normal(0, 3, 51)).tolist()
        detections.append(entry)
    return detections


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_figures_of_real_files_are_those_of_pycocotools_and_the_faster_one(
    shared_data, kind, capsys
):
    stem = "person_keypoints" if kind == "keypoints" else "instances"
    file = shared_data / "coco_mini" / "annotations" / f"{stem}_val2017.json"
    content = json.loads(file.read_text())
    detections = disturbed(content, kind)
    ours = evaluate(file, detections, kind=kind, per_class=True)
    assert 20 < ours["AP"] < 95
    if kind != "segm":
        assert evaluate(file, perfect(content), kind=kind)["AP"] == pytest.approx(100)
    assert capsys.readouterr().out == ""
    shape = {"segm": "segmentation"}.get(kind, kind)
    plain = COCO(str(file))
    results = [{k: d[k] for k in ("image_id", "category_id", "score", shape)} for d in detections]
    theirs = COCOeval(plain, plain.loadRes(results), kind)
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    order = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100"]
    if kind == "keypoints":
        order = ["AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75"]
    assert [ours[name] for name in order] == (100 * theirs.stats[: len(order)]).tolist()
    if importlib.util.find_spec("faster_coco_eval"):
        faster = evaluate(content, detections, kind=kind, per_class=True, backend="faster")
        assert ours == pytest.approx(faster, nan_ok=True)


def test_other_joints_need_their_sigmas():
    content = {
        "images": [{"id": 1, "height": 30, "width": 40}],
        "annotations": [
            instance(1, 1, [1, 1, 20, 20], keypoints=[5, 5, 2, 9, 9, 2], area=400),
            instance(2, 1, [21, 1, 9, 9], iscrowd=1),
        ],
        "categories": CATEGORIES,
    }
    with pytest.raises(ValueError, match="2 keypoints need as many sigmas; there are 17"):
        evaluate(content, perfect(content), kind="keypoints")
    short = [found(1, None, keypoints=[5, 5, 2])]
    with pytest.raises(
        ValueError, match=r"detection 0 \(image 1\): it has 3 keypoint values, not 6"
    ):
        evaluate(content, short, kind="keypoints", sigmas=(0.05, 0.1))
    metrics = evaluate(content, perfect(content), kind="keypoints", sigmas=(0.05, 0.1))
    assert (metrics["AP"], metrics["AR"]) == pytest.approx((100, 100))
    # A shift d has similarity exp(-d^2 / (2 area (2 sigma)^2)) = 0.5 for both joints.
    shifts = [math.sqrt(math.log(2) * 2 * 400 * (2 * s) ** 2) for s in (0.05, 0.1)]
    for factor, ap50 in ((0.999, 100), (1.001, 0)):
        moved = [5 + factor * shifts[0], 5, 1, 9, 9 + factor * shifts[1], 1]
        detection = perfect(content)[0] | {"keypoints": moved}
        assert evaluate(content, [detection], kind="keypoints", sigmas=(0.05, 0.1))["AP50"] == (
            pytest.approx(ap50)
        )


def test_the_models_output_becomes_cocos_format_and_back(content, tmp_path):
    boxes = torch.tensor([[1.0, 2.0, 11.0, 14.0], [20.0, 10.0, 40.0, 30.0]])
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[0, 2:14, 1:11] = True
    detections = to_coco(
        7, boxes, torch.tensor([0.5, 0.25]), torch.tensor([2, 0]), [0, 4, 9], masks=masks,
        keypoints=torch.ones(2, 1, 3),
    )  # fmt: skip
    assert detections[0]["bbox"] == [1, 2, 10, 12]
    assert [d["category_id"] for d in detections] == [9, 0]
    assert detections[1]["score"] == 0.25
    assert detections[0]["keypoints"] == [0.5, 0.5, 1]
    assert np.array_equal(decode_mask(detections[0]["segmentation"], 30, 40), masks[0])
    save_results(tmp_path / "results.json", detections)
    assert json.loads((tmp_path / "results.json").read_text()) == detections
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    no = torch.zeros(0)
    assert to_coco(7, torch.zeros(0, 4), no, no.long(), [0]) == []


def test_results_that_are_no_json_leave_the_old_file(tmp_path):
    save_results(tmp_path / "results.json", [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_results(tmp_path / "results.json", [found(1, [1, 1, 1, 1], math.nan)])
    assert (tmp_path / "results.json").read_text() == "[]"
