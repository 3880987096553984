"""Files of tensors that are whole and unchanged, or refused.

A file is the zip that `torch.save` writes, with the SHA-256 of all before it as the zip's closing
comment. So it is one file with one atomic rename, plain `torch.load` still opens it, and every
flipped byte is found; torch alone misses those in a tensor.
"""

import hashlib
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .. import files

MARK = b"sha256:"
SEAL = len(MARK) + 64  # bytes of the closing comment
END = b"PK\5\6"  # starts the 22 bytes that close a zip without comment


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, written or used; the message names it and the remedy."""


def load(path: str | Path) -> dict[str, Any]:
    """Content of a sealed file, or of any other file of tensors, on the CPU; nothing in it is run.

    Raises CheckpointError: absent, damaged, or more than tensors and plain values.
    """
    try:
        with open(path, "rb") as file:
            _verify(file, path)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it is damaged or holds more than tensors and plain values; "
            "nothing in it was run."
        ) from error
    except (RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged: {reason}") from error


def write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Let `fill` write `path`; CheckpointError, leaving nothing behind, where the disk fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, fill, sync=True)
    except (OSError, RuntimeError) as error:
        # torch.save hides a full disk in a RuntimeError about its position in the file.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"{path} could not be written ({cause.strerror or cause}); what was there is intact."
        ) from error


def seal(content: dict[str, Any], file: IO[bytes]) -> None:
    """Write `content` to `file`, open for writing and reading, and its checksum."""
    torch.save(content, file)
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", SEAL))  # length of the comment
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.write(MARK + digest)


def plain(value: Any, where: str) -> Any:
    """`value`, called `where`, with tensors on the CPU; ValueError if `load` would refuse it."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.nbytes
        return value if whole else value.clone()  # a view would take its whole storage along
    if isinstance(value, dict):
        for key in value:
            plain(key, f"{where}, key {key!r},")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ValueError(
        f"{where} is a {type(value).__module__}.{type(value).__name__}: a checkpoint holds only "
        "tensors, str, int, float, bool, list and dict; convert it, e.g. with float() or str()."
    )


def _digest(file: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first `size` bytes, in hexadecimal; leaves `file` behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _verify(file: IO[bytes], path: str | Path) -> None:
    """Check the seal; files of other makers, zip or pickle, have none and pass."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    pickled = file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    file.seek(max(0, size - SEAL))
    tail = file.read()
    foreign = pickled or (tail[-22:-18] == END and tail.endswith(b"\0\0"))
    if not foreign and not tail.startswith(MARK):
        raise CheckpointError(f"{path} is damaged: its end is missing or changed ({size} bytes).")
    if not foreign and _digest(file, size - SEAL) != tail[len(MARK) :]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum.")
    file.seek(0)
