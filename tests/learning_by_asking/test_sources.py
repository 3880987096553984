"""The baselines' questions: each of the data set once, by pairs, by images, or by the agent."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from common.clevr import builtin
from common.clevr.accuracy import TYPES
from common.clevr.arrays.encode import QuestionArrays, root_types
from common.clevr.execute import execute
from common.clevr.functions import TOKENS
from common.clevr.vocabulary import standard
from learning_by_asking.ask import choose
from learning_by_asking.asking.propose import Asked
from learning_by_asking.asking.sources import (
    OwnQuestions,
    generate_passive,
    passive,
    passive_order,
)

WORDS = standard()
FILTERS = [text for text in TOKENS if text.startswith("filter_")]


def questions(images: int, each: int) -> QuestionArrays:
    """`each` different questions about images 10, 12, 14, ..., one image's far from each other."""
    texts = [f"count {text} scene" for text in FILTERS] + [
        f"exist {text} scene" for text in FILTERS
    ]
    programs = np.array([WORDS.encode_program(text.split()) for text in texts[:each]], np.int16)
    rows = np.repeat(programs, images, axis=0)
    n = len(rows)
    return QuestionArrays(
        questions=np.zeros((n, 3), np.int16),
        programs=rows,
        answers=np.full(n, 4),
        image_idxs=np.tile(10 + 2 * np.arange(images), each),
        orig_idxs=np.arange(n),
        types=root_types(rows, WORDS),
    )


def pairs(images: np.ndarray, programs: np.ndarray) -> Counter:
    """How often each (image, program) occurs."""
    rows = zip(images.tolist(), map(tuple, programs.tolist()), strict=True)
    return Counter(rows)


def test_pairs_are_drawn_over_all_images_and_none_comes_twice():
    rows = questions(40, 10)
    order = passive_order(rows, 200, by="pairs", seed=0)
    assert len(set(order.tolist())) == 200
    images = rows.image_idxs[order]
    assert len(np.unique(images)) == 40
    firsts = np.array(
        [rows.image_idxs[passive_order(rows, 1, by="pairs", seed=seed)[0]] for seed in range(800)]
    )
    assert stats.chisquare(np.unique(firsts, return_counts=True)[1]).pvalue > 0.001
    assert (order == passive_order(rows, 200, by="pairs", seed=0)).all()
    assert (order != passive_order(rows, 200, by="pairs", seed=1)).any()
    # A smaller budget is the beginning of a larger one.
    assert (order[:50] == passive_order(rows, 50, by="pairs", seed=0)).all()


def test_by_images_one_image_follows_the_other_with_all_its_questions():
    rows = questions(40, 10)
    order = passive_order(rows, 65, by="images", seed=0)
    images = rows.image_idxs[order]
    assert (np.diff(images) != 0).sum() == 6  # six whole images and a part of the seventh
    assert len(np.unique(images)) == 7
    assert len(set(order.tolist())) == 65
    assert images[0] != images[10] != rows.image_idxs[0]


def test_a_budget_beyond_the_data_set_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="budget=21, but there are only 20 questions"):
        passive_order(questions(10, 2), 21, by="pairs", seed=0)
    with pytest.raises(ValueError, match="by is 'all'"):
        passive_order(questions(10, 2), 1, by="all", seed=0)


def test_a_passive_round_proposes_one_question_for_each_image_and_no_other():
    rows = questions(10, 4)
    places = passive_order(rows, 12, by="pairs", seed=2)
    out = passive(rows, places)
    assert out.tokens.shape == (12, 1, rows.programs.shape[1])
    assert out.allowed.all()
    assert out.relevance.isnan().all()
    assert (out.tokens[:, 0].numpy() == rows.programs[places]).all()
    assert (out.images.numpy() == rows.image_idxs[places]).all()
    assert (out.types[:, 0].numpy() == rows.types[places]).all()


def test_random_choice_among_the_images_own_questions_ends_as_the_passive_multiset():
    rows = questions(6, 5)
    asked = Asked(WORDS)
    own = OwnQuestions(rows, asked)
    images = torch.from_numpy(np.unique(rows.image_idxs))
    found: Counter = Counter()
    for turn in range(5):
        out = own.propose(images)
        assert out.kept.tolist() == [5 - turn] * 6
        dice = torch.Generator().manual_seed(turn)
        picks, _ = choose(torch.rand(out.types.shape, generator=dice), out.allowed, 0.0, dice)
        programs = out.tokens[torch.arange(6), picks].numpy()
        asked.add(images.numpy(), programs)
        found += pairs(images.numpy(), programs)
    everything = passive_order(rows, 30, by="pairs", seed=0)
    assert found == pairs(rows.image_idxs[everything], rows.programs[everything])
    last = own.propose(images)
    assert not last.allowed.any()
    assert last.tokens.shape[:2] == (6, 1)


def test_an_image_without_questions_of_its_own_has_no_proposal_and_no_other_suffers():
    rows = questions(3, 2)
    out = OwnQuestions(rows, Asked(WORDS)).propose(torch.tensor([11, 12, 0, 99]))
    assert out.kept.tolist() == [0, 2, 0, 0]


@pytest.mark.parametrize("profile", ["tiny", "full"])
def test_fresh_questions_fit_their_images_and_are_balanced_over_templates(profile: str):
    options = builtin.Options(objects=(3, 5))
    made = builtin.build(
        split="val", images=12, per_image=2, options=options, profile="tiny",
        features=builtin.FeatureOptions(grid=6),
    )  # fmt: skip
    rows = generate_passive(made.scenes, WORDS, 60, options=options, profile=profile, seed=5)
    assert len(rows) >= 60
    assert set(rows.image_idxs.tolist()) == set(range(12))
    for row, answer, image in zip(rows.programs, rows.answers, rows.image_idxs, strict=True):
        tokens = [WORDS.tokens[i] for i in row]
        assert execute(tokens, made.scenes[image]).answer == WORDS.answers[answer]
    _, counts = np.unique(rows.families, return_counts=True)
    assert counts.max() <= 4 if profile == "full" else counts.max() <= 12
    assert (rows.types >= 0).all()
    assert rows.types.max() < len(TYPES)
