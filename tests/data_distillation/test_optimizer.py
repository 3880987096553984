"""The learning rates at each step, and which parameters have which."""

import pytest
import torch
from torch import nn

from data_distillation.config import Config
from data_distillation.optimizer import build_optimizer, drops


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))


def test_the_rate_of_360k_steps_drops_at_252000_and_324000():
    cfg = Config()
    assert drops(cfg) == [252_000, 324_000]
    _, schedule = build_optimizer(tiny(), cfg)
    (factor, *_) = schedule.lr_lambdas
    done = (0, 250, 500, 251_999, 252_000, 323_999, 324_000, 359_999)
    expected = (1 / 3, 2 / 3, 1, 1, 0.1, 0.1, 0.01, 0.01)
    assert [factor(step) for step in done] == pytest.approx(expected)


def test_drops_are_whole_tenths_of_every_length():
    for steps in (*range(10, 3000), 130_000, 199_999, 270_000, 360_000, 1_000_003):
        assert drops(Config(steps=steps)) == [7 * steps // 10, 9 * steps // 10]
    baseline = Config(steps=130_000, milestones=[0.76923077, 0.92307693])
    assert drops(baseline) == [100_000, 120_000]
    assert drops(Config(steps=1)) == [1]  # after the last step, which is of no consequence


def test_biases_have_their_own_rate_and_decay_and_norms_no_decay():
    for decay in (False, True):
        cfg = Config(lr=0.3, bias_lr=2.0, bias_decay=decay, weight_decay=0.01, warmup=0)
        optimizer, _ = build_optimizer(tiny(), cfg)
        found = [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
        assert found == [(0.3, 0.01, 1), (0.6, 0.01 * decay, 1), (0.3, 0.0, 2)]
        assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_frozen_parameters_are_left_out():
    model = tiny()
    model[0].requires_grad_(False)
    optimizer, _ = build_optimizer(model, Config(optimizer="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]
