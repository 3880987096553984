"""3x3 convolution of several maps by one weight, with a quarter of the multiplications.

RetinaNet's heads apply the same 3x3 convolutions to every level of the pyramid; that is more than
half of all its work (Sec. 4). Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308) computes
4 x 4 outputs of a tile of 6 x 6 inputs by 36 products instead of 144, and the tiles of all levels
share one batched matrix product. The arithmetic stays float32; rounding errors are some 5 times
those of the direct sum, a few millionths of the outputs' spread.

Legend: N images, C and D channels in and out, T tiles of all maps together.
    V = B' x B (36, T, C),   U = G w G' (36, C, D),   y = A' (V U) A
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_CHANNELS = 64  # with fewer, in or out, the transforms cost more than they save
TILE, STEP = 6, 4  # inputs and outputs of a tile, along a side
# Where the polynomials are evaluated, beside infinity. The usual 0, +-1, +-2 double the rounding
# error, and their largest is four times these.
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """B' (36, 36), G (36, 9) and A' (16, 36) of Toom-Cook, for both directions at once."""
    inner, kernel, outer = (torch.zeros(TILE, n, dtype=torch.float64) for n in (TILE, 3, STEP))
    for row, p in enumerate(POINTS):
        others = [q for q in POINTS if q != p]
        inner[row, : TILE - 1] = _coefficients(others)
        kernel[row] = torch.tensor([p**i for i in range(3)]) / prod(p - q for q in others)
        outer[row] = torch.tensor([p**i for i in range(STEP)])
    inner[-1] = _coefficients(POINTS)  # the point at infinity
    kernel[-1, -1] = outer[-1, -1] = 1
    outer = outer.T.contiguous()
    both = [torch.kron(m, m).float() for m in (inner, kernel, outer)]
    return both[0], both[1], both[2]


def _coefficients(roots: Sequence[float]) -> Tensor:
    """Of the polynomial with these roots, lowest power first."""
    c = torch.ones(1, dtype=torch.float64)
    for root in roots:
        c = F.pad(c, (1, 0)) - root * F.pad(c, (0, 1))
    return c


INPUT, KERNEL, OUTPUT = _matrices()  # (36, 36), (36, 9), (16, 36)


def suits(weight: Tensor, maps: Sequence[Tensor]) -> bool:
    """Whether `conv3x3` is both possible and faster: float32 on a CPU, many channels, eager."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == maps[0].dtype == torch.float32
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def conv3x3(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """`[F.conv2d(x, weight, bias, padding=1) for x in maps]`, in channels_last; differentiable.

    maps: (N, C, H, W) of any sizes; weight (D, C, 3, 3); bias (D,).
    """
    return list(_Convolution.apply(weight, bias, *maps))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weight, *maps)
        products = torch.bmm(_transform(maps), _kernel(weight))  # (36, T, D)
        sums = OUTPUT @ products.flatten(1)  # (16, T * D)
        parts = zip(_split(sums, maps, len(weight)), maps, strict=True)
        outputs = tuple(_untile(part, x) for part, x in parts)
        return outputs if bias is None else tuple(y.add_(bias[:, None, None]) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, *maps = ctx.saved_tensors
        channels = weight.shape[1]
        tiles = torch.cat([_blocks(g).flatten(1) for g in gradients], 1)  # (16, T * D)
        products = (OUTPUT.T @ tiles).view(len(INPUT), -1, len(weight))  # (36, T, D)
        weight_gradient = None
        if ctx.needs_input_grad[0]:
            kernels = torch.bmm(_transform(maps).transpose(1, 2), products)  # (36, C, D)
            flat = (KERNEL.T @ kernels.flatten(1)).view(3, 3, channels, len(weight))
            weight_gradient = flat.permute(3, 2, 0, 1)
        bias_gradient = None
        if ctx.needs_input_grad[1]:
            bias_gradient = torch.stack([g.sum((0, 2, 3)) for g in gradients]).sum(0)
        if not any(ctx.needs_input_grad[2:]):
            return weight_gradient, bias_gradient, *[None] * len(maps)
        tiles = INPUT.T @ torch.bmm(products, _kernel(weight).transpose(1, 2)).flatten(1)
        parts = zip(_split(tiles, maps, channels), maps, strict=True)
        return weight_gradient, bias_gradient, *(_overlap_add(part, x) for part, x in parts)


def _grid(x: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles of a map."""
    return -(-x.shape[2] // STEP), -(-x.shape[3] // STEP)


def _split(flat: Tensor, maps: Sequence[Tensor], channels: int) -> tuple[Tensor, ...]:
    """(n, T * channels) -> the (n, ...) of each map's tiles."""
    return flat.split([len(x) * prod(_grid(x)) * channels for x in maps], 1)


def _kernel(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> U (36, C, D)."""
    outputs, channels = weight.shape[:2]
    return (KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, outputs)


def _transform(maps: Sequence[Tensor]) -> Tensor:
    """Maps (N, C, H, W) -> V (36, T, C)."""
    counts = [len(x) * prod(_grid(x)) for x in maps]
    tiles = maps[0].new_empty(TILE, TILE, sum(counts), maps[0].shape[1])
    for x, place in zip(maps, tiles.split(counts, 2), strict=True):
        rows, columns = _grid(x)
        right, below = STEP * columns + 1 - x.shape[3], STEP * rows + 1 - x.shape[2]
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))  # (N, H', W', C)
        windows = padded.unfold(1, TILE, STEP).unfold(2, TILE, STEP)  # (N, rows, columns, C, 6, 6)
        place.unflatten(2, windows.shape[:3]).copy_(windows.permute(4, 5, 0, 1, 2, 3))
    return (INPUT @ tiles.view(TILE * TILE, -1)).view(TILE * TILE, -1, maps[0].shape[1])


def _untile(sums: Tensor, x: Tensor) -> Tensor:
    """(16, tiles * D) of the map `x` -> (N, D, H, W) in channels_last."""
    rows, columns = _grid(x)
    blocks = sums.view(STEP, STEP, len(x), rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
    size = (len(x), blocks.shape[-1], STEP * rows, STEP * columns)
    image = torch.empty(size, dtype=sums.dtype, memory_format=torch.channels_last)
    image.permute(0, 2, 3, 1).view(blocks.shape).copy_(blocks)
    if size[2:] == x.shape[2:]:
        return image
    image = image[:, :, : x.shape[2], : x.shape[3]]
    return image.clone(memory_format=torch.channels_last)  # not a view, so that a ReLU may write


def _blocks(gradient: Tensor) -> Tensor:
    """Adjoint of `_untile`: (N, D, H, W) -> (16, tiles, D)."""
    rows, columns = _grid(gradient)
    right, below = STEP * columns - gradient.shape[3], STEP * rows - gradient.shape[2]
    image = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, right, 0, below))
    blocks = image.unflatten(2, (columns, STEP)).unflatten(1, (rows, STEP))
    return blocks.permute(2, 4, 0, 1, 3, 5).reshape(STEP * STEP, -1, gradient.shape[1])


def _overlap_add(tiles: Tensor, x: Tensor) -> Tensor:
    """Adjoint of tiling: (36, tiles * C) added up where tiles of `x` overlap -> (N, C, H, W)."""
    rows, columns = _grid(x)
    tiles = tiles.view(TILE, TILE, len(x), rows, columns, -1)
    image = tiles.new_zeros(len(x), rows + 1, STEP, columns + 1, STEP, tiles.shape[-1])
    halo = TILE - STEP
    for down, i, height in ((0, slice(0, STEP), STEP), (1, slice(STEP, TILE), halo)):
        for right, j, width in ((0, slice(0, STEP), STEP), (1, slice(STEP, TILE), halo)):
            image[:, down : down + rows, :height, right : right + columns, :width] += tiles[
                i, j
            ].permute(2, 3, 0, 4, 1, 5)
    image = image.flatten(3, 4).flatten(1, 2)[:, 1 : x.shape[2] + 1, 1 : x.shape[3] + 1]
    return image.permute(0, 3, 1, 2)
