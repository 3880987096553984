"""Stage-wise training at the cost of the mask branch: features of a frozen detector, kept.

Legend: N regions of all images, C channels, M the side of a mask.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from common import dist
from common.data import eval_loader, seed_everything, seed_of
from common.sampling import SampleStream
from common.transforms import HorizontalFlip
from maskx_rcnn import data
from maskx_rcnn.config import Config
from maskx_rcnn.transfer import Targets, mask_targets


@dataclass
class Regions:
    """features: (N, C, M / 2, M / 2) float32; labels: (N,) 1..K; masks: (N, M, M) bool."""

    features: Tensor
    labels: Tensor
    masks: Tensor
    files: tuple[str, ...] = ()  # they are of many images

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """What `FrozenBranch` takes."""
        return self.features.to(device), self.labels.to(device), self.masks.to(device)


class FrozenRegions:
    """The regions of all training images that have a mask, as a frozen detector sees them.

    Each image is looked at once, without flips: its regions are those that a step of training would
    have drawn.
    """

    def __init__(self, model: MaskRCNN, dataset: data.PartialMasks) -> None:
        self.model, self.dataset = model, copy.copy(dataset)
        self.dataset.flip = HorizontalFlip(0)

    def find(self, cfg: Config) -> Regions:
        """The regions of all images, the same in every process."""
        found: list[Regions] = []
        loader = eval_loader(
            self.dataset,
            cfg.test.batch_size,
            workers=cfg.data.workers,
            collate=data.collate,
            rank=0,
            world=1,
        )
        hidden = None if dist.is_main() else True
        seed_everything(seed_of(cfg.seed, 0, 0))  # of the regions that are drawn
        for examples in tqdm(loader, "features", leave=False, disable=hidden):
            inputs = data.to_device(examples, dist.device())
            found.append(find_regions(self.model, *inputs))
        return Regions(
            torch.cat([each.features for each in found]),
            torch.cat([each.labels for each in found]),
            torch.cat([each.masks for each in found]),
        )

    def batches(self, cfg: Config, start: int, stop: int) -> Iterator[list[Regions]]:
        """The share of this process in the `cached_rois` regions of the steps after `start`."""
        if start == stop:
            return
        known = self.find(cfg)
        stream = SampleStream(len(known.labels), cfg.cached_rois, seed=cfg.seed)
        for step in range(start, stop):
            rows = [index for _, index in stream.share(step, dist.rank(), dist.world_size())]
            yield [Regions(known.features[rows], known.labels[rows], known.masks[rows])]


@torch.no_grad()
def find_regions(model: MaskRCNN, images: list[Tensor], targets: Targets) -> Regions:
    """The regions of some images that a step of training would draw, on the CPU."""
    heads = model.roi_heads
    batch, targets = model.transform(images, targets)
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features, targets)
    proposals, matched, labels, _ = heads.select_training_samples(proposals, targets)
    chosen = [
        heads.regions(*each) for each in zip(proposals, matched, labels, targets, strict=True)
    ]
    boxes = [each for each, _, _ in chosen]
    pooled = heads.mask_roi_pool(features, boxes, batch.image_sizes)
    size = 2 * pooled.shape[-1]
    masks = [
        mask_targets(target["masks"], own, rows, size).bool()
        for target, (own, rows, _) in zip(targets, chosen, strict=True)
    ]
    own = torch.cat([labels for _, _, labels in chosen])
    return Regions(pooled.cpu(), own.cpu(), torch.cat(masks).cpu())


class FrozenBranch(nn.Module):
    """The mask branch alone, with its loss."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.head, self.predictor = model.roi_heads.mask_head, model.roi_heads.mask_predictor
        self.box_predictor = [model.roi_heads.box_predictor]  # in a list: it is not trained here

    def forward(self, features: Tensor, labels: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Regions -> {"loss_mask": mean binary cross entropy}."""
        logits = self.predictor(self.head(features), labels, self.box_predictor[0])
        return {"loss_mask": F.binary_cross_entropy_with_logits(logits.float(), masks.float())}


class FrozenNetwork(nn.Module):
    """The whole network, of which the mask branch alone is trained and has a loss."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Images and targets -> {"loss_mask": ...}."""
        model, heads = self.model, self.model.roi_heads
        with torch.no_grad():
            batch, targets = model.transform(images, targets)
            features = model.backbone(batch.tensors)
            proposals, _ = model.rpn(batch, features, targets)
            proposals, matched, labels, _ = heads.select_training_samples(proposals, targets)
        loss = heads.mask_loss(features, proposals, matched, labels, batch.image_sizes, targets)
        return {"loss_mask": loss}


def freeze(model: MaskRCNN) -> None:
    """Everything but the mask branch stays as it is, Sec. 4.1."""
    model.requires_grad_(False)
    for part in (model.roi_heads.mask_head, model.roi_heads.mask_predictor):
        part.requires_grad_(True)
