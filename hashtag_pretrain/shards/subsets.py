"""Parts of a data set and noise in its tags, by the images' keys: the same in every run.

Hashes are 64 bits of each image's key, uint64 (n,), as the index has them. Whatever is drawn here
is a property of the image: neither its shard nor its place nor the epoch matters.
"""

from collections.abc import Collection, Sequence

import numpy as np

from .index import Tags
from .order import scramble, seed_of, uniform

_HELD_OUT, _NESTED, _NOISE = 101, 102, 103  # salts, so that the three are independent


def held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Images of the validation set of tags, about this share of all; bool (n,)."""
    return _below(hashes, share, _HELD_OUT)


def nested(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """About this fraction of the images, bool (n,); a smaller fraction is a part of a larger."""
    return _below(hashes, fraction, _NESTED)


def _below(hashes: np.ndarray, share: float, salt: int) -> np.ndarray:
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} of the images: choose 0 to 1")
    return uniform(hashes, seed_of(salt)) < share


def excluded(keys: Sequence[str], listed: Collection[str]) -> np.ndarray:
    """Images that a list names by key, such as duplicates of test images; bool (n,)."""
    listed = frozenset(listed)
    return np.fromiter((key in listed for key in keys), bool, len(keys))


def noisy(
    tags: Tags, hashes: np.ndarray, p: float | np.ndarray, marginal: np.ndarray, *, seed: int = 0
) -> Tags:
    """Tags of which each was replaced, with probability `p`, by a draw from all tags (Fig. 3).

    p: for all images, or (n,) for each. marginal: how often each tag occurs, (V,), of any sum. The
    same seed gives an image the same tags in every epoch.
    """
    lengths = np.diff(tags.offsets)
    share = np.broadcast_to(p, lengths.shape)
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"noise is {p}: choose a probability from 0 to 1")
    if not share.any():
        return tags
    rows = np.repeat(np.arange(len(lengths)), lengths)
    slots = scramble(hashes)[rows] + scramble(
        tags.ids + 1
    )  # a number for (image, tag), modulo 2^64
    edges = np.cumsum(marginal, dtype=np.float64)
    draws = uniform(slots, seed_of(_NOISE, seed, 1)) * edges[-1]
    other = np.searchsorted(edges, draws, "right").clip(max=len(edges) - 1)
    changed = uniform(slots, seed_of(_NOISE, seed, 0)) < share[rows]
    # Unstated: a draw that the image has already; its tags stay a set, which is then smaller.
    pairs = np.unique(rows * len(edges) + np.where(changed, other, tags.ids))
    counts = np.bincount(pairs // len(edges), minlength=len(lengths))
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return Tags((pairs % len(edges)).astype(np.int32), offsets)
