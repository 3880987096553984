"""The consistency study: its effects on simulated annotators, and the same on files."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from common.config import run as run_command
from panoptic import study
from panoptic.annotators.paper import TABLE_1, TABLE_2
from panoptic.annotators.simulate import CATEGORIES, Annotator, annotate, pairs, scene, scenes
from panoptic.files.categories import kinds
from panoptic.files.coco import write_panoptic

THINGS = kinds(CATEGORIES)
PICTURES = ("classes.png", "cdf.png", "thresholds.png", "weights.png", "pairs.png")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The figures of `python study.py`, and its folder."""
    folder = tmp_path_factory.mktemp("study")
    return study.run(study.Options(out=str(folder), samples=100)), folder


def test_quality_rises_steeply_with_size(simulated):
    for group in ("all", "things"):
        small, medium, large = (simulated[0]["sizes"][group][size][0] for size in "SML")
        assert medium - small > 10
        assert large - medium > 10


def test_a_lower_threshold_changes_little_and_a_higher_one_much(simulated):
    low, half, high = (values["PQ"] for values in simulated[0]["thresholds"].values())
    assert 0 <= low - half < 6
    assert half - high > 10


def test_a_lower_weight_of_errors_raises_rq_and_leaves_sq(simulated):
    weights = simulated[0]["alphas"].values()
    assert len({values["SQ"] for values in weights}) == 1
    raised = [values["RQ"] for values in weights]
    assert raised == sorted(set(raised))


def test_the_two_annotators_may_be_swapped(simulated):
    assert simulated[0]["consistency"] == pytest.approx(simulated[0]["swapped"], abs=1e-12)


def test_the_intervals_hold_the_figures(simulated):
    for name, (low, high) in simulated[0]["intervals"].items():
        assert low <= simulated[0]["consistency"][name] <= high


def test_few_of_the_best_pairs_have_less_than_half_in_common(simulated):
    assert 4 < simulated[0]["matched below 0.5"] < 16  # the paper: fewer than 16 %


def test_plain_shapes_show_the_same_effects(tmp_path):
    found = study.run(study.Options(world="shapes", scenes=20, out=str(tmp_path), samples=20))
    small, medium, large = (found["sizes"]["things"][size][0] for size in "SML")
    assert small < medium < large
    assert found["consistency"] == pytest.approx(found["swapped"], abs=1e-12)


def test_everything_is_written(simulated):
    found, folder = simulated
    text = (folder / "study.md").read_text()
    for part in ("Table 1", "Table 2", "Table 6", "IoU > 0.25", "α = 1/8", "human†"):
        assert part in text
    (vistas,) = {
        line
        for line in text.splitlines()
        if line.startswith("| paper, Vistas† ") and "57.5" in line
    }
    assert vistas.split("|")[2:5] == [" 57.5 ", "  62.6 ", "  53.4 "]
    assert json.loads((folder / "study.json").read_text())["consistency"] == found["consistency"]
    assert len((folder / "classes.csv").read_text().splitlines()) == 1 + len(CATEGORIES)
    for name in PICTURES:
        with Image.open(folder / name) as image:
            assert len(image.convert("RGB").getcolors(2**20)) > 10, name


def test_the_papers_figures_agree_with_one_another():
    for pq, _, _, sq, _, _, rq, _, _ in TABLE_1.values():
        assert pq < sq * rq / 100 + 2  # means of products
    for row in TABLE_2.values():
        assert row[0] < row[1] < row[2]


def test_scenes_and_annotators_follow_from_the_seed_alone():
    few, more, other = (
        list(pairs(scenes(n, seed=s), seed=s, categories=THINGS))
        for n, s in ((2, 0), (3, 0), (2, 1))
    )
    for (mine, _), (theirs, _) in zip(few, more, strict=False):
        assert (mine[0] == theirs[0]).all()
        assert mine[1] == theirs[1]
    (first, second), (another, _) = few[0], other[0]
    assert (first[0] != another[0]).any()
    assert (first[0] != second[0]).any()


def test_an_annotator_who_never_errs_draws_the_scene():
    ids, segments = scene(np.random.default_rng(3))
    sure = Annotator(shift=0, overlook=0, overlook_small=0, confuse=0)
    drawn, listed = annotate(
        ids, segments, np.random.default_rng(0), categories=THINGS, annotator=sure
    )
    assert (drawn == ids).all()
    assert listed == segments
    assert sum(THINGS[s["category_id"]] for s in segments) >= 6
    assert {s["category_id"] for s in segments} & {7, 8, 9, 10}


def test_each_kind_of_error_does_what_it_says():
    ids, segments = scene(np.random.default_rng(3))

    def drawn(**errors):
        none = {"shift": 0, "overlook": 0, "overlook_small": 0, "confuse": 0}
        return annotate(
            *(ids, segments, np.random.default_rng(0)),
            categories=THINGS,
            annotator=Annotator(**none | errors),
        )

    overlooked, left = drawn(overlook=1)
    assert {s["category_id"] for s in left} <= {7, 8, 9, 10}
    solid = np.isin(ids, [s["id"] for s in segments if THINGS[s["category_id"]]])
    assert (overlooked[~solid] == ids[~solid]).all()
    confused, renamed = drawn(confuse=1)
    assert (confused == ids).all()
    for before, after in zip(segments, renamed, strict=True):
        changed = before["category_id"] != after["category_id"]
        assert changed == THINGS[before["category_id"]] == THINGS[after["category_id"]]
    shifted, same = drawn(shift=1.3)
    assert 0.02 < (shifted != ids).mean() < 0.3
    assert {s["id"] for s in same} <= {s["id"] for s in segments}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three scenes as annotated by two and by a machine that is a careless third."""
    folder = tmp_path_factory.mktemp("folders")
    made = list(pairs(scenes(3), categories=THINGS))
    careless = Annotator(shift=2.5, overlook=0.3, confuse=0.2)
    machine = [
        annotate(*b, np.random.default_rng(i), categories=THINGS, annotator=careless)
        for i, (_, b) in enumerate(made)
    ]
    sides = {"a": [a for a, _ in made], "b": [b for _, b in made], "pred": machine}
    images = [{"id": i, "file_name": f"{i}.png", "height": 96, "width": 128} for i in range(3)]
    for name, maps in sides.items():
        write_panoptic(
            folder / f"{name}.json",
            categories=CATEGORIES,
            images=images,
            results=((i, *one) for i, one in enumerate(maps)),
        )
    return folder


def test_files_give_the_figures_of_the_simulation(folders, tmp_path):
    files = study.run(
        study.Options(
            a=str(folders / "a.json"), b=str(folders / "b.json"), out=str(tmp_path), samples=10
        )
    )
    made = study.run(study.Options(world="shapes", scenes=3, out=str(tmp_path), samples=10))
    assert files["name"] == "b"
    for part in ("consistency", "swapped", "sizes", "thresholds", "alphas", "intervals"):
        assert files[part] == made[part]


def test_a_machine_is_shown_beside_the_humans(folders, tmp_path, monkeypatch, capsys):
    words = [f"{name}={folders / name}.json" for name in ("a", "b", "pred")]
    command = ["study.py", *words, f"out={tmp_path}", "name=Test", "samples=10", "rules=paper"]
    monkeypatch.setattr(sys, "argv", command)
    run_command(study.main)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "study.json").read_text())
    assert found["machine"]["PQ"] < found["consistency"]["PQ"]
    line = next(line for line in printed.splitlines() if line.startswith("| Test, machine"))
    assert f"{found['machine']['PQ']:.1f} (+" in line


def test_a_map_against_itself_is_100(shared_data, tmp_path):
    truth = shared_data / "panopticapi_sample" / "panoptic_examples.json"
    found = study.run(study.Options(a=str(truth), b=str(truth), out=str(tmp_path), samples=10))
    assert set(found["consistency"].values()) == {100.0}
    assert found["matched below 0.5"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=x.json"], "give both a=FILE.json and b=FILE.json"),
        (["pred=x.json"], "needs the annotations"),
        (["a=x.json", "b=x.json"], "x.json cannot be read"),
        (["scenes=0"], "scenes=0 is out of range"),
        (["scene=5"], "Did you mean 'scenes'?"),
    ],
)
def test_the_command_ends_with_one_sentence_and_exit_code_2(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_command(study.main)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
