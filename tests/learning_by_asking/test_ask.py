"""Progress, scores and the choice: `learning_by_asking/ask.py`, against plain NumPy."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from learning_by_asking import ask
from learning_by_asking.ask import (
    Policy,
    Progress,
    choose,
    choose_most,
    correctness,
    entropy,
    expected_improvement,
    least_confident_type,
    round_robin_type,
    score_proposals,
    variation_ratio,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_probs(images: int = 3, proposals: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(images, proposals, 28, generator=seeded(seed), dtype=torch.float64).softmax(
        -1
    )


def some_types(images: int = 3, proposals: int = 5, seed: int = 1) -> Tensor:
    return torch.randint(13, (images, proposals), generator=seeded(seed))


def moved(before: float, after: float, **options: object) -> Progress:
    """Progress whose H went from one value to another between the last two refreshes."""
    progress = Progress(Policy(**options), budget=100)
    progress.before.fill_(before)
    progress.after.fill_(after)
    progress.known.fill_(True)
    return progress


def follow(trace: list[float], *, refresh: int = 50, **options: object) -> list[float]:
    """s of answer 3 after each of these soft outcomes, with 7 given as the type of each."""
    progress = Progress(Policy(refresh=refresh, **options), budget=1)
    found = []
    for value in trace:
        progress.update(torch.tensor([3]), torch.tensor([value]), torch.tensor([7]))
        found.append(float(progress.improvement()[..., 3].flatten()[0]))
    return found


# Progress


@pytest.mark.parametrize(("before", "after", "s"), [(0.1, 0.2, 0.5), (0.8, 0.9, 0.1111)])
def test_the_same_gain_counts_more_where_accuracy_is_low(before, after, s):
    assert moved(before, after).improvement().tolist() == pytest.approx([s] * 28, abs=1e-4)
    absolute = moved(before, after).improvement(relative=False)
    assert absolute.tolist() == pytest.approx([0.1] * 28)


def test_a_loss_of_accuracy_is_clipped_to_minus_one_or_to_nothing():
    assert moved(0.9, 0.1).improvement().tolist() == [-1] * 28
    assert moved(0.5, 0.4).improvement().tolist() == pytest.approx([-0.25] * 28)
    assert moved(0.9, 0.1, clip_negative=True).improvement().tolist() == [0] * 28


def test_accuracy_is_an_exponential_average_of_the_outcomes_of_an_answer():
    progress = Progress(Policy(rate=0.1), budget=1000)
    answers = torch.tensor([4, 4, 9, 4])
    progress.update(answers, torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.zeros(4, dtype=torch.int64))
    h = 1 / 28
    for value in (1, 0, 1):
        h += 0.1 * (value - h)
    assert float(progress.accuracy[4]) == pytest.approx(h)
    assert float(progress.accuracy[9]) == pytest.approx(0.9 / 28 + 0.1)
    assert progress.count[[4, 9, 0]].tolist() == [3, 1, 0]


def test_s_is_optimism_until_an_answer_was_seen_by_a_refresh():
    progress = Progress(Policy(refresh=3, optimism=0.7), budget=1)
    zero = torch.zeros(1, dtype=torch.int64)
    for _ in range(2):
        progress.update(zero, torch.ones(1), zero)
        assert progress.improvement().tolist() == [0.7] * 28
    progress.update(zero, torch.ones(1), zero)
    assert 0.5 < float(progress.improvement()[0]) < 1
    assert progress.improvement()[1:].tolist() == [0.7] * 27


def test_s_vanishes_on_a_constant_is_positive_on_a_ramp_and_decays_behind_it():
    constant = follow([0.6] * 1000)
    assert abs(constant[-1]) < 1e-6
    ramp = follow([0.1] * 400 + [0.1 + 0.8 * k / 600 for k in range(600)] + [0.9] * 800)
    assert abs(ramp[390]) < 5e-3
    assert min(ramp[500:1000]) > 0.05
    assert abs(ramp[-1]) < 1e-3


def test_s_of_a_step_shows_at_the_next_refresh_and_then_decays():
    step = follow([0.0] * 500 + [1.0] * 600)
    assert step[498] == -1  # H of an answer that is never right falls by more than half its value
    assert step[549] > 0.9
    assert all(a > b for a, b in zip(step[549::50], step[599::50], strict=False))


def test_s_of_an_oscillation_faster_than_the_refresh_is_small():
    assert max(map(abs, follow([0.0, 1.0] * 400)[500:])) < 1e-3


def test_an_answer_that_is_never_given_does_not_become_nan():
    progress = Progress(Policy(rate=0.9, refresh=10), budget=1)
    zeros = torch.zeros(1000, dtype=torch.int64)
    progress.update(zeros, torch.zeros(1000), zeros)
    assert float(progress.improvement()[0]) == 0


def test_a_round_counts_as_its_answers_one_by_one():
    answers = torch.randint(28, (300,), generator=seeded())
    types = torch.randint(13, (300,), generator=seeded(1))
    correct = torch.rand(300, generator=seeded(2))
    for factor in ask.FACTORS:
        whole, single = (Progress(Policy(refresh=7, factor=factor), budget=1) for _ in range(2))
        whole.update(answers, correct, types)
        for i in range(300):
            single.update(answers[i : i + 1], correct[i : i + 1], types[i : i + 1])
        for name, value in whole.state_dict().items():
            assert torch.equal(value, single.state_dict()[name]), name


def test_progress_goes_on_from_its_state_as_if_it_had_not_stopped():
    answers, types = torch.arange(28), torch.arange(28) % 13
    policy = Policy(refresh=5, factor="type_answer")
    whole, first, second = (Progress(policy, budget=1) for _ in range(3))
    for _ in range(2):
        whole.update(answers, torch.ones(28), types)
    first.update(answers, torch.ones(28), types)
    second.load_state_dict(first.state_dict())
    first.update(answers, torch.zeros(28), types)  # what was stored is a copy
    second.update(answers, torch.ones(28), types)
    assert torch.equal(whole.improvement(), second.improvement())


def test_the_refresh_is_two_percent_of_the_budget_unless_given():
    refreshes = [Progress(Policy(refresh=r), budget=4000).refresh for r in (0, 200)]
    assert refreshes == [80, 200]


def test_by_type_an_answer_moves_its_own_cell_and_impossible_cells_have_no_hope():
    possible = torch.ones(13, 28, dtype=torch.bool)
    possible[2, 5] = False
    progress = Progress(Policy(refresh=1, factor="type_answer"), budget=1, possible=possible)
    progress.update(torch.tensor([3]), torch.ones(1), torch.tensor([7]))
    s = progress.improvement()
    assert s.shape == (13, 28)
    assert 0 < float(s[7, 3]) < 1
    assert float(s[2, 5]) == 0
    assert int((s == 1).sum()) == 13 * 28 - 2


def test_correctness_is_zero_or_one_or_softly_the_probability():
    probs = torch.zeros(2, 28)
    probs[0, 3], probs[0, 4], probs[1, 4] = 0.6, 0.4, 1
    answers = torch.tensor([4, 4])
    assert correctness(probs, answers).tolist() == [0, 1]
    assert correctness(probs, answers, soft=True).tolist() == pytest.approx([0.4, 1])


# Scores


@pytest.mark.parametrize("factor", ask.FACTORS)
def test_the_score_is_the_sum_over_answers_by_a_plain_loop(factor):
    probs, types = some_probs(), some_types()
    s = torch.rand((28,) if factor == "answer" else (13, 28), generator=seeded(2)) * 2 - 1
    expected = np.zeros((3, 5))
    for i, p in np.ndindex(3, 5):
        row = s.numpy() if factor == "answer" else s.numpy()[types[i, p]]
        expected[i, p] = sum(probs[i, p, a].item() * row[a] for a in range(28))
    np.testing.assert_allclose(expected_improvement(probs, types, s), expected, atol=1e-6)


def test_lba_and_abs_progress_score_by_the_two_forms_of_progress():
    probs, types, h = some_probs(), some_types(), torch.linspace(0.1, 0.9, 28).double()
    progress = moved(0.3, 0.3)
    progress.after = h
    for score, s in (("lba", (h - 0.3) / h), ("abs_progress", (h - 0.3).abs())):
        found = score_proposals(probs, types, Policy(score=score), progress, generator=seeded())
        torch.testing.assert_close(found, probs @ s.clamp(-1, 1))


def test_with_a_constant_s_all_proposals_tie_exactly():
    probs = some_probs(50, 16).float()
    for s in (torch.full((28,), 0.3), torch.full((13, 28), 1.0)):
        assert expected_improvement(probs, some_types(50, 16), s).unique().numel() == 1


def test_entropy_and_variation_ratio_of_known_distributions():
    probs = torch.zeros(1, 3, 28)
    probs[0, 0, 5], probs[0, 1, :4], probs[0, 2] = 1, 0.25, 1 / 28
    assert entropy(probs)[0].tolist() == pytest.approx([0, np.log(4), np.log(28)], abs=1e-6)
    assert variation_ratio(probs)[0].tolist() == pytest.approx([0, 0.75, 27 / 28])


def test_what_has_no_type_has_no_hope_is_judged_alone_and_comes_last():
    probs = torch.full((1, 3, 28), 1 / 28, dtype=torch.float64)
    probs[0, 1:] = 0
    probs[0, 1:, 5] = 1
    types = torch.tensor([[-1, 0, 0]])  # the first is malformed, the others ask for `exist`
    s = torch.full((13, 28), 0.5, dtype=torch.float64)
    assert ask.expected_improvement(probs, types, s).tolist() == [[0, 0.5, 0.5]]
    probs[0, 2] = 1 / 28
    doubts = least_confident_type(probs, types)[0].tolist()
    assert doubts == pytest.approx([27 / 28, 27 / 56, 27 / 56])
    for seed in range(20):
        dice = torch.Generator().manual_seed(seed)
        assert round_robin_type(types, dice)[0].argmin() == 0


def test_the_least_confident_type_is_judged_by_all_its_proposals_in_the_round():
    probs = torch.zeros(2, 3, 28)
    for (i, p), top in np.ndenumerate([[0.9, 0.3, 0.4], [0.5, 0.8, np.nan]]):
        probs[i, p, 0] = top
    types = torch.tensor([[0, 4, 0], [4, 4, 0]])
    scores = least_confident_type(probs, types)
    expected = [[0.35, 1.4 / 3, 0.35], [1.4 / 3, 1.4 / 3, np.nan]]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_round_robin_goes_through_the_types_from_image_to_image():
    types = torch.arange(13).expand(26, 13)
    picks, _ = choose(
        round_robin_type(types, seeded()).float(), torch.ones(26, 13).bool(), 0, seeded()
    )
    assert ((picks[1:] - picks[:-1]) % 13 == 1).all()


def test_round_robin_takes_the_next_type_where_one_is_missing():
    types = torch.tensor([[3, 9]]).expand(13, 2)
    picks, _ = choose(
        round_robin_type(types, seeded()).float(), torch.ones(13, 2).bool(), 0, seeded()
    )
    assert sorted(picks.tolist()) == [0] * 7 + [1] * 6  # turns 10..12 and 0..3; 4..9


def test_random_scores_come_from_the_generator_alone():
    probs, types, policy = some_probs(), some_types(), Policy(score="random")
    progress = Progress(policy, budget=10)
    first, again, other = (
        score_proposals(probs, types, policy, progress, generator=seeded(k)) for k in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_oracle_loss_scores_by_the_losses_and_asks_for_them():
    probs, types, policy = some_probs(), some_types(), Policy(score="oracle_loss")
    progress, losses = Progress(policy, budget=10), torch.rand(3, 5)
    found = score_proposals(probs, types, policy, progress, generator=seeded(), losses=losses)
    assert torch.equal(found, losses)
    with pytest.raises(ValueError, match="score=oracle_loss"):
        score_proposals(probs, types, policy, progress, generator=seeded())


# The choice


def test_without_exploration_the_best_allowed_proposal_is_chosen_and_ties_go_to_the_first():
    scores = torch.tensor([[1.0, 3, 2, 3], [9, 1, 1, 0], [5, 5, 5, 5], [-np.inf, -np.inf, 0, 0]])
    allowed = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0]]).bool()
    picks, explored = choose(scores, allowed, 0.0, seeded())
    assert picks.tolist() == [1, 1, 2, 1]
    assert not explored.any()


def test_a_nan_score_never_wins_not_even_by_exploration():
    scores = torch.tensor([[np.nan, 0.0, np.nan, -1.0]]).expand(200, 4)
    for epsilon in (0.0, 1.0):
        picks, _ = choose(scores, torch.ones(200, 4).bool(), epsilon, seeded())
        assert set(picks.tolist()) == ({1} if epsilon == 0 else {1, 3})


def test_an_image_without_an_allowed_proposal_gets_minus_one():
    scores = torch.tensor([[0.0, 1.0], [np.nan, np.nan], [0.0, 1.0]])
    allowed = torch.tensor([[0, 0], [1, 1], [1, 1]]).bool()
    picks, explored = choose(scores, allowed, 1.0, seeded())
    assert picks[:2].tolist() == [-1, -1]
    assert explored.tolist() == [False, False, True]


def test_with_epsilon_one_the_choice_is_uniform_over_the_allowed_proposals():
    scores = torch.randn(6000, 6, generator=seeded())
    allowed = torch.tensor([True, False, True, True, True, True]).expand(6000, 6)
    picks, explored = choose(scores, allowed, 1.0, seeded(1))
    counts = np.bincount(picks, minlength=6)
    assert explored.all()
    assert counts[1] == 0
    assert chisquare(np.delete(counts, 1)).pvalue > 0.01


def test_proposals_in_random_order_are_chosen_uniformly_where_all_tie():
    probs = some_probs(6000, 5)
    order = torch.rand(6000, 5, generator=seeded(3)).argsort(1)
    scores = expected_improvement(probs, order, torch.full((28,), 0.4))
    picks, _ = choose(scores, torch.ones(6000, 5).bool(), 0.0, seeded())
    chosen = order.gather(1, picks[:, None])[:, 0]
    assert chisquare(np.bincount(chosen, minlength=5)).pvalue > 0.01


def test_a_share_of_epsilon_is_explored():
    _, explored = choose(torch.zeros(20000, 3), torch.ones(20000, 3).bool(), 0.1, seeded())
    assert float(explored.float().mean()) == pytest.approx(0.1, abs=0.01)


def test_scores_do_not_change_which_random_numbers_are_drawn():
    first, second = seeded(), seeded()
    for generator, scale in ((first, 1.0), (second, torch.nan)):
        choose(torch.randn(4, 3) * scale, torch.ones(4, 3).bool(), 0.5, generator)
    assert torch.equal(first.get_state(), second.get_state())


def test_the_most_are_the_best_of_all_images_in_order():
    scores = torch.tensor([[1.0, 9, np.nan], [8, 8, 2], [7, 0, 99]])
    allowed = torch.ones(3, 3).bool()
    allowed[2, 2] = False
    images, picks, explored = choose_most(scores, allowed, 0.0, seeded(), most=4)
    assert list(zip(images.tolist(), picks.tolist(), strict=True)) == [
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
    ]
    assert not explored.any()
    assert len(choose_most(scores, allowed, 0.0, seeded(), most=50)[0]) == 7


def test_exploring_most_draws_each_once_and_uniformly():
    counts = np.zeros(8)
    for seed in range(400):
        images, picks, explored = choose_most(
            torch.arange(8.0).view(2, 4), torch.ones(2, 4).bool(), 1.0, seeded(seed), most=3
        )
        chosen = (images * 4 + picks).tolist()
        assert len(set(chosen)) == 3
        assert explored.all()
        counts[chosen] += 1
    assert chisquare(counts).pvalue > 0.01


# Bad input


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"score": "best"}, "policy.score"),
        ({"factor": "type"}, "policy.factor"),
        ({"epsilon": 1.5}, "policy.epsilon"),
        ({"epsilon": float("nan")}, "policy.epsilon"),
        ({"rate": 0.0}, "policy.rate"),
        ({"rate": 1.0}, "policy.rate"),
        ({"optimism": 2.0}, "policy.optimism"),
        ({"refresh": -1}, "policy.refresh"),
        ({"global_pick": -1}, "policy.global_pick"),
    ],
)
def test_a_bad_option_is_named(options, key):
    with pytest.raises(ValueError, match=key):
        Policy(**options)


@pytest.mark.parametrize(
    ("answer", "correct", "kind", "message"),
    [
        (31, 1.0, 0, "vocabulary ids less 4"),
        (-1, 1.0, 0, "answers 0..27, not -1"),
        (3, 1.0, -1, "types 0..12, not -1"),
        (3, float("nan"), 0, "never NaN"),
    ],
)
def test_progress_refuses_what_is_no_reply(answer, correct, kind, message):
    progress = Progress(Policy(), budget=10)
    with pytest.raises(ValueError, match=message):
        progress.update(torch.tensor([answer]), torch.tensor([correct]), torch.tensor([kind]))
    assert int(progress.count.sum()) == 0


def test_progress_of_another_factor_is_refused():
    stored = Progress(Policy(), budget=10).state_dict()
    with pytest.raises(ValueError, match=r"policy\.factor"):
        Progress(Policy(factor="type_answer"), budget=10).load_state_dict(stored)
