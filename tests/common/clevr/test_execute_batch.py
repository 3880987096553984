"""Batched execution against the one-program executor, hand-worked answers, and bad input."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from common.clevr.arrays.scenes import MOST_BITS, PackedScenes, pack
from common.clevr.execute import Failure, execute
from common.clevr.execute_batch import BatchExecutor
from common.clevr.functions import ANSWERS, ATTRIBUTES, NULL, RELATIONS, SPECIAL, TOKENS
from common.clevr.grammar import Grammar
from common.clevr.programs import to_prefix, to_tree
from common.clevr.questions import read_questions
from common.clevr.scene_graph import SceneGraph, Thing, read_scenes, relations_of

VOCABULARY = (*SPECIAL, *TOKENS)
EVERY = (*VOCABULARY, "equal_object", "jump")  # in the catalogue but not in the data; in neither
ANSWER_WORDS = (*SPECIAL, *ANSWERS)
FAILURES = list(Failure)
DIRECTIONS = {"left": (-1, 0, 0), "right": (1, 0, 0), "behind": (0, 1, 0), "front": (0, -1, 0)}


def scene_of(looks: Sequence[str], positions: np.ndarray, index: int = 0) -> SceneGraph:
    """A scene of things such as "small red metal cube"."""
    points = [tuple(float(x) for x in row) for row in positions]
    things = tuple(Thing(*l.split(), position=p) for l, p in zip(looks, points, strict=True))  # noqa: E741
    return SceneGraph(index, f"{index}.png", "val", things, relations_of(points, DIRECTIONS), {})


def random_scenes(count: int, random: np.random.Generator, most: int = 10) -> list[SceneGraph]:
    """Scenes of 0 to `most` things anywhere, closer than CLEVR's margin too."""
    scenes = []
    for index in range(count):
        n = int(random.integers(most + 1))
        looks = [" ".join(str(random.choice(v)) for v in ATTRIBUTES.values()) for _ in range(n)]
        scenes.append(scene_of(looks, random.uniform(-3, 3, (n, 3)), index))
    return scenes


def random_programs(count: int, seed: int) -> np.ndarray:
    """Programs (count, 30) of all levels, half of them with up to three tokens changed."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([12.0 if t == "scene" else 1.0 for t in EVERY[:-1]])
    parts = []
    for level, limit in (("types", 20), ("canonical", 12), ("template", 25), ("types", 7)):
        grammar = Grammar(EVERY[:-1], limit=limit, level=level)
        state = grammar.start(count // 4)
        columns = []
        for _ in range(30):
            chances = weights * grammar.mask(state)
            columns.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
            state = grammar.advance(state, columns[-1])
        parts.append(torch.stack(columns, 1))
    programs = torch.cat(parts).numpy()
    random = np.random.default_rng(seed)
    for row in programs[::2]:
        for _ in range(random.integers(4)):
            at, length = random.integers(12), len(row)
            text = random.integers(len(EVERY))
            changed = [np.delete(row, at), np.insert(row, at, text), row][random.integers(3)]
            row[:] = np.resize(np.append(changed, 0), length)
            row[at] = text if random.random() < 0.5 else row[at]
    return programs


def compare(programs: np.ndarray, scenes: list[SceneGraph], where: np.ndarray, **options) -> list:
    """Run both executors; return the failures (or None) that they agree on."""
    batch = BatchExecutor(EVERY, ANSWER_WORDS)
    answers, failures = batch(programs, pack(scenes), where, **options)
    assert answers.dtype == np.int64
    assert failures.dtype == np.int8
    outcomes = []
    for row, index, answer, code in zip(programs, where, answers, failures, strict=True):
        tokens = [EVERY[i] for i in row]
        wanted = execute(tokens, scenes[index], **options)
        assert (FAILURES[code] if code >= 0 else None) == wanted.failure, tokens
        assert answer == (0 if wanted.answer is None else ANSWER_WORDS.index(wanted.answer)), tokens
        outcomes.append(wanted.failure)
    return outcomes


def test_ten_thousand_programs_half_of_them_mutated_agree_with_the_executor():
    random = np.random.default_rng(0)
    scenes, programs = random_scenes(200, random), random_programs(10_000, 0)
    outcomes = compare(programs, scenes, random.integers(len(scenes), size=len(programs)))
    counts = {failure: outcomes.count(failure) for failure in (None, *Failure)}
    assert counts.pop(Failure.NO_END) == 0
    assert all(count >= 50 for count in counts.values()), counts
    assert counts[None] > 1000


@pytest.mark.parametrize("options", [{"unique": "first"}, {"require_end": True}])
def test_the_options_agree_with_the_executor(options):
    random = np.random.default_rng(1)
    scenes, programs = random_scenes(50, random), random_programs(1000, 1)
    programs[:, 15:] = np.where(random.random((1000, 1)) < 0.5, programs[:, 15:], 0)
    where = random.integers(len(scenes), size=1000)
    outcomes = compare(programs, scenes, where, **options)
    assert (Failure.UNIQUE_MANY in outcomes) == ("unique" not in options)
    assert (Failure.NO_END in outcomes) == ("require_end" in options)
    with_start = np.pad(programs, ((0, 0), (1, 0)), constant_values=EVERY.index("<START>"))
    again = compare(with_start, scenes, where, **options)
    started = programs[:, 0] == EVERY.index("<START>")  # then a second START is unknown
    assert all(a == b for a, b, s in zip(again, outcomes, started, strict=True) if not s)


def run(text: str, scene: SceneGraph, **options) -> str:
    """The answer, or the failure, of one program."""
    row = [[EVERY.index(token) for token in text.split()]]
    answers, failures = BatchExecutor(EVERY, ANSWER_WORDS)(
        np.array(row).reshape(1, -1).astype(int), pack([scene]), np.array([0]), **options
    )
    return ANSWER_WORDS[answers[0]] if failures[0] < 0 else str(FAILURES[failures[0]])


THREE = scene_of(  # from left to right, and from back to front
    ["small red metal cube", "large red rubber sphere", "small blue metal cylinder"],
    np.array([[-2, 2, 0], [0, 0, 0], [2, -2, 0]]),
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("count scene", "3"),
        ("exist filter_color[gray] scene", "no"),
        ("query_shape unique filter_material[rubber] scene", "sphere"),
        ("query_size unique filter_color[red] scene", "unique_many"),
        ("query_size unique filter_color[gray] scene", "unique_empty"),
        ("count relate[left] unique filter_shape[cube] scene", "0"),
        ("count relate[right] unique filter_shape[cube] scene", "2"),
        ("count relate[behind] unique filter_shape[cylinder] scene", "2"),
        ("query_color unique relate[front] unique filter_shape[sphere] scene", "blue"),
        ("count same_material unique filter_shape[sphere] scene", "0"),
        ("query_shape unique same_size unique filter_shape[cube] scene", "cylinder"),
        ("count union filter_size[small] scene filter_color[red] scene", "3"),
        ("count intersect filter_size[small] scene filter_color[red] scene", "1"),
        ("exist intersect filter_color[blue] scene filter_color[red] scene", "no"),
        ("less_than count filter_color[blue] scene count scene", "yes"),
        ("less_than count scene count filter_color[blue] scene", "no"),
        ("greater_than count scene count filter_color[blue] scene", "yes"),
        ("less_than count scene count scene", "no"),
        ("equal_integer count scene count scene", "yes"),
        (
            "equal_color query_color unique filter_shape[cube] scene "
            "query_color unique filter_shape[sphere] scene",
            "yes",
        ),
        ("equal_object unique filter_size[large] scene unique filter_shape[sphere] scene", "yes"),
        ("", "underflow"),
        ("<START>", "underflow"),
        ("<END> count scene", "underflow"),
        ("count scene scene", "trailing"),
        ("count unique scene", "type_error"),
        ("unique filter_size[large] scene", "type_error"),
        ("count <START>", "unknown"),
        ("count jump", "unknown"),
        # The right branch runs first, so its failure is the one that counts.
        (
            "equal_size query_size unique filter_color[gray] scene query_size unique scene",
            "unique_many",
        ),
    ],
)
def test_answers_worked_out_by_hand(text, answer):
    assert run(text, THREE) == answer


def test_the_first_of_several_is_the_one_with_the_lowest_index():
    text = "query_shape unique filter_color[red] scene"
    assert run(text, THREE, unique="first") == "cube"
    assert run("query_shape unique filter_color[gray] scene", THREE, unique="first") == (
        "unique_empty"
    )


def test_no_end_comes_before_underflow_and_after_other_faults():
    assert run("count scene", THREE, require_end=True) == "no_end"
    assert run("count scene <END>", THREE, require_end=True) == "3"
    assert run("count <NULL> <END>", THREE, require_end=True) == "no_end"
    assert run("", THREE, require_end=True) == "no_end"
    assert run("count <END>", THREE, require_end=True) == "underflow"
    assert run("count count", THREE, require_end=True) == "type_error"


def test_the_real_sample_is_answered_as_its_files_say(shared_data: Path):
    folder = shared_data / "clevr_small"
    batch, asked = BatchExecutor(VOCABULARY, ANSWER_WORDS), 0
    for split in ("train", "val", "test"):
        scenes = read_scenes(folder / "scenes" / f"CLEVR_{split}_scenes.json")
        place = {scene.image_index: i for i, scene in enumerate(scenes)}
        questions = read_questions(folder / "questions" / f"CLEVR_{split}_questions.json")
        programs = [to_prefix(to_tree(question.program)) for question in questions]
        rows = np.zeros((len(programs), max(map(len, programs))), np.uint8)
        for row, tokens in zip(rows, programs, strict=True):
            row[: len(tokens)] = [VOCABULARY.index(token) for token in tokens]
        where = np.array([place[question.image_index] for question in questions])
        answers, failures = batch(rows, pack(scenes), where)
        assert (failures == -1).all()
        assert [ANSWER_WORDS[a] for a in answers] == [question.answer for question in questions]
        asked += len(questions)
    assert asked == 116


def test_the_order_of_the_vocabularies_only_names_the_answers():
    random = np.random.default_rng(2)
    scenes, programs = random_scenes(20, random), random_programs(400, 2)
    where, packed = random.integers(20, size=400), pack(scenes)
    answers, failures = BatchExecutor(EVERY, ANSWER_WORDS)(programs, packed, where)
    order, words = random.permutation(len(EVERY)), random.permutation(len(ANSWER_WORDS))
    other = BatchExecutor([EVERY[i] for i in order], [ANSWER_WORDS[i] for i in words])
    again, faults = other(np.argsort(order)[programs], packed, where)
    assert (faults == failures).all()
    assert (words[again] == answers)[failures < 0].all()


def test_tensors_of_any_whole_type_do_as_well_as_arrays():
    random = np.random.default_rng(3)
    scenes, programs = pack(random_scenes(20, random)), random_programs(40, 3)
    where, batch = random.integers(20, size=40), BatchExecutor(EVERY, ANSWER_WORDS)
    expected = batch(programs, scenes, where)
    for kind in (torch.uint8, torch.int64):
        found = batch(torch.from_numpy(programs).to(kind), scenes, torch.from_numpy(where))
        assert all((a == b).all() for a, b in zip(expected, found, strict=True))
    empty = batch(programs[:0], scenes, where[:0])
    assert [part.shape for part in empty] == [(0,), (0,)]


def test_scenes_and_programs_may_be_far_larger_than_those_of_the_data():
    looks = ["small red metal cube"] * (MOST_BITS - 1) + ["large red metal cube"]
    row = np.stack([np.arange(MOST_BITS), np.zeros(MOST_BITS), np.zeros(MOST_BITS)], 1)
    scene = scene_of(looks, row)
    assert run("count scene", scene) == "<UNK>"  # 62 is not among the answers
    assert run("count relate[right] unique filter_size[large] scene", scene) == "0"
    assert run("exist relate[left] unique filter_size[large] scene", scene) == "yes"
    assert run("query_size unique scene", scene, unique="first") == "small"
    deep = ["count", *["union"] * 100, *["scene"] * 101]
    assert run(" ".join(deep), THREE) == "3"
    assert run(" ".join(deep[:-1]), THREE) == "underflow"


def test_packed_scenes_hold_attributes_objects_and_relations():
    alone = scene_of(["large yellow rubber cylinder"], np.zeros((1, 3)))
    packed = pack([THREE, alone])
    assert packed.mask.tolist() == [[True] * 3, [True, False, False]]
    assert packed.attributes[0].tolist() == [[0, 1, 1, 0], [1, 1, 0, 1], [0, 2, 1, 2]]
    assert packed.attributes[1, 0].tolist() == [1, 7, 0, 2]
    left = packed.relations[0, RELATIONS.index("left")]
    assert left.tolist() == [[False] * 3, [True, False, False], [True, True, False]]
    assert not packed.relations[1].any()
    types = (packed.attributes.dtype, packed.mask.dtype, packed.relations.dtype)
    assert types == (np.int8, bool, bool)


def test_too_many_objects_and_indices_out_of_range_are_refused_by_name():
    looks = ["small red metal cube"] * (MOST_BITS + 1)
    crowd = scene_of(looks, np.zeros((len(looks), 3)), 7)
    with pytest.raises(ValueError, match=r"scene 1 \(7.png\) has 63 objects"):
        pack([THREE, crowd])
    n = MOST_BITS + 1
    large = PackedScenes(
        np.zeros((1, n, 4), np.int8), np.ones((1, n), bool), np.zeros((1, 4, n, n), bool)
    )
    batch, packed = BatchExecutor(VOCABULARY, ANSWER_WORDS), pack([THREE])
    good = np.array([[VOCABULARY.index("count"), VOCABULARY.index("scene")]] * 2)
    with pytest.raises(ValueError, match="up to 62 objects"):
        batch(good[:1], large, np.array([0]))
    with pytest.raises(ValueError, match="program 1 names token 44, but there are 44 tokens"):
        batch(np.array([[5, 6], [5, 44]]), packed, np.array([0, 0]))
    with pytest.raises(ValueError, match="program 0 names token -1"):
        batch(np.array([[-1, 6], [5, 44]]), packed, np.array([0, 0]))
    with pytest.raises(ValueError, match="program 1 names scene 1, but there are 1 scenes"):
        batch(good, packed, np.array([0, 1]))
    with pytest.raises(ValueError, match="2 programs need as many"):
        batch(good, packed, np.array([0]))
    with pytest.raises(ValueError, match="programs must be whole numbers in 2 dimensions"):
        batch(good.astype(float), packed, np.array([0, 0]))
    with pytest.raises(ValueError, match="lacks <UNK>"):
        BatchExecutor(VOCABULARY, ANSWERS)


def test_nothing_but_null_is_the_empty_program():
    null = VOCABULARY.index(NULL)
    batch = BatchExecutor(VOCABULARY, ANSWER_WORDS)
    answers, failures = batch(np.full((2, 5), null), pack([THREE]), np.zeros(2, int))
    assert answers.tolist() == [0, 0]
    assert {FAILURES[code] for code in failures} == {Failure.UNDERFLOW}
