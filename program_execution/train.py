"""Train programs and their execution: `python train.py`, or see conf/experiment.

The demo trains a program generator and an execution engine on built-in questions whose programs
are known (Sec. 3.2, 3.3) beside an LSTM that is blind and stacked attention (Sec. 4), and prints
how many answers of each kind are right.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from common import config, dist
from common.clevr.dataset import Questions, training_batches
from common.data import seed_everything
from common.run import checkpoint, log, result, sealed, versus
from common.run.options import Options
from common.tables import runs
from program_execution import data, evaluate, model
from program_execution.config import BASELINES, MAY_CHANGE, STAGES, Config, Stage
from program_execution.net.baselines import QTypeMode
from program_execution.stages import Objective, average_gradients, predicted
from program_execution.weights.initialise import initialise


def train(cfg: Config) -> dict[str, float]:
    """One stage to its last step, resuming from `cfg.output_dir`; the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device, stage = dist.device(), cfg.of_stage()
    training, validation, sets = datasets(cfg)
    network = build(cfg, training).to(device)
    objective = Objective(cfg, network, training)
    trained = objective.trained()
    optimizer = Adam(groups(network, trained, cfg), stage.lr, betas=(0.9, cfg.beta2))
    schedule = scheduled(optimizer, stage)
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer, "schedule": schedule}
    parts |= {"average": objective.average, "batch_size": stage.batch_size}
    parts |= {"vocabulary": training.words.digest}
    free = {*MAY_CHANGE, *STAGES} - {cfg.stage}  # the options of other stages do nothing here
    if stage.schedule == "cosine":  # whose rates depend on how long it lasts
        free -= {f"{cfg.stage}.steps"}
    parts |= {"options": Options(cfg, free)}
    start = checkpoint.resume(
        cfg.output_dir, steps=None if cfg.only_evaluate else stage.steps, **parts
    )
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, ", ".join(cfg.init))
    if dist.is_main():
        training.words.save(Path(cfg.output_dir, "vocab.json"))

    stop = start if cfg.only_evaluate or not trained else stage.steps
    if cfg.stage == "ee" and cfg.ee_programs == "predicted" and start < stop:
        training.programs = predicted(network, training, cfg.output_dir)
    batches = training_batches(
        training,
        batch_size=stage.batch_size,
        seed=cfg.seed,
        start=start,
        stop=stop,
        by_image=cfg.data.by_image,
        workers=cfg.data.workers,
    )
    record = log.Log(cfg.output_dir, stage.steps, every=cfg.log_every, start=start)
    network.train()
    for step, batch in enumerate(batches, start + 1):
        optimizer.zero_grad(set_to_none=True)  # Adam leaves alone modules that no program used
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            losses, seen = objective(batch.to(device), step)
        log.require_finite(losses, step, batch.names)
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        average_gradients(trained)
        if cfg.clip:
            torch.nn.utils.clip_grad_norm_(trained, cfg.clip)
        optimizer.step()
        lr = schedule.get_last_lr()[0]
        schedule.step()
        record(step, force=step == 1, loss=loss, **shown(losses), **seen, lr=lr)
        stopping, last = dist.stop_requested(), step == stage.steps
        scored: dict[str, float] = {}
        if stage.evaluate_every and (step % stage.evaluate_every == 0 or last):
            scored = evaluate.evaluate(network, cfg, validation)
            record(step, force=True, **evaluate.brief(scored))
        if stopping or scored or step % cfg.save_every == 0 or last:
            best = {evaluate.columns(cfg)[0]: scored[evaluate.columns(cfg)[0]]} if scored else None
            checkpoint.save(cfg.output_dir, step, best=best, **parts)
        if stopping:
            record.close()
            dist.exit_preempted(step)

    keep_best(network, cfg)
    metrics = evaluate.figures(network, cfg, sets)
    record(max(1, stop), force=True, **metrics)
    record.close()
    evaluate.pictures(network, cfg, next(iter(sets.values())))
    columns, seconds = evaluate.columns(cfg), time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=columns)
    return metrics


def train_all(cfg: Config) -> dict[str, float]:
    """All stages that the model has, in turn, each in a folder of its own, from the one before.

    The metrics are those of the last stage before fine-tuning; those of the others have their
    stage in front, as `ee_accuracy`. lift: what joint training added; drop and recovery: what the
    first of `data.also` loses against `data.val`, and what fine-tuning gives back to it.
    """
    started, done, before = time.time(), 0, list(cfg.init)
    for part in stages_of(cfg)[1:]:
        if ended(part) is None:
            datasets(part)  # the faults of its splits show before the first stage
    total = sum(part.of_stage().steps for part in stages_of(cfg))
    start = sum(part.of_stage().steps for part in stages_of(cfg) if ended(part) is not None)
    record = log.Log(cfg.output_dir, total, every=cfg.log_every, start=start)
    found: dict[str, dict[str, float]] = {}
    lines: list[dict[str, Any]] = []
    for part in stages_of(cfg):
        steps, folder = part.of_stage().steps, Path(part.output_dir)
        found[part.stage] = ended(part) or train(replace(part, init=before))
        lines += [line | {"step": done + line["step"]} for line in log.read(folder)]
        if dist.is_main():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            sealed.write(Path(cfg.output_dir, "metrics.jsonl"), partial(_put, text=text))
        done, before = done + steps, [str(folder)]
    metrics = summary(found, cfg)
    record.close()
    seconds, columns = time.time() - started, evaluate.columns(stages_of(cfg)[-1])
    result.write(cfg.output_dir, metrics, steps=done, seconds=seconds, columns=columns)
    return metrics


def ended(cfg: Config) -> dict[str, float] | None:
    """The metrics of a stage that has come to its end; None of any other."""
    earlier = runs.read_result(Path(cfg.output_dir))
    if earlier is None or earlier["steps"] != cfg.of_stage().steps or earlier["diverged"]:
        return None
    return earlier["metrics"]


def _put(file: BinaryIO, *, text: str) -> None:
    file.write(text.encode())


def stages_of(cfg: Config) -> list[Config]:
    """The settings of each stage that `stage=all` runs, in order, without those of no steps."""
    names: tuple[str, ...] = ("pg", "ee", "joint", "tune")
    if cfg.model.name in BASELINES:
        names = ("baseline", "tune")
    if cfg.model.engine == "symbolic":  # which has nothing to learn
        names = tuple(name for name in names if name != "ee")
    counted = cfg.model.name == "qtype_mode"  # which takes no steps
    parts = []
    for name in names:
        part = replace(cfg, stage=name, output_dir=str(Path(cfg.output_dir, name)), versus={})
        if part.of_stage().steps or (counted and name == "baseline"):
            parts.append(part)
    if not parts:
        raise ValueError("stage=all has no stage of one step or more: give pg.steps and ee.steps.")
    return parts


def summary(found: dict[str, dict[str, float]], cfg: Config) -> dict[str, float]:
    """One set of metrics from those of every stage."""
    last = [stage for stage in found if stage != "tune"][-1] if set(found) - {"tune"} else "tune"
    metrics = dict(found[last])
    kept = ("accuracy", *evaluate.PROGRAMS, "executed")
    for stage, figures in found.items():
        if stage != last:
            metrics |= {f"{stage}_{k}": v for k, v in figures.items() if k.endswith(kept)}
    if {"ee", "joint"} <= found.keys():
        metrics["lift"] = found["joint"]["accuracy"] - found["ee"]["accuracy"]
    if cfg.data.also:
        other = f"{data.label(cfg.data.also[0])}_accuracy"
        if other in metrics:
            metrics["drop"] = metrics["accuracy"] - metrics[other]
        if "tune" in found and other in metrics:
            metrics["recovery"] = found["tune"][other] - metrics[other]
    return metrics


def datasets(
    cfg: Config,
) -> tuple[Questions, Questions, dict[str, Questions]]:
    """What a stage learns from, what its best weights are chosen by, and all it is judged by."""
    size, world = cfg.of_stage().batch_size, dist.world_size()
    if size % world and not cfg.only_evaluate:  # gradients are means over equal shares
        raise ValueError(
            f"{cfg.stage}.batch_size={size} cannot be shared by processes={world}: choose a "
            f"multiple of {world}."
        )
    options, learn, choose = cfg.data, cfg.data.train, cfg.data.val
    if cfg.stage == "tune":
        learn, choose = cfg.tune.train or learn, cfg.tune.val or choose
        options = replace(options, questions=cfg.tune.questions or options.questions)
    words = data.vocabulary_of(options, options.train, learn)
    training = data.build(options, learn, words, training=True)
    if cfg.stage == "pg":
        training = data.known(training, options.programs, options.subset, cfg.seed)
    sets = {split: data.build(options, split, words) for split in (options.val, *options.also)}
    chosen = sets[choose] if choose in sets else data.build(options, choose, words)
    # The faults of all splits show now, not at the first validation.
    data.require_ready(training, needs(cfg))
    for judge in (chosen, *sets.values()):
        data.require_ready(judge, evaluate.needs(cfg), like=training)
    if cfg.stage == "pg":
        by_match = {"programs": "name another as data.val, for stage=pg is judged by its programs"}
        data.require_ready(chosen, by_match)
    few = np.arange(min(len(chosen), cfg.evaluate.questions))
    return training, chosen.subset(few), sets


def needs(cfg: Config) -> dict[str, str]:
    """What the questions that a stage learns from must have, and the remedy where they do not."""
    if cfg.stage == "pg":
        return {}  # data.known asks for programs
    found = {"answers": "name a split whose answers are known (data.train, tune.train)"}
    if cfg.stage == "ee" and cfg.ee_programs == "ground_truth":
        found["programs"] = "take ee_programs=predicted"
    if cfg.model.engine == "symbolic":
        found["scenes"] = "give data.scenes=FILE with {split} in its name"
    return found


def build(cfg: Config, training: Questions) -> model.Network:
    """The networks that the stage has a use for, of the sizes of the data, from `cfg.init`."""
    words, rows, mode = training.words, training.rows, None
    assert training.features is not None
    if cfg.model.name == "qtype_mode":
        if rows.types is None or rows.answers is None:
            raise ValueError("model.name=qtype_mode needs the types of questions: their programs.")
        mode = QTypeMode(torch.from_numpy(rows.types), torch.from_numpy(rows.answers))
    channels, height, width = training.features.shape[1:]
    network = model.build(
        **asdict(cfg.model),
        words=len(words.words),
        tokens=words.tokens,
        answers=len(words.answers),
        feature_size=(channels, height, width),
        writes=writes(cfg),
        runs=cfg.stage != "pg",
        pixels=training.kind == "pixels",
        mode=mode,
    )
    for source in cfg.init:
        loaded = initialise(network, source, words)
        if dist.is_main():
            print(loaded)
    return network


def writes(cfg: Config) -> bool:
    """Whether a stage has a use for the program generator."""
    if cfg.model.name in BASELINES:
        return False
    used = cfg.stage != "ee" or "predicted" in (cfg.ee_programs, cfg.evaluate.programs)
    begun = any(Path(cfg.output_dir).glob("checkpoint-*[0-9].pt"))
    if used and cfg.stage == "ee" and not cfg.init and not begun:
        raise ValueError(
            "stage=ee takes programs from a generator: give init=FOLDER of a run of stage=pg, or "
            "ee_programs=ground_truth with evaluate.programs=ground_truth."
        )
    return used


def groups(
    network: model.Network, trained: list[torch.nn.Parameter], cfg: Config
) -> list[dict[str, Any]]:
    """Parameters by rate: where answers teach the generator, it may have one of its own."""
    stage = cfg.of_stage()
    slower = cfg.reinforce.lr if cfg.stage in ("joint", "tune") else 0.0
    writer = {id(p) for p in network.generator.parameters()} if network.generator else set()
    sides = [[p for p in trained if (id(p) in writer) == side] for side in (False, True)]
    rates = (stage.lr, slower or stage.lr)
    return [{"params": side, "lr": lr} for side, lr in zip(sides, rates, strict=True)]


def scheduled(optimizer: Adam, stage: Stage) -> LRScheduler:
    """The rate of each step."""
    if stage.schedule == "cosine":
        return CosineAnnealingLR(optimizer, max(1, stage.steps))
    return LambdaLR(optimizer, constant)


def constant(step: int) -> float:
    """The factor on a rate that stays."""
    return 1.0


def shown(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of a loss that has several."""
    return losses if len(losses) > 1 else {}


def keep_best(network: model.Network, cfg: Config) -> None:
    """Go back to the weights of the best validation, as the public code stores them."""
    path = Path(cfg.output_dir, "best.pt")
    if cfg.keep_best and path.is_file():
        network.load_state_dict(checkpoint.load(path)["parts"]["model"])


def run(cfg: Config) -> dict[str, float]:
    """`train` or `train_all`, leaving a result also where the loss diverges."""
    how = train_all if cfg.stage == "all" else train
    return result.recorded(how, cfg, columns=evaluate.ANSWERS)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.typed(cfg)
    if settings.versus:
        data.build_ahead(settings.data)  # once, instead of in every process
        versus.run_all(run, cfg, columns=evaluate.ANSWERS, curve="val_accuracy")
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
