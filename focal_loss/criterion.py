"""What RetinaNet minimises: targets, the two losses and what they are divided by (Sec. 3, 4.1).

Shapes: N images, A anchors, K classes, M objects of an image; boxes float ``x1, y1, x2, y2`` in
pixels of the input image; labels int64 from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed
from torch import Tensor, nn

from .loss import focal_loss, hinge, per_anchor, softmax_focal
from .targets.assign import LOW_QUALITY, assign, pad
from .targets.boxes import KINDS as KINDS_OF_BOX_LOSS
from .targets.boxes import box_loss, decode
from .targets.mining import ohem

CHOICES = {
    "kind": ("focal", "focal_star", "softmax_focal", "hinge", "ohem"),
    "normalizer": ("image", "gpu", "gpu_plus_n", "ema", "world"),
    "box": KINDS_OF_BOX_LOSS,
    "low_quality": LOW_QUALITY,
    "mining_boxes": ("predicted", "anchors"),
}


@dataclass(frozen=True)
class Assignment:
    """What the anchors of a batch have to predict, and what its losses are divided by.

    labels, match: (N, A), see `assign`. boxes: (N, M, 4), padded. class_divisor, box_divisor: (N,).
    images: of the whole batch, also in a piece of it.
    """

    labels: Tensor
    match: Tensor
    boxes: Tensor
    class_divisor: Tensor
    box_divisor: Tensor
    images: int

    def split(self, parts: int) -> list["Assignment"]:
        """`parts` pieces of as many images each, whose losses add up to those of the batch."""
        if len(self.labels) % parts:
            raise ValueError(f"{len(self.labels)} images cannot be cut into {parts} equal pieces.")
        names = ("labels", "match", "boxes", "class_divisor", "box_divisor")
        chunks = [getattr(self, name).chunk(parts) for name in names]
        pieces = zip(*chunks, strict=True)
        return [replace(self, **dict(zip(names, piece, strict=True))) for piece in pieces]


@dataclass(eq=False, repr=False, kw_only=True)
class DetectionLoss(nn.Module):
    """Classification and box loss of a batch; the fields are its options.

    What both losses are divided by, `normalizer`, where npos counts positive anchors:

    * ``"image"``: max(1, npos) of each image, then the mean over images (the paper's text).
    * ``"gpu"``: the sum of npos + 1 over the images of this process (Detectron).
    * ``"gpu_plus_n"``: npos + N for classes, max(1, 4 npos) for boxes (maskrcnn-benchmark).
    * ``"ema"``: running mean (0.9, from 100) of max(1, npos) of this process (detectron2).
    * ``"world"``: max(1, npos of all processes) / processes, so that averaged gradients
      are those of one process with the whole batch.
    """

    # "focal" (Eq. 5; cross entropy with gamma = 0), "focal_star" (Eq. 11), "softmax_focal" (logits
    # with a background channel in front), "hinge" or "ohem" (cross entropy of mined anchors)
    kind: str = "focal"
    alpha: float | None = 0.25  # weight of the yes-questions; -1 or None: no weights; not of OHEM
    gamma: float = 2.0  # focusing strength
    beta: float = 0.0  # shift of FL*
    normalizer: str = "image"
    box: str = "smooth_l1"  # or "l1", "giou", "diou", "ciou"
    box_beta: float = 1 / 9  # where smooth L1 turns from quadratic to linear
    box_weight: float = 1.0  # factor of the box loss
    positive_iou: float = 0.5  # an anchor with this overlap is positive
    negative_iou: float = 0.4  # with less it is background; in between it is ignored
    low_quality: str = "d1"  # or "none", "any": the best anchors that are rescued, see `assign`
    ignore_crowds: bool = False  # anchors mostly inside a box of target["ignore"] cost nothing
    mining_batch: int = 128  # anchors per image that OHEM keeps
    mining_nms: float = 0.7  # IoU of its suppression
    mining_ratio: int = 0  # negatives to each positive (3 for "OHEM 1:3"); 0: no fixed ratio
    mining_boxes: str = "predicted"  # or "anchors": what its suppression compares
    coder_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # of dx, dy, dw, dh
    plus_one: bool = False  # Detectron's pixel-counting convention in the box coding

    def __post_init__(self) -> None:
        super().__init__()
        self._check()
        self.assign = partial(
            assign,
            low_quality=self.low_quality,
            positive=self.positive_iou,
            negative=self.negative_iou,
        )
        self.mine = partial(
            ohem, batch=self.mining_batch, iou=self.mining_nms, ratio=self.mining_ratio
        )
        self.decode = partial(decode, weights=self.coder_weights, plus_one=self.plus_one)
        self.box_loss = partial(
            box_loss,
            kind=self.box,
            beta=self.box_beta,
            weights=self.coder_weights,
            plus_one=self.plus_one,
        )
        self.npos: Tensor  # running number of positive anchors
        if self.normalizer == "ema":
            self.register_buffer("npos", torch.tensor(100.0))  # detectron2's start

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        offsets: Tensor,
        anchors: Tensor,
        targets: Sequence[dict[str, Tensor]] | Assignment,
    ) -> dict[str, Tensor]:
        """``{"classification": scalar, "box": scalar}``, to be added up.

        Args:
            logits: (N, A, K), or (N, A_l, K) per level; K + 1 channels for ``"softmax_focal"``.
            offsets: (N, A, 4), or (N, A, 4 K) with one box per class.
            anchors: (A, 4).
            targets: per image ``boxes`` (M, 4) and ``labels`` (M,), and for `ignore_crowds`
                ``ignore`` (C, 4); or, where gradients are accumulated, a piece of `assignment`.

        """
        N, _, classes = (logits if isinstance(logits, Tensor) else logits[0]).shape
        if not isinstance(targets, Assignment):
            classes -= self.kind == "softmax_focal"
            targets = self.assignment(anchors, targets, classes=classes)
        if len(targets.labels) != N:
            raise ValueError(f"{N} images come with {len(targets.labels)} targets: give one each.")
        return {
            "classification": self._classification(logits, offsets, anchors, targets),
            "box": self.box_weight * self._box(offsets, anchors, targets),
        }

    def assignment(
        self,
        anchors: Tensor,
        targets: Sequence[dict[str, Tensor]],
        *,
        classes: int | None = None,
    ) -> Assignment:
        """Assignment of a whole batch, for all pieces in which gradients are accumulated.

        classes: number of classes K that the labels must lie below, where it is known. With the
        normalizer ``"ema"`` each call in training is one step of the running mean.
        """
        _require_valid(targets, classes)
        boxes = [target["boxes"] for target in targets]
        crowds = [target["ignore"] for target in targets] if self.ignore_crowds else None
        labels, match = self.assign(
            anchors, boxes, [target["labels"] for target in targets], crowds=crowds
        )  # (N, A), (N, A)
        for_classes, for_boxes = self._normalizers((labels >= 0).sum(1))  # each (N,)
        return Assignment(
            labels, match, pad(boxes, anchors), for_classes, for_boxes, images=len(labels)
        )

    def _check(self) -> None:
        """Stop at an option out of its range."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            _require(name, repr(value), value in choices, f"one of {', '.join(choices)}")
        self.alpha = alpha = -1 if self.alpha is None else self.alpha
        gamma, low, high, ratio = (
            self.gamma,
            self.negative_iou,
            self.positive_iou,
            self.mining_ratio,
        )
        for name, valid, advice in (
            ("alpha", alpha == -1 or 0 <= alpha <= 1, "0..1, or -1 for no weights"),
            ("gamma", gamma >= 0, "0 or more"),
            ("gamma", gamma > 0 or self.kind != "focal_star", "more than 0 for focal_star"),
            ("box_beta", self.box_beta >= 0, "0, which is L1, or more"),
            ("positive_iou", 0 < high <= 1, "more than 0 and at most 1"),
            ("negative_iou", 0 < low <= high, "more than 0 and at most positive_iou"),
            ("mining_ratio", ratio >= 0, "0, which is off, or more"),
            ("mining_batch", self.mining_batch > ratio, "more than mining_ratio and than 0"),
            ("mining_nms", 0 <= self.mining_nms <= 1, "an overlap in 0..1"),
        ):
            _require(name, getattr(self, name), valid, advice)

    def _classification(
        self,
        logits: Tensor | Sequence[Tensor],
        offsets: Tensor,
        anchors: Tensor,
        targets: Assignment,
    ) -> Tensor:
        alpha, gamma = self.alpha, self.gamma
        labels, normalizer = targets.labels, targets.class_divisor
        if self.kind in ("focal", "focal_star"):
            beta = self.beta if self.kind == "focal_star" else None
            return focal_loss(
                logits, labels, alpha=alpha, gamma=gamma, beta=beta, normalizer=normalizer
            )
        if not isinstance(logits, Tensor):
            logits = torch.cat(list(logits), dim=1)
        if self.kind == "ohem":
            boxes = self._mining_boxes(logits, offsets, anchors)
            images = zip(logits, labels, boxes, strict=True)
            return torch.stack([self.mine(*image) for image in images]).sum() / targets.images
        if self.kind == "hinge":
            losses = per_anchor(partial(hinge, alpha=alpha), logits, labels)
        else:
            losses = softmax_focal(logits, labels, alpha=alpha, gamma=gamma)
        return (losses.sum(1) / normalizer).sum()

    def _box(self, offsets: Tensor, anchors: Tensor, targets: Assignment) -> Tensor:
        labels, match, boxes = targets.labels, targets.match, targets.boxes
        image, anchor = torch.nonzero(labels >= 0, as_tuple=True)  # (P,), (P,)
        found = offsets[image, anchor]  # (P, 4) or (P, 4 K)
        if offsets.shape[-1] != 4:
            rows = torch.arange(len(found), device=found.device)
            found = found.unflatten(-1, (-1, 4))[rows, labels[image, anchor]]
        losses = self.box_loss(found, anchors[anchor], boxes[image, match[image, anchor]])
        return (losses / targets.box_divisor[image]).sum()

    @torch.no_grad()
    def _mining_boxes(self, logits: Tensor, offsets: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (N, A, 4) that OHEM suppresses; with a box per class, the likeliest class's."""
        if self.mining_boxes == "anchors":
            return anchors.expand(len(logits), -1, -1)
        if offsets.shape[-1] != 4:
            best = logits.argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
            offsets = offsets.unflatten(-1, (-1, 4)).gather(2, best).squeeze(2)
        return self.decode(offsets.float(), anchors)

    @torch.no_grad()
    def _normalizers(self, npos: Tensor) -> tuple[Tensor, Tensor]:
        """Denominators of the class and the box loss, each (N,), from the positives per image."""
        N = len(npos)
        npos = npos.float()
        if self.normalizer == "image":
            each = npos.clamp(min=1) * N
            return each, each
        total = npos.sum()
        if self.normalizer == "gpu_plus_n":
            return (total + N).expand(N), (4 * total).clamp(min=1).expand(N)
        if self.normalizer == "gpu":
            total = total + N
        elif self.normalizer == "ema":
            if self.training:
                self.npos.lerp_(total.clamp(min=1), 0.1)
            total = self.npos.clone()
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
            total = total.clamp(min=1) / torch.distributed.get_world_size()
        else:
            total = total.clamp(min=1)
        return total.expand(N), total.expand(N)


def _require(name: str, value: float | str, valid: bool, advice: str) -> None:
    if not valid:
        raise ValueError(f"{name} is {value}; choose {advice}.")


def _require_valid(targets: Sequence[dict[str, Tensor]], classes: int | None) -> None:
    """Stop at malformed targets; a GPU is waited for once."""
    if not targets:
        raise ValueError("There are no targets: give one per image, with boxes (0, 4) for none.")
    for i, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.shape != (len(labels), 4):
            raise ValueError(
                f"Target {i} has boxes {tuple(boxes.shape)} for {len(labels)} labels; "
                "give (M, 4) boxes and (M,) labels."
            )
    boxes = torch.cat([target["boxes"] for target in targets])  # (sum of M, 4)
    labels = torch.cat([target["labels"] for target in targets])
    wrong_box = ~boxes.isfinite().all(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    wrong_label = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if not torch.stack([wrong_box.any(), wrong_label.any()]).any():
        return
    row = int((wrong_box | wrong_label).nonzero()[0])
    image = [i for i, target in enumerate(targets) for _ in target["labels"]][row]
    if wrong_box[row]:
        raise ValueError(
            f"Target {image} has the box {boxes[row].tolist()}: give finite x1, y1, x2, y2 with "
            "x1 <= x2 and y1 <= y2 (x, y, width, height are to be converted)."
        )
    valid = "from 0" if classes is None else f"in 0..{classes - 1}, as the logits have them"
    raise ValueError(f"Target {image} has the label {int(labels[row])}: labels must lie {valid}.")
