"""Mask and Keypoint R-CNN with FPN and non-local blocks, Sec. 5, Tables 5 and 6.

K classes without the background, which is the network's label 0; J joints. D1 is
facebookresearch/Detectron, whose recipe the baselines follow: the paper gives no schedule of its
own. The parts are torchvision's, and so are the names of all tensors but the blocks'.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from ..block import Block
from .insert import insert

KINDS = {"masks": MaskRCNN, "keypoints": KeypointRCNN}
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
X152 = "resnext152_32x8d"  # of Table 5; torchvision has neither it nor its weights


@dataclass
class Detector:
    """Mask or Keypoint R-CNN; the defaults are the baseline of Table 5, R50, as D1 trains it.

    Beside the blocks of `at` stands `block`, whose norm learns while the backbone's are frozen.
    """

    kind: str = "masks"  # masks | keypoints
    backbone: str = "resnet50"  # resnet50, resnet101, any ResNet of torchvision | resnext152_32x8d
    at: list[str] = field(
        default_factory=list
    )  # "1-block"; Table 6: head.2, head.4, head.6, head.8
    freeze_at: int = 2  # D1: the stem and the first stage stay as they were pre-trained
    norm_eps: float = 1e-5  # of the frozen norms; 0 for the detectors that torchvision publishes
    channels: int = 256  # of the pyramid and the mask head
    hidden: int = 1024  # of the box head
    mask_convs: int = 4  # before the deconvolution
    keypoint_convs: int = 8  # of 3x3, on regions of 14x14
    keypoint_channels: int = 512
    anchors: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])  # pixels, a level
    # Shorter side in pixels, drawn in training; the last is also the test's. Keypoints and X152:
    # 640 to 800 in steps of 32, D1
    short_sides: list[int] = field(default_factory=lambda: [800])
    long_side: int = 1333  # at most; the network resizes
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    proposals: list[int] = field(default_factory=lambda: [2000, 1000])  # training, test; an image
    rois: int = 512  # an image, for the heads
    score: float = 0.05  # least score of a detection
    nms: float = 0.5
    detections: int = 100  # an image

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"detector.kind is {self.kind!r}: choose {' or '.join(KINDS)}.")
        residual = self.backbone.startswith(("resne", "wide_resnet"))
        if self.backbone != X152 and not (residual and self.backbone in list_models()):
            raise ValueError(
                f"detector.backbone is {self.backbone!r}: choose a ResNet of torchvision such as "
                f"resnet50, or {X152}."
            )
        for name, count in (("anchors", 5), ("proposals", 2)):
            values = getattr(self, name)
            if len(values) != count or min(values) < 1:
                raise ValueError(f"detector.{name}={values}: give {count} whole numbers from 1 up.")
        if not self.short_sides:
            raise ValueError("detector.short_sides is empty: give a size in pixels.")


def build_detector(
    detector: Detector, block: Block | None, classes: int, joints: int = 0
) -> FasterRCNN:
    """Mask or Keypoint R-CNN of K classes, or of J joints, with the blocks of `detector.at`.

    Its norms in the backbone are frozen. Takes images float (3, H, W) in 0..1 and, in training,
    targets; gives a dict of losses in training, a list of detections otherwise.
    """
    d, heads = detector, box_heads(detector, classes)
    if d.kind == "masks":
        heads["mask_head"] = MaskRCNNHeads(d.channels, (d.channels,) * d.mask_convs, 1)
        heads["mask_predictor"] = MaskRCNNPredictor(d.channels, d.channels, classes + 1)
    else:
        # Differs: D1 draws regions of its own for this head, torchvision takes the box head's
        # positive ones.
        widths = (d.keypoint_channels,) * d.keypoint_convs
        heads["keypoint_head"] = KeypointRCNNHeads(d.channels, widths)
        heads["keypoint_predictor"] = KeypointRCNNPredictor(d.keypoint_channels, joints)
    sizes = tuple((float(each),) for each in d.anchors)
    model = KINDS[d.kind](
        pyramid(detector),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        min_size=tuple(d.short_sides),
        max_size=d.long_side,
        image_mean=d.mean,
        image_std=d.std,
        rpn_post_nms_top_n_train=d.proposals[0],
        rpn_post_nms_top_n_test=d.proposals[1],
        box_batch_size_per_image=d.rois,
        box_score_thresh=d.score,
        box_nms_thresh=d.nms,
        box_detections_per_img=d.detections,
        **heads,
    )
    # Unstated: the norm of these blocks. Batch norm sees the few photos of a GPU; block.norm=none
    # starts their last convolution at 0 instead, as official networks of frozen norms do.
    return insert(model, d.at, block)


def box_heads(detector: Detector, classes: int) -> dict[str, Any]:
    """The box head and its predictor, (N, C, 7, 7) -> scores (N, K + 1), offsets (N, 4 K + 4)."""
    head = TwoMLPHead(detector.channels * 7**2, detector.hidden)
    predictor = FastRCNNPredictor(detector.hidden, classes + 1)
    for layer in (head.fc6, head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)  # Caffe2's Xavier, D1
        nn.init.zeros_(layer.bias)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):  # D1
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return {"box_head": head, "box_predictor": predictor}


def pyramid(detector: Detector) -> BackboneWithFPN:
    """A ResNet whose norms are frozen in training and evaluation alike, below a pyramid."""
    norm = partial(FrozenBatchNorm2d, eps=detector.norm_eps)
    if detector.backbone == X152:
        body = ResNet(Bottleneck, [3, 8, 36, 3], groups=32, width_per_group=8, norm_layer=norm)
    else:
        body = get_model(detector.backbone, weights=None, norm_layer=norm)
    for name, value in body.named_parameters():
        if name.startswith(STAGES[: detector.freeze_at]):
            value.requires_grad_(False)
    widths = [body.inplanes // 8 * 2**stage for stage in range(4)]
    levels = {stage: str(number) for number, stage in enumerate(STAGES[1:])}
    return BackboneWithFPN(body, levels, widths, detector.channels)


def imagenet_weights(backbone: str) -> Mapping[str, Tensor]:
    """ImageNet weights of torchvision, downloaded once; ValueError where it has none."""
    if backbone not in list_models():
        raise ValueError(
            f"init=imagenet: torchvision has no weights of detector.backbone={backbone}; give a "
            "file of weights by init=FILE, or init='' to start at random."
        )
    return get_model_weights(backbone)["IMAGENET1K_V1"].get_state_dict(check_hash=True)


def load_weights(model: FasterRCNN, weights: Mapping[str, Tensor]) -> list[str]:
    """Load, in place, weights of such a detector or of a ResNet alone; names of what keeps its own.

    The blocks keep their start where the weights have none, and so does a head of another number of
    classes or joints. Raises ValueError where nothing fits.
    """
    own = model.state_dict()
    trunk = "backbone.body." if "conv1.weight" in weights else ""
    named = {f"{trunk}{name}": value for name, value in weights.items()}
    # What is not in `own` stays: torchvision renames its older detectors' parts while it loads.
    fitting = {k: v for k, v in named.items() if k not in own or own[k].shape == v.shape}
    kept = model.load_state_dict(fitting, strict=False).missing_keys
    if len(kept) == len(own):
        raise ValueError(
            "the weights have no tensor of this detector: give those of a ResNet under "
            "torchvision's names, or of a detector of ours or of torchvision."
        )
    return kept
