"""Worker processes of the commands on files: order, faults, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from common.pool import in_order

SLEEPERS = """
import os, sys, time
from common.config import run
from common.pool import in_order

def sleep(number):
    os.write(1, b"%d\\n" % os.getpid())  # in one piece, whatever the buffering of stdout
    time.sleep(600)

def main():
    list(in_order(sleep, range(9), 2))

run(main)
"""


def square(number: int) -> int:
    if number == 20:
        raise ValueError("20 is too many")
    if number == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_results_come_in_order_and_faults_as_sentences():
    assert list(in_order(square, range(20), 2)) == [n * n for n in range(20)]
    with pytest.raises(ValueError, match=r"^20 is too many$"):
        list(in_order(square, range(29), 2))
    with pytest.raises(OSError, match="a worker process was ended from outside"):
        list(in_order(square, [30], 2))


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and is not yet collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_the_workers_end_with_their_parent(name, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPERS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(process.stdout.readline()) for _ in range(2)]
    # A terminal sends Ctrl-C to all processes of a group.
    stop = os.killpg if name == "SIGINT" else os.kill
    stop(process.pid, signal.Signals[name])
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error == ("" if name == "SIGKILL" else f"Stopped by {name}.\n")
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
