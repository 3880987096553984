"""The arithmetic of ghost batch norm: relu(norm(x) + add), each group by its own statistics.

Eagerly it is an operation of its own, with the two ways of computing that are fastest on a CPU:

- group by group with PyTorch's kernels, where the data lies. The group is still in the processor's
  cache when the sum and the ReLU reach it.
- all groups at once with sums and products, where there are few channels in channels_last, since
  PyTorch's kernels then work on short rows.

A compiler gets the plain formula.

Legend: N = k * n images, k groups of n (the last may be smaller); C channels, H x W the map.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROW = 64  # floats; shorter rows of channels are put together
Result = tuple[Tensor, Tensor, Tensor]  # y (N, C, H, W), means, unbiased variances (k, C)


def normalise(
    x: Tensor,
    add: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    group: int,
    eps: float,
    relu: bool,
) -> Result:
    """Batch norm of every `group` consecutive images, then `+ add` and ReLU if asked for.

    x, add (N, C, H, W) in any layout and floating dtype; weight, bias (C,), both or neither.
    Returns y like x, and each group's mean and unbiased variance (k, C), which carry no gradients.
    """
    if torch.compiler.is_compiling():
        return compose(x, add, weight, bias, group, eps, relu)
    return _GhostNorm.apply(x, add, weight, bias, group, eps, relu)


def compose(
    x: Tensor,
    add: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    eps: float,
    relu: bool,
) -> Result:
    """The formula itself, which a compiler turns into few passes."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    whole = len(x) // group * group
    pieces, statistics = [], []
    for part, k in ((x[:whole], whole // group), (x[whole:], 1)):
        if not len(part):
            continue
        groups = part.unflatten(0, (k, -1)).to(dtype)  # (k, n, C, H, W)
        var, mean = torch.var_mean(groups, (1, 3, 4), correction=0, keepdim=True)
        pieces.append(((groups - mean) * (var + eps).rsqrt()).flatten(0, 1))
        m = groups[0, :, 0].numel()
        unbiased = var * (m / (m - 1))
        statistics.append((mean.detach().view(k, -1), unbiased.detach().view(k, -1)))
    y = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if weight is not None and bias is not None:
        y = y * weight[:, None, None] + bias[:, None, None]
    y = y if add is None else y + add
    means, variances = (torch.cat(s) for s in zip(*statistics, strict=True))
    return (y.relu() if relu else y).to(x.dtype), means, variances


class _GhostNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        add: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        group: int,
        eps: float,
        relu: bool,
    ) -> Result:
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        x = x.contiguous(memory_format=layout)
        if add is not None:
            add = add.contiguous(memory_format=layout)
        ctx.group, ctx.eps, ctx.layout = group, eps, layout
        ctx.fold = _fold(x, weight, group)
        args = (x, add, weight, bias, group, eps, relu)
        y, means, variances, saved = (
            _all_groups(*args, ctx.fold) if ctx.fold else _each_group(*args)
        )
        ctx.save_for_backward(x, y if relu else None, weight, *saved)
        ctx.mark_non_differentiable(means, variances)
        return y, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, means, inverse_stds = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=ctx.layout)
        if y is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        args = (gradient, x, weight, means, inverse_stds, ctx.group, ctx.eps)
        dx, dweight, dbias = (
            _all_groups_backward(*args, ctx.fold) if ctx.fold else _each_group_backward(*args)
        )
        return dx, gradient if ctx.needs_input_grad[1] else None, dweight, dbias, None, None, None


def _each_group(
    x: Tensor,
    add: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """PyTorch's kernel on slices of x, into slices of y; saves means and 1 / deviations (k, C)."""
    y = torch.empty_like(x)
    dtype = x.dtype if weight is None else weight.dtype
    statistics = x.new_zeros(4, -(-len(x) // group), x.shape[1], dtype=dtype)
    parts = [t.split(group) for t in (x, y, *([] if add is None else [add]))]
    kernel = torch.ops.aten.native_batch_norm.out
    for images, out, *more, (mean, variance, saved, inverse_std) in zip(
        *parts, (s.unbind() for s in statistics.unbind(1)), strict=True
    ):
        kernel(
            images,
            weight,
            bias,
            mean,
            variance,
            True,
            1.0,  # momentum: the "running" buffers get the statistics of this group
            eps,
            out=out,
            save_mean=saved,
            save_invstd=inverse_std,
        )
        for other in more:
            out += other
        if relu:
            out.relu_()
    return y, statistics[0], statistics[1], (statistics[2], statistics[3])


def _each_group_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    means: Tensor,
    inverse_stds: Tensor,
    group: int,
    eps: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    dx = torch.empty_like(x)
    wanted = [True, weight is not None, weight is not None]
    sums = []
    for g, images, out, mean, inverse_std in zip(
        gradient.split(group),
        x.split(group),
        dx.split(group),
        means.unbind(),
        inverse_stds.unbind(),
        strict=True,
    ):
        part, *affine = torch.ops.aten.native_batch_norm_backward(
            g, images, weight, None, None, mean, inverse_std, True, eps, wanted
        )
        out.copy_(part)
        sums.append(affine)
    if weight is None:
        return dx, None, None
    dweight, dbias = (torch.stack(s).sum(0) for s in zip(*sums, strict=True))
    return dx, dweight, dbias


def _fold(x: Tensor, weight: Tensor | None, group: int) -> int:
    """How many pixels of a group make one row of up to `ROW` floats; 0: go group by group."""
    channels, values = x.shape[1], x.shape[2] * x.shape[3] * group
    if (
        x.device.type != "cpu"
        or not 1 < channels < ROW
        or not x.is_contiguous(memory_format=torch.channels_last)
        or len(x) % group
        or (weight is not None and weight.dtype != x.dtype)
    ):
        return 0
    pixels = ROW // channels
    while values % pixels:
        pixels -= 1
    return pixels


def _rows(x: Tensor, group: int, fold: int) -> Tensor:
    """(N, C, H, W) in channels_last, seen as (k, M, R): M = n * H * W / fold rows, R = fold * C."""
    k, R = len(x) // group, fold * x.shape[1]
    M = x.numel() // (k * R)
    return x.as_strided((k, M, R), (M * R, R, 1))


def _maps(rows: Tensor) -> tuple[Tensor, ...]:
    """(k, M, R) -> k maps (1, R, M, 1) in channels_last, for PyTorch's kernels."""
    k, M, R = rows.shape
    return rows.as_strided((k, R, M, 1), (M * R, 1, R, R)).split(1)


def _row(channels: Tensor, fold: int) -> Tensor:
    """(k, C) -> (k, 1, R)."""
    return torch.cat([channels] * fold, 1).unsqueeze(1)


def _all_groups(
    x: Tensor,
    add: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    eps: float,
    relu: bool,
    fold: int,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Rows of `fold` pixels times a number, plus one; saves means and 1 / deviations (k, C).

    The maps are small: here and in the backward the time goes into the number of operations.
    """
    rows = _rows(x, group, fold)
    sums = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in _maps(rows)]
    k, M, _ = rows.shape
    found = torch.stack([mean for mean, _ in sums] + [var for _, var in sums])  # (2k, R)
    row_means, row_vars = found.view(2, k, fold, -1).unbind()
    means = row_means.mean(1)
    variances = row_vars.add_((row_means - means[:, None]).square_()).mean(1)
    inverse_stds = (variances + eps).rsqrt_()
    scale = inverse_stds if weight is None else inverse_stds * weight
    shift = -means * scale if bias is None else torch.addcmul(bias, means, scale, value=-1)
    y = torch.empty_like(x)
    torch.addcmul(_row(shift, fold), rows, _row(scale, fold), out=_rows(y, group, fold))
    if add is not None:
        y += add
    if relu:
        y.relu_()
    values = M * fold
    return y, means, variances * (values / (values - 1)), (means, inverse_stds)


def _all_groups_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    means: Tensor,
    inverse_stds: Tensor,
    group: int,
    eps: float,
    fold: int,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """With z = (x - mean) / std: dx = weight / std * (g - mean(g) - z * mean(g * z))."""
    rows, g = _rows(x, group, fold), _rows(gradient, group, fold)
    k, M, _ = rows.shape
    dx = torch.empty_like(x)
    out = _rows(dx, group, fold)
    sums = torch.stack([g.sum(1), torch.mul(g, rows, out=out).sum(1)])  # (2, k, R)
    dbias, products = sums.view(2, k, fold, -1).sum(2).unbind()  # (k, C), of each group
    dweight = torch.addcmul(products, means, dbias, value=-1) * inverse_stds
    scale = inverse_stds if weight is None else inverse_stds * weight
    share = scale * (-1 / (M * fold))
    slope = share * inverse_stds * dweight
    shift = torch.addcmul(share * dbias, slope, means, value=-1)
    torch.addcmul(_row(shift, fold), rows, _row(slope, fold), out=out)
    out.addcmul_(g, _row(scale, fold))
    if weight is None:
        return dx, None, None
    return dx, dweight.sum(0), dbias.sum(0)
