"""Train RetinaNet and evaluate it: `python train.py`, or see conf/experiment for the others."""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from dataclasses import asdict
from typing import Any, cast

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common import config, dist
from common.data import seed_everything
from common.optim import follow, parameter_groups, warmup_multistep
from common.run import checkpoint, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from focal_loss import data
from focal_loss.config import MAY_CHANGE, Config
from focal_loss.criterion import DetectionLoss
from focal_loss.evaluate import COLUMNS, evaluate
from focal_loss.model import Architecture, RetinaNet
from focal_loss.weights.initialise import initialise


def train(cfg: Config) -> dict[str, float]:
    """Train to `cfg.steps`, resuming from `cfg.output_dir`; return the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    training = data.build(cfg.data, "train")
    validation = data.build(cfg.data, "val", training.categories)
    validation.check_images()  # its faults show now, not after training
    data.check_objects(training, validation, cfg)
    model = RetinaNet(Architecture(num_classes=len(training.names), **asdict(cfg.model)))
    if cfg.init:
        data.require_pixels(cfg.data, initialise(model, cfg.init, training.category_ids))
    model.to(device).to(memory_format=torch.channels_last)
    criterion = DetectionLoss(**asdict(cfg.loss)).to(device)
    optimizer, schedule = build_optimizer(model, cfg)
    ema = get_ema_multi_avg_fn(cfg.ema)
    average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True) if cfg.ema else None
    final = cast(RetinaNet, average.module) if average else model  # what is scored
    parts: dict[str, Any] = {
        "model": model,
        "criterion": criterion,
        "optimizer": optimizer,
        "schedule": schedule,
        "category_ids": training.category_ids,
        "categories": training.categories,
        "batch_size": cfg.batch_size,
        "options": Options(cfg, MAY_CHANGE, processes=processes_to_keep(cfg)),
    }
    parts |= {"average": average} if average else {}
    start = checkpoint.resume(
        cfg.output_dir, steps=None if cfg.only_evaluate else cfg.steps, **parts
    )
    follow(schedule)  # `steps` may have changed
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, cfg.init)

    stop = start if cfg.only_evaluate else cfg.steps
    loader = data.training_batches(training, cfg, start, stop)
    if dist.is_main() and not start and not cfg.only_evaluate:
        data.report_unmatched(training, model.anchor_grid, cfg.loss)
    log = Log(cfg.output_dir, cfg.steps, every=cfg.log_every, start=start)
    network = dist.wrap(cast(nn.Module, torch.compile(model)) if cfg.compile else model)
    for step, batch in enumerate(loader, start + 1):
        optimizer.zero_grad(set_to_none=True)
        batch = batch.to(device)
        anchors = model.anchors(*batch.images.shape[-2:])  # (A, 4)
        assigned = criterion.assignment(anchors, batch.targets)  # of the whole batch, Sec. 4
        losses: dict[str, Tensor] = {}
        pieces = assigned.split(cfg.accumulate)
        for images, piece in zip(batch.images.chunk(cfg.accumulate), pieces, strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                logits, offsets = network(images)  # (N, A, K), (N, A, 4)
            share = criterion(logits, offsets, anchors, piece)  # Sec. 3, 4.1
            require_finite(share, step, batch.files)
            sum(share.values()).backward()
            losses = {name: loss.detach() + losses.get(name, 0) for name, loss in share.items()}
        if cfg.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        if average:
            average.update_parameters(model)
        log(step, force=step == 1, **losses, lr=lr)
        stopping = dist.stop_requested()
        if stopping or step % cfg.save_every == 0 or step == cfg.steps:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)
        if due(step, cfg):
            log(step, force=True, **score(final, cfg, validation))

    metrics = evaluate(final, cfg, validation, save=True)
    log(max(1, stop), force=True, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=COLUMNS)
    return metrics


def build_optimizer(model: nn.Module, cfg: Config) -> tuple[SGD, LambdaLR]:
    """SGD of Sec. 4.1 and its learning rate at each step."""
    groups = parameter_groups(
        model,
        weight_decay=cfg.weight_decay,
        decay_bias=cfg.bias_decay,
        lr=cfg.lr,
        bias_lr=cfg.bias_lr,
    )
    optimizer = SGD(groups, cfg.lr, cfg.momentum, fused=True)
    milestones = sorted({max(1, round(share * cfg.steps)) for share in cfg.milestones})
    return optimizer, warmup_multistep(
        optimizer, milestones=milestones, warmup=cfg.warmup, warmup_start=cfg.warmup_start
    )


def processes_to_keep(cfg: Config) -> int:
    """The number of processes where each divides or normalises by its own images; else 0."""
    depends = cfg.loss.normalizer in ("gpu", "gpu_plus_n", "ema")
    depends |= "bn" in (cfg.model.backbone_norm, cfg.model.head_norm)
    return dist.world_size() if depends and not cfg.only_evaluate else 0


def due(step: int, cfg: Config) -> bool:
    """Whether to score after `step`; the last one has its scores of all images anyway."""
    if not cfg.evaluate_every or step % cfg.evaluate_every:
        return False
    return step < cfg.steps or cfg.evaluate_images > 0


def score(model: RetinaNet, cfg: Config, validation: data.Detection) -> dict[str, float]:
    """Scores during training; those of the first images only have names that say so."""
    metrics = evaluate(model, cfg, validation.first(cfg.evaluate_images))
    if not cfg.evaluate_images:
        return metrics
    return {f"{name}_first_{cfg.evaluate_images}": metrics[name] for name in COLUMNS}


def run(cfg: Config) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    return result.record(train, cfg, columns=COLUMNS)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        count = settings.evaluate_images
        curve = f"AP_first_{count}" if count else "AP"
        label = f"AP of the first {count} images" if count else ""
        first = "classification"
        versus.run_all(run, cfg, columns=COLUMNS, first=first, curve=curve, label=label)
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
