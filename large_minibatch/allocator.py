"""Keep freed memory in the process, so that every step finds its pages in place.

A training step on a CPU allocates the same tensors again and again. By default glibc gives tensors
of 32 MiB, and all that lies at the end of its heap, back to the system when they are freed; the
next step pays for each 4 KiB page anew, about a tenth of its time.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_* of malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, for the whole process; returns whether it took effect.

    The process then holds its peak of memory to its end. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
