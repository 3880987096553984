"""Auxiliary losses of the benchmark's trunks, which want small gradients of the classifier.

Hariharan and Girshick, 1606.02819, Sec. 3.1. B images, K classes, features of width d, all float32:
logits (B, K) of a linear classifier, labels int64 (B,), features (B, d) that it read.
"""

import torch.nn.functional as F
from torch import Tensor

AUX_WEIGHTS = {"sgm": 0.02, "batch_sgm": 5.0, "l2": 0.03}  # of ResNet-10; sgm 0.005 of ResNet-50


def sgm(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Squared gradient magnitude: the mean over images of |p - y|^2 |x|^2.

    That is the squared norm of the gradient of one image's cross-entropy in the weights.
    """
    return (errors(logits, labels).square().sum(1) * features.square().sum(1)).mean()


def batch_sgm(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """The same of the batch's mean cross-entropy: |(p - y)^T x / B|^2."""
    return (errors(logits, labels).T @ features / len(labels)).square().sum()


def l2(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Half the mean of |x|^2; takes what the others take."""
    return features.square().sum() / (2 * len(features))


def errors(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K): probabilities less the one-hot labels."""
    return logits.softmax(1) - F.one_hot(labels, logits.shape[1])


def auxiliary(kind: str, logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """The loss of that name."""
    losses = {"sgm": sgm, "batch_sgm": batch_sgm, "l2": l2}
    return losses[kind](logits.float(), labels, features.float())
