"""Ignore regions: boxes in whose inside a detector learns neither objects nor background.

torchvision has none. A target of an image has them as `ignore` (I, 4), xyxy pixels like `boxes`:
crowds, and detections too unsure for a label (iscrowd 1 in COCO's format).
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import box_iou

# Unstated: the share of a box that lies in a region. Any box whose IoU with it is .5 is covered.
COVERED = 0.5


def covered_share(boxes: Tensor, regions: Tensor) -> Tensor:
    """Largest share of each box (N, 4) that one of the regions (I, 4), at least one, covers."""
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    inside = (high - low).clamp(min=0).prod(2).amax(1)
    return inside / (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-9)


def has_regions(target: dict[str, Tensor]) -> bool:
    """Whether a target has ignore regions."""
    return "ignore" in target and len(target["ignore"]) > 0


class IgnoreTransform(GeneralizedRCNNTransform):
    """torchvision's, which resizes the ignore regions too."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image (3, H, W) and its target at the network's size."""
        before = image.shape[-2:]
        image, target = super().resize(image, target)
        if target is not None and has_regions(target):
            target["ignore"] = resize_boxes(target["ignore"], before, image.shape[-2:])
        return image, target


class IgnoreRPN(RegionProposalNetwork):
    """torchvision's, which learns from no anchor and hands on no proposal in an ignore region.

    Those of an object stay: anchors that are positive, proposals whose IoU with a box is at least
    `object_iou`. Where an image would have no other example left, the least covered one stays: a
    loss over no example is not a number.
    """

    object_iou = 0.5  # of the RoI heads' positives

    @classmethod
    def of(cls, rpn: RegionProposalNetwork) -> "IgnoreRPN":
        """The same network; its modules are shared."""
        return cls(
            rpn.anchor_generator,
            rpn.head,
            rpn.proposal_matcher.high_threshold,
            rpn.proposal_matcher.low_threshold,
            rpn.fg_bg_sampler.batch_size_per_image,
            rpn.fg_bg_sampler.positive_fraction,
            rpn._pre_nms_top_n,
            rpn._post_nms_top_n,
            rpn.nms_thresh,
            rpn.score_thresh,
        )

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels 1, 0 and -1, which is ignored, and the box of each anchor."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, own, target in zip(labels, anchors, targets, strict=True):
            if has_regions(target):
                share = covered_share(own, target["ignore"])
                label[(label == 0) & (share >= COVERED)] = -1
                if not (label >= 0).any():
                    label[share.argmin()] = 0
        return labels, boxes

    def forward(
        self,
        images: Any,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As torchvision's: proposals (N, 4) of each image, and in training the losses."""
        proposals, losses = super().forward(images, features, targets)
        if self.training and targets is not None:
            proposals = [
                self.uncovered(boxes, target) if has_regions(target) else boxes
                for boxes, target in zip(proposals, targets, strict=True)
            ]
        return proposals, losses

    def uncovered(self, boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
        """The proposals (N, 4) of an image that are an object's or outside all regions."""
        share = covered_share(boxes, target["ignore"])
        kept = share < COVERED
        if len(target["boxes"]):
            kept |= box_iou(boxes, target["boxes"]).amax(1) >= self.object_iou
        elif len(boxes):
            kept |= share == share.min()
        return boxes[kept]
