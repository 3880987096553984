"""Detections of RetinaNet: inference of Sec. 4.1, soft NMS, test-time augmentation.

Legend: N images, A anchors of all levels, K classes, M boxes of an image.
Boxes are float32 `x1, y1, x2, y2` in pixels, labels int64 from 0, scores probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms

from .model import RetinaNet
from .targets.boxes import decode

NMS_KINDS = ("hard", "soft_linear", "soft_gaussian")
Size = tuple[int, int]  # height, width
Detections = dict[str, Tensor]  # "boxes" (M, 4), "scores" (M,), "labels" (M,)
KEYS = ("boxes", "scores", "labels")


@dataclass(frozen=True)
class Detector:
    """Options of inference; the defaults are the paper's.

    score: pairs of anchor and class at or below this probability are dropped.
    topk: best pairs kept on each level before suppression.
    nms: IoU above which the worse of two boxes is suppressed (or, "soft_linear", weakened).
    nms_kind: "hard", or the two of Soft-NMS (arXiv 1704.04503).
    sigma: width of "soft_gaussian": a score falls by exp(-IoU**2 / sigma).
    soft_score: boxes that Soft-NMS weakens to this score or below are dropped.
    class_agnostic: boxes of different classes suppress each other too.
    detections: best boxes kept of an image.
    keep_coarsest: no score threshold on the last level, so that no image stays empty (Detectron).
    """

    score: float = 0.05
    topk: int = 1000
    nms: float = 0.5
    nms_kind: str = "hard"
    sigma: float = 0.5
    soft_score: float = 0.001
    class_agnostic: bool = False
    detections: int = 100
    keep_coarsest: bool = False

    def __post_init__(self) -> None:
        for name in ("score", "nms", "soft_score"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} = {value} must lie between 0 and 1.")
        if self.nms_kind not in NMS_KINDS:
            raise ValueError(f"nms_kind = {self.nms_kind!r} is not one of {', '.join(NMS_KINDS)}.")
        if self.topk < 1 or self.detections < 1:
            raise ValueError(
                f"topk = {self.topk} and detections = {self.detections} must be 1 or more."
            )
        if self.sigma <= 0:
            raise ValueError(f"sigma = {self.sigma} of soft NMS must be positive.")

    def __call__(
        self,
        model: RetinaNet,
        images: Tensor,
        sizes: Sequence[Size] | None = None,
        originals: Sequence[Size] | None = None,
    ) -> list[Detections]:
        """Detections of a batch, best first; see `candidates` for the arguments."""
        return [self.select(c) for c in self.candidates(model, images, sizes, originals)]

    @torch.no_grad()
    def candidates(
        self,
        model: RetinaNet,
        images: Tensor,
        sizes: Sequence[Size] | None = None,
        originals: Sequence[Size] | None = None,
        *,
        flip: bool = False,
    ) -> list[Detections]:
        """Decoded boxes of each image before suppression.

        model: in evaluation mode.
        images: (N, 3, H, W), normalised, padded at the right and below.
        sizes: height and width of the images without padding; boxes are clipped to them.
        originals: height and width that boxes are scaled to; without them pixels of `images`.
        flip: look at mirrored images; the boxes returned are those of the images as they are.
        """
        height, width = images.shape[-2:]
        sizes = [(height, width)] * len(images) if sizes is None else sizes
        originals = sizes if originals is None else originals
        if not len(images) == len(sizes) == len(originals):
            raise ValueError(
                f"{len(images)} images came with {len(sizes)} sizes and {len(originals)} originals."
            )
        logits, offsets = model(mirror(images, sizes) if flip else images)
        anchors = model.anchors(height, width)
        counts = model.anchor_grid.counts(height, width)
        results = []
        for i, (size, original) in enumerate(zip(sizes, originals, strict=True)):
            found = self._decode(model, logits[i], offsets[i], anchors, counts, size)
            if flip:
                found["boxes"] = mirror_boxes(found["boxes"], size[1])
            found["boxes"] = rescale(found["boxes"], size, original)
            results.append(found)
        return results

    def select(self, candidates: Detections) -> Detections:
        """Suppress overlapping boxes of one image and keep the best `detections`."""
        boxes, scores, labels = (candidates[key] for key in KEYS)
        groups = torch.zeros_like(labels) if self.class_agnostic else labels
        if self.nms_kind == "hard":
            if self.class_agnostic:
                keep = nms(boxes, scores, self.nms)
            else:
                keep = batched_nms(boxes, scores, groups, self.nms)
            keep = keep[: self.detections]
            scores = scores[keep]
        else:
            keep, scores = soft_nms(
                boxes,
                scores,
                groups,
                threshold=self.nms,
                sigma=self.sigma if self.nms_kind == "soft_gaussian" else None,
                smallest=self.soft_score,
                most=self.detections,
            )
        return {"boxes": boxes[keep], "scores": scores, "labels": labels[keep]}

    def detect_augmented(
        self,
        model: RetinaNet,
        images: Tensor,
        sizes: Sequence[Size] | None = None,
        originals: Sequence[Size] | None = None,
        *,
        short_sides: Sequence[int] = (),
        flip: bool = True,
    ) -> list[Detections]:
        """Detections merged by NMS over several sizes and, with `flip`, mirrored images.

        short_sides: pixels; the images are resized to each, long side at most 5/3 of it as in
            Sec. 5 (1333 for 800). Empty: the images as they are. Other arguments: `candidates`.
        """
        height, width = images.shape[-2:]
        sizes = [(height, width)] * len(images) if sizes is None else list(sizes)
        originals = sizes if originals is None else originals
        views = [resize(images, sizes, side) for side in short_sides] or [(images, sizes)]
        found: list[list[Detections]] = [[] for _ in sizes]
        for view, view_sizes in views:
            for mirrored in (False, True)[: 1 + flip]:
                candidates = self.candidates(model, view, view_sizes, originals, flip=mirrored)
                for image, new in zip(found, candidates, strict=True):
                    image.append(new)
        return [self.select({k: torch.cat([c[k] for c in image]) for k in KEYS}) for image in found]

    def _decode(
        self,
        model: RetinaNet,
        logits: Tensor,
        offsets: Tensor,
        anchors: Tensor,
        counts: list[int],
        size: Size,
    ) -> Detections:
        """One image: (A, K) logits, (A, 4) offsets -> boxes of the best pairs of every level."""
        plus_one = model.anchor_grid.mode == "detectron"
        parts = []
        levels = zip(*(each.split(counts) for each in (logits, offsets, anchors)), strict=True)
        for level, (logits, offsets, anchors) in enumerate(levels):
            coarsest = level == len(counts) - 1
            threshold = 0.0 if self.keep_coarsest and coarsest else self.score
            scores, pairs = best_pairs(_full(logits), threshold, self.topk, softmax=model.softmax)
            places, labels = pairs // model.num_classes, pairs % model.num_classes
            offsets = offsets[places]  # (M, 4) or (M, 4 K)
            if model.class_specific_box:
                each = torch.arange(len(labels), device=labels.device)
                offsets = offsets.unflatten(1, (-1, 4))[each, labels]
            boxes = decode(_full(offsets), anchors[places], plus_one=plus_one)
            parts.append((boxes, scores, labels))
        boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        if plus_one:  # corners are the first and last pixel inside
            boxes = clip_boxes_to_image(boxes, (size[0] - 1, size[1] - 1))
            boxes = boxes + boxes.new_tensor([0, 0, 1, 1])
        return {"boxes": clip_boxes_to_image(boxes, size), "scores": scores, "labels": labels}


def _full(values: Tensor) -> Tensor:
    """At least float32: scores and boxes are not computed in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def best_pairs(
    logits: Tensor, threshold: float, topk: int, *, softmax: bool = False
) -> tuple[Tensor, Tensor]:
    """Scores above `threshold` of one level, best first, at most `topk`, and their places.

    (A, K) logits, with `softmax` (A, 1 + K) -> (M,) scores, (M,) places in the flattened (A, K).
    """
    if softmax:
        scores = logits.softmax(-1)[:, 1:].flatten()
        places = (scores > threshold).nonzero()[:, 0]
        scores = scores[places]
    else:
        # The sigmoid of all A * K logits is needless: a bound just below its inverse comes first.
        bound = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item() - 1e-3
        logits = logits.flatten()
        places = (logits > bound).nonzero()[:, 0]
        scores = logits[places].sigmoid()
        above = scores > threshold
        places, scores = places[above], scores[above]
    scores, order = scores.topk(min(topk, len(scores)))
    return scores, places[order]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    threshold: float = 0.5,
    sigma: float | None = None,
    smallest: float = 0.001,
    most: int = 100,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS of Bodla et al., arXiv 1704.04503: overlap weakens a box instead of removing it.

    boxes (M, 4), scores (M,), groups (M,): only boxes of one group weaken each other.
    sigma: exp(-IoU**2 / sigma), Eq. 3 there; None: 1 - IoU above `threshold`, its Sec. 3.
    Returns indices and weakened scores, best first, at most `most`, each above `smallest`.
    """
    scores = scores.clone()
    kept, weakened = [], []
    # Scores only fall, so the picks of all groups together come in the order of their last scores.
    for _ in range(min(most, len(scores))):
        best = scores.argmax()
        kept.append(best)
        weakened.append(scores[best])
        iou = box_iou(boxes[best][None], boxes)[0]
        iou = iou * (groups == groups[best])
        if sigma is None:
            factor = torch.where(iou > threshold, 1 - iou, 1)
        else:
            factor = torch.exp(-iou.square() / sigma)
        scores = scores * factor
        scores[best] = -1  # taken
    if not kept:
        return groups.new_zeros(0), scores
    indices, values = torch.stack(kept), torch.stack(weakened)
    above = values > smallest
    return indices[above], values[above]


def mirror(images: Tensor, sizes: Sequence[Size]) -> Tensor:
    """(N, 3, H, W) images mirrored left to right within their sizes; the padding stays in place."""
    result = images.clone()
    for image, (height, width) in zip(result, sizes, strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(-1)
    return result


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """(M, 4) boxes mirrored left to right in an image `width` pixels wide."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], -1)


def rescale(boxes: Tensor, size: Size, original: Size) -> Tensor:
    """(M, 4) boxes of an image of `size` in pixels of an image of `original` size."""
    if tuple(size) == tuple(original):
        return boxes
    down, right = (
        torch.tensor(float(new)) / torch.tensor(float(old))
        for new, old in zip(original, size, strict=True)
    )
    return boxes * torch.stack([right, down, right, down]).to(boxes)


def resize(
    images: Tensor, sizes: Sequence[Size], short_side: int, multiple: int = 32
) -> tuple[Tensor, list[Size]]:
    """Images resized to this short side (long side at most 5/3 of it) and padded; their sizes."""
    views, new_sizes = [], []
    for image, (height, width) in zip(images, sizes, strict=True):
        short, long = min(height, width), max(height, width)
        factor = min(short_side / short, short_side * 5 / 3 / long)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        image = image[None, :, :height, :width]
        views.append(F.interpolate(image, size, mode="bilinear", antialias=True)[0])
        new_sizes.append(size)
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*new_sizes, strict=True))
    batch = images.new_zeros(len(views), images.shape[1], height, width)
    for place, view in zip(batch, views, strict=True):
        place[:, : view.shape[1], : view.shape[2]] = view
    return batch.contiguous(memory_format=torch.channels_last), new_sizes
