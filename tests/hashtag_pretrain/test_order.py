"""The stream of replicated images: `hashtag_pretrain/shards/order.py`."""

import pickle
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, pairwise, product
from math import ceil, floor
from time import process_time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from common.data import BadImages, train_loader
from common.images import UnreadableImage
from common.sampling import Key, Stream
from hashtag_pretrain.shards.order import (
    COPIES,
    ReplicationStream,
    Trained,
    scramble,
    separate,
    uniform,
)


class Factors:
    """The factors of each shard."""

    def __init__(self, *shards: Sequence[float]) -> None:
        self.shards = [np.array(shard, np.float64) for shard in shards]

    def __call__(self, shard: int) -> np.ndarray:
        return self.shards[shard]

    def stream(self, batch_size: int, *, seed: int = 0, window: int = 16) -> ReplicationStream:
        counts = np.array([len(shard) for shard in self.shards])
        totals = np.array([shard.sum() for shard in self.shards])
        return ReplicationStream(counts, totals, self, batch_size, seed=seed, window=window)

    @property
    def all(self) -> np.ndarray:
        return np.concatenate(self.shards)


SMALL = Factors([1, 2.5, 0, 1], [], [3.2, 1, 1.3], [0, 0], [1, 7.75, 1.25])  # 20 copies
ONES = Factors([1] * 7, [1] * 5, [1] * 8)


def some_factors(seed: int, shards: int = 6, most: float = 30) -> Factors:
    rng = np.random.default_rng(seed)
    made = [rng.random(rng.integers(1, 20)) ** 8 * most for _ in range(shards)]
    return Factors(*[np.maximum(1, shard).tolist() for shard in made])


def draw_epoch(stream: ReplicationStream, epoch: int = 0) -> list[Key]:
    """All keys of an epoch."""
    n = stream.steps_per_epoch
    return list(chain.from_iterable(stream.batch(step) for step in range(epoch * n, epoch * n + n)))


def images_of(keys: list[Key]) -> list[int]:
    return [index for _, index in keys]


# How many copies


def test_natural_sampling_draws_each_image_once_an_epoch_in_an_order_of_its_own() -> None:
    stream = ONES.stream(4)
    orders = [images_of(draw_epoch(stream, epoch)) for epoch in range(5)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(map(tuple, orders))) == 5


def test_an_image_has_its_factor_in_copies_rounded_down_or_up() -> None:
    for seed in range(20):
        factors = some_factors(seed)
        counts = Counter(images_of(draw_epoch(factors.stream(1, seed=seed))))
        total = factors.all.sum()
        assert sum(counts.values()) == floor(total)  # the tail, of one copy at most, left out
        short = sum(counts[i] < floor(r) for i, r in enumerate(factors.all))
        assert short <= 1
        assert all(counts[i] <= ceil(r) for i, r in enumerate(factors.all))


def test_copies_are_the_whole_numbers_in_the_intervals_of_the_images() -> None:
    factors = Factors([1, 2.5, 0, 1], [3.25, 1, 1.25], [1, 7.75, 1.25])  # exact in binary
    stream = factors.stream(1, seed=3)
    for epoch in range(10):
        shift, start, expected = Fraction(stream._shift(epoch)), Fraction(0), {}
        for image, r in enumerate(factors.all):
            end = start + Fraction(float(r))
            expected[image] = floor(end + shift) - floor(start + shift)
            start = end
        counts = Counter(images_of(draw_epoch(stream, epoch)))
        assert {i: counts[i] for i in expected} == expected


def test_an_image_has_its_factor_in_copies_on_average_over_2000_epochs() -> None:
    epochs, stream = 2000, SMALL.stream(20)
    assert SMALL.all.sum() == stream.steps_per_epoch * 20
    counts = Counter(chain.from_iterable(images_of(stream.batch(step)) for step in range(epochs)))
    mean = np.array([counts[i] / epochs for i in range(len(SMALL.all))])
    rest = SMALL.all % 1
    sigma = np.sqrt(rest * (1 - rest) / epochs)
    assert (np.abs(mean - SMALL.all) <= 3 * sigma).all()
    assert (mean[rest == 0] == SMALL.all[rest == 0]).all()


def test_the_lengths_of_the_shards_are_known_without_their_factors() -> None:
    asked = []

    def factors(shard: int) -> np.ndarray:
        asked.append(shard)
        return large.shards[shard]

    large = some_factors(1, shards=40)
    counts, totals = map(np.array, zip(*[(len(s), s.sum()) for s in large.shards], strict=True))
    stream = ReplicationStream(counts, totals, factors, 8, seed=0, window=4)
    far = stream.batch(3 * stream.steps_per_epoch + stream.steps_per_epoch // 2)
    assert len(asked) in (4, 8)
    assert far == large.stream(8, window=4).batch(stream.steps_per_epoch * 7 // 2)


def test_every_epoch_has_the_same_number_of_batches_and_a_batch_is_of_one_epoch() -> None:
    stream = SMALL.stream(4)
    assert stream.steps_per_epoch == 5
    for step in range(40):
        assert {draw // COPIES for draw, _ in stream.batch(step)} == {step // 5}


def test_the_copies_of_an_image_are_numbered_and_no_key_returns() -> None:
    stream = SMALL.stream(20)
    keys = [key for epoch in range(50) for key in draw_epoch(stream, epoch)]
    assert len(set(keys)) == len(keys)
    copies: dict[int, list[int]] = {}
    for draw, index in draw_epoch(stream, 3):
        copies.setdefault(index, []).append(draw - 3 * COPIES)
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in copies.values())


def test_rounded_sums_of_a_billion_copies_lose_and_add_none() -> None:
    rng = np.random.default_rng(0)
    shard = np.maximum(1, rng.random(1000) ** 6 * 40)
    shard[rng.random(1000) < 0.1] = 0
    totals = np.full(300_000, shard.sum())
    totals[1::2] += 1e-9  # as another order of the sum would give
    stream = ReplicationStream(
        np.full(300_000, 1000), totals, lambda _: shard, 500, seed=0, window=1
    )
    start = stream.steps_per_epoch - 20
    drawn = images_of(list(chain.from_iterable(map(stream.batch, range(start, start + 20)))))
    assert (shard[np.array(drawn) % 1000] > 0).all()
    for place in range(0, 300_000, 29_999):
        lengths = np.diff(np.floor(stream.edges[place : place + 2] + stream._shift(0)))
        repeats = stream._repeats(stream._shift(0), place)
        assert repeats.sum() == lengths[0]
        assert (np.abs(repeats - shard) < 1).all()


# Their order


@pytest.mark.parametrize("window", [1, 3, 16])
def test_no_copy_is_the_neighbour_of_another_one_of_its_image(window: int) -> None:
    free = 0
    for seed in range(6):
        stream = some_factors(seed, most=12).stream(1, seed=seed, window=window)
        for epoch in range(3):
            images = images_of(draw_epoch(stream, epoch))
            edges = [0, *stream._lay_out(epoch)[1].tolist()]
            for start, stop in pairwise(edges):
                part = images[start:stop]
                most = max(Counter(part).values())
                together = sum(a == b for a, b in pairwise(part))
                assert together == max(0, 2 * most - len(part) - 1)
                free += not together
                assert start == 0 or images[start] != images[start - 1]
    assert free >= 18


def test_copies_are_moved_apart_whenever_there_is_an_order_and_nothing_moves_without_need() -> None:
    for length in range(8):
        for letters in product(range(3), repeat=length):
            images = np.array(letters, np.int64)
            order = separate(images)
            assert sorted(order.tolist()) == list(range(length))
            line = images[order]
            together = (line[1:] == line[:-1]).sum()
            most = max(Counter(letters).values(), default=0)
            assert together == max(0, 2 * most - length - 1), letters
            if not (images[1:] == images[:-1]).any():
                assert (order == np.arange(length)).all()


def test_one_image_among_few_others_is_moved_apart_in_a_long_window() -> None:
    images = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5000, 3000, 1999]))
    line = images[separate(images)]
    assert (line[1:] != line[:-1]).all()


def test_the_copies_of_an_image_are_spread_over_the_window() -> None:
    stream = Factors([1] * 3000, [8] * 20 + [1] * 2000).stream(1)
    images = np.array(images_of(draw_epoch(stream)))
    for image in range(3000, 3020):
        places = np.flatnonzero(images == image)
        gaps = np.diff(places)
        assert len(places) == 8
        assert gaps == pytest.approx([len(images) / 8] * 7, rel=0.3)


def test_shards_are_shuffled_in_windows() -> None:
    stream = Factors(*[[1] * 10] * 12).stream(1, window=3)
    for epoch in range(3):
        shards = np.array(images_of(draw_epoch(stream, epoch))).reshape(4, 30) // 10
        assert all(len(set(window)) == 3 for window in shards.tolist())
        assert len({shard for window in shards.tolist() for shard in window}) == 12
        assert (np.diff(shards, axis=1) != 0).sum() > 50, "mixed within the window"
    first = {tuple(images_of(draw_epoch(stream, epoch))[:3]) for epoch in range(10)}
    assert len(first) == 10


def test_every_image_comes_first_equally_often() -> None:
    stream = ONES.stream(20)
    first = Counter(stream.share(epoch, 0, 20)[0][1] for epoch in range(1000))
    assert sum((first[i] - 50) ** 2 / 50 for i in range(20)) < 44  # 19 degrees of freedom


# A function of seed and step


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    stream = SMALL.stream(4, seed=5)
    forward = [stream.batch(step) for step in range(30)]
    assert [stream.batch(step) for step in reversed(range(30))] == forward[::-1]
    assert SMALL.stream(4, seed=5).batch(23) == forward[23]
    assert SMALL.stream(4, seed=6).batch(23) != forward[23]
    assert pickle.loads(pickle.dumps(stream)).batch(29) == forward[29]
    assert len(SMALL.stream(4).batch(10**12)) == 4


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_the_shares_of_all_processes_are_the_batch(world: int) -> None:
    stream = SMALL.stream(6, seed=1, window=1)
    for step in range(20):
        shares = [SMALL.stream(6, seed=1, window=1).share(step, r, world) for r in range(world)]
        assert list(chain.from_iterable(shares)) == stream.batch(step)
        assert {len(share) for share in shares} == {6 // world}


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    keys = draw_epoch(SMALL.stream(1))
    for batch_size in (2, 5, 20):
        assert draw_epoch(SMALL.stream(batch_size)) == keys[: 20 // batch_size * batch_size]


def test_the_order_stays_what_it_was() -> None:
    """Else interrupted runs would see images twice: a new order wants a new name."""
    assert images_of(SMALL.stream(10, seed=1).batch(3)) == [1, 10, 6, 4, 10, 1, 10, 4, 10, 1]


class Numbers(Dataset):
    """Index and random number of each example; `bad` ones cannot be read."""

    def __init__(self, size: int, bad: tuple[int, ...] = ()) -> None:
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, float]:
        if index in self.bad:
            raise UnreadableImage(f"image {index} is damaged")
        return index, float(torch.rand(()))


def load(stream: Stream, start: int, stop: int, workers: int = 0) -> list[tuple[int, float]]:
    loader = train_loader(Numbers(12), stream, start, stop, workers=workers)
    return [
        pair for ids, draws in loader for pair in zip(ids.tolist(), draws.tolist(), strict=True)
    ]


def test_a_resumed_run_sees_the_rest_whatever_the_workers() -> None:
    whole = load(SMALL.stream(4), 0, 12)
    for workers in (0, 2):
        assert load(SMALL.stream(4), 7, 12, workers) == whole[28:]
    draws = [draw for index, draw in whole[:20] if index == 10]
    assert len(set(draws)) == len(draws) >= 6, "each copy is augmented in its own way"


def test_a_damaged_image_is_not_replaced_by_one_that_is_left_out() -> None:
    factors = Factors([1, 0, 0, 1], [0, 0, 1], [1, 0, 0])
    stream = factors.stream(4)
    bad = BadImages("skip", limit=0.5)
    loader = train_loader(Numbers(10, bad=(0, 7)), stream, 0, 20, bad=bad)
    with pytest.warns(UserWarning, match="skipped"):
        drawn = Counter(index for ids, _ in loader for index in ids.tolist())
    assert drawn == {3: 60, 6: 20}, "3 stands in for 0, and for 7 beyond the end"


def test_which_images_are_trained_on() -> None:
    stream = SMALL.stream(4)
    expected = (SMALL.all > 0).tolist()
    assert [stream.groups[i] for i in range(len(expected))] == expected
    again = pickle.loads(pickle.dumps(stream.groups))
    assert isinstance(again, Trained)
    assert [again[i] for i in reversed(range(len(expected)))] == expected[::-1]


# Memory


def peak_of(shards: int) -> float:
    """MiB that a stream over shards of 10,000 images takes."""
    factor = np.maximum(1, np.random.default_rng(0).random(10_000) ** 4 * 8)
    tracemalloc.start()
    stream = ReplicationStream(
        np.full(shards, 10_000), np.full(shards, factor.sum()), lambda _: factor, 256, seed=0,
        window=4,
    )  # fmt: skip
    n = stream.steps_per_epoch
    for step in (0, 1, n // 2, n - 1, 5 * n // 3):
        assert len(stream.batch(step)) == 256
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def test_memory_is_flat_from_a_hundred_thousand_to_a_hundred_million_images() -> None:
    few, many = peak_of(6), peak_of(6000)
    assert few > 1, "two windows are held"
    assert many - few < 1.5


# What is refused


@pytest.mark.parametrize(
    ("counts", "totals", "batch_size", "message"),
    [
        ([3, 2], [3.0], 1, "2 counts and 1 totals"),
        ([3], [float("nan")], 1, "sum of the factors"),
        ([3], [-1.0], 1, "sum of the factors"),
        ([3], [3.0], 0, "batch_size=0"),
        ([3, 2], [0.0, 0.0], 1, "no image is left to train on"),
        ([3, 2], [3.0, 2.9], 6, "draws 5 images, fewer than batch_size=6"),
    ],
)
def test_impossible_streams_are_refused(
    counts: list[int], totals: list[float], batch_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ReplicationStream(
            np.array(counts), np.array(totals), lambda s: np.ones(counts[s]), batch_size, seed=0
        )


@pytest.mark.parametrize("factors", [[1.0] * 5, [1.0, 1, 1, 2], [1.0, 1, 1, float("nan")]])
def test_a_shard_that_has_changed_is_named(factors: list[float]) -> None:
    counts, totals = np.array([4]), np.array([4.0])
    stream = ReplicationStream(counts, totals, lambda _: np.array(factors), 2, seed=0)
    with pytest.raises(ValueError, match=r"shard 0: .* has the shard changed"):
        stream.batch(0)


def test_batches_that_cannot_be_shared_and_countless_copies_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared by 3 processes"):
        SMALL.stream(4).share(0, 0, 3)
    with pytest.raises(ValueError, match="cap"):
        Factors([1, 2.0**20]).stream(4).batch(0)


# Random numbers


def test_scramble_is_the_output_of_splitmix64() -> None:
    state = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert scramble(state).tolist() == expected  # of the generator's author, seed 1234567


def test_uniform_numbers_are_uniform_and_independent_of_other_keys() -> None:
    numbers = np.arange(100_000)
    a, b = uniform(numbers, 1), uniform(numbers, 2**63)
    for each in (a, b):
        assert 0 <= each.min() < each.max() < 1
        counts = np.bincount((each * 100).astype(int), minlength=100)
        assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square with 99 degrees of freedom
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.015
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.015


@pytest.mark.slow
def test_a_process_gives_more_than_a_million_images_a_second():
    """600,000 images in shards of 10,000, batches of 8,064."""
    factors = np.maximum(1, np.random.default_rng(0).random(10_000) ** 4 * 8)
    counts, totals = np.full(60, 10_000), np.full(60, factors.sum())
    stream = ReplicationStream(counts, totals, lambda _: factors, 8064, seed=0)
    start = process_time()
    for step in range(stream.steps_per_epoch):
        stream.share(step, 0, 1)
    assert stream.steps_per_epoch * 8064 / (process_time() - start) > 1e6
