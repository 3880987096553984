"""All modules of a batch, forward and backward, in one call for every group of a schedule.

I images, N nodes, n nodes of a group, C channels, H x W pixels, T tokens in use.

All maps of a batch lie in one pool; a group gathers its inputs from it and writes its outputs next
to those of the groups before. The derivatives are written out, for autograd would copy the pool at
every group.

Memory formats: maps (n, H + 2, W + 2, C) with a frame of zeros, and weights (T, C out, 3, 3, C in).
A 3 x 3 convolution is then one product with the neighbourhoods of 3 x 3 x C numbers of all pixels,
whose rows lie together in memory; without frame they are channels_last for cuDNN and oneDNN.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .schedule import Group, Schedule


class Weights(NamedTuple):
    """The weights of the modules in use, stacked; biases are (T, C), `proj` is of binary ones."""

    first: Tensor  # (T, C out, 3, 3, C in)
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    proj: Tensor  # (T binary, C out, 2 C in)
    proj_bias: Tensor


class Call(NamedTuple):
    """A group and where its weights are: a number, or one for each node (n,)."""

    group: Group
    place: int | Tensor  # in `first` and `second`
    binary: int | Tensor  # in `proj`
    unfold: bool  # convolve by a product with neighbourhoods


class Framed(NamedTuple):
    """Maps of all nodes with a frame of zeros (N, H + 2, W + 2, C), cut into the groups' parts."""

    whole: Tensor
    framed: tuple[Tensor, ...]  # (n, H + 2, W + 2, C)
    inside: tuple[Tensor, ...]  # (n, H, W, C)
    windows: tuple[Tensor, ...]  # (n, H, W, 3, 3 C), see `windows`


def frames(images: Tensor, calls: list[Call]) -> Framed:
    """Room for the maps of all groups, sized and typed as images (I, H, W, C), zeros in frames.

    Cut once for all groups: on a CPU a view costs as much as a small product.
    """
    _, H, W, C = images.shape
    sizes = [len(call.group.tokens) for call in calls]
    whole = images.new_zeros(sum(sizes), H + 2, W + 2, C)
    parts = (whole, whole[:, 1:-1, 1:-1], windows(whole))
    return Framed(whole, *(part.split(sizes) for part in parts))


def windows(framed: Tensor) -> Tensor:
    """The 3 x 3 pixels around each of maps (n, H + 2, W + 2, C): a view (n, H, W, 3, 3 C)."""
    n, height, width, C = framed.shape
    a, b, c, d = framed.stride()
    return framed.as_strided((n, height - 2, width - 2, 3, 3 * C), (a, b, c, b, d))


class Columns:
    """Room for the neighbourhoods of a group's pixels, the same for all groups."""

    def __init__(self, images: Tensor, calls: list[Call]) -> None:
        most = max((len(call.group.tokens) for call in calls if call.unfold), default=0)
        _, H, W, C = images.shape
        self.room = images.new_empty(most, H, W, 3, 3 * C)

    def write(self, view: Tensor) -> Tensor:
        """Copy windows (n, H, W, 3, 3 C) to (n, H W, 9 C)."""
        part = self.room[: len(view)]
        part.copy_(view)
        return part.view(len(view), -1, 3 * view.shape[-1])


class Fused(torch.autograd.Function):
    """All groups of a schedule, forward and backward.

    Inputs: images (I, H, W, C), the schedule, a `Call` for each of its groups, and the six of
    `Weights`. Output: (executed, H, W, C).
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, schedule: Schedule, calls: list[Call], *weights: Tensor
    ) -> Tensor:
        """Return the roots' outputs; keep what the backward needs if there will be one."""
        w = Weights(*weights)
        _, H, W, C = images.shape
        source = F.pad(images, (0, 0, 1, 1, 1, 1))
        pool, hidden = frames(images, calls), frames(images, calls)
        columns = Columns(images, calls)
        first, second = w.first.flatten(2), w.second.flatten(2)  # (T, C, 9 C)
        kept = []
        with torch.autocast(images.device.type, enabled=False):
            for i, call in enumerate(calls):
                group, place = call.group, call.place
                rows = pool.whole if group.arity else source
                inputs = [rows.index_select(0, each) for each in group.inputs]
                x, pair = inputs[0], None
                if group.arity == 2:
                    pair = torch.cat([each[:, 1:-1, 1:-1] for each in inputs], 3).flatten(1, 2)
                    joined = product(pair, w.proj[call.binary], w.proj_bias[call.binary])
                    x = torch.zeros_like(x)
                    torch.clamp_min(joined.view(-1, H, W, C), 0, out=x[:, 1:-1, 1:-1])
                view = windows(x)
                h = convolve(x, view, first[place], w.first_bias[place], call, columns)
                torch.clamp_min(h, 0, out=hidden.inside[i])
                h, around = hidden.framed[i], hidden.windows[i]
                y = convolve(h, around, second[place], w.second_bias[place], call, columns)
                torch.clamp_min(y.add_(x[:, 1:-1, 1:-1]), 0, out=pool.inside[i])
                kept.append((x, view, pair))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(images, *weights)
            ctx.schedule, ctx.calls, ctx.kept = schedule, calls, kept
            ctx.pool, ctx.hidden = pool, hidden
        return pool.whole[:, 1:-1, 1:-1].index_select(0, schedule.roots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients of images and weights, from the last group to the first."""
        images, *weights = ctx.saved_tensors
        w, pool, hidden, calls = Weights(*weights), ctx.pool, ctx.hidden, ctx.calls
        _, H, W, C = images.shape
        outer, inner = frames(images, calls), frames(images, calls)  # before the ReLUs
        columns = Columns(images, calls)
        grads = images.new_zeros(len(pool.whole), H, W, C)  # of every node's output
        grads.index_add_(0, ctx.schedule.roots, grad)
        parts = grads.split([len(part) for part in pool.inside])
        of_images = torch.zeros_like(images)
        # Sums over many nodes: in float32 at least.
        total = torch.promote_types(images.dtype, torch.float32)
        sums = Weights(*(torch.zeros_like(each, dtype=total) for each in w))
        first, second = Kernel.of(w.first, sums.first), Kernel.of(w.second, sums.second)
        unrelu = torch.ops.aten.threshold_backward
        for i in reversed(range(len(calls))):
            call, (x, view, pair) = calls[i], ctx.kept[i]
            group = call.group
            gy = unrelu(parts[i], pool.inside[i], 0)
            outer.inside[i].copy_(gy)
            h, around = hidden.framed[i], hidden.windows[i]
            gh = convolve_backward(gy, outer.windows[i], h, around, second, call, columns)
            gh = unrelu(gh, hidden.inside[i], 0)
            inner.inside[i].copy_(gh)
            gx = convolve_backward(gh, inner.windows[i], x, view, first, call, columns).add_(gy)
            if pair is None:
                (grads if group.arity else of_images).index_add_(0, group.inputs[0], gx)
                continue
            gx = unrelu(gx, x[:, 1:-1, 1:-1], 0).flatten(1, 2)
            product_backward(gx, pair, sums.proj, call.binary)
            bias = gx.sum(1, dtype=total)
            sums.proj_bias.index_add_(0, _places([call.binary], [len(gx)], bias), bias)
            both = torch.matmul(gx, w.proj[call.binary]).view(-1, H, W, 2 * C)
            grads.index_add_(0, group.inputs[0], both[..., :C])
            grads.index_add_(0, group.inputs[1], both[..., C:])
        places = _places([call.place for call in calls], [len(part) for part in parts], grads)
        sums.first_bias.index_add_(0, places, inner.whole.sum((1, 2), dtype=total))
        sums.second_bias.index_add_(0, places, outer.whole.sum((1, 2), dtype=total))
        return of_images, None, None, *(s.to(each.dtype) for s, each in zip(sums, w, strict=True))


class Kernel(NamedTuple):
    """A convolution of all tokens: weights, the same as they carry gradients back, gradients."""

    weights: Tensor  # (T, C out, 3, 3, C in)
    turned: Tensor  # (T, C in, 9 C out)
    sums: Tensor  # (T, C out, 9 C in)

    @staticmethod
    def of(weights: Tensor, sums: Tensor) -> "Kernel":
        """sums: as weights; they are added to."""
        last_first = torch.arange(8, -1, -1, device=weights.device)
        nine = weights.flatten(2, 3).permute(0, 3, 2, 1)  # (T, C in, 9, C out)
        return Kernel(weights, nine.index_select(2, last_first).flatten(2), sums.flatten(2))


def _places(places: list[int | Tensor], sizes: list[int], like: Tensor) -> Tensor:
    """The place of each node's weights, int64 (N,)."""
    if any(isinstance(place, Tensor) for place in places):
        each = [
            place if isinstance(place, Tensor) else torch.full((n,), place, device=like.device)
            for place, n in zip(places, sizes, strict=True)
        ]
        return torch.cat(each)
    flat = [place for place, n in zip(places, sizes, strict=True) for _ in range(n)]
    return torch.tensor(flat, device=like.device)


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Products of (n, P, K) with one weight (C, K), or with one for each node (n, C, K)."""
    if weight.dim() == 2:
        return torch.addmm(bias, x.view(-1, x.shape[2]), weight.t()).view(*x.shape[:2], -1)
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))  # (n, P, C)


def product_backward(grad: Tensor, x: Tensor, sums: Tensor, place: int | Tensor) -> None:
    """Add the gradient of the weight, grad (n, P, C) and x (n, P, K), where it belongs."""
    if isinstance(place, Tensor):
        sums.index_add_(0, place, torch.bmm(grad.transpose(1, 2), x).to(sums.dtype))
        return
    left, right = grad.view(-1, grad.shape[-1]).t(), x.view(-1, x.shape[-1])
    if grad.dtype == sums.dtype:
        sums[place].addmm_(left, right)
    else:
        sums[place].add_(torch.mm(left, right))


def convolve(
    x: Tensor, around: Tensor, weight: Tensor, bias: Tensor, call: Call, columns: Columns
) -> Tensor:
    """3 x 3 convolution of framed maps (n, H + 2, W + 2, C), without frame: (n, H, W, C).

    around: the windows of x. weight: one (C out, 9 C), or one for each node (n, C out, 9 C).
    """
    n, H, W = around.shape[:3]
    if call.unfold:
        return product(columns.write(around), weight, bias).view(n, H, W, -1)
    kernel = weight.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, bias).permute(0, 2, 3, 1)


def convolve_backward(
    grad: Tensor,
    grad_around: Tensor,
    x: Tensor,
    x_around: Tensor,
    kernel: Kernel,
    call: Call,
    columns: Columns,
) -> Tensor:
    """Gradient of `convolve` for x, without frame (n, H, W, C); the weight's goes to the sums.

    grad: (n, H, W, C). x: framed. grad_around, x_around: the windows of both.
    """
    place = call.place
    if call.unfold:
        product_backward(grad.flatten(1, 2), columns.write(x_around), kernel.sums, place)
        weight = kernel.turned[place]
        pixels = columns.write(grad_around)
        if weight.dim() == 3:
            return torch.bmm(pixels, weight.transpose(1, 2)).view(grad.shape)
        return torch.mm(pixels.view(-1, pixels.shape[2]), weight.t()).view(grad.shape)
    back, weight_grad, _ = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x[:, 1:-1, 1:-1].permute(0, 3, 1, 2),
        kernel.weights[place].permute(0, 3, 1, 2),
        None,
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, False],
    )
    kernel.sums[place].add_(weight_grad.permute(0, 2, 3, 1).flatten(1))
    return back.permute(0, 2, 3, 1)
