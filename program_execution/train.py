"""Train programs and their execution: `python train.py`, or see conf/experiment.

The demo trains a program generator and an execution engine on built-in questions whose programs
are known (Sec. 3.2, 3.3) beside an LSTM that is blind and stacked attention (Sec. 4), and prints
how many answers of each kind are right.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from common import config, dist
from common.data import seed_everything
from common.run import checkpoint, log, result, versus
from common.run.options import Options
from program_execution import all_stages, data, evaluate, stages
from program_execution.config import Config, Stage
from program_execution.figures.explain import write_figure
from program_execution.model import Network


def train(cfg: Config) -> dict[str, float]:
    """One stage to its last step, resuming from `cfg.output_dir`; the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device, stage, columns = dist.device(), cfg.of_stage(), evaluate.columns(cfg)
    training, validation, sets = stages.datasets(cfg)
    network = stages.build(cfg, training).to(device)
    objective = stages.Objective(cfg, network, training)
    trained = objective.freeze_others()
    optimizer = Adam(parameter_groups(network, trained, cfg), stage.lr, betas=(0.9, cfg.beta2))
    schedule = build_schedule(optimizer, stage)
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer, "schedule": schedule}
    parts |= {"average": objective.average, "batch_size": stage.batch_size}
    parts |= {"vocabulary": training.words.digest, "options": Options(cfg, cfg.may_change())}
    start = resume(cfg, parts)
    stop = start if cfg.only_evaluate or not trained else stage.steps
    if dist.is_main():
        training.words.save(Path(cfg.output_dir, "vocab.json"))
    batches = stages.batches(cfg, network, training, start, stop)
    record = log.Log(cfg.output_dir, stage.steps, every=cfg.log_every, start=start)
    network.train()
    for step, batch in enumerate(batches, start + 1):
        optimizer.zero_grad(set_to_none=True)  # Adam leaves alone modules that no program used
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            losses, also = objective(batch.to(device), step)
        log.require_finite(losses, step, batch.names)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        stages.average_gradients(trained)
        if cfg.clip:
            torch.nn.utils.clip_grad_norm_(trained, cfg.clip)
        optimizer.step()
        lr = schedule.get_last_lr()[0]
        schedule.step()
        several = losses if len(losses) > 1 else {}
        record(step, force=step == 1, loss=loss, **several, **also, lr=lr)
        stopping, last = dist.stop_requested(), step == stage.steps
        scores: dict[str, float] = {}
        if stage.evaluate_every and (step % stage.evaluate_every == 0 or last):
            scores = evaluate.evaluate(network, cfg, validation)
            record(step, force=True, **evaluate.brief(scores))
        if stopping or scores or step % cfg.save_every == 0 or last:
            best = {columns[0]: scores[columns[0]]} if scores else None
            checkpoint.save(cfg.output_dir, step, best=best, **parts)
        if stopping:
            record.close()
            dist.exit_preempted(step)

    keep_best(network, cfg)
    metrics = evaluate.evaluate_sets(network, cfg, sets)
    record(max(1, stop), force=True, **metrics)
    record.close()
    write_figure(network, cfg, next(iter(sets.values())))
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=columns)
    return metrics


def parameter_groups(
    network: Network, trained: list[torch.nn.Parameter], cfg: Config
) -> list[dict[str, Any]]:
    """Parameters by learning rate: where answers teach the generator, it may have its own."""
    stage = cfg.of_stage()
    slower = cfg.reinforce.lr if cfg.stage in ("joint", "tune") else 0.0
    writer = {id(p) for p in network.generator.parameters()} if network.generator else set()
    sides = [[p for p in trained if (id(p) in writer) == side] for side in (False, True)]
    rates = (stage.lr, slower or stage.lr)
    return [{"params": side, "lr": lr} for side, lr in zip(sides, rates, strict=True)]


def build_schedule(optimizer: Adam, stage: Stage) -> LRScheduler:
    """The learning rate of each step."""
    if stage.schedule == "cosine":
        return CosineAnnealingLR(optimizer, max(1, stage.steps))
    return LambdaLR(optimizer, lambda step: 1.0)


def resume(cfg: Config, parts: dict[str, Any]) -> int:
    """Go on from the newest checkpoint in `cfg.output_dir`; the step that it is of, or 0."""
    steps = None if cfg.only_evaluate else cfg.of_stage().steps
    start = checkpoint.resume(cfg.output_dir, steps=steps, **parts)
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, ", ".join(cfg.init))
    return start


def keep_best(network: Network, cfg: Config) -> None:
    """Go back to the weights of the best validation, as the public code stores them."""
    path = Path(cfg.output_dir, "best.pt")
    if cfg.keep_best and path.is_file():
        network.load_state_dict(checkpoint.load(path)["parts"]["model"])


def run(cfg: Config) -> dict[str, float]:
    """Train one stage or all, leaving a result also where the loss diverges."""
    how = partial(all_stages.train_all, train=train) if cfg.stage == "all" else train
    return result.record(how, cfg, columns=evaluate.ANSWERS)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        data.build_ahead(settings.data)  # once, instead of in every process
        versus.run_all(run, cfg, columns=evaluate.ANSWERS, curve="val_accuracy")
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
