"""The files of shards: what their first lines say, where a process goes on, what is missing.

See `records` for what is in them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from common import files
from common.run import lock
from common.run.sealed import CheckpointError

# Images and teachers may be moved, whose weights the digest tells; shards have a number each.
MAY_DIFFER = {"folder", "shard", "teacher"}


def shard_file(folder: Path, shard: tuple[int, int]) -> Path:
    """Where the records of a shard lie."""
    return folder / f"shard-{shard[0]}-of-{shard[1]}.jsonl"


def write_line(file: IO[bytes], content: dict[str, Any]) -> None:
    """A line that is on the disk afterwards: what was found in minutes is not looked for again."""
    file.write(json.dumps(content, allow_nan=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def claim(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Keep a shard for this process alone; ValueError where another one is writing it."""
    place = folder / f".shard-{shard[0]}-of-{shard[1]}"
    try:
        lock.acquire(place)
    except CheckpointError as error:
        raise ValueError(
            f"{shard_file(folder, shard)} cannot be written, or another process is at it: wait for "
            "its end, or give another out=."
        ) from error
    try:
        yield
    finally:
        lock.release(place)


def require_same(folder: Path, info: dict[str, Any]) -> None:
    """Raise ValueError where a shard in the folder is of other settings than `info`."""
    for path in sorted(folder.glob("shard-*.jsonl")):
        if first := read_first(path):  # else it has just been begun
            refuse_other(path, first, info)


def count_done(path: Path, names: Sequence[str]) -> int:
    """Images whose lines a shard has already, -1 without a first line; a torn one is cut off.

    names: of the shard's images, in their order.
    """
    if not path.exists() or not read_first(path):
        path.unlink(missing_ok=True)  # killed while its first line was written
        return -1
    last = cut_torn(path)
    with path.open("rb") as file:
        done = sum(1 for _ in file) - 1
    wanted = names[done - 1] if 0 < done <= len(names) else None
    if done > len(names) or (done and files.parse(last).get("file") != wanted):
        raise ValueError(f"{path} is damaged: remove it and start again.")
    return done


def parse_shard(shard: str) -> tuple[int, int]:
    """Number and count of "0/8"."""
    number, _, count = shard.partition("/")
    return int(number), int(count)


def read_first(path: Path) -> dict[str, Any]:
    """What the first line of a shard says; empty where it is torn or something else."""
    with path.open("rb") as file:
        line = file.readline()
    info = files.parse(line).get("info") if line.endswith(b"\n") else None
    return info if isinstance(info, dict) else {}


def refuse_other(path: Path, first: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ValueError unless the first line of a shard is as expected, and of as many shards."""
    there, now = flatten(first), flatten(expected)
    for values in (there, now):
        values["shards"] = str(values.get("shard")).rpartition("/")[2]
    names = sorted((there.keys() | now.keys()) - MAY_DIFFER)
    name = next((name for name in names if there.get(name) != now.get(name)), "")
    if name:
        raise ValueError(
            f"{path} has records of other settings, {name} is {there.get(name)!s:.200} there and "
            f"{now.get(name)!s:.200} now: give another out=, or remove {path.parent} to start "
            "again."
        )


def flatten(info: dict[str, Any]) -> dict[str, Any]:
    """Options of groups under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in info.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": each for key, each in inner.items()} or {name: value}
    return flat


def cut_torn(path: Path) -> bytes:
    """Cut off what follows the last line end of a file; its last whole line."""
    with path.open("r+b") as file:
        size = position = file.seek(0, os.SEEK_END)
        tail = b""
        while position and tail.count(b"\n") < 2:
            step = min(1 << 16, position)
            position -= step
            file.seek(position)
            tail = file.read(step) + tail
        whole = tail.rpartition(b"\n")[0]
        file.truncate(size - len(tail) + len(whole) + 1)
    return whole.rpartition(b"\n")[2]


def read_info(folder: Path) -> dict[str, Any]:
    """What the records follow from; ValueError says which shard lacks how many images."""
    shards = sorted(folder.glob("shard-*.jsonl"))
    if not shards:
        raise ValueError(f"{folder} has no records: run annotate.py with the same out= first.")
    info = read_first(shards[0])
    if not info:
        raise ValueError(f"{shards[0]} is damaged: remove it and label its images again.")
    for path in shards[1:]:
        refuse_other(path, read_first(path) or info, info)
    (_, count), missing = parse_shard(info["shard"]), []
    for number in range(count):
        path, wanted = (
            shard_file(folder, (number, count)),
            len(range(number, info["images"], count)),
        )
        found = 0
        if path.exists():
            with path.open("rb") as file:
                found = sum(line.endswith(b"\n") for line in file) - 1
        if found < wanted:
            missing.append(f"{wanted - max(found, 0)} of shard={number}/{count}")
    if missing:
        raise ValueError(
            f"{folder} lacks images: {', '.join(missing)}. Run annotate.py for these shards with "
            "the same options, or wait for them."
        )
    return info
