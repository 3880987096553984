"""Whose batch-norm statistics evaluation uses: the first worker's, the average, or precise ones.

Every worker keeps running statistics of its own images alone (Sec. 2.3), so the buffers differ
between the processes. Call one of these on all processes before evaluating; afterwards the buffers
are the same everywhere. Parameters are never touched. Without torch.distributed there is one
process, and the first two do nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .ghost import GhostBatchNorm2d

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def norms(model: nn.Module) -> list[Norm]:
    """The model's batch norms that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, Norm) and m.running_mean is not None]


def broadcast_first(model: nn.Module) -> None:
    """Give every process the buffers of the first, as DistributedDataParallel does."""
    if not _several():
        return
    for norm in norms(model):
        for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked):
            if buffer is not None:
                dist.broadcast(buffer, 0)


def average(model: nn.Module) -> None:
    """Give every process the average of all processes' running means and variances.

    Running averages are linear: it is as if every update had used the mean over all workers.
    """
    if not _several():
        return
    pairs = [(norm.running_mean, norm.running_var) for norm in norms(model)]
    statistics = [tensor for pair in pairs for tensor in pair if tensor is not None]
    flat = torch.cat([tensor.double() for tensor in statistics])
    dist.all_reduce(flat)
    means = (flat / dist.get_world_size()).split([len(tensor) for tensor in statistics])
    for tensor, mean in zip(statistics, means, strict=True):
        tensor.copy_(mean)


@dataclass
class _Population:
    """Count, mean (C,) and sum of squared deviations (C,) of all values seen, in float64."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def include(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        """Add the values of a norm's input (N, C, ...); a forward pre-hook."""
        x = inputs[0].detach()
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        x = x if x.dtype == torch.float64 else x.float()
        mean = x.mean(dims)
        deviations = x - mean.view(shape)
        rest = deviations.mean(dims)  # what rounding left of the mean
        count = x.numel() / x.shape[1]
        mean = mean.double() + rest
        squares = deviations.square_().sum(dims).double() - count * rest.double() ** 2
        total = self.count + count
        shift = mean - self.mean
        self.squares += squares + shift**2 * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total


@torch.no_grad()
def precise(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by those of all images of all processes' batches.

    batches: images, (N, 3, H, W) each, on the model's device, augmented as in training; some 200
        batches. N may differ, also between processes: sums are reduced, not means.

    The batches pass in training mode, normalised in groups as in training. Every norm gets the mean
    and the (population) variance of all values that reached it. ValueError without any batch.
    """
    layers = norms(model)
    modes = {module: module.training for module in model.modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    populations, hooks = [], []
    for norm in layers:
        assert norm.running_mean is not None
        zero = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        populations.append(_Population(zero.new_zeros(()), zero.clone(), zero.clone()))
        hooks.append(norm.register_forward_pre_hook(populations[-1].include))
    try:
        model.train()
        for images in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
        for module, mode in modes.items():
            if isinstance(module, GhostBatchNorm2d):
                module.forget()
            module.training = mode
    for norm, population in zip(layers, populations, strict=True):
        _replace(norm, population)


def _replace(norm: Norm, population: _Population) -> None:
    """Put the statistics of all processes' populations into the norm's buffers."""
    count, mean, squares = population.count, population.mean, population.squares
    if _several():
        sums = torch.cat([count[None], count * mean])
        dist.all_reduce(sums)
        total, total_mean = sums[0], sums[1:] / sums[0]
        squares = squares + count * (mean - total_mean) ** 2
        dist.all_reduce(squares)
        count, mean = total, total_mean
    if not count:
        raise ValueError("precise statistics need at least one batch of images; there was none.")
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(squares / count)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
