"""Examples with labels of any integers -> the support set of an episode."""

import torch
from torch import Tensor

from ..hallucinate import Support


def to_support(features: Tensor, labels: Tensor) -> tuple[Support, Tensor]:
    """Sort labelled examples into classes.

    features: (R, d). labels: (R,) integers in any order, with any gaps.
    Returns the support of the m labels that occur, examples of a class in the order given, and
    those labels, ascending (m,). ValueError where features and labels do not fit each other.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"Features of shape {tuple(features.shape)} and labels of shape "
            f"{tuple(labels.shape)}: give (R, d) and (R,), R at least 1."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"Labels are {labels.dtype}: give integers.")
    classes, owner, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    order = owner.argsort(stable=True)
    owner = owner[order]
    slot = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[owner]
    padded = features.new_zeros(len(classes), int(counts.max()), features.shape[1])
    return Support(padded.index_put((owner, slot), features[order]), counts), classes


def permute(support: Support, order: Tensor) -> Support:
    """The classes in another order (m,)."""
    return Support(support.features[order], support.counts[order])
