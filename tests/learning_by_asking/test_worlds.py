"""Each option of the built-in world shows in its scenes, its questions or its maps."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from common.clevr.arrays.grid import channels
from common.clevr.builtin import BuiltIn as Made
from common.clevr.functions import ATTRIBUTES
from common.clevr.generation.catalogue import select
from common.clevr.generation.tiny import FAMILIES
from common.clevr.programs import Node
from learning_by_asking import data
from learning_by_asking.config import BuiltIn, Data

from .small import settings

PLAIN = BuiltIn(train_images=10, val_images=4, per_image=5)
FAST = {template.name for template in select(FAMILIES)}  # of the profile tiny


def build(split: str = "train", **changed) -> Made:
    return data.build_builtin(replace(PLAIN, **changed), split)


# What a world has


def values(made: Made, attribute: str) -> set[str]:
    return {getattr(thing, attribute) for scene in made.scenes for thing in scene.things}


def numbers(made: Made) -> set[int]:
    return {len(scene.things) for scene in made.scenes}


def topics(made: Made) -> set[str]:
    """The attributes that programs name: filter_color, query_color, equal_color, same_color."""
    functions = {node.function for question in made.questions for node in question.program}
    named = {function.partition("_")[2] for function in functions}
    return named & set(ATTRIBUTES)


def chain(program: tuple[Node, ...]) -> int:
    """The most filters that follow one another."""
    lengths: list[int] = []
    for node in program:
        before = max((lengths[i] for i in node.inputs), default=0)
        lengths.append(before + 1 if node.function.startswith("filter_") else 0)
    return max(lengths)


def filters(made: Made) -> int:
    return max(chain(question.program) for question in made.questions)


def templates(made: Made) -> set[str]:
    return {f"{question.template}/{question.template_index}" for question in made.questions}


def most(made: Made) -> int:
    """The largest number of questions about an image."""
    return max(Counter(question.image_index for question in made.questions).values())


def cells(made: Made) -> tuple[int, ...]:
    return made.features.shape[2:]


SHOWN = [
    ("objects", [6, 6], lambda made: numbers(made) == {6}),
    ("objects", [1, 2], lambda made: numbers(made) == {1, 2}),
    ("colors", ["cyan", "gray"], lambda made: values(made, "color") == {"cyan", "gray"}),
    ("shapes", ["cube", "sphere"], lambda made: values(made, "shape") == {"cube", "sphere"}),
    ("materials", ["metal"], lambda made: values(made, "material") == {"metal"}),
    ("sizes", ["large"], lambda made: values(made, "size") == {"large"}),
    ("attributes", ["material", "size"], lambda made: topics(made) == {"material", "size"}),
    ("families", ["one_hop/0", "zero_hop/1"],
     lambda made: templates(made) == {"one_hop/0", "zero_hop/1"}),
    ("filters", 1, lambda made: filters(made) == 1),
    ("filters", 2, lambda made: filters(made) == 2),
    ("grid", 7, lambda made: cells(made) == (7, 7)),
    ("per_image", 2, lambda made: most(made) == 2),
    ("train_images", 7, lambda made: len(made.scenes) == len(made.features) == 7),
    ("profile", "full", lambda made: bool(templates(made) - FAST)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "is_shown"), SHOWN, ids=[f"{row[0]}={row[1]}" for row in SHOWN]
)
def test_an_option_shows_in_the_world_and_its_default_does_not(option, value, is_shown):
    assert is_shown(build(**{option: value}))
    assert not is_shown(build())


def test_training_and_test_images_are_counted_apart():
    made = build("train", train_images=3, val_images=2), build("val", train_images=3, val_images=2)
    assert [len(each.scenes) for each in made] == [3, 2]
    assert [len(each.features) for each in made] == [3, 2]


def test_another_seed_is_another_world_in_every_split():
    spots = [
        {thing.position for scene in build(split, seed=seed).scenes for thing in scene.things}
        for split in ("train", "val")
        for seed in (0, 1)
    ]
    assert all(a.isdisjoint(b) for a, b in combinations(spots, 2))


def test_images_have_the_height_and_width_that_are_said():
    made = build(features="pixels", train_images=2, height=24, width=40)
    assert made.features.shape == (2, 3, 24, 40)


def test_hidden_channels_are_found_where_attributes_have_few_values():
    few = replace(PLAIN, colors=["red", "blue"], sizes=["large"], shapes=["cube", "sphere"])
    cfg = Data(name="builtin", builtin=replace(few, hidden=["material"]))
    words = data.find_vocabulary(cfg)
    maps = data.read_split(cfg, "train", words).features[range(PLAIN.train_images)]
    names = channels(data.options_of(few, "").world(64, 64, rendered=False))
    shown = {name.partition("=")[0] for name, part in zip(names, maps.unbind(1), strict=True)
             if part.any()}  # fmt: skip
    assert shown == {"object", "color", "size", "shape", "right", "behind"}


def test_fresh_questions_of_the_template_generator_have_the_options_of_the_world(tmp_path):
    own = replace(PLAIN, attributes=["color", "size"], families=["zero_hop"], filters=1)
    cfg = settings(tmp_path, budget=20, data=Data(name="builtin", init=5, builtin=own))
    world = data.build(cfg.data, cfg.seed)
    rows = data.generate_questions(cfg, world)
    programs = [world.words.decode_program(row) for row in rows.programs]
    named = {word.partition("[")[0] for program in programs for word in program}
    assert named & {f"filter_{name}" for name in ATTRIBUTES} == {"filter_color", "filter_size"}
    assert max(sum(word.startswith("filter_") for word in program) for program in programs) == 1
    assert not any(word.startswith("relate") for word in named)


@pytest.mark.parametrize("profile", ["tiny", "full"])
def test_fresh_questions_are_of_the_profile_of_the_world(profile, tmp_path):
    own = replace(PLAIN, profile=profile, train_images=3)
    cfg = settings(tmp_path, budget=60, data=Data(name="builtin", init=5, builtin=own))
    rows = data.generate_questions(cfg, data.build(cfg.data, cfg.seed))
    fast = {template.family for template in select(FAMILIES)}
    assert (set(rows.families.tolist()) <= fast) == (profile == "tiny")
