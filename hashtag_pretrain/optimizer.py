"""SGD with Nesterov momentum, a rate linear in the batch, a warm-up and ten halvings: Sec. 2."""

from functools import partial

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from common.optim import parameter_groups, warmup_multistep
from hashtag_pretrain.config import Config
from hashtag_pretrain.net.parallel import shard_optimizer


def build_optimizer(model: nn.Module, cfg: Config, steps: int) -> tuple[Optimizer, LambdaLR]:
    """The optimizer, and its schedule over `steps`."""
    groups = parameter_groups(model, weight_decay=cfg.weight_decay, decay_norm=cfg.decay_norm)
    nesterov = cfg.nesterov and cfg.momentum > 0
    make = partial(SGD, lr=cfg.peak_lr(), momentum=cfg.momentum, nesterov=nesterov)
    optimizer = shard_optimizer(groups, cfg.parallel, make)
    return optimizer, build_schedule(optimizer, cfg, steps)


def build_schedule(optimizer: Optimizer, cfg: Config, steps: int) -> LambdaLR:
    """From `warmup_lr` up to the peak, then `gamma` ** k on [k, k + 1) / (drops + 1) of the run."""
    warmup = int(min(cfg.warmup_images / cfg.batch_size, cfg.warmup_most * steps))
    milestones = {round(k * steps / (cfg.drops + 1)) for k in range(1, cfg.drops + 1)}
    return warmup_multistep(
        optimizer,
        milestones=sorted(milestones - {0}),
        warmup=warmup,
        warmup_start=cfg.warmup_lr / cfg.peak_lr() if cfg.peak_lr() else 1.0,
        gamma=cfg.gamma,
    )


def steps_of(images: int, batch_size: int) -> int:
    """Optimizer steps that see at least `images` images; none for -1."""
    return max(0, -(-images // batch_size))
