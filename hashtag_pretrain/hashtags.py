"""Learning from hashtags: the loss over an image's tags, and how often an image is drawn.

    loss          L = -1/k sum over the image's k tags of log softmax(z)_i        Sec. 2
    replication   r(h) = max(1, phi(t / f(h))),  r(I) = max over its tags of r(h)     Sec. 2

z are the logits of an image, f(h) is the share of the images that have tag h; phi(x) is 1
(natural), sqrt(x) (square root, the paper's choice) or x (uniform). Image I stands r(I) times in
the list that an epoch goes through; t sets the length of the list. The larger t, the more is
repeated; at the largest f, "uniform" gives images of one tag each the same number for every tag.

Shapes: B images of a batch, V tags of the vocabulary. `tags` of a batch (B, kmax) int64: ids
0..V-1 in any order, padded by -1; a row is a set of at least one tag. Tags of n images of a data
set: ids (T,) and offsets (n + 1,), image i having ids[offsets[i] : offsets[i + 1]].

This file needs PyTorch and NumPy alone.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RULES = ("natural", "square_root", "uniform")
LENGTHS = ((1.28e6, 1.28e8), (3.5e9, 7e9))  # (images of the data set, images processed), Sec. 2


# The loss


def hashtag_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Mean over the images of -1/k sum log softmax(z)_i over their k tags; a scalar.

    The target puts 1/k on each tag, so that this is logsumexp(z) minus the mean of the k logits;
    the dense target (B, V) is never built. Half-precision logits are summed in float32. For faulty
    rows see `check_tags`.
    """
    logits, tags, faulty = _prepare(logits, tags)
    own, given = _gather(logits.log_softmax(1), tags)  # one kernel; logsumexp would be four
    loss = -own.sum(1) / given.sum(1)
    return loss.masked_fill(faulty, torch.nan).mean()


def sigmoid_loss(logits: Tensor, tags: Tensor, *, over: str = "mean") -> Tensor:
    """A yes-or-no question for each of the V tags, the paper's ablation; a scalar.

    over: "sum" or "mean" of the V questions of an image; the mean over the images is returned.
    """
    if over not in ("sum", "mean"):
        raise ValueError(f"over is {over!r}: choose 'sum' or 'mean' over the tags")
    logits, tags, faulty = _prepare(logits, tags)
    own, _ = _gather(logits, tags)
    # -log sigmoid(-z) for every tag; a "yes" has z less: -log sigmoid(z) = -log sigmoid(-z) - z.
    loss = -F.logsigmoid(-logits).sum(1) - own.sum(1)
    if over == "mean":
        loss = loss / logits.shape[1]
    return loss.masked_fill(faulty, torch.nan).mean()


def prior_bias(frequencies: Tensor) -> Tensor:
    """Biases (V,) with which the sigmoid at first answers f(h) (V,) for every image."""
    # Differs: shares of 0 and 1 would give infinite biases.
    return frequencies.clamp(1e-6, 1 - 1e-6).logit()


def check_tags(tags: Tensor, vocabulary: int) -> None:
    """Refuse rows of tags (B, kmax) without a tag, with one twice or outside 0..vocabulary - 1.

    The losses do so on the CPU. A GPU would have to be waited for, so there (and in compiled code)
    a faulty row makes the loss NaN: check a batch here before it goes to the GPU.
    """
    faulty = _find_faults(tags, vocabulary)
    if not faulty.any():
        return
    row = int(faulty.nonzero()[0])
    given = tags[row][tags[row] != -1].tolist()
    wrong = [tag for tag in given if not 0 <= tag < vocabulary]
    if not given:
        problem = "has no tag: leave such images out of the data set"
    elif wrong:
        problem = f"names tag {wrong[0]} that is outside a vocabulary of {vocabulary} tags"
    else:
        twice = next(tag for tag in given if given.count(tag) > 1)
        problem = f"names tag {twice} twice: the tags of an image are a set"
    raise ValueError(f"row {row} {problem}")


def _find_faults(tags: Tensor, vocabulary: int) -> Tensor:
    """Rows (B,) bool that the losses are not defined for."""
    ordered = tags.sort(1).values
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
    outside = ((tags < -1) | (tags >= vocabulary)).any(1)
    return twice | outside | (tags == -1).all(1)


def _prepare(logits: Tensor, tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of at least single precision, tags that can be looked up, faulty rows (B,) bool."""
    if logits.dim() != 2 or tags.dim() != 2 or len(logits) != len(tags):
        raise ValueError(
            f"logits {tuple(logits.shape)} and tags {tuple(tags.shape)}: give (B, V) and (B, kmax)"
        )
    vocabulary = logits.shape[1]
    if tags.device.type == "cpu" and not torch.compiler.is_compiling():
        check_tags(tags, vocabulary)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits, tags.clamp(-1, vocabulary - 1), _find_faults(tags, vocabulary)


def _gather(logits: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, kmax) of the tags, 0 at the padding, and bool (B, kmax) that says where it is."""
    given = tags >= 0
    return torch.where(given, logits.gather(1, tags.clamp(min=0)), 0.0), given


def dense_targets(tags: Tensor, vocabulary: int) -> Tensor:
    """Targets (B, V) float32 with 1/k on each tag: what others train with, to compare."""
    check_tags(tags, vocabulary)
    given = tags >= 0
    share = given / given.sum(1, keepdim=True)  # (B, kmax)
    targets = torch.zeros(len(tags), vocabulary, device=tags.device)
    return targets.scatter_add_(1, tags.clamp(min=0), share)


def dense_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with targets (B, V) whose rows sum to 1; a scalar, equal to `hashtag_loss`."""
    total = targets.sum(1)
    wrong = (total - 1).abs() > 1e-3
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"row {row} of the targets sums to {float(total[row]):g}: give 1/k to each of k tags"
        )
    return F.cross_entropy(logits, targets)


# Held-out tags


def hits(logits: Tensor, tags: Tensor, k: int) -> Tensor:
    """Whether any tag of an image is among its `k` highest logits; bool (B,)."""
    return _find(logits, tags, k).any(1)


def recall(logits: Tensor, tags: Tensor, k: int) -> Tensor:
    """Share of an image's tags that are among its `k` highest logits; float32 (B,)."""
    return _find(logits, tags, k).sum(1) / (tags >= 0).sum(1)


def _find(logits: Tensor, tags: Tensor, k: int) -> Tensor:
    """Whether each tag is among the `k` highest logits; bool (B, kmax), false at the padding."""
    top = logits.topk(min(k, logits.shape[1])).indices
    return (tags[:, :, None] == top[:, None, :]).any(2)


# Replication


def tag_factors(
    frequencies: np.ndarray, threshold: float, rule: str, *, most: float = np.inf
) -> np.ndarray:
    """r(h) = max(1, phi(t / f(h))) of each tag, float64 (V,); 1 for a tag without images.

    frequencies: f(h) (V,). threshold: t; the paper's "natural" has no use for it. most: cap on
    r(h); rare tags have few images, which uniform sampling draws thousands of times.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}: choose natural, square_root or uniform")
    frequencies = np.asarray(frequencies, np.float64)
    if not ((frequencies >= 0) & (frequencies <= 1)).all():
        raise ValueError("a frequency is the share of the images with a tag: give 0 to 1")
    if rule == "natural":
        return np.ones_like(frequencies)
    if not 0 < threshold < np.inf:
        raise ValueError(f"threshold is {threshold}: choose more than 0, such as the largest f")
    # Without images nothing is repeated, so the factor is that of a tag in every image.
    factors = threshold / np.where(frequencies > 0, frequencies, np.inf)
    if rule == "square_root":
        factors = np.sqrt(factors)
    return np.clip(factors, 1, max(1, most))


def image_factors(factors: np.ndarray, tags: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """r(I) of n images, float64 (n,): the largest factor of their tags; 0 without tags (dropped).

    factors: r(h) (V,). tags: ids (T,), offsets (n + 1,).
    """
    ids, offsets = tags
    if len(ids) and ids.max() >= len(factors):
        raise ValueError(f"tag {ids.max()} is outside the vocabulary of {len(factors)} tags")
    tagged = np.diff(offsets) > 0
    result = np.zeros(len(tagged))
    if tagged.any():
        result[tagged] = np.maximum.reduceat(factors[ids], offsets[:-1][tagged])
    return result


def find_threshold(
    length: float, measure: Callable[[float], float], frequencies: np.ndarray
) -> float:
    """The t with which the list is `length` images long, to within 0.1 %.

    measure: expected length of the list (the sum of r(I) over all images) by threshold; it grows
    with t. frequencies: f(h) (V,), below the smallest of which nothing is repeated.
    """
    if not (frequencies > 0).any():
        raise ValueError("no tag has an image: look at the vocabulary")
    low = float(frequencies[frequencies > 0].min())
    shortest = measure(low)
    if length < shortest * (1 - 1e-3):
        raise ValueError(
            f"a list of {length:g} images is shorter than that of each image once, {shortest:g}: "
            "ask for a longer one, or train on a subset"
        )
    high = low
    while measure(high) < length:
        high *= 4
        if high > 1e12:  # with sampling by square roots a factor of at least 10^6
            raise ValueError(
                f"no threshold gives a list of {length:g} images: choose the square_root or the "
                "uniform rule, a higher cap or a shorter list"
            )
    while high > low * (1 + 1e-12):  # the length is continuous in t
        middle = (low * high) ** 0.5
        found = measure(middle)
        if abs(found - length) < 5e-4 * length:
            return middle
        low, high = (middle, high) if found < length else (low, middle)
    return high


# The length of a run


def images_processed(images: int) -> int:
    """Images that a run on `images` unique ones processes: the more data, the fewer epochs.

    Linear between 100 epochs of ImageNet and 2 epochs of 3.5 billion images (Sec. 2).
    # Unstated: the two ends to the image; see `LENGTHS`.
    """
    if images < 1:
        raise ValueError(f"{images} images: give at least 1")
    (small, low), (large, high) = LENGTHS
    # Unstated: sets outside; the epochs of the nearer end.
    if images <= small:
        return round(images * low / small)
    if images >= large:
        return round(images * high / large)
    return round(low + (high - low) * (images - small) / (large - small))
