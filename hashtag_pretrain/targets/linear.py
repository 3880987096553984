"""A linear classifier on features that are kept: softmax regression by L-BFGS.

n images of D features in K classes; m of them are this process's. It minimises the mean
cross-entropy + decay / 2 |W|^2; scikit-learn's C is 1 / (n decay). Each process keeps the features
of its own images and the gradients are summed, so that all take the same steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from common import dist

BLOCK = 16_384  # rows of features at a time


@dataclass(frozen=True)
class Linear:
    """Logits x W^T + b; weight (K, D), bias (K,), as for the features before standardisation."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        weight, bias = self.weight.to(features.device), self.bias.to(features.device)
        return F.linear(features.to(weight.dtype), weight, bias)


@dataclass
class Features:
    """The views of this process: values float32 (m, D), labels (m,), numbers of the images (m,)."""

    values: Tensor
    labels: Tensor
    images: Tensor

    def rows(self, images: Tensor) -> Tensor:
        """Which rows are views of the images numbered `images`."""
        return torch.isin(self.images, images.to(self.images.device)).nonzero()[:, 0]

    def blocks(self, rows: Tensor, size: int = BLOCK) -> Iterator[tuple[Tensor, Tensor]]:
        """Values and labels of the rows on this process's device, in its floating-point type."""
        device = dist.device()
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        for part in rows.split(size):
            yield self.values[part].to(device, dtype), self.labels[part].to(device)


def make_problem(
    features: Features, rows: Tensor, classes: int, decay: float, *, standardise: bool
) -> "Problem":
    """The problem in K classes; every process calls it with its rows."""
    mean, std = statistics(features, rows)
    if not standardise:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    return Problem(features, rows, classes, decay, mean, std)


def statistics(features: Features, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) over the rows of all processes; 1 for a constant feature."""
    D = features.values.shape[1]
    device = dist.device()
    sums = torch.zeros(2, D, dtype=torch.float64, device=device)
    count = dist.total(torch.tensor(len(rows), dtype=torch.float64, device=device))
    for values, _ in features.blocks(rows):
        sums[0] += values.double().sum(0)
    mean = dist.total(sums[0]) / count
    for values, _ in features.blocks(rows):  # a second pass: no difference of large squares
        sums[1] += (values.double() - mean).square().sum(0)
    std = (dist.total(sums[1]) / count).sqrt()
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    return mean.to(dtype), std.to(dtype)


@dataclass(frozen=True)
class Problem:
    """Mean cross-entropy + decay / 2 |W|^2 of the features of `rows`, less `mean`, by `std`."""

    features: Features
    rows: Tensor
    classes: int
    decay: float
    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def count(self) -> int:
        """Rows over all processes."""
        return int(dist.total(torch.tensor(len(self.rows), device=dist.device())))

    def as_given(self, weight: Tensor, bias: Tensor) -> Linear:
        """The classifier of features that are not standardised."""
        weight = weight / self.std
        return Linear(weight, bias - weight @ self.mean)

    def gradient(self, weight: Tensor, bias: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over these rows of all processes: loss, its gradients (K, D) and (K,); no decay."""
        loss, of_weight, of_bias = weight.new_zeros(()), 0 * weight, 0 * bias
        for values, labels in self.features.blocks(rows):
            x = (values - self.mean) / self.std
            logits = F.linear(x, weight, bias).log_softmax(1)
            loss -= logits.gather(1, labels[:, None]).sum()
            residual = logits.exp()  # softmax - target, (rows, K)
            residual[torch.arange(len(labels), device=labels.device), labels] -= 1
            of_weight += residual.T @ x
            of_bias += residual.sum(0)
        sums = dist.total(torch.cat([loss[None], of_weight.flatten(), of_bias]))
        return sums[0], sums[1 : 1 + weight.numel()].view_as(weight), sums[-len(bias) :]


def solve_lbfgs(problem: Problem, iterations: int) -> Linear:
    """The classifier at the minimum, or after `iterations`."""
    K, D = problem.classes, len(problem.mean)
    count, decay = problem.count(), problem.decay

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(flat).to(problem.mean).view(K, D + 1)
        weight, bias = both[:, :D].contiguous(), both[:, D].contiguous()
        loss, of_weight, of_bias = problem.gradient(weight, bias, problem.rows)
        value = loss.double() / count + decay / 2 * weight.double().square().sum()
        slope = torch.cat([of_weight / count + decay * weight, of_bias[:, None] / count], 1)
        return value.item(), slope.double().flatten().cpu().numpy()

    found = minimize(
        objective,
        np.zeros(K * (D + 1)),
        jac=True,
        method="L-BFGS-B",
        # As scikit-learn: the end is a gradient of 0, not a loss that falls slowly
        options={
            "maxiter": iterations,
            "maxfun": 2 * iterations,
            "gtol": 1e-6,
            "ftol": 64 * np.finfo(float).eps,
        },
    )
    both = torch.from_numpy(found.x).to(problem.mean).view(K, D + 1)
    return problem.as_given(both[:, :D], both[:, D])
