"""Train Mask^X R-CNN and evaluate it: `python train.py`, or see conf/experiment for the others."""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import MaskRCNN

from common import config, dist
from common.data import seed_everything, seed_of
from common.optim import follow
from common.run import checkpoint, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from maskx_rcnn import data
from maskx_rcnn.config import Config, may_change
from maskx_rcnn.evaluate import columns, draw_versus, evaluate
from maskx_rcnn.frozen import FrozenBranch, FrozenNetwork, FrozenRegions, freeze
from maskx_rcnn.inputs.embeddings import read_embeddings
from maskx_rcnn.model import mask_rcnn
from maskx_rcnn.optimizer import build_optimizer
from maskx_rcnn.stages import share_detector
from maskx_rcnn.weights.initialise import initialise


class Source(Protocol):
    """What gives the batches of a stage."""

    def batches(self, cfg: Config, start: int, stop: int) -> Iterator[Sequence[Any]]:
        """The share of this process in each step, a piece for each of the paper's GPUs."""


def train(cfg: Config) -> dict[str, float]:
    """Train to `cfg.steps`, resuming from `cfg.output_dir`; return the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    if cfg.stage != "masks" or not cfg.cached_rois:
        data.pieces_of(cfg)  # its fault shows now
    known = replace(cfg.data, mask_share=0.0) if cfg.stage == "detector" else cfg.data
    training = data.PartialMasks(known, True)  # a detector sees no mask, of A or B
    validation = data.PartialMasks(cfg.data, False, training)
    validation.check_images()  # its faults show now, not after training
    model = build(cfg, training).to(device)
    data.check_masks(training, cfg)
    optimizer, schedule = build_optimizer(model, cfg)
    options = Options(cfg, may_change(cfg))
    options.values |= training.split()  # a file that data.masks names may change, or be gone
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "category_ids": training.category_ids,
        "categories": training.categories,
        "batch_size": cfg.batch_size,
        "options": options,
    }
    start = checkpoint.resume(
        cfg.output_dir, steps=None if cfg.only_evaluate else cfg.steps, **parts
    )
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, cfg.init)
    follow(schedule)  # `steps` may have changed

    stop = start if cfg.only_evaluate else cfg.steps
    source, network = choose_stage(model, training, cfg)
    loader = source.batches(cfg, start, stop)
    log = Log(cfg.output_dir, max(1, stop), every=cfg.log_every, start=start)
    network = dist.wrap(network)
    for step, pieces in enumerate(loader, start + 1):  # one for each of the paper's GPUs
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces):
            seed_everything(seed_of(cfg.seed, step, dist.rank() * len(pieces) + number))
            with summing(network, last=number == len(pieces) - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                    losses = network(*piece.to(device))
                require_finite(losses, step, piece.files)
                (sum(losses.values()) / len(pieces)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(pieces)
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


def build(cfg: Config, training: data.PartialMasks) -> MaskRCNN:
    """The network for the classes of the data, with the weights that `init` names."""
    model = mask_rcnn(
        len(training.names),
        cfg.network,
        cfg.branch,
        classes_with_masks=(training.known + 1).tolist(),
        embeddings=read_embeddings(cfg.branch.embeddings, training.names),
    )
    if cfg.init:
        old_branch = cfg.stage != "masks" or cfg.only_evaluate
        report = initialise(model, cfg.init, cfg.network.backbone, mask_branch=old_branch)
        if dist.is_main():
            print(report)
    if cfg.stage == "masks":
        freeze(model)
    return model


def choose_stage(
    model: MaskRCNN, training: data.PartialMasks, cfg: Config
) -> tuple[Source, nn.Module]:
    """What gives the batches of this stage, and the network that turns them into losses."""
    if cfg.stage != "masks":
        return training, model
    if not cfg.cached_rois or cfg.only_evaluate:
        return training, FrozenNetwork(model)
    return FrozenRegions(model, training), FrozenBranch(model)


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
    """Train one setting, or with `versus` several side by side on one detector."""
    settings: Config = config.to_dataclass(cfg)
    if settings.stage == "masks" and settings.detector and not settings.init:
        cfg = share_detector(cfg, partial(dist.launch, run))
        settings = config.to_dataclass(cfg)
    if settings.versus:
        folders = versus.run_all(run, cfg, columns=columns(settings), curve="mask_AP_B")
        draw_versus(settings, folders)
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
