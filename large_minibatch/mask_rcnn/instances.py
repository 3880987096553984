"""COCO with masks for Mask R-CNN: images in their own size, instances, crowds left out.

M instances of an image; boxes are float xyxy in pixels of the image.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor
from torch.utils.data import Dataset

from common import dist
from common.coco.dataset import Categories, CocoDataset
from common.coco.files import find_split
from common.config import require_choice, require_range
from common.data import BadImages, train_loader
from common.sampling import SampleStream
from common.scenes import Scenes, World
from common.transforms import HorizontalFlip

from .network import IMAGES_PER_GPU

WORLD = World(height=96, width=96, objects=(1, 2), spread=1.5)  # of data.name=scenes
SCENES = 16  # images to train on, and as many to evaluate on


@dataclass
class TransferData:
    """COCO with masks; trainval35k and minival are train2017 and val2017."""

    name: str = "coco"  # coco: any set in COCO's format | scenes: built in, for trying out
    root: str = MISSING  # folder of the data set; empty for the built-in scenes
    train: str = "train"  # split to train on
    val: str = "val"  # split to evaluate on
    flip: float = 0.5  # probability of a horizontal flip, the only augmentation
    aspect_groups: bool = True  # D1: the images of a GPU are all wide or all tall
    bad_images: str = "raise"  # raise | skip: what happens at an unreadable image
    workers: int = 4  # loader processes per training process
    limit: int = 0  # training images, the first ones; 0: all

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("coco", "scenes"))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        require_range("data.flip", self.flip, 0, 1)
        require_range("data.limit", self.limit, 0)


class Instances(Dataset):
    """Images and instances of one split: (image uint8 (3, H, W), target of `CocoDataset`)."""

    def __init__(
        self, cfg: TransferData, training: bool, categories: Categories | None = None
    ) -> None:
        self.source: Any
        if cfg.name == "scenes":
            start = 1_000_000 if training else 0
            self.source = Scenes(WORLD, count=SCENES, start=start, masks=True)
        else:
            folders, files = find_split(cfg.root, cfg.train if training else cfg.val)
            self.source = CocoDataset(
                folders, files, kind="masks", keep_empty=not training, categories=categories
            )
        self.files = self.source.files
        self.category_ids: list[int] = self.source.category_ids
        self.categories = (
            Categories(self.category_ids, self.source.names, "the built-in scenes")
            if isinstance(self.source, Scenes)
            else self.source.categories
        )
        self.flip = HorizontalFlip(cfg.flip if training else 0)
        whole = len(self.source)
        self.count = min(whole, cfg.limit or whole) if training else whole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = self.flip(*self.source[index])
        single = ~target["iscrowd"]
        return image, target | {key: target[key][single] for key in ("boxes", "labels", "masks")}

    def groups(self, minimum: int) -> list[int] | None:
        """0 or 1 for each image, wide or tall; None where either has fewer than `minimum`."""
        if isinstance(self.source, Scenes):
            return None
        groups = self.source.aspect_groups()[: self.count]
        return groups if min(groups.count(0), groups.count(1)) >= minimum else None

    def check_images(self) -> None:
        """Open the header of each image of this process's share; ValueError for a wrong size."""
        if not isinstance(self.source, Scenes):
            for index in range(dist.rank(), len(self), dist.world_size()):
                self.source.check_image(index)

    def ground_truth(self) -> dict:
        """What `common.coco.evaluate` compares with."""
        if isinstance(self.source, Scenes):
            return self.source.coco("masks")
        return self.source.ground_truth()


def collate(examples: list[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    """Images of any sizes, and their targets."""
    return [image for image, _ in examples], [target for _, target in examples]


def training_batches(
    dataset: Instances, cfg: TransferData, start: int, stop: int, *, batch_size: int, seed: int
) -> Iterable[tuple[list[Tensor], list[dict]]]:
    """The batches of this process in the steps after `start`, up to `stop`."""
    groups = dataset.groups(IMAGES_PER_GPU) if cfg.aspect_groups else None
    return train_loader(
        dataset,
        SampleStream(len(dataset), batch_size, seed=seed, groups=groups, chunk=IMAGES_PER_GPU),
        start,
        stop,
        workers=cfg.workers,
        collate=collate,
        bad=BadImages(cfg.bad_images),
    )


def to_device(
    images: list[Tensor], targets: list[dict], device: torch.device
) -> tuple[list[Tensor], list[dict]]:
    """What torchvision's network takes: images in 0..1, labels from 1; 0 is the background."""
    inputs = [image.to(device, non_blocking=True).float() / 255 for image in images]
    labelled = [
        {
            "boxes": target["boxes"].to(device, non_blocking=True),
            "labels": target["labels"].to(device, non_blocking=True) + 1,
            "masks": target["masks"].to(device, non_blocking=True),
        }
        for target in targets
    ]
    return inputs, labelled
