"""Online hard example mining, the baseline of Table 1d (Sec. 5.1, "Focal Loss vs. OHEM").

Every anchor is scored by its loss, non-maximum suppression removes the duplicates, and only the
hardest anchors of an image form its minibatch; the 1:3 variant also fixes how many of them are
positive, as SSD does.

# Unstated: the paper has no code for this. Ours, per image: the score is the cross entropy summed
over the classes, without alpha; suppression is class-agnostic, among the boxes that the anchors
predict (or among the anchors), after a cut to the 10,000 hardest; the loss is the sum over the kept
anchors divided by the size of the minibatch.

Shapes: A anchors of one image, K classes; boxes float ``x1, y1, x2, y2`` in pixels.
"""

import torch
from torch import Tensor
from torchvision.ops import nms

from ..loss import IGNORED, cross_entropy, per_anchor

CUT = 10_000  # anchors that enter the suppression


def ohem(
    logits: Tensor,
    labels: Tensor,
    boxes: Tensor,
    *,
    batch: int = 128,
    iou: float = 0.7,
    ratio: int = 0,
) -> Tensor:
    """Mined cross entropy of one image, divided by `batch`; a scalar.

    Args:
        logits: (A, K).
        labels: (A,) class, background or ignored, as in `loss`.
        boxes: (A, 4) that the suppression compares.
        batch: anchors of the minibatch.
        iou: an anchor is suppressed by a harder one that overlaps it by more.
        ratio: 0 for the hardest of any kind; 3 for three negatives to each positive.

    """
    with torch.no_grad():
        scores = per_anchor(cross_entropy, logits, labels)
        kept = hardest(scores, labels, boxes, batch=batch, iou=iou, ratio=ratio)
    return per_anchor(cross_entropy, logits[kept], labels[kept]).sum() / batch


def hardest(
    scores: Tensor,
    labels: Tensor,
    boxes: Tensor,
    *,
    batch: int,
    iou: float,
    ratio: int = 0,
) -> Tensor:
    """Indices of the kept anchors, at most `batch`; see `ohem`.

    Suppression goes from the hardest anchor down, so what it keeps of the first anchors does not
    depend on the others: it is tried on a few first, which is much cheaper and gives the same.
    """
    candidates = torch.nonzero(labels != IGNORED).squeeze(1)
    order = scores[candidates].argsort(descending=True, stable=True)[:CUT]
    candidates = candidates[order]
    size = 4 * batch
    while True:
        first, rest = candidates[:size], candidates[size:]
        kept = first[nms(boxes[first].float(), scores[first], iou)]
        if ratio:
            most = batch // (1 + ratio)
            positives = kept[labels[kept] >= 0][:most]
            negatives = kept[labels[kept] < 0][: ratio * len(positives)]
            chosen = torch.cat((positives, negatives))
            complete = len(negatives) == ratio * len(positives) and (
                len(positives) == most or not bool((labels[rest] >= 0).any())
            )
        else:
            chosen = kept[:batch]
            complete = len(chosen) == batch
        if complete or len(rest) == 0:
            return chosen
        size *= 4
