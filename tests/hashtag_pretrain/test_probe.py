"""The linear probe: its optimum, its grid, and a trunk that stays bit for bit as it was."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from hashtag_pretrain.model import Network, build_model
from hashtag_pretrain.targets.images import Images, centre_view
from hashtag_pretrain.targets.linear import Features, make_problem, solve_lbfgs
from hashtag_pretrain.targets.outcome import Outcome, Scores
from hashtag_pretrain.targets.probe import Probe, extract, fit_probe, probe, score_probe

from .small_target import READING, guard, small_target

SMALL = Probe(size=16, resize=16, images=8, decays=[1e-4, 1e-2], held_out=0.34)


def make_features(n=120, D=5, K=4):
    """Features on very different scales, whose classes overlap."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (n,), generator=generator)
    centres = torch.randn(K, D, generator=generator)
    values = centres[labels] + torch.randn(n, D, generator=generator)
    return Features(values * torch.tensor([1, 10, 0.1, 3, 1]) + 2, labels, torch.arange(n))


def objective(linear, features, decay):
    """Mean cross-entropy + decay / 2 |W|^2."""
    logits = F.linear(features.values.double(), linear.weight, linear.bias)
    return F.cross_entropy(logits, features.labels) + decay / 2 * linear.weight.square().sum()


def solve(features, decay, standardise):
    rows = torch.arange(len(features.labels))
    return solve_lbfgs(make_problem(features, rows, 4, decay, standardise=standardise), 1000)


@pytest.mark.parametrize("decay", [0.1, 1e-3])
def test_lbfgs_ends_where_the_gradient_of_autograd_is_zero(decay):
    features = make_features()
    linear = solve(features, decay, standardise=False)
    weight, bias = linear.weight.clone().requires_grad_(), linear.bias.clone().requires_grad_()
    logits = F.linear(features.values.double(), weight, bias)
    loss = F.cross_entropy(logits, features.labels) + decay / 2 * weight.square().sum()
    loss.backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-5


def test_lbfgs_finds_what_scipy_finds_by_newton_steps():
    features, decay = make_features(), 0.01
    x = np.hstack([features.values.double().numpy(), np.ones((120, 1))])
    hot = np.eye(4)[features.labels.numpy()]

    def loss(flat):
        z = x @ flat.reshape(4, 6).T
        top = z.max(1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(z - top).sum(1))
        p = np.exp(z - log_sum[:, None])
        w = flat.reshape(4, 6) * np.array([1, 1, 1, 1, 1, 0])
        value = (log_sum - (z * hot).sum(1)).mean() + decay / 2 * (w**2).sum()
        return value, ((p - hot).T @ x / 120 + decay * w).ravel()

    best = minimize(loss, np.zeros(24), jac=True, method="BFGS", options={"gtol": 1e-8})
    linear = solve(features, decay, standardise=False)
    ours = objective(linear, features, decay).item()
    assert ours == pytest.approx(best.fun, abs=1e-6)


def test_lbfgs_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, decay = make_features(), 0.01
    theirs = linear_model.LogisticRegression(C=1 / (120 * decay), max_iter=1000, tol=1e-6)
    theirs.fit(features.values.double().numpy(), features.labels.numpy())
    linear = solve(features, decay, standardise=False)
    weight = torch.from_numpy(theirs.coef_)
    other = replace(linear, weight=weight, bias=torch.from_numpy(theirs.intercept_))
    difference = objective(linear, features, decay) - objective(other, features, decay)
    assert abs(difference.item()) < 1e-4
    predictions = linear(features.values).argmax(1).numpy()
    assert (predictions == theirs.predict(features.values.double().numpy())).all()


def test_standardised_features_give_a_classifier_of_the_raw_ones():
    features = make_features()
    linear = solve(features, 0.01, standardise=True)
    values = features.values.double()
    std, mean = torch.std_mean(values, 0, correction=0)
    other = Features((values - mean) / std, features.labels, features.images)
    plain = solve(other, 0.01, standardise=False)
    assert torch.allclose(linear(features.values), plain(other.values), atol=1e-4)


def test_a_feature_that_is_constant_does_no_harm():
    features = make_features()
    features.values[:, 2] = 7.0
    linear = solve(features, 1e-3, standardise=True)
    assert torch.isfinite(linear.weight).all()


def small_model():
    """A net whose running statistics are not those that it starts with."""
    torch.manual_seed(0)
    model = build_model(Network("small", width=8), classes=5)
    model.train()
    model(torch.randn(8, 3, 16, 16))
    return model


@pytest.mark.parametrize("training", [True, False])
def test_the_trunk_stays_bit_for_bit_as_it_was(tmp_path, training):
    model = small_model().train(training)
    before = copy.deepcopy(model.state_dict())
    metrics = probe(model, small_target(tmp_path), SMALL, seed=0, reading=READING)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training is training
    assert all(p.grad is None for p in model.parameters())
    assert metrics == {"probe": 100.0, "probe5": 100.0}


def test_features_are_those_of_the_trunk_in_evaluation(tmp_path):
    model, target = small_model(), small_target(tmp_path)
    images = Images(target.train, centre_view(16, 16))
    features = extract(model, images, SMALL, READING)
    batch = torch.stack([images[i][0] for i in range(18)])
    expected = model.eval().features(READING.normalise(batch)).detach()
    assert torch.allclose(features.values, expected, atol=1e-5)
    assert torch.equal(features.labels, target.train.labels)


def test_the_test_images_are_not_opened_before_the_classifier_is_found(tmp_path):
    model, target = small_model(), guard(small_target(tmp_path))
    found = fit_probe(model, target.train, 3, SMALL, seed=0, reading=READING)
    assert len(found.scores) == 2
    with pytest.raises(RuntimeError, match="a test image was opened"):
        score_probe(model, found.model, target.test, SMALL, reading=READING)


def test_views_of_an_image_are_on_one_side_of_the_split(tmp_path):
    images = torch.arange(6).repeat(3)
    features = Features(torch.zeros(18, 2), images, images)
    assert features.rows(torch.tensor([1, 4])).tolist() == [1, 4, 7, 10, 13, 16]


def test_a_probe_of_random_views_runs(tmp_path):
    options = replace(SMALL, views=2, augment="shift")
    metrics = probe(
        small_model(), small_target(tmp_path), options, seed=0, reading=READING, folder=tmp_path
    )
    assert metrics["probe"] > 80
    lines = (tmp_path / "probe.csv").read_text().splitlines()
    assert lines[0] == "class,images,top1,top5"
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["blue", "4"],
        ["green", "4"],
        ["red", "4"],
    ]


def test_accuracy_counts_places_and_ties_count_against_the_class():
    scores = Scores()
    logits = torch.tensor([[3.0, 2, 1], [1, 1, 0], [0, 1, 2], [float("nan"), 9, 0]])
    scores.add(logits, torch.tensor([0, 0, 0, 1]))
    outcome = scores.outcome()
    assert outcome.places.tolist() == [0, 1, 2, 3]
    assert [outcome.accuracy(k) for k in (1, 2, 3)] == [25, 50, 75]
    assert scores.accuracy() == 25


def test_the_lower_bound_takes_duplicates_for_mistakes():
    outcome = Outcome(torch.zeros(10).long(), torch.tensor([0] * 8 + [1] * 2), torch.zeros(10))
    assert outcome.accuracy() == 80
    assert outcome.lower_bound(frozenset({0, 1, 9})) == pytest.approx(60)  # 80 - 2 of 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 0}, "probe.iterations"),
        ({"size": 300}, "probe.size=300"),
        ({"decays": []}, "probe.decays"),
        ({"held_out": 0.0}, "probe.held_out"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Probe(**options)
