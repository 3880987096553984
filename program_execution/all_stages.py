"""All stages of a model in turn, each in its own folder, from the weights of the one before."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import dist, files
from common.run import log, result
from common.tables import runs
from program_execution import data, evaluate, stages
from program_execution.config import BASELINES, Config


def train_all(cfg: Config, train: Callable[[Config], dict[str, float]]) -> dict[str, float]:
    """Train every stage that has steps with `train`; the metrics of the whole, see `summary`."""
    started, done, before = time.time(), 0, list(cfg.init)
    parts = stages_of(cfg)
    for part in parts[1:]:
        if read_metrics(part) is None:
            stages.datasets(part)  # the faults of its splits show before the first stage
    total = sum(part.of_stage().steps for part in parts)
    start = sum(part.of_stage().steps for part in parts if read_metrics(part) is not None)
    record = log.Log(cfg.output_dir, total, every=cfg.log_every, start=start)
    found: dict[str, dict[str, float]] = {}
    lines: list[dict[str, Any]] = []
    for part in parts:
        folder = Path(part.output_dir)
        found[part.stage] = read_metrics(part) or train(replace(part, init=before))
        lines += [line | {"step": done + line["step"]} for line in log.read(folder)]
        if dist.is_main():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            files.write_text(Path(cfg.output_dir, "metrics.jsonl"), text)
        done, before = done + part.of_stage().steps, [str(folder)]
    metrics = summary(found, cfg)
    record.close()
    seconds, columns = time.time() - started, evaluate.columns(parts[-1])
    result.write(cfg.output_dir, metrics, steps=done, seconds=seconds, columns=columns)
    return metrics


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


def read_metrics(cfg: Config) -> dict[str, float] | None:
    """The metrics of a stage that has come to its end; None of any other."""
    earlier = runs.read_result(Path(cfg.output_dir))
    if earlier is None or earlier["steps"] != cfg.of_stage().steps or earlier["diverged"]:
        return None
    return earlier["metrics"]


def summary(found: dict[str, dict[str, float]], cfg: Config) -> dict[str, float]:
    """One set of metrics from those of every stage.

    They are those of the last stage before fine-tuning; the others' have their stage in front, as
    `ee_accuracy`. lift: what joint training added; drop and recovery: what the first of `data.also`
    loses against `data.val`, and what fine-tuning gives back to it.
    """
    last = [stage for stage in found if stage != "tune"][-1] if set(found) - {"tune"} else "tune"
    metrics = dict(found[last])
    kept = ("accuracy", *evaluate.PROGRAMS, "executed")
    for stage, values in found.items():
        if stage != last:
            metrics |= {f"{stage}_{k}": v for k, v in values.items() if k.endswith(kept)}
    if {"ee", "joint"} <= found.keys():
        metrics["lift"] = found["joint"]["accuracy"] - found["ee"]["accuracy"]
    if cfg.data.also:
        other = f"{data.label(cfg.data.also[0])}_accuracy"
        if other in metrics:
            metrics["drop"] = metrics["accuracy"] - metrics[other]
        if "tune" in found and other in metrics:
            metrics["recovery"] = found["tune"][other] - metrics[other]
    return metrics
