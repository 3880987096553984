"""The user's step in two processes of this machine, joined by torch.distributed (gloo)."""

import copy
import datetime
import multiprocessing
import pickle
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import nn

from .probe import (
    batch_norms,
    batch_of,
    change,
    fit,
    gradient,
    matrices,
    prepare,
    require_model,
    weights,
)
from .subject import Batch, Loop, LoopError, NotExamined, Subject, call, seed

WORKERS = 2
SECONDS = 240  # that both processes together may take


@dataclass
class Outcome:
    """What rank 0 saw of a step of all workers."""

    error: str = ""  # the loop cannot be used
    missing: str = ""  # why nothing was examined
    sync: bool = False  # SyncBatchNorm on a CPU, where it does not run
    shares: tuple[float, ...] = ()  # how much each worker's gradient counts in the step
    apart: float = 0.0  # largest difference of a weight between the ranks
    norms: int = 0  # normalisations with batch statistics
    leak: float = 0.0  # relative change of rank 0's loss as the others' images change


def outcome(loop: Loop) -> Outcome:
    """What two processes of the loop do; they run once.

    A loop that fails there alone loses the checks that need them, no others.
    """
    if loop.outcome is None:
        try:
            loop.outcome = run(loop)
        except LoopError as error:
            loop.outcome = Outcome(missing=str(error))
    return loop.outcome


def run(loop: Loop) -> Outcome:
    """Start the processes and wait for them.

    Raises LoopError where the user's code fails in one of them, or none comes to an end.
    """
    # A fork costs no second import, but autograd on a GPU does not survive it.
    forks = "fork" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
    context: Any = multiprocessing.get_context("fork" if forks else "spawn")
    if not forks:
        try:
            pickle.dumps(loop)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise NotExamined("build() must be a function of a module or a file.") from error
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        processes = [
            context.Process(target=_worker, args=(rank, folder, loop)) for rank in range(WORKERS)
        ]
        try:
            for process in processes:
                process.start()
            _wait(processes)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        files = [Path(folder, f"{rank}.pickle") for rank in range(WORKERS)]
        seen = [pickle.loads(file.read_bytes()) for file in files if file.exists()]
    failed = [one.error for one in seen if one.error]
    if failed or len(seen) < WORKERS:
        reason = failed[0] if failed else f"a process died, or they waited for {SECONDS} seconds."
        raise LoopError(f"In {WORKERS} processes: {reason}")
    return seen[0]


def _wait(processes: list) -> None:
    """Until all have ended or the time is over; shortly, once one has failed."""
    limit = time.monotonic() + SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < limit:
        time.sleep(0.02)
        if any(process.exitcode for process in processes):
            limit = min(limit, time.monotonic() + 5)  # the others wait in vain


def _worker(rank: int, folder: str, loop: Loop) -> None:
    """One process: examine, and leave the outcome in the folder."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(f"{folder}/store", WORKERS),
        rank=rank,
        world_size=WORKERS,
        timeout=datetime.timedelta(seconds=SECONDS / 2),
    )
    try:
        seen = _examine(rank, loop)
    except NotExamined as reason:
        seen = Outcome(missing=str(reason))
    except LoopError as error:  # DistributedDataParallel refuses SyncBatchNorm on a CPU
        sync = "SyncBatchNorm" in str(error)
        seen = Outcome(sync=True) if sync else Outcome(error=str(error))
    temporary = Path(folder, f"{rank}.tmp")
    temporary.write_bytes(pickle.dumps(seen))
    temporary.rename(Path(folder, f"{rank}.pickle"))
    if seen.error:
        raise SystemExit(1)  # at once: the others' collectives fail, they do not wait
    distributed.barrier()
    distributed.destroy_process_group()


def _examine(rank: int, loop: Loop) -> Outcome:
    """One step, and rank 0's loss for two sets of images on the other ranks."""
    subject = prepare(loop)
    model = require_model(subject)
    norms = batch_norms(model).values()
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    if on_cpu and any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        return Outcome(sync=True)
    batches = [batch_of(subject, subject.group, number) for number in range(WORKERS + 1)]
    first = _loss(subject, batches[rank])
    second = _loss(subject, batches[WORKERS if rank else 0])  # rank 0 keeps its images
    seen = Outcome(norms=len(norms), leak=abs(first - second) / abs(first))
    before = weights(subject)
    # Every rank computes all gradients: a model may exchange something in its forward.
    causes = [gradient(subject, batch) for batch in batches[:WORKERS]]
    moved = change(subject, "step", batches[rank])
    after = torch.cat([w.flatten().float() for w in weights(subject).values()])
    first_rank = after.clone()
    distributed.broadcast(first_rank, src=0)
    apart = (after - first_rank).abs().max()
    distributed.all_reduce(apart, op=distributed.ReduceOp.MAX)
    seen.apart = float(apart)
    try:
        *shares, _ = fit(moved, [*causes, before], matrices(before))
        seen.shares = tuple(shares)
    except NotExamined as reason:
        seen.missing = str(reason)
    return seen


def _loss(subject: Subject, batch: Batch) -> float:
    """Loss of a copy of the model in training mode."""
    model = copy.deepcopy(require_model(subject))
    seed(2)
    with torch.no_grad():
        return float(call(subject, "loss", model, batch))
