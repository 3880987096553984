"""What a finished run leaves behind: `result.json`, and the comparison of several runs."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import dist
from ..errors import UserError
from ..tables import runs
from ..tables.markdown import markdown
from . import lock, log, machine, sealed
from .log import Diverged


def write(
    folder: str | Path,
    metrics: Mapping[str, float],
    *,
    steps: int,
    seconds: float,
    columns: Sequence[str],
    diverged: Diverged | None = None,
) -> None:
    """Write `result.json` into the run's folder; `tables.py` takes a run with it as finished.

    Metrics that the data leave undefined (nan, which is no JSON) are left out. seconds: of this
    process, from start to end. columns: the metrics that are printed. diverged: the error that
    ended the run, if one did.
    """
    if not dist.is_main():
        return
    content = {
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "steps": steps,
        "seconds": round(seconds, 1),
        "diverged": diverged and {"step": diverged.step, "part": diverged.part},
        "device": device_name(),
    }
    lock.require(Path(folder))
    text = json.dumps(content, indent=1) + "\n"
    sealed.write(Path(folder, "result.json"), lambda file: file.write(text.encode()))
    if not diverged:
        shown = [column for column in columns if math.isfinite(metrics[column])]
        figures = ", ".join(f"{column} {metrics[column]:.1f}" for column in shown)
        figures = figures or f"{', '.join(columns)} undefined"
        print(f"{figures} after {steps} steps, {seconds:.0f} s; everything in {folder}")


def record(
    train: Callable[[Any], dict[str, float]], cfg: Any, *, columns: Sequence[str]
) -> dict[str, float]:
    """`train(cfg)`; where its loss diverges, that is written as the run's result before it ends."""
    started = time.time()
    try:
        return train(cfg)
    except Diverged as error:
        seconds = time.time() - started
        steps, folder = error.step, cfg.output_dir
        write(folder, {}, steps=steps, seconds=seconds, columns=columns, diverged=error)
        raise


def device_name() -> str:
    """Name of the GPU, or processor and number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{machine.cpu()}, {torch.get_num_threads()} threads"


def compare(folders: Mapping[str, Path], columns: Sequence[str], first: str = "") -> str:
    """A Markdown table of finished runs: name, value of `first` in the first line, the metrics.

    Without `first` there is no such column; nor is there one of a metric that no run has.
    """
    results = {name: runs.read_result(folder) or {} for name, folder in folders.items()}
    for name, result in results.items():
        if not result:
            raise UserError(f"{folders[name]} holds no result any more: run the command again.")
    known = [c for c in columns if any(c in r["metrics"] for r in results.values())]
    columns = known or columns[:1]  # which all runs that diverged still say
    titles = ["run", *([f"first {first}"] if first else []), *columns]
    lines = []
    for name, result in results.items():
        line = [name]
        if first:
            start = next((at[first] for at in log.read(folders[name]) if first in at), None)
            line.append("–" if start is None else f"{start:.2f}")
        values = [result["metrics"].get(column) for column in columns]
        line += ["–" if value is None else f"{value:.1f}" for value in values]
        if diverged := runs.divergence(result):
            line[1 + bool(first) :] = [diverged, *["–"] * (len(columns) - 1)]
        lines.append(line)
    return markdown(titles, lines)
