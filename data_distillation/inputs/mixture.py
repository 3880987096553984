"""Which images a student draws: two sets at a fixed ratio, 6:4 in the paper (Sec. 4).

As `common.sampling.SampleStream`, it is a pure function of (seed, step): what an interrupted run
has not seen follows from the step alone, on any number of processes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.sampling import Key, mix


class MixtureStream:
    """Images with manual and with automatic labels, in turn, as `ratio` says.

    The ratio runs over the images of all steps and is spread evenly: 3:2 is the pattern 1, 1, 0,
    1, 0 with 1 for manual, so that batches of 16 hold 10, 10, 9, 10, 9 manual images. Of either
    set every image is drawn once before any is drawn again. A key's index counts the manual
    images first, then the automatic ones. Of an empty set nothing is drawn, whatever the ratio.

    first: whether an image comes before the others of its batch, manual images first (N,); with the
    wide ones before the high ones, a process gets images of like shape and pads them little.
    """

    def __init__(
        self,
        manual: int,
        automatic: int,
        batch_size: int,
        *,
        ratio: Sequence[int],
        seed: int,
        first: Sequence[bool] | np.ndarray | None = None,
    ) -> None:
        self.counts = (manual, automatic)
        if manual + automatic < 1:
            raise ValueError("neither set has an image: check their folders and filters")
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size={batch_size}, seed={seed}: choose at least 1, and 0")
        if len(ratio) != 2 or min(ratio) < 0 or not any(ratio):
            raise ValueError(
                f"ratio={list(ratio)}: give two whole numbers, manual : automatic, like [6, 4]"
            )
        shares = [part if count else 0 for part, count in zip(ratio, self.counts, strict=True)]
        if not any(shares):  # all images are in the set with share 0
            raise ValueError(
                f"ratio={list(ratio)} draws nothing from {manual} manual and {automatic} automatic "
                "images: give the set that has images a share"
            )
        divisor = math.gcd(*shares)
        self.parts = (shares[0] // divisor, shares[1] // divisor)
        self.batch_size, self.seed = batch_size, seed
        # A bad image is replaced by one of its group: of its set and, if these matter, its shape.
        self.groups = (torch.arange(manual + automatic) >= manual).long()
        self.first = None if first is None else np.asarray(first, bool)
        if self.first is not None:
            if self.first.shape != (manual + automatic,):
                raise ValueError(f"{len(self.first)} shapes for {manual + automatic} images")
            self.groups += 2 * torch.from_numpy(self.first)
        self._orders: dict[int, tuple[int, Tensor]] = {}  # source -> last epoch and its order

    def manual_before(self, position: int) -> int:
        """How many of the first `position` images of the run are manual."""
        manual, automatic = self.parts
        return -(-position * manual // (manual + automatic))

    def draw(self, position: int) -> Key:
        """(epoch, index) of one image of the run."""
        before = self.manual_before(position)
        if self.manual_before(position + 1) > before:
            source, place = 0, before
        else:
            source, place = 1, position - before
        epoch, place = divmod(place, self.counts[source])
        index = int(self._order(source, epoch)[place])
        return epoch, index + source * self.counts[0]

    def _order(self, source: int, epoch: int) -> Tensor:
        """The images of one set in the order of one pass."""
        if source not in self._orders or self._orders[source][0] != epoch:
            generator = torch.Generator().manual_seed(mix(2, self.seed, source, epoch))
            order = torch.randperm(self.counts[source], generator=generator)
            self._orders[source] = epoch, order
        return self._orders[source][1]

    def batch(self, step: int) -> list[Key]:
        """(epoch, index) of all `batch_size` images of step 0, 1, 2, ..."""
        start = step * self.batch_size
        keys = [self.draw(position) for position in range(start, start + self.batch_size)]
        if self.first is None:
            return keys
        first = self.first
        return sorted(keys, key=lambda key: not first[key[1]])  # stable: else in their order

    def share(self, step: int, rank: int, world: int) -> list[Key]:
        """The consecutive part of `batch(step)` that process `rank` of `world` computes."""
        if self.batch_size % world:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {world} processes: "
                "choose a multiple of their number"
            )
        count = self.batch_size // world
        return self.batch(step)[rank * count : (rank + 1) * count]
