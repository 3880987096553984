"""Box coding of R-CNN: a box as four offsets from its anchor, and back.

Shapes: boxes and anchors (..., 4) float ``x1, y1, x2, y2`` in pixels; offsets (..., 4) float
``dx, dy, dw, dh`` without unit. Leading dimensions broadcast, so offsets (N, A, 4) decode with
anchors (A, 4), and class-specific offsets (N, A, K, 4) with ``anchors[:, None]``.

    dx = (gx - ax) / aw,  dy = (gy - ay) / ah,  dw = log(gw / aw),  dh = log(gh / ah)

where x and y are centres, g is the box and a its anchor. RetinaNet uses this coding with weights
(1, 1, 1, 1) (Sec. 4, "Box Regression Subnet").
"""

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)  # a decoded side is at most 62.5 times the anchor's; Detectron


def encode(
    boxes: Tensor,
    anchors: Tensor,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    plus_one: bool = False,
) -> Tensor:
    """Offsets (..., 4) that carry `anchors` onto `boxes`.

    `weights` multiply dx, dy, dw, dh. `plus_one` counts pixels as Detectron does: a box from x1 to
    x2 is x2 - x1 + 1 wide. Boxes and anchors must have positive sides.
    """
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors, plus_one)
    centers, sizes = _centers_and_sizes(boxes, plus_one)
    shift = (centers - anchor_centers) / anchor_sizes
    scale = torch.log(sizes / anchor_sizes)
    return torch.cat((shift, scale), dim=-1) * boxes.new_tensor(weights)


def decode(
    offsets: Tensor,
    anchors: Tensor,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    plus_one: bool = False,
) -> Tensor:
    """Boxes (..., 4) in pixels, not clipped to the image; the inverse of `encode`.

    dw and dh are clamped at log(1000 / 16), so that no offset overflows the exponential.
    """
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors, plus_one)
    shift, scale = (offsets / offsets.new_tensor(weights)).split(2, dim=-1)
    centers = shift * anchor_sizes + anchor_centers
    sizes = scale.clamp(max=MAX_LOG_RATIO).exp() * anchor_sizes
    low = centers - 0.5 * sizes
    high = centers + 0.5 * sizes - float(plus_one)
    return torch.cat((low, high), dim=-1)


def _centers_and_sizes(boxes: Tensor, plus_one: bool) -> tuple[Tensor, Tensor]:
    """Centres and sides, each (..., 2)."""
    low, high = boxes.split(2, dim=-1)
    sizes = high - low + float(plus_one)
    return low + 0.5 * sizes, sizes
