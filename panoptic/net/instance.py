"""The instance network: Mask R-CNN with FPN, on torchvision's parts, in detectron2's geometry.

    network = MaskRCNN(thing_classes=80)
    losses = network(images, targets)                        # training
    predictions = network.eval()(images, sizes=[(480, 640)]) # masks at the size asked for

Legend: N images, M instances in one, T thing classes, labels 0..T-1. Names of parameters are
those of torchvision's `maskrcnn_resnet50_fpn`. MRCNN is arXiv 1703.06870, FPN 1612.03144.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork

from . import padding
from .backbone import Pyramid, body
from .padding import Prediction, Result, Size, Targets, Wanted
from .regions import Anchors, ProposalHead, RegionHeads, RoIAlign, Sampler, paste

BOX_SIDE, MASK_SIDE = 7, 14  # of pooled regions, FPN Sec. 5.2 and MRCNN Fig. 4
PROPOSAL_LOSSES = {"loss_objectness": "objectness", "loss_rpn_box_reg": "proposal"}


@dataclass(frozen=True)
class Sizes:
    """Widths and numbers of Mask R-CNN; the defaults are detectron2's for COCO."""

    channels: int = 256  # of the pyramid
    hidden: int = 1024  # units of the box head's two layers
    mask_channels: int = 256
    mask_convs: int = 4
    semantic_channels: int = 128  # of the semantic branch
    semantic_groups: int = 32  # of its GroupNorm
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)  # side in pixels, finest level first
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    anchor_iou: float = 0.7  # from which an anchor is to find an instance
    candidates: tuple[int, int] = (2000, 1000)  # a level, before suppression: training, evaluation
    proposals: tuple[int, int] = (1000, 1000)  # an image, after it
    anchor_samples: int = 256  # anchors an image in the proposal losses
    regions: int = 512  # an image in the box losses, MRCNN Sec. 3.1
    positive: float = 0.25  # at most this share of them on instances
    score: float = 0.05  # least score of a detection
    detections: int = 100  # an image
    products: bool = False  # pool regions by matrix products: for small maps, see `RoIAlign`


FULL = Sizes()
# For images of about 64 x 96 pixels on one CPU core
MINI = Sizes(
    channels=32,
    hidden=64,
    mask_channels=24,
    mask_convs=2,
    semantic_channels=32,
    semantic_groups=8,
    anchors=(8, 16, 32),
    ratios=(1.0,),
    anchor_iou=0.5,
    candidates=(100, 100),
    proposals=(50, 50),
    anchor_samples=64,
    regions=32,
    detections=40,
    products=True,
)


class MaskRCNN(nn.Module):
    """Images -> losses in training; boxes, labels, scores and masks in evaluation.

    backbone: one of `backbone.BACKBONES`; norm, freeze_at, stride_in_1x1: see `backbone.ResNet`.
    aligned: detectron2's geometry; False: torchvision's, for its checkpoints (see `regions.py`).
    sizes: None takes `MINI` for the mini backbone and `FULL` for others.
    """

    def __init__(
        self,
        *,
        thing_classes: int = 80,
        backbone: str = "resnet50",
        norm: str = "frozen",
        freeze_at: int = 2,
        stride_in_1x1: bool = False,
        aligned: bool = True,
        sizes: Sizes | None = None,
    ):
        super().__init__()
        if thing_classes < 1:
            raise ValueError(f"thing_classes is {thing_classes}: an instance network needs 1.")
        self.sizes = sizes or (MINI if backbone == "mini" else FULL)
        self.thing_classes, self.aligned, self.stride_in_1x1 = thing_classes, aligned, stride_in_1x1
        self.backbone = Pyramid(
            body(backbone, norm=norm, freeze_at=freeze_at, stride_in_1x1=stride_in_1x1),
            self.sizes.channels,
        )
        self.rpn = _proposals(self.sizes, self.backbone.strides, aligned)
        self.roi_heads = _heads(
            self.sizes, self.backbone.body.strides, thing_classes=thing_classes, aligned=aligned
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.rpn.head.cls_logits.weight.device

    def forward(
        self, images: Sequence[Tensor], targets: Targets = None, *, sizes: Wanted = None
    ) -> Result:
        """Losses in training, predictions in evaluation.

        images: N of (3, H, W), red, green, blue, uint8 or float in 0..1, of any sizes.
        targets: `boxes` (M, 4) in pixels, `labels` (M,) in 0..T-1, `masks` (M, H, W).
        sizes: of the predictions, (height, width) each; the images' own if None.
        Tensors elsewhere are moved to the network's device. ValueError for what does not fit.

        Losses: `objectness` and `proposal` of the proposals, `label`, `box` and `mask` of the
        regions; their sum is to be minimised. Predictions: `boxes` (M, 4) in pixels of the size
        asked for, `labels` (M,) in 0..T-1, `scores` (M,) falling, `masks` (M, *size) bool.
        """
        if self.training:
            truth = padding.check_targets(images, targets, self.device, things=self.thing_classes)
            batch = padding.pad(images, self.divisible, self.device)
            return self.instance_losses(batch, self.backbone(batch.tensors), truth)
        return padding.predict_by_size(images, sizes, self._predict, self.divisible, self.device)

    def _predict(self, batch: ImageList, sizes: Sequence[Size]) -> list[Prediction]:
        return self.detect(batch, self.backbone(batch.tensors), sizes)

    @property
    def counts(self) -> dict[str, Tensor]:
        """What each loss of the last batch is the mean over: anchors, regions, masks."""
        anchors, regions = self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler
        assert isinstance(anchors, Sampler)
        assert isinstance(regions, Sampler)
        counts = dict.fromkeys(("objectness", "proposal"), anchors.drawn)
        return counts | {"label": regions.drawn, "box": regions.drawn, "mask": regions.positive}

    @property
    def divisible(self) -> int:
        """What both sides of a batch are padded to a multiple of: the body's largest stride."""
        return self.backbone.body.strides[-1]

    def instance_losses(
        self, batch: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN; labels of the targets start at 1 here."""
        # Differs: torchvision's box losses are smooth L1 with beta 1/9, detectron2's are L1.
        proposals, of_proposals = self.rpn(batch, features, targets)
        _, of_regions = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return {PROPOSAL_LOSSES[name]: loss for name, loss in of_proposals.items()} | of_regions

    def detect(
        self, batch: ImageList, features: dict[str, Tensor], sizes: Sequence[Size]
    ) -> list[Prediction]:
        """Detections of each image, at the sizes asked for; labels from 0."""
        proposals, _ = self.rpn(batch, features)
        found, _ = self.roi_heads(features, proposals, batch.image_sizes)
        out = []
        for one, (height, width), size in zip(found, batch.image_sizes, sizes, strict=True):
            factors = (size[1] / width, size[0] / height)
            boxes = one["boxes"] * one["boxes"].new_tensor(factors * 2)
            kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
            boxes = boxes[kept]
            out.append(
                {
                    "boxes": boxes,
                    "labels": one["labels"][kept] - 1,
                    "scores": one["scores"][kept],
                    "masks": paste(one["masks"][kept, 0], boxes, size),
                }
            )
        return out


def _proposals(sizes: Sizes, strides: Sequence[int], aligned: bool) -> RegionProposalNetwork:
    """The region proposal network; shared over the levels."""
    if len(sizes.anchors) != len(strides):
        raise ValueError(f"{len(sizes.anchors)} anchors for {len(strides)} levels: one for each.")
    network = RegionProposalNetwork(
        Anchors(sizes.anchors, sizes.ratios, strides, aligned=aligned),
        ProposalHead(sizes.channels, len(sizes.ratios)),
        fg_iou_thresh=sizes.anchor_iou,
        bg_iou_thresh=0.3,
        batch_size_per_image=sizes.anchor_samples,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), sizes.candidates, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), sizes.proposals, strict=True)),
        nms_thresh=0.7,
    )
    network.fg_bg_sampler = Sampler(sizes.anchor_samples, 0.5)
    return network


def _heads(
    sizes: Sizes, strides: Sequence[int], *, thing_classes: int, aligned: bool
) -> RegionHeads:
    """Box and mask heads with detectron2's initialisation."""
    hidden, width = sizes.hidden, sizes.mask_channels
    box_head = TwoMLPHead(sizes.channels * BOX_SIDE**2, hidden)
    box_predictor = FastRCNNPredictor(hidden, thing_classes + 1)
    mask_head = MaskRCNNHeads(sizes.channels, (width,) * sizes.mask_convs, 1)
    mask_predictor = MaskRCNNPredictor(width, width, thing_classes + 1)
    for layer in (box_head.fc6, box_head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    for layer, std in (
        (box_predictor.cls_score, 0.01),  # Fast R-CNN, arXiv 1504.08083, Sec. 2.3
        (box_predictor.bbox_pred, 0.001),
        (mask_predictor.mask_fcn_logits, 0.001),
    ):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(mask_predictor.conv5_mask.bias)
    heads = RegionHeads(
        RoIAlign(BOX_SIDE, strides, aligned=aligned, products=sizes.products),
        box_head,
        box_predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=sizes.regions,
        positive_fraction=sizes.positive,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=sizes.score,
        nms_thresh=0.5,
        detections_per_img=sizes.detections,
        mask_roi_pool=RoIAlign(MASK_SIDE, strides, aligned=aligned, products=sizes.products),
        mask_head=mask_head,
        mask_predictor=mask_predictor,
    )
    heads.fg_bg_sampler = Sampler(sizes.regions, sizes.positive)
    return heads
