"""What a finished run leaves behind: `result.json`, and the comparison of several runs."""

import json
import math
import os
from pathlib import Path

import torch

from common import dist, machine
from common.log import Diverged
from focal_loss.config import Config

COLUMNS = ("AP", "AP50", "AP75")


def write(
    cfg: Config, metrics: dict[str, float], *, seconds: float, diverged: Diverged | None = None
) -> None:
    """Write `result.json` into the run's folder; `tables.py` takes a run with it as finished.

    Metrics that the data leave undefined (nan, which is no JSON) are left out. seconds: of this
    process, from start to end. diverged: the error that ended the run, if one did.
    """
    if not dist.is_main():
        return
    content = {
        "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        "steps": cfg.steps,
        "seconds": round(seconds, 1),
        "diverged": diverged and {"step": diverged.step, "part": diverged.part},
        "device": device_name(),
    }
    path = Path(cfg.output_dir) / "result.json"
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
    if not diverged:
        figures = ", ".join(f"{column} {metrics[column]:.1f}" for column in COLUMNS)
        print(f"{figures} after {cfg.steps} steps, {seconds:.0f} s; pictures in {cfg.output_dir}")


def device_name() -> str:
    """Name of the GPU, or processor and number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{machine.cpu()}, {torch.get_num_threads()} threads"


def compare(folders: dict[str, Path]) -> str:
    """A Markdown table of finished runs: name, loss of the first step, and the metrics."""
    lines = ["| run | first loss | " + " | ".join(COLUMNS) + " |"]
    lines.append("|:--|--:|" + "--:|" * len(COLUMNS))
    for name, folder in folders.items():
        result = json.loads((folder / "result.json").read_text())
        with (folder / "metrics.jsonl").open() as file:
            first = json.loads(file.readline()).get("classification", float("nan"))
        if result["diverged"]:
            shown = [f"diverged at step {result['diverged']['step']}", *["–"] * (len(COLUMNS) - 1)]
        else:
            values = [result["metrics"].get(column) for column in COLUMNS]
            shown = ["–" if value is None else f"{value:.1f}" for value in values]
        lines.append(f"| {name} | {first:.2f} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
