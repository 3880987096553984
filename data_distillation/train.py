"""Train a teacher, its student or a control: `python train.py`, or see conf/experiment.

The demo trains a teacher on few labelled images, labels others by its multi-transform inference,
and trains a student on both beside a control of equal length that sees the labelled ones alone.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common import config, dist
from common.data import seed_everything, seed_of
from common.optim import follow
from common.run import checkpoint, machine, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from data_distillation import data
from data_distillation.config import Config, may_change
from data_distillation.evaluate import check_sigmas, columns, draw_versus, evaluate
from data_distillation.model import build_detector
from data_distillation.optimizer import build_optimizer
from data_distillation.stages import prepare_all, with_files
from data_distillation.weights.initialise import initialise


def train(cfg: Config) -> dict[str, float]:
    """Train to `cfg.steps`, resuming from `cfg.output_dir`; return the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    machine.keep_freed_memory()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    training = data.build_training(cfg.data, cfg.task)
    manual = training.manual
    validation = data.build_validation(cfg.data, cfg.task, manual.categories)
    validation.check_images()  # its faults show now, not after training
    data.check_labels(training, cfg)
    check_sigmas(cfg, manual.joint_count)
    model = build(cfg, training).to(device)
    optimizer, schedule = build_optimizer(model, cfg)
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "category_ids": manual.category_ids,
        "categories": manual.categories,
        "joints": manual.joints,
        "labelled": manual.digest,  # the same images on all ranks, and after a resume
        "contents of data.train": training.contents[0],
        "contents of data.automatic": training.contents[1],
        "batch_size": cfg.batch_size,
        "options": Options(cfg, may_change(cfg)),
    }
    start = checkpoint.resume(
        cfg.output_dir, steps=None if cfg.only_evaluate else cfg.steps, **parts
    )
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, cfg.init)
    follow(schedule)  # `steps` may have changed

    stop = start if cfg.only_evaluate else cfg.steps
    loader = training.batches(cfg, start, stop)
    log = Log(cfg.output_dir, cfg.steps, every=cfg.log_every, start=start)
    model.train()
    network = dist.wrap(model)
    for step, pieces in enumerate(loader, start + 1):  # one for each of the paper's GPUs
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces):
            seed_everything(seed_of(cfg.seed, step, piece.number))
            with summing(network, last=number == len(pieces) - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                    losses = network(*piece.to(device))
                require_finite(losses, step, piece.files)
                (sum(losses.values()) * piece.share).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() * piece.share
        if cfg.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        log(step, force=step == 1, **sums, lr=lr)
        stopping = dist.stop_requested()
        if stopping or step % cfg.save_every == 0 or step == cfg.steps:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)
        if cfg.evaluate_every and step % cfg.evaluate_every == 0 and step < cfg.steps:
            log(step, force=True, **evaluate(model, cfg, validation))

    metrics = evaluate(model, cfg, validation, save=True)
    log(max(1, stop), force=True, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=columns(cfg))
    return metrics


def build(cfg: Config, training: data.Mixture) -> nn.Module:
    """The network for the classes and joints of the data, with the weights that `init` names."""
    manual = training.manual
    model = build_detector(
        cfg.task,
        len(manual.names),
        manual.joint_count,
        cfg.network,
        ignore=training.has_ignored,
    )
    if cfg.init:
        report = initialise(model, cfg.init, cfg.network.backbone)
        if dist.is_main():
            print(report)
    return model


def summing(network: nn.Module, *, last: bool) -> AbstractContextManager:
    """The processes exchange their gradients after the last of several pieces only."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def run(cfg: Config) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    return result.record(train, cfg, columns=columns(cfg))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side; their teachers come first."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        folders = versus.run_all(
            run, prepare_all(cfg, run), columns=columns(settings), curve=columns(settings)[0]
        )
        draw_versus(settings, folders)
    else:
        settings = config.to_dataclass(with_files(cfg, run))
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
