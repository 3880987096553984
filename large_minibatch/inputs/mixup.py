"""Mixup (Zhang et al., arXiv 1710.09412), which the paper does not use: off by default."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mix(images: Tensor, labels: Tensor, alpha: float, classes: int) -> tuple[Tensor, Tensor]:
    """Each image (N, 3, H, W) blended with another one of its batch, and its targets.

    labels: int64 (N,). The share is drawn once a batch from Beta(alpha, alpha). Targets are
    probabilities (N, classes), or with alpha = 0 the labels as they are.
    """
    if alpha == 0:
        return images, labels
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(len(labels)).to(labels.device)
    own = F.one_hot(labels, classes).to(images.dtype)
    return images.lerp(images[other], 1 - share), own.lerp(own[other], 1 - share)
