"""torchvision's RetinaNet with our weights, and inputs for both: what `benchmark.py` compares.

Legend: N images, A anchors of all levels, a anchors of a cell, K classes, D outputs an anchor.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from .loss import BACKGROUND, IGNORED
from .model import Architecture, RetinaNet
from .weights.export import torchvision_state

CLASSES = 91  # torchvision's classifier
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def loss_inputs(count: int, anchors: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, A, 80), labels (N, A) and the one-hot targets (N, A, 80) they stand for.

    An image has 100 positive anchors, or a tenth of fewer than 1,000, and five times as many that
    are ignored; their targets are those of the background.
    """
    logits = torch.randn(count, anchors, 80, device=device).sub_(4.6).requires_grad_()
    labels = torch.full((count, anchors), BACKGROUND, device=device)
    places = torch.rand(count, anchors, device=device).argsort(1)
    positives = min(100, anchors // 10)
    classes = torch.randint(80, (count, positives), device=device)
    labels.scatter_(1, places[:, :positives], classes)
    labels.scatter_(1, places[:, positives : 6 * positives], IGNORED)
    targets = torch.zeros(count, anchors, 80, device=device)
    targets[labels >= 0, labels[labels >= 0]] = 1
    return logits, labels, targets


def networks(size: int, device: str) -> tuple[RetinaNet, nn.Module]:
    """Ours, with torchvision's anchors and P6, in channels_last; torchvision's, as it builds it.

    Both are R-50-FPN with the same random weights, frozen norms and a frozen stem and first stage.
    """
    ours = RetinaNet(
        Architecture(num_classes=CLASSES, anchors="torchvision", p6="p5", tower_init="he")
    )
    for name, buffer in ours.backbone.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.25)  # without statistics, residual sums would double at every block
    pyramid = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    theirs = detection.RetinaNet(
        pyramid, CLASSES, min_size=size, max_size=size, detections_per_img=100
    )
    theirs.load_state_dict(torchvision_state(ours))
    return ours.to(device).to(memory_format=torch.channels_last), theirs.to(device)


def random_images(count: int, size: int, device: str) -> list[Tensor]:
    """`count` images of soft random blobs (3, size, size), 0..1."""
    blobs = torch.rand(count, 3, 16, 16, device=device)
    return list(F.interpolate(blobs, (size, size), mode="bilinear"))


def normalise(images: Sequence[Tensor]) -> Tensor:
    """Normalised images (N, 3, H, W) in channels_last, as the project's loader gives them."""
    mean, std = (images[0].new_tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    batch = (torch.stack(list(images)) - mean) / std
    return batch.contiguous(memory_format=torch.channels_last)


def objects(
    count: int, height: int, width: int, device: str, *, each: int = 8
) -> list[dict[str, Tensor]]:
    """Targets of `count` images: `each` random boxes from 16 pixels to half the image."""
    limit = torch.tensor([width, height], device=device)
    targets = []
    for _ in range(count):
        corner, share = torch.rand(2, each, 2, device=device)
        sides = 16 + share * (limit / 2 - 16)
        low = corner * (limit - sides)
        labels = torch.randint(CLASSES, (each,), device=device)
        targets.append({"boxes": torch.cat([low, low + sides], 1), "labels": labels})
    return targets


def coco_inputs(count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations of `count` images in COCO's format, 7 each, and 100 detections of each image."""
    chance = random.Random(0)

    def thing(image: dict[str, int]) -> dict[str, Any]:
        width, height = chance.uniform(8, 300), chance.uniform(8, 300)
        box = [chance.uniform(0, 640 - width), chance.uniform(0, 480 - height), width, height]
        return {"image_id": image["id"], "category_id": chance.randint(1, 80), "bbox": box}

    images = [{"id": i, "width": 640, "height": 480} for i in range(1, count + 1)]
    truth = [thing(image) for image in images for _ in range(7)]
    found = [
        each | {"bbox": [chance.uniform(0.9, 1.1) * v for v in each["bbox"]]}
        for each in truth
        for _ in range(4)
    ]
    found += [thing(image) for image in images for _ in range(72)]
    found = [each | {"score": chance.random()} for each in found]
    categories = [{"id": i, "name": str(i)} for i in range(1, 81)]
    content = {"images": images, "annotations": truth, "categories": categories}
    return content, found


@torch.no_grad()
def make_confident(model: RetinaNet, images: Tensor, pairs: int, *, score: float = 0.05) -> None:
    """Change both predicting layers so that outputs vary and `pairs` an image exceed `score`.

    pairs: of anchor and class. A net that was not trained gives the same answer everywhere.
    """
    for i, (head, spread) in enumerate(((model.classification, 1.0), (model.regression, 0.3))):
        values = model(images)[i].unflatten(1, (-1, model.anchor_grid.per_cell))
        mean = values.mean((0, 1))  # (a, D)
        factor = spread / (values - mean).std()
        layer = head.predict
        layer.weight.mul_(factor)
        layer.get_parameter("bias").sub_(mean.flatten()).mul_(factor)
        if head is model.classification:
            best = (factor * (values - mean)).flatten().topk(len(images) * pairs).values
            layer.get_parameter("bias").add_(math.log(score / (1 - score)) - best[-1])


def require_same_detections(
    ours: Sequence[dict[str, Tensor]], theirs: Sequence[dict[str, Tensor]]
) -> None:
    """Stop unless 95 % of the boxes agree; near ties may fall either way in float32."""
    for a, b in zip(ours, theirs, strict=True):
        distance = (a["boxes"][:, None] - b["boxes"]).abs().amax(-1)  # pixels
        same = (distance < 0.1) & (a["labels"][:, None] == b["labels"])
        share = same.any(1).float().mean().item()
        counts = len(a["boxes"]), len(b["boxes"])
        assert min(counts) >= 20, f"{counts} detections are too few to compare"
        assert share >= 0.95, f"only {share:.0%} of {counts} detections agree"
