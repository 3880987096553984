"""PQ of a 64 x 64 map that a formula draws, and of real files, equals the official evaluator's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from panoptic.annotators.analysis import dagger
from panoptic.metric import peers
from panoptic.quality import PanopticQuality

THINGS = {1: True, 2: True, 10: False, 11: False}


def drawn(dy: int = 0, dx: int = 0) -> np.ndarray:
    """Segments of a 4 x 4 grid of unequal cells, shifted: int32 (64, 64)."""
    y, x = np.clip(np.arange(64) + dy, 0, 63)[:, None], np.clip(np.arange(64) + dx, 0, 63)
    rows = sum((y >= edge).astype(int) for edge in (20, 36, 52))
    k = 4 * rows + sum((x >= edge).astype(int) for edge in (8, 24, 40))
    category = np.array([1, 2, 10, 11])[(k + k // 4) % 4]
    return np.where(category < 10, k + 1, 100 + category).astype(np.int32)


def segments(ids: np.ndarray, crowds: tuple[int, ...] = ()) -> list[dict]:
    found = []
    for key, area in zip(
        *(part.tolist() for part in np.unique(ids, return_counts=True)), strict=True
    ):
        k = key - 1
        category = key - 100 if key > 100 else (1, 2, 10, 11)[(k + k // 4) % 4]
        entry = {"id": key, "category_id": category, "iscrowd": int(key in crowds), "area": area}
        found += [entry] if key else []
    return found


def pair(variant: str, dy: int, dx: int) -> tuple:
    """Prediction and truth with their segments."""
    truth, prediction = drawn(), drawn(dy, dx)
    if variant in ("void", "crowd"):
        truth[:, 60:] = 0
    if variant == "V":
        prediction[:24] = 0
    true = segments(truth, (1,) if variant == "crowd" else ())
    return prediction, segments(prediction), truth, true


def score(*cases: tuple) -> PanopticQuality:
    metric = PanopticQuality(THINGS)
    for case in cases:
        metric.update(*pair(*case))
    return metric


TABLE = [  # cases, PQ, PQ of things, PQ of stuff, SQ, RQ
    (
        [("plain", 1, 2)],
        (0.751429334242, 0.738395285958, 0.764463382526, 0.751429334242, 1),
    ),
    (
        [("plain", 3, 3)],
        (0.517385641980, 0.436933419030, 0.597837864930, 0.590207878485, 0.875),
    ),
    ([("plain", -5, -4)], (1 / 30, 2 / 30, 0, 0.133333333333, 0.0625)),
    (
        [("void", 1, 2)],
        (0.744864881953, 0.735462734638, 0.754267029267, 0.744864881953, 1),
    ),
    (
        [("void", 3, 3)],
        (0.509407623787, 0.434040673147, 0.584774574427, 0.581747735978, 0.875),
    ),
    (
        [("crowd", 1, 2)],
        (0.746707669085, 0.739148308903, 0.754267029267, 0.746707669085, 1),
    ),
    (
        [("crowd", 3, 3)],
        (0.500635624346, 0.416496674264, 0.584774574427, 0.586339153762, 0.854166666667),
    ),
    (
        [("plain", 1, 2), ("plain", 4, 6)],
        (0.375714667121, 0.369197642979, 0.382231691263, 0.751429334242, 0.5),
    ),
    (
        [("V", 1, 2)],
        (0.294835230291, 0.589670460583, 0, 0.343974435340, 0.428571428571),
    ),
]
PER_CLASS = {  # Σ IoU, TP, FP, FN of classes 1, 2, 10, 11
    ("plain", 1, 2): [
        (2.950183987627, 4, 0, 0),
        (2.956978300038, 4, 0, 0),
        (0.754416961131, 1, 0, 0),
        (0.774509803922, 1, 0, 0),
    ],
    ("plain", 3, 3): [
        (1.715515010352, 3, 1, 1),
        (1.779952341888, 3, 1, 1),
        (0.588748019017, 1, 0, 0),
        (0.606927710843, 1, 0, 0),
    ],
    ("plain", -5, -4): [(0.533333333333, 1, 3, 3), (0, 0, 4, 4), (0, 0, 1, 1), (0, 0, 1, 1)],
    ("void", 1, 2): [
        (2.938453782348, 4, 0, 0),
        (2.945248094759, 4, 0, 0),
        (0.746296296296, 1, 0, 0),
        (0.762237762238, 1, 0, 0),
    ],
    ("void", 3, 3): [
        (1.703944026818, 3, 1, 1),
        (1.768381358355, 3, 1, 1),
        (0.578202995008, 1, 0, 0),
        (0.591346153846, 1, 0, 0),
    ],
    ("crowd", 1, 2): [
        (2.225953782348, 3, 0, 0),
        (2.945248094759, 4, 0, 0),
        (0.746296296296, 1, 0, 0),
        (0.762237762238, 1, 0, 0),
    ],
    ("crowd", 3, 3): [
        (1.172694026818, 2, 1, 1),
        (1.768381358355, 3, 1, 1),
        (0.578202995008, 1, 0, 0),
        (0.591346153846, 1, 0, 0),
    ],
}


def near(value: float) -> object:
    return pytest.approx(value, abs=1e-12, rel=0)


@pytest.mark.parametrize(("cases", "expected"), TABLE)
def test_scores_are_the_official_evaluators(cases, expected):
    scores = score(*cases).compute()
    found = (scores.all.pq, scores.things.pq, scores.stuff.pq, scores.all.sq, scores.all.rq)
    assert found == tuple(near(value) for value in expected)


@pytest.mark.parametrize("case", PER_CLASS, ids=str)
def test_sums_of_each_class_are_the_official_evaluators(case):
    classes = score(case).compute().classes
    found = [(s.iou, s.tp, s.fp, s.fn) for s in classes.values()]
    assert found == [(near(iou), *counts) for iou, *counts in PER_CLASS[case]]
    for s in classes.values():
        assert s.pq == near(s.sq * s.rq)


@pytest.mark.parametrize("case", [("plain", 1, 2), ("crowd", 3, 3), ("V", 1, 2)], ids=str)
def test_the_straightforward_version_finds_the_same(case):
    sums = peers.panoptic_quality([pair(*case)], THINGS)
    expected = torch.tensor(list(sums.values()), dtype=torch.float64)
    torch.testing.assert_close(score(case).sums[:, :4], expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (("plain", 4, 6), 0.21458832174539566),
        (("plain", -5, -4), 0.2649798057973385),
        (("void", 4, 6), 0.2054913341999054),
    ],
)
def test_modified_pq_is_that_of_torchmetrics(case, expected):
    assert dagger(score(case)).all.pq == pytest.approx(expected, abs=5e-8)  # its IoUs are float32


@pytest.mark.parametrize("case", [("plain", 3, 3), ("plain", -5, -4), ("void", 1, 2)], ids=str)
def test_torchmetrics_agrees_where_its_void_rule_plays_no_part(case):
    functional = pytest.importorskip(
        "torchmetrics.functional.detection", reason="torchmetrics is not installed"
    )
    prediction, predicted, truth, true = pair(*case)

    def coloured(ids: np.ndarray, listed: list[dict]) -> torch.Tensor:
        category = np.full(ids.shape, 99)
        for segment in listed:
            category[ids == segment["id"]] = segment["category_id"]
        return torch.from_numpy(np.stack([category, ids], -1))[None]

    theirs = functional.panoptic_quality(
        coloured(prediction, predicted),
        coloured(truth, true),
        things={1, 2},
        stuffs={10, 11},
        allow_unknown_preds_category=True,
    )
    assert score(case).compute().all.pq == pytest.approx(float(theirs), abs=1e-7)


# Real files.


def sample(folder, name: str) -> tuple[dict[int, bool], list]:
    """Things by category, and the (map, segments) of each image of a COCO panoptic file."""
    content = json.loads((folder / f"{name}.json").read_text())
    things = {c["id"]: bool(c["isthing"]) for c in content["categories"]}
    images = [
        (peers.read(folder / name / a["file_name"]).astype(np.int32), a["segments_info"])
        for a in content["annotations"]
    ]
    return things, images


def without_empty(ids: np.ndarray, listed: list[dict]) -> tuple[np.ndarray, list[dict]]:
    present = set(np.unique(ids).tolist())
    return ids, [segment for segment in listed if segment["id"] in present]


def shifted_right(ids, listed):
    moved = np.zeros_like(ids)
    moved[:, 8:] = ids[:, :-8]
    return without_empty(moved, listed)


def shifted_diagonally(ids, listed):
    moved = np.zeros_like(ids)
    moved[4:, 4:] = ids[:-4, :-4]
    return without_empty(moved, listed)


def fused(ids, listed):
    first: dict[int, int] = {}
    moved = ids.copy()
    for segment in listed:
        moved[ids == segment["id"]] = first.setdefault(segment["category_id"], segment["id"])
    return without_empty(moved, listed)


def coarse(step: int):
    def sampled(ids, listed):
        y, x = (np.arange(size) // step * step for size in ids.shape)
        return without_empty(ids[np.ix_(y, x)], listed)

    return sampled


def every_second_erased(ids, listed):
    gone = [segment["id"] for segment in listed[1::2]]
    return np.where(np.isin(ids, gone), 0, ids), listed[::2]


GOLDEN = [  # PQ, SQ, RQ, PQ of things, PQ of stuff, (TP, FP, FN)
    (lambda ids, listed: (ids, listed), (1, 1, 1, 1, 1), (47, 0, 0)),
    (
        shifted_right,
        (0.5265325672, 0.6123962773, 0.7220279720, 0.2774443143, 0.7756208200),
        (21, 26, 26),
    ),
    (
        shifted_diagonally,
        (0.6117218774, 0.6544468516, 0.8120629371, 0.4223049535, 0.8011388013),
        (37, 10, 10),
    ),
    (
        fused,
        (0.6895942087, 0.7218913131, 0.7083333333, 0.3791884174, 1),
        (9, 3, 38),
    ),
    (
        coarse(4),
        (0.8386399441, 0.8386399441, 1, 0.7640977869, 0.9131821012),
        (47, 0, 0),
    ),
    (
        coarse(16),
        (0.4579202252, 0.5860502644, 0.6547202797, 0.1865917439, 0.7292487065),
        (19, 28, 28),
    ),
    (
        every_second_erased,
        (0.6340686275, 0.75, 0.6340686275, 0.7681372549, 0.5),
        (25, 0, 22),
    ),
]


@pytest.mark.parametrize(("change", "expected", "counts"), GOLDEN)
def test_the_official_sample_gives_its_golden_figures(change, expected, counts, shared_data):
    things, images = sample(shared_data / "panopticapi_sample", "panoptic_examples")
    metric = PanopticQuality(things)
    for ids, listed in images:
        metric.update(*change(ids, listed), ids, listed)
    scores = metric.compute()
    found = (
        *(getattr(scores.all, m) for m in ("pq", "sq", "rq")),
        scores.things.pq,
        scores.stuff.pq,
    )
    assert found == tuple(pytest.approx(value, abs=1e-9) for value in expected)
    assert tuple(metric.sums[:, 1:4].sum(0).long().tolist()) == counts
    assert (scores.all.n, scores.things.n, scores.stuff.n) == (8, 4, 4)


def test_real_pairs_equal_the_straightforward_version(shared_data):
    folder = next((shared_data / "coco_panoptic").rglob("*.json"), None)
    if folder is None:
        pytest.skip("no panoptic annotations in coco_panoptic")
    things, images = sample(folder.parent, folder.stem)
    pairs = [(*shifted_diagonally(ids, listed), ids, listed) for ids, listed in images[:20]]
    metric = PanopticQuality(things)
    for prediction, predicted, truth, true in pairs:
        metric.update(prediction, predicted, truth, true)
    sums = peers.panoptic_quality(pairs, things)
    expected = torch.tensor(list(sums.values()), dtype=torch.float64)
    torch.testing.assert_close(metric.sums[:, :4], expected, atol=1e-12, rtol=0)


def test_ids_of_a_png_are_red_green_blue_from_the_lowest_byte(tmp_path):
    Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(tmp_path / "a.png")
    assert peers.read(tmp_path / "a.png").tolist() == [[1 + 2 * 256 + 3 * 65536]]
