"""Asking without images: seven kinds of question that are learned at different speeds, or never.

After n answers of kind k the learner is right with probability 1 - 27/28 exp(-n / tau_k) and
spreads the rest over the other answers. Four of the 28 answers belong to each kind. It asks until
the six kinds that can be learned are at 90 % on average, or 20,000 answers are bought.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from learning_by_asking.ask import Policy, Progress, choose, score_proposals

TAU = np.array([50, 100, 200, 400, 800, 1600, np.inf])
ROUND, PROPOSALS, BUDGET = 25, 16, 20_000


class Outcome(NamedTuple):
    answers: int  # until the goal, or the budget
    unlearnable: float  # share of the answers that went to the last kind
    correlation: float  # Spearman's, of tau and the mean time of asking


@cache
def simulate(score: str, seed: int, refresh: int = 200) -> Outcome:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    policy = Policy(score=score, refresh=refresh)
    progress = Progress(policy, budget=BUDGET)
    count, times = np.zeros(7), [[0.0] for _ in TAU]
    types = torch.zeros(ROUND, PROPOSALS, dtype=torch.int64)
    for spent in range(0, BUDGET, ROUND):
        accuracy = 1 - 27 / 28 * np.exp(-count / TAU)
        if accuracy[:6].mean() > 0.9:
            break
        kinds = rng.integers(7, size=(ROUND, PROPOSALS))
        answers = 4 * kinds + rng.integers(4, size=kinds.shape)
        probs = np.repeat((1 - accuracy[kinds, None]) / 27, 28, axis=2)
        np.put_along_axis(probs, answers[..., None], accuracy[kinds, None], 2)
        scores = score_proposals(
            torch.from_numpy(probs), types, policy, progress, generator=generator
        )
        picks, _ = choose(scores, torch.ones_like(types, dtype=torch.bool), 0.1, generator)
        asked = np.arange(ROUND), picks.numpy()
        correct = rng.random(ROUND) < accuracy[kinds[asked]]
        progress.update(torch.from_numpy(answers[asked]), torch.from_numpy(correct), types[:, 0])
        count += np.bincount(kinds[asked], minlength=7)
        for kind in kinds[asked]:
            times[kind].append(spent)
    means = [np.mean(each) for each in times]
    return Outcome(int(count.sum()), count[6] / count.sum(), spearmanr(TAU, means).statistic)


def test_asking_by_expected_improvement_needs_less_than_four_fifths_of_the_answers_of_random():
    lba, random = ([simulate(s, seed).answers for seed in range(5)] for s in ("lba", "random"))
    assert np.median(lba) < 0.8 * np.median(random)


def test_what_is_learned_sooner_is_asked_sooner():
    assert np.median([simulate("lba", seed).correlation for seed in range(5)]) > 0.7


def test_entropy_spends_most_of_the_budget_on_what_cannot_be_learned():
    found = simulate("entropy", 0)
    assert found.answers == BUDGET
    assert found.unlearnable > 0.5
    assert simulate("lba", 0).unlearnable < 0.2


@pytest.mark.slow
def test_a_slow_refresh_is_worse_than_asking_at_random():
    slow = [simulate("lba", seed, 2000).answers for seed in range(5)]
    assert np.median(slow) > np.median([simulate("random", seed).answers for seed in range(5)])
