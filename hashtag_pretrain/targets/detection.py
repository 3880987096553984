"""Detection transfer: torchvision's Mask R-CNN with FPN on a pre-trained trunk, COCO.

K classes without the background, which is the network's label 0. MRCNN is arXiv 1703.06870v3, D1 is
facebookresearch/Detectron, for what the paper does not state.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from tqdm import tqdm

from common import dist
from common.coco import evaluate as coco_eval
from common.coco.dataset import Categories, CocoDataset
from common.coco.files import find_split
from common.config import require_choice, require_range
from common.data import eval_loader
from common.transforms import HorizontalFlip

from ..model import RESNEXTS, Network

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


@dataclass
class Detection:
    """Mask R-CNN on COCO; the schedule is D1's 1x of 16 images a step.

    Unstated: the paper's schedule; compare trunks at an equal one.
    """

    root: str = ""  # of COCO's folder
    train: str = "train"  # split to train on
    val: str = "val"  # split to evaluate on
    steps: int = 90_000
    batch_size: int = 16  # images a step over all processes
    lr: float = 0.02
    drops: list[float] = field(default_factory=lambda: [2 / 3, 8 / 9])  # shares of the steps
    warmup: int = 500  # steps, D1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    trainable: int = 3  # last ones of the stem and the four stages that learn: 3 to 5
    channels: int = 256  # of the pyramid
    short_side: int = 800  # pixels, MRCNN 3.1
    long_side: int = 1333
    amp: bool = False  # bfloat16
    save_every: int = 2500  # steps
    limit: int = 0  # training images, the first ones; 0: all

    def __post_init__(self) -> None:
        require_range("detection.trainable", self.trainable, 0, len(STAGES))
        for name in ("steps", "batch_size", "channels", "save_every"):
            require_range(f"detection.{name}", getattr(self, name), 1)
        for name in ("lr", "warmup", "weight_decay", "limit"):
            require_range(f"detection.{name}", getattr(self, name), 0)
        if not 32 <= self.short_side <= self.long_side:
            raise ValueError("detection.short_side has to be from 32 to detection.long_side.")


def build_detector(
    network: Network, trunk: nn.Module, classes: int, options: Detection
) -> MaskRCNN:
    """Mask R-CNN of K classes whose body has the trunk's weights, its norms frozen.

    The trunk is a model of `build_model(network, ...)`.
    """
    require_choice("network.name", network.name, RESNEXTS)  # small has no four stages
    depths, groups, width = RESNEXTS[network.name]
    body = ResNet(
        Bottleneck,
        list(depths),
        groups=groups,
        width_per_group=width,
        norm_layer=FrozenBatchNorm2d,
    )
    kept = ("fc.", "num_batches_tracked")
    state = {
        name: value
        for name, value in trunk.state_dict().items()
        if not name.startswith(kept[0]) and not name.endswith(kept[1])
    }
    del body.fc
    body.load_state_dict(state)
    for name, value in body.named_parameters():
        value.requires_grad_(name.startswith(STAGES[len(STAGES) - options.trainable :]))
    levels = {stage: str(number) for number, stage in enumerate(STAGES[1:])}
    pyramid = BackboneWithFPN(body, levels, [256, 512, 1024, 2048], options.channels)
    return MaskRCNN(
        pyramid,
        num_classes=classes + 1,
        min_size=options.short_side,
        max_size=options.long_side,
        image_mean=network.mean,
        image_std=network.std,
    )


class Instances(Dataset):
    """Images of one split of COCO with masks: (image uint8 (3, H, W), target); crowds left out."""

    def __init__(
        self, options: Detection, training: bool, categories: Categories | None = None
    ) -> None:
        folders, files = find_split(options.root, options.train if training else options.val)
        self.source = CocoDataset(
            folders, files, kind="masks", keep_empty=not training, categories=categories
        )
        self.files, self.category_ids = self.source.files, self.source.category_ids
        self.flip = HorizontalFlip(0.5 if training else 0)
        whole = len(self.source)
        self.count = min(whole, options.limit or whole) if training else whole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = self.flip(*self.source[index])
        single = ~target["iscrowd"]
        return image, target | {key: target[key][single] for key in ("boxes", "labels", "masks")}


def collate(examples: list[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    """Images of any sizes, and their targets."""
    return [image for image, _ in examples], [target for _, target in examples]


def to_device(images: list[Tensor], targets: list[dict]) -> tuple[list[Tensor], list[dict]]:
    """What torchvision's network takes: images in 0..1, labels from 1; 0 is the background."""
    device = dist.device()
    inputs = [image.to(device, non_blocking=True).float() / 255 for image in images]
    labelled: list[dict[str, Any]] = [
        {key: target[key].to(device) for key in ("boxes", "masks")}
        | {"labels": target["labels"].to(device) + 1}
        for target in targets
    ]
    return inputs, labelled


def evaluate(model: MaskRCNN, val: Instances, options: Detection, workers: int) -> dict[str, float]:
    """box_AP, box_AP50, ..., mask_AP, ... in percent, the same on every process."""
    model.eval()
    found = list(detect(model, val, options, workers))
    model.train()
    detections = [each for part in dist.gather(found) for each in part]
    metrics: dict[str, float] = {}
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        scores = coco_eval.evaluate(val.source.ground_truth(), detections, kind=kind)
        metrics |= {f"{name}_{key}": value for key, value in scores.items()}
    return metrics


@torch.no_grad()
def detect(model: MaskRCNN, val: Instances, options: Detection, workers: int) -> Iterator[dict]:
    """Detections of this process's images in COCO's format, with masks."""
    device = dist.device()
    batches = eval_loader(val, 2, workers=workers, collate=collate)
    for images, targets in tqdm(
        batches, "evaluate", leave=False, disable=None if dist.is_main() else True
    ):
        inputs, _ = to_device(images, targets)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            results = model(inputs)
        for target, found in zip(targets, results, strict=True):
            yield from coco_eval.to_coco(
                target["image_id"],
                found["boxes"].float().cpu(),
                found["scores"].float().cpu(),
                found["labels"].cpu() - 1,
                val.category_ids,
                masks=(found["masks"][:, 0] >= 0.5).cpu(),
            )
