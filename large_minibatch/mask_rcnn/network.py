"""Mask R-CNN on a pre-trained backbone: how Sec. 5.4 and Table 3 fine-tune it on COCO.

    row = fine_tuning(gpus=8)                # Table 3b: 16 images a step, rate 0.02, 160k steps
    network = mask_rcnn(80)                  # ResNet-50-FPN with frozen BN
    load_backbone(network, state)            # classification weights in torchvision's names
    losses = network(images, targets)        # torchvision's interface

K classes. The paper takes over the settings of Mask R-CNN: 2 images a GPU, 512 RoIs per image,
masks of 28 x 28, BN fixed. MRCNN is arXiv 1703.06870v3; D1 is facebookresearch/Detectron, the
authors' code of that time, for what neither paper states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from common.weights.formats import few, misfits

IMAGES_PER_GPU = 2  # Sec. 5.4
RATE_PER_GPU = 0.0025  # Table 3b
ITERATIONS = 1_280_000  # of one GPU, Table 3b: k GPUs take 1 / k of them
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class FineTuning:
    """How k GPUs fine-tune together; one row of Table 3b."""

    gpus: int  # k
    batch_size: int  # images a step over all GPUs
    lr: float
    iterations: int
    milestones: tuple[int, ...]  # iterations done at which the rate is divided by 10
    warmup: int  # first iterations, in which the rate rises


def fine_tuning(
    gpus: int,
    *,
    iterations: int = 0,
    drops: Sequence[float] = (0.75,),
    warmup: int = 500,
) -> FineTuning:
    """The linear scaling rule for detection, Table 3b: everything follows from the GPUs.

    iterations: of this run where it is shorter than the paper's 1.28M / k.
    drops: shares of the run after which the rate falls tenfold. Unstated: MRCNN (Sec. 3.1) drops at
        120k of 160k; (2/3, 8/9) are D1's of its later schedules.
    warmup: Unstated: D1 has 500 iterations; more than the run has are cut to it.
    """
    if gpus < 1:
        raise ValueError(f"gpus is {gpus}: choose 1 or more")
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}: choose 1 or more, or 0 for the paper's")
    if list(drops) != sorted(set(drops)) or not all(0 < share < 1 for share in drops):
        raise ValueError(f"drops are {list(drops)}: choose rising shares between 0 and 1")
    total = iterations or max(1, round(ITERATIONS / gpus))
    return FineTuning(
        gpus=gpus,
        batch_size=IMAGES_PER_GPU * gpus,
        lr=RATE_PER_GPU * gpus,
        iterations=total,
        milestones=tuple(sorted({max(1, round(share * total)) for share in drops})),
        warmup=min(warmup, total),
    )


@dataclass
class TransferModel:
    """Mask R-CNN; passed to `mask_rcnn` as it stands."""

    backbone: str = "resnet50"  # torchvision's name of the network in `init`
    freeze_at: int = 2  # D1: the stem and the first stage stay as pre-trained
    channels: int = 256  # of the pyramid and the mask head
    rois: int = 512  # per image, Sec. 5.4
    short_side: int = 800  # pixels, MRCNN 3.1
    long_side: int = 1333
    score: float = 0.05  # least score of a detection
    detections: int = 100  # per image


def mask_rcnn(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    freeze_at: int = 2,
    channels: int = 256,
    rois: int = 512,
    short_side: int = 800,
    long_side: int = 1333,
    score: float = 0.05,
    detections: int = 100,
) -> MaskRCNN:
    """Torchvision's Mask R-CNN with FPN under the paper's settings, its heads new.

    With the defaults its state dict has the names and shapes of `maskrcnn_resnet50_fpn`.

    num_classes: K, without background; the network's label 0 is the background.
    backbone: torchvision's name of a ResNet. channels: of the pyramid and the mask head.
    freeze_at: stages that stay as pre-trained, D1: the stem and the first of four.
    rois: regions per image that the heads are trained on; a quarter of them on objects (MRCNN 3.1).
    short_side, long_side: pixels; the network resizes. score, detections: least score, and number a
        image, of what it returns in evaluation.
    """
    # Differs: torchvision's box loss is smooth L1 with beta 1/9, D1's has beta 1; 2,000 proposals
    # are kept of each image, in D1 of a GPU's batch.
    hidden = 4 * channels  # 1024 as in FPN
    predictor = FastRCNNPredictor(hidden, num_classes + 1)
    # Fast R-CNN, arXiv 1504.08083, Sec. 2.3; torchvision's own initialisation is uniform.
    nn.init.normal_(predictor.cls_score.weight, std=0.01)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
    nn.init.zeros_(predictor.cls_score.bias)
    nn.init.zeros_(predictor.bbox_pred.bias)
    return MaskRCNN(
        pyramid(backbone, freeze_at=freeze_at, channels=channels),
        min_size=short_side,
        max_size=long_side,
        box_head=TwoMLPHead(channels * 7 * 7, hidden),
        box_predictor=predictor,
        box_batch_size_per_image=rois,
        box_positive_fraction=0.25,
        box_score_thresh=score,
        box_detections_per_img=detections,
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),  # 28 x 28
    )


def pyramid(name: str, *, freeze_at: int, channels: int) -> BackboneWithFPN:
    """A ResNet whose BN is frozen in training and evaluation alike, below a feature pyramid."""
    if not 0 <= freeze_at <= len(STAGES):
        raise ValueError(f"freeze_at is {freeze_at}: choose 0 (none) to {len(STAGES)} (all)")
    if not name.startswith(("resnet", "resnext", "wide_resnet")):
        raise ValueError(f"backbone is {name!r}: choose a ResNet of torchvision, such as resnet50")
    body = get_model(name, weights=None, norm_layer=FrozenBatchNorm2d)
    for parameter, value in body.named_parameters():
        if parameter.startswith(STAGES[:freeze_at]):
            value.requires_grad_(False)
    widths = [body.inplanes // 8 * 2**stage for stage in range(4)]
    levels = {stage: str(number) for number, stage in enumerate(STAGES[1:])}
    return BackboneWithFPN(body, levels, widths, channels)


def load_backbone(network: MaskRCNN, state: Mapping[str, Tensor]) -> int:
    """Give the body pre-trained classification weights; the number of tensors loaded.

    state: torchvision's names (conv1.weight, layer1.0.bn1.running_mean, ...); the classifier `fc`
    and BN's counters are not used. Raises ValueError, changing nothing, unless every other tensor
    has its place, every place its tensor of the same shape, and all values are finite.
    """
    body = network.backbone.body
    own = body.state_dict()
    given = {
        name: value
        for name, value in state.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    found = misfits(own, given)
    infinite = [name for name, value in given.items() if not torch.isfinite(value).all()]
    if infinite and not found:
        found = f"{len(infinite)} not finite: {few(infinite)}"
    if found:
        raise ValueError(
            f"the weights do not fit this backbone of {len(own)} tensors ({found}): give weights "
            "of the same ResNet in torchvision's names, or name their network as the backbone"
        )
    body.load_state_dict(given)
    return len(own)
