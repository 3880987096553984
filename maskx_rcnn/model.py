"""Mask R-CNN with FPN around the mask branch of `transfer.py`, on torchvision's parts.

K classes without the background, which is the network's label 0. D1 is facebookresearch/Detectron,
on which the official code is built.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from .net.small import BoxHead, SmallTrunk, conv
from .transfer import MLP, MaskPredictor, MaskXHeads, Standardise, WeightTransfer

KINDS = ("transfer", "agnostic", "specific")
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
RESNETS = ("resnet", "resnext", "wide_resnet")


@dataclass
class Network:
    """Everything but the mask predictor; the defaults are those of the official code."""

    backbone: str = "resnet50"  # resnet18, 50, 101, ... of torchvision | small: 0.25 M parameters
    freeze_at: int = 2  # D1: the stem and the first stage stay as they were pre-trained
    stride_in_1x1: bool = False  # True for MSRA's and D1's weights, False for torchvision's
    channels: int = 256  # of the pyramid and the mask branch
    hidden: int = 1024  # of the box head: w_cls has as many numbers, w_box four times as many
    mask_convs: int = 4  # before the deconvolution
    mask_size: int = 28  # pixels of a predicted mask
    anchors: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])  # pixels, a level
    ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])  # height / width
    short_side: int = 800  # pixels; the network resizes
    long_side: int = 1333
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    proposals: list[int] = field(default_factory=lambda: [2000, 1000])  # training, test; an image
    proposal_nms: float = 0.7
    rois: int = 512  # an image, for the box head
    positive: float = 0.25  # share of them on objects
    cls_std: float = 0.01  # of the start of cls_score, D1
    box_std: float = 0.001  # of the start of bbox_pred, D1
    score: float = 0.05  # least score of a detection
    nms: float = 0.5
    detections: int = 100  # an image


@dataclass
class MaskBranch:
    """The mask predictor, Sec. 3; the defaults are the paper's final model but for the MLP."""

    kind: str = "transfer"  # transfer | agnostic: one mask for all classes | specific: the oracle
    source: str = "cls+box"  # what T reads: cls | box | cls+box | embedding, Table 1a
    embeddings: str = ""  # FILE.npy | FILE.txt of word vectors | random | hues, see embeddings.py
    layers: int = 2  # of T, Table 1b
    hidden: int = 0  # width within T; 0: as many as `channels`, as in the paper
    activation: str = "leaky_relu"  # leaky_relu | relu
    init: str = "fan_out"  # of T: fan_out | fan_in, the older of Caffe2's two fills
    init_scale: float = 1.0  # times that start; the paper's is 1
    standardise: bool = False  # w_det of mean 0 and deviation 1 over the classes; not in the paper
    stop_gradient: bool = True  # Table 1d
    mlp: int = 0  # layers of the class-agnostic branch; 0: none, Table 1c
    mlp_pool: int = 1  # its input is averaged over squares of this side; 1 in the paper
    train_boxes: str = "proposals"  # proposals | gt
    match: str = "assigned"  # assigned | overlap, as in the official code


def mask_rcnn(
    num_classes: int,
    network: Network,
    branch: MaskBranch,
    *,
    classes_with_masks: Collection[int] | None = None,
    embeddings: Tensor | None = None,
) -> MaskRCNN:
    """Mask R-CNN for K classes, of which `classes_with_masks` (1..K) train its mask branch.

    With the defaults the names and shapes of all but the mask predictor are those of torchvision's
    `maskrcnn_resnet50_fpn`. embeddings: (K, D), for branch.source=embedding.
    """
    check_backbone(network)
    small = network.backbone == "small"
    channels, size = network.channels, network.mask_size
    boxes = FastRCNNPredictor(network.hidden, num_classes + 1)
    nn.init.normal_(boxes.cls_score.weight, std=network.cls_std)
    nn.init.normal_(boxes.bbox_pred.weight, std=network.box_std)
    nn.init.zeros_(boxes.cls_score.bias)
    nn.init.zeros_(boxes.bbox_pred.bias)
    levels = ["0"] if small else ["0", "1", "2", "3"]
    sizes = tuple((float(each),) for each in network.anchors)
    heads: dict[str, nn.Module] = {
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2),
        "box_head": (BoxHead if small else TwoMLPHead)(channels * 49, network.hidden),
        "box_predictor": boxes,
        "mask_roi_pool": MultiScaleRoIAlign(levels, size // 2, 2),
        "mask_head": nn.Sequential(*(conv(channels, channels) for _ in range(network.mask_convs)))
        if small
        else MaskRCNNHeads(channels, (channels,) * network.mask_convs, 1),
        "mask_predictor": predictor(num_classes, network, branch, embeddings),
    }
    model = MaskRCNN(
        SmallTrunk(channels) if small else pyramid(network),
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(network.ratios),) * len(sizes)),
        min_size=network.short_side,
        max_size=network.long_side,
        image_mean=network.mean,
        image_std=network.std,
        rpn_pre_nms_top_n_train=2000,  # of each level, D1
        rpn_pre_nms_top_n_test=1000,
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
    model.roi_heads = MaskXHeads.of(
        model.roi_heads,
        model.roi_heads.mask_predictor,
        classes_with_masks=classes_with_masks,
        train_boxes=branch.train_boxes,
        match=branch.match,
    )
    return model


def predictor(
    num_classes: int, network: Network, branch: MaskBranch, embeddings: Tensor | None = None
) -> MaskPredictor:
    """The mask predictor that the options describe, new.

    embeddings: (K, D), for source=embedding; the background gets a row of zeros.
    """
    parts = {"cls": [network.hidden], "box": [4 * network.hidden]}
    parts["cls+box"] = parts["cls"] + parts["box"]
    if embeddings is not None:
        parts["embedding"] = [embeddings.shape[1]]
        embeddings = torch.cat([torch.zeros(1, embeddings.shape[1]), embeddings])
    transfer = None
    if branch.kind == "transfer":
        transfer = WeightTransfer(
            sum(parts[branch.source]),
            network.channels,
            layers=branch.layers,
            hidden=branch.hidden,
            activation=branch.activation,
            init=branch.init,
            scale=branch.init_scale,
        )
    mlp = None
    if branch.mlp:
        size = network.mask_size
        mlp = MLP(network.channels, size, layers=branch.mlp, pool=branch.mlp_pool)
    return MaskPredictor(
        network.channels,
        network.channels,
        transfer=transfer,
        num_classes=num_classes + 1 if branch.kind == "specific" else 0,
        source=branch.source if transfer else "cls+box",
        standardise=Standardise(parts[branch.source]) if branch.standardise and transfer else None,
        embeddings=embeddings if transfer else None,
        stop_gradient=branch.stop_gradient,
        mlp=mlp,
    )


def check_backbone(network: Network) -> None:
    """Raise ValueError for an unknown backbone, or other than one anchor size for each of its maps.

    FPN's fifth map is for the anchors alone.
    """
    resnets = [n for n in models.list_models(module=models) if n.startswith(RESNETS)]
    if network.backbone not in (*resnets, "small"):
        raise ValueError(
            f"network.backbone={network.backbone} is unknown: choose {', '.join(resnets)} or small."
        )
    maps = 2 if network.backbone == "small" else 5
    if len(network.anchors) != maps:
        raise ValueError(
            f"network.anchors={network.anchors}: give {maps} sizes, one for each map of "
            f"network.backbone={network.backbone}."
        )


def pyramid(network: Network) -> BackboneWithFPN:
    """A ResNet whose BN is frozen in training and evaluation alike, below a feature pyramid."""
    body = models.get_model(network.backbone, weights=None, norm_layer=FrozenBatchNorm2d)
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


@torch.no_grad()
def segment(
    model: MaskRCNN, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor]
) -> list[Tensor]:
    """Masks of given boxes, for each image bool (n, H, W).

    images: float (3, H, W) in 0..1; boxes: (n, 4) xyxy pixels of the image; labels: (n,), 1..K.
    """
    shapes = [(image.shape[-2], image.shape[-1]) for image in images]
    wanted = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    batch, scaled = model.transform(images, wanted)
    features = model.backbone(batch.tensors)
    heads = model.roi_heads
    results = heads.add_masks(features, scaled, batch.image_sizes)
    results = model.transform.postprocess(results, batch.image_sizes, shapes)
    return [result["masks"][:, 0] >= 0.5 for result in results]
