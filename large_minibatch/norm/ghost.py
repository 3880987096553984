"""Batch normalisation over groups of n images, whatever the batch: Sec. 2.3 of the paper.

With batch normalisation the loss of an image depends on the n images that share its statistics,
so n is part of the loss: it stays 32 while the number of workers k changes. Here one device plays
several workers: every `group` consecutive images of its batch share statistics ("ghost batches").
Outputs and gradients are those of as many separate workers.

    net = convert(torchvision.models.resnet50(), group=32)
    for every optimizer step:
        forward and backward, once or several times (gradient accumulation)
        optimizer.step()
        update_running(net)        # k workers would have updated their buffers once

Legend: N = k * n images, k groups of n; C channels, H x W the map.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import normalise

RUNNING = ("mean", "first", "sequential")
Layer = Callable[..., nn.BatchNorm2d | nn.SyncBatchNorm]


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of (N, C, H, W) that trains on the statistics of `group` images each.

    Parameters, buffers, state dict and evaluation are those of nn.BatchNorm2d.

    group: images that share statistics, in the order of the batch; a smaller batch is one group.
    running: what the groups of one optimizer step add to the running mean and (unbiased) variance:
        "mean": one update by the average of all groups. The update is linear, so this equals k
            workers whose buffers are averaged.
        "first": one update by the first group alone, the paper's first worker.
        "sequential": one update a group, at once; momentum then counts groups, not steps.
        With "mean" and "first" the buffers change in `update_running`, called once a step.
    allow_partial: let the last group be smaller where `group` does not divide the batch.

    ValueError if `group` does not divide the batch; RuntimeError where evaluation would start
    although `update_running` was forgotten.
    """

    pending_mean: Tensor  # (C,) of the groups since the last update
    pending_var: Tensor
    seen_tensor: Tensor  # `seen` in compiled code

    def __init__(
        self,
        num_features: int,
        *,
        group: int = 32,
        running: str = "mean",
        allow_partial: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,  # Sec. 5.1: the old value keeps 0.9
        affine: bool = True,
    ):
        if group < 1:
            raise ValueError(f"group = {group} must be at least 1 image.")
        if running not in RUNNING:
            raise ValueError(f"running = {running!r} is not one of {', '.join(RUNNING)}.")
        super().__init__(num_features, eps, momentum, affine)
        self.group, self.running, self.allow_partial = group, running, allow_partial
        for name in ("pending_mean", "pending_var"):
            self.register_buffer(name, torch.zeros(num_features), persistent=False)
        self.register_buffer("seen_tensor", torch.zeros(()), persistent=False)
        self.seen = 0  # groups since the last update
        self.pending = False  # whether there were any

    def extra_repr(self) -> str:
        """Arguments of nn.BatchNorm2d and ours."""
        return f"{super().extra_repr()}, group={self.group}, running={self.running!r}"

    def train(self, mode: bool = True) -> "GhostBatchNorm2d":
        """Train or evaluate; RuntimeError if statistics of training wait to be used."""
        if not mode and self.pending:
            raise RuntimeError(
                "evaluation would miss the statistics of the last step: call "
                'update_running(model) after optimizer.step(), or use running="sequential".'
            )
        super().train(mode)
        return self

    def forward(self, x: Tensor, add: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """(N, C, H, W) -> the same; `relu(norm(x) + add)` in fewer passes over the memory.

        add: (N, C, H, W), such as the shortcut of a residual block.
        """
        self._check_input_dim(x)
        if not self.training:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
            y = y if add is None else y.add_(add)
            return y.relu_() if relu else y
        group = min(self.group, len(x))
        if len(x) % group and not self.allow_partial:
            raise ValueError(
                f"a batch of {len(x)} is not a multiple of group = {group}: give the norm "
                f"{len(x) // group * group} or {-(-len(x) // group) * group} images at a time, "
                "or set allow_partial=True."
            )
        if (len(x) % group or group) * x.shape[2] * x.shape[3] == 1:
            raise ValueError(f"one value a channel has no variance: {tuple(x.shape)}, {group=}.")
        weight, bias, eps = self.weight, self.bias, self.eps
        if group == len(x) and not torch.compiler.is_compiling():
            mean, var, rate = self._destination()  # the kernel itself records the statistics
            y = F.batch_norm(x, mean, var, weight, bias, True, rate, eps)
            y = y if add is None else y.add_(add)
            return y.relu_() if relu else y
        y, means, variances = normalise(x, add, weight, bias, group=group, eps=eps, relu=relu)
        self._record(means, variances)
        return y

    def _destination(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Where the statistics of one group go: mean, variance, and the weight of the new ones."""
        seen = self.seen
        if self.running == "sequential":
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            return self.running_mean, self.running_var, _rate(self)
        if self.running == "first" and seen:
            return None, None, 0.0
        self.seen, self.pending = seen + 1, True
        return self.pending_mean, self.pending_var, 1 / (seen + 1)

    def _record(self, means: Tensor, variances: Tensor) -> None:
        """Keep the statistics (k, C) of a forward pass, which carry no gradients."""
        if self.running == "sequential":
            for mean, variance in zip(means, variances, strict=True):
                self.pending_mean.copy_(mean)
                self.pending_var.copy_(variance)
                _update([self])
            return
        k = len(means)
        compiled = torch.compiler.is_compiling()
        seen = self.seen_tensor if compiled else self.seen  # a compiler would freeze the number
        if self.running == "mean":
            weight, mean, variance = k / (seen + k), means.mean(0), variances.mean(0)
        else:
            weight, mean, variance = 1.0 * (seen == 0), means[0], variances[0]
        self.pending_mean.lerp_(mean, weight)
        self.pending_var.lerp_(variance, weight)
        if compiled:
            self.seen_tensor += k
        else:
            self.seen += k
        self.pending = True

    def forget(self) -> None:
        """Drop the statistics since the last update, as if their images had never passed."""
        for tensor in (self.pending_mean, self.pending_var, self.seen_tensor):
            tensor.zero_()
        self.seen, self.pending = 0, False


def _rate(norm: GhostBatchNorm2d) -> float:
    """Weight of the new statistics in the running ones; momentum None: all weigh the same."""
    assert norm.num_batches_tracked is not None
    return 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum


def update_running(model: nn.Module) -> None:
    """Let every ghost norm of the model update its running buffers: once per optimizer step.

    A step of k workers consists of one or several forward passes here; each worker would have
    updated its buffers once. Other norms and running="sequential" update themselves.
    """
    modules = (m for m in model.modules() if isinstance(m, GhostBatchNorm2d))
    _update([norm for norm in modules if norm.pending])


@torch.no_grad()
def _update(norms: list[GhostBatchNorm2d]) -> None:
    """One update of the norms' buffers by their pending statistics; a few calls for all norms."""
    if not norms:
        return
    torch._foreach_add_(
        [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None], 1
    )
    rates = [_rate(norm) for norm in norms]
    for kind in ("mean", "var"):
        pending = [getattr(norm, f"pending_{kind}") for norm in norms]
        torch._foreach_lerp_([getattr(norm, f"running_{kind}") for norm in norms], pending, rates)
        torch._foreach_zero_(pending)
    torch._foreach_zero_([norm.seen_tensor for norm in norms])
    for norm in norms:
        norm.seen, norm.pending = 0, False


def norm_layer(
    norm: str, *, group: int = 32, running: str = "mean", allow_partial: bool = False
) -> Layer:
    """The constructor of a batch norm, which takes the number of channels.

    norm: "ghost": groups of `group` images; "worker": nn.BatchNorm2d, all images of a process;
        "sync": nn.SyncBatchNorm, all images of all processes.
    """
    match norm:
        case "ghost":
            return partial(
                GhostBatchNorm2d, group=group, running=running, allow_partial=allow_partial
            )
        case "worker":
            return nn.BatchNorm2d
        case "sync":
            return nn.SyncBatchNorm
    raise ValueError(f"The norm {norm!r} is not one of ghost, worker, sync.")


def convert(
    model: nn.Module,
    group: int = 32,
    *,
    kind: str = "ghost",
    running: str = "mean",
    allow_partial: bool = False,
) -> nn.Module:
    """The model with its 2-D batch norms replaced in place, see `norm_layer`.

    Weights and names are kept. A model that is a batch norm itself is returned replaced, not
    changed.
    """
    layer = norm_layer(kind, group=group, running=running, allow_partial=allow_partial)
    return _replace(model, layer)


def _replace(model: nn.Module, layer: Layer) -> nn.Module:
    if isinstance(model, nn.BatchNorm2d | nn.SyncBatchNorm):
        return _like(model, layer)
    for name, child in model.named_children():
        model.add_module(name, _replace(child, layer))
    return model


def _like(norm: nn.BatchNorm2d | nn.SyncBatchNorm, layer: Layer) -> nn.Module:
    """A `layer` with the parameters (the same objects), buffers and mode of `norm`."""
    if norm.running_mean is None:
        raise ValueError("a batch norm with track_running_stats=False cannot be converted.")
    new = layer(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
    new.to(norm.running_mean.device, norm.running_mean.dtype)
    new.load_state_dict(norm.state_dict())
    new.weight, new.bias = norm.weight, norm.bias
    return new.train(norm.training)
