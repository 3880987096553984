"""Shards of rendered scenes on disk: written once and whole, checked when opened, read by mmap.

A shard is a .npy file of one structured array, followed by the SHA-256 of all that precedes.
Writers make a temporary file and rename it; processes that fill a cache together share the work.
"""

import fcntl
import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from tqdm import tqdm

_DIGEST = 32  # bytes at the end


def cache_folder() -> Path:
    """Environment variable FAIR_VISION_CACHE, else ~/.cache/fair_vision."""
    named = os.environ.get("FAIR_VISION_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "fair_vision"


def write_shard(path: Path, records: np.ndarray) -> None:
    """Write `records` (structured, no Python objects) so that readers see all of it or nothing."""
    buffer = io.BytesIO()
    np.save(buffer, records, allow_pickle=False)
    data = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A random name: processes of other hosts or containers may have the same number.
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.write(hashlib.sha256(data).digest())
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise OSError(
            f"cannot write rendered scenes to {path.parent} ({error.strerror}): "
            "set FAIR_VISION_CACHE to a folder with room"
        ) from error


def read_shard(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The shard's `count` records, memory-mapped; ValueError where it is damaged."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256()
        left = size - _DIGEST
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        if size <= _DIGEST or file.read() != digest.digest():
            raise ValueError(f"{path} is damaged: its checksum does not match")
    records = np.load(path, mmap_mode="r", allow_pickle=False)
    if records.dtype != dtype or records.shape != (count,):
        raise ValueError(f"{path} holds {records.shape} records of another kind")
    return records


def fill(
    shards: dict[Path, tuple[int, int]],
    dtype: np.dtype,
    make: Callable[[int, int], np.ndarray],
) -> None:
    """Write every shard (path: first, last index) that is missing or damaged.

    A progress bar shows on a terminal. A shard that another process is making is left to it.
    """
    missing = [path for path, span in shards.items() if not _good(path, dtype, span)]
    if not missing:
        return
    total = sum(shards[path][1] - shards[path][0] for path in missing)
    with tqdm(total=total, desc="rendering scenes", unit="image", disable=None) as bar:
        while missing:
            later = []
            for path in missing:
                first, last = shards[path]
                with _claim(path) as mine:
                    if not mine:
                        later.append(path)
                        continue
                    if not path.exists():
                        write_shard(path, make(first, last))
                bar.update(last - first)
            if len(later) == len(missing):
                time.sleep(0.05)
            missing = later


def _good(path: Path, dtype: np.dtype, span: tuple[int, int]) -> bool:
    """Whether a shard is there and whole; a damaged one is removed with a warning."""
    try:
        read_shard(path, dtype, span[1] - span[0])
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (ValueError, EOFError) as error:
        warnings.warn(f"{error}; rendering it again", RuntimeWarning, stacklevel=4)
        path.unlink(missing_ok=True)
        return False
    return True


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """True where no other process is making this shard; the claim ends with its holder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = (path.parent / ".lock").open("wb")
    except OSError as error:
        raise OSError(
            f"cannot write rendered scenes to {path.parent} ({error.strerror}): "
            "set FAIR_VISION_CACHE to a folder you may write"
        ) from error
    with file:
        byte = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "little")
        mine = True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            mine = False
        except OSError:
            pass  # a file system without locks: then both write the same bytes
        yield mine
