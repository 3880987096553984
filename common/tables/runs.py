"""Train many runs in processes of their own, some at a time: skip the finished, resume the others.

A run has finished when train.py has left `result.json` in its folder, written at its very end; what
else lies there is resumed by train.py itself. Its console goes to `console.txt` in the same folder.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tqdm import tqdm

from .. import files
from ..errors import PREEMPTED
from ..files import relative
from ..spawn import cores

GRACE = 60  # seconds a child has to save its state when we are interrupted
TAIL = 12  # lines of a failed run's console that are repeated in the account


@dataclass(frozen=True)
class Run:
    """One training: its folder and its command, without seed and folder."""

    folder: Path
    overrides: list[str]
    seed: int
    label: str
    script: str = "train.py"  # in the folder of tables.py


@dataclass(frozen=True)
class Ending:
    """How a run ended: finished, stopped (pre-empted), or failed with these last words."""

    kind: str
    text: str
    words: Sequence[str] = ()


def read_result(folder: Path) -> dict[str, Any] | None:
    """What the run in this folder measured; None if it has not finished."""
    result = files.read_json(folder / "result.json")
    return result if isinstance(result.get("metrics"), dict) else None


def execute(runs: Sequence[Run], project: Path, jobs: int) -> dict[Path, Ending]:
    """Train the runs by scripts of `project`, `jobs` at a time, and tell of each start and end.

    Returns the endings by folder. However this function itself ends, Ctrl-C and SIGTERM included,
    no child is left behind.
    """
    waiting = deque(runs)
    active: dict[int, tuple[Run, subprocess.Popen, int]] = {}  # by slot, 0 .. jobs - 1
    endings: dict[Path, Ending] = {}
    devices = _devices() if jobs > 1 else []
    begin = time.monotonic()
    before = signal.signal(signal.SIGTERM, _interrupt)
    bar = tqdm(total=len(runs), unit="run", disable=not sys.stderr.isatty() or not runs)
    try:
        while waiting or active:
            for slot in sorted(set(range(jobs)) - set(active)):
                if waiting:
                    run = waiting.popleft()
                    bar.write(f"started  {run.label}: {relative(run.folder)}")
                    active[slot] = (run, *_start(run, project, _environment(slot, jobs, devices)))
            time.sleep(0.05)
            for slot, (run, process, offset) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[slot]
                ending = _ending(run, process.returncode, offset)
                endings[run.folder] = ending
                bar.update()
                left = len(waiting) + len(active)
                elapsed = time.monotonic() - begin
                rest = elapsed / (len(runs) - left) * left
                clock = f"{duration(elapsed)} so far, about {duration(rest)} left"
                bar.write(
                    f"{ending.kind:8} {ending.text} [{len(runs) - left}/{len(runs)}, {clock}]"
                )
                sys.stdout.flush()
    finally:
        _end([process for _, process, _ in active.values()])
        bar.close()
        signal.signal(signal.SIGTERM, before)
    return endings


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Take a signal for a Ctrl-C that tells its number."""
    raise KeyboardInterrupt(number)


def _start(run: Run, project: Path, environment: dict[str, str]) -> tuple[subprocess.Popen, int]:
    """The run's process, and where in console.txt its part begins."""
    run.folder.mkdir(parents=True, exist_ok=True)
    folder = str(run.folder).replace("\\", "\\\\").replace("'", "\\'")  # Hydra's quoting
    command = [sys.executable, str(project / run.script), *run.overrides, f"seed={run.seed}"]
    with (run.folder / "console.txt").open("ab") as console:
        process = subprocess.Popen(
            [*command, f"hydra.run.dir='{folder}'"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone; `_end` passes it on
        )
        return process, console.tell()


def _ending(run: Run, code: int, offset: int) -> Ending:
    """How the run ended, whose process left this code and wrote console.txt from `offset` on."""
    result = read_result(run.folder)
    if result is not None:
        how = divergence(result) or ", ".join(
            f"{name} {value:.4g}" for name, value in list(result["metrics"].items())[:3]
        )
        return Ending("finished", f"{run.label}: {how}, {duration(result.get('seconds'))}")
    if code == PREEMPTED:
        return Ending("stopped", f"{run.label}: pre-empted")
    why = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    why = why if code else "it ended without a result.json"
    with (run.folder / "console.txt").open("rb") as console:
        console.seek(offset)
        lines = console.read().decode(errors="replace").rstrip().splitlines()[-TAIL:]
    return Ending("failed", f"{run.label}: {why}, see {relative(run.folder)}/console.txt", lines)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Ask the processes to save and end; kill what is there after GRACE or a second Ctrl-C."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(slot: int, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    """The environment of the run in this slot: its share of the cores, and of the GPUs."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
    environment.setdefault("PYTHONUNBUFFERED", "1")  # console.txt can be followed
    if devices:
        share = devices[slot::jobs] or [devices[slot % len(devices)]]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    return environment


def _devices() -> list[str]:
    """The GPUs that runs side by side have to share."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    import torch  # seconds to import: only where runs go side by side

    return [str(device) for device in range(torch.cuda.device_count())]


def divergence(result: dict[str, Any]) -> str:
    """Where the run diverged, in words; empty if it did not."""
    diverged = result.get("diverged")
    if not diverged:
        return ""
    return f"diverged at step {diverged.get('step', '?')} ({diverged.get('part', '?')})"


def duration(seconds: float | None) -> str:
    """Seconds in words, "5 min 12 s"; a dash where they are not known."""
    if seconds is None:
        return "–"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02} s"
    return f"{total // 3600} h {total % 3600 // 60:02} min"
