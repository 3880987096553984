"""Held-out images, nested subsets and noise in the tags: `hashtag_pretrain/shards/subsets.py`."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hashtag_pretrain.shards.index import Tags
from hashtag_pretrain.shards.order import scramble
from hashtag_pretrain.shards.subsets import excluded, held_out, nested, noisy

HASHES = scramble(np.arange(100_000) + 7)
MARGINAL = np.arange(1, 21) ** -1.0
MARGINAL /= MARGINAL.sum()


def single(images: int, seed: int = 0) -> Tags:
    """One tag each, by the marginal."""
    ids = np.random.default_rng(seed).choice(20, images, p=MARGINAL)
    return Tags(ids.astype(np.int32), np.arange(images + 1))


def several(images: int) -> Tags:
    """0 to 3 tags each."""
    rng = np.random.default_rng(1)
    rows = [np.unique(rng.choice(20, rng.integers(0, 4), p=MARGINAL)) for _ in range(images)]
    offsets = np.cumsum([0, *map(len, rows)])
    return Tags(np.concatenate(rows).astype(np.int32), offsets)


def rows_of(tags: Tags) -> list[list[int]]:
    return [tags.row(i).tolist() for i in range(len(tags.offsets) - 1)]


@pytest.mark.parametrize("part", [held_out, nested])
@pytest.mark.parametrize("share", [0.001, 0.03, 0.5])
def test_a_part_has_about_its_share_of_the_images(part: Any, share: float) -> None:
    sigma = (share * (1 - share) / len(HASHES)) ** 0.5
    assert abs(part(HASHES, share).mean() - share) < 4 * sigma
    assert not part(HASHES, 0).any()
    assert part(HASHES, 1).all()


def test_smaller_parts_lie_in_larger_ones() -> None:
    for part in (held_out, nested):
        parts = [part(HASHES, share) for share in (0.001, 0.01, 0.1, 0.4)]
        for small, large in pairwise(parts):
            assert (small <= large).all()
            assert small.sum() < large.sum()


def test_the_place_of_an_image_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(HASHES))
    for part in (held_out, nested):
        assert (part(HASHES[order], 0.1) == part(HASHES, 0.1)[order]).all()


def test_what_is_held_out_and_what_is_in_a_subset_are_independent() -> None:
    both = held_out(HASHES, 0.2) & nested(HASHES, 0.3)
    assert both.mean() == pytest.approx(0.06, abs=0.004)


def test_keys_of_a_list_are_excluded() -> None:
    assert excluded(["a/1", "b", "c.d"], ["b", "x"]).tolist() == [False, True, False]
    assert excluded(["a"], []).tolist() == [False]
    assert excluded([], ["a"]).shape == (0,)


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_the_share_of_changed_tags_is_p_less_the_draws_of_the_same(p: float) -> None:
    tags = single(100_000)
    changed = (noisy(tags, HASHES, p, MARGINAL).ids != tags.ids).mean()
    expected = p * (1 - (MARGINAL**2).sum())
    assert abs(changed - expected) < 4 * (expected * (1 - expected) / 100_000) ** 0.5


def test_noise_preserves_how_often_each_tag_occurs() -> None:
    tags = single(100_000)
    for p in (0.25, 1.0):
        noise = noisy(tags, HASHES, p, 7 * MARGINAL)
        counts = np.bincount(noise.ids, minlength=20)
        expected = 100_000 * MARGINAL
        assert ((counts - expected) ** 2 / expected).sum() < 44  # 19 degrees of freedom, p < 0.001
        changed = tags.ids != noise.ids  # their tags are no function of what they were
        assert abs(np.corrcoef(tags.ids[changed], noise.ids[changed])[0, 1]) < 0.1


def test_no_noise_leaves_the_tags_alone() -> None:
    tags = several(500)
    assert rows_of(noisy(tags, HASHES[:500], 0, MARGINAL)) == rows_of(tags)


def test_noise_is_a_property_of_the_image_and_the_seed() -> None:
    tags = several(500)
    rows = rows_of(noisy(tags, HASHES[:500], 0.5, MARGINAL, seed=3))
    assert rows_of(noisy(tags, HASHES[:500], 0.5, MARGINAL, seed=3)) == rows
    assert rows_of(noisy(tags, HASHES[:500], 0.5, MARGINAL, seed=4)) != rows
    shard = Tags(tags.ids[tags.offsets[200] :], tags.offsets[200:] - tags.offsets[200])
    assert rows_of(noisy(shard, HASHES[200:500], 0.5, MARGINAL, seed=3)) == rows[200:]


def test_more_noise_changes_what_less_noise_changed_and_more() -> None:
    tags = single(2000)
    low, high = (noisy(tags, HASHES[:2000], p, MARGINAL).ids for p in (0.2, 0.6))
    changed = low != tags.ids
    assert (high[changed] == low[changed]).all()
    assert (high != tags.ids).sum() > 2 * changed.sum()


def test_noisy_tags_are_sets_and_no_image_gains_or_loses_all() -> None:
    tags = several(3000)
    noise = noisy(tags, HASHES[:3000], 0.7, MARGINAL)
    assert noise.ids.dtype == np.int32
    assert noise.offsets.dtype == np.int64
    for before, after in zip(rows_of(tags), rows_of(noise), strict=True):
        assert after == sorted(set(after))
        assert min(1, len(before)) <= len(after) <= len(before)


def test_tags_that_never_occur_are_never_drawn() -> None:
    tags = single(5000)
    marginal = np.zeros(20)
    marginal[[3, 8]] = 1, 3
    noise = noisy(tags, HASHES[:5000], 1, marginal)
    assert set(noise.ids.tolist()) == {3, 8}
    assert (noise.ids == 8).mean() == pytest.approx(0.75, abs=0.03)


def test_shares_outside_of_0_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share of 1\.5"):
        held_out(HASHES, 1.5)
    with pytest.raises(ValueError, match=r"share of -1"):
        nested(HASHES, -1)
    with pytest.raises(ValueError, match=r"noise is 2"):
        noisy(single(3), HASHES[:3], 2, MARGINAL)
