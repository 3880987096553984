"""Class means, distances to them, and shrinkage towards a common mean.

Legend: m classes, N slots of a class, d width of a feature, Q queries.

Scores are computed in float32 under autocast too: a distance is a small difference of large sums.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # of a norm: a feature of zeros has cosine 0, and a finite gradient

DISTANCES = ("euclidean", "cosine", "centred_cosine")


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Means of classes: sum of x_i / n_k.

    rows: (R, d), the examples of all classes one after the other, in the order of the mask's True.
    mask: (m, N) bool, at least one True a class. Returns (m, d).
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if rows.is_cuda:  # whose sums by index differ from run to run
        padded = rows.new_zeros(*mask.shape, rows.shape[-1])
        sums = padded.masked_scatter(mask[..., None], rows).sum(1)
    else:  # a tenth of the time
        owner = mask.nonzero()[:, 0]
        sums = rows.new_zeros(len(mask), rows.shape[-1]).index_add(0, owner, rows)
    return sums / mask.sum(1, keepdim=True)


def squared_euclidean(queries: Tensor, prototypes: Tensor) -> Tensor:
    """-||q - mu||^2 + ||q||^2 = 2 q.mu - ||mu||^2, (Q, d), (m, d) -> (Q, m).

    ||q||^2 is the same for every class: the softmax is that of -||q - mu||^2. Measured from the
    middle of the prototypes, so that a large common part of all features costs no digits.
    """
    middle = prototypes.mean(0)
    queries, prototypes = queries - middle, prototypes - middle
    return 2 * queries @ prototypes.T - prototypes.square().sum(1)


def cosine(queries: Tensor, prototypes: Tensor) -> Tensor:
    """cos(q, mu) in -1..1, (Q, d), (m, d) -> (Q, m)."""
    return F.normalize(queries, dim=1, eps=EPSILON) @ F.normalize(prototypes, dim=1, eps=EPSILON).T


def score(
    queries: Tensor, prototypes: Tensor, distance: str, centre: Tensor | None = None
) -> Tensor:
    """How near each query is to each prototype, (Q, d), (m, d) -> (Q, m); more is nearer.

    distance: one of DISTANCES. centre: M (d,), for centred_cosine: cos(q - M, mu - M).
    """
    with torch.autocast(queries.device.type, enabled=False):
        if queries.dtype != torch.float64:
            queries, prototypes = queries.float(), prototypes.float()
        if distance == "euclidean":
            return squared_euclidean(queries, prototypes)
        if distance == "centred_cosine":
            assert centre is not None
            return cosine(queries - centre, prototypes - centre)
        return cosine(queries, prototypes)


def shrink(prototypes: Tensor, centre: Tensor, a: float) -> Tensor:
    """M + a (p - M), (m, d): a = 1 leaves prototypes as they are, a = 0 puts all of them at M."""
    return centre.to(prototypes.dtype).lerp(prototypes, a)
