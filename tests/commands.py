"""The scripts as users run them, most of them in forks of one warm process.

Importing torch takes seconds, so `Commands` (the fixture `commands`) keeps a process that has
imported it and all of `common`, and that forks for each command. Run as a script, this file is that
process. A request is one line of JSON:

    {"folder": "focal_loss", "script": "train.py", "words": ["steps=3"], "output": path,
     "errors": path, "environment": {}, "stall": 0, "forking": false} -> the new process' id
    {"poll": process id} -> its exit code, minus the signal where one killed it; null while it runs

The fork then does what `python train.py words...` does in that folder, printing into the two files.
With "stall": n its n-th `os.fsync` prints `stalled` and never comes back; with "forking" its own
worker processes are forks, too. `run_alone` takes an interpreter of its own instead.
"""

import gc
import itertools
import json
import multiprocessing
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID")
IMPORTED = [
    "hydra",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pycocotools.cocoeval",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchvision",
    "tqdm",
]


def environment(**extra: str) -> dict[str, str]:
    """Of a command on one CPU thread, in no group yet."""
    kept = {key: value for key, value in os.environ.items() if key not in PLACE}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | extra


def run_alone(
    folder: str | Path, *words: str, script: str = "train.py", timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """`python train.py words...` in a folder of the repository, exactly as a user types it."""
    return subprocess.run(
        [sys.executable, script, *words],
        cwd=REPOSITORY / folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Run:
    """One command that was started: its process, and all that it printed."""

    def __init__(self, pid: int, output: Path, errors: Path, poll: Callable[[], int | None]):
        self.pid, self.output, self.errors, self._poll = pid, output, errors, poll
        self._code: int | None = None  # a process can be waited for only once

    @property
    def text(self) -> str:
        """What was printed, then the errors."""
        files = dict.fromkeys((self.output, self.errors))
        return "".join(file.read_text() for file in files if file.exists())

    def ended(self) -> int | None:
        """Exit code, None while it runs."""
        if self._code is None:
            self._code = self._poll()
        return self._code

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, once it has ended."""
        limit = time.monotonic() + seconds
        while (code := self.ended()) is None:
            if time.monotonic() > limit:
                self.kill()
                raise TimeoutError(f"The command did not end in {seconds} s:\n{self.text}")
            time.sleep(0.005)
        return code

    def completed(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Its exit code and what it printed, once it has ended."""
        code = self.wait(seconds)
        return subprocess.CompletedProcess(
            self.pid, code, self.output.read_text(), self.errors.read_text()
        )

    def until(self, count: int, words: str = "step ", seconds: float = 120) -> None:
        """Until it has printed so many lines that start with `words`."""
        limit = time.monotonic() + seconds
        while sum(line.startswith(words) for line in self.text.splitlines()) < count:
            assert self.ended() is None, self.text
            assert time.monotonic() < limit, self.text
            time.sleep(0.005)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


class Commands:
    """Scripts in forks of one warm process."""

    def __init__(self, folder: Path) -> None:
        """`folder`: takes the files that the commands print into."""
        self.folder = folder
        self.started: list[Run] = []
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def start(
        self,
        folder: str | Path,
        *words: str,
        script: str = "train.py",
        stall: int = 0,
        forking: bool = False,
        **env: str,
    ) -> Run:
        """Start a script in a folder of the repository, or any other."""
        files = [self.folder / f"{len(self.started)}.{kind}" for kind in ("out", "err")]
        pid = self._ask(
            folder=str(REPOSITORY / folder),
            script=script,
            words=words,
            output=str(files[0]),
            errors=str(files[1]),
            environment=env,
            stall=stall,
            forking=forking,
        )
        self.started.append(Run(pid, *files, lambda: self._ask(poll=pid)))
        return self.started[-1]

    def run(
        self, folder: str | Path, *words: str, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """`run_alone`, sooner; the options are those of `start`."""
        return self.start(folder, *words, **options).completed()

    def start_ranks(
        self, folder: str | Path, *words: str, script: str = "train.py", **env: str
    ) -> list[Run]:
        """Start the two processes of one group, as torchrun does."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        return [
            self.start(folder, *words, script=script, RANK=rank, LOCAL_RANK=rank, **env)
            for rank in ("0", "1")
        ]

    def close(self) -> None:
        """End what a failed test left, and the warm process."""
        for run in self.started:
            if run.ended() is None:
                run.kill()
        self.process.communicate()

    def _ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the warm process has ended, see its traceback above"
        return json.loads(line)


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; a forked process returns with its own."""
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            process, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if process else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the command that was asked for."""
    writes = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    nothing = os.open(os.devnull, os.O_RDONLY)
    output, errors = os.open(request["output"], writes), os.open(request["errors"], writes)
    for target, source in ((0, nothing), (1, output), (2, errors)):
        os.dup2(source, target)
        os.close(source)
    if request["stall"]:
        stall(request["stall"])
    if request["forking"]:
        forks = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: forks
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.argv = [request["script"], *request["words"]]
    runpy.run_path(os.path.join(request["folder"], request["script"]), run_name="__main__")


def stall(number: int) -> None:
    """Let the `number`-th `os.fsync` never come back."""
    fsync, calls = os.fsync, itertools.count(1)

    def slow(file: int) -> None:
        fsync(file)
        if next(calls) == number:
            print("stalled", flush=True)
            time.sleep(1000)

    os.fsync = slow


if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)  # tests/common is not common
    import common

    for module in IMPORTED:
        import_module(module)
    for entry in pkgutil.walk_packages(common.__path__, "common."):
        import_module(entry.name)
    gc.freeze()  # the forks' collectors leave alone what is here, so its memory stays shared
    print(json.dumps("ready"), flush=True)
    mine = serve()
    if mine is not None:
        become(mine)
