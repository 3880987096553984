"""Faster, Mask and Keypoint R-CNN with FPN: teacher and student, on torchvision's parts.

K classes without the background, which is the network's label 0; J joints. D1 is
facebookresearch/Detectron, with which the paper's networks were trained.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import get_model, list_models
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from .net.ignore import IgnoreRPN, IgnoreTransform
from .net.keypoints import KeypointHeads
from .net.narrow import BoxHead, NarrowTrunk, region_head

KINDS = {"boxes": FasterRCNN, "masks": MaskRCNN, "keypoints": KeypointRCNN}
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
X101_32X4D = "resnext101_32x4d"  # of the paper; torchvision has 32x8d and 64x4d


@dataclass
class Network:
    """The detector; the defaults are the paper's keypoint network as D1 trains it, Sec. 5."""

    # resnet50, resnet101, resnext101_32x4d and _64x4d in the paper; any ResNet of torchvision |
    # small: 0.25 M parameters
    backbone: str = "resnet50"
    freeze_at: int = 2  # D1: the stem and the first stage stay as they were pre-trained
    stride_in_1x1: bool = False  # True for MSRA's and D1's weights, False for torchvision's
    norm_eps: float = 1e-5  # of the frozen norms; 0 for the detectors that torchvision publishes
    channels: int = 256  # of the pyramid and the mask branch
    hidden: int = 1024  # of the box head
    pool: int = 7  # side of a region in the box head
    keypoint_convs: int = 8  # before the deconvolution
    keypoint_channels: int = 512
    map_size: int = 56  # cells of a joint's map, four times the side of its region
    keypoint_rois: str = "detectron"  # detectron: regions drawn apart | torchvision: the box head's
    least_keypoints: int = 20  # D1 leaves out a GPU's images with no more visible joints
    mask_convs: int = 4  # before the deconvolution
    mask_size: int = 28  # pixels of a predicted mask, twice the side of its region
    anchors: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])  # pixels, a level
    ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])  # height / width
    # Shorter side in pixels, drawn in training; the last is also the test's
    short_sides: list[int] = field(default_factory=lambda: [640, 672, 704, 736, 768, 800])
    long_side: int = 1333  # at most; the network resizes
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    pre_nms: list[int] = field(default_factory=lambda: [2000, 1000])  # training, test; a level, D1
    proposals: list[int] = field(default_factory=lambda: [2000, 1000])  # training, test; an image
    proposal_nms: float = 0.7
    rois: int = 512  # an image, for the box head
    positive: float = 0.25  # share of them on objects
    cls_std: float = 0.01  # of the start of cls_score, D1
    box_std: float = 0.001  # of the start of bbox_pred, D1
    score: float = 0.05  # least score of a detection
    nms: float = 0.5
    detections: int = 100  # an image

    def __post_init__(self) -> None:
        known = [*list_models(), X101_32X4D, "small"]
        residual = self.backbone.startswith(("resne", "wide_resnet", "small"))
        if self.backbone not in known or not residual:
            raise ValueError(
                f"network.backbone is {self.backbone!r}: choose a ResNet of torchvision such as "
                f"resnet50, {X101_32X4D}, or small."
            )
        if self.keypoint_rois not in ("detectron", "torchvision"):
            raise ValueError(
                f"network.keypoint_rois is {self.keypoint_rois!r}: choose detectron or torchvision."
            )
        levels = 2 if self.backbone == "small" else 5
        if len(self.anchors) != levels:
            raise ValueError(
                f"network.anchors={self.anchors}: give {levels} sizes, one for each level of "
                f"network.backbone={self.backbone}."
            )
        for name, share in (("map_size", 4), ("mask_size", 2)):
            size = getattr(self, name)
            if size < share or size % share:
                raise ValueError(f"network.{name}={size} is no multiple of {share}: choose one.")
        for name in ("pre_nms", "proposals"):
            counts = getattr(self, name)
            if len(counts) != 2 or min(counts) < 1:
                raise ValueError(
                    f"network.{name}={counts}: give two whole numbers from 1 up, for training and "
                    "test."
                )
        if not self.short_sides:
            raise ValueError("network.short_sides is empty: give a size in pixels.")


def build_detector(
    kind: str, num_classes: int, joints: int, network: Network, ignore: bool = False
) -> FasterRCNN:
    """Faster, Mask or Keypoint R-CNN, for kind boxes, masks or keypoints, of K classes, J joints.

    With the defaults, names and shapes of its tensors are those of torchvision's
    `fasterrcnn_resnet50_fpn`, `maskrcnn_...` and `keypointrcnn_...` with frozen norms, so that a
    student's weights load there. ignore: its training targets have `ignore` regions, net/ignore.py.
    """
    small = network.backbone == "small"
    channels = network.channels
    pooled = partial(MultiScaleRoIAlign, ["0"] if small else ["0", "1", "2", "3"])
    heads: dict[str, Any] = {
        "box_roi_pool": pooled(network.pool, 2),
        "box_head": box_head(network),
        "box_predictor": box_predictor(num_classes, network),
    }
    if kind == "masks":
        convs = (channels,) * network.mask_convs
        heads["mask_roi_pool"] = pooled(network.mask_size // 2, 2)
        heads["mask_head"] = (
            region_head(channels, channels, network.mask_convs)
            if small
            else MaskRCNNHeads(channels, convs, 1)
        )
        heads["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes + 1)
    if kind == "keypoints":
        width, count = network.keypoint_channels, network.keypoint_convs
        heads["keypoint_roi_pool"] = pooled(network.map_size // 4, 2)
        heads["keypoint_head"] = (
            region_head(channels, width, count)
            if small
            else KeypointRCNNHeads(channels, (width,) * count)
        )
        heads["keypoint_predictor"] = KeypointRCNNPredictor(width, joints)
    sizes = tuple((float(each),) for each in network.anchors)
    model = KINDS[kind](
        NarrowTrunk(channels) if small else pyramid(network),
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(network.ratios),) * len(sizes)),
        min_size=tuple(network.short_sides),
        max_size=network.long_side,
        image_mean=network.mean,
        image_std=network.std,
        size_divisible=divisor(network),
        rpn_pre_nms_top_n_train=network.pre_nms[0],
        rpn_pre_nms_top_n_test=network.pre_nms[1],
        rpn_post_nms_top_n_train=network.proposals[0],
        rpn_post_nms_top_n_test=network.proposals[1],
        rpn_nms_thresh=network.proposal_nms,
        box_batch_size_per_image=network.rois,
        box_positive_fraction=network.positive,
        box_score_thresh=network.score,
        box_nms_thresh=network.nms,
        box_detections_per_img=network.detections,
        **heads,
    )
    if kind == "keypoints" and network.keypoint_rois == "detectron":
        model.roi_heads = KeypointHeads.of(model.roi_heads, network.least_keypoints)
    if ignore:
        model.rpn = IgnoreRPN.of(model.rpn)
        model.transform = IgnoreTransform(
            model.transform.min_size,
            model.transform.max_size,
            network.mean,
            network.std,
            size_divisible=divisor(network),
        )
    return model


def divisor(network: Network) -> int:
    """What the sides of a batch are padded to a multiple of: the coarsest stride."""
    return 4 if network.backbone == "small" else 32


def box_head(network: Network) -> nn.Module:
    """Regions (N, C, P, P) -> (N, hidden)."""
    inputs = network.channels * network.pool**2
    if network.backbone == "small":
        return BoxHead(inputs, network.hidden)
    head = TwoMLPHead(inputs, network.hidden)
    for layer in (head.fc6, head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)  # Caffe2's Xavier, D1
        nn.init.zeros_(layer.bias)
    return head


def box_predictor(num_classes: int, network: Network) -> FastRCNNPredictor:
    """(N, hidden) -> scores (N, K + 1) and offsets (N, 4 K + 4)."""
    predictor = FastRCNNPredictor(network.hidden, num_classes + 1)
    nn.init.normal_(predictor.cls_score.weight, std=network.cls_std)
    nn.init.normal_(predictor.bbox_pred.weight, std=network.box_std)
    nn.init.zeros_(predictor.cls_score.bias)
    nn.init.zeros_(predictor.bbox_pred.bias)
    return predictor


def pyramid(network: Network) -> BackboneWithFPN:
    """A ResNet whose BN is frozen in training and evaluation alike, below a feature pyramid."""
    norm = partial(FrozenBatchNorm2d, eps=network.norm_eps)
    if network.backbone == X101_32X4D:
        body = ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4, norm_layer=norm)
    else:
        body = get_model(network.backbone, weights=None, norm_layer=norm)
    if network.stride_in_1x1:
        move_strides(body)
    for name, value in body.named_parameters():
        if name.startswith(STAGES[: network.freeze_at]):
            value.requires_grad_(False)
    widths = [body.inplanes // 8 * 2**stage for stage in range(4)]
    levels = {stage: str(number) for number, stage in enumerate(STAGES[1:])}
    return BackboneWithFPN(body, levels, widths, network.channels)


def move_strides(body: nn.Module) -> None:
    """Give the stride of each bottleneck to its first 1x1 convolution, as MSRA's networks do."""
    for block in body.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if (
            isinstance(first, nn.Conv2d)
            and isinstance(second, nn.Conv2d)
            and hasattr(block, "conv3")
        ):
            first.stride, second.stride = second.stride, (1, 1)
