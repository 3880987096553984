"""The stream over two sets: its ratio, its passes, and that it depends on seed and step alone."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.data import BadImages, train_loader
from common.images import UnreadableImage
from common.sampling import Key
from data_distillation.inputs.mixture import MixtureStream


def draw(stream: MixtureStream, steps: range) -> list[Key]:
    return list(chain.from_iterable(stream.batch(step) for step in steps))


def test_batches_of_16_at_6_to_4_hold_10_10_9_10_9_manual_images() -> None:
    stream = MixtureStream(100, 1000, 16, ratio=[6, 4], seed=0)
    manual = [sum(index < 100 for _, index in stream.batch(step)) for step in range(10)]
    assert manual == [10, 10, 9, 10, 9] * 2
    assert [int(index < 100) for _, index in stream.batch(0)[:10]] == [1, 1, 0, 1, 0] * 2


@pytest.mark.parametrize("ratio", [[3, 2], [8, 2], [4, 6], [7, 3], [150, 600]])
def test_every_window_of_the_ratios_length_holds_its_shares_exactly(ratio: list[int]) -> None:
    stream = MixtureStream(7, 11, 5, ratio=ratio, seed=1)
    manual = torch.tensor([index < 7 for _, index in draw(stream, range(400))]).int()
    a, b = stream.parts
    assert a * ratio[1] == b * ratio[0]
    for length in (a + b, 3 * (a + b)):
        windows = manual.unfold(0, length, 1).sum(1)
        assert (windows == length // (a + b) * a).all()


def test_a_manual_image_comes_where_the_share_of_manual_ones_is_behind() -> None:
    for a, b in ((3, 2), (2, 3), (1, 4), (5, 7)):
        stream = MixtureStream(3, 3, 1, ratio=[a, b], seed=0)
        manual = 0
        for position in range(60):
            behind = manual * (a + b) < (position + 1) * a
            assert (stream.draw(position)[1] < 3) == behind
            manual += behind


def test_each_pass_over_a_set_draws_every_image_once() -> None:
    stream = MixtureStream(7, 5, 4, ratio=[3, 2], seed=3)
    keys = draw(stream, range(70))
    for own in (range(7), range(7, 12)):
        drawn = [key for key in keys if key[1] in own]
        for epoch in range(len(drawn) // len(own)):
            part = drawn[epoch * len(own) : (epoch + 1) * len(own)]
            assert sorted(part) == [(epoch, index) for index in own]
        counts = Counter(index for _, index in drawn)
        assert set(counts.values()) <= {len(drawn) // len(own), -(-len(drawn) // len(own))}
    orders = [[i for e, i in keys if e == epoch and i < 7] for epoch in range(10)]
    assert len(set(map(tuple, orders))) > 5, "each pass has an order of its own"


def test_an_image_that_is_drawn_again_has_another_key_even_within_one_batch() -> None:
    stream = MixtureStream(2, 3, 20, ratio=[3, 2], seed=0)
    keys = draw(stream, range(20))
    assert len(set(keys)) == len(keys) == 400


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def make(seed: int) -> MixtureStream:
        return MixtureStream(50, 70, 16, ratio=[3, 2], seed=seed)

    stream = make(5)
    forward = [stream.batch(step) for step in range(30)]
    assert [stream.batch(step) for step in reversed(range(30))] == forward[::-1]
    assert make(5).batch(23) == forward[23]
    assert make(6).batch(23) != forward[23]
    far = make(5).batch(10**9)
    assert sum(index < 50 for _, index in far) in (9, 10)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_shares_of_all_processes_are_the_batch(world: int) -> None:
    stream = MixtureStream(40, 40, 16, ratio=[3, 2], seed=0, first=[True, False] * 40)
    for step in range(6):
        shares = [stream.share(step, rank, world) for rank in range(world)]
        assert list(chain.from_iterable(shares)) == stream.batch(step)
        assert {len(share) for share in shares} == {16 // world}


def test_images_of_one_shape_lie_together_and_are_those_of_the_plain_stream() -> None:
    shapes = np.random.default_rng(0).random(100) < 0.5
    plain = MixtureStream(60, 40, 16, ratio=[3, 2], seed=0)
    sorted_ = MixtureStream(60, 40, 16, ratio=[3, 2], seed=0, first=shapes)
    for step in range(20):
        keys = sorted_.batch(step)
        assert sorted(keys) == sorted(plain.batch(step))
        flags = [bool(shapes[index]) for _, index in keys]
        assert flags == sorted(flags, reverse=True)


def test_of_an_empty_set_nothing_is_drawn() -> None:
    manual = MixtureStream(9, 0, 6, ratio=[3, 2], seed=0)
    assert sorted(draw(manual, range(3))) == [(e, i) for e in range(2) for i in range(9)]
    automatic = MixtureStream(0, 9, 6, ratio=[3, 2], seed=0)
    assert sorted(draw(automatic, range(3))) == [(e, i) for e in range(2) for i in range(9)]
    alone = MixtureStream(9, 4, 9, ratio=[1, 0], seed=0)
    assert {index for _, index in alone.batch(0)} == set(range(9))


@pytest.mark.parametrize(
    ("counts", "ratio", "batch", "sentence"),
    [
        ((0, 0), [3, 2], 4, "neither set has an image"),
        ((3, 3), [0, 0], 4, "give two whole numbers"),
        ((3, 3), [1], 4, "give two whole numbers"),
        ((3, 3), [-1, 2], 4, "give two whole numbers"),
        ((3, 0), [0, 1], 4, "draws nothing from 3 manual and 0 automatic"),
        ((3, 3), [3, 2], 0, "choose at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    counts: tuple[int, int], ratio: list[int], batch: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        MixtureStream(counts[0], counts[1], batch, ratio=ratio, seed=0)


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="16 cannot be shared by 3 processes"):
        MixtureStream(3, 3, 16, ratio=[3, 2], seed=0).share(0, 0, 3)


class Numbers(Dataset):
    """Item i is (i, a number that its augmentation drew); the images in `bad` cannot be read."""

    def __init__(self, size: int, bad: tuple[int, ...] = ()) -> None:
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        if index in self.bad:
            raise UnreadableImage(f"{index}.jpg")
        return index, torch.rand(())


def test_the_loader_goes_on_where_it_stopped_and_draws_each_repetition_anew() -> None:
    stream = MixtureStream(4, 4, 10, ratio=[3, 2], seed=0)
    whole = list(train_loader(Numbers(8), stream, 0, 6))
    rest = list(train_loader(Numbers(8), stream, 3, 6))
    for (index, drawn), (again, same) in zip(whole[3:], rest, strict=True):
        assert torch.equal(index, again)
        assert torch.equal(drawn, same)
    numbers = torch.cat([drawn for _, drawn in whole])
    assert len(numbers.unique()) == len(numbers) == 60


def test_a_bad_image_is_replaced_by_one_of_its_own_set() -> None:
    stream = MixtureStream(4, 4, 10, ratio=[3, 2], seed=0)
    loader = train_loader(Numbers(8, (3, 7)), stream, 0, 4, bad=BadImages("skip", limit=0.5))
    with pytest.warns(UserWarning, match="skipped"):
        batches = list(loader)
    for indices, _ in batches:
        assert (indices < 4).sum() == 6
        assert not set(indices.tolist()) & {3, 7}
