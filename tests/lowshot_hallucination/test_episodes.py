"""Episodes: disjoint, without repetition, uniform, a function of the seed."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from lowshot_hallucination.features.episodes import Episodes, Sampler

SIZES = (9, 30, 12, 10, 17)  # of classes 2, 3, 5, 8, 13
CLASSES = (2, 3, 5, 8, 13)


def rows(seed=0):
    """Values (n, 2) that are the row's number and class, in a random order; class 4 is not base."""
    labels = np.repeat((*CLASSES, 4), (*SIZES, 40))
    labels = np.random.default_rng(seed).permutation(labels)
    return np.stack([np.arange(len(labels)), labels], axis=1).astype(np.float32), labels


def sampler(**options):
    values, labels = rows()
    settings = {"shots": [1, 2, 5], "queries": 3} | options
    return Sampler(values, labels, CLASSES, Episodes(**settings))


def used(support):
    """Row numbers in the support of each class."""
    return [set(x[:n, 0].tolist()) for x, n in zip(*support, strict=True)]


@pytest.mark.parametrize("options", [{}, {"mixed": False}, {"classes": 3}])
def test_support_and_queries_are_other_rows_of_the_class_that_the_label_says(options):
    draw = sampler(**options)
    for seed in range(200):
        support, queries, labels = draw.draw(seed)
        m = options.get("classes", 5)
        assert support.counts.shape == (m,)
        assert queries.shape == (3 * m, 2)
        classes = support.features[:, 0, 1]  # class ids
        assert set(classes.tolist()) <= set(CLASSES)
        assert (classes.diff() > 0).all()  # each once, in the order of the ids
        assert (support.features[..., 1] == classes[:, None]).all()  # padding of the class too
        assert torch.equal(queries[:, 1], classes[labels])
        for k, chosen in enumerate(used(support)):
            asked = queries[labels == k, 0].tolist()
            assert len(chosen) == support.counts[k]
            assert len(set(asked)) == 3
            assert not chosen & set(asked)


def test_padding_repeats_the_first_example_so_that_no_further_row_is_in_the_support():
    support, _, _ = sampler().draw(0)
    assert support.counts.min() < 5
    for x, n in zip(*support, strict=True):
        assert (x[n:] == x[0]).all()


def test_an_episode_is_a_function_of_its_seed_and_not_of_what_was_drawn_before():
    one, other = sampler(), sampler()
    other.draw(5)
    torch.rand(3)
    for left, right in ((one.draw(7), other.draw(7)), (one.draw(7), one.draw(7))):
        assert torch.equal(left[0].features, right[0].features)
        assert torch.equal(left[0].counts, right[0].counts)
        assert torch.equal(left[1], right[1])
    assert not torch.equal(one.draw(7)[1], one.draw(8)[1])


def test_an_episode_does_not_use_the_numbers_of_the_global_generator_with_its_seed():
    draw, same = sampler(), []
    for seed in range(100):
        torch.manual_seed(seed)
        same.append(torch.equal(draw.shots[torch.randint(3, (5,))], draw.draw(seed)[0].counts))
    assert sum(same) < 10


def test_mixed_shots_differ_in_an_episode_and_one_shot_has_no_slot_too_many():
    mixed = [sampler().draw(seed)[0].counts for seed in range(50)]
    assert any(len(counts.unique()) > 1 for counts in mixed)
    supports = [sampler(mixed=False).draw(seed)[0] for seed in range(50)]
    for support in supports:
        assert support.counts.unique().tolist() == [support.features.shape[1]]
    assert {support.features.shape[1] for support in supports} == {1, 2, 5}


def test_classes_shots_and_rows_are_drawn_uniformly():
    draw = sampler(classes=2, shots=[1, 2, 4], queries=1)
    classes, shots, first, asked = [], [], [], []
    for seed in range(4000):
        support, queries, labels = draw.draw(seed)
        classes += support.features[:, 0, 1].int().tolist()
        shots += support.counts.tolist()
        first += support.features[:, 0].int().tolist()
        asked += queries.int().tolist()
        assert labels.tolist() == [0, 1]
    assert chisquare(np.bincount(classes)[list(CLASSES)]).pvalue > 1e-3
    assert chisquare(np.bincount(shots)[[1, 2, 4]]).pvalue > 1e-3
    for drawn in (first, asked):
        of_class = [row for row, label in drawn if label == 3]
        counts = np.unique(of_class, return_counts=True)[1]
        assert len(counts) == 30
        assert chisquare(counts).pvalue > 1e-3


def test_the_class_of_least_rows_gives_all_of_them():
    support, queries, labels = sampler(shots=[6]).draw(0)
    rows_of = {*used(support)[0], *queries[labels == 0, 0].tolist()}
    assert len(rows_of) == 9


def test_half_precision_and_tensors_give_the_same_rows_as_float32():
    values, labels = rows()
    draws = [
        Sampler(x, y, CLASSES, Episodes(shots=[1, 5])).draw(3)
        for x, y in (
            (values, labels),
            (values.astype(np.float16), labels),
            (torch.from_numpy(values), torch.from_numpy(labels)),
        )
    ]
    for draw in draws:
        assert draw[0].features.dtype == draw[1].dtype == torch.float32
        assert torch.equal(draw[0].features, draws[0][0].features)
        assert torch.equal(draw[1], draws[0][1])


def test_a_class_with_too_few_rows_stops_with_its_name_and_the_counts():
    said = r"base class 2 has 9 rows, but an episode takes 7 \(episodes.shots\) and 3"
    with pytest.raises(ValueError, match=said):
        sampler(shots=[1, 7])
    with pytest.raises(ValueError, match="base class two has 9 rows"):
        Sampler(*rows(), CLASSES, Episodes(shots=[7]), names=["zero", "one", "two"])
    with pytest.raises(ValueError, match="base class 6 has 0 rows"):
        Sampler(*rows(), [*CLASSES, 6], Episodes(shots=[1]))


def test_more_classes_than_there_are_stop():
    with pytest.raises(ValueError, match=r"episodes.classes=6, but there are 5 base classes"):
        sampler(classes=6)
    with pytest.raises(ValueError, match="but there are 1 base classes"):
        Sampler(*rows(), [3, 3], Episodes(shots=[1]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 1}, "episodes.classes=1"),
        ({"shots": []}, r"episodes.shots=\[\]"),
        ({"shots": [0, 1]}, r"episodes.shots=\[0, 1\]"),
        ({"queries": 0}, "episodes.queries=0"),
        ({"per_step": 0}, "episodes.per_step=0"),
    ],
)
def test_options_without_an_episode_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        Episodes(**options)
