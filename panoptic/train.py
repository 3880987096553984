"""Train a network for both tasks and evaluate the merge: `python train.py`, or see conf/experiment.

The demo trains the paper's pair of networks (Sec. 7) on the built-in images and prints PQ, SQ and
RQ of their merged outputs, beside each part alone and beside a map without an instance network.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from functools import partial
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from common import config, dist
from common.data import seed_everything, seed_of
from common.optim import follow, parameter_groups, warmup_multistep
from common.run import checkpoint, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from panoptic import data, model
from panoptic.config import MAY_CHANGE, Config
from panoptic.evaluate import Network, evaluate
from panoptic.weights import initialise

COLUMNS = tuple(f"{name}{group}" for group in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ"))


def train(cfg: Config) -> dict[str, float]:
    """Train to `cfg.steps`, resuming from `cfg.output_dir`; return the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    kind = "all" if cfg.model.name == "separate" else "stuff"
    training = data.build(cfg.data, "train", semantic=kind)
    validation = data.build(cfg.data, "val", semantic=kind, categories=training.categories)
    network = build(cfg, training).to(dist.device())
    optimizer = SGD(group_parameters(network, cfg), cfg.lr, cfg.momentum)
    schedule = build_schedule(optimizer, cfg)
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer, "schedule": schedule}
    parts |= {"category_ids": list(training.categories), "batch_size": cfg.batch_size}
    parts |= {"options": Options(cfg, MAY_CHANGE)}
    start = checkpoint.resume(
        cfg.output_dir, steps=None if cfg.only_evaluate else cfg.steps, **parts
    )
    follow(schedule)  # `steps` may have changed
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, cfg.init)

    stop = start if cfg.only_evaluate else cfg.steps
    loader = data.training_batches(training, cfg, start, stop)
    if start < stop:  # else the evaluation comes at once
        data.check_validation(validation, cfg.data.workers)
    log = Log(cfg.output_dir, cfg.steps, every=cfg.log_every, start=start)
    wrapped = dist.wrap(network)
    for step, batch in enumerate(loader, start + 1):
        optimizer.zero_grad(set_to_none=True)
        losses = backward(network, wrapped, batch, step, cfg)
        if cfg.clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), cfg.clip)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        log(step, force=step == 1, **losses, lr=lr)
        stopping = dist.stop_requested()
        if stopping or step % cfg.save_every == 0 or step == cfg.steps:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)
        if cfg.evaluate_every and step % cfg.evaluate_every == 0 and step < cfg.steps:
            log(step, force=True, **evaluate(network, cfg, validation))

    metrics = evaluate(network, cfg, validation, show=True)
    log(max(1, stop), force=True, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=COLUMNS)
    return metrics


def build(cfg: Config, dataset: data.Panoptic) -> Network:
    """The network for the classes of a data set, with the weights that `cfg.init` names."""
    labels = dataset.labels
    network = model.build(
        cfg.model, thing_classes=len(labels.things), stuff_classes=len(labels.stuff)
    )
    for source in filter(None, (cfg.init, cfg.init_also)):
        loaded = initialise.initialise(network, source, category_ids=list(labels.things))
        if dist.is_main():
            print(loaded)
    if cfg.sync_bn and dist.world_size() > 1 and torch.cuda.is_available():
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network


def group_parameters(network: Network, cfg: Config) -> list[dict[str, Any]]:
    """For the optimizer; the pair's two networks, which share nothing, may differ in lr."""
    parts: list[tuple[nn.Module | None, float]] = [(network, cfg.lr)]
    if cfg.semantic_lr and isinstance(network, model.Separate):
        parts = [(network.instance, cfg.lr), (network.semantic, cfg.semantic_lr)]
    return [
        group
        for part, lr in parts
        if part is not None
        for group in parameter_groups(
            part, weight_decay=cfg.weight_decay, decay_norm=cfg.norm_decay, lr=lr
        )
    ]


def build_schedule(optimizer: Optimizer, cfg: Config) -> LambdaLR:
    """The learning rate of each step."""
    if cfg.schedule == "poly":
        return LambdaLR(optimizer, partial(poly, steps=cfg.steps))
    milestones = sorted({max(1, round(share * cfg.steps)) for share in cfg.milestones})
    return warmup_multistep(
        optimizer, milestones=milestones, warmup=cfg.warmup, warmup_start=cfg.warmup_start
    )


def backward(
    network: Network, wrapped: nn.Module, batch: data.Batch, step: int, cfg: Config
) -> dict[str, Tensor]:
    """Add up the gradients of the batch's pieces; its losses, detached.

    wrapped: the network as `dist.wrap` returns it.
    """
    pieces = batch.split(cfg.accumulate)
    whole = batch_counts(network, pieces, cfg) if len(pieces) > 1 else None
    sums: dict[str, Tensor] = {}
    for number, piece in enumerate(pieces):
        # Regions are drawn at random: alike whichever process computes this piece.
        seed_everything(seed_of(cfg.seed, step, dist.rank() * cfg.accumulate + number))
        with torch.autocast(dist.device().type, torch.bfloat16, enabled=cfg.amp):
            losses = wrapped(piece.images, piece.targets)
        require_finite(losses, step, piece.files)
        losses = weigh(losses, network.counts, whole)
        sum(losses.values(), torch.tensor(0.0)).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach()
    return sums


@torch.no_grad()
def batch_counts(network: Network, pieces: list[data.Batch], cfg: Config) -> Tensor:
    """What each loss of the whole batch, all pieces on all processes, is the mean over: (K,).

    It takes a forward pass of each piece, as the number of regions depends on the network. Running
    statistics of batch norms are left alone.
    """
    counts = []
    for piece in pieces:
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with torch.autocast(dist.device().type, torch.bfloat16, enabled=cfg.amp):
            functional_call(network, buffers, (piece.images, piece.targets))
        counts.append(torch.stack([*network.counts.values()]))
    return dist.total(torch.stack(counts).sum(0))


def weigh(
    losses: dict[str, Tensor], counts: dict[str, Tensor], whole: Tensor | None
) -> dict[str, Tensor]:
    """Losses of a piece by its share in the batch, so that the gradients add up to the batch's.

    counts: what each of K losses is the mean over. whole: the same of the batch (K,), summed here
    over the processes where each has one piece only. DDP averages over the processes.
    """
    # Differs: detectron2 averages the means of the GPUs, which weighs their regions unequally.
    own = torch.stack([*counts.values()])
    every = dist.total(own) if whole is None else whole
    shares = dist.world_size() * own.double() / every.clamp(min=1)
    return {name: losses[name] * share for name, share in zip(counts, shares.float(), strict=True)}


def poly(done: int, *, steps: int) -> float:
    """Factor on the learning rate after `done` steps: PSPNet's "poly" policy with power 0.9."""
    return (1 - min(done, steps) / steps) ** 0.9


def run(cfg: Config) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    return result.record(train, cfg, columns=COLUMNS)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        versus.run_all(run, cfg, columns=COLUMNS, curve="PQ")
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
