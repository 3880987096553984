"""The machine: what is needed to repeat a run and to compare its speed, and how memory is kept."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from .. import dist


def facts() -> dict[str, Any]:
    """Command, versions, commit, host, processor, its vectors, threads, device, processes."""
    here = dist.device()
    return {
        "command": [sys.executable, *sys.argv],
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "host": platform.node(),
        "cpu": cpu(),
        "vectors": vectors(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(here) if here.type == "cuda" else "cpu",
        "world_size": dist.world_size(),
    }


def commit() -> str | None:
    """Commit of this repository, with `+` where tracked files differ from it; None outside git."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu() -> str:
    """Model name of the processor."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def vectors() -> str:
    """Vector instructions that PyTorch's kernels use here, such as AVX2 or AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for the whole process; returns whether it took effect.

    A training step on a CPU allocates the same tensors again and again. By default glibc gives
    those of 32 MiB, and all that lies at the end of its heap, back to the system when they are
    freed, and the next step pays for each 4 KiB page anew: about a tenth of its time. The process
    then holds its peak of memory to its end. Other C libraries are left as they are.
    """
    trim_threshold, mmap_max = -1, -4  # M_* of malloc.h
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
