"""The optimizer of Sec. 4 and that of the miniature, with their learning rates at each step."""

import math
from functools import partial

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from common.optim import parameter_groups, warmup_multistep
from maskx_rcnn.config import Config


def build_optimizer(model: nn.Module, cfg: Config) -> tuple[Optimizer, LambdaLR]:
    """The optimizer of the parameters that are trained, and its schedule."""
    groups = parameter_groups(
        model,
        weight_decay=cfg.weight_decay,
        decay_bias=cfg.bias_decay,
        lr=cfg.lr,
        bias_lr=cfg.bias_lr,
    )
    optimizer: Optimizer
    if cfg.optimizer == "adamw":
        optimizer = AdamW(groups, cfg.lr)
    else:
        optimizer = SGD(groups, cfg.lr, cfg.momentum)
    if cfg.schedule == "one_cycle":
        return optimizer, LambdaLR(optimizer, partial(one_cycle, steps=cfg.steps))
    milestones = sorted({max(1, round(share * cfg.steps)) for share in cfg.milestones})
    return optimizer, warmup_multistep(
        optimizer, milestones=milestones, warmup=cfg.warmup, warmup_start=cfg.warmup_start
    )


def one_cycle(done: int, *, steps: int) -> float:
    """Factor on the rate after `done` steps: half cosines from 1 / 25 up to 1, then to nearly 0.

    That of torch's OneCycleLR, as a function that a resumed run may ask for another length.
    """
    low, rise = 1 / 25, 0.3 * steps - 1  # steps of the rise
    share = done / rise if done <= rise else 1 - (done - rise) / (steps - 1 - rise)
    end = low if done <= rise else low / 1e4
    return end + (1 - end) * (1 - math.cos(math.pi * share)) / 2
