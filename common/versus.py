"""Train several settings side by side, each in a process of its own, and compare them.

The demo of a project shows the paper's effect in this way: its `versus` maps a name to the
overrides that make the setting, `{"focal loss": [], "cross entropy": ["loss.gamma=0"]}`.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import dist, draw, log, result
from .config import typed


def variants(cfg: DictConfig) -> dict[str, DictConfig]:
    """The settings of `cfg.versus`, each merged over `cfg`, with a folder of its own in its."""
    settings = {}
    for name, overrides in cfg.versus.items():
        variant = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(variant, DictConfig)
        variant.output_dir = str(Path(cfg.output_dir) / str(name).replace(" ", "_"))
        variant.threads = cfg.threads or max(1, dist.cores() // len(cfg.versus))
        variant.versus = {}
        record = Path(variant.output_dir, ".hydra", "config.yaml")
        record.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(variant, record)  # as Hydra leaves it for a single run
        settings[str(name)] = variant
    return settings


def run_all(
    run: Callable[[Any], object],
    cfg: DictConfig,
    *,
    columns: Sequence[str],
    first: str,
    curve: str,
    along: str = "step",
) -> None:
    """`run` every variant, as many at a time as there are cores, then print and draw them all.

    columns: metrics of the table; first: what is shown of a run's first step; curve: the value
    whose course is drawn, along another one that is logged with it. A variant whose loss diverges
    is a result. Any other failure ends all.
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
            while waiting and len(running) < dist.cores():
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
    folders = {name: Path(variant.output_dir) for name, variant in settings.items()}
    table = result.compare(folders, columns, first)
    Path(cfg.output_dir, "versus.md").write_text(table + "\n")
    _draw(folders, Path(cfg.output_dir, "versus.png"), along, curve)
    print(table)
    print(f"\nPictures, curves and checkpoints: {cfg.output_dir}")


def _one(run: Callable[[Any], object], cfg: Any) -> None:
    dist.launch(run, cfg, 1)


def _draw(folders: Mapping[str, Path], picture: Path, along: str, curve: str) -> None:
    """The course of one value in all runs, along another."""
    lines: dict[str, draw.Line] = {}
    for name, folder in folders.items():
        points = [line for line in log.read(folder) if None not in map(line.get, (along, curve))]
        if points:
            lines[name] = ([p[along] for p in points], [p[curve] for p in points])
    if lines:
        draw.curves(picture, lines, xlabel=along, ylabel=curve)
