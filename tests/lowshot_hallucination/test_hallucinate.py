"""G, augmentation of a support and the joint loss: `lowshot_hallucination/hallucinate.py`.

The references are loops over classes and prototypical networks in three lines.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_hallucination.hallucinate import (
    Hallucination,
    Hallucinator,
    Support,
    augment_support,
    build_generator,
    joint_loss,
    shared_spread,
)

COUNTS = (1, 2, 5, 7, 3)
KINDS = ("learned", "gaussian", "dropout", "weighted", "none")


def some_support(counts=COUNTS, width=6, dtype=torch.float32, seed=0) -> Support:
    """Features of a ReLU, NaN at the padding."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(counts), max(counts), width, generator=generator, dtype=dtype)
    support = Support(features.relu(), torch.tensor(counts))
    return support._replace(
        features=support.features.masked_fill(~support.mask[..., None], torch.nan)
    )


def prototypical(support: Support, queries: Tensor) -> Tensor:
    """Minus squared distances (Q, m) to the class means."""
    rows = zip(support.features, support.counts.tolist(), strict=True)
    means = torch.stack([row[:count].mean(0) for row, count in rows])
    return -(queries[:, None] - means).square().sum(2)


def identity(seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
    return seeds


def trained_like(**options) -> nn.Module:
    """G with weights that are not those of the start."""
    return build_generator(Hallucination(init="gaussian", **options), 6)


# G


@pytest.mark.parametrize(("width", "count"), [(512, 1_050_112), (2048, 16_783_360)])
def test_g_has_the_parameters_of_the_paper(width, count):
    assert sum(each.numel() for each in Hallucinator(width).parameters()) == count


@pytest.mark.parametrize("noise", [0, 3, 20])
@pytest.mark.parametrize("layers", [1, 3])
def test_g_at_first_copies_its_seed_whatever_the_noise(noise, layers):
    network = Hallucinator(8, noise=noise, layers=layers)
    x = torch.randn(50, 8).relu()
    assert torch.equal(network(x, torch.randn(50, noise or 8)), x)


def test_g_that_is_given_the_noise_first_copies_the_noise():
    # What an implementation does that concatenates [z, x] and keeps the identity on top.
    x, z = torch.randn(2, 50, 8).relu()
    assert torch.equal(Hallucinator(8)(z, x), z)


def test_the_noise_has_a_gradient_at_the_first_weights():
    network = Hallucinator(8)
    network(torch.rand(5, 8), torch.randn(5, 8)).square().sum().backward()
    assert network.layers[0].weight.grad[:, 8:].abs().max() > 0


def test_g_is_three_linear_layers_with_a_relu_after_each():
    network = Hallucinator(4, noise=2, init="gaussian")
    x, z = torch.randn(9, 4), torch.randn(9, 2)
    state = network.state_dict()
    expected = torch.cat([x, z], 1)
    for i in range(3):
        expected = (expected @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]).relu()
    torch.testing.assert_close(network(x, z), expected)
    assert (expected > 0).any()
    assert (expected == 0).any()


def test_the_other_starts_are_what_they_are_named():
    torch.manual_seed(0)
    drawn = Hallucinator(256, init="gaussian").layers[0].weight
    assert drawn.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    near = Hallucinator(256, init="identity_noise").layers[1].weight - torch.eye(256)
    assert near.std().item() == pytest.approx(0.1 * math.sqrt(2 / 256), rel=0.02)


# Augmentation


@pytest.mark.parametrize("n_aug", [2, 4, 5, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_every_class_gets_exactly_n_aug_finite_examples(kind, n_aug):
    generate = build_generator(Hallucination(kind=kind), 6)
    real = some_support()
    made = augment_support(real, n_aug, generate)
    assert made.counts.tolist() == [max(count, n_aug) for count in COUNTS]
    assert made.features.shape == (5, max(7, n_aug), 6)
    assert made.features[made.mask].isfinite().all()


@pytest.mark.parametrize("n_aug", [3, 9])
def test_real_examples_stay_as_they_are_bit_for_bit(n_aug):
    real = some_support()
    made = augment_support(real, n_aug, trained_like())
    for k, count in enumerate(COUNTS):
        assert torch.equal(made.features[k, :count], real.features[k, :count])


@pytest.mark.parametrize("noise_in", ["always", "never"])
@pytest.mark.parametrize("n_aug", [3, 5, 8])
def test_augmentation_equals_a_loop_over_classes_with_the_same_draws(n_aug, noise_in):
    real = some_support()
    generate = trained_like(noise_in=noise_in, noise=4)
    torch.manual_seed(3)
    made = augment_support(real, n_aug, generate)
    torch.manual_seed(3)
    missing = [max(0, n_aug - count) for count in COUNTS]
    uniform = torch.rand(sum(missing), dtype=torch.float64).split(missing)
    noise = torch.randn(sum(missing), 4) * (noise_in == "always")
    for k, (count, u, z) in enumerate(zip(COUNTS, uniform, noise.split(missing), strict=True)):
        rows = list(real.features[k, :count])
        for i in range(missing[k]):
            seed = real.features[k, math.floor(u[i] * count)]
            rows.append(generate.network(seed[None], z[i : i + 1])[0])
        torch.testing.assert_close(made.features[k, : made.counts[k]], torch.stack(rows))


def test_seeds_are_real_examples_of_the_class_equally_often():
    real = some_support((1, 2, 3, 4))
    drawn = torch.zeros(4, 4)
    seen = []

    def record(seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        same = (seeds[:, None] == real.features[owner]).all(2)  # (R, N)
        seen.append(same.sum(1))
        drawn.index_add_(0, owner, same.float())
        return seeds

    torch.manual_seed(0)
    augment_support(real, 4004, record)
    assert (torch.cat(seen) == 1).all()
    for count, row in zip((1, 2, 3, 4), drawn, strict=True):
        expected = (4004 - count) / count
        assert not row[count:].any()
        chi2 = ((row[:count] - expected) ** 2 / expected).sum()
        assert chi2 < 16.3  # 3 degrees of freedom, p = 0.001


def test_nothing_is_generated_for_classes_that_have_enough():
    sizes = []

    def record(seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        sizes.append(owner.tolist())
        return seeds

    real = some_support()
    made = augment_support(real, 3, record)
    assert sizes == [[0, 0, 1]]
    assert made.features[2, 5:].isnan().all()  # padding stays as it is
    assert torch.equal(
        augment_support(some_support((3, 4)), 3, record).counts, torch.tensor([3, 4])
    )
    assert sizes[1] == []


def test_an_episode_of_mixed_shots_equals_separate_supports():
    # Without noise, classes of one shot or enough of them leave nothing to chance.
    real = some_support((1, 5, 1, 7))
    generate = trained_like(noise_in="never")
    queries = torch.rand(10, 6)
    whole = prototypical(augment_support(real, 5, generate), queries)
    for k, count in enumerate((1, 5, 1, 7)):
        alone = Support(real.features[k : k + 1, :count], real.counts[k : k + 1])
        made = augment_support(alone, 5, generate)
        torch.testing.assert_close(prototypical(made, queries), whole[:, k : k + 1])


def test_the_order_of_the_slots_only_chooses_other_seeds():
    real = some_support((4,))
    swapped = Support(real.features[:, [3, 1, 0, 2]], real.counts)
    torch.manual_seed(0)
    one = augment_support(real, 4000, identity).features[0].mean(0)
    torch.manual_seed(1)
    other = augment_support(swapped, 4000, identity).features[0].mean(0)
    torch.testing.assert_close(one, other, rtol=0, atol=0.08)


def test_half_precision_features_become_single_without_a_change():
    real = some_support()
    half = real._replace(features=real.features.half())
    made = augment_support(half, 5, trained_like())
    assert made.features.dtype == torch.float32
    assert torch.equal(made.features[3, :7], half.features[3, :7].float())


@pytest.mark.parametrize("counts", [(0, 2), (1, 4)])
def test_counts_outside_the_slots_are_refused(counts):
    with pytest.raises(ValueError, match=r"counts \[\d, \d\] must be 1 to 3"):
        augment_support(Support(torch.rand(2, 3, 4), torch.tensor(counts)), 5, identity)
    with pytest.raises(ValueError, match=r"must be \(m, N, d\)"):
        augment_support(Support(torch.rand(3, 4), torch.tensor([1, 1])), 5, identity)


# The joint step


@pytest.mark.parametrize("n_aug", [2, 5, 20])
def test_g_at_its_start_leaves_the_logits_of_one_shot_as_they_are(n_aug):
    real, queries = some_support((1, 1, 1)), torch.rand(10, 6)
    generate = build_generator(Hallucination(), 6)
    made = augment_support(real, n_aug, generate)
    torch.testing.assert_close(prototypical(made, queries), prototypical(real, queries))


def joint(n_aug: int, counts=COUNTS):
    """Loss of double precision by an embedding and G, as a function of their weights."""
    torch.manual_seed(0)
    width = 3
    network = Hallucinator(width, init="gaussian").double()
    real = some_support(counts, width, torch.float64)
    real = real._replace(features=real.features.nan_to_num())
    queries = torch.rand(8, width, dtype=torch.float64)
    labels = torch.arange(8) % len(counts)
    names = [name for name, _ in network.named_parameters()]

    def loss(phi: Tensor, *weights: Tensor) -> Tensor:
        def imagine(seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
            z = torch.randn_like(seeds)
            given = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(network, given, (seeds, z))

        def learner(support: Support, queries: Tensor) -> Tensor:
            embedded = support._replace(features=support.features @ phi)
            return prototypical(embedded, queries @ phi)

        torch.manual_seed(1)
        return joint_loss(learner, imagine, real, queries, labels, n_aug)

    phi = torch.randn(width, width, dtype=torch.float64)
    # The biases of the start put units without inputs at 0, where a ReLU has no derivative.
    noise = [0.1 * torch.randn_like(each) for each in network.parameters()]
    weights = [phi, *(w.detach() + n for w, n in zip(network.parameters(), noise, strict=True))]
    return loss, [each.requires_grad_() for each in weights]


def test_the_gradients_of_the_joint_loss_are_those_of_finite_differences():
    loss, weights = joint(n_aug=4)
    assert torch.autograd.gradcheck(loss, weights)


def test_g_has_no_gradient_where_all_classes_have_enough():
    loss, weights = joint(n_aug=4, counts=(4, 6))
    phi, *others = torch.autograd.grad(loss(*weights), weights)
    assert phi.abs().max() > 0
    assert all(torch.equal(each, torch.zeros_like(each)) for each in others)


def test_the_joint_loss_is_the_cross_entropy_by_the_augmented_support():
    real, queries, labels = some_support(), torch.rand(8, 6), torch.arange(8) % 5
    generate = trained_like(noise_in="never")
    torch.manual_seed(0)
    loss = joint_loss(prototypical, generate, real, queries, labels, 6)
    torch.manual_seed(0)
    logits = prototypical(augment_support(real, 6, generate), queries)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels).item())
    plain = joint_loss(prototypical, generate, real, queries, labels, 0)
    expected = F.cross_entropy(prototypical(real, queries), labels)
    assert plain.item() == pytest.approx(expected.item())


def test_a_few_joint_steps_lower_the_loss_through_g_alone():
    torch.manual_seed(0)
    centres = 3 * torch.rand(6, 6)
    real = Support(
        (centres[:, None] + torch.randn(6, 1, 6)).relu(), torch.ones(6, dtype=torch.int64)
    )
    labels = torch.arange(60) % 6
    queries = (centres[labels] + torch.randn(60, 6)).relu()
    generate = build_generator(Hallucination(), 6)
    weights = list(generate.parameters())
    losses = []
    for _ in range(60):
        loss = joint_loss(prototypical, generate, real, queries, labels, 5)
        losses.append(loss.item())
        with torch.no_grad():
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= 3e-3 * slope
    assert losses[-1] < 0.7 * losses[0]


# The generators of the ablation


def made_by(generate: nn.Module, rows: int = 4000, counts=(3,)) -> tuple[Support, Tensor]:
    """A real support and `rows` examples of its first class."""
    real = some_support(counts)
    seeds = real.features[0, :1].expand(rows, -1)
    torch.manual_seed(0)
    return real, generate(seeds, real, torch.zeros(rows, dtype=torch.int64))


@pytest.mark.parametrize(
    ("noise_in", "training", "test"),
    [("always", 1, 1), ("training", 1, 0), ("test", 0, 1), ("never", 0, 0)],
)
def test_noise_is_drawn_where_noise_in_says_so(noise_in, training, test):
    generate = trained_like(noise_in=noise_in)
    for drawn in (training, test):
        _, made = made_by(generate, rows=20)
        assert bool((made != made[0]).any()) is bool(drawn)
        generate.eval()


def test_g_of_the_mean_imagines_what_g_makes_of_the_mean_of_a_classs_real_examples():
    real = some_support()
    generate = trained_like(seeds="mean", noise_in="never")
    made = augment_support(real, 6, generate)
    for k, count in enumerate(COUNTS):
        mean = real.features[k, :count].mean(0, keepdim=True)
        expected = generate.network(mean, torch.zeros(1, 6)).expand(max(0, 6 - count), -1)
        torch.testing.assert_close(made.features[k, count : made.counts[k]], expected)
    assert (made.features[0, 1] > 0).any()


def test_gaussian_noise_has_the_covariance_that_it_is_given():
    root = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    generate = build_generator(Hallucination(kind="gaussian", std=0.5), 2, spread=root)
    seeds = torch.tensor([[5.0, 7.0]]).expand(100_000, 2)
    torch.manual_seed(0)
    made = generate(seeds, some_support(), torch.zeros(100_000, dtype=torch.int64))
    torch.testing.assert_close(made.mean(0), seeds[0], rtol=0, atol=0.02)
    torch.testing.assert_close(made.T.cov(), 0.25 * root @ root, rtol=0.03, atol=0.01)


def test_standard_deviations_are_a_diagonal_spread():
    options = Hallucination(kind="gaussian")
    alone = build_generator(options, 2, spread=torch.tensor([2.0, 3.0]))
    assert torch.equal(alone.spread, torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    assert torch.equal(build_generator(options, 2).spread, torch.eye(2))


def test_the_shared_spread_squared_is_the_covariance_within_classes():
    torch.manual_seed(0)
    labels = torch.tensor([4, 4, 4, 9, 9, 7, 7, 7, 7])
    features = torch.randn(9, 3, dtype=torch.float64) + labels[:, None]
    scatter = torch.zeros(3, 3, dtype=torch.float64)
    for label in (4, 7, 9):
        rows = features[labels == label]
        scatter += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
    root = shared_spread(features, labels)
    torch.testing.assert_close(root @ root, (scatter / 9).float())
    torch.testing.assert_close(root, root.T)


def test_dropout_keeps_the_mean_and_goes_on_in_tests():
    generate = build_generator(Hallucination(kind="dropout", rate=0.25), 6).eval()
    real, made = made_by(generate)
    seed = real.features[0, 0]
    assert (made[:, seed > 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(made.mean(0), seed, rtol=0.05, atol=1e-6)


def test_weighted_averages_lie_between_the_real_examples_and_are_uniform():
    real, made = made_by(build_generator(Hallucination(kind="weighted"), 6), counts=(3, 5))
    rows = real.features[0, :3]
    solved = torch.linalg.lstsq(
        torch.cat([rows.T, torch.ones(1, 3)]).double(),
        torch.cat([made.T, torch.ones(1, 4000)]).double(),
    )
    weights = solved.solution.T  # (R, 3)
    torch.testing.assert_close(weights.float() @ rows, made)
    assert weights.min() > -1e-5
    # Of a flat Dirichlet distribution of three: mean 1/3, variance 1/18.
    torch.testing.assert_close(weights.mean(0).float(), torch.full((3,), 1 / 3), rtol=0, atol=0.02)
    torch.testing.assert_close(weights.var(0).float(), torch.full((3,), 1 / 18), rtol=0.1, atol=0)


def test_the_weighted_average_of_one_example_is_a_copy():
    real, made = made_by(build_generator(Hallucination(kind="weighted"), 6), counts=(1, 5))
    torch.testing.assert_close(made, real.features[0, :1].expand(4000, -1))


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        (Hallucination(), True),
        (Hallucination(trained="never"), False),
        (Hallucination(trained="outputs/other"), False),
    ],
)
def test_only_a_jointly_trained_g_has_gradients(options, trained):
    weights = list(build_generator(options, 6).parameters())
    assert len(weights) == 6
    assert all(each.requires_grad is trained for each in weights)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_other_generators_have_no_parameters(kind):
    assert list(build_generator(Hallucination(kind=kind), 6).parameters()) == []


def test_none_fills_up_nothing():
    assert Hallucination(kind="none").fill_to == 0
    assert Hallucination(n_aug=7).fill_to == Hallucination(n_aug=7).fill_in_training == 7
    real = some_support()
    assert augment_support(real, 0, identity) is real


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "gan"),
        ("init", "zero"),
        ("noise_in", "tests"),
        ("seeds", "median"),
        ("n_aug", 1),
        ("layers", 0),
        ("noise", -1),
        ("std", -0.1),
        ("rate", 1.0),
        ("trained", ""),
    ],
)
def test_options_that_mean_nothing_are_refused_by_their_key(name, value):
    with pytest.raises(ValueError, match=f"hallucination.{name}"):
        Hallucination(**{name: value})


@pytest.mark.parametrize("kind", ["none", "weighted", "views"])
def test_the_mean_is_a_seed_of_g_alone(kind):
    with pytest.raises(ValueError, match=f"seeds=mean has no effect with .*kind={kind}"):
        Hallucination(kind=kind, seeds="mean")


def test_analogies_are_built_elsewhere():
    with pytest.raises(ValueError, match=r"baselines/analogies\.py"):
        build_generator(Hallucination(kind="analogies"), 6)
