"""Counts and averages over all processes: top-k accuracy, weighted means."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common import dist


def topk_correct(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """How many of N examples have their label among the k highest logits, int64 (len(ks),).

    logits: (N, K); labels: (N,), 0..K-1. A k of K or more counts every example, but a row with
    nan never counts.
    """
    own = logits.gather(1, labels[:, None])  # (N, 1)
    others = torch.arange(logits.shape[1], device=logits.device) != labels[:, None]
    better = ((logits >= own) & others).sum(1)  # an equal logit counts against the label
    sound = ~logits.isnan().any(1)
    return torch.stack([((better < k) & sound).sum() for k in ks])


class Accuracy:
    """Top-k accuracy in percent, counted exactly over all batches and processes."""

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        self.ks = tuple(ks)
        self.counts = torch.zeros(len(self.ks) + 1, dtype=torch.int64)  # correct per k, examples

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: logits (N, K), labels (N,)."""
        correct = topk_correct(logits, labels, self.ks).cpu()
        self.counts += torch.cat([correct, torch.tensor([len(labels)])])

    def compute(self) -> dict[str, float]:
        """{"top1": ..., "top5": ...}; nan without examples. Call it in every process."""
        *correct, examples = dist.total(self.counts.to(dist.device())).tolist()
        percent = [100 * c / examples if examples else float("nan") for c in correct]
        return {f"top{k}": p for k, p in zip(self.ks, percent, strict=True)}


class Average:
    """Running mean of a number, weighted (by batch size, say), over all processes."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # weighted values, weights

    def add(self, value: Tensor | float, weight: float = 1) -> None:
        """Count one value with its weight."""
        self.sums += torch.tensor([float(value) * weight, weight], dtype=torch.float64)

    def compute(self) -> float:
        """The mean; nan without values. Call it in every process."""
        total, weight = dist.total(self.sums.to(dist.device())).tolist()
        return total / weight if weight else float("nan")
