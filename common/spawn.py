"""Worker processes that live and die together: started, watched and ended by one parent.

`run` starts `entry(number, report, *args)` in each of them. `report(kind, value)` sends what became
of the worker: ("done", result), ("exit", exit code) or ("failed", (message, exit code)). A worker
that ends without a report was killed. The first failure ends them all within seconds.

What a stop signal does, in one place: a terminal's Ctrl-C reaches this process and all that it
started, so those that it started leave the answer to it. `signals` hands the signal to a function,
such as one that lets the run save; where nothing is to be saved, `ending_at_once` ends the command.

`place` tells where torchrun or Slurm put this process, if they started it.
"""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from . import errors
from .errors import PREEMPTED, UserError

GRACE = 3.0  # seconds that the other workers get to report after one has failed
CLEANUP = 30.0  # seconds that finished workers get to leave


@dataclass(frozen=True)
class Outcome:
    """What became of worker `number` at Unix time `when`."""

    number: int
    when: float
    kind: str  # done, exit, failed, died
    value: Any


def run(entry: Callable[..., None], args: tuple, processes: int) -> Any:
    """What worker 0 reported as done, or the stop that tells which worker failed, and how.

    `entry` and `args` must be picklable. Stop signals are passed on to the workers. Raises
    UserError, or SystemExit with the code that a worker reported: `PREEMPTED` where a stop signal
    killed it before it could listen.
    """
    context = multiprocessing.get_context("spawn")
    steps = context.RawArray("q", [-1] * processes)  # the last step of each worker
    workers: list[Any] = []
    pipes: list[Any] = []
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        """Tell the workers to stop."""
        asked.append(number)
        if asked.count(signal.SIGINT) > 1:
            raise SystemExit(130)
        if len(asked) == 1:
            announce(number, max(steps))
        for worker in workers:
            if worker.exitcode is None and hasattr(signal, "SIGUSR1"):
                os.kill(worker.pid, signal.SIGUSR1)

    with signals(pass_on):
        try:
            for number in range(processes):
                receive, send = context.Pipe(duplex=False)
                worker = context.Process(target=_worker, args=(entry, number, send, steps, args))
                with out_of_reach():
                    worker.start()
                send.close()
                workers.append(worker)
                pipes.append(receive)
                if asked:  # while it was started
                    pass_on(asked.pop(), None)
            outcomes = _watch(workers, pipes)
            if all(outcome.kind == "done" for outcome in outcomes.values()):
                for worker in workers:
                    worker.join(CLEANUP)
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()
    return _conclude(outcomes, steps, bool(asked))


@contextmanager
def out_of_reach() -> Iterator[None]:
    """A terminal's Ctrl-C does not reach the processes that are started meanwhile.

    Not while they import torch either: a new process inherits which signals are ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` take SIGTERM, SIGUSR1 and SIGINT meanwhile (in the main thread only).

    A process that this one forks, such as a loader, ignores them, but for SIGTERM, which ends it; a
    process that was started `out_of_reach` ignores SIGINT still.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        elif number == signal.SIGTERM:
            os._exit(128 + number)

    names = [name for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
    if multiprocessing.parent_process() is not None:
        names.remove("SIGINT")
    if threading.current_thread() is not threading.main_thread():
        names = []
    before = {name: signal.signal(getattr(signal, name), handle) for name in names}
    try:
        yield
    finally:
        for name, old in before.items():
            signal.signal(getattr(signal, name), old)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """A stop signal meanwhile ends this process and those it started, with one line.

    Exit code 128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def end(number: int, frame: FrameType | None) -> None:
        end_children()
        os.write(2, f"Stopped by {signal.Signals(number).name}.\n".encode())
        signal.signal(number, lambda *_: os._exit(128 + number))  # a second one waits for nothing
        raise SystemExit(128 + number)

    with signals(end):
        yield


def announce(number: int, step: int | None) -> None:
    """Say what the first stop signal does to a run whose last unsaved step this is, if any."""
    name, line = signal.Signals(number).name, "ending; every finished step is saved."
    if step is not None and step >= 0:
        line = "finishing this step, then saving; a second Ctrl-C ends it at once."
    os.write(2, f"{name}: {line}\n".encode())


def end_children() -> None:
    """Kill the processes that this one started through multiprocessing: loaders, pools, workers."""
    if hasattr(signal, "SIGCHLD"):  # where torch would raise for each loader
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()


def after(step: int | None) -> str:
    """`after step 7`, or that none was finished."""
    return "before its first step" if step is None or step < 0 else f"after step {step}"


def first_host(nodes: str) -> str:
    """First host of a Slurm list: `gpu[03-05,9]-ib,cpu1` gives `gpu03-ib`."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]+\])+", nodes.strip())
    if first is None:
        raise ValueError(f"{nodes!r} is no list of Slurm hosts (SLURM_JOB_NODELIST).")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def cores() -> int:
    """CPU cores that this process may run on."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return affinity or 1


def place(env: Mapping[str, str]) -> dict[str, str] | None:
    """Variables of the group that torchrun or Slurm put this process in; None for neither."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" in env and "WORLD_SIZE" in env:
        return {"LOCAL_RANK": "0"} | {name: env[name] for name in names if name in env}
    tasks = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" not in env or int(tasks) < 2:
        return None
    per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "1")
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")
    # The job's number spreads the jobs of one node over the ports, alike on all ranks.
    port = str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 10000)
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": per_node.split("(")[0].split(",")[0],  # "4(x2),3": 4, 4 and 3
        "MASTER_ADDR": env.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": env.get("MASTER_PORT") or port,
    }


def end(report: Callable[[str, Any], None], error: BaseException, where: str) -> NoReturn:
    """Report the `error` that ends this worker, as `where: message`, and leave."""
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        report("exit", error.code)
    else:
        *trace, line = errors.last_words(error, where).splitlines(keepends=True)
        sys.stderr.write("".join(trace))
        sys.stderr.flush()  # before the report: the parent then ends this process
        report("failed", (line, errors.status(error)))
    sys.stdout.flush()
    os._exit(1)  # at once: the other ranks notice, and leaving would wait for them


def _worker(entry: Callable[..., None], number: int, send: Any, steps: Any, args: tuple) -> None:
    """One worker: runs `entry`, and ends where the parent does."""
    end_with_parent()

    def report(kind: str, value: Any) -> None:
        send.send_bytes(pickle.dumps(Outcome(number, time.time(), kind, value)))

    entry(number, report, steps, *args)


def end_with_parent() -> None:
    """In a worker: end it at once where the process that started it ends, however that does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _watch(workers: list[Any], pipes: list[Any]) -> dict[int, Outcome]:
    """What became of each worker; ends soon after the first failure."""
    outcomes: dict[int, Outcome] = {}
    deadline = float("inf")
    while len(outcomes) < len(workers) and time.monotonic() < deadline:
        waiting = [number for number in range(len(workers)) if number not in outcomes]
        # Exit codes are polled: a killed worker's loader processes keep its pipe open for a while.
        multiprocessing.connection.wait([pipes[number] for number in waiting], timeout=0.2)
        for number in waiting:
            dead = workers[number].exitcode is not None  # asked before the pipe, which it may fill
            outcome = None
            try:
                if pipes[number].poll():
                    outcome = pickle.loads(pipes[number].recv_bytes())
            except EOFError:
                dead = True
            if outcome is None and dead:
                workers[number].join(GRACE)
                outcome = Outcome(number, time.time(), "died", workers[number].exitcode)
            if outcome is not None:
                outcomes[number] = outcome
                if outcome.kind != "done":
                    deadline = min(deadline, time.monotonic() + GRACE)
    return outcomes


def _conclude(outcomes: dict[int, Outcome], steps: Any, asked: bool) -> Any:
    """Worker 0's result, or the stop that tells why there is none: first what was killed."""
    causes = sorted((o for o in outcomes.values() if o.kind != "done"), key=lambda o: o.when)
    for cause in causes:
        if cause.kind == "died":
            code = cause.value or 0
            if asked and -code in (signal.SIGTERM, getattr(signal, "SIGUSR1", None)):
                raise SystemExit(PREEMPTED)
            how = (
                f"killed by {signal.Signals(-code).name}" if code < 0 else f"gone, exit code {code}"
            )
            hint = " (out of memory?)" if code == -9 else ""
            place = after(steps[cause.number])
            raise UserError(f"rank {cause.number} was {how} {place}{hint}.", status=1)
    if causes:
        kind, value = causes[0].kind, causes[0].value
        raise UserError(*value) if kind == "failed" else SystemExit(value)
    return outcomes[0].value
