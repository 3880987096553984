"""Train a ResNet at any minibatch: `python train.py`, or see conf/experiment for the others."""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import hydra
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common import config, dist
from common.data import seed_everything
from common.run import checkpoint, machine, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from large_minibatch import allreduce, data, recipe, sgd
from large_minibatch.config import MAY_CHANGE, Config
from large_minibatch.evaluate import History, contact_sheet, due, evaluate, settle_buffers
from large_minibatch.inputs.augment import mixup
from large_minibatch.model import resnet
from large_minibatch.norm import ghost
from large_minibatch.weights import initialise

COLUMNS = ("error", "train_error")  # percent


def train(cfg: Config) -> dict[str, float]:
    """Train for `cfg.epochs`, resuming from `cfg.output_dir`; return the errors in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    machine.keep_freed_memory()
    device = dist.device()
    training, validation = data.build(cfg.data, "train"), data.build(cfg.data, "val")
    plan = data.plan_of(cfg, len(training))
    schedule = build_schedule(cfg, plan)
    model = build_model(cfg, plan, len(training.classes)).to(device)
    optimizer = build_optimizer(cfg, model, schedule.lr(0))
    ema = get_ema_multi_avg_fn(cfg.ema)
    average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True) if cfg.ema else None
    final = average.module if average else model  # what is scored
    history = History()
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "history": history}
    parts |= {"average": average} if average else {}
    parts |= {"classes": training.classes, "batch_size": cfg.batch_size}
    parts |= {"options": Options(cfg, MAY_CHANGE, processes=processes_to_keep(cfg))}
    start = checkpoint.resume(
        cfg.output_dir, steps=None if cfg.only_evaluate else schedule.steps, **parts
    )
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, cfg.init)
    elif start < schedule.steps:  # a resumed run may have another data.val
        data.look_through(validation, cfg)  # its faults show now, not after an epoch

    stop = start if cfg.only_evaluate else schedule.steps
    steps = data.training_batches(training, cfg, plan, start, stop)
    log = Log(cfg.output_dir, schedule.steps, every=cfg.log_every, start=start)
    network = parallel(model, cfg)
    for step, pieces in enumerate(steps, start + 1):
        recipe.set_lr(optimizer, schedule.lr(step - 1))  # Sec. 2.2: in every iteration
        optimizer.zero_grad(set_to_none=True)
        losses, wrong = [], torch.zeros((), dtype=torch.int64, device=device)
        for number, batch in enumerate(pieces, 1):
            batch = batch.to(device)
            images = data.normalise(batch.images, cfg.data)  # (N, 3, H, W)
            images, targets = mixup(images, batch.labels, cfg.mixup, len(training.classes))
            with allreduce.summing(network, last=number == plan.accumulation):
                with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                    logits = network(images).float()  # (N, K)
                loss = F.cross_entropy(logits, targets, label_smoothing=cfg.smoothing)
                require_finite({"classification": loss}, step, batch.files)
                (loss / plan.accumulation).backward()  # Remark 3: mean over all kn images
            losses.append(loss.detach())
            wrong += (logits.detach().argmax(1) != batch.labels).sum()
        ghost.update_running(model)  # Sec. 2.3: once a step, as each of k workers does
        optimizer.step()
        if average:
            average.update_parameters(model)
        history.count(wrong, cfg.batch_size)
        log(step, force=step == 1, loss=torch.stack(losses).mean(), lr=schedule.lr(step - 1))
        stopping = dist.stop_requested()
        ends = step % plan.steps_per_epoch == 0 or step == schedule.steps
        saves = stopping or ends or (cfg.save_every and step % cfg.save_every == 0)
        if saves:
            settle_buffers(model, cfg, plan, training)
            if average:
                settle_buffers(final, cfg, plan, training)
        if ends:
            epoch = step / plan.steps_per_epoch
            scored = evaluate(final, cfg, validation) if due(epoch, cfg) else {}
            log(step, force=True, **history.close(epoch, **scored))
        if saves:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)

    if cfg.only_evaluate:
        history = History()  # the earlier epochs' errors are not those of these weights
        history.close(start / plan.steps_per_epoch, **evaluate(final, cfg, validation))
    metrics = history.final(cfg.median_of)  # Sec. 5.1
    log(max(1, stop), force=True, **metrics)
    log.close()
    contact_sheet(final, cfg, validation)
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=COLUMNS)
    if dist.is_main() and not cfg.only_evaluate:
        keep_backbone(final, cfg)
    return metrics


def processes_to_keep(cfg: Config) -> int:
    """The number of processes where a norm's statistics depend on it, Sec. 2.3; 0: it may change.

    A worker's are over its share of the minibatch, synchronised ones over a forward of all.
    """
    accumulates = cfg.per_forward < cfg.batch_size
    depends = cfg.norm.kind == "worker" or (cfg.norm.kind == "sync" and accumulates)
    return dist.world_size() if depends and not cfg.only_evaluate else 0


def build_schedule(cfg: Config, plan: recipe.Plan) -> recipe.Schedule:
    """The rate of each step, which follows from the minibatch alone, Sec. 2."""
    rate = cfg.rate
    return recipe.Schedule(
        peak=recipe.reference_lr(
            cfg.batch_size, base=rate.base, base_batch=rate.base_batch, rule=rate.rule
        ),
        steps_per_epoch=plan.steps_per_epoch,
        epochs=cfg.epochs,
        warmup=rate.warmup,
        warmup_epochs=rate.warmup_epochs,
        start=rate.start,
        kind=rate.schedule,
        milestones=tuple(rate.milestones),
        factor=rate.factor,
    )


def build_model(cfg: Config, plan: recipe.Plan, classes: int) -> nn.Module:
    """The network, from `cfg.init` where that is given."""
    model = resnet(
        **asdict(cfg.model),
        num_classes=classes,
        group=plan.group,
        norm=cfg.norm.kind,
        running=cfg.norm.running,
    )
    if cfg.init:
        report = initialise.initialise(model, cfg.init, cfg.data.mean, cfg.data.std)
        if dist.is_main():
            print(report)
    return model.to(memory_format=torch.channels_last)


def build_optimizer(cfg: Config, model: nn.Module, lr: float) -> Optimizer:
    """Momentum SGD in the chosen form, or LARS."""
    options = cfg.solver
    groups = sgd.decay_split(
        model, options.weight_decay, decay_bn=options.decay_bn, decay_bias=options.decay_bias
    )
    if options.kind == "lars":
        return sgd.LARS(groups, lr, momentum=options.momentum)
    return sgd.MomentumSGD(
        groups,
        lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        form=options.form,
        correction=options.correction,
    )


def parallel(model: nn.Module, cfg: Config) -> nn.Module:
    """The network whose backward pass also averages the gradients over the processes, Sec. 4."""
    network = cast(nn.Module, torch.compile(model)) if cfg.compile else model
    network = dist.wrap(network, broadcast_buffers=False)  # settle_buffers does it when needed
    if isinstance(network, DistributedDataParallel) and cfg.allreduce != "ddp":
        hook = allreduce.hook(cfg.allreduce, overlap=cfg.overlap, per_server=cfg.per_server)
        network.register_comm_hook(None, hook)
    return network


def keep_backbone(model: nn.Module, cfg: Config) -> None:
    """Write `backbone.pt` for other code; where torchvision has no such network, say so."""
    path = Path(cfg.output_dir, "backbone.pt")
    try:
        initialise.save_backbone(model, path, cfg.data.mean, cfg.data.std)
    except ValueError as error:
        print(f"{path} is not written: {error}")


def run(cfg: Config) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    return result.record(train, cfg, columns=COLUMNS)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        versus.run_all(run, cfg, columns=COLUMNS, curve="val_error", along="epoch")
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
