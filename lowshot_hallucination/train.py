"""Train a learner and a hallucinator together: `python train.py`, or see conf/experiment.

The demo compares prototypical networks without and with imagined examples, and two controls without
training, on features of rendered solids. Stages: a trunk, its features, the meta-learner, a test.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from common import config, dist
from common.data import seed_everything, seed_of
from common.errors import UserError
from common.optim import follow
from common.run import checkpoint, machine, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from lowshot_hallucination import data
from lowshot_hallucination.baselines.analogies import train_analogies
from lowshot_hallucination.config import FITTED, MAY_CHANGE, Config
from lowshot_hallucination.evaluate import columns, draw_versus, evaluate
from lowshot_hallucination.features.episodes import Sampler
from lowshot_hallucination.features.images import build_images, drop_unreadable
from lowshot_hallucination.features.problem import LowShot
from lowshot_hallucination.hallucinate import build_generator, joint_loss, shared_spread
from lowshot_hallucination.model import PrototypeLearner, build_learner
from lowshot_hallucination.weights.initialise import find_file, read_parts


def train(cfg: Config) -> dict[str, float]:
    """Meta-train on the base classes, Sec. 4, resuming; return the test's metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    machine.keep_freed_memory()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    lowshot = data.build(cfg)
    if dist.is_main():
        print(data.describe(lowshot, cfg))
    learner, generate = build_both(cfg, lowshot, device)
    set_centre(learner, lowshot, device)
    parameters = [p for p in (*learner.parameters(), *generate.parameters()) if p.requires_grad]
    steps = cfg.steps if parameters and cfg.stage == "meta" else 0
    scales = [p for p in parameters if not p.ndim]  # which are not decayed
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p.ndim]}]
    groups.append({"params": scales, "weight_decay": 0})
    optimizer = torch.optim.Adam(groups, cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    schedule = LambdaLR(optimizer, partial(half_cosine, steps=max(1, steps)))
    parts: dict[str, Any] = {
        "learner": learner,
        "generator": generate,
        "optimizer": optimizer,
        "schedule": schedule,
        "data": lowshot.digest(),
        "options": Options(cfg, MAY_CHANGE),
    }
    start = checkpoint.resume(cfg.output_dir, steps=steps, **parts)
    follow(schedule)
    sampler = None
    if start < steps:
        values, labels = base_rows(lowshot, device)
        sampler = Sampler(
            values, labels.cpu(), lowshot.split.base, cfg.episodes, device, lowshot.split.names
        )
    log = Log(cfg.output_dir, max(1, steps), every=cfg.log_every, start=start)
    learner.train()
    generate.train()
    for step in range(start + 1, steps + 1):
        assert sampler is not None
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for number in range(dist.rank(), cfg.episodes.per_step, dist.world_size()):
            seed = seed_of(cfg.seed, step, number)
            support, queries, labels = sampler.draw(seed)
            seed_everything(seed)  # seeds and noise of what is imagined
            n_aug = cfg.hallucination.fill_in_training
            loss = joint_loss(learner, generate, support, queries, labels, n_aug)
            (loss / cfg.episodes.per_step).backward()
            total += loss.detach() / cfg.episodes.per_step
        require_finite({"loss": total}, step, [])
        sum_gradients(parameters)
        if cfg.clip_norm:
            nn.utils.clip_grad_norm_(parameters, cfg.clip_norm)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        log(step, force=step == 1, loss=dist.total(total), lr=lr)
        stopping = dist.stop_requested()
        if step == steps:
            set_centre(learner, lowshot, device)
        if stopping or step % cfg.save_every == 0 or step == steps:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)

    if not steps:
        checkpoint.save(cfg.output_dir, 0, **parts)  # for predict.py
    metrics = evaluate(learner, generate, cfg, lowshot)
    log(max(1, steps), force=True, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=steps, seconds=seconds, columns=columns(cfg))
    return metrics


def build_both(cfg: Config, lowshot: LowShot, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The learner and the generator at their first weights, or with those that `cfg` names."""
    width = lowshot.train.width
    fitted = cfg.learner.method in FITTED
    learner = nn.Identity() if fitted else build_learner(cfg.learner, width)
    spread = None
    if cfg.hallucination.kind in ("gaussian", "analogies"):
        values, labels = base_rows(lowshot, device)
        spread = shared_spread(values, labels)
    if cfg.hallucination.kind == "analogies":
        generate: nn.Module = train_analogies(
            values, labels, cfg.analogies, seed=cfg.seed, progress=dist.is_main()
        )
    else:
        generate = build_generator(cfg.hallucination, width, spread=spread)
    learner, generate = learner.to(device), generate.to(device)
    if cfg.hallucination.trained not in ("jointly", "never"):
        load_parts(cfg.hallucination.trained, generator=generate)
    if cfg.init:
        load_parts(cfg.init, learner=learner, generator=generate)
    return learner, generate


def load_parts(source: str, **parts: nn.Module) -> None:
    """Load parts of a run's newest checkpoint, or of the checkpoint that `source` names."""
    path = find_file(source)
    stored = read_parts(path)
    for name, part in parts.items():
        if name not in stored:
            raise UserError(f"{path} holds no {name}: give a run of stage=meta.")
        try:
            checkpoint.load_matching(part, stored[name])
        except checkpoint.CheckpointError as error:
            raise UserError(f"{path}, {name}: {error}") from None


def base_rows(lowshot: LowShot, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (n, d) and class ids (n,) of the base classes' training rows."""
    rows = lowshot.train.rows_of(lowshot.split.base)
    values = torch.from_numpy(np.asarray(lowshot.train.values[rows], np.float32))
    return values.to(device), torch.from_numpy(lowshot.train.labels[rows]).to(device)


def set_centre(learner: nn.Module, lowshot: LowShot, device: torch.device) -> None:
    """Measure the mean of the base features, which shrinkage and centred cosine want."""
    if isinstance(learner, PrototypeLearner):
        learner.set_centre(base_rows(lowshot, device)[0])


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes; one that had no episode has none."""
    if dist.world_size() == 1:
        return
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    parts = dist.total(flat).split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def half_cosine(done: int, *, steps: int) -> float:
    """Factor on the rate after `done` of `steps`: 1 down to 0."""
    return (1 + math.cos(math.pi * min(1.0, done / steps))) / 2


def train_trunk(cfg: Config) -> dict[str, float]:
    """stage=backbone: a trunk on the base classes, Sec. 5; top-1 and top-5 on their test images."""
    started = time.time()
    options = Options(cfg, MAY_CHANGE)
    images = drop_unreadable(build_images(cfg.data), workers=cfg.data.workers)
    metrics = data.train_trunk(cfg, images, cfg.output_dir, options)
    seconds, names = time.time() - started, ("base_top1", "base_top5")
    steps = int(find_file(cfg.output_dir).stem.rpartition("-")[2])
    result.write(cfg.output_dir, metrics, steps=steps, seconds=seconds, columns=names)
    return metrics


def write_features(cfg: Config) -> dict[str, float]:
    """stage=features: those of the trunk that `trunk.weights` names, in the run's folder."""
    folder = Path(cfg.output_dir, "features")
    data.make_features(cfg, build_images(cfg.data), folder, run=None)
    if dist.is_main():
        print(f"Features written: python train.py features={folder}")
    return {}


STAGES = {"meta": train, "test": train, "backbone": train_trunk, "features": write_features}


def run(cfg: Config) -> dict[str, float]:
    """The stage, on features that images have; a loss that diverges leaves a result as well."""
    if cfg.stage in ("meta", "test") and not cfg.features:
        cfg = replace(cfg, features=data.prepare(cfg))
    return result.record(STAGES[cfg.stage], cfg, columns=columns(cfg))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Run one setting, or with `versus` several side by side, which share the features."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus and settings.stage == "meta":
        if not settings.features:
            cfg.features = dist.launch(data.prepare, settings, settings.processes)
        names = columns(settings)
        folders = versus.run_all(run, cfg, columns=names, curve=names[0])
        draw_versus(settings, folders)
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
