"""Novel, base, all, and all with a prior."""

import math

import numpy as np
import pytest
import torch

from lowshot_hallucination.protocol.metrics import accuracy, score
from lowshot_hallucination.protocol.prior import (
    choose_prior,
    curve,
    log_with_prior,
    with_prior,
)

NOVEL = torch.tensor([False, False, True, True])
LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def random_problem(queries=200, classes=14, seed=0, spread=3.0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (queries,), generator=random)
    logits = spread * torch.randn(queries, classes, generator=random)
    logits[torch.arange(queries), labels] += spread
    novel = torch.rand(classes, generator=random) < 0.4
    return logits, labels, novel


def slow_accuracy(logits, labels, k, allowed):
    """Percent of the queries whose label is among the k best of the classes allowed with it."""
    hits = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(allowed(label), key=lambda c: -row[c])
        hits.append(label in order[:k])
    return 100 * np.mean(hits)


@pytest.mark.parametrize(
    ("mu", "expected"),
    [
        (0.2, [0.5848469, 0.2151531, 0.1462117, 0.0537883]),
        (0.8, [0.1462117, 0.0537883, 0.5848469, 0.2151531]),
    ],
)
def test_the_prior_shares_out_the_mass_of_a_worked_example(mu, expected):
    assert torch.allclose(with_prior(LOGITS, NOVEL, mu), torch.tensor([expected]), atol=1e-6)


def test_the_models_own_mass_as_prior_leaves_its_probabilities():
    own = LOGITS.softmax(1)
    assert own[0, 2:].sum().item() == pytest.approx(0.1192029, abs=1e-6)
    assert torch.allclose(with_prior(LOGITS, NOVEL, own[0, 2:].sum().item()), own, atol=1e-6)


def test_scores_of_a_thousand_do_not_overflow():
    found = with_prior(torch.tensor([[1000.0, 0.0, 0.0, -1.0]]), NOVEL, 0.8)
    assert torch.allclose(found, torch.tensor([[0.2, 0.0, 0.5848469, 0.2151531]]), atol=1e-6)


def test_probabilities_with_a_prior_sum_to_one_at_every_prior():
    logits, _, novel = random_problem()
    for mu in (0, 0.05, 0.5, 1):
        assert torch.allclose(with_prior(logits, novel, mu).sum(1), torch.ones(200), atol=1e-5)


@pytest.mark.parametrize(("mu", "group"), [(0.0, "base"), (1.0, "novel")])
def test_a_prior_at_its_end_ranks_one_group_alone(mu, group):
    logits, labels, novel = random_problem()
    inside = novel if group == "novel" else ~novel
    own = inside[labels]
    ranked = log_with_prior(logits, novel, mu)
    within = score(logits, labels, novel)
    assert accuracy(ranked[own], labels[own]) == [within[f"{group}1"], within[f"{group}5"]]
    assert accuracy(ranked[~own], labels[~own]) == [0, 0]


def test_a_prior_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"is 1\.5: choose 0 to 1"):
        with_prior(LOGITS, NOVEL, 1.5)


def test_scores_are_those_of_a_search_query_by_query():
    logits, labels, novel = random_problem()
    everything = range(len(novel))
    own = novel[labels]
    ranked = with_prior(logits, novel, 0.7)
    expected = {}
    for k in (1, 5):
        for name, part in (("novel", own), ("base", ~own)):
            expected[f"{name}{k}"] = slow_accuracy(
                logits[part],
                labels[part],
                k,
                lambda y: [c for c in everything if novel[c] == novel[y]],
            )
        expected[f"all{k}"] = slow_accuracy(logits, labels, k, lambda y: everything)
        expected[f"prior{k}"] = slow_accuracy(ranked, labels, k, lambda y: everything)
    for k in (1, 5):
        joint = [slow_accuracy(logits[p], labels[p], k, lambda y: everything) for p in (own, ~own)]
        expected[f"balanced{k}"] = np.mean(joint)
    assert score(logits, labels, novel, prior=0.7) == pytest.approx(expected)
    older = score(logits, labels, novel, protocol="hg")
    assert [older["novel5"], older["base5"]] == pytest.approx(joint)


def test_classes_that_only_the_older_protocol_knows_compete_in_it_alone():
    """A class of neither list, the last, outscores the label of the only query."""
    logits, labels = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([1])
    older = score(logits, labels, torch.tensor([False, True, False]), protocol="hg")
    newer = score(logits[:, :2], labels, torch.tensor([False, True]))
    assert (older["novel1"], newer["novel1"]) == (0, 100)


def test_all_is_the_mean_over_images_and_balanced_that_of_the_groups():
    logits = torch.eye(8)[[0, 0, 0, 7]]  # 3 base queries are right, the novel one comes last
    logits[3] = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
    novel = torch.arange(8) == 7
    found = score(logits, torch.tensor([0, 0, 0, 7]), novel)
    assert (found["all5"], found["balanced5"], found["novel1"]) == (75, 50, 100)


def test_fewer_than_five_novel_classes_are_a_top_5_of_all_of_them():
    logits, labels, _ = random_problem()
    found = score(logits, labels, torch.arange(14) < 3)
    assert found["novel5"] == 100
    assert found["base5"] < 100


def test_a_score_far_below_any_constant_still_beats_a_masked_class():
    logits = torch.tensor([[-5e3, -6e3, 0.0, 0.0]])
    found = score(logits, torch.tensor([0]), NOVEL)
    assert found["base1"] == 100


def test_a_group_without_queries_scores_nan():
    found = score(LOGITS, torch.tensor([0]), NOVEL)
    assert math.isnan(found["novel1"])
    assert found["all1"] == found["base1"] == 100


def test_the_curve_is_the_accuracy_at_each_prior():
    logits, labels, novel = random_problem(spread=1.5)
    priors = [0, 0.05, 0.35, 0.8, 1]
    found = curve(logits, labels, novel, priors)
    own = novel[labels]
    for place, mu in enumerate(priors):
        ranked = log_with_prior(logits, novel, mu)
        for name, part in (("novel", own), ("base", ~own), ("all", own | ~own)):
            assert found[name][place] == pytest.approx(accuracy(ranked[part], labels[part])[1])


def test_the_chosen_prior_is_best_on_average_over_the_draws():
    problems = [random_problem(seed=seed, spread=1.0) for seed in range(3)]
    priors = [i / 20 for i in range(21)]
    means = [np.mean([score(*p, prior=mu)["prior5"] for p in problems]) for mu in priors]
    assert choose_prior(problems, priors[::-1]) == priors[int(np.argmax(means))]


def test_of_equal_priors_the_smallest_is_chosen():
    logits = torch.tensor([[9.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 9.0]])
    novel = torch.arange(6) > 2
    outcome = (logits, torch.tensor([0, 5]), novel)
    assert choose_prior([outcome], [0.9, 0.4, 0.2, 0.0]) == 0.2
