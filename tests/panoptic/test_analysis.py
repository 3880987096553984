"""Weights, PQ†, sizes, intervals and the IoU of matches."""

import json
import math

import numpy as np
import pytest
from pycocotools import mask as rle

from common.coco import evaluate
from panoptic.annotators.analysis import bootstrap, by_size, dagger, ious_of_matches, size_edges
from panoptic.evaluate_files import main
from panoptic.metric.parts import without_overlap
from panoptic.quality import PanopticQuality

THINGS = {1: True, 2: True, 10: False}


def stripes(edges: list[int], categories: list[int], height: int = 4) -> tuple:
    """A map of vertical stripes with its segments, ids from 1; category 0 is void."""
    ids = np.zeros((height, edges[-1]), np.int32)
    listed = []
    for i, category in enumerate(categories):
        if category:
            ids[:, edges[i] : edges[i + 1]] = i + 1
            listed.append({"id": i + 1, "category_id": category})
    return ids, listed


def some_metric(images: int = 20, **rules) -> PanopticQuality:
    rng = np.random.default_rng(0)
    metric = PanopticQuality(THINGS, keep_images=True, **rules)
    for i in range(images):
        edges = [0, *np.sort(rng.choice(np.arange(3, 98), 6, replace=False)).tolist(), 100]
        categories = [1, 10, 2, 0, 1, 2, 1]
        shifts = rng.integers(-2, 3, 6)
        moved = [0, *(edge + shift for edge, shift in zip(edges[1:-1], shifts, strict=True)), 100]
        moved = (np.maximum.accumulate(moved - np.arange(8)) + np.arange(8)).tolist()  # none empty
        predicted = [int(rng.choice([c, 1], p=[0.8, 0.2])) for c in categories]
        metric.update(*stripes(moved, predicted), *stripes(edges, categories), image=i)
    return metric


def test_the_weight_of_errors_changes_rq_alone():
    metric = some_metric()
    half = metric.compute()
    assert metric.compute(alpha=0.5) == half
    values = [metric.compute(alpha=alpha) for alpha in (1, 1 / 2, 1 / 4, 1 / 8, 0)]
    assert [v.all.rq for v in values] == sorted(v.all.rq for v in values)
    assert all(v.all.sq == half.all.sq for v in values)
    assert values[-1].all.rq == 1
    one = values[0].classes[1]
    assert one.rq == one.tp / (one.tp + one.fp + one.fn)
    with pytest.raises(ValueError, match="alpha=-1"):
        metric.compute(alpha=-1)


def test_modified_pq_takes_the_iou_of_stuff_below_one_half_and_no_false_positives():
    metric = PanopticQuality(THINGS)
    truth = stripes([0, 10, 20], [10, 1])
    metric.update(*stripes([0, 4, 20], [10, 1]), *truth)  # IoU of stuff 4 / 10, things 10 / 16
    metric.update(*stripes([0, 10, 20], [10, 1]), *truth)
    metric.update(*stripes([0, 20], [10]), *stripes([0, 20], [1]))  # stuff that is not there
    found = dagger(metric)
    assert found.stuff.pq == found.classes[10].pq == (0.4 + 1) / 2
    assert found.things.pq == metric.compute().things.pq
    assert math.isnan(found.classes[2].pq)
    assert found.all.pq == (found.stuff.pq + found.things.pq) / 2
    assert math.isnan(dagger(PanopticQuality(THINGS)).all.pq)


def test_sizes_part_the_outcomes():
    metric = some_metric()
    low, high = size_edges(metric)
    parts = by_size(metric, (low, high))
    assert list(parts) == ["S", "M", "L"]
    for name in ("tp", "fp", "fn", "iou"):
        for category, score in metric.compute().classes.items():
            total = sum(getattr(part.classes[category], name) for part in parts.values())
            assert total == pytest.approx(getattr(score, name), abs=1e-12)
    truths = {
        name: sum(score.tp + score.fn for score in part.classes.values())
        for name, part in parts.items()
    }
    whole = sum(truths.values())
    assert truths["S"] / whole == pytest.approx(0.25, abs=0.05)
    assert truths["M"] / whole == pytest.approx(0.50, abs=0.05)
    assert low < high
    assert parts["S"].all.pq < parts["L"].all.pq  # a pixel matters more
    assert size_edges(metric, things=True) != (low, high)


def test_false_positives_belong_to_their_own_size():
    metric = PanopticQuality(THINGS, keep_images=True)
    metric.update(*stripes([0, 30, 40], [2, 1], 1), *stripes([0, 30, 40], [1, 1], 1))
    parts = by_size(metric, (10, 20))
    assert parts["S"].classes[1].tp == 1
    assert parts["L"].classes[2].fp == 1
    assert parts["L"].classes[1].fn == 1
    assert parts["M"].all.n == 0


def test_sizes_without_segments_are_nan():
    metric = PanopticQuality(THINGS, keep_images=True)
    assert all(math.isnan(edge) for edge in size_edges(metric))
    assert all(part.all.n == 0 for part in by_size(metric, (math.nan, math.nan)).values())


def test_intervals_hold_the_score_and_shrink_with_more_images():
    few, many = some_metric(10), some_metric(90)
    widths = []
    for metric in (few, many):
        intervals = bootstrap(metric, samples=200)
        for name, value in metric.compute().percent().items():
            low, high = intervals[name]
            assert low - 0.02 <= value / 100 <= high + 0.02
        widths.append(intervals["PQ"][1] - intervals["PQ"][0])
    assert widths[1] < 0.6 * widths[0]
    assert bootstrap(few, samples=20) == bootstrap(few, samples=20)
    assert bootstrap(few, samples=20, seed=1) != bootstrap(few, samples=20)


def test_equal_images_leave_no_doubt_and_absent_groups_are_nan():
    metric = PanopticQuality(THINGS, keep_images=True)
    for _ in range(5):
        metric.update(*stripes([0, 8, 20], [1, 0]), *stripes([0, 10, 20], [1, 0]))
    intervals = bootstrap(metric, samples=20, percentiles=(5, 50, 95))
    assert intervals["PQ"] == pytest.approx((0.8, 0.8, 0.8), abs=1e-12)
    assert all(math.isnan(value) for value in intervals["PQ_st"])
    with pytest.raises(ValueError, match="0 images and samples=1000"):
        bootstrap(PanopticQuality(THINGS, keep_images=True))


def test_the_iou_of_matches_rises_and_adds_up_to_that_of_the_metric():
    metric = some_metric()
    values = ious_of_matches(metric)
    assert (np.diff(values) >= 0).all()
    assert values.min() > 0.5
    assert values.sum() == pytest.approx(float(metric.sums[:, 0].sum()), abs=1e-9)
    assert ious_of_matches(some_metric(threshold=0)).min() < 0.5


# AP without overlaps.


def code(rows: slice, columns: slice, size: tuple[int, int] = (40, 60)) -> dict:
    mask = np.zeros(size, np.uint8, order="F")
    mask[rows, columns] = 1
    encoded = rle.encode(mask)
    return {"size": list(size), "counts": encoded["counts"].decode()}


def found(columns: slice, score: float, image: int = 1, category: int = 1) -> dict:
    segmentation = code(slice(0, 20), columns)
    return {
        "image_id": image,
        "category_id": category,
        "score": score,
        "segmentation": segmentation,
    }


def instances() -> dict:
    annotations = []
    for image in (1, 2):
        for columns in (slice(0, 20), slice(20, 40)):
            segmentation = code(slice(0, 20), columns)
            x, width = columns.start, columns.stop - columns.start
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 20 * width,
                    "bbox": [x, 0, width, 20],
                    "segmentation": segmentation,
                }
            )
    return {
        "images": [{"id": i, "height": 40, "width": 60, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "categories": [{"id": 1, "name": "solid"}],
        "annotations": annotations,
    }


def test_disjoint_detections_keep_their_scores_and_lose_the_hidden_pixels():
    detections = [
        found(slice(10, 30), 0.6),  # half hidden: stays, with 200 pixels
        found(slice(0, 20), 0.9),
        found(slice(2, 22), 0.8),  # nine tenths hidden: discarded
        found(slice(0, 20), 0.7, image=2),
    ]
    kept = without_overlap(detections)
    areas = [(d["image_id"], d["score"], int(rle.area(d["segmentation"]))) for d in kept]
    assert areas == [(1, 0.9, 400), (1, 0.6, 200), (2, 0.7, 400)]
    assert len(without_overlap(detections, overlap=0.9)) == 4
    assert [d["score"] for d in without_overlap(detections, confidence=0.65)] == [
        0.9,
        0.7,
    ]


def test_ap_without_overlap_is_ap_where_nothing_overlaps_and_lower_where_it_does():
    truth = instances()
    exact = [found(slice(x, x + 20), 0.9 - x / 100, i) for i in (1, 2) for x in (0, 20)]
    plain = evaluate.evaluate(truth, exact, kind="segm")
    assert evaluate.evaluate(truth, without_overlap(exact), kind="segm") == pytest.approx(
        plain, nan_ok=True
    )
    assert plain["AP"] == pytest.approx(100)
    # A wide first detection takes pixels of the second, whose IoU was perfect before.
    wide = [found(slice(0, 27), 0.9), found(slice(20, 40), 0.8), *exact[2:]]
    assert (
        evaluate.evaluate(truth, without_overlap(wide), kind="segm")["AP"]
        < evaluate.evaluate(truth, wide, kind="segm")["AP"]
    )


def test_ap_without_overlap_is_a_command(tmp_path, capsys):
    (tmp_path / "gt.json").write_text(json.dumps(instances()))
    (tmp_path / "pred.json").write_text(json.dumps([found(slice(0, 20), 0.9)]))
    files = [f"gt={tmp_path}/gt.json", f"pred={tmp_path}/pred.json", f"out={tmp_path}/ap.json"]
    words = ["disjoint_ap", *files]
    main(words)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["AP", "AP", "AP^NO"]
    assert set(json.loads((tmp_path / "ap.json").read_text())) == {"AP", "AP^NO"}
    (tmp_path / "pred.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pred\.json is not a list of detections"):
        main(words)


def test_masks_of_another_kind_or_size_are_named_by_image():
    polygon = {**found(slice(0, 20), 0.9, image=5), "segmentation": [[0, 0, 5, 0, 5, 5]]}
    with pytest.raises(ValueError, match="image 5: a detection has no run-length mask"):
        without_overlap([polygon])
    other = {**found(slice(0, 20), 0.9, image=5), "segmentation": code(slice(1), slice(1), (4, 4))}
    with pytest.raises(ValueError, match=r"image 5: a detection has run lengths of size \[4, 4\]"):
        without_overlap([found(slice(0, 20), 0.9, image=5), other])
