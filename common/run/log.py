"""What a run leaves behind: `metrics.jsonl`, TensorBoard events, `curves.png`, `run.json`.

    log = Log(folder, steps, every=20, start=start)
    for step in range(start + 1, steps + 1):
        ...
        require_finite(losses, step, files)        # before backward: the weights are still good
        log(step, **losses, lr=schedule.get_last_lr()[0])
    log(steps, force=True, **metrics)
    log.close()

`require_finite` raises on all ranks in the same step, so a loop that wants the last good weights
catches `Diverged`, saves them as step - 1 and raises it again; one that would rather skip the batch
catches it, counts, and goes on with the next one.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import dist, files
from . import machine


class Diverged(FloatingPointError):
    """A loss became NaN or infinite: `step`, `part` (its name), `files` of rank `rank`'s batch."""

    def __init__(self, step: int, part: str, files: list[str], rank: int = 0) -> None:
        super().__init__(step, part, files, rank)
        self.step, self.part, self.files, self.rank = step, part, files, rank

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"the {self.part} loss is not finite in step {self.step} on rank {self.rank}, whose "
            f"images were: {', '.join(map(str, self.files)) or 'not named'}."
        )


def require_finite(losses: dict[str, Tensor], step: int, files: list[str]) -> None:
    """Raise Diverged on all ranks if one of `losses` (scalars) is NaN or infinite on any of them.

    `files`: names of this rank's images. Reads the losses, so it waits for the device.
    """
    if not losses:
        return
    good = torch.isfinite(torch.stack([value.detach().float() for value in losses.values()]))
    parts = [name for name, fine in zip(losses, good.tolist(), strict=True) if not fine]
    if not dist.total(torch.tensor([len(parts)])):
        return
    reports = dist.gather((parts, list(files)))
    rank = next(number for number, (names, _) in enumerate(reports) if names)
    raise Diverged(step, reports[rank][0][0], reports[rank][1], rank)


class Log:
    """Call it after each step; on ranks other than 0 it does nothing but note the step.

    Tensors are averaged over `every` steps and read only then, so the device is not waited for in
    between; numbers are shown as last given. `start`: step that the run resumes from; lines of
    later steps are removed from `metrics.jsonl`.
    A full disk is reported once and does not end the run.
    """

    def __init__(self, folder: str | Path, steps: int, *, every: int = 20, start: int = 0) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1.")
        self.folder, self.steps, self.every, self.start = Path(folder), steps, every, start
        self.began = time.time()
        self.earlier = 0.0  # seconds before the run was resumed
        self.last = 0
        self.values: dict[str, tuple[Tensor | float, int]] = {}  # sum or last value, count
        self.bar: tqdm | None = None
        self.events: Any = None
        self.opened = self.closed = self.warned = False
        if dist.is_main():
            self._guard(lambda: self.folder.mkdir(parents=True, exist_ok=True))
            self._guard(lambda: self._describe(None))

    def __call__(self, step: int, force: bool = False, **values: Tensor | float) -> None:
        """Note `values` (scalars) of `step`, from 1; `force` writes them as a line of their own."""
        dist.note_step(step)
        if not dist.is_main():
            return
        if not self.opened:
            self._open()
        self.last = step
        if force:
            numbers = {name: _number(value) for name, value in values.items()}
            if step == self.start:  # a finished run that is evaluated again
                known = {name for name, value in numbers.items() if not math.isnan(value)}
                self._keep(lambda line: line["step"] != step or not known <= line.keys())
            self._record(step, numbers)
            return
        for name, value in values.items():
            sum_, count = self.values.get(name, (0.0, 0))
            if isinstance(value, Tensor):
                self.values[name] = (sum_ + value.detach().float(), count + 1)
            else:
                self.values[name] = (value, 1)
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        if step % self.every == 0 or step == self.steps:
            self._flush()

    def close(self) -> None:
        """Draw the curves and note the time it took; call it however the run ends."""
        if not dist.is_main() or self.closed:
            return
        self.closed = True
        self._flush()
        if self.bar is not None:
            self.bar.close()
        if self.events is not None:
            self._guard(self.events.close)
        self._guard(lambda: self._describe(self._seconds()))
        self._guard(lambda: draw(read(self.folder), self.folder / "curves.png"))

    def _open(self) -> None:
        """Go on behind step `start`."""
        self.opened = True
        self._keep(lambda line: line["step"] <= self.start)
        self.earlier = max((line.get("seconds", 0.0) for line in read(self.folder)), default=0.0)
        self._guard(self._open_events)
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.steps, initial=self.start, dynamic_ncols=True)

    def _open_events(self) -> None:
        """Open TensorBoard's file; imported here because that takes a second."""
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(str(self.folder), purge_step=self.start + 1)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Remove all lines but the `wanted` ones from `metrics.jsonl`."""
        path = self.folder / "metrics.jsonl"
        text = "".join(json.dumps(line) + "\n" for line in read(self.folder) if wanted(line))
        if path.is_file() and text.encode() != path.read_bytes():
            self._guard(lambda: files.write_text(path, text))

    def _flush(self) -> None:
        """Record what has been collected."""
        if self.values:
            self._record(self.last, {k: float(v) / n for k, (v, n) in self.values.items()})
        self.values = {}

    def _record(self, step: int, values: dict[str, float]) -> None:
        """Write one line everywhere, without NaN: what the data leave undefined."""
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        seconds = self._seconds()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(shown)
        else:
            print(f"step {step}/{self.steps}  {shown}  ({seconds:.0f} s)", flush=True)
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        line = json.dumps({"step": step, "seconds": seconds, **finite})
        self._guard(lambda: self._append(line))
        if self.events is not None:
            self._guard(lambda: self._send(step, values))

    def _append(self, line: str) -> None:
        """Add `line` to `metrics.jsonl`, after an earlier one that a full disk cut off."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write("\n" * self.warned + line + "\n")

    def _send(self, step: int, values: dict[str, float]) -> None:
        """Hand `values` to TensorBoard."""
        os.stat(self.folder)  # one that was removed fails here, not in TensorBoard's thread
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
        self.events.flush()

    def _seconds(self) -> float:
        """Time that the run has taken so far, without interruptions."""
        return round(self.earlier + time.time() - self.began, 2)

    def _describe(self, seconds: float | None) -> None:
        """Write `run.json`; `seconds` are None as long as the run is under way.

        A resumed run keeps the command and the start of the first one.
        """
        start = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.began))
        facts = machine.facts() | {"start": start, "seconds": seconds}
        kept = ["changed", "command", "start"] if self.start else ["changed"]
        before = files.read_json(self.folder / "run.json")
        facts |= {key: before[key] for key in kept if before.get(key)}
        files.write_text(self.folder / "run.json", json.dumps(facts, indent=2) + "\n")

    def _guard(self, write: Callable[[], Any]) -> None:
        """Write; where that fails, say so once, loudly, and let the training go on."""
        try:
            write()
        except OSError as error:
            if not self.warned:
                reason = error.strerror or error
                print(
                    f"WARNING: the log in {self.folder} cannot be written ({reason}); the training "
                    "goes on without it.",
                    file=sys.stderr,
                    flush=True,
                )
            self.warned = True


def note_changes(folder: str | Path, step: int, changed: dict[str, list]) -> None:
    """Add to `run.json` which options a run goes on with from `step`: [before, now] by name."""
    path = Path(folder) / "run.json"
    run = files.read_json(path)
    notes = [note for note in run.get("changed", []) if note["step"] < step]
    notes += [{"step": step, "options": changed}] if changed else []
    if notes != run.get("changed", []):
        files.write_text(path, json.dumps(run | {"changed": notes}, indent=2) + "\n")
    for name, (before, now) in changed.items():
        print(f"note: {name}={now} from step {step} on; it was {before}.", file=sys.stderr)


def read(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of `folder/metrics.jsonl`; one cut off by a full disk or a kill is left out."""
    path = Path(folder) / "metrics.jsonl"
    lines = map(files.parse, path.read_bytes().splitlines() if path.is_file() else [])
    return [line for line in lines if type(line.get("step")) is int and _sound(line)]


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Picture at `path` of each value in `lines` that ever changes, a small plot each."""
    from matplotlib.figure import Figure  # imported here because that takes a second

    names = dict.fromkeys(k for line in lines for k in line if k not in ("step", "seconds"))
    points = {k: [(at["step"], at[k]) for at in lines if at.get(k) is not None] for k in names}
    points = {k: values for k, values in points.items() if len({v for _, v in values}) > 1}
    rows = max(1, math.ceil(len(points) / 3))
    figure = Figure(figsize=(12, 3 * rows))
    inch = 1 / (3 * rows)
    figure.subplots_adjust(0.06, 0.5 * inch, 0.98, 1 - 0.3 * inch, wspace=0.2, hspace=0.4)
    for index, (name, values) in enumerate(points.items(), 1):
        axis = figure.add_subplot(rows, 3, index, title=name, xlabel="step")
        axis.plot(*zip(*values, strict=True))
        axis.locator_params(nbins=5)  # each mark costs a millisecond
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))
        axis.grid(alpha=0.3)
    files.write(path, lambda file: figure.savefig(file, format="png", dpi=100))


def _sound(line: dict[str, Any]) -> bool:
    """Whether all values are numbers that a float can hold, or null for what was not finite."""
    return all(
        value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)
        for value in line.values()
    )


def _number(value: Tensor | float) -> float:
    """A scalar, read from its device."""
    return value.detach().item() if isinstance(value, Tensor) else float(value)
