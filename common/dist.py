"""Processes: one, several on this machine, torchrun or Slurm; small collectives; stopping together.

The same `train.py` runs in all of these ways:

    python train.py                                   one process, or one per visible GPU
    python train.py processes=4                       four, also on CPUs (gloo)
    torchrun --nproc-per-node 4 train.py              also on several nodes
    srun --ntasks-per-node 4 python train.py          Slurm, no further settings

The loop asks once per step whether somebody wants the run to end (SIGTERM, SIGUSR1, Ctrl-C):

    stopping = dist.stop_requested()                  # the same answer on all ranks
    if stopping or step % cfg.save_every == 0:
        checkpoint.save(cfg.output_dir, step, **parts)
    if stopping:
        dist.exit_preempted(step)                     # exit code 75 (torchrun makes it 1)

Where all finished steps are saved, as before the first one and in the last evaluation, the run ends
at once, with the same code. A second Ctrl-C ends it at once whatever it does: exit code 130.

Ranks wait for one another for at most `FAIR_VISION_TIMEOUT` seconds (120 on CPUs, 600 on GPUs), so
work that only one rank does, such as a long evaluation, has to stay below that.
"""

import dataclasses
import datetime
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from . import errors, spawn
from .errors import PREEMPTED, UserError
from .spawn import cores

C = TypeVar("C")  # configuration
R = TypeVar("R")  # result


@dataclasses.dataclass
class _Process:
    """What this process knows of itself."""

    local_rank: int = 0
    stop: bool = False
    interrupts: int = 0
    step: int | None = None  # the last one that was finished
    saved: int | None = None  # the last one that was saved, or resumed from
    steps: Any = None  # under launch: shared array, the last step of each rank
    joined: bool = False  # was in a group that torchrun or Slurm started


_here = _Process()


class _Ended(SystemExit):
    """Ends a run between two steps, wherever it is: this rank waits for no other."""


def rank() -> int:
    """Number of this process, 0 in a single one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def device() -> torch.device:
    """The GPU of this process, or the CPU where none is visible."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", _here.local_rank % torch.cuda.device_count())


def barrier() -> None:
    """Wait until all ranks are here."""
    total(torch.zeros(1))


def wrap(model: nn.Module, *, broadcast_buffers: bool = True) -> nn.Module:
    """`model` with gradients averaged over the ranks; in one process `model` itself.

    broadcast_buffers: whether every forward copies rank 0's buffers to the others.
    """
    if world_size() == 1:
        return model
    here = device()
    ids = [here.index] if here.type == "cuda" else None
    wrapped = nn.parallel.DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True
    )
    # The argument of this name is deprecated, and its successor is not in torch 2.11.
    wrapped.broadcast_buffers = broadcast_buffers
    return wrapped


def total(value: Tensor) -> Tensor:
    """Sum over all ranks of equally shaped tensors, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """Average over all ranks of a float tensor, without gradient."""
    return total(value) / world_size()


def gather(value: Any) -> list[Any]:
    """Every rank's picklable `value` in order of rank, on all ranks; tensors must be on the CPU."""
    values = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def note_step(step: int) -> None:
    """Note that `step` was finished, for the message of a run that fails; `Log` calls this."""
    _here.step = step
    if _here.steps is not None:
        _here.steps[rank()] = step


def note_saved(step: int) -> None:
    """Note that `step` is safe on the disk; `checkpoint` calls this."""
    _here.saved = step


def stop_requested() -> bool:
    """Whether any rank was asked to stop (SIGTERM, SIGUSR1, first Ctrl-C); call it on all ranks."""
    flag = torch.tensor([int(_here.stop)])  # on the CPU: the GPU's queue is not waited for
    return bool(total(flag) > 0)  # a signal that comes meanwhile counts in the next step, on all


def exit_preempted(step: int) -> NoReturn:
    """End a run that was asked to stop and has saved `step`; call it on all ranks."""
    if is_main():
        print(f"Stopped on request after step {step}.", flush=True)
    raise SystemExit(PREEMPTED)


def launch(fn: Callable[[C], R], cfg: C, processes: int = 0) -> R:
    """Run `fn(cfg)` in every process and return what it gave on rank 0.

    `processes`: 0 is one per visible GPU, one without any; torchrun and Slurm decide themselves.
    `fn` must be a function of a module and `cfg` picklable. With several ranks, one that fails or
    is killed ends the run within seconds; the message names its rank and last step.
    Raises UserError, or SystemExit with the exit code that all ranks gave (75: `PREEMPTED`).
    """
    place = spawn.place(os.environ)
    if place is not None:
        return _run_joined(fn, cfg, place)
    gpus = torch.cuda.device_count()
    if processes < 0 or (gpus and processes > gpus):
        raise UserError(
            f"processes={processes}, but {gpus} GPUs are visible: give processes=0 to use them "
            "all, or hide them with CUDA_VISIBLE_DEVICES= to run on CPUs."
        )
    processes = processes or max(1, gpus)
    if processes > 1:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            args = (fn, cfg, processes, str(Path(folder) / "store"))
            return spawn.run(_run_spawned, args, processes)
    _here.stop, _here.interrupts, _here.step, _here.saved = False, 0, None, None
    with spawn.signals(_note_stop):
        try:
            return fn(cfg)
        except Exception as error:
            message = errors.sentence(error)
            if message is None:
                raise
            raise UserError(message, errors.status(error)) from error


def _join(number: int, world: int, local: int, local_world: int, store: Any = None) -> None:
    """Become rank `number` of `world`, being the `local`-th of `local_world` on this machine."""
    _here.local_rank = local
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(device())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // local_world))
    seconds = float(os.environ.get("FAIR_VISION_TIMEOUT", 600 if gpus else 120))
    timeout = datetime.timedelta(seconds=seconds)
    if store is None:
        store, _, _ = next(distributed.rendezvous("env://", number, world, timeout=timeout))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # After a restart torchrun's store still holds the addresses of the dead workers. On
            # several nodes the attempts are counted by each, so there the number is of no use.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = distributed.PrefixStore(f"attempt-{attempt}", store)
    importlib.import_module("torch._dynamo")  # DDP does; within a group it would keep it for good
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=world, timeout=timeout
    )


def _leave(error: BaseException | None = None) -> None:
    """Leave the group after all ranks came to their end; `error` is what unwound this one.

    The group's threads have to end here: one that still drops a tensor while Python shuts down
    aborts the process. A wrapped model holds the group, in a cycle, and so does what is unwound.
    """
    barrier()
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    distributed.destroy_process_group()
    gc.collect()


def _run_joined(fn: Callable[[C], R], cfg: C, place: dict[str, str]) -> R:
    """`launch` in a process that torchrun or Slurm started."""
    if _here.joined:
        raise UserError(
            "torchrun and Slurm start one run: for -m leave them out, give processes=N."
        )
    _here.joined = True
    os.environ.update(place)
    number, world = int(place["RANK"]), int(place["WORLD_SIZE"])
    local_world, gpus = int(place.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if "TORCHELASTIC_RUN_ID" in os.environ and 0 < gpus < local_world:
        raise UserError(f"--nproc-per-node={local_world}, but {gpus} GPUs are visible here.")
    with spawn.signals(_note_stop):
        try:
            if world > 1:
                _join(number, world, int(place["LOCAL_RANK"]), local_world)
            if dataclasses.is_dataclass(cfg) and hasattr(cfg, "output_dir"):
                folder = gather(cfg.output_dir)[0]  # each rank composed its own, a second later
                cfg = dataclasses.replace(cfg, output_dir=folder)  # type: ignore
            result = fn(cfg)
            if world > 1:
                _leave()
            return result
        except BaseException as error:
            if isinstance(error, SystemExit) and error.code == PREEMPTED:
                if world > 1:
                    _leave(error)
                raise
            where = f"rank {number} stopped {spawn.after(_here.step)}"
            print(errors.last_words(error, where), file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(errors.status(error))  # at once: leaving would wait for the other ranks


def _run_spawned(
    number: int, report: Callable, steps: Any, fn: Callable, cfg: Any, world: int, store: str
) -> None:
    """`launch` in a process of its own: run `fn` and report what became of it."""
    _here.steps = steps
    with spawn.signals(_note_stop):
        try:
            _join(number, world, number, world, distributed.FileStore(store, world))
            try:
                kind, value = "done", fn(cfg)
            except SystemExit as stop:
                if stop.code != PREEMPTED or isinstance(stop, _Ended):
                    raise
                kind, value = "exit", stop.code
                traceback.clear_frames(stop.__traceback__)
            _leave()
            report(kind, None if kind == "done" and number else value)
        except BaseException as error:
            spawn.end(report, error, f"rank {number} stopped {spawn.after(_here.step)}")


def _note_stop(number: int, frame: FrameType | None) -> None:
    """Signal handler: remember the wish to stop, or end at once where nothing would be lost."""
    _here.interrupts += number == signal.SIGINT
    if _here.interrupts > 1:
        spawn.end_children()
        os.write(2, f"{errors.going_on()}\n".encode())
        os._exit(130)
    unsaved = None if _here.step == _here.saved else _here.step
    if not _here.stop and is_main() and multiprocessing.parent_process() is None:
        spawn.announce(number, unsaved)
    _here.stop = True
    if unsaved is None and not _here.joined:  # torchrun's workers have to leave together
        spawn.end_children()
        raise _Ended(PREEMPTED)
