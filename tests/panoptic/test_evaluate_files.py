"""`evaluate_files.py`: the official tool's figures on real files, and its layout."""

import csv
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panoptic.evaluate_files import evaluate_files, measure, open_pair
from panoptic.files.coco import PanopticFiles, write_panoptic

FOLDER = Path(__file__).resolve().parents[2] / "panoptic"
PERFECT = """\
          |    PQ     SQ     RQ     N
--------------------------------------
All       | 100.0  100.0  100.0     8
Things    | 100.0  100.0  100.0     4
Stuff     | 100.0  100.0  100.0     4
"""


def moved(down, right):
    """Ids shifted; what they leave is void."""

    def change(ids, segments):
        shifted = np.zeros_like(ids)
        shifted[down:, right:] = ids[: ids.shape[0] - down, : ids.shape[1] - right]
        return shifted, segments

    return change


def sampled(step):
    def change(ids, segments):
        y, x = (np.arange(side) // step * step for side in ids.shape)
        return ids[np.ix_(y, x)], segments

    return change


def fused(ids, segments):
    """Each category of an image becomes one segment, its first."""
    ids, first = ids.copy(), {}
    for segment in segments:
        kept = first.setdefault(segment["category_id"], segment)
        ids[ids == segment["id"]] = kept["id"]
    return ids, list(first.values())


def erased(ids, segments):
    """Every second entry is gone."""
    gone = [segment["id"] for segment in segments[1::2]]
    return np.where(np.isin(ids, gone), 0, ids), segments[::2]


def same(ids, segments):
    return ids, segments


def without_crowds(ids, segments):
    crowds = [segment["id"] for segment in segments if segment["iscrowd"]]
    kept = [segment for segment in segments if not segment["iscrowd"]]
    return np.where(np.isin(ids, crowds), 0, ids), kept


def derive(truth, path, change):
    """Predictions made of ground truth, without areas; segments without a pixel are left out."""
    results = []
    for image in truth.images:
        ids, segments = change(truth.ids(image["id"]), truth.segments(image["id"]))
        drawn = set(np.unique(ids).tolist())
        plain = [{k: s[k] for k in ("id", "category_id")} for s in segments if s["id"] in drawn]
        results.append((image["id"], ids, plain))
    write_panoptic(path, categories=truth.categories, images=truth.images, results=results)
    return path


# Of the official evaluator: PQ, SQ, RQ of all, PQ of things, PQ of stuff, TP, FP, FN.
GOLDEN = {
    "same": (same, 1, 1, 1, 1, 1, 47, 0, 0),
    "without crowds": (without_crowds, 1, 1, 1, 1, 1, 47, 0, 0),
    "8 to the right": (
        *(moved(0, 8), 0.5265325672, 0.6123962773, 0.7220279720, 0.2774443143, 0.7756208200),
        *(21, 26, 26),
    ),
    "4 down, 4 right": (
        *(moved(4, 4), 0.6117218774, 0.6544468516, 0.8120629371, 0.4223049535, 0.8011388013),
        *(37, 10, 10),
    ),
    "fused": (fused, 0.6895942087, 0.7218913131, 0.7083333333, 0.3791884174, 1, 9, 3, 38),
    "every 4th pixel": (
        *(sampled(4), 0.8386399441, 0.8386399441, 1, 0.7640977869, 0.9131821012),
        *(47, 0, 0),
    ),
    "every 16th pixel": (
        *(sampled(16), 0.4579202252, 0.5860502644, 0.6547202797, 0.1865917439, 0.7292487065),
        *(19, 28, 28),
    ),
    "erased": (erased, 0.6340686275, 0.75, 0.6340686275, 0.7681372549, 0.5, 25, 0, 22),
}


@pytest.fixture
def sample(shared_data):
    return shared_data / "panopticapi_sample" / "panoptic_examples.json"


@pytest.mark.parametrize("name", GOLDEN)
def test_the_sample_gives_the_official_figures(sample, tmp_path, name):
    change, *figures = GOLDEN[name]
    pred = derive(PanopticFiles(sample), tmp_path / "pred.json", change)
    scores = evaluate_files(sample, pred)
    found = [*(scores.all.pq, scores.all.sq, scores.all.rq), scores.things.pq, scores.stuff.pq]
    assert found == pytest.approx(figures[:5], abs=1e-9)
    counts = [sum(getattr(s, key) for s in scores.classes.values()) for key in ("tp", "fp", "fn")]
    assert counts == figures[5:]
    assert (scores.all.n, scores.things.n, scores.stuff.n) == (8, 4, 4)


def official(truth, prediction):
    """Per class Σ IoU, TP, FP, FN after the official procedure, image by image, pair by pair."""
    sums = defaultdict(lambda: [0.0, 0, 0, 0])
    for image in truth.images:
        maps = []
        for files in (truth, prediction):
            with Image.open(files.path(image["id"])) as png:
                rgb = np.array(png, dtype=np.int64)
            maps.append(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2])
        listed = [{s["id"]: s for s in f.segments(image["id"])} for f in (truth, prediction)]
        gts, preds = listed
        pixels = dict(
            zip(*map(np.ndarray.tolist, np.unique(maps[1], return_counts=True)), strict=True)
        )
        keys, counts = np.unique(maps[0] * 2**24 + maps[1], return_counts=True)
        both = {divmod(int(k), 2**24): int(n) for k, n in zip(keys, counts, strict=True)}
        used_gts, used_preds, crowds = set(), set(), {}
        for (g, p), n in both.items():
            if g not in gts or p not in preds or gts[g]["iscrowd"]:
                continue
            if gts[g]["category_id"] != preds[p]["category_id"]:
                continue
            iou = n / (pixels[p] + gts[g]["area"] - n - both.get((0, p), 0))
            if iou > 0.5:
                sums[gts[g]["category_id"]][0] += iou
                sums[gts[g]["category_id"]][1] += 1
                used_gts.add(g)
                used_preds.add(p)
        for g in gts.keys() - used_gts:
            sums[gts[g]["category_id"]][3] += not gts[g]["iscrowd"]
        for g, segment in gts.items():
            if segment["iscrowd"]:
                crowds[segment["category_id"]] = g
        for p in preds.keys() - used_preds:
            crowd = crowds.get(preds[p]["category_id"])
            ignored = both.get((0, p), 0) + both.get((crowd, p), 0)
            sums[preds[p]["category_id"]][2] += not ignored / pixels[p] > 0.5
    return sums


def test_100_coco_images_against_themselves_are_perfect(shared_data):
    file = shared_data / "coco_panoptic" / "annotations" / "panoptic_train2017.json"
    scores = evaluate_files(file, file)
    assert (scores.all.pq, scores.all.sq, scores.all.rq) == (1, 1, 1)
    assert len(scores.classes) == 133
    assert sum(score.tp for score in scores.classes.values()) > 1000


@pytest.fixture(scope="module")
def shifted(shared_data, tmp_path_factory):
    """100 real images, and the same shifted by 3 rows and 7 columns."""
    file = shared_data / "coco_panoptic" / "annotations" / "panoptic_train2017.json"
    pred = tmp_path_factory.mktemp("shifted") / "pred.json"
    return file, derive(PanopticFiles(file), pred, moved(3, 7))


def test_100_coco_images_against_shifted_copies_give_the_official_figures(shifted):
    scores = evaluate_files(*shifted)
    expected = official(*map(PanopticFiles, shifted))
    for number, score in scores.classes.items():
        iou, *counts = expected[number]
        assert [score.tp, score.fp, score.fn] == counts
        assert score.iou == pytest.approx(iou, abs=1e-12)
    assert 0.3 < scores.all.pq < 0.9


def test_any_number_of_processes_gives_the_same_bits(shifted):
    truth, prediction = open_pair(*shifted)
    numbers = [image["id"] for image in truth.images[:40]]
    parts = truth.only(numbers), prediction.only(numbers)
    alone = measure(*parts, rules={"keep_images": True})
    pooled = measure(*parts, workers=3, rules={"keep_images": True})
    assert pooled.compute() == alone.compute()
    assert pooled.images == alone.images == numbers


def test_the_command_prints_what_users_of_the_official_tool_know(sample, tmp_path):
    words = [f"json={tmp_path / 'a.json'}", f"csv={tmp_path / 'a.csv'}", "--per-class"]
    command = [sys.executable, "evaluate_files.py", f"gt={sample}", f"pred={sample}", *words]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(PERFECT)
    assert done.stdout.splitlines()[-1].startswith("Time elapsed: ")
    horse = next(line for line in done.stdout.splitlines() if " horse " in line)
    assert horse.split() == ["19", "horse", "thing", "|", *["100.0"] * 3, "11", "0", "0"]
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["images"] == 2
    assert content["Stuff"] == {"PQ": 100, "SQ": 100, "RQ": 100, "N": 4}
    bicycle = content["per_class"][1]
    assert (bicycle["name"], bicycle["PQ"], bicycle["tp"]) == ("bicycle", None, 0)
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(rows) == 133
    assert (rows[0]["PQ"], rows[0]["tp"], rows[1]["PQ"]) == ("100.0", "26", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.json"]
