"""The search for the merge's thresholds, alone and in `merge_files.py`, which merges files."""

import csv
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

from common.config import run as run_command
from panoptic import merge_files
from panoptic.annotators.simulate import CATEGORIES, Annotator, annotate, scene
from panoptic.evaluate_files import evaluate_files
from panoptic.figures.search import heat_maps, rows, table
from panoptic.files.categories import kinds, to_entries
from panoptic.files.coco import PanopticFiles, write_panoptic
from panoptic.files.detection import encode
from panoptic.merge import merge
from panoptic.merging.search import Prediction, best, search
from panoptic.metric import peers
from panoptic.quality import PanopticQuality

THINGS = kinds(CATEGORIES)
GRID = {
    "confidences": (0.2, 0.5, 0.8),
    "overlaps": (0.3, 0.5),
    "stuff_areas": (0, 60, 250, 4096),
}
# pycocotools' own, about NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def example(number):
    """A scene, and what two imperfect networks could say of it."""
    generator = np.random.default_rng([7, number])
    truth, segments = scene(generator, height=48, width=64)
    seen, found = annotate(truth, segments, generator, categories=THINGS)
    again, more = annotate(  # duplicates and false alarms, mostly of low score
        *(seen, found), generator, categories=THINGS, annotator=Annotator(shift=3, confuse=0.5)
    )
    masks, scores, labels = [], [], []
    for ids, listed, level in ((seen, found, 0.75), (again, more, 0.35)):
        for segment in listed:
            if THINGS[segment["category_id"]]:
                masks.append(ids == segment["id"])
                scores.append(round(min(1.0, max(0.0, generator.normal(level, 0.2))), 3))
                labels.append(segment["category_id"])
    names = np.zeros(int(seen.max()) + 1, int)
    for segment in found:
        names[segment["id"]] = segment["category_id"]
    semantic = np.roll(names[seen], 2, 1)
    masks = np.stack(masks) if masks else np.zeros((0, 48, 64), bool)
    return Prediction(masks, np.array(scores), labels, semantic, image=number), truth, segments


@pytest.fixture(scope="module")
def examples():
    return [example(number) for number in range(4)]


@pytest.fixture(scope="module")
def points(examples):
    return search(examples, THINGS, **GRID)


def test_every_point_has_the_scores_of_merging_with_its_thresholds(examples, points):
    assert len(points) == 3 * 2 * 4
    for point in points:
        metric = PanopticQuality(THINGS)
        for prediction, truth, segments in examples:
            found = merge(*prediction[:4], **point.thresholds, things=range(1, 7))
            metric.update(*found, truth, segments)
        for mine, theirs in zip(
            point.scores.classes.values(), metric.compute().classes.values(), strict=True
        ):
            assert (mine.tp, mine.fp, mine.fn) == (theirs.tp, theirs.fp, theirs.fn)
            assert mine.iou == pytest.approx(theirs.iou, abs=1e-12)  # summed in another order


def test_the_best_point_is_at_least_as_good_as_the_official_thresholds(examples, points):
    default = next(point for point in points if point.default)
    assert best(points).pq > default.pq  # these small images lose all stuff under 4096 pixels
    without = search(examples[:1], THINGS, confidences=[0.9], overlaps=[0.1], stuff_areas=[10**6])
    assert [point.default for point in without].count(True) == 1
    assert best(without).pq >= next(point.pq for point in without if point.default)


def test_stuff_masks_that_overlap_are_searched_exactly():
    left, right = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    left[:, :10] = right[:, 5:] = True
    left[:4, :5] = False
    truth = np.full((10, 20), 1, np.int32)
    images = [
        (
            Prediction(np.zeros((0, 10, 20), bool), np.zeros(0), [], [(7, left), (8, right)]),
            truth,
            [{"id": 1, "category_id": 8}],
        )
    ]
    # Left has 80 pixels; without it, right has 150 instead of 100.
    areas = {0: 0.5, 80: 0.5, 90: 0.75, 101: 0.75, 150: 0.75, 151: 0.0}
    found = search(images, {7: False, 8: False}, stuff_areas=list(areas))
    by_area = {point.stuff_area: point.scores.classes[8].iou for point in found}
    assert by_area == {**{k: v if v > 0.5 else 0.0 for k, v in areas.items()}, 4096: 0.0}


def test_no_image_is_an_error_and_nothing_to_find_is_not_a_number(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        search([], THINGS)
    nothing = Prediction(np.zeros((0, 4, 4), bool), np.zeros(0), [], np.full((4, 4), -1))
    found = search([(nothing, np.zeros((4, 4), int), [])], THINGS, **GRID)
    assert math.isnan(best(found).pq)
    assert best(found).default
    assert "–" in table(found)
    heat_maps(found, tmp_path / "empty.png")


def test_the_table_names_the_best_first_and_the_official_thresholds(points):
    lines = table(points, top=3).splitlines()
    winner = best(points)
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[1:3] == [f"{winner.confidence:g}", f"{winner.overlap:g}"]
    assert f"{100 * winner.pq:.1f}" in lines[2]
    assert sum("(official)" in line for line in lines) == 1
    assert len(rows(points)) == len(points)
    assert rows(points)[0]["PQ"] == pytest.approx(100 * points[0].pq)


def test_the_heat_maps_are_an_image_of_several_colours(points, tmp_path):
    heat_maps(points, tmp_path / "heat.png")
    with Image.open(tmp_path / "heat.png") as image:
        assert image.size == (1800, 552)
        assert len(image.convert("RGB").getcolors(2**20)) > 50


@pytest.fixture
def files(examples, tmp_path):
    """The examples as the official script's input files, and their truth."""
    images = [
        {"id": n, "file_name": f"{n}.jpg", "height": 48, "width": 64} for n in range(len(examples))
    ]
    instances, semantic = [], []
    for prediction, _, _ in examples:
        for mask, score, label in zip(*prediction[:3], strict=True):
            codes = encode(mask.astype(np.int32))
            if codes:
                entry = {"image_id": prediction.image, "category_id": label, "score": float(score)}
                instances.append({**entry, "segmentation": codes[1]})
        for category, code in encode(prediction.semantic).items():
            semantic.append(
                {"image_id": prediction.image, "category_id": category, "segmentation": code}
            )
    contents = {
        "instances": instances,
        "semantic": semantic,
        "images": {"images": images},
        "categories": to_entries(CATEGORIES),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    write_panoptic(
        tmp_path / "truth.json",
        categories=CATEGORIES,
        images=images,
        results=((p.image, ids, segments) for p, ids, segments in examples),
    )
    words = [f"{name}={tmp_path / name}.json" for name in contents]
    return tmp_path, [*words, f"out={tmp_path / 'out.json'}", "stuff_area=100"], contents


def test_files_are_merged_as_by_the_plain_procedure_on_run_lengths(files, examples):
    folder, words, contents = files
    merge_files.main(words)
    written = PanopticFiles(folder / "out.json")
    assert len(written) == len(examples)
    for number in range(len(examples)):
        ids, segments = peers.merge(
            [e for e in contents["instances"] if e["image_id"] == number],
            [e for e in contents["semantic"] if e["image_id"] == number and e["category_id"] > 6],
            (48, 64),
            stuff_area=100,
        )
        found = written.segments(number)
        assert [(s["category_id"], s["area"]) for s in found] == [
            (s["category_id"], s["area"]) for s in segments
        ]
        for mine, theirs in zip(found, segments, strict=True):
            assert ((written.ids(number) == mine["id"]) == (ids == theirs["id"])).all()
            assert ("score" in mine) == (mine["category_id"] <= 6)
            assert "instance" not in mine


def test_worker_processes_write_the_same_files(files, monkeypatch):
    folder, words, _ = files
    merge_files.main(words)
    alone = (folder / "out.json").read_bytes()
    monkeypatch.setattr(merge_files, "FEW", 1)
    merge_files.main([*words, "workers=2"])
    assert (folder / "out.json").read_bytes() == alone


def test_the_search_on_files_is_never_below_the_given_thresholds(files, capsys):
    folder, words, _ = files
    merge_files.main([*words, "stuff_area=4096"])
    before = evaluate_files(folder / "truth.json", folder / "out.json").all.pq
    merge_files.main([*words, "search=true", f"gt={folder / 'truth.json'}"])
    after = evaluate_files(folder / "truth.json", folder / "out.json").all.pq
    assert after > before
    with (folder / "out_search.csv").open() as file:
        listed = [float(row["PQ"]) for row in csv.DictReader(file)]
    assert max(listed) == pytest.approx(100 * after)
    assert len(listed) == 9 * 8 * 7
    assert (folder / "out_search.png").stat().st_size > 10_000
    assert "(official)" in capsys.readouterr().out


def test_images_without_results_get_an_empty_map(files):
    folder, words, _ = files
    for name in ("instances", "semantic"):
        (folder / f"{name}.json").write_text("[]")
    merge_files.main(words)
    written = PanopticFiles(folder / "out.json")
    assert written.segments(0) == []
    assert not written.ids(0).any()


def broken(contents, name, **changes):
    """The content of a file with its first entry changed."""
    content = contents[name]
    entries = content["images"] if name == "images" else content
    entries[0] = {**entries[0], **changes}
    return content


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("instances", {"category_id": 99}, r"result 0 \(of image 0\) is of category 99"),
        ("instances", {"category_id": 7}, "is of grass, which is stuff"),
        ("instances", {"score": None}, "has no `score`"),
        ("instances", {"segmentation": 5}, "image 0.* has no polygon and no run lengths"),
        ("semantic", {"category_id": None}, "is of category None"),
        ("images", {"height": None}, "image 0 has the height None: give it in pixels"),
        ("images", {"height": 47}, r"image 0.* run lengths of size \[48, 64\], not .* \[47, 64\]"),
        ("categories", {"isthing": 5}, "has no `isthing`"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(files, name, changes, message):
    folder, words, contents = files
    (folder / f"{name}.json").write_text(json.dumps(broken(contents, name, **changes)))
    with pytest.raises(ValueError, match=message):
        merge_files.main([*words, "confidence=0"])


def test_two_masks_of_one_stuff_class_name_the_image(files):
    folder, words, contents = files
    stuff = next(e for e in contents["semantic"] if e["category_id"] > 6)
    (folder / "semantic.json").write_text(json.dumps([stuff, stuff]))
    with pytest.raises(ValueError, match=r"image 0: category .* has two masks"):
        merge_files.main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search=true"], "search=true needs the truth"),
        (["overlap=1.5"], "overlap=1.5 is out of range"),
        (["overlaps=0.5"], "Did you mean 'overlap'?"),
        (["images=nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_the_command_ends_with_one_sentence_and_exit_code_2(
    files, words, message, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["merge_files.py", *files[1], *words])
    with pytest.raises(SystemExit) as ended:
        run_command(merge_files.main)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
