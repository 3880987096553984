"""Learning-rate schedule and parameter groups of detection and classification recipes.

For an average of the weights over time torch's own class suffices:
`AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))` from `torch.optim.swa_utils`.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # _NormBase: batch and instance norms


def warmup_multistep(
    optimizer: Optimizer,
    *,
    milestones: Sequence[int],
    warmup: int = 0,
    warmup_start: float = 1 / 3,
    gamma: float = 0.1,
) -> LambdaLR:
    """Schedule for one `step()` per iteration: linear warm-up, then drops.

    The factor on each group's rate rises from `warmup_start` at the first iteration to 1 after
    `warmup` iterations, and is multiplied by `gamma` once each of `milestones` (iterations done,
    ascending) is reached. Raises ValueError for values out of order or range.
    """
    drops = list(milestones)
    if drops != sorted(set(drops)) or any(drop < 1 for drop in drops):
        raise ValueError(f"milestones={drops} must be positive and ascending.")
    if warmup < 0 or not 0 <= warmup_start <= 1:
        raise ValueError(f"warmup={warmup} must be >= 0, warmup_start={warmup_start} in 0..1.")
    factor = partial(_factor, drops=drops, warmup=warmup, start=warmup_start, gamma=gamma)
    return LambdaLR(optimizer, factor)


def one_cycle(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Schedule of `steps` iterations: half cosines from 1 / 25 of the rate to it, then to about 0.

    That of torch's OneCycleLR, as a function that a resumed run may ask for another length.
    """
    return LambdaLR(optimizer, partial(_cycle, steps=steps))


def follow(schedule: LambdaLR) -> None:
    """Give the optimizer the rates that `schedule` has at its step; call it after a resume.

    The checkpoint holds the rate that the run of before had next, which is another one where the
    length of the run, and with it the schedule, has changed.
    """
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _factor(done: int, *, drops: list[int], warmup: int, start: float, gamma: float) -> float:
    """Factor on the rate after `done` iterations."""
    rise = min(1.0, start + (1 - start) * done / warmup) if warmup else 1.0
    return rise * gamma ** bisect_right(drops, done)


def _cycle(done: int, *, steps: int) -> float:
    """Factor on the rate after `done` iterations."""
    low, rise = 1 / 25, 0.3 * steps - 1  # iterations of the rise
    share = done / rise if done <= rise else 1 - (done - rise) / (steps - 1 - rise)
    end = low if done <= rise else low / 1e4
    return end + (1 - end) * (1 - math.cos(math.pi * share)) / 2


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norm: bool = False,
    decay_bias: bool = True,
    lr: float | None = None,
    bias_lr: float = 1.0,
) -> list[dict[str, Any]]:
    """Trainable parameters of `model` as optimizer groups: weights, biases, normalisation layers.

    `decay_norm`, `decay_bias`: whether these are decayed too. `bias_lr`: factor on the rate of the
    biases outside normalisation layers; other values than 1 need the base rate `lr`.
    Empty groups are left out; a parameter used twice appears once.
    """
    if bias_lr != 1 and lr is None:
        raise ValueError(f"bias_lr={bias_lr} is a factor on lr: give lr too.")
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if isinstance(module, NORMS):
                norms.append(parameter)
            else:
                (biases if name.endswith("bias") else weights).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": weight_decay if decay_bias else 0.0},
        {"params": norms, "weight_decay": weight_decay if decay_norm else 0.0},
    ]
    if lr is not None:
        for group, factor in zip(groups, (1.0, bias_lr, 1.0), strict=True):
            group["lr"] = lr * factor
    return [group for group in groups if group["params"]]
