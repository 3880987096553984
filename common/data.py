"""Feeding examples: which ones, in which order, and under which randomness.

The training stream is a pure function of (seed, step): an interrupted run goes on with exactly the
examples it has not seen, on any number of processes and DataLoader workers. Each example is drawn
with Python, NumPy and torch seeded from (seed, epoch, index), so its augmentation is part of that
function; the global random states are put back afterwards.
"""

import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from common import dist, errors
from common.images import ImageFolder, UnreadableImage, read_image

__all__ = [
    "BadExample",
    "BadImages",
    "ImageFolder",
    "SampleStream",
    "UnreadableImage",
    "eval_loader",
    "read_image",
    "seed_everything",
    "train_loader",
]

Key = tuple[int, int]  # (epoch, index): one draw of one example


class BadExample(ValueError):
    """An example that could not be drawn; the message names its file and index."""


@dataclass
class BadImages:
    """What a train loader does with pictures that `read_image` cannot read.

    "raise" stops at the first. "skip" puts another example in its place (the next index of the
    same group, so every process stays in step) and stops once more than `limit` of the data set,
    at least one picture, was skipped in this process. `skipped` maps index to message.
    """

    policy: str = "raise"
    limit: float = 0.001
    skipped: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy not in ("raise", "skip"):
            raise ValueError(f"policy is {self.policy!r}: choose 'raise' or 'skip'")
        if not 0 <= self.limit <= 1:
            raise ValueError(f"limit is {self.limit}: choose a share of the pictures from 0 to 1")

    def allowed(self, size: int) -> int:
        """Most pictures that may be skipped out of `size`; 0 under "raise"."""
        return max(1, int(self.limit * size)) if self.policy == "skip" else 0

    def record(self, index: int, message: str, size: int) -> None:
        """Count one skipped picture of a data set of `size`, each once; raise beyond the limit."""
        if index in self.skipped:
            return
        self.skipped[index] = message
        if len(self.skipped) > self.allowed(size):
            raise BadExample(
                f"{len(self.skipped)} of {size} pictures cannot be read, more than the "
                f"{self.allowed(size)} that limit={self.limit} allows; the last: {message}"
            )
        warnings.warn(f"picture {len(self.skipped)} skipped: {message}", stacklevel=2)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: choose a whole number from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SampleStream:
    """The examples of every optimizer step: a pure function of (seed, step).

    An epoch is one permutation of the whole set, its tail short of a batch dropped. With `groups`
    (a group id per example) it is cut into chunks of `chunk` examples of one group, each example at
    most once an epoch; a batch is `batch_size / chunk` chunks. The default chunk is the whole
    batch. A set smaller than a batch is repeated: batches then run across the ends of epochs.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        groups: Sequence[int] | None = None,
        chunk: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError("the data set has no examples: check its folder and its filters")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: choose at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}: choose 0 or more")
        self.size, self.seed = size, seed
        self.groups = None if groups is None else torch.as_tensor(groups)
        self.chunk = 1 if groups is None else (chunk or batch_size)
        self._check_groups(batch_size)
        self.chunks_per_batch = batch_size // self.chunk
        self._epoch, self._chunks = 0, self._shuffle(0)
        self.steps_per_epoch = len(self._chunks) // self.chunks_per_batch  # 0: set < batch

    def _check_groups(self, batch_size: int) -> None:
        if self.groups is None:
            return
        if len(self.groups) != self.size:
            raise ValueError(f"{len(self.groups)} group ids for {self.size} examples")
        if batch_size % self.chunk:
            raise ValueError(f"batch_size {batch_size} is not a multiple of chunk {self.chunk}")
        ids, counts = self.groups.unique(return_counts=True)
        if counts.min() < self.chunk:
            group, count = int(ids[counts.argmin()]), int(counts.min())
            raise ValueError(
                f"group {group} has {count} examples, fewer than a chunk of {self.chunk}, so they "
                "would never be drawn: choose a smaller chunk or do without groups"
            )

    def _shuffle(self, epoch: int) -> Tensor:
        """Indices (chunks, chunk) of one epoch in the order of their use."""
        generator = torch.Generator().manual_seed(_seed(0, self.seed, epoch))
        order = torch.randperm(self.size, generator=generator)
        if self.groups is None:
            return order[:, None]
        group = self.groups[order]
        chunks = [
            members[: len(members) // self.chunk * self.chunk].view(-1, self.chunk)
            for members in (order[group == g] for g in self.groups.unique())
        ]
        joined = torch.cat(chunks)
        return joined[torch.randperm(len(joined), generator=generator)]

    def _slice(self, epoch: int, start: int, stop: int) -> list[Key]:
        if epoch != self._epoch:
            self._epoch, self._chunks = epoch, self._shuffle(epoch)
        return [(epoch, index) for index in self._chunks[start:stop].flatten().tolist()]

    def batch(self, step: int) -> list[Key]:
        """(epoch, index) of all `batch_size` examples of step 0, 1, 2, ..."""
        n = self.chunks_per_batch
        if self.steps_per_epoch:
            epoch, k = divmod(step, self.steps_per_epoch)
            return self._slice(epoch, k * n, (k + 1) * n)
        keys: list[Key] = []
        for position in range(step * n, (step + 1) * n):
            epoch, k = divmod(position, len(self._chunks))
            keys += self._slice(epoch, k, k + 1)
        return keys

    def share(self, step: int, rank: int, world: int) -> list[Key]:
        """The consecutive part of `batch(step)` that process `rank` of `world` computes."""
        keys = self.batch(step)
        if len(keys) % world:
            raise ValueError(
                f"batch_size {len(keys)} cannot be shared by {world} processes: "
                "choose a multiple of their number"
            )
        n = len(keys) // world
        return keys[rank * n : (rank + 1) * n]


def _seed(*parts: int) -> int:
    """One 32-bit seed from whole numbers, well mixed and the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@dataclass(frozen=True)
class _Batches(Dataset):
    """Map-style view whose item is a whole batch: (batch, skipped, (message, trace)).

    skipped: (index, message) of unreadable pictures; message: why there is no batch, with a
    trace where the code is at fault. Carried as values, so that workers need not raise.
    advice: what to do about an unreadable image but replacing it, appended to the message.
    """

    dataset: Dataset
    collate: Callable[[list], Any]
    seed: int
    retries: int = 0
    groups: Tensor | None = None
    advice: str = ""

    def __getitem__(self, keys: list[Key]) -> tuple[Any, list[tuple[int, str]], tuple[str, str]]:
        skipped: list[tuple[int, str]] = []
        try:
            examples = []
            for epoch, index in keys:
                where, file = self._name(index)
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

    def _name(self, index: int) -> tuple[str, str]:
        """What to call an example, and its file, "" where the data set tells none."""
        files = getattr(self.dataset, "files", None)
        return f"example {index}", "" if files is None else str(files[index])

    def _draw(self, epoch: int, index: int, skipped: list[tuple[int, str]]) -> Any:
        """The example, or under "skip" the next readable one of its group."""
        for candidate in self._candidates(index):
            try:
                return _under_seed(self.dataset, candidate, _seed(1, self.seed, epoch, candidate))
            except UnreadableImage as error:
                if not self.retries or len(skipped) > self.retries:
                    raise
                skipped.append((candidate, str(error)))
        raise UnreadableImage(f"no example of the group of {index} can be read")

    def _candidates(self, index: int) -> Iterator[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        for i in range(index, index + size):
            if self.groups is None or self.groups[i % size] == self.groups[index]:
                yield i % size


def _under_seed(dataset: Dataset, index: int, seed: int) -> Any:
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
    """Iterates a DataLoader over `_Batches`: unpacks, counts skipped pictures, raises failures."""

    def __init__(
        self, batches: _Batches, sampler: Any, workers: int, *, bad: BadImages, **options: Any
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers is {workers}: choose 0 (none) or more")
        self.bad, self.workers, self.size = bad, workers, len(batches.dataset)  # type: ignore
        self.loader = DataLoader(
            batches,
            batch_size=None,
            sampler=sampler,
            collate_fn=_identity,
            num_workers=workers,
            generator=torch.Generator(),  # else it would draw from the global one
            **options,
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


class _Steps:
    """Keys of this process's share of steps start, ..., stop - 1, each cut into `pieces`."""

    def __init__(
        self, stream: SampleStream, start: int, stop: int, rank: int, world: int, pieces: int = 1
    ) -> None:
        self.stream, self.steps, self.rank, self.world = stream, range(start, stop), rank, world
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.steps) * self.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self.steps:
            share = self.stream.share(step, self.rank, self.world)
            n = len(share) // self.pieces
            yield from (share[i : i + n] for i in range(0, len(share), n))


def _advice(bad: BadImages | None) -> str:
    """The way past an unreadable image: to skip it, where the caller has a choice and did not."""
    if bad is None or bad.policy == "skip":
        return ""
    return ", or set data.bad_images=skip to count and replace such images in training"


def train_loader(
    dataset: Dataset,
    batch_size: int,
    start: int,
    stop: int,
    *,
    seed: int,
    workers: int = 0,
    collate: Callable[[list], Any] = default_collate,
    groups: Sequence[int] | None = None,
    chunk: int | None = None,
    pieces: int = 1,
    bad: BadImages | None = None,
    pin: bool | None = None,
    context: str | None = None,
) -> _Loader:
    """The `stop - start` batches of the steps after `start`, this process's share of each.

    batch_size: examples per optimizer step over all processes. groups, chunk: see `SampleStream`.
    pieces: cut each share into so many consecutive batches, for shares too large to hold at once.
    pin: page-locked batches, by default where there is a GPU. context: "fork", "spawn", ...
    """
    stream = SampleStream(len(dataset), batch_size, seed=seed, groups=groups, chunk=chunk)  # type: ignore[arg-type]
    rank, world = dist.rank(), dist.world_size()
    share = len(stream.share(start, rank, world))  # a batch that cannot be shared stops here
    if pieces < 1 or share % pieces:
        raise ValueError(f"pieces={pieces} does not divide the {share} examples of a process")
    advice = _advice(bad)
    bad = bad or BadImages()
    batches = _Batches(dataset, collate, seed, bad.allowed(stream.size), stream.groups, advice)
    steps = _Steps(stream, start, stop, rank, world, pieces)
    pin = torch.cuda.is_available() if pin is None else pin
    return _Loader(
        batches, steps, workers, bad=bad, pin_memory=pin, multiprocessing_context=context
    )


def eval_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    workers: int = 0,
    collate: Callable[[list], Any] = default_collate,
    pin: bool | None = None,
    context: str | None = None,
    rank: int | None = None,
    world: int | None = None,
    bad: BadImages | None = None,
) -> _Loader:
    """Each example exactly once over all processes: process r of w gets r, r + w, r + 2 w, ...

    batch_size: examples per batch of this process; the last one is smaller, and a process beyond
    the number of examples gets none. Unreadable pictures raise unless `bad` says otherwise.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: choose at least 1")
    rank = dist.rank() if rank is None else rank
    world = dist.world_size() if world is None else world
    advice = _advice(bad)
    bad = bad or BadImages()
    mine = [(0, index) for index in range(rank, len(dataset), world)]  # type: ignore[arg-type]
    steps = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    return _Loader(
        _Batches(dataset, collate, 0, bad.allowed(len(dataset)), advice=advice),  # type: ignore
        steps,
        workers,
        bad=bad,
        pin_memory=torch.cuda.is_available() if pin is None else pin,
        multiprocessing_context=context,
        persistent_workers=workers > 0,  # evaluation comes again; training is one long pass
    )
