"""Each option of the relevance model and of the answerers reaches what it is for."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clevr.arrays.encode import QuestionArrays
from common.clevr.arrays.features import Features
from common.data import seed_of
from common.sampling import SampleStream
from learning_by_asking.agent import Agent
from learning_by_asking.asking.calibration import choose_threshold
from learning_by_asking.asking.pairs import Pairs, collect_pairs
from learning_by_asking.asking.relevance import (
    Calibrated,
    Relevance,
    refresh,
    train_relevance,
)
from learning_by_asking.build import arities
from learning_by_asking.evaluate import learn_offline
from learning_by_asking.model import ANSWERERS, Answerer, build_answerer, build_relevance

from .small import settings
from .test_relevance import Bilinear, toy
from .test_wiring import play, prepare

# How relevance learns

BASE = Relevance(
    neg_ratio=2, steps=5, lr=0.05, batch_size=9, held_out=0.35, refresh_steps=4, prior=0.4
)
FINE = replace(BASE, lr=1e-9, neg_ratio=1, least=0.05, validity=0.6, prior=0.4)
LEARNING = {"neg_ratio": 3, "by_type": False, "held_out": 0.2, "lr": 0.03, "batch_size": 7}


def questions() -> tuple[Features, QuestionArrays, QuestionArrays]:
    """Maps, valid questions and invalid ones about 120 images."""
    features, rows, valid = toy(120, 3)
    return features, rows.select(np.flatnonzero(valid)), rows.select(np.flatnonzero(~valid))


def split(options: Relevance, *rows: QuestionArrays) -> tuple[Pairs, Pairs]:
    """The pairs of the beginning, of valid and of invalid replies, as the options say."""
    initial, valid, invalid = (*rows, None, None)[:3]
    return collect_pairs(
        initial,
        seed=4,
        ratio=options.neg_ratio,
        by_type=options.by_type,
        held_out=options.held_out,
        valid=valid,
        invalid=invalid,
    )


def learn(
    network: nn.Module, pairs: Pairs, features: Features, options: Relevance, steps: int, seed: int
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), options.lr)
    stream = SampleStream(len(pairs), options.batch_size, seed=seed)
    for step in range(steps):
        batch = pairs.select(np.array([place for _, place in stream.batch(step)]))
        programs = torch.from_numpy(batch.programs.astype(np.int64))
        logits = network(programs, features[batch.images], torch.arange(len(batch)))
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def require_same(ours: nn.Module, theirs: nn.Module) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("option", "value"), [*LEARNING.items(), ("steps", 3)])
def test_relevance_learns_from_the_beginning_by_each_option(option, value):
    options = replace(BASE, **{option: value})
    features, initial, _ = questions()
    ours = train_relevance(Bilinear(), initial, features, options, seed=4).network
    theirs, base = Bilinear(), Bilinear()
    learn(theirs, split(options, initial)[0], features, options, options.steps, 4)
    require_same(ours, theirs)
    learn(base, split(BASE, initial)[0], features, BASE, BASE.steps, 4)
    assert (ours.weight - base.weight).abs().max() > 1e-3


@pytest.mark.parametrize(("option", "value"), [*LEARNING.items(), ("refresh_steps", 3)])
def test_relevance_goes_on_learning_from_replies_by_each_option(option, value):
    options = replace(BASE, **{option: value})
    features, valid, invalid = questions()
    rows = valid.select(range(60)), valid.select(range(60, 100)), invalid.select(range(30))
    model, theirs, base = Calibrated(Bilinear()), Bilinear(), Bilinear()
    given = {"valid": rows[1], "invalid": rows[2]}
    refresh(model, rows[0], features, options, **given, seed=4, round_=6)
    for network, by in ((theirs, options), (base, BASE)):
        learn(network, split(by, *rows)[0], features, by, by.refresh_steps, seed_of(4, 6, 2))
    require_same(model.network, theirs)
    assert (theirs.weight - base.weight).abs().max() > 1e-3


# How relevance is calibrated


class Told(nn.Module):
    """The logit is what the map says of the thing that is asked about; next to nothing learns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, programs: Tensor, features: Tensor, image_of: Tensor) -> Tensor:
        told = features.sum((2, 3))[image_of]
        return self.scale * told.gather(1, programs[:, 1:2] - 4)[:, 0]


def told_questions() -> tuple[Features, QuestionArrays, QuestionArrays]:
    """As `questions`, of maps that say how likely each thing is."""
    _, rows, _ = toy(300, 5)
    random = np.random.default_rng(6)
    maps = random.normal(size=(300, 4, 1, 1)).astype(np.float32)
    valid = maps.reshape(-1) + random.normal(size=1200) > 0.5
    return (
        Features(maps),
        rows.select(np.flatnonzero(valid)),
        rows.select(np.flatnonzero(~valid)),
    )


def calibrate(options: Relevance, *, replies: bool) -> tuple[Calibrated, Tensor]:
    """The model, and the threshold that is expected for the types 0 and 1 and for all together."""
    features, valid, invalid = told_questions()
    rows = [valid]
    if replies:
        rows = [valid.select(range(150)), valid.select(range(150, 400)), invalid]
        model, given = Calibrated(Told()), {"valid": rows[1], "invalid": rows[2]}
        refresh(model, rows[0], features, options, **given, seed=4, round_=1)
    else:
        model = train_relevance(Told(), valid, features, options, seed=4)
    _, pairs = split(options, *rows)
    pairs = pairs.select(pairs.replies) if replies else pairs
    programs = torch.from_numpy(pairs.programs.astype(np.int64))
    labels, types = torch.from_numpy(pairs.labels), torch.from_numpy(pairs.types)
    expected = []
    for row in (0, 1, -1):
        chosen = (types == row) | (row < 0)
        asked = torch.full((int(chosen.sum()), 1), row)
        maps = features[pairs.images[chosen.numpy()]]
        chances = model.probabilities(types, programs[chosen, None], asked, maps)[:, 0]
        share = labels[chosen].mean().item()
        odds = 1.0 if replies else options.prior / (1 - options.prior) * (1 - share) / share
        weights = torch.where(labels[chosen] > 0, odds, 1.0)
        expected.append(
            choose_threshold(
                chances,
                labels[chosen],
                weights,
                rule=options.threshold,
                validity=options.validity,
                least=options.least,
            )
        )
    return model, torch.tensor(expected)


CALIBRATION = {"threshold": "f1", "validity": 0.8, "least": 0.85}


@pytest.mark.parametrize(
    ("option", "value", "replies"),
    [
        *((*each, replies) for each in CALIBRATION.items() for replies in (False, True)),
        ("prior", 0.2, False),
    ],
)
def test_thresholds_are_chosen_by_each_option(option, value, replies):
    base, _ = calibrate(FINE, replies=replies)
    model, expected = calibrate(replace(FINE, **{option: value}), replies=replies)
    found = model.thresholds[[0, 1, -1]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - base.thresholds[[0, 1, -1]]).abs().max() > 0.02


# The agent's relevance model


def weights(agent: Agent) -> dict[str, Tensor]:
    assert isinstance(agent.relevance, Calibrated)
    return copy.deepcopy(agent.relevance.state_dict())


def require_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_the_agent_s_relevance_has_the_options_at_first_and_after_a_round(tmp_path):
    options = replace(BASE, kind="refreshed", by_type=False, every=1, lr=0.02, refresh_steps=10)
    options = replace(options, validity=0.6, least=0.9)
    cfg = settings(tmp_path, relevance=options, seed=5)
    agent, world, ledger = prepare(cfg)
    init = world.init
    plain = copy.deepcopy(agent.relevance.network)
    agent.begin()
    theirs = train_relevance(plain, init.rows, init.features, options, seed=seed_of(cfg.seed, 0, 2))
    require_equal(weights(agent), theirs.state_dict())
    play(agent, ledger, 1)
    refresh(
        theirs,
        init.rows,
        init.features,
        options,
        valid=agent.memory.asked(),
        invalid=agent.memory.refused(),
        seed=seed_of(cfg.seed, 0, 2),
        round_=1,
    )
    assert theirs.scale[-1] > 0.5  # else all pass, whatever the threshold
    require_equal(weights(agent), theirs.state_dict())


# The rounds of six questions spend a budget of 600 in a hundred: a fiftieth of them is two.
@pytest.mark.parametrize(("every", "budget", "rounds"), [
    (1, 24, [1, 2, 3, 4]), (3, 24, [3]), (0, 24, [1, 2, 3, 4]), (0, 600, [2, 4])
])  # fmt: skip
def test_relevance_is_refreshed_every_so_many_rounds(every, budget, rounds, tmp_path):
    options = replace(settings(tmp_path).relevance, kind="refreshed", every=every)
    agent, _, ledger = prepare(settings(tmp_path, relevance=options, budget=budget))
    changed = []
    for step in range(1, 5):
        before = weights(agent)
        play(agent, ledger, step)
        after = weights(agent)
        if any(not torch.equal(value, after[name]) for name, value in before.items()):
            changed.append(step)
    assert changed == rounds


# The sizes of the networks

SIZES = Answerer(
    embed=5,
    hidden=6,
    layers=3,
    attention=7,
    rounds=3,
    fc=[9, 11],
    coordinates=False,
    cnn_width=4,
    film_blocks=3,
    film_width=10,
    module_hidden=12,
    module_state=13,
    objects=2,
    image_width=8,
)
MAP = (15, 4, 5)
TOKENS, ANSWERS = 17, 14
ARITY = [-1, -1, -1, -1, 0, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1]
RNN = {"rnn.embed": (TOKENS, 5)} | {
    f"rnn.rnn.weight_{kind}_l{layer}": (24, 5 if kind == "ih" and not layer else 6)
    for layer in range(3)
    for kind in ("ih", "hh")
}


def head(inputs: int, outputs: int = ANSWERS) -> dict[str, tuple[int, ...]]:
    return {
        "classifier.0": (9, inputs),
        "classifier.2": (11, 9),
        "classifier.4": (outputs, 11),
    }


def attention(channels: int) -> dict[str, tuple[int, ...]]:
    parts = {"Wv": (7, 6, 1, 1), "Wu": (7, 6), "Wp": (1, 7, 1, 1)}
    rounds = {f"stacked-attn-{i}.{name}": size for i in range(3) for name, size in parts.items()}
    return RNN | {"image_proj": (6, channels, 1, 1)} | rounds


EXPECTED = {
    "sa": attention(15) | head(6),
    "cnn_lstm": RNN | {"cnn.0": (4, 15, 1, 1)} | head(6 + 4 * 2 * 2),
    "lstm": RNN | head(6),
    "film": RNN
    | {"film": (3 * 2 * 10, 6), "stem.1": (10, 17, 3, 3), "out": (10, 12, 1, 1)}
    | {f"blocks.{i}.first": (10, 12, 1, 1) for i in range(3)}
    | {f"blocks.{i}.second": (10, 10, 3, 3) for i in range(3)}
    | head(10),
    "modules": {
        "objects.embed": (13, 17),
        "module.film": (TOKENS, 4 * 12),
        "module.inside": (TOKENS, 1),
        "module.word": (TOKENS, 13),
        "module.of_object": (12, 2 * 13 + 2),
        "module.of_value": (12, 2 * 13),
        "module.member": (1, 12),
        "module.joined": (12, 6 * 13 + 2),
        "module.result": (13, 12),
    }
    | head(13),
}
CONVOLUTIONS = {
    f"convolutions.{i}": (8, inputs, side, side)
    for i, inputs, side in ((0, 3, 5), (2, 8, 3), (4, 8, 3))
}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The sizes of all weights that are not biases or scales."""
    return {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in model.named_parameters()
        if value.dim() > 1
    }


@pytest.mark.parametrize("name", ANSWERERS)
def test_an_answerer_has_the_sizes_that_are_said(name):
    options = replace(SIZES, name=name)
    sizes = {"tokens": TOKENS, "answers": ANSWERS, "feature_size": MAP, "arity": ARITY}
    model = build_answerer(options, **sizes)
    assert shapes(model) == EXPECTED[name]
    if name == "modules":
        assert model.project(torch.rand(1, *MAP)).shape == (1, 2, 1 + 13)
    placed = build_answerer(replace(options, coordinates=True), **sizes)
    changed = {"image_proj": (6, 17, 1, 1)} if name == "sa" else {}
    assert shapes(placed) == EXPECTED[name] | changed


def test_relevance_has_the_sizes_of_stacked_attention_whatever_answers():
    sizes = {"tokens": TOKENS, "feature_size": MAP}
    for name in ANSWERERS:
        model = build_relevance(replace(SIZES, name=name), **sizes)
        assert shapes(model) == attention(15) | head(6, 1)
    images = {"tokens": TOKENS, "feature_size": (3, 32, 24), "images": True}
    model = build_relevance(SIZES, **images)
    inner = {f"network.{key}": size for key, size in (attention(8) | head(6, 1)).items()}
    assert shapes(model) == CONVOLUTIONS | inner


@pytest.mark.parametrize("form", ["program", "text"])
def test_all_networks_of_a_run_have_the_sizes_of_its_answerer(form, tmp_path):
    relevance = replace(settings(tmp_path).relevance, kind="learned")
    cfg = settings(tmp_path, answerer=SIZES, question_form=form, relevance=relevance)
    agent, world, _ = prepare(cfg)
    words = world.words
    reads = words.tokens if form == "program" else words.words
    sizes = {"tokens": len(reads), "answers": len(words.answers)}
    sizes |= {"feature_size": world.feature_size, "arity": arities(words.tokens)}
    assert shapes(agent.answerer) == shapes(build_answerer(SIZES, **sizes))
    expected = build_relevance(SIZES, tokens=len(words.tokens), feature_size=world.feature_size)
    assert shapes(agent.relevance.network) == shapes(expected)
    for name in ("film", "modules") if form == "program" else ("cnn_lstm",):
        learned = learn_offline(agent, cfg, world, name, 0)
        assert shapes(learned) == shapes(build_answerer(replace(SIZES, name=name), **sizes))
