"""The optimizer of Sec. 4 and that of the miniature, with their learning rates at each step."""

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from common.optim import one_cycle, parameter_groups, warmup_multistep
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
        return optimizer, one_cycle(optimizer, cfg.steps)
    milestones = sorted({max(1, round(share * cfg.steps)) for share in cfg.milestones})
    return optimizer, warmup_multistep(
        optimizer, milestones=milestones, warmup=cfg.warmup, warmup_start=cfg.warmup_start
    )
