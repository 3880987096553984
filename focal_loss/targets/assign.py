"""Which anchor is responsible for which object (Sec. 4, "Anchors").

An anchor goes to the object it overlaps most if their IoU reaches 0.5, is background if that IoU is
below 0.4, and is ignored in between. A box per object would then be enough, but an object may have
no anchor at 0.5, and here the sources part:

* ``"none"``: nothing is done about it; this is what the paper says.
* ``"d1"``: an object's best anchors are positive if their IoU is at least 0.4 (Detectron, the
  authors' code: it marks best anchors first and clears everything below 0.4 afterwards).
* ``"any"``: an object's best anchors are positive at any IoU (detectron2, torchvision).

# Unstated: the paper does not speak of best anchors; the default follows the authors' code. In all
three, a rescued anchor learns the object that *it* overlaps most, which may be another one.

Shapes: N images, A anchors, M objects of an image, C crowd boxes of an image; boxes are float
``x1, y1, x2, y2`` in pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..loss import BACKGROUND, IGNORED

LOW_QUALITY = ("none", "d1", "any")
CHUNK = 2**23  # overlaps computed at once: 32 MB for each of a handful of temporaries
CROWD_COVER = 0.5  # an anchor lies on a crowd if more than this part of it is covered


def assign(
    anchors: Tensor,
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    *,
    low_quality: str = "d1",
    positive: float = 0.5,
    negative: float = 0.4,
    crowds: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels (N, A) int64 and matched object (N, A) int64 of every anchor, for N images at once.

    A label is the class of the matched object, ``BACKGROUND`` or ``IGNORED``. The matched object is
    an index into the image's `boxes` and has a meaning only where the label is a class.

    Args:
        anchors: (A, 4), the same for all images.
        boxes: per image (M, 4). Boxes without area (and NaN) are never matched. M may be 0.
        classes: per image (M,) int64 from 0.
        low_quality: ``"none"``, ``"d1"`` or ``"any"``, see above.
        positive: an anchor with this IoU or more is positive.
        negative: an anchor with less than this IoU is background.
        crowds: per image (C, 4) or None; a background anchor with more than half of its area in
            one crowd box is ignored.

    """
    if low_quality not in LOW_QUALITY:
        raise ValueError(f"low_quality is {low_quality!r}; choose one of {', '.join(LOW_QUALITY)}.")
    padded = pad(boxes, anchors)  # (N, M, 4)
    padded_classes = pad(classes, anchors).long()  # (N, M)
    chunk = max(1, CHUNK // max(1, padded.shape[0] * padded.shape[1]))
    chunks = anchors.split(chunk)

    overlaps = _iou(padded, chunks[0])  # (N, M, A'), the only ones but for huge inputs
    best_of_anchor, best_of_object = [], []
    for i, part in enumerate(chunks):
        iou = overlaps if i == 0 else _iou(padded, part)
        best_of_anchor.append(iou.max(dim=1))
        best_of_object.append(iou.amax(dim=2))
    best_iou = torch.cat([each.values for each in best_of_anchor], dim=1)  # (N, A)
    match = torch.cat([each.indices for each in best_of_anchor], dim=1)  # (N, A)

    found = best_iou >= positive
    if low_quality != "none":
        # An object that no anchor touches has IoU 0 with all of them and rescues none.
        best = torch.stack(best_of_object).amax(dim=0)  # (N, M)
        best = best.masked_fill(best <= 0, torch.inf).unsqueeze(-1)
        rescued = torch.cat(
            [
                ((overlaps if i == 0 else _iou(padded, part)) == best).any(1)
                for i, part in enumerate(chunks)
            ],
            dim=1,
        )
        if low_quality == "d1":
            rescued &= best_iou >= negative
        found |= rescued

    labels = torch.where(best_iou < negative, BACKGROUND, IGNORED)
    if crowds is not None:
        on_crowd = _cover(anchors, pad(crowds, anchors)) > CROWD_COVER
        labels = labels.masked_fill(on_crowd, IGNORED)
    return torch.where(found, padded_classes.gather(1, match), labels), match


def pad(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """One tensor (N, M, ...) of the rows of every image, M >= 1, zeros below the shorter ones."""
    dtype = like.dtype if rows[0].is_floating_point() else rows[0].dtype
    padded = pad_sequence([each.to(like.device, dtype) for each in rows], batch_first=True)
    if padded.shape[1]:
        return padded
    return padded.new_zeros(len(rows), 1, *padded.shape[2:])


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Overlap (N, M, A) of boxes (N, M, 4) with anchors (A, 4); -1 for boxes without area."""
    inter = _intersection(boxes, anchors)
    low, high = boxes.split(2, dim=-1)
    real = (high > low).all(dim=-1, keepdim=True)  # (N, M, 1), False for NaN
    union = (_area(boxes)[..., None] + _area(anchors)).sub_(inter)
    return inter.div_(union).masked_fill_(~real, -1.0)


def _cover(anchors: Tensor, crowds: Tensor) -> Tensor:
    """Largest part (N, A), 0..1, of each anchor that lies in one of the crowds (N, C, 4)."""
    return (_intersection(crowds, anchors) / _area(anchors)).amax(dim=1)


def _intersection(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Common area (N, M, A) in square pixels; anchors last, so that long rows are contiguous."""
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(dim=2)  # each (N, M, 1)
    ax1, ay1, ax2, ay2 = anchors.T.contiguous()  # each (A,)
    width = torch.minimum(x2, ax2).sub_(torch.maximum(x1, ax1)).clamp_(min=0)
    height = torch.minimum(y2, ay2).sub_(torch.maximum(y1, ay1)).clamp_(min=0)
    return width.mul_(height)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
