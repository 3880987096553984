"""What a finished run leaves behind: `result.json`, and the comparison of several runs."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import dist, machine
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
    path = Path(folder) / "result.json"
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
    if not diverged:
        figures = ", ".join(f"{column} {metrics[column]:.1f}" for column in columns)
        print(f"{figures} after {steps} steps, {seconds:.0f} s; everything in {folder}")


def recorded(
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


def compare(folders: Mapping[str, Path], columns: Sequence[str], first: str) -> str:
    """A Markdown table of finished runs: name, value of `first` in the first line, the metrics."""
    lines = [f"| run | first {first} | " + " | ".join(columns) + " |"]
    lines.append("|:--|--:|" + "--:|" * len(columns))
    for name, folder in folders.items():
        result = json.loads((folder / "result.json").read_text())
        with (folder / "metrics.jsonl").open() as file:
            start = json.loads(file.readline()).get(first)
        if result["diverged"]:
            shown = [f"diverged at step {result['diverged']['step']}", *["–"] * (len(columns) - 1)]
        else:
            values = [result["metrics"].get(column) for column in columns]
            shown = ["–" if value is None else f"{value:.1f}" for value in values]
        begun = "–" if start is None else f"{start:.2f}"
        lines.append(f"| {name} | {begun} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
