"""Batch norm that is fixed, for long clips, and batch norm measured over many batches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from ..block import NonLocalBlock


class FrozenNorm(FrozenBatchNorm2d):
    """What batch norm does in evaluation, in training too: x * scale + shift, without gradients.

    torchvision's for any number of axes, and in the precision of x. Scale and shift are buffers, as
    those of the official operator learn nothing either.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) of the same shape and dtype."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        shape = (-1, *[1] * (x.ndim - 2))
        # F.batch_norm would keep x for a gradient of the scale that nobody asks for
        return x * scale.view(shape).to(x.dtype) + shift.view(shape).to(x.dtype)


def freeze_norm(model: nn.Module) -> nn.Module:
    """Put a `FrozenNorm` of the same values in the place of every batch norm; returns the model.

    The norms of non-local blocks stay: their scale starts at 0, so that a frozen one would keep its
    block the identity for ever. The official long clips have blocks without: block.norm=none.
    """
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            fixed = FrozenNorm(child.num_features, child.eps).to(child.weight)
            fixed.load_state_dict(child.state_dict())
            setattr(model, name, fixed)
        elif not isinstance(child, NonLocalBlock):
            freeze_norm(child)
    return model


@torch.no_grad()
def precise_norm(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> None:
    """Set the running statistics of batch norms to mean and variance over all these batches.

    run: runs the model on a batch, such as `lambda clips: model(clips.to(device))`. Each batch is
    normalised by its own statistics, as in training. The variance is that of all values (of the
    batches' variances, and of their means), without Bessel's correction. Batches may differ in
    size. With torch.distributed, the batches of all ranks count; all must call. Raises ValueError
    where there is no batch.
    """
    norms: list[Any] = [
        each
        for each in model.modules()
        if isinstance(each, _BatchNorm) and each.running_mean is not None
    ]
    # Of each norm: values seen, their sum and the sum of their squares, by channel
    sums = [
        each.running_mean.new_zeros(3, each.num_features, dtype=torch.float64) for each in norms
    ]
    training, momenta = [each.training for each in norms], [each.momentum for each in norms]

    def include(number: int) -> Callable[..., None]:
        def hook(norm: Any, inputs: tuple[Tensor], _: Tensor) -> None:
            count = inputs[0].numel() / inputs[0].shape[1]
            mean, var = norm.running_mean.double(), norm.running_var.double()
            square = var * (count - 1) / count + mean**2
            sums[number] += count * torch.stack([torch.ones_like(mean), mean, square])

        return hook

    handles = [each.register_forward_hook(include(number)) for number, each in enumerate(norms)]
    for each in norms:
        each.train()
        each.momentum = 1.0  # so that the running statistics are those of a batch
    try:
        for batch in batches:
            run(batch)
    finally:
        for each, handle, trained, momentum in zip(norms, handles, training, momenta, strict=True):
            handle.remove()
            each.train(trained)
            each.momentum = momentum
    for each, (count, total, squares) in zip(norms, added_over_ranks(sums), strict=True):
        if not count.all():
            raise ValueError("precise batch norm has seen no batch: give it some.")
        mean = total / count
        each.running_mean.copy_(mean)
        each.running_var.copy_((squares / count - mean**2).clamp(min=0))


def share_norms(model: nn.Module) -> None:
    """Give all ranks the running statistics of rank 0, as DDP does before each step.

    After the last step they would differ, and with them what each rank finds in an evaluation.
    """
    if distributed.is_available() and distributed.is_initialized():
        for each in model.modules():
            if isinstance(each, _BatchNorm):
                for value in each.buffers():
                    distributed.broadcast(value, 0)


def added_over_ranks(sums: list[Tensor]) -> list[Tensor]:
    """The sums over all processes; one process: as they are."""
    if sums and distributed.is_available() and distributed.is_initialized():
        flat = torch.cat([each.flatten() for each in sums])
        distributed.all_reduce(flat)
        parts = flat.split([each.numel() for each in sums])
        return [part.view_as(each) for part, each in zip(parts, sums, strict=True)]
    return sums
