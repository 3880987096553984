"""One run per output folder: a lock that vanishes with its process."""

import os
import socket
import sys
from pathlib import Path
from typing import IO

from .sealed import CheckpointError

_held: dict[Path, IO[bytes]] = {}


def acquire(folder: Path) -> None:
    """Create `folder` and claim it until this process ends; again in the same process is fine.

    Raises CheckpointError where another process has it, or nothing can be written there.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+b")  # noqa: SIM115 - held as long as the process lives
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written to: {error.strerror}.") from error
    try:
        _claim(file)
    except OSError as error:
        file.seek(0)
        owner = file.read(200).decode(errors="replace").partition("\n")[0] or "another process"
        file.close()
        raise CheckpointError(
            f"{folder} is in use by {owner}: wait for its end, or give another hydra.run.dir=."
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    file.flush()
    _held[folder] = file


def require(folder: Path) -> None:
    """Raise CheckpointError where `folder` was claimed by this process and has been removed since.

    A file written there now would stand alone in a new folder, without the logs before it.
    """
    if folder.resolve() in _held and not (folder / ".lock").exists():
        raise CheckpointError(
            f"{folder} was removed while its run was under way, and the logs and checkpoints with "
            "it: start again."
        )


def release(folder: str | Path) -> None:
    """Give `folder` back before the process ends."""
    file = _held.pop(Path(folder).resolve(), None)
    if file is not None:
        file.close()


def _claim(file: IO[bytes]) -> None:
    """Lock `file` for this process alone, or raise OSError at once."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # a byte that nobody reads: Windows locks would hide the owner's name
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Not flock: loader processes, forked, would keep that one after their parent's death.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
