"""Which segments of two panoptic maps share how many pixels: all that the metric needs of them.

H x W pixels, B images, K pairs of ids that share at least one pixel. Ids are whole numbers from 0
to 2**24 - 1, what three bytes of a PNG hold. Counts are exact int64.

Segments are connected for the most part, so along the rows an image is a few thousand runs of equal
ids. Finding where one ends compares neighbours, which a processor does for many pixels at once; the
runs are added up, by `bincount` where ids are small, else sorted. Sorting all pixels, as
`numpy.unique` does, or counting them one by one looks at each pixel by itself.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LIMIT = 2**24  # ids are below
COUNTS = 2**16  # up to this many pairs of small ids are counted each by itself
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads keys over hashes
IdMap = np.ndarray | Tensor  # (H, W) or (B, H, W), of any integer type


class Overlaps(NamedTuple):
    """Pairs of ids in rising order of truth, then prediction; each int64 (K,)."""

    truth: np.ndarray
    prediction: np.ndarray
    pixels: np.ndarray


def overlaps(truth: IdMap, prediction: IdMap, *, where: str = "") -> Overlaps:
    """Pixels that each id of `truth` shares with each of `prediction`, both (H, W).

    Tensors on a GPU are counted there. `where` starts the messages, "image 7: " for instance.

    Raises ValueError for shapes that differ or are not (H, W), for numbers that are not whole, and
    for ids below 0 or from 2**24 on.
    """
    _check_shapes(truth, prediction, 2, where)
    return _batch(truth[None], prediction[None], [where])[0]


def batch_overlaps(
    truths: IdMap, predictions: IdMap, *, where: list[str] | None = None
) -> list[Overlaps]:
    """`overlaps` of B pairs of equal size, both (B, H, W); on a GPU in one go.

    where: B starts of the messages. Raises as `overlaps` does.
    """
    names = where or [f"image {i} of the batch: " for i in range(len(truths))]
    _check_shapes(truths, predictions, 3, names[0] if names else "")
    return _batch(truths, predictions, names)


def _batch(truths: IdMap, predictions: IdMap, names: list[str]) -> list[Overlaps]:
    """Of maps (B, H, W) of sound shapes; on a GPU where both are on the same."""
    if (
        isinstance(truths, Tensor)
        and isinstance(predictions, Tensor)
        and truths.device == predictions.device
        and truths.device.type != "cpu"
    ):
        return _batch_on_device(truths, predictions, names)
    pairs = zip(_array(truths), _array(predictions), names, strict=True)
    return [_overlaps(truth, prediction, name) for truth, prediction, name in pairs]


def _overlaps(truth: np.ndarray, prediction: np.ndarray, where: str) -> Overlaps:
    t, p = truth.reshape(-1), prediction.reshape(-1)
    if not t.size:
        return _empty()
    last = _last_of_runs(t, p)
    lengths = np.diff(last, prepend=-1)
    t, p = t[last], p[last]
    most_t, most_p = _largest(t, "the truth", where), _largest(p, "the prediction", where)
    t, p = t.astype(np.int64), p.astype(np.int64)
    if (most_t + 1) * (most_p + 1) <= COUNTS:
        keys = t * (most_p + 1) + p
        sums = np.bincount(keys, lengths)  # in float64, which is exact below 2**53
        keys = np.flatnonzero(sums)
        t, p = np.divmod(keys, most_p + 1)
        return Overlaps(t, p, sums[keys].astype(np.int64))
    keys = t << 24 | p
    # Two rounds: runs of equal 16-bit hashes come together by NumPy's radix sort, some times
    # quicker than sorting 64 bits; what is left, even where hashes collide, is few and sorted well.
    hashes = (keys.view(np.uint64) * _GOLDEN >> np.uint64(48)).astype(np.uint16)
    keys, lengths = _add_up(keys, lengths, np.argsort(hashes, kind="stable"))
    keys, pixels = _add_up(keys, lengths, np.argsort(keys))
    return Overlaps(keys >> 24, keys & LIMIT - 1, pixels)


def _last_of_runs(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Where runs of equal pairs (t, p) end, both (N,); in rising order."""
    changes = np.empty(-(-t.size // 8) * 8, bool)
    changes[t.size - 1 :] = False
    np.not_equal(t[1:], t[:-1], out=changes[: t.size - 1])
    changes[: t.size - 1] |= p[1:] != p[:-1]
    changes[t.size - 1] = True
    # NumPy branches at each element that is set, but not where more than a tenth are, and a branch
    # that cannot be foreseen costs as much as looking at dozens of elements: first the groups of
    # 8 that hold one, then those within.
    groups = changes.view(np.uint64)
    some = np.flatnonzero(groups != 0)
    within = np.flatnonzero(groups[some].view(bool))
    return (some * 8)[within >> 3] + (within & 7)


def _add_up(
    keys: np.ndarray, lengths: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In this order, neighbours of equal key as one, their lengths summed."""
    keys = keys[order]
    change = np.ones(keys.shape, bool)
    np.not_equal(keys[1:], keys[:-1], out=change[1:])
    first = np.flatnonzero(change)
    return keys[first], np.add.reduceat(lengths[order], first)


def _batch_on_device(truths: Tensor, predictions: Tensor, names: list[str]) -> list[Overlaps]:
    """Counts (B, H, W) where the tensors are; the few sums are copied to the CPU."""
    B, size = len(truths), truths[0].numel() if len(truths) else 0
    if B * size == 0:
        return [_empty() for _ in names]
    t, p = truths.reshape(B, size).long(), predictions.reshape(B, size).long()
    change = torch.ones_like(t, dtype=torch.bool)
    change[:, 1:] = (t[:, 1:] != t[:, :-1]) | (p[:, 1:] != p[:, :-1])
    starts = change.view(-1).nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([B * size]))
    image, t, p = starts // size, t.view(-1)[starts], p.view(-1)[starts]
    # One row per kind of run: sorting rows of three is slow, so the three share one number; ids
    # that are out of range get a place of their own and are reported below.
    wrong = (t < 0) | (t >= LIMIT) | (p < 0) | (p >= LIMIT)
    if wrong.any():
        i = int(image[wrong][0])
        _largest(t[image == i].cpu().numpy(), "the truth", names[i])
        _largest(p[image == i].cpu().numpy(), "the prediction", names[i])
    keys, place = torch.unique((image << 48) | (t << 24) | p, return_inverse=True)
    pixels = torch.zeros_like(keys).index_add_(0, place, lengths)
    found, counts = torch.stack([keys, pixels]).cpu().numpy()
    stops = np.searchsorted(found >> 48, np.arange(B + 1))
    parts = [slice(*stops[i : i + 2]) for i in range(B)]
    return [
        Overlaps(found[part] >> 24 & LIMIT - 1, found[part] & LIMIT - 1, counts[part])
        for part in parts
    ]


def _empty() -> Overlaps:
    none = np.zeros(0, np.int64)
    return Overlaps(none, none, none)


def _array(ids: IdMap) -> np.ndarray:
    return ids.cpu().numpy() if isinstance(ids, Tensor) else ids


def _check_shapes(truth: IdMap, prediction: IdMap, dimensions: int, where: str) -> None:
    expected = {2: "(height, width)", 3: "(images, height, width)"}[dimensions]
    for ids, name in ((truth, "truth"), (prediction, "prediction")):
        if ids.ndim != dimensions:
            raise ValueError(f"{where}the {name} has shape {tuple(ids.shape)}: give {expected}.")
        if not _is_whole(ids):
            raise ValueError(f"{where}the {name} is {ids.dtype}: give ids as whole numbers.")
    if truth.shape != prediction.shape:
        raise ValueError(
            f"{where}the prediction has shape {tuple(prediction.shape)}, the truth "
            f"{tuple(truth.shape)}: bring the prediction to the size of the truth (nearest "
            "neighbour)."
        )


def _is_whole(ids: IdMap) -> bool:
    if isinstance(ids, Tensor):
        kind = ids.dtype
        return kind != torch.bool and not kind.is_floating_point and not kind.is_complex
    return np.issubdtype(ids.dtype, np.integer)


def _largest(ids: np.ndarray, name: str, where: str) -> int:
    """The largest of some ids; ValueError where one is out of range."""
    largest = int(ids.max())
    if largest >= LIMIT or ids.min() < 0:
        wrong = int(ids[(ids < 0) | (ids >= LIMIT)][0])
        raise ValueError(
            f"{where}{name} has id {wrong} in its map: ids go from 0 (void) to {LIMIT - 1}."
        )
    return largest
