"""A box as four offsets from its anchor, and back; the losses of such offsets (Sec. 4, 4.1).

Shapes: boxes and anchors (..., 4) float ``x1, y1, x2, y2`` in pixels; offsets (..., 4) float
``dx, dy, dw, dh`` without unit; P positive anchors. Leading dimensions broadcast, so offsets
(N, A, 4) decode with anchors (A, 4), and class-specific offsets (N, A, K, 4) with
``anchors[:, None]``.

    dx = (gx - ax) / aw,  dy = (gy - ay) / ah,  dw = log(gw / aw),  dh = log(gh / ah)

where x and y are centres, g is the box and a its anchor: the coding of R-CNN, in RetinaNet with
weights (1, 1, 1, 1) (Sec. 4, "Box Regression Subnet"). The paper's loss is smooth L1; the overlap
losses (GIoU 1902.09630, DIoU and CIoU 1911.08287) came after it and compare decoded boxes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

MAX_LOG_RATIO = math.log(1000 / 16)  # a decoded side is at most 62.5 times the anchor's; Detectron
KINDS = ("smooth_l1", "l1", "giou", "diou", "ciou")
OVERLAP = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


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


def smooth_l1(offsets: Tensor, targets: Tensor, *, beta: float = 1 / 9) -> Tensor:
    """d^2 / (2 beta) where |d| < beta and |d| - beta / 2 elsewhere, summed over the 4; (P,).

    `beta` = 0 is L1.

    # Differs: the paper says "the standard smooth L1"; beta = 1/9 is what its code used.
    """
    return F.smooth_l1_loss(offsets, targets, beta=beta, reduction="none").sum(-1)


def box_loss(
    offsets: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    *,
    kind: str = "smooth_l1",
    beta: float = 1 / 9,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    plus_one: bool = False,
) -> Tensor:
    """Loss (P,) of the `offsets` predicted from `anchors` towards `boxes`, each (P, 4).

    `weights` and `plus_one` are those of `encode`. With P = 0 the sum is exactly 0 and still
    belongs to the graph of `offsets`.
    """
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    if kind in OVERLAP:
        predicted = decode(offsets, anchors, weights=weights, plus_one=plus_one)
        return OVERLAP[kind](predicted, boxes)
    if kind not in KINDS:
        raise ValueError(f"The box loss is {kind!r}; choose one of {', '.join(KINDS)}.")
    targets = encode(boxes, anchors, weights=weights, plus_one=plus_one)
    return smooth_l1(offsets, targets, beta=0.0 if kind == "l1" else beta)


def _centers_and_sizes(boxes: Tensor, plus_one: bool) -> tuple[Tensor, Tensor]:
    """Centres and sides, each (..., 2)."""
    low, high = boxes.split(2, dim=-1)
    sizes = high - low + float(plus_one)
    return low + 0.5 * sizes, sizes
