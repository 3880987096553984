"""Figures of a run: what was asked when, accuracy over the budget, the pictures."""

import csv
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from scipy import stats

from common.clevr import builtin
from common.clevr.arrays.grid import channels
from common.scenes.world import color_rgb
from learning_by_asking.asking.history import Asked, read_history
from learning_by_asking.figures import curriculum, curves, proposals

PROGRAMS = {
    "exist": ("exist", "filter_color[red]", "scene"),
    "count": ("count", "scene"),
    "query_size": ("query_size", "unique", "filter_shape[cube]", "filter_color[red]", "scene"),
    "less_than": ("less_than", "count", "scene", "count", "filter_size[large]", "scene"),
}
REPLIES = {"exist": "yes", "count": "3", "query_size": "large", "less_than": "no"}


def ask(kind: str, *, valid: bool = True, chance: float = 0.5, round_: int = 1) -> Asked:
    return Asked(
        round=round_,
        image_index=0,
        type=kind,
        program=PROGRAMS[kind],
        reply=REPLIES[kind] if valid else None,
        valid=valid,
        reason="" if valid else "unique_empty",
        n_raw=8,
        n_kept=4,
        relevance=None,
        score=0.5,
        rank_by_entropy=0,
        eps_random=False,
        v_prob_answer=chance if valid else None,
        v_entropy=1.0,
        seconds=0.01,
    )


def write_log(folder, history):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(vars(asked)) + "\n" for asked in history]
    (folder / "ask_log.jsonl").write_text("".join(lines))


@pytest.fixture
def history():
    random = np.random.default_rng(0)
    kinds = random.choice(list(PROGRAMS), 430)
    return [ask(str(kind), valid=bool(random.random() < 0.6)) for kind in kinds]


# What was asked when


def test_shares_of_each_piece_are_those_that_a_count_gives(history):
    rows = curriculum.measure_pieces(history, pieces=10)
    assert sorted({asked for asked, *_ in rows}) == list(range(43, 431, 43))
    for k in range(10):
        piece = history[43 * k : 43 * (k + 1)]
        found = {(what, name): v for asked, what, name, v in rows if asked == 43 * (k + 1)}
        types = Counter(asked.type for asked in piece)
        replies = Counter(asked.reply for asked in piece if asked.valid)
        for kind, count in types.items():
            assert found["type", kind] == pytest.approx(count / 43)
        for reply, count in replies.items():
            assert found["answer", reply] == pytest.approx(count / replies.total())
        assert found["length", "5"] == pytest.approx(types["query_size"] / 43)
        assert found["validity", ""] == pytest.approx(replies.total() / 43)


def test_the_running_accuracy_moves_by_the_rate_towards_each_probability():
    history = [ask("exist", chance=0.8), ask("count", chance=0.1), ask("exist", chance=1.0)]
    rows = curriculum.measure_pieces(history)
    yes = [value for _, what, name, value in rows if (what, name) == ("H", "yes")]
    first = 0.98 / 28 + 0.02 * 0.8
    assert yes == pytest.approx([first, first, 0.98 * first + 0.02])
    rows = curriculum.measure_pieces(history, rate=0.5)
    yes = [value for _, what, name, value in rows if (what, name) == ("H", "yes")]
    first = 0.5 / 28 + 0.5 * 0.8
    assert yes == pytest.approx([first, first, 0.5 * first + 0.5])


def test_asking_times_are_shares_of_the_replies_with_the_percentile_interval(history):
    assert curriculum.find_times([ask("count"), ask("exist")])["exist"] == (0.75, 0.75, 0.75, 1)
    times = curriculum.find_times(history)
    for kind, time in times.items():
        own = [(i + 0.5) / 430 for i, asked in enumerate(history) if asked.type == kind]
        assert (time.mean, time.number) == (pytest.approx(np.mean(own)), len(own))
        reference = stats.bootstrap((own,), np.mean, method="percentile", n_resamples=2000)
        interval = reference.confidence_interval
        assert time.low == pytest.approx(interval.low, abs=0.008)
        assert time.high == pytest.approx(interval.high, abs=0.008)


def test_the_order_of_types_is_correlated_with_answers_length_and_learnability():
    order = ("exist", "count", "less_than", "query_size")
    found = curriculum.summarise(
        [ask(kind) for kind in order for _ in range(5)],
        {"exist": 0.1, "count": 0.3, "less_than": 0.2, "query_size": 0.9, "query_color": 9.0},
    )
    assert found["validity"] == 100
    assert found["time_exist"] == pytest.approx(12.5)
    assert found["order_by_loss"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert found["order_by_length"] == pytest.approx(0.6)  # 1 - 6 * 4 / (4 * 15)
    answers = stats.spearmanr([1, 2, 3, 4], [2, 11, 2, 2]).statistic
    assert found["order_by_answers"] == pytest.approx(answers)
    assert math.isnan(curriculum.correlate({"exist": 0.1, "count": 0.2}, {"exist": 1, "count": 2}))
    assert math.isnan(curriculum.correlate(dict.fromkeys(order, 0.5), dict.fromkeys(order, 1.0)))


def test_the_table_and_the_picture_stand_in_the_folder_and_random_beside(tmp_path, history):
    write_log(tmp_path / "lba", history)
    write_log(tmp_path / "random", history[::-1])
    curriculum.write_curriculum(tmp_path / "lba")
    with Image.open(tmp_path / "lba" / "curriculum.png") as image:
        alone = image.width
    found = curriculum.write_curriculum(tmp_path / "lba", beside={"random": tmp_path / "random"})
    assert found["validity"] == pytest.approx(100 * np.mean([each.valid for each in history]))
    with Image.open(tmp_path / "lba" / "curriculum.png") as image:
        assert image.width > 1.5 * alone
    with open(tmp_path / "lba" / "curriculum.csv") as file:
        rows = list(csv.DictReader(file))
    assert len({row["asked"] for row in rows}) == 100
    total = sum(float(row["value"]) for row in rows if row["what"] == "type")
    assert total == pytest.approx(100, abs=1e-2)
    assert "count" in curriculum.format_times({"lba": history})


def test_a_run_that_has_asked_nothing_has_no_curriculum(tmp_path):
    write_log(tmp_path, [])
    assert curriculum.write_curriculum(tmp_path) == {}


def test_a_torn_line_is_left_out_and_another_fault_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"ask_log\.jsonl does not exist"):
        read_history(tmp_path)
    write_log(tmp_path, [ask("exist"), ask("count")])
    file = tmp_path / "ask_log.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-9])
    with pytest.warns(UserWarning, match="cut off"):
        assert read_history(tmp_path) == [ask("exist")]
    file.write_text("{}\n" + whole)
    with pytest.raises(ValueError, match=r"line 1 is no reply \('round'\)"):
        read_history(tmp_path)


# Accuracy over the budget


def write_metrics(folder, points, **metrics):
    folder.mkdir(parents=True)
    lines = [{"step": i, "asked": x, "online": y} for i, (x, y) in enumerate(points, 1)]
    lines.insert(1, {"step": 1, "asked": 5, "loss": 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({"metrics": metrics}))
    return folder


def test_the_area_is_the_mean_accuracy_over_the_budget(tmp_path):
    folder = write_metrics(tmp_path / "a", [(0, 40), (10, 60), (30, 50), (30, 60)])
    curve = curves.read_curve(folder)
    assert curve == ([0, 10, 30], [40, 60, 60])  # a point that was measured again is the last
    assert curves.area(curve) == pytest.approx((10 * 50 + 20 * 60) / 30)
    assert math.isnan(curves.area(([5], [40])))


def test_paired_differences_have_the_error_and_the_p_values_of_their_tests():
    ours = dict(enumerate([51, 52, 53, math.nan, 60]))
    found = curves.pair(ours, {0: 50.0, 1: 50.0, 2: 50.0, 3: 1.0})  # seed 4 has no partner
    assert (found.mean, found.pairs) == (2, 3)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.t_test == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2))
    assert found.wilcoxon == pytest.approx(0.25)  # 2 of the 8 signs are as extreme
    same = curves.pair({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same.mean == 0
    assert math.isnan(same.t_test)
    assert math.isnan(same.wilcoxon)


def test_runs_are_compared_with_a_baseline_of_equal_seeds(tmp_path):
    runs = {
        name: {
            seed: write_metrics(tmp_path / name / str(seed), [(0, 40), (10, 40 + gain + seed)],
                                online=40 + gain + seed)
            for seed in (1, 2, 3)
        }
        for name, gain in (("lba", 10), ("random", 4))
    }  # fmt: skip
    table = curves.compare(runs, "random")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows[0][:4] == ["area", "lba", "46.0 ± 0.3 (3)", "+3.0 ± 0.0"]
    assert rows[2][:4] == ["online", "lba", "52.0 ± 0.6 (3)", "+6.0 ± 0.0"]
    assert rows[3] == ["online", "random", "46.0 ± 0.6 (3)", "", "", ""]
    curves.draw_curves(tmp_path / "curves.png", runs)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 500
    with pytest.raises(ValueError, match="'passive' is none of the settings lba, random"):
        curves.compare(runs, "passive")


def test_seeds_are_averaged_where_all_have_been(tmp_path):
    xs, mean, error = curves.average([([0, 10, 20], [0, 10, 20]), ([5, 25], [15, 35])])
    assert xs.tolist() == [5, 10, 20]
    assert mean.tolist() == [10, 15, 25]
    assert error == pytest.approx(np.full(3, 5.0))


# Pictures


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    options = builtin.Options(objects=(3, 5))
    cache = tmp_path_factory.mktemp("clevr")
    made = builtin.build(split="train", images=12, options=options, cache=cache)
    return made, options.world(64, 64, rendered=False)


def test_things_are_drawn_in_their_colours_where_they_stand(world):
    made, scene_world = world
    side = 2 * math.sqrt(2) * scene_world.spread
    for scene, features in zip(made.scenes, made.features, strict=True):
        image = proposals.draw_map(torch.from_numpy(features), channels(scene_world))
        assert image.shape == (3, proposals.SIDE, proposals.SIDE)
        for thing in scene.things:
            right = np.dot(thing.position, scene.directions["right"]) / side + 0.5
            front = np.dot(thing.position, scene.directions["front"]) / side + 0.5
            x, y = (int(proposals.SIDE * share) for share in (right, front))
            seen = image[:, y, x].float()
            assert (seen - torch.tensor(color_rgb(thing.color)).float()).abs().max() < 12


def test_a_colour_that_the_map_does_not_show_is_drawn_white(world):
    made, scene_world = world
    names = channels(scene_world)
    features = torch.from_numpy(made.features[0]).clone()
    features[[i for i, name in enumerate(names) if name.startswith("color")]] = 0
    image = proposals.draw_map(features, names)
    colors = {tuple(pixel) for pixel in image.flatten(1).T.tolist()}
    assert all(max(color) - min(color) <= 1 for color in colors)  # no hue
    assert (255, 255, 255) in colors


def test_ten_questions_at_equal_distances_are_drawn_invalid_ones_too(tmp_path, history):
    assert proposals.choose_places(100, 10) == list(range(5, 100, 10))
    assert proposals.choose_places(3, 10) == [0, 1, 2]
    asked = []
    blank = torch.zeros(3, 50, 60, dtype=torch.uint8)
    proposals.draw_asked(tmp_path / "q.png", history, lambda i: asked.append(i) or blank)
    assert len(asked) == 10
    with Image.open(tmp_path / "q.png") as image:
        assert image.width > 5 * proposals.SIDE
    right, wrong = ask("exist", chance=0.34), ask("query_size", valid=False)
    assert [line.text for line in proposals.describe(right)[1:]] == [
        "yes", "the answerer gave it 34 %",
    ]  # fmt: skip
    assert proposals.describe(right)[0].text.endswith("?")
    assert proposals.describe(wrong)[-1].text == "no answer: there is no such thing"
    assert proposals.spell(("count", "unique")) == "count unique"


def test_text_is_broken_at_words_and_none_is_lost():
    font = ImageFont.load_default(proposals.TEXT_HEIGHT)
    text = "Are there any red things that are to the left of the large metal cylinder?"
    lines = proposals.wrap(text, 120, font)
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 116 for line in lines)
    assert proposals.wrap("", 120, font) == [""]
