"""Which examples a training run draws, and in which order.

The stream is a pure function of (seed, step): an interrupted run goes on with exactly the
examples it has not seen, on any number of processes and DataLoader workers.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Key = tuple[int, int]  # (epoch, index): one draw of one example


def mix(*parts: int) -> int:
    """One 32-bit seed from whole numbers, well mixed and the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Groups(Protocol):
    """A group of each example, a tensor or whatever computes it when asked."""

    def __getitem__(self, index: int, /) -> Any: ...


class Stream(Protocol):
    """What a train loader asks of a stream: its batches, and who stands in for a bad example."""

    batch_size: int
    seed: int

    @property
    def groups(self) -> Groups | None:
        """Of each example its group, from which one is taken in the place of a bad one."""

    def share(self, step: int, rank: int, world: int) -> list[Key]:
        """The examples of a step, from 0, that process `rank` of `world` computes."""


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
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.groups = None if groups is None else torch.as_tensor(groups)
        self.chunk = 1 if groups is None else (chunk or batch_size)
        self._check_groups()
        self.chunks_per_batch = batch_size // self.chunk
        self._epoch, self._chunks = 0, self._shuffle(0)
        self.steps_per_epoch = len(self._chunks) // self.chunks_per_batch  # 0: set < batch

    def _check_groups(self) -> None:
        if self.groups is None:
            return
        if len(self.groups) != self.size:
            raise ValueError(f"{len(self.groups)} group ids for {self.size} examples")
        if self.batch_size % self.chunk:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of chunk {self.chunk}"
            )
        ids, counts = self.groups.unique(return_counts=True)
        if counts.min() < self.chunk:
            group, count = int(ids[counts.argmin()]), int(counts.min())
            raise ValueError(
                f"group {group} has {count} examples, fewer than a chunk of {self.chunk}, so they "
                "would never be drawn: choose a smaller chunk or do without groups"
            )

    def _shuffle(self, epoch: int) -> Tensor:
        """Indices (chunks, chunk) of one epoch in the order of their use."""
        generator = torch.Generator().manual_seed(mix(0, self.seed, epoch))
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
