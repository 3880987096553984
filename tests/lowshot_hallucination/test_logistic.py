"""The benchmark's classifier."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from lowshot_hallucination.baselines.logistic import Classifier, Logistic, fit_logistic, fit_rows
from lowshot_hallucination.hallucinate import Support

NOVEL = torch.tensor([False, True, False])


def small_support(seed=0, counts=(30, 2, 25), d=4):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 30, d, generator=random) + torch.eye(3, d)[:, None]
    counts = torch.tensor(counts)
    features[torch.arange(30) >= counts[:, None]] = float("nan")  # padding is never read
    return Support(features, counts)


def test_the_fit_to_all_examples_is_the_minimum_that_l_bfgs_finds():
    """Novel examples weigh 1 / 3 together, as one of the three classes is novel."""
    support, decay = small_support(), 0.05
    options = Logistic(iterations=400, batch_size=0, lr=1.0, weight_decay=decay)
    found = fit_logistic(support, NOVEL, options, seed=0)
    x = torch.cat([support.features[k, :n] for k, n in enumerate(support.counts)]).double()
    y = torch.repeat_interleave(torch.arange(3), support.counts)
    weights = torch.where(y == 1, 1 / 3 / 2, 2 / 3 / 55).double()

    def objective(flat):
        both = torch.from_numpy(flat).view(3, 5).requires_grad_()
        each = F.cross_entropy(F.linear(x, both[:, :4], both[:, 4]), y, reduction="none")
        loss = (weights * each).sum() + decay / 2 * both.square().sum()
        loss.backward()
        return loss.item(), both.grad.flatten().numpy()

    best = minimize(objective, np.zeros(15), jac=True, options={"gtol": 1e-10}).x.reshape(3, 5)
    best = torch.from_numpy(best).float()
    queries = torch.randn(20, 4)
    expected = F.linear(queries, best[:, :4], best[:, 4])
    assert torch.allclose(found(queries), expected, atol=1e-3)


def test_steps_are_those_of_damped_momentum_but_for_the_first():
    """The series of w = 1 under loss w^2 / 2: the weight decay alone, on a class without a vote."""
    start = Classifier(1, 1, scale=0, generator=torch.Generator().manual_seed(5)).weight.item()
    series = [0.9, 0.801, 0.70389, 0.6094521, 0.5183635]
    for steps, expected in enumerate(series, 1):
        options = Logistic(iterations=steps, batch_size=0, lr=0.1, weight_decay=1.0)
        values, labels = torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)
        found = fit_rows(values, labels, labels > 0, 0.0, 1, options, seed=5)
        assert found.weight.item() / start == pytest.approx(expected, abs=1e-6)


def test_200_damped_steps_follow_their_recursion():
    w, velocity = 1.0, 0.0
    for step in range(200):
        velocity = w if step == 0 else 0.9 * velocity + 0.1 * w  # torch does not damp the first
        w -= 0.1 * velocity
    options = Logistic(iterations=200, batch_size=0, lr=0.1, weight_decay=1.0)
    values, labels = torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)
    found = fit_rows(values, labels, labels > 0, 0.0, 1, options, seed=5)
    start = Classifier(1, 1, scale=0, generator=torch.Generator().manual_seed(5)).weight.item()
    assert found.weight.item() / start == pytest.approx(w, abs=1e-6)


def test_batches_are_split_between_the_groups_as_the_classes_are():
    """With features that say nothing, the bias learns the share of each class in a batch."""
    support = Support(torch.zeros(3, 30, 2), torch.tensor([30, 1, 10]))
    options = Logistic(iterations=400, batch_size=300, lr=1.0, weight_decay=0.0)
    found = fit_logistic(support, NOVEL, options, seed=0)
    shares = found(torch.zeros(1, 2)).softmax(1)[0]
    assert torch.allclose(shares, torch.tensor([0.5, 1 / 3, 1 / 6]), atol=0.02)


def test_the_fit_is_a_function_of_its_seed():
    options = Logistic(iterations=20, batch_size=16)
    queries = torch.randn(5, 4)
    first, again, other = (
        fit_logistic(small_support(), NOVEL, options, seed=seed)(queries) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_all_classes_of_the_data_set_compete_where_class_ids_are_given():
    options = Logistic(iterations=300, batch_size=60, lr=0.5)
    ids = torch.tensor([2, 5, 9])
    support = Support(
        small_support().features + 4 * torch.eye(3, 4)[:, None], torch.tensor([30, 2, 25])
    )
    found = fit_logistic(support, NOVEL, options, seed=0, class_ids=ids, outputs=12)
    logits = found(5 * torch.eye(3, 4))
    assert logits.shape == (3, 12)
    assert logits.argmax(1).tolist() == [2, 5, 9]
    assert (logits.softmax(1)[:, ids].sum(1) > 0.95).all()  # the others have no examples


def test_the_cosine_classifier_ignores_the_length_of_a_feature():
    options = Logistic(iterations=300, batch_size=60, lr=0.5, cosine=True)
    found = fit_logistic(small_support(), NOVEL, options, seed=0)
    queries = torch.eye(3, 4)
    assert torch.allclose(found(queries), found(100 * queries), atol=1e-5)
    assert found(torch.zeros(1, 4)).isfinite().all()
    assert found(queries).abs().max() <= found.scale
    assert found(queries)[[0, 2]].argmax(1).tolist() == [0, 2]


def test_half_precision_features_are_fitted_in_single_precision():
    support = small_support()
    half = Support(support.features.half(), support.counts)
    whole = Support(half.features.float(), support.counts)
    options = Logistic(iterations=20, batch_size=16)
    found, expected = (fit_logistic(s, NOVEL, options, seed=0) for s in (half, whole))
    assert torch.equal(found.weight, expected.weight)


@pytest.mark.parametrize(
    ("key", "value"), [("iterations", 0), ("batch_size", -1), ("momentum", 1.5), ("lr", 0.0)]
)
def test_impossible_options_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"logistic.{key}"):
        Logistic(**{key: value})
