"""Train a video network with non-local blocks: `python train.py`, or see conf/experiment.

The demo trains C2D without and with one block on clips whose answer needs two distant frames.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common import config, dist
from common.data import seed_everything, seed_of
from common.optim import follow
from common.run import checkpoint, machine, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from nonlocal_ import data
from nonlocal_.config import Config, count_pieces, may_change
from nonlocal_.evaluate import columns, count_costs, draw_versus, evaluate
from nonlocal_.model import build_network
from nonlocal_.net.detectors import build_detector
from nonlocal_.net.norm import precise_norm, share_norms
from nonlocal_.optimizer import build_optimizer
from nonlocal_.weights.initialise import initialise


def train(cfg: Config) -> dict[str, float]:
    """Train to `cfg.steps`, resuming from `cfg.output_dir`; return the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    machine.keep_freed_memory()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    if not cfg.only_evaluate:
        count_pieces(cfg, dist.world_size())  # its fault shows before anything is read
    training = data.build(cfg, training=True)
    validation = data.build(cfg, training=False, like=training)
    validation.check()  # its faults show now, not after training
    data.warn_of_repeats(cfg, training, validation)
    model = build(cfg, training).to(device)
    costs = count_costs(model, cfg)
    optimizer, schedule = build_optimizer(model, cfg)
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "classes": training.names,
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
    loader = data.batches(training, cfg, start, stop)
    log = Log(cfg.output_dir, cfg.steps, every=cfg.log_every, start=start)
    model.train()
    network = dist.wrap(model)
    for step, pieces in enumerate(loader, start + 1):  # one for each of the paper's GPUs
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces):
            seed_everything(seed_of(cfg.seed, step, dist.rank() * len(pieces) + number))
            with summing(network, last=number == len(pieces) - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                    losses = compute_losses(network, *piece.to(device))
                require_finite(losses, step, piece.files)
                (torch.stack([*losses.values()]).sum() / len(pieces)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(pieces)
        if cfg.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        log(step, force=step == 1, **sums, lr=lr)
        stopping = dist.stop_requested()
        saves = stopping or step % cfg.save_every == 0 or step == cfg.steps
        if saves:
            require_finite_weights(model, step, [file for each in pieces for file in each.files])
        evaluates = step == cfg.steps or (cfg.evaluate_every and step % cfg.evaluate_every == 0)
        if evaluates and (not stopping or step == cfg.steps):  # the last weights have their norms
            measure_norm(model, cfg, training)
        if saves:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)
        if evaluates and step < cfg.steps:
            log(step, force=True, **evaluate(model, cfg, validation, step=step))

    metrics = evaluate(model, cfg, validation, step=stop, save=True) | costs
    log(max(1, stop), force=True, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=columns(cfg))
    return metrics


def build(cfg: Config, training: data.Examples) -> nn.Module:
    """The network for the classes of the data, with the weights that `init` names."""
    model: nn.Module
    if cfg.task == "detection":
        model = build_detector(cfg.detector, cfg.block, len(training.names), training.joint_count)
    else:
        model = build_network(cfg.network, cfg.block, len(training.names))
    trained = cfg.only_evaluate and any(Path(cfg.output_dir).glob("checkpoint-*[0-9].pt"))
    if cfg.init and not trained:  # `resume` loads all of it
        report = initialise(model, cfg)
        if dist.is_main():
            print(report)
    return model


def compute_losses(network: nn.Module, inputs: Any, targets: Any) -> dict[str, Tensor]:
    """Those of a detector, or of clips: cross entropy; with several labels one of each class."""
    if not isinstance(inputs, Tensor):
        return network(inputs, targets)
    logits = network(inputs).float()  # (B, K)
    if targets.is_floating_point():  # (B, K) of 0 and 1, Sec. 5.2
        return {"loss": F.binary_cross_entropy_with_logits(logits, targets)}
    return {"loss": F.cross_entropy(logits, targets)}


def require_finite_weights(model: nn.Module, step: int, files: list[str]) -> None:
    """Raise Diverged where a step has ruined the weights, which only the next loss would show."""
    largest = torch.stack([each.detach().abs().amax().float() for each in model.parameters()])
    require_finite({"next": largest.amax()}, step, files)


def measure_norm(model: nn.Module, cfg: Config, training: data.Examples) -> None:
    """Measure batch norm's statistics over training clips, as the official code does."""
    if cfg.task == "detection" or not cfg.precise_norm:
        share_norms(model)
        return
    training_mode, device = model.training, dist.device()
    model.train()
    steps = data.batches(training, cfg, 0, cfg.precise_norm)
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
        precise_norm(
            model,
            (piece for pieces in steps for piece in pieces),
            lambda piece: model(piece.to(device)[0]),
        )
    model.train(training_mode)


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
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        folders = versus.run_all(
            run, cfg, columns=columns(settings), curve="loss", label="training loss"
        )
        draw_versus(settings, folders)
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
