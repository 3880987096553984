"""Sentences of any program, and the parser that reads them back."""

import random

import numpy as np
import pytest
import torch

from common.clevr.execute import execute
from common.clevr.functions import ANSWERS, ATTRIBUTES, RELATIONS, SPECIAL, TOKENS, parse_token
from common.clevr.grammar import Grammar
from common.clevr.scene_graph import SceneGraph, Thing, relations_of
from common.clevr.vocabulary import Vocabulary, standard
from learning_by_asking.language.parser import parse
from learning_by_asking.language.sentences import add_words, encode_sentences, sentence

VOCABULARY = (*SPECIAL, *TOKENS)
DIRECTIONS = {"left": (-1, 0, 0), "right": (1, 0, 0), "behind": (0, 1, 0), "front": (0, -1, 0)}


def draw_programs(count: int, *, level: str, seed: int) -> list[tuple[str, ...]]:
    """Random well-typed programs, as tuples of tokens without START and END."""
    generator = torch.Generator().manual_seed(seed)
    grammar = Grammar(VOCABULARY, level=level)
    weights = torch.tensor([4.0 if text == "scene" else 1.0 for text in VOCABULARY])
    state, columns = grammar.start(count), []
    for _ in range(26):
        chances = weights * grammar.mask(state)
        columns.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
        state = grammar.advance(state, columns[-1])
    rows = torch.stack(columns, 1).tolist()
    return [tuple(VOCABULARY[i] for i in row if i >= len(SPECIAL)) for row in rows]


def order_filters(program: list[str]) -> list[str]:
    """Each run of filters in the data's order, size next to the scene, no filter twice."""
    out: list[str] = []
    run: list[str] = []
    for text in program:
        if text.startswith("filter_"):
            run.append(text)
            continue
        order = [f"filter_{name}" for name in ATTRIBUTES]
        run = list(dict.fromkeys(reversed(run)))
        out += sorted(run, key=lambda each: order.index(parse_token(each)[0]))[::-1]
        out.append(text)
        run = []
    return out


def random_scene(chance: random.Random) -> SceneGraph:
    things, points = [], []
    for _ in range(chance.randrange(1, 7)):
        points.append((chance.uniform(-3, 3), chance.uniform(-3, 3), 0.0))
        looks = [chance.choice(values) for values in ATTRIBUTES.values()]
        things.append(Thing(*looks, position=points[-1]))
    relations = relations_of(points, DIRECTIONS)
    return SceneGraph(0, "0.png", "val", tuple(things), relations, {})


RED = "filter_color[red]"
SENTENCES = {
    ("count", "scene"): "How many things are there?",
    ("exist", "filter_shape[cube]", RED, "scene"): "Are there any red cubes?",
    ("query_color", "unique", "filter_size[small]", "scene"): "What color is the small thing?",
    (
        "count",
        "filter_shape[cube]",
        "relate[left]",
        "unique",
        "filter_shape[sphere]",
        "scene",
    ): "How many cubes are left of the sphere?",
    (
        "exist",
        "filter_shape[cube]",
        "same_size",
        "unique",
        RED,
        "scene",
    ): "Is there another cube of the same size as the red thing?",
    (
        "count",
        "union",
        "filter_shape[cube]",
        "scene",
        "relate[behind]",
        "unique",
        RED,
        "scene",
    ): "How many things are either cubes or behind the red thing?",
    (
        "less_than",
        "count",
        "filter_shape[cube]",
        "scene",
        "count",
        "filter_shape[sphere]",
        "scene",
    ): "Are there fewer cubes than spheres?",
    (
        "equal_size",
        "query_size",
        "unique",
        RED,
        "scene",
        "query_size",
        "unique",
        "filter_shape[cube]",
        "scene",
    ): "Does the red thing have the same size as the cube?",
}


@pytest.mark.parametrize(("program", "text"), SENTENCES.items(), ids=list(SENTENCES.values()))
def test_a_sentence_written_by_hand_is_one_that_its_program_has(program, text):
    assert parse(text) == list(program)
    assert text in {sentence(program, seed) for seed in range(600)}


def test_the_parser_inverts_every_sentence_of_canonical_programs():
    programs = draw_programs(3000, level="canonical", seed=0)
    assert len(set(programs)) > 1500
    assert {p[0] for p in programs} >= {"count", "exist", "query_size", "equal_color", "less_than"}
    for seed, program in enumerate(programs):
        assert parse(sentence(program, seed)) == list(program)


def test_the_parser_inverts_any_well_typed_program_up_to_the_order_of_filters():
    programs = draw_programs(2000, level="types", seed=1)
    nested = [p for p in programs if p.count("union") + p.count("intersect") > 1]
    assert len(nested) > 100
    for seed, program in enumerate(programs):
        assert parse(sentence(program, seed)) == order_filters(program), sentence(program, seed)


@pytest.mark.slow
def test_the_parser_inverts_100_thousand_sentences():
    for level, seed in (("canonical", 2), ("types", 3)):
        for number, program in enumerate(draw_programs(50_000, level=level, seed=seed)):
            assert parse(sentence(program, number)) == order_filters(program)


def test_what_the_parser_reads_has_the_answer_of_the_program():
    chance = random.Random(0)
    answered = 0
    for program in draw_programs(1500, level="types", seed=4):
        scene = random_scene(chance)
        wanted = execute(program, scene)
        read = execute(parse(sentence(program, chance.randrange(1000))), scene)
        assert read == wanted
        answered += wanted.answer is not None
    assert answered > 100


def test_a_sentence_depends_on_its_program_and_seed_alone():
    program = draw_programs(1, level="canonical", seed=5)[0]
    texts = [sentence(program, seed) for seed in range(40)]
    assert texts == [sentence(program, seed) for seed in range(40)]
    assert len(set(texts)) > 10


@pytest.mark.parametrize("program", [("count",), ("count", "dance"), ("scene",), ()])
def test_a_malformed_program_has_no_sentence(program):
    with pytest.raises(ValueError, match="has no sentence"):
        sentence(program)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("How many pink cubes are there?", "word 3, 'pink'"),
        ("How many cubes are there now?", "word 6, 'now'"),
        ("Is there a cube that is left of?", "its end is missing"),
        ("Why?", "word 1, 'Why'"),
        ("", "word 1, ''"),
        (
            f"Is there a cube{' that is left of the cube' * 2000}?",
            "has 12004 words: give 400 at most",
        ),
    ],
)
def test_the_parser_names_the_word_that_does_not_fit(text, fault):
    with pytest.raises(ValueError, match=fault):
        parse(text)


def test_sentences_use_words_of_the_released_vocabulary_only():
    words = standard()
    assert add_words(words) == words
    programs = draw_programs(1000, level="types", seed=6)
    rows = np.zeros((1000, 27), np.int64)
    for row, program in zip(rows, programs, strict=True):
        row[: len(program) + 2] = words.encode_program(program)
    encoded = encode_sentences(rows, words, np.arange(1000))
    for row, program in zip(encoded.tolist(), programs, strict=True):
        assert parse(words.decode_question(row)) == order_filters(program)


def test_a_vocabulary_without_words_gains_those_of_the_sentences_behind_its_own():
    numbers = {text: i for i, text in enumerate((*SPECIAL, "zebra"))}
    full = standard()
    small = Vocabulary(numbers, full.program, full.answer)
    grown = add_words(small)
    assert grown.words[:5] == small.words
    assert set(RELATIONS) - {"front"} <= set(grown.words[5:])
    rows = np.array([full.encode_program(("count", RED, "scene")), [1, 4, 2, 0, 0]])
    encoded = encode_sentences(rows, grown, np.array([3, 3]))
    assert parse(grown.decode_question(encoded[0])) == ["count", RED, "scene"]
    assert encoded[1].tolist()[:3] == [1, 2, 0]  # malformed: no sentence
    with pytest.raises(ValueError, match="not in the vocabulary"):
        encode_sentences(rows, small, np.array([3, 3]))
    assert len(full.answer) == len(SPECIAL) + len(ANSWERS)
