"""What the doctor is shown of a training loop, `Subject`, and what it answers, `Finding`.

Notation: k workers of n = 32 images each, kn = `batch_size` images an optimizer step.
"""

import inspect
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

FOREIGN = re.compile(r"site-packages|^<frozen")  # files that are not the user's
Batch = Any  # whatever the loop calls a batch; (images (N, C, H, W), labels (N,)) by default


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss of a classifier on (images (N, C, H, W), labels (N,))."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


@dataclass(kw_only=True)
class Subject:
    """A training loop in parts. Each may be left out: what needs it is then not examined."""

    # One optimizer step: zero the gradients, forward, backward, update; the schedule is not moved
    model: nn.Module | None = None
    optimizer: Optimizer | None = None
    step: Callable[[Batch], object] | None = None
    accumulate: Callable[[list[Batch]], object] | None = None  # one step on several micro-batches
    share: Callable[[Batch], object] | None = None  # one step on `per_process` images, cut by you
    per_process: int | None = None  # images of a step in one process of your loop
    workers: Callable[[list[Batch]], object] | None = None  # one step, a batch for each worker
    distributed: bool = False  # `step` sums over processes: two (gloo) call build() and step()
    set_lr: Callable[[float], object] | None = None  # default: written to optimizer.param_groups
    weight_decay: float | None = None  # the one you mean, if the optimizer's groups do not say

    # What the doctor feeds it
    loss: Callable[[nn.Module, Batch], Tensor] = cross_entropy  # mean over the batch, unscaled
    batch: Callable[[int], Batch] | None = None  # a batch of that many images, the images first
    shape: tuple[int, ...] = (3, 32, 32)  # of one image, where `batch` is left out
    classes: int = 10  # where `batch` is left out
    group: int = 32  # n: images that are meant to share BN statistics
    per_forward: int | None = None  # images in one call of the model in one process of your loop

    # Learning rate: read from optimizer.param_groups[0]["lr"] after `before_step`
    batch_size: int | None = None  # kn
    steps_per_epoch: int | None = None
    before_step: Callable[[int, int], object] | None = None  # (epoch, iteration in it), from 0
    after_step: Callable[[], object] | None = None  # such as scheduler.step
    after_epoch: Callable[[], object] | None = None  # such as scheduler.step
    base_lr: float = 0.1  # meant for `base_batch` images, also where the warm-up starts
    base_batch: int = 256
    warmup_epochs: float = 5.0
    epochs: float = 90.0
    kind: str = "step"  # step | cosine | linear
    milestones: tuple[float, ...] = (30, 60, 80)  # epochs
    factor: float = 0.1  # at each milestone

    # Data: what your loop reads, in this order
    indices: Callable[[int, int, int], Iterable[int]] | None = None  # (rank, world, epoch)
    examples: int | None = None  # training images
    eval_indices: Callable[[int, int], Iterable[int]] | None = None  # (rank, world)
    eval_examples: int | None = None
    score: Callable[[list[tuple[Tensor, Tensor]]], float] | None = None  # top-1 (accuracy or
    # error, percent or 0..1) of several batches of (logits (N, K), labels (N,))


@dataclass(frozen=True)
class Finding:
    """What became of one check."""

    check: str
    status: str  # ok | found | advice | not examined
    text: str  # one sentence with the measured and the expected number
    section: str  # of the paper
    remedy: str


class NotExamined(Exception):
    """A check cannot be made; the message says what it lacks."""


class LoopError(ValueError):
    """The user's file cannot be used; the message is one sentence."""


def seed(number: int) -> None:
    """Seed every generator that a loop may draw from."""
    random.seed(number)
    torch.manual_seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)


@contextmanager
def generators_put_back() -> Iterator[None]:
    """Leave Python's, NumPy's and torch's random states as they were."""
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(state)
            if numpy:
                numpy.random.set_state(numpy_state)


def call(subject: Subject, part: str, *args: Any) -> Any:
    """Call a part of the loop; NotExamined where it is left out, LoopError where it raises."""
    function = getattr(subject, part)
    if function is None:
        raise NotExamined(f"`{part}` is not given.")
    return guard(f"{part}()", function, *args)


def guard(what: str, function: Callable, *args: Any) -> Any:
    """`function(*args)`, whose errors become one sentence with file and line."""
    try:
        return function(*args)
    except (NotExamined, LoopError):
        raise
    except (Exception, SystemExit) as error:
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and not FOREIGN.search(frame.filename)
        ]
        where = f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""
        reason = (str(error).splitlines() or ["no message"])[0].rstrip(".")
        raise LoopError(f"{what} raised {type(error).__name__}: {reason}{where}.") from error


class Loop:
    """The user's loop as its `build` function; each check works on a fresh copy.

    build: returns a new `Subject` at each call, with new weights. It may take `batch_size`; the
        rule for the learning rate is then checked at several sizes.
    """

    def __init__(self, build: Callable[..., Subject]) -> None:
        self.build = build
        self.outcome: Any = None  # of its run in two processes, kept for the second check
        self.sized = "batch_size" in inspect.signature(build).parameters

    def fresh(self, batch_size: int | None = None) -> Subject:
        """A new subject; all are built under the same seed."""
        seed(0)
        sized = {"batch_size": batch_size} if self.sized and batch_size is not None else {}
        subject = guard("build()", partial(self.build, **sized))
        if not isinstance(subject, Subject):
            raise LoopError(
                f"build() returned {type(subject).__name__}: let it return a "
                "large_minibatch.doctor.Subject."
            )
        return subject


class FileBuild:
    """`build` of a Python file; picklable, so that other processes load the file themselves."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if not self.path.is_file():
            raise LoopError(f"There is no file {path}: give a Python file that defines build().")
        self.load()

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.path = state["path"]
        self.load()

    def load(self) -> None:
        """Execute the file; its neighbours can be imported, as in `python FILE`."""
        if str(self.path.parent) not in sys.path:
            sys.path.insert(0, str(self.path.parent))
        name = f"_examined_{self.path.stem}"
        loader = SourceFileLoader(name, str(self.path))
        spec = spec_from_loader(name, loader)
        assert spec is not None, self.path
        module = module_from_spec(spec)
        sys.modules[name] = module  # dataclasses of the file look it up there
        guard(f"Loading {self.path.name}", loader.exec_module, module)
        if not callable(getattr(module, "build", None)):
            raise LoopError(f"{self.path} defines no function build(): see `python doctor.py`.")
        self.build = module.build
        self.__signature__ = inspect.signature(module.build)

    def __call__(self, **sized: int) -> Subject:
        return self.build(**sized)
