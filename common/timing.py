"""Speed and memory of several ways to do one thing, compared fairly.

    calls = {"ours": lambda: mine(x), "theirs": lambda: other(x)}
    seconds = by_turns(calls, repeats=9, device="cpu")
    print(table([Row("loss", name, each) for name, each in seconds.items()]))

A project's benchmark.py hands its benchmarks to `compare`, whose docstrings say what was timed.

The contestants take turns in one process, so whatever disturbs the machine disturbs all of them.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import files
from .config import require_choice, require_range
from .run import machine
from .tables.markdown import markdown

Calls = dict[str, Callable[[], Any]]  # a contestant's name -> what is timed; ours comes first


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant."""

    benchmark: str
    name: str
    seconds: list[float]  # of each repeat, two or more
    memory: int | None = None  # bytes beyond the inputs, at the peak; None: not measured

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile in seconds."""
        low, median, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, median, high

    def cells(self, ours: "Row") -> list[str]:
        """Its line of the table; `ours` is what it is compared with."""
        low, median, high = (1000 * each for each in self.quartiles)
        ratio = "" if self is ours else f"{self.quartiles[1] / ours.quartiles[1]:.2f}"
        memory = "" if self.memory is None else f"{self.memory / 2**20:,.0f} MiB"
        times = [f"{median:,.1f} ms", f"{low:,.1f} – {high:,.1f} ms"]
        return [self.benchmark, self.name, *times, ratio, memory]


def version_of(package: str) -> str:
    """An installed package and its version."""
    return f"{package} {version(package)}"


def table(rows: Sequence[Row]) -> str:
    """Markdown; the first row of every benchmark is ours, the ratio that of the medians."""
    heads = ["benchmark", "", "median", "quartiles", "theirs / ours", "extra memory"]
    ours = {row.benchmark: row for row in reversed(rows)}
    return markdown(heads, [row.cells(ours[row.benchmark]) for row in rows], left=2)


def by_turns(calls: Calls, repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each repeat of every contestant, each round led by another one.

    One more round goes before and does not count. device: "cpu" or "cuda".
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repeats + 1):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            elapsed = _seconds(calls[name], device)
            if i:
                seconds[name].append(elapsed)
    return seconds


def _seconds(call: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000  # events count milliseconds


def extra_memory(call: Callable[[], Any], device: str) -> int | None:
    """Bytes that a call takes at its peak beyond what is in use; None where nothing tells.

    On a CPU it belongs in a process of its own (`in_new_process`), as memory that an earlier call
    gave back may be used again unseen. `ru_maxrss` would not do: a child inherits its parent's.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")  # Linux only
    if not reset.exists():
        return None
    reset.write_text("5")  # sets the peak to what is in use now
    before = _peak()
    call()
    return _peak() - before


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of a function of some module, called in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def conditions(device: str) -> dict[str, Any]:
    """What the figures depend on; a load average above 0 before the start tells of company."""
    return {
        "cpu": machine.cpu(),
        "vectors": machine.vectors(),  # NumPy and PyTorch are faster with AVX512
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load average": round(os.getloadavg()[0], 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "commit": machine.commit(),
    }


def require_sound(options: Any, benchmarks: Iterable[str]) -> None:
    """Raise ValueError unless `options` has what, device, repeats and threads that can be had."""
    require_choice("what", options.what, ["all", *benchmarks])
    require_choice("device", options.device, ("cpu", "cuda"))
    require_range("repeats", options.repeats, 2)
    require_range("threads", options.threads, 1)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch sees no GPU: use device=cpu.")


def compare(
    options: Any,
    benchmarks: Mapping[str, Callable[[Any], Any]],
    measure: Callable[[str, Any], tuple[list[Row], list[str]]],
) -> None:
    """Measure what `options.what` names, print, and write the file that `options.out` names.

    measure: rows of a benchmark, ours first, and notes to print below.
    """
    torch.set_num_threads(options.threads)
    facts = conditions(options.device)
    shown = facts | asdict(options)
    print(*(f"{key} {value}" for key, value in shown.items()), sep=", ", flush=True)
    rows: list[Row] = []
    lines: list[str] = []
    notes: list[str] = []
    for name, benchmark in benchmarks.items():
        if options.what in ("all", name):
            found, told = measure(name, options)
            rows += found
            lines += [f"- {name}: {' '.join((benchmark.__doc__ or '').split())}"] * bool(found)
            notes += told
    if rows:
        print(f"\n{table(rows)}\n")
    print(*lines, *notes, sep="\n")
    if options.out:
        results = [asdict(row) | {"quartiles": row.quartiles} for row in rows]
        content = {"conditions": facts, "options": asdict(options), "results": results}
        files.write_text(Path(options.out), json.dumps(content, indent=1) + "\n")
