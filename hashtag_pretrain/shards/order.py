"""The order of training: replication without a list, as a function of (seed, epoch, shards).

Image I stands r(I) times in the list of an epoch (Sec. 2), on average where r(I) is no whole
number. The list is never built:

    copies    Lay the r(I) of all images end to end as intervals on a line and shift it by a random
              number u of the epoch: an image has as many copies as its interval holds whole
              numbers. So each has floor(r) or ceil(r) copies, r on average, and how many a shard
              has in all follows from the sums of r alone.
    order     The shards are permuted; the copies of `window` shards are shuffled together. Copy j
              of c comes at the time (j + u(I)) / c of the window, so that the copies of an image
              are spread over it, and copies that still are neighbours are moved apart.

What is held are numbers per shard and the images of two windows. S shards, N images of all of
them, n of one.
"""

from collections.abc import Callable

import numpy as np

Key = tuple[int, int]  # (draw, index): the copy of an epoch, and the number of the image

COPIES = 2**20  # more than an image has in an epoch; key[0] = epoch * COPIES + copy
KEEP = 2  # windows in memory: a batch may lie across the end of one

_SHIFT, _SHARDS, _IMAGES = range(3)  # what is drawn at random


class ReplicationStream:
    """The images of every step, a pure function of (seed, step): a `Stream` of train loaders.

    An epoch is as many whole batches as always fit into the list; the rest of its tail is left out.
    Where a run was interrupted and on how many processes it goes on makes no difference.

    Args:
        counts: images of each shard, int (S,).
        totals: sum of r(I) over each shard, float64 (S,).
        factors: r(I) of the images of a shard by its number, float64 (n,), 0 for images that are
            left out; it must not change in a run, and is asked when a window is entered.
        batch_size: images of a step over all processes.
        seed: of the order, 0 or more.
        window: shards that are shuffled together; memory grows with it.

    """

    def __init__(
        self,
        counts: np.ndarray,
        totals: np.ndarray,
        factors: Callable[[int], np.ndarray],
        batch_size: int,
        *,
        seed: int,
        window: int = 16,
    ) -> None:
        if batch_size < 1 or seed < 0 or window < 1:
            raise ValueError(
                f"batch_size={batch_size}, seed={seed}, window={window}: choose at least 1, 0 and 1"
            )
        if len(counts) != len(totals) or not np.all(np.asarray(totals) >= 0):
            raise ValueError(
                f"{len(counts)} counts and {len(totals)} totals: give the sum of the factors, 0 or "
                "more, for each shard"
            )
        self.batch_size, self.seed, self.window = batch_size, seed, window
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.edges = np.concatenate([[0.0], np.cumsum(totals, dtype=np.float64)])
        self.steps_per_epoch = int(self.edges[-1]) // batch_size
        if not self.edges[-1]:
            raise ValueError(
                "no image is left to train on: compare the tags of the shards with the vocabulary, "
                "and look at what is excluded and held out"
            )
        if not self.steps_per_epoch:
            raise ValueError(
                f"an epoch draws {int(self.edges[-1])} images, fewer than batch_size={batch_size}: "
                f"choose at most {int(self.edges[-1])}"
            )
        self.groups = Trained(self.starts, factors)
        self._factors = factors
        self._epoch = -1  # the one of the next two
        self._shards = self._ends = np.zeros(0, np.int64)  # in order; where each window ends
        self._windows: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def share(self, step: int, rank: int, world: int) -> list[Key]:
        """The consecutive part of a step's batch that process `rank` of `world` computes."""
        if self.batch_size % world:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {world} processes: "
                "choose a multiple of their number"
            )
        epoch, k = divmod(step, self.steps_per_epoch)
        count = self.batch_size // world
        start = k * self.batch_size + rank * count
        return self._slice(epoch, start, start + count)

    def batch(self, step: int) -> list[Key]:
        """(draw, index) of all `batch_size` images of step 0, 1, 2, ..."""
        return self.share(step, 0, 1)

    def _slice(self, epoch: int, start: int, stop: int) -> list[Key]:
        """The keys at the positions `start` to `stop` of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._shards, self._ends = epoch, *self._lay_out(epoch)
        keys: list[Key] = []
        window = int(np.searchsorted(self._ends, start, "right"))
        while start < stop:
            end = int(self._ends[window])
            images, copies = self._window(epoch, window)
            first, last = len(images) - (end - start), len(images) - max(0, end - stop)
            draws = epoch * COPIES + copies[first:last]
            keys += zip(draws.tolist(), images[first:last].tolist(), strict=True)
            start, window = min(end, stop), window + 1
        return keys

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards (S,) of an epoch in their order, and the position at which each window ends."""
        size = len(self.edges) - 1
        key = seed_of(self.seed, epoch, _SHARDS)
        order = np.argsort(uniform(np.arange(size), key), kind="stable")
        lengths = np.diff(np.floor(self.edges + self._shift(epoch)))[order]
        ends = np.cumsum(lengths)[self.window - 1 :: self.window]
        if size % self.window:
            ends = np.append(ends, lengths.sum())
        return order, ends.astype(np.int64)

    def _shift(self, epoch: int) -> float:
        """The shift u in [0, 1) of the line of all intervals."""
        u = uniform(np.zeros(1, np.int64), seed_of(self.seed, epoch, _SHIFT))
        return float(np.floor(u[0] * 2**16) / 2**16)  # few bits: sums with it are exact

    def _window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The copies of a window in order: number of the image, int64, and of its copy."""
        if (epoch, window) not in self._windows:
            made = self._shuffle(epoch, window)
            while len(self._windows) >= KEEP:
                del self._windows[next(iter(self._windows))]
            self._windows[epoch, window] = made
        return self._windows[epoch, window]

    def _shuffle(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        shards = self._shards[window * self.window : (window + 1) * self.window]
        images = np.concatenate([self.starts[s] + np.arange(self._size(s)) for s in shards])
        shift = self._shift(epoch)
        repeats = np.concatenate([self._repeats(shift, s) for s in shards])
        phase = uniform(images, seed_of(self.seed, epoch, _IMAGES))
        images, phase = np.repeat(images, repeats), np.repeat(phase, repeats)
        copies = np.arange(len(images)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        order = np.argsort((copies + phase) / np.repeat(repeats, repeats), kind="stable")
        order = order[separate(images[order])]
        return images[order], copies[order]

    def _size(self, shard: int) -> int:
        return int(self.starts[shard + 1] - self.starts[shard])

    def _repeats(self, shift: float, shard: int) -> np.ndarray:
        """How many copies each image of a shard has on the shifted line, int64 (n,)."""
        factors = np.asarray(self._factors(shard), np.float64)
        low, high = self.edges[shard], self.edges[shard + 1]
        ends = np.cumsum(factors)
        error = abs(ends[-1:].sum() - (high - low))
        if len(factors) != self._size(shard) or not error <= 1e-5 * max(1.0, high - low):
            raise ValueError(
                f"shard {shard}: {len(factors)} factors with the sum {factors.sum():g}, where "
                f"{self._size(shard)} with {high - low:g} were announced: has the shard changed?"
            )
        # Rounded sums must end where the next shard starts, at the last image with a factor.
        ends = np.where(ends == ends[-1:], high, np.minimum(low + ends, high))
        edges = np.concatenate([[low], ends]) + shift
        repeats = np.diff(np.floor(edges)).astype(np.int64)
        if repeats.max(initial=0) >= COPIES:
            raise ValueError(f"an image of shard {shard} has {COPIES} copies or more: cap r(h)")
        return repeats


class Trained:
    """trained[i] is whether image i is trained on; only the shard asked last is held.

    A damaged image is thus replaced by another one of the list, never by one that was left out.
    """

    def __init__(self, starts: np.ndarray, factors: Callable[[int], np.ndarray]) -> None:
        self.starts, self._factors = starts, factors
        self._shard, self._used = -1, np.zeros(0, bool)

    def __getitem__(self, index: int) -> bool:
        shard = int(np.searchsorted(self.starts, index, "right")) - 1
        if shard != self._shard:
            self._shard, self._used = shard, np.asarray(self._factors(shard)) > 0
        return bool(self._used[index - self.starts[shard]])


def separate(images: np.ndarray) -> np.ndarray:
    """The order (n,) int64 in which no image has itself as neighbour; few are moved.

    Where an image is more than half of the whole, so that there is none, the rest of it is last.
    """
    order = np.arange(len(images))
    moved = np.flatnonzero(images[1:] == images[:-1]) + 1
    waiting = {image: moved[images[moved] == image] for image in np.unique(images[moved]).tolist()}
    order = np.delete(order, moved)
    left = len(moved)
    while left:
        for image, copies in waiting.items():
            own = np.concatenate([[False], images[order] == image, [False]])
            gaps = np.flatnonzero(~(own[1:] | own[:-1]))  # where neither neighbour is the image
            taken = min(len(gaps), len(copies))
            spread = np.arange(taken) * len(gaps) // max(1, taken)
            order = np.insert(order, gaps[spread], copies[:taken])
            waiting[image] = copies[taken:]
        before, left = left, sum(map(len, waiting.values()))
        if left == before:  # no place for any of them: these are of one image
            return np.concatenate([order, *waiting.values()])
    return order


def seed_of(*parts: int) -> int:
    """64 bits from whole numbers, well mixed and the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def scramble(numbers: np.ndarray) -> np.ndarray:
    """64 well mixed bits of each number, uint64; one to one (the end of SplitMix64)."""
    x = np.asarray(numbers).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(numbers: np.ndarray, key: int) -> np.ndarray:
    """A random number in [0, 1) for each whole number, float64, the same for the same `key`."""
    mixed = scramble(scramble(np.asarray(numbers).astype(np.uint64) + np.uint64(key)))
    return (mixed >> np.uint64(11)) * 2.0**-53
