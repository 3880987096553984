"""Pairs to learn relevance from, their calibration, and the model that filters proposals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from common.clevr import builtin, vocabulary
from common.clevr.arrays.encode import QuestionArrays, encode
from common.clevr.arrays.features import Features
from common.clevr.arrays.scenes import pack
from common.clevr.execute_batch import BatchExecutor
from common.sampling import SampleStream
from learning_by_asking.asking.calibration import PULL, choose_threshold, fit_platt
from learning_by_asking.asking.pairs import collect_pairs, pairs_of, shuffle
from learning_by_asking.asking.relevance import (
    Calibrated,
    Known,
    Relevance,
    refresh,
    train_relevance,
)

START, END = 1, 2
KINDS = 4  # tokens 4..7 of the toy language: each is valid where its channel is on


def world(**settings):
    made = builtin.build(split="train", **settings)
    words = vocabulary.build(made.questions)
    return made, words, encode(made.questions, words)


def validity(made, words, programs, images):
    """Share of valid questions, bool (N,)."""
    execute = BatchExecutor(words.tokens, words.answers)
    return execute(programs, pack(made.scenes), images, require_end=True)[1] < 0


def toy(count, seed):
    """Images that show some of four things, and a random question about each thing of an image.

    Returns features, all questions, and whether each is valid.
    """
    random = np.random.default_rng(seed)
    shown = random.random((count, KINDS)) < 0.4
    maps = np.zeros((count, KINDS, 2, 2), np.float32)
    maps[:, :, 0, 1] = shown
    images = np.repeat(np.arange(count), KINDS)
    tokens = np.tile(np.arange(KINDS), count)
    programs = np.stack([np.full_like(tokens, START), tokens + 4, np.full_like(tokens, END)], 1)
    rows = QuestionArrays(
        questions=programs.astype(np.int16),
        programs=programs.astype(np.int16),
        answers=np.full(len(images), 4),
        image_idxs=images,
        orig_idxs=np.arange(len(images)),
        types=(tokens % 2).astype(np.int8),
    )
    return Features(maps), rows, shown.reshape(-1)


class Bilinear(nn.Module):
    """A logit for each (token, channel), summed over the tokens: the toy's best network."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, KINDS))
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, questions, features, image_of):
        pooled = features.sum((2, 3))[image_of]
        return (self.weight[questions[:, 1]] * pooled).sum(1) + self.bias[questions[:, 1]]


OPTIONS = Relevance(
    steps=100, lr=0.1, batch_size=64, held_out=0.3, refresh_steps=100, threshold="f1"
)


def test_shuffled_negatives_are_as_often_valid_as_questions_with_any_other_image():
    made, words, rows = world(images=60, per_image=5)
    positives = pairs_of(rows, 1, replies=False)
    assert validity(made, words, positives.programs, positives.images).all()
    images, count = len(made.scenes), len(rows)
    every = validity(
        made, words, rows.programs.repeat(images, 0), np.tile(np.arange(images), count)
    )
    expected = (every.sum() - count) / (count * (images - 1))
    made_up = shuffle(positives, ratio=20, by_type=False, seed=0)
    share = validity(made, words, made_up.programs, made_up.images).mean()
    assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.slow
def test_one_shuffled_question_in_five_is_valid_in_the_full_language():
    made, words, rows = world(images=250, per_image=10, profile="full")
    made_up = shuffle(pairs_of(rows, 1, replies=False), ratio=6, by_type=False, seed=0)
    share = 100 * validity(made, words, made_up.programs, made_up.images).mean()
    assert share == pytest.approx(21.2, abs=3)  # measured before this code was written


def test_shuffled_negatives_have_another_image_of_the_same_type_and_are_no_positives():
    _, _, rows = world(images=60, per_image=5)
    positives = pairs_of(rows, 1, replies=False)
    negatives = shuffle(positives, ratio=3, by_type=True, seed=4)
    keys = lambda pairs: [  # noqa: E731
        (*row, image) for row, image in zip(pairs.programs.tolist(), pairs.images, strict=True)
    ]
    assert not set(keys(positives)) & set(keys(negatives))
    for kind in np.unique(positives.types):
        count = (positives.types == kind).sum()
        of_type = negatives.select(negatives.types == kind)
        assert 0.9 * 3 * count <= len(of_type) <= 3 * count
        assert set(of_type.images) <= set(positives.images[positives.types == kind])
    assert not negatives.labels.any()


def test_a_question_without_another_image_has_no_negative():
    _, rows, _ = toy(1, 0)
    assert len(shuffle(pairs_of(rows, 1, replies=False), ratio=2, by_type=True, seed=0)) == 0


SAME = {"ratio": 1, "by_type": True, "held_out": 0.3}


def test_replies_stay_on_their_side_as_more_of_them_come():
    _, rows, _ = toy(100, 1)
    initial, first, later = rows.select(range(100)), rows.select(range(150, 250)), rows
    sides = []
    for valid in (first, later.select([*range(150, 250), *range(300, 400)])):
        learning, held_out = collect_pairs(initial, seed=5, valid=valid, **SAME)
        keys = [
            {(int(i), int(p)) for i, p in zip(x.images, x.programs[:, 1], strict=True)}
            for x in (learning.select(learning.replies), held_out.select(held_out.replies))
        ]
        assert not keys[0] & keys[1]
        sides.append(keys)
    assert sides[0][0] < sides[1][0]
    assert sides[0][1] < sides[1][1]


def test_a_held_out_question_is_not_learned_from_with_any_image():
    _, _, rows = world(images=60, per_image=5)
    _, places = np.unique(rows.programs, axis=0, return_index=True)
    learning, held_out = collect_pairs(rows.select(places), seed=2, **SAME)
    assert not {p.tobytes() for p in learning.programs} & {p.tobytes() for p in held_out.programs}
    assert 0.2 < len(held_out) / (len(held_out) + len(learning)) < 0.4


def test_invalid_replies_take_the_place_of_shuffled_negatives():
    _, rows, valid = toy(200, 3)
    initial, known = rows.select(np.flatnonzero(valid)[:100]), np.flatnonzero(~valid)
    for count, shuffled in ((40, 60), (150, 0)):
        wrong = rows.select(known[:count])
        learning, _ = collect_pairs(initial, seed=0, invalid=wrong, **SAME | {"held_out": 1e-9})
        negatives = learning.labels == 0
        assert (negatives & learning.replies).sum() == count
        assert (negatives & ~learning.replies).sum() == shuffled


@pytest.mark.parametrize("towards", [None, 0.2, 3.0])
def test_platt_scaling_is_the_minimum_of_its_loss(towards):
    random = np.random.default_rng(0)
    logits = random.normal(size=200) * 3
    labels = (random.random(200) < 1 / (1 + np.exp(-0.7 * logits + 1))).astype(float)
    n = labels.sum()
    targets = np.where(labels > 0, (n + 1) / (n + 2), 1 / (200 - n + 2))

    def loss(v):
        z = v[0] * logits + v[1]
        pull = 0 if towards is None else PULL / 2 * (v[0] / towards - 1) ** 2
        return (np.logaddexp(0, z) - targets * z).sum() + pull

    expected = minimize(loss, [1.0, 0.0], tol=1e-12).x
    found = fit_platt(torch.tensor(logits), torch.tensor(labels), towards)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if towards is None:
        assert abs(found[0] - 0.7) < 0.25
        assert abs(found[1] + 1) < 0.5


def test_an_order_that_is_upside_down_gives_everyone_the_same_probability():
    logits = torch.linspace(-2, 2, 100).double()
    scale, shift = fit_platt(logits, (logits < -1).double())
    assert scale == 0
    share = 1 / (1 + np.exp(-shift))
    assert share == pytest.approx(0.25, abs=0.02)
    assert fit_platt(logits, (logits > 1).double(), towards=0.0)[0] == 0
    _, shift = fit_platt(logits, torch.ones(100).double())  # one label only
    assert 1 / (1 + np.exp(-shift)) == pytest.approx(101 / 102, abs=1e-3)


def test_the_threshold_of_validity_by_hand():
    chances = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]).double()
    labels = torch.tensor([1, 0, 1, 0, 0, 0]).double()
    ones = torch.ones(6).double()
    choose = lambda **some: choose_threshold(  # noqa: E731
        chances, labels, ones, **{"rule": "validity", "validity": 0.5, "least": 0.1} | some
    )
    assert choose() == pytest.approx(0.6, abs=1e-5)  # 1/1 1/2 2/3 2/4 2/5 2/6
    assert choose(validity=0.6) == pytest.approx(0.7, abs=1e-5)
    assert choose(validity=0.9) == pytest.approx(0.9, abs=1e-5)
    assert choose(validity=0.9, least=0.7) == pytest.approx(0.5, abs=1e-5)
    assert choose(rule="f1") == pytest.approx(0.7, abs=1e-5)  # 2/3 1/2 4/5 2/3 4/7 1/2
    weights = torch.where(labels > 0, 1 / 3, 1.0).double()
    found = choose_threshold(chances, labels, weights, rule="validity", validity=0.4, least=0.1)
    assert found == pytest.approx(0.7, abs=1e-5)  # 1, 1/4, 2/5, ...


def test_equal_chances_pass_or_fail_together():
    chances, labels = torch.full((10,), 0.3).double(), torch.tensor([1.0, *[0] * 9]).double()
    for rule in ("validity", "f1"):
        found = choose_threshold(
            chances, labels, torch.ones(10), rule=rule, validity=0.5, least=0.1
        )
        assert found == pytest.approx(0.3, abs=1e-5)
        assert found < 0.3


def proposals(rows, features, first):
    """What Calibrated reads of all questions about the images from `first` on."""
    programs = torch.from_numpy(rows.programs.astype(np.int64)).view(-1, KINDS, 3)[first:]
    types = torch.from_numpy(rows.types.astype(np.int64)).view(-1, KINDS)[first:]
    images = torch.arange(first, first + len(types))
    return images, programs, types, features[images]


def test_a_trained_model_keeps_most_of_the_valid_proposals_and_drops_most_others():
    features, rows, valid = toy(400, 6)
    model = train_relevance(
        Bilinear(), rows.select(np.flatnonzero(valid)), features, OPTIONS, seed=0
    )
    given = proposals(rows, features, 0)
    kept = model.keep(model.probabilities(*given), given[2])
    truth = torch.from_numpy(valid).view(400, KINDS)
    assert truth.float().mean() < 0.45
    assert kept[truth].float().mean() > 0.75
    assert kept[~truth].float().mean() < 0.25


def test_replies_correct_what_shuffles_cannot_tell():
    features, rows, valid = toy(400, 7)
    # To begin with only the first thing is asked about, where it is shown.
    first = rows.select(np.flatnonzero(valid & (rows.programs[:, 1] == 4)))
    model = train_relevance(Bilinear(), first, features, OPTIONS, seed=0)
    given = proposals(rows, features, 200)
    truth = torch.from_numpy(valid).view(400, KINDS)[200:]
    before = truth[model.keep(model.probabilities(*given), given[2])].float().mean()
    good = rows.select(np.flatnonzero(valid & (rows.image_idxs < 200)))
    bad = rows.select(np.flatnonzero(~valid & (rows.image_idxs < 200)))
    refresh(model, first, features, OPTIONS, valid=good, invalid=bad, seed=0, round_=3)
    after = truth[model.keep(model.probabilities(*given), given[2])].float().mean()
    assert before < 0.6
    assert after > 0.95


def test_without_replies_the_share_of_relevant_pairs_is_shifted_to_the_prior():
    features, rows, valid = toy(300, 8)
    initial = rows.select(np.flatnonzero(valid))
    chances = {}
    for prior in (0.2, 0.5):
        network = Bilinear()  # that knows nothing: every logit is 0
        model = Calibrated(network)
        _, held_out = collect_pairs(initial, seed=0, **SAME)
        model.calibrate(held_out, features, replace(OPTIONS, prior=prior))
        types = torch.tensor([[0, 1, 12, -1]])
        programs = torch.tensor([[[1, 4, 2]] * 4])
        chances[prior] = model.probabilities(torch.tensor([0]), programs, types, features[[0]])
        np.testing.assert_allclose(chances[prior], prior, atol=0.02)
        assert model.keep(chances[prior], types).all()  # nobody is better than another


def test_probabilities_do_not_depend_on_the_size_of_the_pieces(monkeypatch):
    features, rows, _ = toy(9, 2)
    model = Calibrated(Bilinear())
    nn.init.normal_(model.network.weight, generator=torch.Generator().manual_seed(0))
    programs = torch.from_numpy(rows.programs.astype(np.int64)).view(9, KINDS, 3)
    types = torch.from_numpy(rows.types.astype(np.int64)).view(9, KINDS)
    images = torch.arange(9)
    whole = model.probabilities(images, programs, types, features[images])
    monkeypatch.setattr("learning_by_asking.asking.relevance.ROWS", 8)
    assert torch.equal(model.probabilities(images, programs, types, features[images]), whole)


def test_a_saved_model_gives_the_same_probabilities():
    features, rows, valid = toy(100, 9)
    initial = rows.select(np.flatnonzero(valid))
    model = train_relevance(Bilinear(), initial, features, OPTIONS, seed=0)
    again = Calibrated(Bilinear())
    again.load_state_dict(model.state_dict())
    programs = torch.tensor([[[1, 4, 2], [1, 5, 2]]])
    types = torch.tensor([[0, 1]])
    arguments = torch.tensor([0]), programs, types, features[[0]]
    assert torch.equal(again.probabilities(*arguments), model.probabilities(*arguments))
    assert torch.equal(again.thresholds, model.thresholds)


def test_training_takes_the_steps_of_a_hand_written_loop():
    features, rows, valid = toy(60, 10)
    initial = rows.select(np.flatnonzero(valid))
    options = replace(OPTIONS, steps=3, batch_size=8)
    network = train_relevance(Bilinear(), initial, features, options, seed=11).network

    learning, _ = collect_pairs(initial, seed=11, **SAME)
    plain = Bilinear()
    optimizer = torch.optim.Adam(plain.parameters(), 0.1)
    for step in range(3):
        batch = learning.select(
            np.array([i for _, i in SampleStream(len(learning), 8, seed=11).batch(step)])
        )
        logits = plain(
            torch.from_numpy(batch.programs.astype(np.int64)),
            features[batch.images],
            torch.arange(8),
        )
        labels = torch.from_numpy(batch.labels)
        chances = logits.sigmoid()
        loss = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(network.weight, plain.weight)
    torch.testing.assert_close(network.bias, plain.bias)


def test_the_upper_bound_says_what_the_oracle_knows():
    asked = []

    def is_valid(images, programs):
        asked.append((images, programs))
        return images == programs[:, 0]

    programs = torch.tensor([[[3], [4]], [[5], [4]]])
    known = Known(is_valid)
    types, maps = torch.zeros(2, 2).long(), torch.zeros(2, 1, 1, 1)
    chances = known.probabilities(torch.tensor([3, 4]), programs, types, maps)
    assert chances.tolist() == [[1, 0], [0, 1]]
    assert known.keep(chances, types).tolist() == [[True, False], [False, True]]
    assert asked[0][0].tolist() == [3, 3, 4, 4]
    assert asked[0][1].shape == (4, 1)


def test_too_few_questions_to_calibrate_stop_with_advice():
    features, rows, _ = toy(1, 0)
    with pytest.raises(ValueError, match=r"give more questions \(data.init\)"):
        train_relevance(Bilinear(), rows, features, replace(OPTIONS, held_out=1e-6), seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "perfect"}, "relevance.kind=perfect is not one of none, learned"),
        ({"threshold": "half"}, "relevance.threshold=half"),
        ({"steps": 0}, "relevance.steps=0"),
        ({"prior": 1.0}, "relevance.prior=1.0: give a share"),
        ({"lr": 0.0}, "lr=0.0"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        Relevance(**options)
