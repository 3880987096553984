"""Checkpoints: written whole or not at all, checked when read, resumed to the bit.

    start = checkpoint.resume(folder, model=model, optimizer=optimizer, batch_size=16)
    ...
    checkpoint.save(folder, step, model=model, optimizer=optimizer, batch_size=16)

A part is an object with `state_dict()` and `load_state_dict()`, or a plain value (tensor, str, int,
float, bool, list, dict). A plain value states what a run is made of, such as its batch size or its
class names: resuming with another one stops; so do other `Options`, but for those that may change.
All ranks call `save` and `resume`; rank 0 writes. `sealed.py` describes the file.
"""

import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import dist
from . import lock as folder_lock
from . import log, random_states
from .lock import release as unlock
from .options import Options
from .sealed import CheckpointError, load, plain, seal, write

__all__ = [
    "CheckpointError",
    "load",
    "load_matching",
    "lock",
    "resume",
    "save",
    "unlock",
]

KEEP = 2  # checkpoints of a run
R = TypeVar("R")


def save(
    folder: str | Path,
    step: int,
    *,
    best: dict[str, float] | None = None,
    **parts: Any,
) -> Path:
    """Write `folder/checkpoint-<step>.pt`, then remove all but the `KEEP` newest up to it.

    `best`: {"AP": 31.2}, higher is better: also writes `best.pt` unless that has as high a first
    value. Wrapped modules are saved unwrapped. Raises CheckpointError on all ranks where rank 0
    could not write, e.g. on a full disk; the files that were there are left as they were.
    """
    path = Path(folder) / f"checkpoint-{step:08d}.pt"
    states = dist.gather(random_states.get())
    _on_main(lambda: _save(path, states, best, parts))
    dist.note_saved(step)
    return path


def resume(folder: str | Path, *, steps: int | None = None, **parts: Any) -> int:
    """Restore `parts` from the newest good checkpoint in `folder`; its step, 0 where there is none.

    Also takes the folder's `lock`, removes what a killed run left half-written, and restores the
    random states of torch, CUDA, Python and NumPy (of each rank, if there are as many as before).
    A damaged file is named and the one before it taken. Another host or torch version is reported,
    and options that have changed are noted in `run.json`. steps: how many the run trains for, None
    where it does not train. Raises CheckpointError where all files are damaged, a part, a plain
    value or an option does not fit, or the run has more than `steps` already.
    """
    lock(folder)
    path = _on_main(lambda: _newest_good(Path(folder)))
    if path is None:
        return 0
    content = load(path)
    meta, stored = content["meta"], content["parts"]
    changed = _require_same(parts, stored, path)
    if steps is not None and meta["step"] > steps:
        raise CheckpointError(
            f"{folder} has already {meta['step']} steps, more than the {steps} of this run: let it "
            "train as long, or give another hydra.run.dir=."
        )
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            try:
                load_matching(part, stored[name])
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from None
        elif hasattr(part, "load_state_dict"):
            try:
                part.load_state_dict(stored[name])
            except (ValueError, LookupError, RuntimeError) as error:
                raise CheckpointError(f"{path}: its {name} does not fit here: {error}") from error
    if dist.is_main():
        for key, value in _origin().items():
            if meta[key] != value:
                _warn(f"{path} was written with {key} {meta[key]}, this is {value}.")
        log.note_changes(folder, meta["step"], changed)
    if meta["world_size"] == dist.world_size():
        random_states.restore(content["random"][dist.rank()])
    dist.note_step(meta["step"])
    dist.note_saved(meta["step"])
    return meta["step"]


def require_weights(folder: str | Path, start: int, init: str = "") -> None:
    """Raise CheckpointError where there is nothing to evaluate: no checkpoint and no `init`.

    start: what `resume` returned.
    """
    if not start and not init:
        raise CheckpointError(
            f"only_evaluate=true, but {folder} holds no checkpoint: give the folder of a run by "
            "hydra.run.dir, or weights by init."
        )


def load_matching(model: nn.Module, state: dict[str, Tensor]) -> str:
    """Load `state` into `model`; a report: `320 of 320 tensors loaded`.

    Raises CheckpointError listing the first ten missing, unexpected and mis-shaped names.
    """
    model = _unwrap(model)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    shared = [name for name in own if name in given]
    differing = [name for name in shared if own[name] != given[name]]
    report = f"{len(shared) - len(differing)} of {len(own)} tensors loaded"
    problems = {
        "missing": [f"{name} {own[name]}" for name in own if name not in given],
        "unexpected": [f"{name} {given[name]}" for name in given if name not in own],
        "of another shape": [f"{name} {given[name]} for {own[name]}" for name in differing],
    }
    for title, names in problems.items():
        if names:
            more = f", and {len(names) - 10} more" if len(names) > 10 else ""
            report += f"; {len(names)} {title}: {', '.join(names[:10])}{more}"
    if any(problems.values()):
        raise CheckpointError(f"these weights do not fit the model: {report}.")
    model.load_state_dict(state)
    return report


def lock(folder: str | Path) -> None:
    """Create `folder` and claim it for this run until the process ends; call it on all ranks.

    Raises CheckpointError where another run has it, or nothing can be written there.
    """
    _on_main(lambda: folder_lock.acquire(Path(folder)))


def _on_main(work: Callable[[], R]) -> R:
    """What `work` gives on rank 0, on all ranks; so is the ValueError that it raises there."""
    if dist.world_size() == 1:
        return work()
    result: Any = None
    message = None
    if dist.is_main():
        try:
            result = work()
        except ValueError as error:  # CheckpointError, or a part that is not plain
            message = str(error)
    result, message = dist.gather((result, message))[0]
    if message is not None:
        raise CheckpointError(message)
    return result


def _save(path: Path, states: list, best: dict[str, float] | None, parts: dict[str, Any]) -> None:
    """`save` on rank 0."""
    folder_lock.require(path.parent)
    meta = {
        "step": _step(path),
        "world_size": dist.world_size(),
        "best": {name: float(value) for name, value in (best or {}).items()},
        **_origin(),
    }
    plain_parts = {name: plain(_state(part), name) for name, part in parts.items()}
    content = {"meta": meta, "random": states, "parts": plain_parts}
    write(path, lambda file: seal(content, file))
    if best and _better(path.with_name("best.pt"), best):
        with open(path, "rb") as source:
            write(path.with_name("best.pt"), lambda file: shutil.copyfileobj(source, file))
    # A later file is a damaged one that the run had to go back from.
    for old in [other for other in _files(path.parent) if _step(other) <= _step(path)][KEEP:]:
        old.unlink()


def _newest_good(folder: Path) -> Path | None:
    """Newest checkpoint that can be read; names those that cannot, removes leftovers."""
    for leftover in folder.glob(".*.tmp"):  # the lock is ours, so nobody is writing them
        leftover.unlink()
    files = _files(folder)
    for path in files:
        try:
            if "meta" not in load(path):
                raise CheckpointError(f"{path} is no checkpoint of a run.")
        except CheckpointError as error:
            _warn(f"{error} Trying the one before it.")
            continue
        return path
    if files:
        raise CheckpointError(
            f"none of the {len(files)} checkpoints in {folder} can be used: remove them to start "
            "afresh."
        )
    return None


def _require_same(parts: dict[str, Any], stored: dict[str, Any], path: Path) -> dict[str, list]:
    """Raise CheckpointError where a plain value or an option is another one than in the file.

    Returns the options that have changed and may: [before, now] by name.
    """
    before: list[str] = []
    now: list[str] = []
    missing: list[str] = []
    changed: dict[str, list] = {}
    for name, part in parts.items():
        if isinstance(part, Options):
            fixed, changed = part.changes(stored.get(name, {}))  # older files have none
            before += [f"{key}={values[0]}" for key, values in fixed.items()]
            now += [f"{key}={values[1]}" for key, values in fixed.items()]
        elif name not in stored:
            missing.append(name)
        elif not hasattr(part, "load_state_dict") and not _same(plain(part, name), stored[name]):
            before.append(f"{name}={stored[name]}")
            now.append(f"{name}={part}")
    if before:
        raise CheckpointError(
            f"{path} was written with {', '.join(dict.fromkeys(before))}, this run has "
            f"{', '.join(dict.fromkeys(now))}: give the same, or another output folder."
        )
    if missing:  # what no option explains
        raise CheckpointError(f"{path} holds no {missing[0]!r}, only: {', '.join(stored)}.")
    return changed


def _better(path: Path, best: dict[str, float]) -> bool:
    """Whether the first value of `best` is above that of the file `path`, or there is none."""
    name, value = next(iter(best.items()))
    before = float("-inf")
    if path.exists():
        try:
            before = load(path)["meta"]["best"].get(name, before)
        except CheckpointError as error:
            _warn(f"{error} It is replaced.")
    return value > before


def _files(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted(folder.glob("checkpoint-*[0-9].pt"), key=_step, reverse=True)


def _step(path: Path) -> int:
    """Step in the name of a checkpoint."""
    return int(path.stem.removeprefix("checkpoint-"))


def _origin() -> dict[str, str]:
    """Where a checkpoint comes from; another one may give slightly other figures."""
    return {"torch": str(torch.__version__), "host": socket.gethostname()}


def _unwrap(module: nn.Module) -> nn.Module:
    """`module` without the wrapping of DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def _state(part: Any) -> Any:
    """What is saved of `part`."""
    if isinstance(part, nn.Module):
        part = _unwrap(part)
    return part.state_dict() if hasattr(part, "state_dict") else part


def _same(a: Any, b: Any) -> bool:
    """Equality of plain values, tensors included."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def _warn(message: str) -> None:
    """One line for the user."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
