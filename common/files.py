"""Small files: written whole or not at all, and read without trust in what a kill left behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write(path: Path, fill: Callable[[IO[bytes]], Any], *, sync: bool = False) -> None:
    """Let `fill` write a file beside `path`, then rename it there in one stroke.

    sync: force it to the disk, so that it is there even if the machine fails.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("w+b") as file:
            fill(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if sync and os.name == "posix":
        entry = os.open(path.parent, os.O_RDONLY)
        os.fsync(entry)
        os.close(entry)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8."""
    write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or what is there is damaged."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return {}


def parse(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` is; empty for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, numbers of 5000 digits; deep nesting
        return {}
    return content if isinstance(content, dict) else {}


def relative(path: Path) -> str:
    """The path as a reader wants it: from the current directory where it lies below that."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
