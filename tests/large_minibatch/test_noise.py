"""Gradient noise scale: known noise is found again, minibatches follow from it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from large_minibatch.analysis.noise import (
    NoiseScale,
    examples_factor,
    largest_batch,
    measure,
    squared_norm,
    steps_factor,
)

D, TRUE = 50, 400.0  # numbers in the gradient; tr(Sigma) / |G|^2


def gradients(batch: int, count: int, seed: int) -> Tensor:
    """(count, D) mean gradients of `batch` examples each: |G|^2 = 1, tr(Sigma) = TRUE."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, D, generator=generator, dtype=torch.float64)
    G = torch.full((D,), 1 / math.sqrt(D), dtype=torch.float64)
    return G + noise * math.sqrt(TRUE / D / batch)


def test_exact_norms_give_the_exact_scale():
    scale = NoiseScale(small=32, big=1024)
    scale.update(1 + TRUE / 32, 1 + TRUE / 1024)
    assert scale.value == pytest.approx(TRUE, rel=1e-12)
    assert scale.signal == pytest.approx(1, rel=1e-12)
    assert scale.noise == pytest.approx(TRUE, rel=1e-12)


def test_known_noise_is_found_within_a_fifth_along_a_training_run():
    scale = NoiseScale(small=32, big=256, decay=0.99)
    for step in range(400):
        parts = gradients(32, 8, seed=step)  # eight workers
        scale.update(parts.square().sum(1).mean(), squared_norm([parts.mean(0)]))
    assert scale.value == pytest.approx(TRUE, rel=0.2)


def a_regression(count: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    """A linear model, data, and its noise scale, computed from the gradient of every example."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 20, generator=generator)
    y = x.sum(1, keepdim=True) * 0.3 + 3 * torch.randn(count, 1, generator=generator)
    model = nn.Linear(20, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    error = 2 * (model(x) - y).detach()
    each = torch.cat((error * x, error), dim=1)  # (count, 21)
    mean = each.mean(0)
    return model, x, y, ((each - mean).square().sum() / (count - 1) / mean.square().sum()).item()


def test_measured_on_a_model_it_is_that_of_the_examples_gradients():
    model, x, y, true = a_regression(40_000)
    batches = zip(x.split(50), y.split(50), strict=True)
    assert measure(model, F.mse_loss, batches).value == pytest.approx(true, rel=0.2)


def test_measuring_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.0), nn.Linear(3, 2))
    before = copy.deepcopy(model.state_dict())
    data = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(3)]
    scale = measure(model, F.cross_entropy, data)
    assert (scale.small, scale.big) == (8, 24)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_the_first_updates_are_not_drawn_towards_zero():
    scale = NoiseScale(small=1, big=2, decay=0.9)
    assert math.isnan(scale.value)
    for _ in range(3):
        scale.update(11.0, 6.0)  # |G|^2 = 1, tr(Sigma) = 10
        assert (scale.signal, scale.noise) == (pytest.approx(1), pytest.approx(10))


def test_no_signal_is_an_infinite_scale_and_no_noise_none():
    scale = NoiseScale(small=1, big=4, decay=0.0)
    scale.update(8.0, 1.0)
    assert scale.value == math.inf
    scale.update(1.0, 1.0)
    assert scale.value == 0


def test_the_estimate_resumes():
    first = NoiseScale(small=4, big=16)
    first.update(5.0, 2.0)
    second = NoiseScale(small=4, big=16)
    second.load_state_dict(first.state_dict())
    for scale in (first, second):
        scale.update(4.0, 2.5)
    assert first.value == second.value


def test_the_squared_norm_is_over_all_parts_and_wide():
    parts = [torch.full((3,), 2.0), None, torch.full((2, 2), 1.0)]
    assert squared_norm(parts).item() == 16
    assert squared_norm([torch.full((1000,), 300.0, dtype=torch.bfloat16)]).item() == 9e7


def test_at_the_noise_scale_steps_and_examples_are_twice_the_fewest():
    assert steps_factor(5000, 5000) == 2
    assert examples_factor(5000, 5000) == 2
    assert largest_batch(5000) == 4992  # 156 groups of 32
    assert largest_batch(5000, waste=0.1) == 480
    assert largest_batch(10) == 32
    assert examples_factor(1, 0) == math.inf


def test_wrong_use_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="accumulate more forwards or use more processes"):
        NoiseScale(small=32, big=32)
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        NoiseScale(small=1, big=2, decay=1.0)
    with pytest.raises(ValueError, match=r"nan and 1\.0 are not finite"):
        NoiseScale(small=1, big=2).update(math.nan, 1.0)
    with pytest.raises(ValueError, match=r"call backward\(\) first"):
        squared_norm([None])
    with pytest.raises(ValueError, match="no batch size follows"):
        largest_batch(math.inf)
    model, x, y, _ = a_regression(30)
    with pytest.raises(ValueError, match="Batches of 20 and 10 examples: drop the last"):
        measure(model, F.mse_loss, zip(x.split(20), y.split(20), strict=True))
    with pytest.raises(ValueError, match="1 batches: the noise scale needs two or more"):
        measure(model, F.mse_loss, [(x, y)])
