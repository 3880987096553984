"""Train RetinaNet and evaluate it: `python train.py`, or see conf/experiment for the others."""

import time
from dataclasses import asdict

import hydra
import torch
from omegaconf import DictConfig
from torch.optim import SGD

from common import checkpoint, config, dist
from common.data import seed_everything
from common.log import Diverged, Log, require_finite
from common.optim import parameter_groups, warmup_multistep
from focal_loss import data, report, versus, weights
from focal_loss.config import Config
from focal_loss.criterion import DetectionLoss
from focal_loss.evaluate import evaluate
from focal_loss.model import RetinaNet


def train(cfg: Config) -> dict[str, float]:
    """Train to `cfg.steps`, resuming from `cfg.output_dir`; return the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    device = dist.device()
    training = data.build(cfg.data, "train")
    model = RetinaNet(num_classes=len(training.names), **asdict(cfg.model))
    if cfg.init:
        data.require_pixels(cfg.data, weights.initialise(model, cfg.init, training.category_ids))
    model = model.to(device, memory_format=torch.channels_last)
    criterion = DetectionLoss(**asdict(cfg.loss)).to(device)
    groups = parameter_groups(
        model,
        weight_decay=cfg.weight_decay,
        decay_bias=cfg.bias_decay,
        lr=cfg.lr,
        bias_lr=cfg.bias_lr,
    )
    optimizer = SGD(groups, cfg.lr, cfg.momentum)
    milestones = [round(share * cfg.steps) for share in cfg.milestones]
    schedule = warmup_multistep(
        optimizer, milestones=milestones, warmup=cfg.warmup, warmup_start=cfg.warmup_start
    )
    parts = {"model": model, "criterion": criterion, "optimizer": optimizer, "schedule": schedule}
    parts |= {"category_ids": training.category_ids, "batch_size": cfg.batch_size}
    start = checkpoint.resume(cfg.output_dir, **parts)

    loader = data.training_batches(training, cfg, start)
    log = Log(cfg.output_dir, cfg.steps, every=cfg.log_every)
    network = dist.wrap(torch.compile(model) if cfg.compile else model)
    for step, batch in enumerate(loader, start + 1):
        optimizer.zero_grad(set_to_none=True)
        for images, targets in batch.to(device).split(cfg.accumulate):
            with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                logits, offsets = network(images)  # (N, A, K), (N, A, 4)
            anchors = model.anchors(*images.shape[-2:])  # (A, 4)
            losses = criterion(logits, offsets, anchors, targets)  # Sec. 3, 4.1
            require_finite(losses, step, batch.files)
            (sum(losses.values()) / cfg.accumulate).backward()
        if cfg.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        optimizer.step()
        schedule.step()
        log(step, **losses, lr=schedule.get_last_lr()[0])
        stopping = dist.stop_requested()
        if stopping or step % cfg.save_every == 0 or step == cfg.steps:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            dist.exit_preempted(step)
        if cfg.evaluate_every and step % cfg.evaluate_every == 0 and step < cfg.steps:
            log(step, force=True, **evaluate(model, cfg, training.category_ids))

    metrics = evaluate(model, cfg, training.category_ids, pictures=True)  # {"AP": ..., "AP50": ..., ...}
    log(cfg.steps, force=True, **metrics)
    log.close()
    report.write(cfg, metrics, seconds=time.time() - started)
    return metrics


def run(cfg: Config) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    started = time.time()
    try:
        return train(cfg)
    except Diverged as error:
        report.write(cfg, {}, seconds=time.time() - started, diverged=error)
        raise


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.typed(cfg)
    if settings.versus:
        versus.run_all(run, cfg)
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
