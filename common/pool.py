"""Work on many items in worker processes, which end with this one, however it ends.

A stop signal ends them (`common.config.run`), a parent that was killed does too: each worker waits
for its end in a thread. Ctrl-C is left to the parent.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from .spawn import end_with_parent, out_of_reach

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    start: Callable[..., None] | None = None,
    args: tuple[Any, ...] = (),
    method: str | None = None,
) -> Iterator[Result]:
    """`work` of each item, in their order; `workers` is 2 or more.

    start, args: what each worker calls first. method: of starting processes, "fork" or "spawn".
    Results wait in memory, so the workers are ahead by a few items only. A ValueError of `work` is
    raised here, a worker that was killed is an OSError.
    """
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, context, _begin, (start, args)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            rest = iter(items)
            with out_of_reach():  # processes start with the first item
                waiting.extend(pool.submit(work, item) for item in islice(rest, 4 * workers))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process was ended from outside, mostly for want of memory: choose fewer "
                "workers"
            ) from error
        except ValueError as error:  # raised over there: here it is a user's sentence again
            raise ValueError(str(error)) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(start: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if start is not None:
        start(*args)
