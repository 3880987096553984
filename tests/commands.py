"""A process that has imported everything, and forks for each command that it is sent.

It saves the tests some hundred starts of an interpreter. A request is one line of JSON:

    {"words": ["experiment=smoke"], "folder": "focal_loss", "output": file} -> the new process' id
    {"wait": process id} -> its exit code, minus the signal where one killed it
    {"poll": process id} -> the same, or null while it runs

The fork then runs `train.py` of the folder as `python train.py words...` does, printing into the
file `output`. With "stall": n its n-th `os.fsync` prints `stalled` and never comes back.
"""

import itertools
import json
import os
import runpy
import sys
import time
from importlib import import_module
from typing import Any

IMPORTED = (
    *("hydra", "matplotlib.backends.backend_agg", "matplotlib.figure", "pycocotools.cocoeval"),
    *("torch._dynamo", "torch.utils.tensorboard", "torchvision", "tqdm"),
    *("focal_loss.data", "focal_loss.evaluate", "common.versus", "focal_loss.weights"),
)


def serve() -> dict[str, Any] | None:
    """Answer requests until there are no more; a forked process returns with its own."""
    for line in sys.stdin:
        request = json.loads(line)
        if "words" in request:
            answer: int | None = os.fork()
            if answer == 0:
                return request
        else:
            options = os.WNOHANG if "poll" in request else 0
            process, status = os.waitpid(request.get("poll") or request["wait"], options)
            answer = os.waitstatus_to_exitcode(status) if process else None
        print(json.dumps(answer), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the command that was asked for."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    if request.get("stall"):
        stall(request["stall"])
    os.chdir(request["folder"])
    sys.argv = ["train.py", *request["words"]]
    runpy.run_path("train.py", run_name="__main__")


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
    for module in IMPORTED:
        import_module(module)
    print(json.dumps("ready"), flush=True)
    mine = serve()
    if mine is not None:
        become(mine)
