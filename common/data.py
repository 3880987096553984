"""Feeding examples: drawn under their own seeds, in worker processes, with bad images in mind.

Each example is drawn with Python, NumPy and torch seeded from (seed, epoch, index), so that its
augmentation is a function of these; the global random states are put back afterwards. Which
examples: `sampling`.
"""

import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from common import dist, errors
from common.images import UnreadableImage
from common.sampling import Groups, Key, Stream, mix


class BadExample(ValueError):
    """An example that could not be drawn; the message names its file and index."""


@dataclass
class BadImages:
    """What a train loader does with images that `read_image` cannot read.

    "raise" stops at the first. "skip" puts another example in its place (the next index of the
    same group, so every process stays in step) and stops once more than `limit` of the data set,
    at least one image, was skipped in this process. `skipped` maps index to message. option: the
    key of the policy, for messages.
    """

    policy: str = "raise"
    limit: float = 0.001
    skipped: dict[int, str] = field(default_factory=dict)
    option: str = "data.bad_images"

    def __post_init__(self) -> None:
        if self.policy not in ("raise", "skip"):
            raise ValueError(f"policy is {self.policy!r}: choose 'raise' or 'skip'")
        if not 0 <= self.limit <= 1:
            raise ValueError(f"limit is {self.limit}: choose a share of the images from 0 to 1")

    def most(self, size: int) -> int:
        """Most images that may be skipped out of `size`; 0 under "raise"."""
        return max(1, int(self.limit * size)) if self.policy == "skip" else 0

    def record(self, index: int, message: str, size: int) -> None:
        """Count one skipped image of a data set of `size`, each once; raise beyond the limit."""
        if index in self.skipped:
            return
        self.skipped[index] = message
        if len(self.skipped) > self.most(size):
            raise BadExample(
                f"{len(self.skipped)} of {size} images cannot be read, more than the "
                f"{self.most(size)} that may be skipped; the last: {message}"
            )
        warnings.warn(f"image {len(self.skipped)} skipped: {message}", stacklevel=2)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: choose a whole number from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(seed: int, step: int, piece: int) -> int:
    """Seed of what is drawn at random for a piece of a step, whichever process computes it."""
    return (seed * 1_000_003 + step * 4099 + piece) % 2**32


@dataclass(frozen=True)
class _Batches(Dataset):
    """Map-style view whose item is a whole batch: (batch, skipped, (message, trace)).

    skipped: (index, message) of unreadable images; message: why there is no batch, with a
    trace where the code is at fault. Carried as values, so that workers need not raise.
    most: images that may be skipped. advice: what to do about an unreadable image but replacing it.
    """

    dataset: Dataset
    collate: Callable[[list], Any]
    seed: int
    groups: Groups | None
    most: int
    advice: str

    def __getitem__(self, keys: list[Key]) -> tuple[Any, list[tuple[int, str]], tuple[str, str]]:
        skipped: list[tuple[int, str]] = []
        try:
            examples = []
            files = getattr(self.dataset, "files", None)
            for epoch, index in keys:
                where, file = f"example {index}", "" if files is None else str(files[index])
                examples.append(self._draw(epoch, index, skipped))
            where, file = f"putting examples {[index for _, index in keys]} into one batch", ""
            return self.collate(examples), skipped, ("", "")
        except Exception as error:  # carried to the main process, which raises it
            known = errors.sentence(error)
            trace = traceback.format_exc() if known is None else ""
            message = known or repr(error)
            if file and file not in message:
                where += f" ({file})"
            if isinstance(error, UnreadableImage):
                message += self.advice
            return None, skipped, (f"{where}: {message}", trace)

    def _draw(self, epoch: int, index: int, skipped: list[tuple[int, str]]) -> Any:
        """The example, or under "skip" the next readable one of its group."""
        size = len(self.dataset)  # type: ignore[arg-type]
        for candidate in (i % size for i in range(index, index + size)):
            if self.groups is not None and self.groups[candidate] != self.groups[index]:
                continue
            try:
                return _draw_seeded(self.dataset, candidate, mix(1, self.seed, epoch, candidate))
            except UnreadableImage as error:
                if not self.most or len(skipped) > self.most:
                    raise
                skipped.append((candidate, str(error)))
        raise UnreadableImage(f"no example of the group of {index} can be read")


def _draw_seeded(dataset: Dataset, index: int, seed: int) -> Any:
    """`dataset[index]` with all CPU generators seeded; their states are put back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed: leaves the GPUs' alone
    try:
        return dataset[index]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _identity(batch: Any) -> Any:
    return batch


class _Loader:
    """Iterates a DataLoader over `_Batches`: unpacks, counts skipped images, raises failures."""

    def __init__(
        self,
        dataset: Dataset,
        sampler: Any,
        *,
        collate: Callable[[list], Any],
        workers: int,
        bad: BadImages | None,
        stream: Stream | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers is {workers}: choose 0 (none) or more")
        advice = ""
        if bad is not None and bad.policy == "raise":  # the caller has a choice
            advice = f", or set {bad.option}=skip to count and replace such images in training"
        seed, groups = (stream.seed, stream.groups) if stream else (0, None)
        self.bad, self.workers = bad or BadImages(), workers
        self.size = len(dataset)  # type: ignore[arg-type]
        self.loader = DataLoader(
            _Batches(dataset, collate, seed, groups, self.bad.most(self.size), advice),
            batch_size=None,
            sampler=sampler,
            collate_fn=_identity,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0 and not stream,  # training is one long pass
            generator=torch.Generator(),  # else it would draw from the global one
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch, skipped, (message, trace) in self.loader:
                for index, reason in skipped:
                    self.bad.record(index, reason, self.size)
                if trace:  # a fault of the code
                    fault = RuntimeError(message)
                    fault.add_note(trace)
                    raise fault
                if message:
                    raise BadExample(message)
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(
                f"one of the {self.workers} DataLoader workers was ended from outside, mostly for "
                f"want of memory ({error}): lower `workers` or the batch size and start again; "
                "the run resumes"
            ) from error


@dataclass(frozen=True)
class _Pieces:
    """Keys of this process's share of each of the `steps`, cut into `pieces`."""

    stream: Stream
    steps: range
    pieces: int
    rank: int
    world: int

    def __len__(self) -> int:
        return len(self.steps) * self.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self.steps:
            share = self.stream.share(step, self.rank, self.world)
            n = len(share) // self.pieces
            yield from (share[i : i + n] for i in range(0, len(share), n))


def train_loader(
    dataset: Dataset,
    stream: Stream,
    start: int,
    stop: int,
    *,
    workers: int = 0,
    collate: Callable[[list], Any] = default_collate,
    accumulate: int = 1,
    cut: bool = False,
    bad: BadImages | None = None,
) -> _Loader:
    """The `stop - start` batches of the steps after `start`, this process's share of each.

    stream: which examples a step has over all processes. accumulate: equal pieces that each share
    must have; cut: give these one by one, for shares too large to hold at once.
    """
    world = dist.world_size()
    if stream.batch_size % (world * accumulate):
        raise ValueError(
            f"batch_size={stream.batch_size} cannot be shared by processes={world} with "
            f"accumulate={accumulate} equal pieces each: choose a multiple of {world * accumulate}."
        )
    steps = range(start, stop)
    pieces = _Pieces(stream, steps, accumulate if cut else 1, dist.rank(), world)
    return _Loader(dataset, pieces, collate=collate, workers=workers, bad=bad, stream=stream)


def eval_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    workers: int = 0,
    collate: Callable[[list], Any] = default_collate,
    rank: int | None = None,
    world: int | None = None,
    bad: BadImages | None = None,
) -> _Loader:
    """Each example exactly once over all processes: process r of w gets r, r + w, r + 2 w, ...

    batch_size: examples per batch of this process; the last one is smaller, and a process beyond
    the number of examples gets none. Unreadable images raise unless `bad` says otherwise.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: choose at least 1")
    rank = dist.rank() if rank is None else rank
    world = dist.world_size() if world is None else world
    mine = [(0, index) for index in range(rank, len(dataset), world)]  # type: ignore[arg-type]
    steps = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    return _Loader(dataset, steps, collate=collate, workers=workers, bad=bad)
