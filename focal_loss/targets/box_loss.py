"""Box regression losses; the paper's is smooth L1 (Sec. 4.1).

Shapes: P positive anchors; offsets (P, 4) without unit, see `coder`; boxes (P, 4) float
``x1, y1, x2, y2`` in pixels. The overlap losses (GIoU 1902.09630, DIoU and CIoU 1911.08287) came
after the paper and compare decoded boxes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from .coder import decode, encode

KINDS = ("smooth_l1", "l1", "giou", "diou", "ciou")
OVERLAP = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


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

    `weights` and `plus_one` are those of the coder. With P = 0 the sum is exactly 0 and still
    hangs on the graph of `offsets`.
    """
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
    if kind in OVERLAP:
        predicted = decode(offsets, anchors, weights=weights, plus_one=plus_one)
        return OVERLAP[kind](predicted, boxes)
    if kind not in KINDS:
        raise ValueError(f"The box loss is {kind!r}; choose one of {', '.join(KINDS)}.")
    targets = encode(boxes, anchors, weights=weights, plus_one=plus_one)
    return smooth_l1(offsets, targets, beta=0.0 if kind == "l1" else beta)
