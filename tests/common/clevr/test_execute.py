import random

import numpy as np
import pytest
import torch

from common.clevr.accuracy import GROUPS, TYPES, TypeAccuracy, exact_match, type_of
from common.clevr.execute import (
    Failure,
    Result,
    answer_text,
    check_program,
    execute,
)
from common.clevr.functions import ANSWERS, ATTRIBUTES, SPECIAL, TOKENS, Kind, signature
from common.clevr.programs import Tree, from_prefix
from common.clevr.scene_graph import SceneGraph, Thing, relations_of

DIRECTIONS = {
    "left": (-1.0, 0.0, 0.0),
    "right": (1.0, 0.0, 0.0),
    "behind": (0.0, 1.0, 0.0),
    "front": (0.0, -1.0, 0.0),
}


def scene_of(*things: tuple[str, float, float]) -> SceneGraph:
    """A scene of things, each "size color material shape" at x (to the right), y (to the back)."""
    made = tuple(Thing(*look.split(), position=(x, y, 0.35)) for look, x, y in things)
    relations = relations_of(np.array([thing.position for thing in made]), DIRECTIONS)
    return SceneGraph(0, "a.png", "val", made, relations, DIRECTIONS)


# From left to right 0 1 2 3, from front to back 2 0 1 3.
SCENE = scene_of(
    ("large red rubber cube", -2, 0),
    ("small blue metal sphere", 0, 1),
    ("small red metal cylinder", 1, -1.5),
    ("large blue metal cube", 2.5, 2),
)
RED = "filter_color[red] scene"  # 0, 2
SPHERE = "filter_shape[sphere] scene"  # 1
GREEN = "filter_color[green] scene"  # none
RED_CUBE = "filter_shape[cube] filter_color[red] scene"  # 0


def answer(program: str, scene: SceneGraph = SCENE, **options) -> Result:
    return execute(program.split(), scene, **options)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("count scene", "4"),
        (f"exist {SPHERE}", "yes"),
        (f"exist {GREEN}", "no"),
        (f"count filter_size[small] {RED}", "1"),
        (f"query_size unique {SPHERE}", "small"),
        (f"query_color unique {SPHERE}", "blue"),
        (f"query_material unique {SPHERE}", "metal"),
        (f"query_shape unique {SPHERE}", "sphere"),
        # Nothing else is a sphere: the object itself does not count.
        (f"count same_shape unique {SPHERE}", "0"),
        (f"exist same_shape unique {SPHERE}", "no"),
        (f"count same_material unique {SPHERE}", "2"),
        (f"query_shape unique same_color unique {RED_CUBE}", "cylinder"),
        (f"query_shape unique same_size unique {SPHERE}", "cylinder"),
        # The red cube is leftmost.
        (f"count relate[left] unique {RED_CUBE}", "0"),
        (f"count relate[right] unique {RED_CUBE}", "3"),
        (f"query_shape unique relate[front] unique {RED_CUBE}", "cylinder"),
        (f"count relate[behind] unique {RED_CUBE}", "2"),
        # {0, 2} and {1, 2}
        (f"count union {RED} filter_size[small] scene", "3"),
        (f"query_shape unique intersect {RED} filter_size[small] scene", "cylinder"),
        (f"exist intersect {RED} {SPHERE}", "no"),
        (f"equal_integer count {RED} count filter_color[blue] scene", "yes"),
        (f"equal_integer count {RED} count {SPHERE}", "no"),
        # A tie is neither less nor greater; the first input is the left operand.
        (f"less_than count {RED} count filter_color[blue] scene", "no"),
        (f"greater_than count {RED} count filter_color[blue] scene", "no"),
        (f"less_than count {SPHERE} count {RED}", "yes"),
        (f"less_than count {RED} count {SPHERE}", "no"),
        (f"greater_than count {RED} count {SPHERE}", "yes"),
        (f"equal_color query_color unique {SPHERE} query_color unique {RED_CUBE}", "no"),
        (f"equal_object unique {SPHERE} unique {SPHERE}", "yes"),
        (f"equal_object unique {SPHERE} unique {RED_CUBE}", "no"),
    ],
)
def test_answers_worked_out_by_hand(program: str, expected: str):
    assert answer(program) == Result(expected, None)


def test_unique_needs_exactly_one_object_and_may_take_the_first_of_several():
    assert answer(f"query_shape unique {GREEN}").failure is Failure.UNIQUE_EMPTY
    assert answer(f"query_shape unique {RED}").failure is Failure.UNIQUE_MANY
    assert answer(f"query_shape unique {RED}", unique="first").answer == "cube"
    assert answer(f"query_shape unique {GREEN}", unique="first").failure is Failure.UNIQUE_EMPTY


def test_another_rule_for_unique_is_refused():
    with pytest.raises(ValueError, match="not 'random'"):
        answer(f"query_shape unique {SPHERE}", unique="random")


def test_of_two_unique_that_fail_the_later_one_in_the_sequence_decides():
    many, none = f"query_size unique {RED}", f"query_size unique {GREEN}"
    assert answer(f"equal_size {many} {none}").failure is Failure.UNIQUE_EMPTY
    assert answer(f"equal_size {none} {many}").failure is Failure.UNIQUE_MANY


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("", "underflow"),
        ("<START> <END>", "underflow"),
        ("<NULL> count scene", "underflow"),
        ("count", "underflow"),
        ("equal_integer count scene", "underflow"),
        ("count scene scene", "trailing"),
        ("count scene <UNK>", "trailing"),
        ("scene", "type_error"),  # a set is no answer
        ("unique scene", "type_error"),
        ("count unique scene", "type_error"),
        ("query_color scene", "type_error"),
        ("equal_color query_color unique scene query_size unique scene", "type_error"),
        ("exist exist exist scene", "type_error"),
        ("count <UNK> scene", "unknown"),
        ("count <START> scene", "unknown"),
        ("count filter_color[pink] scene", "unknown"),
        # The first fault from the left counts, whatever the sets hold.
        ("query_size unique filter_color[green] count", "type_error"),
        ("count count <UNK> scene scene", "type_error"),
    ],
)
def test_a_malformed_program_fails_for_its_first_fault_in_reading_order(program: str, failure: str):
    assert answer(program) == Result(None, Failure(failure))


def test_end_is_asked_for_only_on_request():
    assert answer("<START> count scene <END> count").answer == "4"
    assert answer("count scene <NULL> <NULL>").answer == "4"
    assert answer("count scene", require_end=True).failure is Failure.NO_END
    assert answer("count scene <NULL>", require_end=True).failure is Failure.NO_END
    assert answer("count filter_color[red]", require_end=True).failure is Failure.NO_END
    assert answer("count scene <END>", require_end=True).answer == "4"
    assert answer("count <END>", require_end=True).failure is Failure.UNDERFLOW
    assert answer("count scene scene", require_end=True).failure is Failure.TRAILING


def test_a_scene_without_objects_is_empty_and_no_error():
    empty = scene_of()
    assert answer("count scene", empty).answer == "0"
    assert answer("exist filter_color[red] scene", empty).answer == "no"
    assert answer("query_color unique scene", empty).failure is Failure.UNIQUE_EMPTY


def reference(tree: Tree, things: tuple[Thing, ...]) -> object:
    """Run a sound program by recursion, relations from the coordinates; ValueError: unique."""
    name, _, value = tree.token.rstrip("]").partition("[")
    inputs = [reference(child, things) for child in tree.children]
    everything = set(range(len(things)))
    verb, attribute = name.split("_")[0], name.split("_")[-1]
    if name == "scene":
        return everything
    if name == "unique":
        (only,) = inputs[0]
        return (only,)
    if verb == "filter":
        return {i for i in inputs[0] if vars(things[i])[attribute] == value}
    if name == "relate":
        here = things[inputs[0][0]].position
        axis, sign = {"left": (0, -1), "right": (0, 1), "behind": (1, 1), "front": (1, -1)}[value]
        return {i for i in everything if sign * (things[i].position[axis] - here[axis]) > 0.2}
    if verb == "same":
        look = vars(things[inputs[0][0]])[attribute]
        return {i for i in everything - set(inputs[0]) if vars(things[i])[attribute] == look}
    if verb == "query":
        return vars(things[inputs[0][0]])[attribute]
    left, right = (*inputs, None)[:2]
    outcome = {
        "union": lambda: left | right,
        "intersect": lambda: left & right,
        "count": lambda: len(left),
        "exist": lambda: "yes" if left else "no",
        "less": lambda: "yes" if left < right else "no",
        "greater": lambda: "yes" if left > right else "no",
        "equal": lambda: "yes" if left == right else "no",
    }
    return outcome[verb]()


def random_scene(draw: random.Random) -> SceneGraph:
    things = []
    for _ in range(draw.randrange(1, 7)):
        look = " ".join(draw.choice(values[:3]) for values in ATTRIBUTES.values())
        things.append((look, draw.uniform(-3, 3), draw.uniform(-3, 3)))
    return scene_of(*things)


def random_program(kinds: tuple[Kind, ...], depth: int, draw: random.Random) -> list[str]:
    choices = [text for text in TOKENS if signature(text).output in kinds]
    text = "scene" if depth <= 0 and Kind.OBJECTS in kinds else draw.choice(choices)
    rest = [random_program((kind,), depth - 1, draw) for kind in signature(text).inputs]
    return [text, *(each for part in rest for each in part)]


ROOTS = tuple(set(Kind) - {Kind.OBJECT, Kind.OBJECTS})


def test_random_sound_programs_agree_with_a_recursive_reference():
    draw = random.Random(1)
    answered = 0
    for _ in range(1500):
        scene = random_scene(draw)
        tokens = random_program(ROOTS, draw.randrange(1, 6), draw)
        result = execute(tokens, scene)
        try:
            expected = str(reference(from_prefix(tokens), scene.things))
        except ValueError:
            assert result.failure in (Failure.UNIQUE_EMPTY, Failure.UNIQUE_MANY), tokens
        else:
            assert result == Result(expected, None), tokens
            assert expected in ANSWERS
            answered += 1
    assert answered > 300


def test_any_sequence_of_tokens_gives_an_answer_or_one_failure():
    draw = random.Random(2)
    words = (*TOKENS, *SPECIAL, "nonsense")
    seen = set()
    for _ in range(2000):
        tokens = random_program(ROOTS, draw.randrange(4), draw)
        for _ in range(draw.randrange(3)):
            tokens[draw.randrange(len(tokens))] = draw.choice(words)
        result = execute(tokens, SCENE, require_end=draw.random() < 0.1)
        assert (result.answer is None) != (result.failure is None)
        assert result.failure is not None or result.answer in ANSWERS
        seen.add(result.failure)
    assert seen == {None, *Failure}


def test_a_program_is_sound_exactly_if_it_fails_for_nothing_but_unique():
    draw = random.Random(3)
    for _ in range(500):
        tokens = random_program(ROOTS, 3, draw)
        tokens[draw.randrange(len(tokens))] = draw.choice(TOKENS)
        result, sound = execute(tokens, SCENE), check_program(tokens)
        unique = result.failure in (None, Failure.UNIQUE_EMPTY, Failure.UNIQUE_MANY)
        assert unique == isinstance(sound, list)
        assert unique or sound is result.failure


def test_a_set_of_objects_is_no_answer():
    assert [answer_text(value) for value in (3, True, "red")] == ["3", "yes", "red"]
    with pytest.raises(ValueError, match="no answer"):
        answer_text((0, 1))


def test_there_are_thirteen_types_in_five_groups():
    assert len(TYPES) == 13
    assert len(GROUPS) == 5
    assert type_of("exist") == 0
    assert type_of("scene") == -1


def test_accuracies_are_means_over_questions_of_all_of_a_group_and_of_a_type():
    rng = np.random.default_rng(0)
    types = rng.integers(-1, 12, 500)  # none of the last type
    correct = rng.random(500) < 0.6
    accuracy = TypeAccuracy()
    accuracy.update(torch.tensor(correct[:200]), torch.tensor(types[:200]))
    accuracy.update(correct[200:], types[200:].astype(np.int8))
    figures = accuracy.compute()
    assert figures["overall"] == pytest.approx(100 * correct.mean())
    for index, name in enumerate(TYPES[:-1]):
        assert figures[name] == pytest.approx(100 * correct[types == index].mean())
    for name, kinds in GROUPS.items():
        inside = np.isin(types, [TYPES.index(kind) for kind in kinds])
        assert figures[name] == pytest.approx(100 * correct[inside].mean())
    assert np.isnan(figures["equal_shape"])
    assert len(figures) == 1 + 13 + 3  # exist and count are a type and a group at once


def test_a_wrong_type_is_refused_with_its_question():
    with pytest.raises(ValueError, match="question 1 has the type 13"):
        TypeAccuracy().update(torch.tensor([True, True]), torch.tensor([0, 13]))
    with pytest.raises(ValueError, match="a bool and a type"):
        TypeAccuracy().update(torch.ones(2), torch.tensor([0, 1]))


def test_programs_match_whatever_their_padding_start_and_end():
    true = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 5, 2, 0, 0, 0], [1, 5, 6, 7, 8, 2]])
    assert exact_match(true, true).tolist() == [True] * 3
    assert exact_match(true[:, 1:], true).tolist() == [True] * 3
    predicted = torch.tensor([[5, 6, 2], [5, 6, 2], [5, 6, 7]])
    assert exact_match(predicted, true).tolist() == [True, False, False]
    # What follows END does not count; without END the matrix ends the program.
    predicted = np.array([[5, 6, 2, 9], [5, 0, 9, 9], [5, 6, 7, 8]])
    assert exact_match(predicted, true.numpy()).tolist() == [True] * 3
    assert exact_match(torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[1, 2]])).tolist() == [
        True
    ]
    with pytest.raises(ValueError, match="3 predicted programs, but 1"):
        exact_match(true, true[:1])
