"""PQ on one-row images whose results the official evaluator gave, its switches, and bad input."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from panoptic.metric.matching import PAPER
from panoptic.metric.overlaps import LIMIT
from panoptic.quality import PanopticQuality

THINGS = {1: True, 2: True, 10: False, 11: False}


def row(text: str) -> np.ndarray:
    """A map (1, W): "11190" is the ids 1, 1, 1, 9, 0."""
    return np.array([[int(digit) for digit in text]], np.int32)


def listed(text: str) -> list[dict]:
    """Segments: "1:1 8:2c" is id 1 of category 1, and id 8 of category 2, a crowd."""
    found = re.findall(r"(\d+):(\d+)(c?)", text)
    return [{"id": int(i), "category_id": int(c), "iscrowd": int(bool(x))} for i, c, x in found]


def score(truth: str, true: str, prediction: str, predicted: str, **rules) -> PanopticQuality:
    metric = PanopticQuality(THINGS, **rules)
    metric.update(row(prediction), listed(predicted), row(truth), listed(true), image="a.png")
    return metric


def sums(metric: PanopticQuality) -> dict[int, tuple]:
    """Category -> Σ IoU, TP, FP, FN of those that occur."""
    classes = metric.compute().classes.items()
    return {c: (s.iou, s.tp, s.fp, s.fn) for c, s in classes if s.tp + s.fp + s.fn}


CASES = {  # truth, its segments, prediction, its segments, expected sums by category
    "1: an IoU of exactly one half is no match": (
        *("1119", "1:1 9:10", "9555", "5:1 9:10"),
        {1: (0, 0, 1, 1), 10: (0, 0, 1, 1)},
    ),
    "2: void leaves the union": (
        *("1110", "1:1", "9555", "5:1 9:10"),
        {1: (2 / 3, 1, 0, 0), 10: (0, 0, 1, 0)},
    ),
    "3: the prediction's void stays in the union": (
        *("11111", "1:1", "55500", "5:1"),
        {1: (0.6, 1, 0, 0)},
    ),
    "4: too small": ("11111", "1:1", "50000", "5:1", {1: (0, 0, 1, 1)}),
    "5: exactly half void is an FP": (
        *("0077", "7:10", "5555", "5:1"),
        {1: (0, 0, 1, 0), 10: (0, 0, 0, 1)},
    ),
    "6: more than half void is nothing": ("00077", "7:10", "55555", "5:1", {10: (0, 0, 0, 1)}),
    "7: mostly crowd is nothing": ("88877", "8:1c 7:10", "55555", "5:1", {10: (0, 0, 0, 1)}),
    "7b: mostly crowd of another class is an FP": (
        *("88877", "8:2c 7:10", "55555", "5:1"),
        {1: (0, 0, 1, 0), 10: (0, 0, 0, 1)},
    ),
    "8: a crowd is never a TP": (
        *("88877", "8:1c 7:10", "55566", "5:1 6:10"),
        {10: (1, 1, 0, 0)},
    ),
    "9: void and crowd are added": (
        *("0008887777", "8:1c 7:10", "5555555555", "5:1"),
        {10: (0, 0, 0, 1)},
    ),
    "10: the last crowd wins": (
        *("68888877", "6:1c 8:1c 7:10", "55555555", "5:1"),
        {10: (0, 0, 0, 1)},
    ),
    "10b: the last crowd wins, also where it is small": (
        *("68888877", "8:1c 6:1c 7:10", "55555555", "5:1"),
        {1: (0, 0, 1, 0), 10: (0, 0, 0, 1)},
    ),
    "11: a crowd does not leave the union": (
        *("1111888", "1:1 8:1c", "5555555", "5:1"),
        {1: (4 / 7, 1, 0, 0)},
    ),
    "12: another class": ("1111", "1:1", "5555", "5:2", {1: (0, 0, 0, 1), 2: (0, 0, 1, 0)}),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.split(":")[0])
def test_hand_cases_are_as_the_official_evaluator_has_them(case):
    *images, expected = CASES[case]
    assert sums(score(*images)) == expected, case


def test_means_leave_out_classes_that_do_not_occur():
    scores = score("1110", "1:1", "9555", "5:1 9:10").compute()  # case 2
    assert scores.all.pq == pytest.approx(1 / 3, abs=1e-15)
    assert (scores.all.n, scores.things.n, scores.stuff.n) == (2, 1, 1)
    assert (scores.things.sq, scores.things.rq, scores.stuff.pq) == (2 / 3, 1, 0)
    assert math.isnan(scores.classes[2].pq)
    assert scores.percent()["PQ_th"] == pytest.approx(200 / 3)
    assert list(scores.percent())[:4] == ["PQ", "SQ", "RQ", "PQ_th"]


def test_case_13_a_segment_of_id_0_is_refused_unless_the_official_rule_is_asked_for():
    images = ("1111", "1:1", "0005", "0:1 5:2")
    with pytest.raises(ValueError, match=r"image a\.png: segment 0 of the prediction has the id"):
        score(*images)
    official = score(*images, unlisted="official")
    assert sums(official) == {1: (0.75, 1, 0, 0), 2: (0, 0, 1, 0)}


def test_case_14_an_empty_truth_gives_nan_and_no_class():
    scores = score("0000", "", "5555", "5:1").compute()
    for group in (scores.all, scores.things, scores.stuff):
        assert math.isnan(group.pq)
        assert math.isnan(group.sq)
        assert group.n == 0


def test_no_image_at_all_and_no_stuff_class_give_nan():
    assert math.isnan(PanopticQuality(THINGS).compute().all.pq)
    metric = PanopticQuality({1: True})
    metric.update(row("11"), listed("1:1"), row("11"), listed("1:1"))
    assert metric.compute().all.pq == 1
    assert math.isnan(metric.compute().stuff.rq)


def test_the_papers_rule_asks_for_void_and_crowd_apart():
    assert 1 not in sums(score(*CASES["9: void and crowd are added"][:4]))
    apart = score(*CASES["9: void and crowd are added"][:4], void_crowd="separate")
    assert sums(apart)[1] == (0, 0, 1, 0)
    mostly_void = score("00077", "7:10", "55555", "5:1", **PAPER)
    mostly_crowd = score("88877", "8:1c 7:10", "55555", "5:1", **PAPER)
    assert 1 not in sums(mostly_void) | sums(mostly_crowd)


def test_the_papers_rule_counts_all_crowds_of_a_class_in_any_order():
    for order in ("6:1c 8:1c 7:10", "8:1c 6:1c 7:10"):
        assert 1 not in sums(score("68888877", order, "55555555", "5:1", **PAPER))
    both = score("68877777", "8:1c 6:1c 7:10", "55500000", "5:1", crowds="all")
    assert 1 not in sums(both)


def test_json_areas_are_trusted_only_where_asked():
    truth, predicted = [{"id": 1, "category_id": 1, "area": 9}], listed("5:1")
    for areas, expected in (("counted", (1, 1, 0, 0)), ("json", (0, 0, 1, 1))):
        metric = PanopticQuality(THINGS, areas=areas)
        metric.update(row("5555"), predicted, row("1111"), truth)
        assert sums(metric)[1] == expected  # 4 / (4 + 9 - 4) < 0.5
    truth[0]["area"] = 5
    metric.update(row("5555"), predicted, row("1111"), truth)
    assert metric.sums[0, 0] == 0.8
    truth[0]["area"] = 0
    with pytest.raises(ValueError, match="segment 1 of the truth has area 0 in its list"):
        metric.update(row("5555"), predicted, row("1111"), truth)
    with pytest.raises(ValueError, match="segment 1 of the truth has no area"):
        metric.update(row("5555"), predicted, row("1111"), listed("1:1"))


def test_json_areas_keep_their_fractions():
    truth, predicted = [{"id": 1, "category_id": 1, "area": 96.5}], listed("5:1")
    ids = np.where(np.arange(99) < 90, 1, 0)[None]
    metric = PanopticQuality(THINGS, areas="json", keep_images=True)
    metric.update(np.full_like(ids, 5), predicted, ids, truth)
    assert metric.sums[0, 0] == 90 / (99 + 96.5 - 90 - 9)  # 9 pixels of the prediction are void
    assert metric.records.union.tolist() == [96.5]
    assert metric.records.truth.dtype == np.int64
    copy = PanopticQuality(THINGS, areas="json", keep_images=True)
    copy.load_state_dict(metric.state_dict())
    assert copy.records.truth_area.tolist() == [96.5]
    for area, found in ((179.5, 1), (180.0, 0), (180.5, 0)):
        metric = PanopticQuality(THINGS, areas="json")
        metric.update(ids, listed("1:1"), ids, [truth[0] | {"area": area}])
        assert sums(metric)[1][1] == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 5.5}, "segment number 0 of the prediction has 5.5 as 'id': give a whole number"),
        ({"id": "5"}, "has '5' as 'id'"),
        ({"id": True}, "has True as 'id'"),
        ({"id": [5]}, r"has \[5\] as 'id'"),
        ({"id": math.nan}, "has nan as 'id'"),
        ({"category_id": 1.2}, "has 1.2 as 'category_id'"),
        ({"category_id": {}}, "has {} as 'category_id'"),
        ({"iscrowd": "0"}, "segment 5 of the prediction has iscrowd '0': give 0 or 1"),
        ({"area": 10**400}, None),
    ],
)
def test_ids_and_crowds_that_would_be_cut_are_refused_and_whole_floats_taken(change, message):
    given = [{"id": 5, "category_id": 1} | change]
    metric = PanopticQuality(THINGS)
    if message is None:
        metric.update(row("555"), given, row("111"), listed("1:1"))
    else:
        with pytest.raises(ValueError, match=message):
            metric.update(row("555"), given, row("111"), listed("1:1"))
    metric.update(
        row("555"), [{"id": 5.0, "category_id": np.float32(1)}], row("111"), listed("1:1")
    )
    assert sums(metric)[1][1] == metric.count
    with pytest.raises(ValueError, match=r"category 1\.5: ids are whole numbers"):
        PanopticQuality({1.5: True})


@pytest.mark.parametrize("area", ["9", None, math.inf, [9], True])
def test_json_areas_that_are_no_numbers_are_named(area):
    metric = PanopticQuality(THINGS, areas="json")
    truth = [{"id": 1, "category_id": 1, "area": area}]
    with pytest.raises(ValueError, match=r"segment 1 of the truth has (no )?area"):
        metric.update(row("5555"), listed("5:1"), row("1111"), truth)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (("112", "1:1", "555", "5:1"), "the map of the truth has id 2, but its segments do not"),
        (("111", "1:1", "556", "5:1"), "the map of the prediction has id 6, but its segments"),
        (("111", "1:1 2:1", "555", "5:1"), "segment 2 of the truth is listed, but has no pixel"),
        (("111", "1:1", "555", "5:1 6:1"), "segment 6 of the prediction is listed, but has no"),
        (("111", "1:1", "555", "5:1 5:2"), "segment 5 of the prediction is listed twice"),
        (("110", "0:10 1:1", "555", "5:1"), "segment 0 of the truth has the id of void"),
        (("111", "1:3", "555", "5:1"), "segment 1 of the truth has category 3, which is not one"),
        (("111", "1:1", "5555", "5:1"), r"the prediction has shape \(1, 4\), the truth \(1, 3\)"),
        (("111", "1:1", "555", "5:1 16777216:1"), "segment 16777216 of the prediction: ids go"),
    ],
)
def test_bad_input_is_named_with_image_and_id_and_leaves_the_metric_alone(images, message):
    with pytest.raises(ValueError, match=r"^image a\.png: " + message):
        score(*images)
    metric = PanopticQuality(THINGS, keep_images=True)
    with pytest.raises(ValueError, match=message):
        metric.update(row(images[2]), listed(images[3]), row(images[0]), listed(images[1]))
    assert metric.count == 0
    assert not metric.sums.any()
    assert not metric.images


def test_ids_that_are_not_listed_can_be_void():
    metric = score("1122", "1:1 4:2", "5566", "5:1 7:2", unlisted="void")
    assert sums(metric) == {1: (1, 1, 0, 0)}
    mostly_void = score("1222", "1:1", "5555", "5:1", unlisted="void")
    assert sums(mostly_void) == {1: (1, 1, 0, 0)}  # three pixels leave the union


def test_ids_of_the_truth_that_are_not_listed_are_nothing_by_the_official_rule():
    metric = score("1222", "1:1 4:2", "5555", "5:1", unlisted="official")
    assert sums(metric) == {1: (0, 0, 1, 1), 2: (0, 0, 0, 1)}
    for images in (("11", "1:1", "56", "5:1"), ("11", "1:1", "55", "5:1 6:1")):
        with pytest.raises(ValueError, match=r"image a\.png: .* 6\b"):
            score(*images, unlisted="official")


def test_maps_must_hold_whole_numbers_in_range_and_have_two_dimensions():
    metric, segments = PanopticQuality(THINGS), listed("1:1")
    good = row("11")
    for bad, message in (
        (good.astype(np.float32), "the prediction is float32: give ids as whole numbers"),
        (good.astype(bool), "the prediction is bool"),
        (torch.ones(1, 2), r"the prediction is torch\.float32"),
        (good[0], r"the prediction has shape \(2,\): give \(height, width\)"),
        (good - 5, "the prediction has id -4 in its map: ids go from 0"),
        (good + LIMIT, f"the prediction has id {LIMIT + 1} in its map"),
    ):
        with pytest.raises(ValueError, match=f"image 7: {message}"):
            metric.update(bad, segments, good, segments, image=7)
    with pytest.raises(ValueError, match="segment number 0 of the truth has no 'category_id'"):
        metric.update(good, segments, good, [{"id": 1}])


def test_the_largest_id_is_24_bits_wide():
    top = LIMIT - 1
    for kind in (np.int32, np.uint32, np.int64, np.uint64):
        ids = np.full((2, 2), top, kind)
        metric = PanopticQuality(THINGS)
        metric.update(ids, listed(f"{top}:1"), ids, listed(f"{top}:1"))
        assert sums(metric) == {1: (1, 1, 0, 0)}


def test_maps_without_pixels_are_empty_images():
    none = np.zeros((0, 4), np.int32)
    metric = PanopticQuality(THINGS)
    metric.update(none, [], none, [])
    assert metric.count == 1
    assert not metric.sums.any()


def test_the_threshold_is_exact_for_decimals_and_fractions():
    images = ("1111111111", "1:1", "5550000000", "5:1")  # IoU three tenths
    assert sums(score(*images, threshold=0.3))[1][1] == 0
    assert sums(score(*images, threshold=Fraction(3, 10)))[1][1] == 0
    assert sums(score(*images, threshold=0.299))[1][1] == 1
    two_thirds = ("111", "1:1", "550", "5:1")
    assert sums(score(*two_thirds, threshold=Fraction(2, 3)))[1][1] == 0
    assert sums(score(*two_thirds, threshold=0.6666))[1][1] == 1


def test_below_one_half_the_greatest_total_iou_is_taken():
    # One prediction overlaps both true segments, with the first it would block the other.
    images = ("1111222222", "1:1 2:1", "5566666000", "5:1 6:1")
    # IoU 1-5: 2/4, 1-6: 2/7, 2-6: 3/8: the best are 1-5 and 2-6.
    assert sums(score(*images, threshold=0.25))[1] == (2 / 4 + 3 / 8, 2, 0, 0)
    metric = PanopticQuality(THINGS, threshold=0)
    matching = metric.update(row(images[2]), listed(images[3]), row(images[0]), listed(images[1]))
    assert {(pair.truth, pair.prediction) for pair in matching.tp} == {(1, 5), (2, 6)}
    assert len(matching.overlapping) == 3


def test_update_tells_what_became_of_each_segment():
    metric = PanopticQuality(THINGS)
    truth, prediction = row("11133300888"), row("55564400777")
    matching = metric.update(prediction, listed("5:1 6:2 4:10 7:2"), truth, listed("1:1 3:10 8:2c"))
    assert [(pair.truth, pair.prediction) for pair in matching.tp] == [(1, 5), (3, 4)]
    assert [outcome.prediction for outcome in matching.fp] == [6]
    assert matching.fn == []
    assert [outcome.prediction for outcome in matching.ignored] == [7]
    assert matching.tp[1].iou == 2 / 3


def test_a_misspelt_rule_is_refused():
    for rules, message in (
        ({"void_crowd": "both"}, "void_crowd='both': choose 'sum' or 'separate'"),
        ({"crowds": "first"}, "crowds='first'"),
        ({"areas": "file"}, "areas='file'"),
        ({"unlisted": "skip"}, "unlisted='skip'"),
        ({"threshold": 1}, "threshold=1: choose from 0"),
        ({"threshold": math.nan}, "threshold=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            PanopticQuality(THINGS, **rules)
