"""The low-shot problems of the test."""

import numpy as np
import pytest
import torch

from lowshot_hallucination.features.formats import Features
from lowshot_hallucination.features.problem import LowShot
from lowshot_hallucination.features.splits import ClassSplit
from lowshot_hallucination.protocol.draws import Draws, Problem, Test

CLASSES = 9  # a class of neither list is the last


def draw_problem(
    lowshot: LowShot, phase: str, n: int, draw: int, options: Test, seed: int = 0
) -> Problem:
    return Draws(lowshot, phase, options, seed=seed).problem(n, draw)


def small_lowshot(*, picks=False, rows=30, seed=0):
    """Shuffled features whose first is the row's number, the second its class."""
    random = np.random.default_rng(seed)
    split = ClassSplit([f"name{i}" for i in range(CLASSES)], [0, 3], [7, 1], [2, 5], [6, 4])
    features = []
    for each in (rows, 4):
        labels = random.permutation(np.repeat(np.arange(CLASSES), each))
        values = np.stack([np.arange(len(labels)), labels], 1).astype(np.float16)
        features.append(Features(values, labels))
    train, test = features
    files = None
    if picks:
        by_class = [np.flatnonzero(train.labels == k) for k in range(CLASSES)]
        files = [np.stack([random.permutation(r)[:20] for r in by_class]) for _ in range(5)]
    return LowShot(train, test, split, files)


@pytest.mark.parametrize(
    ("phase", "class_ids", "novel"), [("cv", [0, 2, 3, 5], [2, 5]), ("test", [1, 4, 6, 7], [4, 6])]
)
def test_a_phase_has_its_own_classes_and_all_their_queries(phase, class_ids, novel):
    lowshot = small_lowshot()
    problem = draw_problem(lowshot, phase, 2, 0, Test(base_support=5))
    assert problem.class_ids.tolist() == class_ids
    assert problem.class_ids[problem.novel].tolist() == novel
    assert problem.support.counts.tolist() == [2 if k in novel else 5 for k in class_ids]
    assert torch.equal(problem.queries[:, 1].long(), problem.class_ids[problem.labels])
    expected = np.flatnonzero(np.isin(lowshot.test.labels, class_ids))
    assert sorted(problem.queries[:, 0].tolist()) == expected.tolist()


def test_the_support_holds_distinct_rows_of_the_right_classes():
    problem = draw_problem(small_lowshot(), "test", 3, 1, Test(base_support=7))
    support, rows = problem.support, problem.rows
    assert support.features.dtype == torch.float32
    assert torch.equal(support.mask, rows >= 0)
    assert torch.equal(support.features[..., 0][support.mask].long(), rows[support.mask])
    owner = problem.class_ids[:, None].expand_as(rows)[support.mask]
    assert torch.equal(support.features[..., 1][support.mask].long(), owner)
    assert len(rows[support.mask].unique()) == support.counts.sum()


def test_split_files_give_the_first_n_of_their_candidates():
    lowshot = small_lowshot(picks=True)
    draws = Draws(lowshot, "cv", Test())
    for n in (1, 2, 20):  # 20 uses the whole list
        for draw in range(5):
            problem = draws.problem(n, draw)
            found = problem.rows[problem.novel][:, :n].tolist()
            assert found == lowshot.picks[draw][[2, 5], :n].tolist()


@pytest.mark.parametrize("picks", [True, False])
def test_the_examples_of_n_are_among_those_of_more(picks):
    draws = Draws(small_lowshot(picks=picks), "test", Test(base_support=5))
    few, many = draws.problem(2, 3), draws.problem(10, 3)
    assert torch.equal(few.rows[few.novel][:, :2], many.rows[many.novel][:, :2])
    assert torch.equal(few.rows[~few.novel][:, :5], many.rows[~many.novel][:, :5])


def test_a_problem_is_the_same_for_every_method_and_differs_between_draws():
    lowshot = small_lowshot()
    torch.manual_seed(0)
    first = draw_problem(lowshot, "test", 5, 2, Test())
    torch.manual_seed(1)
    np.random.seed(1)
    again = Draws(lowshot, "test", Test(shots=[5], draws=9, z_seeds=3)).problem(5, 2)
    assert torch.equal(first.rows, again.rows)
    others = [
        draw_problem(lowshot, "test", 5, 3, Test()),
        draw_problem(lowshot, "test", 5, 2, Test(), 1),
    ]
    for other in others:
        assert not torch.equal(first.rows, other.rows)


def test_draws_choose_every_example_equally_often():
    lowshot = small_lowshot(rows=10)
    draws = Draws(lowshot, "test", Test(base_support=1, draws=600))
    seen = np.concatenate([draws.problem(1, draw).rows[:, 0].numpy() for draw in range(600)])
    counts = np.bincount(seen, minlength=90)
    counts = counts[counts > 0]
    assert len(counts) == 40
    assert ((counts - 60) ** 2 / 60).sum() < 73  # chi-square of 36 degrees of freedom, p = 0.0003


def test_a_base_class_gives_all_examples_where_it_has_fewer_or_none_are_left_out():
    lowshot = small_lowshot(rows=30)
    for base_support in (0, 100):
        problem = draw_problem(lowshot, "cv", 1, 0, Test(base_support=base_support))
        assert problem.support.counts.tolist() == [30, 1, 30, 1]


def test_more_shots_than_examples_name_the_class_and_both_numbers():
    with pytest.raises(ValueError, match=r"class 'name2' has 3 examples .* fewer than n=5"):
        draw_problem(small_lowshot(rows=3), "cv", 5, 0, Test())
    with pytest.raises(ValueError, match=r"has 20 examples .* fewer than n=21"):
        draw_problem(small_lowshot(picks=True), "cv", 21, 0, Test())


def test_more_draws_than_split_files_are_refused():
    with pytest.raises(ValueError, match=r"test\.draws=10, but there are 5 split files"):
        Draws(small_lowshot(picks=True), "cv", Test(draws=10))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shots", []),
        ("shots", [0]),
        ("draws", 0),
        ("priors", [1.2]),
        ("shrinks", [0.0]),
        ("protocol", "old"),
        ("n_augs", [1]),
        ("z_seeds", 0),
        ("base_support", -1),
    ],
)
def test_impossible_options_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"test.{key}"):
        Test(**{key: value})
