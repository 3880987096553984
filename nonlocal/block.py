"""The non-local block: every output position is a weighted mean over all positions, Sec. 3.

    y_i = 1/C(x) sum_j f(x_i, x_j) g(x_j)        Eq. 1
    z_i = W_z y_i + x_i                          Eq. 6

    gaussian            f = exp(x_i . x_j)                          C = sum_j f     Eq. 2
    embedded gaussian   f = exp(theta_i . phi_j)                    C = sum_j f     Eq. 3
    dot product         f = theta_i . phi_j                         C = keys        Eq. 4
    concatenation       f = relu(w_f . [theta_i; phi_j])            C = keys        Eq. 5

The block is the identity until it is trained, so it may be put into a trained network anywhere:

    block = NonLocalBlock(512)                              # clips (B, 512, T, H, W)
    block = NonLocalBlock(256, Block(mode="dot_product"), positions=2)    # images (B, 256, H, W)

None of the four needs the matrix of weights, whose size is that of queries times keys: the softmax
is taken of some queries at a time, the dot product is associative, and the ReLU of a sum of two
numbers is a prefix sum once they are sorted. `attention` returns the weights, to look at.

Shapes: B batch, C channels, N queries, M keys (fewer where they are pooled), D width of an
embedding. Half precision is computed in float32 between the embeddings and y. This file imports
torch alone and is copied alone.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, wraps
from typing import Any, ParamSpec, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHOICES = {
    "mode": ("gaussian", "embedded_gaussian", "dot_product", "concatenation"),
    "scale": ("sqrt", "none"),
    "over": ("spacetime", "space", "time"),
    "norm": ("batch", "group", "none"),
    "zero_init": ("norm", "conv", "none"),
    "init": ("normal", "he"),
    "algorithm": ("auto", "naive"),
}
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
SLICE = 2**22  # weights held at once where the softmax is taken of some queries at a time


@dataclass
class Block:
    """Options of a non-local block."""

    mode: str = "embedded_gaussian"  # | gaussian | dot_product | concatenation, Sec. 3.2
    # Differs: the text has no scale, but all released models were trained with it.
    scale: str = "sqrt"  # sqrt: logits of a softmax / sqrt(their width) | none
    pool: bool = True  # 1x2x2 max pool of the keys and values, "subsampling" of Sec. 3.3
    # Differs: the text pools after phi and g, the released code before.
    pool_first: bool = True
    over: str = "spacetime"  # spacetime | space | time: what attends to what, Table 2d
    group: int = 0  # consecutive frames that attend to each other; 0: all
    inner_ratio: float = 0.5  # channels of the embeddings; at least 1
    norm: str = "batch"  # batch | group | none, after the last convolution
    # norm: its scale starts at 0, or without a norm as conv | conv: the last convolution | none
    zero_init: str = "norm"
    # Differs: the text says He's initialisation, the released code draws from N(0, 0.01).
    init: str = "normal"  # normal | he
    # naive: by the whole matrix of weights, which alone has gradients of second order
    algorithm: str = "auto"  # auto | naive

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"block.{name}={getattr(self, name)} must be one of {choices}.")
        for each in fields(self):
            value, kind = getattr(self, each.name), cast(type, each.type)
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"block.{each.name}={value!r} must be of type {kind.__name__}.")
        if self.group < 0:
            raise ValueError(f"block.group={self.group} must be a number of frames, or 0 for all.")
        if self.group and self.over == "space":
            raise ValueError(
                f"block.group={self.group} has no effect with block.over=space, where a frame "
                "attends to itself: give block.group=0, or another block.over."
            )
        if not 0 < self.inner_ratio <= 16:
            raise ValueError(f"block.inner_ratio={self.inner_ratio} must be above 0, at most 16.")


class NonLocalBlock(nn.Module):
    """z = x + norm(out(y)) for x (B, channels, ...) with 1, 2 or 3 axes of positions.

    Three axes are time, height and width. Two are height and width, one is a sequence.
    """

    def __init__(self, channels: int, block: Block | None = None, *, positions: int = 3) -> None:
        super().__init__()
        self.block = block = block or Block()
        self.positions = positions
        if positions not in (1, 2, 3):
            raise ValueError(f"positions={positions} must be 1, 2 or 3 axes.")
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels={channels!r} must be a whole number, at least 1.")
        if positions < 3 and (block.over != "spacetime" or block.group):
            raise ValueError(f"over={block.over}, group={block.group} need clips, of 3 axes.")
        inner = max(1, int(channels * block.inner_ratio))
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[positions - 1]
        if block.mode != "gaussian":
            self.theta = conv(channels, inner, 1)
            self.phi = conv(channels, inner, 1)
        self.g = conv(channels, inner, 1)
        if block.mode == "concatenation":
            self.w_f = nn.Parameter(torch.empty(2 * inner))
        self.out = conv(inner, channels, 1)
        self.bn: nn.Module = nn.Identity()
        if block.norm == "batch":
            self.bn = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[positions - 1](channels)
        if block.norm == "group":
            self.bn = nn.GroupNorm(math.gcd(32, channels), channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights; the block is the identity then, unless zero_init=none."""
        for each in self.children():
            if isinstance(each, Conv) and each.bias is not None:
                self._draw(each.weight)
                nn.init.zeros_(each.bias)
        if self.block.mode == "concatenation":
            self._draw(self.w_f[None])
        if self.block.zero_init != "none":
            normed = self.block.zero_init == "norm" and self.block.norm != "none"
            nn.init.zeros_((self.bn if normed else self.out).get_parameter("weight"))

    def _draw(self, weight: Tensor) -> None:
        with torch.no_grad():
            if self.block.init == "he":
                nn.init.kaiming_normal_(weight)
            else:
                nn.init.normal_(weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) of the same shape and dtype."""
        parts, v = self._embed(x)
        if self.block.algorithm == "naive":
            y = attend(self._weights(parts), v)
        elif self.block.mode == "dot_product":
            y = attend_dot(*parts, v)
        elif self.block.mode == "concatenation":
            y = attend_concat(*parts, v)
        else:
            y = attend_softmax(*parts, v, self._scale(parts[0]))
        z = _linear(self.out, y.to(v.dtype))  # (B', N, C)
        return x + self.bn(self._unfold(z, x.shape)).to(x.dtype)

    def attention(self, x: Tensor) -> Tensor:
        """Weights f / C by which `forward` sums the values, float32 (B', queries, keys).

        A softmax's sum to 1; those of the dot product have a sign. B' counts the parts that attend
        to themselves: B T with over=space, B H W with over=time, B T / group with groups.
        """
        return self._weights(self._embed(x)[0])

    def _weights(self, parts: tuple[Tensor, Tensor]) -> Tensor:
        if self.block.mode == "dot_product":
            return dot_weights(*parts)
        if self.block.mode == "concatenation":
            return concat_weights(*parts)
        return softmax_weights(*parts, self._scale(parts[0]))

    def _scale(self, queries: Tensor) -> float:
        # Unstated: the gaussian compares x itself, so that the width is that of x.
        return queries.shape[-1] ** -0.5 if self.block.scale == "sqrt" else 1.0

    def _embed(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Queries (B', N, D) and keys (B', M, D), and values (B', M, D).

        Of the concatenation, the halves (B', N) and (B', M) of w_f . [theta_i; phi_j].
        """
        z = self._fold(x)  # (B', C, T', H, W)
        pool = self.block.pool
        first, last = (pool and self.block.pool_first, pool and not self.block.pool_first)
        pooled = _pool(z) if first else z
        v = _tokens(self._project(self.g, pooled, last))
        if self.block.mode == "gaussian":
            return (_tokens(z), _tokens(_pool(z) if last else pooled)), v
        k = _tokens(self._project(self.phi, pooled, last))
        if self.block.mode == "concatenation":
            w_theta, w_phi = self.w_f.chunk(2)
            w_x = w_theta @ self.theta.weight.flatten(1)  # one map for two, as theta is not pooled
            w_1 = w_theta @ self.theta.get_parameter("bias")
            return (_tokens(z) @ w_x + w_1, k @ w_phi), v
        return (_linear(self.theta, _tokens(z)), k), v

    def _project(self, conv: Conv, z: Tensor, pool: bool) -> Tensor:
        y = _linear(conv, _tokens(z)).transpose(1, 2).unflatten(2, z.shape[2:])
        return _pool(y) if pool else y

    def _fold(self, x: Tensor) -> Tensor:
        """(B', C, T', H, W): what attends within itself, one after the other in the batch."""
        if x.dim() != self.positions + 2:
            raise ValueError(
                f"The input {tuple(x.shape)} should be (B, C) and {self.positions} axes; "
                "positions=1, 2 or 3 sets their number."
            )
        if x.shape[1] != self.out.out_channels:
            raise ValueError(
                f"The input {tuple(x.shape)} has {x.shape[1]} channels, the block "
                f"{self.out.out_channels}: make it NonLocalBlock({x.shape[1]})."
            )
        x = x.reshape(*x.shape[:2], *(1,) * (3 - self.positions), *x.shape[2:])
        if self.positions > 1 and min(x.shape[3:]) < 6 and not torch.compiler.is_compiling():
            _warn_small(*x.shape[3:])
        frames = x.shape[2]
        group = 1 if self.block.over == "space" else min(self.block.group or frames, frames)
        if frames % group:
            fits = max(n for n in range(1, group) if frames % n == 0)
            raise ValueError(
                f"{frames} frames are not a multiple of block.group={group}: give block.group="
                f"{fits}, in res3 network.res3_group={fits}, or clips of another length."
            )
        x = x.unflatten(2, (frames // group, group)).transpose(1, 2).flatten(0, 1)
        if self.block.over == "time":
            x = x.permute(0, 3, 4, 1, 2).flatten(0, 2)[..., None, None]
        return x

    def _unfold(self, z: Tensor, shape: torch.Size) -> Tensor:
        """(B', N, C) to the shape of x (B, C, ...)."""
        B, C = shape[:2]
        T, H, W = (1,) * (3 - self.positions) + tuple(shape[2:])
        if self.block.over == "time":
            z = z.reshape(-1, H, W, z.shape[1], C).permute(0, 3, 1, 2, 4)
        return z.reshape(B, T, H, W, C).permute(0, 4, 1, 2, 3).reshape(shape)


def _tokens(z: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B, N, C)."""
    return z.flatten(2).transpose(1, 2)


def _linear(conv: Conv, tokens: Tensor) -> Tensor:
    """A convolution of one position, of (B, N, C)."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


def _pool(z: Tensor) -> Tensor:
    """1x2x2 max pool of (B, C, T, H, W), except along an axis of one position."""
    H, W = z.shape[3:]
    kernel = (1, min(H, 2), min(W, 2))
    return F.max_pool3d(z, kernel) if max(kernel) > 1 else z


@cache
def _warn_small(H: int, W: int) -> None:
    warnings.warn(
        f"A non-local block sees a map of {H} x {W}: below 6 x 6, few positions are left to attend "
        "to. Put it where the map is larger, or set pool=false.",
        stacklevel=2,
    )


P = ParamSpec("P")


def _in_float32(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Have half precision as float32 in a function of tensors, whatever autocast says."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given: list[Any] = [_wide(each) if isinstance(each, Tensor) else each for each in args]
        with torch.autocast(given[0].device.type, enabled=False):
            return function(*given, **kwargs)

    return run


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@_in_float32
def softmax_weights(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """softmax_j(scale q_i . k_j), (B, N, M) of q (B, N, D) and k (B, M, D)."""
    return torch.softmax(scale * q @ k.mT, -1)


@_in_float32
def dot_weights(q: Tensor, k: Tensor) -> Tensor:
    """q_i . k_j / M, (B, N, M) of q (B, N, D) and k (B, M, D)."""
    return q @ k.mT / k.shape[1]


@_in_float32
def concat_weights(a: Tensor, b: Tensor) -> Tensor:
    """relu(a_i + b_j) / M, (B, N, M) of a (B, N) and b (B, M)."""
    return torch.relu(a[:, :, None] + b[:, None]) / b.shape[1]


@_in_float32
def attend(weights: Tensor, v: Tensor) -> Tensor:
    """The explicit form of the three below: weights (B, N, M) times values (B, M, E)."""
    return weights @ v


def attend_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """softmax_weights(q, k, scale) @ v, (B, N, E) of v (B, M, E), in memory O((N + M) D)."""
    N, M, D, E = q.shape[1], k.shape[1], k.shape[2], v.shape[2]
    if (N + M) * max(D, E) >= N * M:  # the matrix is no larger than the rest
        return attend(softmax_weights(q, k, scale), v)
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # a graph has no slices
        return _attend_by_kernel(q, k, v, scale)
    if not q.is_cuda or q.dtype == torch.float64:
        return _attend_in_slices(scale * q, k, v)
    return _attend_by_kernel(q, k, v, scale)


@_in_float32
def attend_dot(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """dot_weights(q, k) @ v, (B, N, E) of v (B, M, E), in the order of fewer operations."""
    N, M, D, E = q.shape[1], k.shape[1], k.shape[2], v.shape[2]
    if N * M * (D + E) > (N + M) * D * E:
        return q @ (k.mT @ v / M)
    return attend(dot_weights(q, k), v)


@_in_float32
def attend_concat(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """concat_weights(a, b) @ v, (B, N, E) of v (B, M, E), in time O((N + M) (log M + E))."""
    y: Tensor = _Concat.apply(a, b, v)
    return y / max(b.shape[1], 1)


def _attend_by_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's attention, whose GPU kernels hold no matrix and have their logits in float32.

    They ask for contiguous channels, a multiple of 8 of them. Zeros do not change the logits.
    """
    E = v.shape[2]
    short = [-each.shape[2] % 8 for each in (q, k, v)]
    q, k, v = (
        F.pad(each, (0, n)) if n else each.contiguous()
        for each, n in zip((q, k, v), short, strict=True)
    )
    y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=scale)
    return y[:, 0, :, :E]


@_in_float32
def _attend_in_slices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y: Tensor = _SoftmaxInSlices.apply(q, k, v)
    return y


class _SoftmaxInSlices(torch.autograd.Function):
    """Some queries at a time, whose weights are computed once more for the gradient.

    PyTorch's own kernel for a CPU runs the gradient of one head and one clip on one thread.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = v.new_empty(*q.shape[:2], v.shape[2])
        rows, memory = _slices(q, k)
        for q_s, y_s in zip(q.split(rows, 1), y.split(rows, 1), strict=True):
            y_s.copy_(torch.bmm(_softmax(q_s, k, memory), v))
        ctx.save_for_backward(q, k, v, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, y = ctx.saved_tensors
        with torch.autocast(dy.device.type, enabled=False):
            return _gradients(q, k, v, y, dy)


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    rows, memory = _slices(q, k)
    other = torch.empty_like(memory)
    slices = (each.split(rows, 1) for each in (q, y, dy, dq))
    for q_s, y_s, dy_s, dq_s in zip(*slices, strict=True):
        p = _softmax(q_s, k, memory)
        dv.baddbmm_(p.mT, dy_s)
        ds = torch.bmm(dy_s, v.mT, out=_shaped(other, q_s, k))
        ds.sub_((dy_s * y_s).sum(-1, keepdim=True)).mul_(p)  # gradient of the logits
        dq_s.copy_(torch.bmm(ds, k))
        dk.baddbmm_(ds.mT, q_s)
    return dq, dk, dv


def _slices(q: Tensor, k: Tensor) -> tuple[int, Tensor]:
    """Queries at a time, and memory for their weights, which would be slow to get each time."""
    pairs = max(1, k.shape[0] * k.shape[1])
    rows = max(1, min(q.shape[1], SLICE // pairs))
    return rows, q.new_empty(rows * pairs)


def _shaped(memory: Tensor, q: Tensor, k: Tensor) -> Tensor:
    B, N, M = *q.shape[:2], k.shape[1]
    return memory[: B * N * M].view(B, N, M)


def _softmax(q: Tensor, k: Tensor, memory: Tensor) -> Tensor:
    logits = torch.bmm(q, k.mT, out=_shaped(memory, q, k))
    return torch.softmax(logits, -1, out=logits)


class _Concat(torch.autograd.Function):
    """y_i = sum_j relu(a_i + b_j) v_j by sorting, and its gradients in the same way."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, v)
        total, weighted = _sums_above(a, b, v, b[..., None] * v)
        return weighted.addcmul_(a[..., None], total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, v = ctx.saved_tensors
        (total,) = _sums_above(a, b, v)
        da = (total * dy).sum(-1)
        total, weighted = _sums_above(b, a, dy, a[..., None] * dy)
        db = (total * v).sum(-1)
        return da, db, weighted.addcmul_(b[..., None], total)


def _sums_above(a: Tensor, b: Tensor, *values: Tensor) -> list[Tensor]:
    """For each a_i (B, N) the sum (B, N, E) of the values (B, M, E) with a_i + b_j > 0."""
    falling, order = b.sort(descending=True)
    counts = torch.searchsorted(-falling, a.contiguous())  # of -b_j < a_i
    batch = torch.arange(len(a), device=a.device)[:, None]
    sums = []
    for each in values:
        # float64, as two large prefixes may nearly cancel
        prefix = each[batch, order].cumsum(1, dtype=torch.float64).to(each.dtype)
        sums.append(F.pad(prefix, (0, 0, 1, 0))[batch, counts])
    return sums
