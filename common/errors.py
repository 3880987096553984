"""How a run that fails ends: with one sentence, or with a traceback where the code is wrong."""

import linecache
import traceback
from pathlib import Path
from urllib.error import URLError

PREEMPTED = 75  # exit code of a run that saved and left on request; sysexits.h: "try again later"

_under_way: list[str] = []  # folder and command of the run of this process, for `going_on`


class UserError(SystemExit):
    """Ends a command with one sentence for its user and exit code `status`, without a traceback."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def sentence(error: BaseException) -> str | None:
    """Message of an error that this repository raised for its user; None for any other error.

    Such are `UserError` and each ValueError, OSError or FloatingPointError from a `raise` statement
    in this repository; so is a download that fails, whose file and place torch.hub has printed.
    Everything else is a fault of the code and deserves its traceback.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, URLError):
        return (
            f"The download named above failed ({error.reason}): fetch that file elsewhere and put "
            "it where the line says, or give a file of weights of your own."
        )
    frame = error.__traceback__
    if not isinstance(error, ValueError | OSError | FloatingPointError) or frame is None:
        return None
    while frame.tb_next is not None:
        frame = frame.tb_next
    path = Path(frame.tb_frame.f_code.co_filename).resolve()
    ours = path.is_relative_to(Path(__file__).resolve().parent.parent)
    raised = linecache.getline(str(path), frame.tb_lineno).lstrip().startswith("raise ")
    return str(error) if ours and raised and "site-packages" not in path.parts else None


def status(error: BaseException) -> int:
    """Exit code for `error`: 2 where the user's configuration or data is at fault, else 1."""
    if isinstance(error, UserError):
        return error.status
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        return error.code or 0
    return 1 if sentence(error) is None or isinstance(error, FloatingPointError) else 2


def under_way(folder: str, command: str) -> None:
    """Note that the run in `folder` is under way, and the `command` that goes on with it."""
    _under_way[:] = [folder, command]


def going_on() -> str:
    """The command that takes up the run of this process; empty where there is no checkpoint yet."""
    if not _under_way or not any(Path(_under_way[0]).rglob("checkpoint-*.pt")):
        return ""
    return f"To go on from the last checkpoint: {_under_way[1]}"


def last_words(error: BaseException, where: str) -> str:
    """Traceback of `error` unless it explains itself; the last line starts with `where`."""
    message = str(error) if isinstance(error, SystemExit) else sentence(error)
    if message is not None:
        return f"{where}: {message}"
    trace = "".join(traceback.format_exception(error))
    lines = str(error).splitlines() or [""]
    # An error of a loader's process quotes that one's traceback, which ends in the reason.
    reason = lines[-1 if "Original Traceback" in str(error) else 0]
    return f"{trace}{where}: {type(error).__name__}: {reason}"
