"""Proposals on a small built-in world: where they come from, what is dropped, how many remain."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from common.clevr import builtin
from common.clevr.accuracy import TYPES
from common.clevr.arrays.encode import encode
from common.clevr.arrays.features import Features
from common.clevr.arrays.scenes import pack
from common.clevr.dataset import Questions
from common.clevr.execute_batch import BatchExecutor
from common.clevr.grammar import Grammar
from common.clevr.programs import canonical
from common.clevr.vocabulary import standard
from learning_by_asking.asking.draws import (
    build_draw,
    build_generator,
    draw_typed,
    find_types,
    train_generator,
)
from learning_by_asking.asking.propose import Asked, Draw, Generator, Proposals, diversity, propose

WORDS = standard()
SMALL = builtin.Options(
    objects=(3, 5),
    colors=("red", "green", "blue", "yellow"),
    attributes=("color", "shape"),
    families=("zero_hop", "one_hop", "compare_integer/3"),
    filters=2,
)


@cache
def world() -> tuple[Questions, builtin.BuiltIn]:
    """60 images with 10 questions each."""
    made = builtin.build(
        split="train", images=60, options=SMALL, features=builtin.FeatureOptions(grid=6)
    )
    rows = encode(made.questions, WORDS)
    return Questions("train", rows, WORDS, Features(made.features)), made


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def program(text: str, length: int = 27) -> list[int]:
    ids = WORDS.encode_program(text.split())
    return ids + [0] * (length - len(ids))


def always(*texts: str) -> Draw:
    """Draws these programs in turn."""
    rows = torch.tensor([program(text) for text in texts])

    def draw(images: Tensor, maps: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return rows[torch.arange(count) % len(rows)].repeat(len(images), 1, 1)

    return draw


def run(draw: Draw, options: Generator, *, images: int = 4, **more: object) -> Proposals:
    maps = torch.zeros(images, 1, 2, 2)
    asked = more.pop("asked", Asked(WORDS))
    return propose(draw, torch.arange(images), maps, asked, options, generator=dice(), **more)  # type: ignore[arg-type]


def test_what_was_asked_about_an_image_is_not_proposed_again_however_it_is_written():
    asked = Asked(WORDS)
    asked.add(
        np.array([1, 2]),
        np.array(
            [
                program("count filter_color[red] filter_shape[cube] scene", 10),
                program("exist filter_color[red] scene", 10),
            ]
        ),
    )
    draw = always(
        "count filter_shape[cube] filter_color[red] scene",
        "count filter_color[red] filter_shape[cube] scene",
        "exist filter_color[red] scene",
    )
    out = run(draw, Generator(raw=9, kept=3), images=4, asked=asked)
    assert out.kept.tolist() == [2, 1, 1, 2]  # the first two are one question
    assert out.raw.tolist() == [9] * 4
    assert WORDS.decode_program(out.tokens[1, 0].tolist())[0] == "exist"
    assert WORDS.decode_program(out.tokens[2, 0].tolist())[0] == "count"
    every = run(draw, Generator(raw=9, kept=3, dedupe="none"), images=4, asked=asked)
    assert every.kept.tolist() == [3] * 4


def test_an_image_without_a_new_question_is_drawn_for_twice_more_and_then_skipped():
    asked = Asked(WORDS)
    asked.add(np.array([0]), np.array([program("count scene")]))
    out = run(always("count scene"), Generator(raw=5, kept=2), images=2, asked=asked)
    assert out.kept.tolist() == [0, 1]
    assert out.raw.tolist() == [15, 5]
    assert not out.allowed[0].any()
    assert out.types[0].tolist() == [-1, -1]
    assert out.relevance.isnan().all()
    assert out.tokens[0, :, :2].tolist() == [[1, 2]] * 2  # a gap is START END


def test_an_image_that_occurs_twice_in_a_round_gets_different_questions():
    draw = always("count scene", "exist scene", "exist filter_color[red] scene")
    out = propose(
        draw, torch.tensor([7, 7]), torch.zeros(2, 1, 2, 2), Asked(WORDS),
        Generator(raw=9, kept=2), generator=dice(),
    )  # fmt: skip
    assert out.kept.tolist() == [2, 1]
    rows = out.tokens[out.allowed]
    assert len(rows.unique(dim=0)) == 3


class OnlyCounts:
    """Finds `count` questions relevant, 0.9, and nothing else, 0.2; never those of image 1."""

    def probabilities(
        self, images: Tensor, programs: Tensor, types: Tensor, features: Tensor
    ) -> Tensor:
        assert programs.shape[:2] == types.shape == (len(images), 8)
        assert len(features) == len(images)
        good = (types == TYPES.index("count")) & (images[:, None] != 1)
        return torch.where(good, 0.9, 0.2)

    def keep(self, probabilities: Tensor, types: Tensor) -> Tensor:
        return probabilities > 0.5


def test_only_relevant_programs_are_kept_with_their_probability():
    draw = always(
        "count scene", "exist scene", "count filter_color[red] scene", "query_color scene"
    )
    out = run(draw, Generator(raw=8, kept=4), images=3, relevance=OnlyCounts())
    assert out.kept.tolist() == [2, 0, 2]
    assert out.raw.tolist() == [8, 24, 8]
    assert (out.types[out.allowed] == TYPES.index("count")).all()
    torch.testing.assert_close(out.relevance[out.allowed], torch.full((4,), 0.9))
    assert out.tokens.shape[2] == 5  # START count filter scene END: trimmed to the longest


def test_the_kept_ones_are_a_random_choice_of_the_raw_ones():
    draw = always("count scene", "exist scene", "count filter_color[red] scene")
    out = run(draw, Generator(raw=3, kept=1), images=900)
    _, counts = out.tokens[:, 0].unique(dim=0, return_counts=True)
    assert len(counts) == 3
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_the_same_generator_gives_the_same_proposals_and_another_gives_others():
    draw = draw_typed(Grammar(WORDS.tokens))
    one, two = (run(draw, Generator(raw=8, kept=4)) for _ in range(2))
    assert torch.equal(one.tokens, two.tokens)
    other = propose(
        draw, torch.arange(4), torch.zeros(4, 1, 2, 2), Asked(WORDS), Generator(raw=8, kept=4),
        generator=dice(1),
    )  # fmt: skip
    assert one.tokens.shape != other.tokens.shape or not torch.equal(one.tokens, other.tokens)


def test_a_type_is_what_the_root_says_whatever_was_wished_for():
    draw = always("count scene", "less_than count scene count scene", "unique scene", "<UNK>")
    out = run(draw, Generator(raw=4, kept=4), images=1)
    found = sorted(
        (WORDS.tokens[row[1]], int(kind))
        for row, kind in zip(out.tokens[0].tolist(), out.types[0], strict=True)
    )
    assert found == [
        ("<UNK>", -1),
        ("count", TYPES.index("count")),
        ("less_than", TYPES.index("less_than")),
        ("unique", -1),
    ]


def test_diversity_is_as_worked_out_by_hand():
    draw = always("count scene", "count scene", "count scene", "exist filter_color[red] scene")
    out = run(draw, Generator(raw=4, kept=4, dedupe="none"), images=2)
    values = diversity(out)
    assert values["distinct"] == 2 / 8
    assert values["type_entropy"] == pytest.approx(stats.entropy([0.75, 0.25]))
    assert values["length"] == pytest.approx((3 * 2 + 3) / 4)
    empty = Proposals.empty(torch.arange(2), 3, 5, torch.device("cpu"))
    assert diversity(empty) == {"distinct": 0.0, "type_entropy": 0.0, "length": 0.0}


def test_the_empirical_draw_takes_programs_of_the_beginning_with_types_uniform():
    questions, _ = world()
    draw = build_draw(Generator(kind="empirical"), questions, None)
    programs = draw(torch.arange(40), torch.zeros(40, 1, 2, 2), 50, dice())
    known = {tuple(row) for row in questions.rows.programs.tolist()}
    assert {tuple(row) for row in programs.flatten(0, 1).tolist()} <= known
    types = questions.rows.types
    roots = torch.bincount(programs[..., 1].flatten())
    counts = roots[roots > 0].numpy()
    assert len(counts) == len(np.unique(types))
    assert stats.chisquare(counts).pvalue > 0.001
    # Without a type, as often as the beginning has them.
    draw = build_draw(Generator(kind="empirical", condition="image"), questions, None)
    programs = draw(torch.arange(40), torch.zeros(40, 1, 2, 2), 50, dice())
    roots = torch.bincount(programs[..., 1].flatten()).numpy()
    share = np.bincount(questions.rows.programs[:, 1]) / len(types)
    assert stats.chisquare(roots[roots > 0], 2000 * share[share > 0]).pvalue > 0.001


def test_a_type_without_an_example_is_refused_by_name():
    questions, _ = world()
    with pytest.raises(ValueError, match=r"generator.types has equal_color, .* raise data.init"):
        find_types(Generator(types=["count", "equal_color"]), questions.rows.types)
    assert find_types(Generator(types=["count"]), questions.rows.types).tolist() == [1]


def test_the_trained_generator_asks_like_the_beginning_and_obeys_the_type():
    questions, _ = world()
    torch.manual_seed(0)
    options = Generator(embed=24, hidden=48, steps=150, lr=1e-2, batch_size=64, temperature=1.0)
    model = build_generator(options, WORDS, questions.features.shape[1])
    loss = train_generator(model, questions, options, seed=0)
    assert loss < 0.8  # nats a token; of 41 tokens at random 3.7
    images = torch.arange(20)
    draw = build_draw(Generator(types=["count"], mask=False), questions, model)
    programs = draw(images, questions.features[images], 20, dice())
    counts = programs[..., 1] == WORDS.program["count"]
    assert counts.float().mean() > 0.9
    # Most are well-formed without the grammar, all are with it.
    grammar = Grammar(WORDS.tokens)
    rows = [[WORDS.tokens[i] for i in row] for row in programs.flatten(0, 1).tolist()]
    assert np.mean([grammar.accepts(row) for row in rows]) > 0.7


@pytest.mark.parametrize("options", [Generator(kind="typed"), Generator(), Generator(mask=False)])
def test_what_is_drawn_is_a_program_of_the_grammar_unless_it_may_be_anything(options):
    questions, _ = world()
    torch.manual_seed(0)
    model = build_generator(replace(options, embed=8, hidden=8), WORDS, 2)
    draw = build_draw(options, questions, model)
    programs = draw(torch.arange(4), torch.zeros(4, 2, 1, 1), 25, dice()).flatten(0, 1)
    grammar = Grammar(WORDS.tokens)
    good = [grammar.accepts([WORDS.tokens[i] for i in row if i > 0]) for row in programs.tolist()]
    assert all(good) == options.mask
    assert len(programs.unique(dim=0)) > 50


def test_the_temperature_makes_programs_alike_or_varied():
    questions, _ = world()
    torch.manual_seed(0)
    model = build_generator(Generator(embed=8, hidden=8, condition="none"), WORDS, 2)
    counts = []
    for temperature in (1e-5, 1.0, 3.0):
        options = Generator(condition="none", temperature=temperature)
        draw = build_draw(options, questions, model)
        programs = draw(torch.arange(4), torch.zeros(4, 2, 1, 1), 25, dice())
        counts.append(len(programs.flatten(0, 1).unique(dim=0)))
    assert counts[0] == 1 < 20 < counts[1] <= counts[2]


def test_training_is_the_same_again_with_the_same_seed():
    questions, _ = world()
    options = Generator(embed=8, hidden=8, steps=5, batch_size=16)
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        model = build_generator(options, WORDS, questions.features.shape[1])
        losses.append(train_generator(model, questions, options, seed=seed))
    assert losses[0] == losses[1] != losses[2]


def test_a_blind_generator_reads_no_features():
    questions, _ = world()
    options = Generator(embed=8, hidden=8, steps=2, batch_size=16, condition="type")
    model = build_generator(options, WORDS, 1)
    assert train_generator(model, questions.without_features(), options, seed=0) > 0
    draw = build_draw(options, questions, model)
    assert draw(torch.arange(2), torch.zeros(2, 7, 1, 1), 3, dice()).shape == (2, 3, 27)


def test_programs_of_one_canonical_form_have_one_answer():
    _, made = world()
    rows = draw_typed(Grammar(WORDS.tokens, limit=12))(
        torch.arange(60), torch.zeros(60, 1, 1, 1), 40, dice()
    )
    rows = rows.flatten(0, 1).numpy()
    forms = np.array(
        [program(" ".join(canonical([WORDS.tokens[i] for i in row]))) for row in rows.tolist()]
    )
    run = BatchExecutor(WORDS.tokens, WORDS.answers)
    scene_of = np.repeat(np.arange(60), 40)
    one, two = (run(each, pack(made.scenes), scene_of) for each in (rows, forms))
    assert (rows != forms).any(1).sum() > 100
    assert (np.asarray(one[0]) == np.asarray(two[0])).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "rnn"}, "generator.kind=rnn is not one of lstm, empirical, typed"),
        ({"condition": "words"}, "generator.condition=words"),
        ({"level": "free"}, "generator.level=free is not one of types, canonical, template"),
        ({"dedupe": "all"}, "generator.dedupe=all"),
        ({"types": ["colour"]}, "generator.types names 'colour'"),
        ({"temperature": 0.0}, "generator.temperature=0.0: give more than 0"),
        ({"kept": 0}, "generator.kept=0"),
        ({"kept": 501}, "generator.kept=501 is more than generator.raw=500"),
        ({"steps": -1}, "generator.steps=-1"),
    ],
)
def test_options_that_make_no_sense_are_named(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Generator(**values)
