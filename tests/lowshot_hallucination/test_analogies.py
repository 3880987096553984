"""The older generator: centroids, quadruplets, training, generation."""

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

from lowshot_hallucination.baselines.analogies import (
    Analogies,
    AnalogyGenerator,
    cluster,
    improve,
    mine,
    train_analogies,
)
from lowshot_hallucination.hallucinate import Support, augment_support

SMALL = Analogies(centroids=3, hidden=8, iterations=20)


def moving_classes(seed=0, classes=4, d=6):
    """Classes of 30 examples that all vary along one direction, (120, d), and their labels."""
    random = torch.Generator().manual_seed(seed)
    means = 3 * torch.rand(classes, 1, d, generator=random)
    along = torch.linspace(0, 2, 30)[:, None] * torch.tensor([1.0, 1, 0, 0, 0, 0])
    values = means + along + 0.02 * torch.randn(classes, 30, d, generator=random)
    return values.clamp(min=0).flatten(0, 1), torch.arange(classes).repeat_interleave(30)


MEANS = moving_classes()[0].view(4, 30, 6).mean(1)


def distance_to_mean(x):
    """Logits (B, 4) of the classes of `moving_classes`."""
    return -torch.cdist(x, MEANS).square()


def test_centroids_are_those_of_k_means_from_the_same_start():
    values = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    expected, _ = kmeans2(values.double().numpy(), values[:5].double().numpy(), 7, minit="matrix")
    found = improve(values, values[:5], 7)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_centroid_without_examples_stays():
    values = torch.tensor([[0.0], [1.0]])
    found = improve(values, torch.tensor([[0.5], [90.0]]), 3)
    assert found.tolist() == [[0.5], [90.0]]


def test_a_class_of_few_examples_has_each_as_a_centroid():
    values = torch.tensor([[0.0], [3.0], [9.0]])
    found = cluster(values, 100, 20, torch.Generator().manual_seed(0))
    assert sorted(found[:, 0].tolist()) == [0, 3, 9]


def test_quadruplets_of_three_classes_by_hand():
    """The differences: (-1, 0); (0, -2); (-1, -0.1), which is near the first and a bit along
    the second."""
    centroids = [
        torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [0.0, 2.0]]),
        torch.tensor([[5.0, 5.0], [6.0, 5.1]]),
    ]
    expected = [[0, 1, 4, 5], [1, 0, 5, 4], [2, 3, 4, 5], [3, 2, 5, 4], [4, 5, 0, 1], [5, 4, 1, 0]]
    assert sorted(mine(centroids).tolist()) == expected


def test_quadruplets_are_those_of_a_search_over_all_ordered_pairs():
    random = torch.Generator().manual_seed(0)
    centroids = [torch.randn(k, 5, generator=random) for k in (3, 4, 1, 2)]
    rows = torch.cat(centroids).double()
    owner = [0] * 3 + [1] * 4 + [2] + [3] * 2
    pairs = [(a, b) for a in range(10) for b in range(10) if a != b and owner[a] == owner[b]]
    expected = []
    for a, b in pairs:
        others = [(c, d) for c, d in pairs if owner[c] != owner[a]]
        cosines = [
            torch.cosine_similarity(rows[a] - rows[b], rows[c] - rows[d], dim=0).item()
            for c, d in others
        ]
        expected.append([a, b, *others[int(np.argmax(cosines))]])
    assert sorted(mine(centroids).tolist()) == sorted(expected)


def test_base_classes_without_analogies_are_refused():
    with pytest.raises(ValueError, match="2 base classes have no analogies"):
        mine([torch.ones(1, 3), torch.randn(4, 3)])


def test_the_network_has_three_layers_of_the_benchmarks_widths():
    generator = AnalogyGenerator([torch.zeros(2, 64)] * 2, 512)
    count = sum(p.numel() for p in generator.parameters())
    assert count == (3 * 64 * 512 + 512) + (512 * 512 + 512) + (512 * 64 + 64)


def test_a_class_moves_as_the_base_classes_do():
    """G learns to move a seed by D - C, where both are of another class."""
    values, labels = moving_classes()
    options = Analogies(centroids=6, hidden=64, iterations=600, batch_size=64, lr=0.05)
    generator = train_analogies(values, labels, options, classifier=distance_to_mean, seed=0)
    centroids = generator.centroids
    a, b, c, d = centroids[mine(list(centroids.split(generator.counts.tolist())))].unbind(1)
    error = (generator.complete(a, c, d) - b).square().mean()
    assert error < 0.3 * (a - b).square().mean()  # a copy of A's
    assert not any(p.requires_grad for p in generator.parameters())


def test_imagined_examples_fill_a_support_as_those_of_g_do():
    values, labels = moving_classes()
    generator = train_analogies(values, labels, SMALL, classifier=distance_to_mean, seed=0)
    real = Support(values.view(4, 30, 6)[:2, :3], torch.tensor([1, 3]))
    torch.manual_seed(0)
    full = augment_support(real, 3, generator)
    assert full.counts.tolist() == [3, 3]
    assert torch.equal(full.features[1], real.features[1])
    assert (full.features >= 0).all()
    torch.manual_seed(0)
    assert torch.equal(augment_support(real, 3, generator).features, full.features)


def test_half_precision_and_labels_with_gaps_are_taken_with_a_classifier_of_its_own():
    values, labels = moving_classes()
    options = Analogies(centroids=3, hidden=8, iterations=20, classifier_iterations=20)
    half = train_analogies(values.half(), labels, options, seed=0)
    gaps = train_analogies(values.half().float(), 7 + 3 * labels, options, seed=0)
    assert torch.equal(half.fc3.weight, gaps.fc3.weight)


def test_a_rate_that_kills_every_unit_stops_with_a_sentence():
    values, labels = moving_classes()
    options = Analogies(centroids=3, hidden=8, iterations=50, lr=100)
    with pytest.raises(FloatingPointError, match=r"lower analogies\.lr"):
        train_analogies(values, labels, options, classifier=distance_to_mean, seed=0)


def test_centroids_are_drawn_from_one_base_class_uniformly():
    """Classes of 1 and of 3 centroids: half of the rows, and each pair a ninth of the others."""
    generator = AnalogyGenerator([torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [4.0]])], 3)
    for layer in (generator.fc1, generator.fc2, generator.fc3):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    generator.fc3.weight.data = torch.tensor([[0.0, 1, 10]])  # c + 10 d
    torch.manual_seed(0)
    found = generator(torch.zeros(9000, 1), None, None)[:, 0]
    values, counts = found.unique(return_counts=True)
    assert values.tolist() == [0, *(c + 10 * d for d in (1, 2, 4) for c in (1, 2, 4))]
    expected = torch.tensor([1 / 2] + [1 / 18] * 9)
    assert torch.allclose(counts / 9000, expected, atol=0.012)


def test_training_is_a_function_of_its_seed_and_leaves_the_global_random_state():
    values, labels = moving_classes()
    state = torch.get_rng_state()
    first, again, other = (
        train_analogies(values, labels, SMALL, classifier=distance_to_mean, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.fc3.weight, again.fc3.weight)
    assert not torch.equal(first.fc3.weight, other.fc3.weight)


@pytest.mark.parametrize(("key", "value"), [("centroids", 1), ("drop_every", 0), ("lr", 0.0)])
def test_impossible_options_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"analogies.{key}"):
        Analogies(**{key: value})
