"""The tiny profile, the built-in world and its features, and the words of the questions."""

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from common.clevr import builtin
from common.clevr.arrays.grid import channels, grid_map
from common.clevr.builtin import FeatureOptions, Options, build
from common.clevr.execute import execute
from common.clevr.generation.catalogue import select
from common.clevr.generation.phrases import OTHER_WORDS
from common.clevr.generation.realise import paraphrase
from common.clevr.generation.tiny import FAMILIES, generate_tiny
from common.clevr.programs import to_prefix, to_tree
from common.clevr.questions import Question
from common.scenes.world import COGENT_A, COGENT_B, World

SMALL = Options(
    objects=(3, 5),
    colors=("red", "green", "blue", "yellow"),
    attributes=("color", "shape"),
    filters=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build(split="train", images=250, cache=tmp_path_factory.mktemp("cache"))


def tokens(question: Question) -> list[str]:
    assert question.program is not None
    return to_prefix(to_tree(question.program))


def words(question: Question) -> set[str]:
    return set(question.text.lower().replace("?", "").replace(";", "").split())


def majority(questions, kind) -> float:
    answers: dict = defaultdict(Counter)
    for question in questions:
        answers[kind(question)][question.answer] += 1
    best = sum(counter.most_common(1)[0][1] for counter in answers.values())
    return best / len(questions)


def test_every_answer_is_what_the_program_gives(made):
    assert len(made.questions) == 2500
    for question in made.questions:
        assert execute(tokens(question), made.scenes[question.image_index]).answer == (
            question.answer
        ), question


def test_the_most_frequent_answer_of_a_family_is_right_for_less_than_half_of_the_questions(made):
    # of two answers at least half; so this is the mean over 28 families
    assert majority(made.questions, lambda question: question.family) < 0.45


def test_no_answer_follows_from_which_attributes_the_phrases_mention(made):
    """Fit on one half, scored on the other, where a skeleton was seen often enough to be learnt."""

    def skeleton(question):
        return tuple(node.function for node in question.program)

    seen: dict = defaultdict(Counter)
    half = len(made.questions) // 2
    for question in made.questions[:half]:
        seen[skeleton(question)][question.answer] += 1
    known = [q for q in made.questions[half:] if seen[skeleton(q)].total() >= 3]
    right = sum(q.answer == seen[skeleton(q)].most_common(1)[0][0] for q in known)
    assert len(known) > 300
    assert right / len(known) < 0.52


def test_all_tiny_families_are_used_alike(made):
    counts = Counter(question.family for question in made.questions)
    templates = select(FAMILIES)
    assert set(counts) == {template.family for template in templates}
    assert min(counts.values()) > 0.6 * max(counts.values())


def test_questions_of_a_image_are_of_different_families(made):
    families = defaultdict(list)
    for question in made.questions:
        families[question.image_index].append(question.family)
    assert all(len(set(found)) == len(found) for found in families.values())


def test_a_counted_phrase_is_never_part_of_the_other(made):
    for question in made.questions:
        if question.template == "compare_integer":
            sides = [node.inputs for node in question.program if len(node.inputs) == 2][-1]
            filters = [set(), set()]
            for side, at in enumerate(sides):
                at = question.program[at].inputs[0]
                while question.program[at].function.startswith("filter_"):
                    filters[side].add(question.program[at].values)
                    at = question.program[at].inputs[0]
            assert not filters[0] <= filters[1]
            assert not filters[1] <= filters[0]


def test_the_same_seed_makes_the_same_questions_and_another_one_others(made):
    first, again, other = (
        generate_tiny(made.scenes[:20], seed=seed, per_image=5) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_small_world_speaks_only_of_its_attributes_and_values(tmp_path):
    made = build(
        split="train",
        images=40,
        options=SMALL,
        features=FeatureOptions(grid=6),
        cache=tmp_path,
    )
    assert made.features.shape == (40, 1 + 2 + 4 + 2 + 3 + 2, 6, 6)
    spoken = {token for question in made.questions for token in tokens(question)}
    assert not any("size" in token or "material" in token for token in spoken)
    assert "filter_color[cyan]" not in spoken
    assert all(3 <= len(scene) <= 5 for scene in made.scenes)


def test_questions_come_back_from_the_cache_as_they_were(tmp_path, monkeypatch):
    first = build(split="val", images=10, cache=tmp_path)
    monkeypatch.setattr(builtin, "_scenes", None)  # would fail if anything were made again
    again = build(split="val", images=10, cache=tmp_path)
    assert [(q.text, q.answer, q.program) for q in again.questions] == [
        (q.text, q.answer, q.program) for q in first.questions
    ]
    assert again.questions == first.questions
    assert np.array_equal(again.features, first.features)
    monkeypatch.setattr(builtin, "_VERSION", 0)  # those of another version are not read
    with pytest.raises(TypeError):
        build(split="val", images=10, cache=tmp_path)


def test_a_damaged_cache_is_made_again(tmp_path):
    first = build(split="val", images=5, cache=tmp_path)
    (file,) = tmp_path.rglob("questions.json")
    file.write_text(file.read_text()[:-100])
    with pytest.warns(RuntimeWarning, match="making it again"):
        again = build(split="val", images=5, cache=tmp_path)
    assert again.questions == first.questions


def test_splits_share_no_scene(tmp_path):
    positions = [
        {scene.things[0].position for scene in build(split=s, images=20, cache=tmp_path).scenes}
        for s in ("train", "val", "test")
    ]
    assert len(set.union(*positions)) == 60


def test_cogent_splits_keep_their_colours(tmp_path):
    for name, combos in (("A", COGENT_A), ("B", COGENT_B)):
        made = build(split="train", images=20, options=Options(combos=name), cache=tmp_path)
        pairs = {(thing.shape, thing.color) for scene in made.scenes for thing in scene.things}
        assert pairs <= {(shape, color) for shape, colors in combos for color in colors}


def test_images_of_the_pixels_are_rendered(tmp_path):
    made = build(
        split="val",
        images=3,
        features=FeatureOptions("pixels", height=48, width=64),
        cache=tmp_path,
    )
    assert made.features.shape == (3, 3, 48, 64)
    assert made.features.dtype == np.uint8


def test_the_map_holds_every_object_with_its_attributes_in_a_row_and_column_of_its_own(made):
    names = channels(World())
    for scene, cells in zip(made.scenes, made.features, strict=True):
        rows, columns = np.nonzero(cells[0])
        assert len(rows) == len(set(rows)) == len(set(columns)) == len(scene)
        found = sorted(
            tuple(names[c] for c in np.flatnonzero(cells[1:-2, r, k]) + 1)
            for r, k in zip(rows, columns, strict=True)
        )
        wanted = sorted(
            (f"size={t.size}", f"color={t.color}", f"material={t.material}", f"shape={t.shape}")
            for t in scene.things
        )
        assert found == wanted
        assert not cells[:, cells[0] == 0].any()


@pytest.mark.parametrize("grid", [6, 8, 11])
def test_relations_can_be_read_off_the_map(made, grid):
    names = channels(World())
    for scene, cells in zip(made.scenes, grid_map(made.scenes, World(), grid), strict=True):
        rows, columns = np.nonzero(cells[0])
        cell = {}
        for thing, values in enumerate(scene.things):
            wanted = np.zeros(len(names), bool)
            for name in ("size", "color", "material", "shape"):
                wanted[names.index(f"{name}={getattr(values, name)}")] = True
            same = [
                (r, c)
                for r, c in zip(rows, columns, strict=True)
                if np.array_equal(cells[1:-2, r, c] > 0, wanted[1:-2])
            ]
            if len(same) == 1:
                cell[thing] = same[0]
        for i, (row, column) in cell.items():
            for j, (other_row, other_column) in cell.items():
                assert (j in scene.relations["left"][i]) == (other_column < column)
                assert (j in scene.relations["behind"][i]) == (other_row > row)


def test_the_offset_in_a_cell_says_where_the_object_stands(made):
    scene = made.scenes[0]
    cells = made.features[0]
    rows, columns = np.nonzero(cells[0])
    side = 2 * np.sqrt(2) * 3.0 / 8
    found = (columns + 0.5 + cells[-2, rows, columns] - 4) * side
    wanted = [np.dot(thing.position, scene.directions["right"]) for thing in scene.things]
    np.testing.assert_allclose(sorted(found), sorted(wanted), atol=1e-5)


def test_other_words_are_none_of_the_training_words(made, tmp_path):
    usual = set().union(*map(words, made.questions))
    human = build(split="train", images=40, paraphrase=True, cache=tmp_path)
    unusual = [words(question) - usual for question in human.questions]
    assert all(unusual)
    assert len(set().union(*unusual)) > 30
    assert not {word for others in OTHER_WORDS.values() for word in others} & usual
    assert [q.answer for q in human.questions] == [q.answer for q in made.questions[:400]][
        : len(human.questions)
    ]


def test_a_paraphrase_keeps_numbers_articles_and_capitals():
    text = "How many red balls are left of the tiny cube?"
    other = paraphrase(text, random.Random(0), share=1.0)
    assert other[0].isupper()
    assert other.endswith("?")
    assert not {"red", "balls", "tiny", "cube"} & set(other.rstrip("?").split())
    assert "an azure" in paraphrase("Is there a blue thing?", _Last(0), share=1.0)


class _Last(random.Random):
    """Takes the last of every choice."""

    def choice(self, seq):
        return seq[-1]


def test_wrong_options_are_refused_in_a_sentence(tmp_path):
    for settings, message in (
        ({"split": "dev"}, "train, val, test"),
        ({"split": "train", "images": 0}, "images=0"),
        ({"split": "train", "profile": "huge"}, "tiny, full"),
        ({"split": "train", "features": FeatureOptions(grid=5)}, "give grid=6"),
        ({"split": "train", "options": Options(families=("four_hop",))}, "four_hop"),
        ({"split": "train", "options": Options(filters=0)}, "filters=0"),
        ({"split": "train", "options": Options(attributes=("weight",))}, "weight"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**{"images": 2, "cache": tmp_path, **settings})
    with pytest.raises(ValueError, match="grid, pixels"):
        FeatureOptions("boxes")
    for settings, message in (
        ({"combos": "C"}, "CoGenT"),
        ({"colors": ("pink",)}, "'pink'"),
        ({"objects": (3, 11)}, "objects"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(**settings)


def test_attributes_of_one_value_are_not_asked_about():
    assert Options(sizes=("large",)).topics() == ("color", "material", "shape")
