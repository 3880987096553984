"""Train several settings side by side, each in a process of its own, and compare them."""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from common import dist, draw
from common.config import typed
from focal_loss import report
from focal_loss.config import Config


def variants(cfg: DictConfig) -> dict[str, DictConfig]:
    """The settings of `cfg.versus`, each merged over `cfg`, with a folder of its own in its."""
    cores = os.cpu_count() or 1
    settings = {}
    for name, overrides in cfg.versus.items():
        variant = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(variant, DictConfig)
        variant.output_dir = str(Path(cfg.output_dir) / str(name).replace(" ", "_"))
        variant.threads = cfg.threads or max(1, cores // len(cfg.versus))
        variant.versus = {}
        record = Path(variant.output_dir, ".hydra", "config.yaml")
        record.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(variant, record)  # as Hydra leaves it for a single run
        settings[str(name)] = variant
    return settings


def run_all(run: Callable[[Config], object], cfg: DictConfig) -> None:
    """`run` every variant, as many at a time as there are cores, then print and draw them all.

    A variant whose loss diverges is a result. Any other failure ends all of them.
    """
    context = multiprocessing.get_context("spawn")
    settings = variants(cfg)
    waiting: list[BaseProcess] = [
        context.Process(target=_one, args=(run, typed(variant)), name=name)
        for name, variant in settings.items()
    ]
    running: list[BaseProcess] = []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                running.append(waiting.pop(0))
                running[-1].start()
            running[0].join(timeout=0.2)
            for process in [p for p in running if p.exitcode is not None]:
                running.remove(process)
                folder = Path(settings[process.name].output_dir)
                if process.exitcode and not (folder / "result.json").exists():
                    raise SystemExit(process.exitcode)  # the run has said why
    finally:
        for process in running:
            process.terminate()
            process.join()
    _show({name: Path(variant.output_dir) for name, variant in settings.items()}, cfg.output_dir)


def _one(run: Callable[[Config], object], cfg: Config) -> None:
    dist.launch(run, cfg, 1)


def _show(folders: dict[str, Path], output_dir: str) -> None:
    """Print the comparison and write it as `versus.md` and `versus.png`."""
    table = report.compare(folders)
    Path(output_dir, "versus.md").write_text(table + "\n")
    lines: dict[str, draw.Line] = {}
    for name, folder in folders.items():
        with (folder / "metrics.jsonl").open() as file:
            points = [json.loads(line) for line in file]
        points = [p for p in points if "AP" in p]
        if points:
            lines[name] = ([p["step"] for p in points], [p["AP"] for p in points])
    if lines:
        draw.curves(Path(output_dir, "versus.png"), lines, xlabel="step", ylabel="AP")
    print(table, file=sys.stdout)
    print(f"\nPictures, curves and checkpoints: {output_dir}")
