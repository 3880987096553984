"""Ctrl-C is one line and exit code 130 from here on: for the seconds that importing torch takes.

Scripts import this first; `common.config.run` takes over once they run.
"""

import os
import sys
from types import TracebackType


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    os.write(2, b"Stopped by SIGINT.\n")
    os._exit(130)  # else Python would kill itself by SIGINT, which some shells take for a crash


sys.excepthook = _hook
