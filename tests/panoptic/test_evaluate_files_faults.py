"""`evaluate_files.py`: its rules where the official tool misbehaves, and its words on bad input."""

import json
import math
import shutil

import numpy as np
import pytest

from common.config import run as run_command
from common.errors import sentence
from panoptic.evaluate_files import evaluate_files, main
from panoptic.files.categories import Category
from panoptic.files.coco import write_ids, write_panoptic
from panoptic.metric.matching import PAPER

THING, STUFF = Category(1, "cat", True), Category(10, "sky", False)
OTHER = Category(2, "dog", True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_one_sentence_also_where_a_worker_finds_it(tmp_path, workers):
    ids = np.ones((4, 4), np.int32)
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 4, "width": 4} for n in range(20)]
    results = [(n, ids, [{"id": 1, "category_id": 1}]) for n in range(20)]
    file = tmp_path / "x.json"
    write_panoptic(file, categories={1: THING}, images=images, results=results)
    path = tmp_path / "x" / "19.png"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        evaluate_files(file, file, workers=workers)
    assert sentence(error.value) == f"{path} is cut off: write it again"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["gt=a.json"], "pred is not set"),
        (["gt=a.json", "pred=b.json", "treshold=0.4"], "Did you mean 'threshold'"),
        (["gt=a.json", "pred=b.json", "rules=papers"], "Did you mean 'rules=paper'"),
        (["gt=a.json", "pred=b.json", "threshold=1"], "threshold=1.0 is out of range"),
        (["gt=a.json", "pred=b.json"], "a.json cannot be read: No such file"),
        (["a.json", "b.json"], "'a.json' is not understood: write name=value"),
    ],
)
def test_wrong_words_are_explained(words, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main(words))
    assert ended.value.code == 2
    message = capsys.readouterr().err.strip()
    assert reason in message
    assert "\n" not in message


def tiny(path, ids, segments, *, categories=(THING, OTHER, STUFF), image=7, **change):
    """A data set of one image of one row; segments are (id, category, crowd)."""
    ids = np.array([ids])
    entry = {"id": image, "file_name": f"{image}.jpg", "height": 1, "width": ids.shape[1]}
    listed = [{"id": n, "category_id": c, "iscrowd": crowd} for n, c, crowd in segments]
    known = {category.id: category for category in categories}
    write_panoptic(path, categories=known, images=[entry], results=[(image, ids, listed)])
    if change:
        content = json.loads(path.read_text())
        content.update(change)
        path.write_text(json.dumps(content))
    return path


def listed(path, change):
    content = json.loads(path.read_text())
    change(content["annotations"][0]["segments_info"])
    path.write_text(json.dumps(content))


def counts(scores, number):
    score = scores.classes[number]
    return score.tp, score.fp, score.fn


def test_the_papers_rules_part_void_from_crowds(tmp_path):
    gt = tiny(tmp_path / "gt.json", [0, 0, 0, 8, 8, 8, 7, 7, 7, 7], [(8, 1, 1), (7, 10, 0)])
    pred = tiny(tmp_path / "pred.json", [5] * 10, [(5, 1, 0)])
    assert counts(evaluate_files(gt, pred), 1) == (0, 0, 0)
    assert counts(evaluate_files(gt, pred, rules=PAPER), 1) == (0, 1, 0)


def test_the_last_crowd_wins_unless_all_are_asked_for(tmp_path, capsys):
    crowds = [(8, 1, 1), (6, 1, 1), (7, 10, 0)]
    gt = tiny(tmp_path / "gt.json", [6, 8, 8, 8, 8, 8, 7, 7], crowds)
    pred = tiny(tmp_path / "pred.json", [5] * 8, [(5, 1, 0)])
    assert counts(evaluate_files(gt, pred), 1) == (0, 1, 0)
    assert counts(evaluate_files(gt, pred, rules={"crowds": "all"}), 1) == (0, 0, 0)
    for word, n in (("rules=official", 2), ("crowds=all", 1), ("rules=paper", 1)):
        main([f"gt={gt}", f"pred={pred}", "workers=0", word])
        assert capsys.readouterr().out.splitlines()[2].split()[-1] == str(n)


def test_areas_are_counted_unless_the_json_is_to_be_trusted(tmp_path):
    gt = tiny(tmp_path / "gt.json", [1, 1, 1, 1, 9], [(1, 1, 0), (9, 10, 0)])
    listed(gt, lambda segments: segments[0].update(area=6))
    pred = tiny(tmp_path / "pred.json", [5, 5, 5, 5, 9], [(5, 1, 0), (9, 10, 0)])
    assert evaluate_files(gt, pred).classes[1].iou == 1
    assert evaluate_files(gt, pred, rules={"areas": "json"}).classes[1].iou == 4 / 6


def test_ids_that_the_json_lacks_stop_the_evaluation_unless_it_is_told_otherwise(tmp_path):
    gt = tiny(tmp_path / "gt.json", [1, 1, 1, 9], [(1, 1, 0), (9, 10, 0)])
    pred = tiny(tmp_path / "pred.json", [5, 5, 5, 5], [(5, 1, 0)])
    listed(gt, lambda segments: segments.pop())
    with pytest.raises(ValueError, match="image 7: the map of the truth has id 9"):
        evaluate_files(gt, pred)
    assert evaluate_files(gt, pred, rules={"unlisted": "void"}).classes[1].iou == 1
    assert evaluate_files(gt, pred, rules={"unlisted": "official"}).classes[1].iou == 0.75
    main([f"gt={gt}", f"pred={pred}", "workers=0", "unlisted=official"])


def test_a_segment_of_id_0_counts_only_under_the_official_rules(tmp_path):
    gt = tiny(tmp_path / "gt.json", [1, 1, 1, 1], [(1, 1, 0)])
    pred = tiny(tmp_path / "pred.json", [0, 0, 0, 5], [(5, 2, 0)])
    listed(pred, lambda segments: segments.append({"id": 0, "category_id": 1}))
    with pytest.raises(ValueError, match="image 7: a segment has the id 0, which means void"):
        evaluate_files(gt, pred)
    scores = evaluate_files(gt, pred, rules={"unlisted": "official"})
    assert scores.classes[1].iou == 0.75
    assert counts(scores, 2) == (0, 1, 0)


def test_a_threshold_below_one_half_pairs_in_the_best_way(tmp_path):
    gt = tiny(tmp_path / "gt.json", [1] * 5 + [0], [(1, 1, 0)])
    pred = tiny(tmp_path / "pred.json", [5, 5, 6, 0, 0, 0], [(5, 1, 0), (6, 1, 0)])
    assert counts(evaluate_files(gt, pred), 1) == (0, 2, 1)
    assert counts(evaluate_files(gt, pred, rules={"threshold": 0.3}), 1) == (1, 1, 0)


def test_an_empty_ground_truth_is_nan_of_no_class(tmp_path, capsys):
    gt = tiny(tmp_path / "gt.json", [0, 0], [])
    assert math.isnan(evaluate_files(gt, gt).all.pq)
    none = tiny(tmp_path / "none.json", [0, 0], [], annotations=[], images=[])
    scores = evaluate_files(none, none, workers=4)
    assert math.isnan(scores.all.pq)
    assert scores.all.n == 0
    out = tmp_path / "out.json"
    main([f"gt={none}", f"pred={none}", f"json={out}", "--per-class"])
    assert "All       |   nan    nan    nan     0" in capsys.readouterr().out
    assert json.loads(out.read_text())["All"] == {"PQ": None, "SQ": None, "RQ": None, "N": 0}


def test_a_group_without_a_class_is_nan_where_the_official_tool_divides_by_zero(tmp_path):
    gt = tiny(tmp_path / "gt.json", [1, 1], [(1, 1, 0)], categories=(THING,))
    scores = evaluate_files(gt, gt)
    assert scores.things.pq == 1
    assert math.isnan(scores.stuff.pq)
    assert scores.stuff.n == 0


def pair(tmp_path):
    gt = tiny(tmp_path / "gt.json", [1, 1, 0, 9], [(1, 1, 0), (9, 10, 0)])
    return gt, tiny(tmp_path / "pred.json", [5, 5, 5, 6], [(5, 1, 0), (6, 10, 0)])


def test_a_missing_prediction_is_named_and_surplus_ones_are_told(tmp_path, capsys):
    gt, pred = pair(tmp_path)
    other = tiny(tmp_path / "other.json", [5], [(5, 1, 0)], image=8)
    with pytest.raises(ValueError, match=r"other\.json has no prediction of image 7 \(1 of the 1"):
        evaluate_files(gt, other)
    both = json.loads(pred.read_text())
    both["annotations"].append({"image_id": 9, "file_name": "9.png", "segments_info": []})
    both["images"].append({"id": 9, "file_name": "9.jpg"})
    pred.write_text(json.dumps(both))
    assert evaluate_files(gt, pred).all.n == 2
    assert "1 predictions are of images that" in capsys.readouterr().err


def test_predictions_of_other_categories_are_refused(tmp_path):
    gt, pred = pair(tmp_path)
    content = json.loads(pred.read_text())
    content["categories"][0]["name"] = "cow"
    pred.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"differ in their categories: 1 is 'cat' .* 'cow'"):
        evaluate_files(gt, pred)


def test_predictions_without_categories_and_images_have_those_of_the_truth(tmp_path):
    gt, pred = pair(tmp_path)
    content = json.loads(pred.read_text())
    pred.write_text(json.dumps({"annotations": content["annotations"]}))
    assert evaluate_files(gt, pred).all.n == 2
    shutil.move(tmp_path / "pred", tmp_path / "elsewhere")
    assert evaluate_files(gt, pred, pred_folder=tmp_path / "elsewhere").all.n == 2


def test_faults_of_the_pngs_name_image_and_id(tmp_path):
    gt, pred = pair(tmp_path)
    write_ids(tmp_path / "pred" / "7.png", np.array([[5, 5, 5, 4]]))
    with pytest.raises(ValueError, match="image 7: the map of the prediction has id 4"):
        evaluate_files(gt, pred)
    write_ids(tmp_path / "pred" / "7.png", np.array([[5, 5, 5, 5]]))
    with pytest.raises(ValueError, match="image 7: segment 6 of the prediction is listed"):
        evaluate_files(gt, pred)
    write_ids(tmp_path / "pred" / "7.png", np.array([[5, 5], [5, 6]]))
    with pytest.raises(ValueError, match=r"7\.png is 2 x 2 pixels, but image 7 is 4 x 1"):
        evaluate_files(gt, pred)
    (tmp_path / "pred" / "7.png").unlink()
    with pytest.raises(ValueError, match=r"7\.png does not exist, but .*pred\.json lists it"):
        evaluate_files(gt, pred)
