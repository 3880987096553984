"""The optimizer of Sec. 4 and that of the miniature, with their learning rates at each step."""

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from common.optim import one_cycle, parameter_groups, warmup_multistep
from nonlocal_.config import Config


def build_optimizer(model: nn.Module, cfg: Config) -> tuple[Optimizer, LambdaLR]:
    """The optimizer of the parameters that are trained, and its schedule.

    As in the official code all are decayed but those of batch norm; biases too.
    """
    groups = parameter_groups(model, weight_decay=cfg.weight_decay)
    optimizer: Optimizer
    if cfg.optimizer == "adamw":
        optimizer = AdamW(groups, cfg.lr)
    else:
        optimizer = SGD(groups, cfg.lr, cfg.momentum, nesterov=cfg.nesterov and cfg.momentum > 0)
    if cfg.schedule == "one_cycle":
        return optimizer, one_cycle(optimizer, cfg.steps)
    return optimizer, warmup_multistep(
        optimizer, milestones=drops(cfg), warmup=cfg.warmup, warmup_start=cfg.warmup_start
    )


def drops(cfg: Config) -> list[int]:
    """The steps after which the rate is divided by 10, 150k and 300k of 400k."""
    return sorted({max(1, int(share * cfg.steps + 1e-6)) for share in cfg.milestones})
