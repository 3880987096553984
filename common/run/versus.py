"""Train several settings side by side, each in a process of its own, and compare them.

The demo of a project shows the paper's effect in this way: its `versus` maps a name to the
overrides that make the setting, `{"focal loss": [], "cross entropy": ["loss.gamma=0"]}`.
"""

import multiprocessing
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from .. import dist, draw, files, spawn
from ..config import to_dataclass
from ..errors import PREEMPTED, UserError
from ..tables.runs import read_result
from . import log, result

FEW = 3  # points that make a curve


def variants(cfg: DictConfig) -> dict[str, DictConfig]:
    """The settings of `cfg.versus`, each merged over `cfg`, with a folder of its own in its."""
    processes = OmegaConf.select(cfg, "processes", default=1)
    if processes > 1:
        raise UserError(
            f"processes={processes} does not go with versus, whose settings have one process "
            "each: give an experiment without it, such as experiment=paper."
        )
    settings: dict[str, DictConfig] = {}
    for name, overrides in cfg.versus.items():
        if re.search(r"[/\\]|^\.*$", str(name)):
            raise UserError(
                f"versus.{name} would be a folder elsewhere: give another name, without /."
            )
        variant = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(variant, DictConfig)
        variant.output_dir = str(Path(cfg.output_dir) / str(name).replace(" ", "_"))
        if any(variant.output_dir == other.output_dir for other in settings.values()):
            raise UserError(f"versus.{name} has the folder of another: give another name.")
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
    curve: str,
    label: str = "",
    along: str = "step",
    first: str = "",
) -> dict[str, Path]:
    """`run` every variant, as many at a time as there are cores, then print and draw them all.

    columns: metrics of the table; curve: the value whose course is drawn, along another one that is
    logged with it, or bars of the table's figures where it has too few points; label: what the axis
    of `curve` says instead of that name; first: what is shown of a run's first step, if anything. A
    variant whose loss diverges is a result. Any other failure ends all. A stop signal lets all
    save, then ends with `PREEMPTED`. Returns the folder of each.
    """
    settings = variants(cfg)
    _train(run, settings)
    folders = {name: Path(variant.output_dir) for name, variant in settings.items()}
    table = result.compare(folders, columns, first)
    files.write_text(Path(cfg.output_dir, "versus.md"), table + "\n")
    _draw(folders, Path(cfg.output_dir, "versus.png"), columns, along, curve, label)
    print(table)
    print(f"\nImages, curves and checkpoints: {cfg.output_dir}")
    return folders


def _train(run: Callable[[Any], object], settings: Mapping[str, DictConfig]) -> None:
    """Every setting in a process of its own."""
    context = multiprocessing.get_context("spawn")
    width = max(map(len, settings))
    words = context.SimpleQueue()  # why a run has ended, with the run's name
    waiting: list[BaseProcess] = [
        context.Process(
            target=_one, args=(run, to_dataclass(variant), name.ljust(width), words), name=name
        )
        for name, variant in settings.items()
    ]
    running: list[BaseProcess] = []
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if asked.count(signal.SIGINT) > 1:
            for process in running:
                process.kill()
            raise SystemExit(130)
        if len(asked) == 1:
            spawn.announce(number, 0)
        for process in running:
            process.terminate()

    with spawn.signals(pass_on):
        try:
            while running or (waiting and not asked):
                while waiting and not asked and len(running) < dist.cores():
                    process = waiting.pop(0)
                    with spawn.out_of_reach():
                        process.start()
                    running.append(process)
                    if asked:  # while it was started
                        process.terminate()
                running[0].join(timeout=0.2)
                for process in [p for p in running if p.exitcode is not None]:
                    running.remove(process)
                    name, why = ("", "") if words.empty() else words.get()
                    folder = Path(settings[process.name].output_dir)
                    if process.exitcode and not asked and read_result(folder) is None:
                        raise UserError(why, process.exitcode) if why else SystemExit(1)
                    if why:
                        print(f"{name} | {why}", file=sys.stderr)
        finally:
            for process in running:
                process.terminate()
                process.join()
    if asked:
        raise SystemExit(PREEMPTED)


def _one(run: Callable[[Any], object], cfg: Any, name: str, words: Any) -> None:
    """One setting, in a process of its own; `name` stands before each line that it prints."""
    sys.stdout, sys.stderr = _Named(sys.stdout, name), _Named(sys.stderr, name)  # type: ignore
    try:
        dist.launch(run, cfg, 1)
    except UserError as error:
        words.put((name, str(error)))
        raise SystemExit(error.status) from None


class _Named:
    """A stream that writes whole lines, each behind the name of its run."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name, self.begun = stream, name, ""

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stream, attribute)

    def isatty(self) -> bool:
        """No progress bars: those of several runs would overwrite one another."""
        return False

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        self.stream.write("".join(f"{self.name} | {line}\n" for line in lines))
        self.stream.flush()
        return len(text)


def _draw(
    folders: Mapping[str, Path],
    path: Path,
    columns: Sequence[str],
    along: str,
    curve: str,
    label: str = "",
) -> None:
    """The course of one value in all runs, along another; or all final figures as bars."""
    lines: dict[str, draw.Line] = {}
    for name, folder in folders.items():
        points = [line for line in log.read(folder) if None not in map(line.get, (along, curve))]
        if points:
            lines[name] = ([p[along] for p in points], [p[curve] for p in points])
    if max((len(xs) for xs, _ in lines.values()), default=0) >= FEW:
        draw.curves(path, lines, xlabel=along, ylabel=label or curve)
        return
    metrics = {name: (read_result(folder) or {})["metrics"] for name, folder in folders.items()}
    draw.bars(path, {c: {name: m.get(c) for name, m in metrics.items()} for c in columns})
