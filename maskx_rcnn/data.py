"""The data as the paper sees it: every object has a box and a class, some have a mask.

M objects of an image, m of them with a mask; boxes are float xyxy in pixels of the image.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import dist
from common.coco.dataset import Categories, CocoDataset
from common.coco.files import find_split
from common.data import BadImages, eval_loader, train_loader
from common.sampling import SampleStream, mix
from common.transforms import HorizontalFlip
from maskx_rcnn.config import Config
from maskx_rcnn.config import Data as DataConfig
from maskx_rcnn.inputs.joined import Joined, read_boxes_only
from maskx_rcnn.inputs.paint import APART, Paintings
from maskx_rcnn.inputs.splits import split_classes

A_IDS, B_IDS = "category ids of A", "category ids of B"  # among a checkpoint's options
Examples = tuple[list[Tensor], list[dict[str, Any]]]


@dataclass
class Piece:
    """Some images and their targets, as much as one of the paper's GPUs has in a step."""

    images: list[Tensor]
    targets: list[dict[str, Any]]

    @property
    def files(self) -> list[str]:
        """The images' files, for messages."""
        return [target["file"] for target in self.targets]

    def to(self, device: torch.device) -> Examples:
        """What the network takes."""
        return to_device((self.images, self.targets), device)


class PartialMasks(Dataset):
    """Images of one split, where not every object has a mask: (image uint8 (3, H, W), target).

    target: boxes (M, 4) float32, labels (M,) 0..K-1, has_mask (M,) bool, masks (m, H, W) bool of
    the objects with one, in their order; image_id, file, size (H, W) of the file. Crowds are left
    out, as they have no box of one object.

    A mask is missing where its class is in B, where the file has none for the object, or by
    `mask_share`; all three count as boxes in the other losses. The validation split keeps all.

    like: the training set, whose classes, A and B are those here too.
    """

    def __init__(self, cfg: DataConfig, training: bool, like: "PartialMasks | None" = None) -> None:
        self.source: Any
        if cfg.name == "paintings":
            world = cfg.paintings
            count = world.train_images if training else world.val_images
            self.source = Paintings(world, count, seed=world.seed, start=APART * training)
        else:
            folders, files = find_split(cfg.root, cfg.train if training else cfg.val)
            keep = not (training and cfg.skip_empty)
            options: dict[str, Any] = {"keep_empty": keep, "strict": cfg.strict}
            categories = None if like is None else like.categories
            self.source = CocoDataset(
                folders, files, kind="masks", partial=True, categories=categories, **options
            )
            if training and cfg.boxes_only:
                others = [read_boxes_only(pair, **options) for pair in cfg.boxes_only]
                self.source = Joined(self.source, others)
        self.training, self.share = training, cfg.mask_share
        self.names: list[str] = self.source.names
        self.category_ids: list[int] = self.source.category_ids
        self.categories: Categories = (
            Categories(self.category_ids, self.names, "the built-in paintings")
            if isinstance(self.source, Paintings)
            else self.source.categories
        )
        added = self.source.added if isinstance(self.source, Joined) else 0
        self.with_masks: list[int]
        self.boxes_only: list[int]
        if like is None:
            self.with_masks, self.boxes_only = split_classes(cfg.masks, self.categories, added)
        else:
            self.with_masks, self.boxes_only = like.with_masks, like.boxes_only
        self.known = torch.tensor(
            range(len(self.names)) if cfg.all_masks else self.with_masks, dtype=torch.int64
        )
        self.files: Sequence[str] = self.source.files
        self.flip = HorizontalFlip(cfg.flip if training else 0)
        whole = len(self.source)
        self.count = min(whole, cfg.limit or whole) if training else whole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = self.source[index]
        target = self.keep_known(target, index)
        return self.flip(image, target)

    def keep_known(self, target: dict[str, Any], index: int) -> dict[str, Any]:
        """The target without crowds, and without the masks that training may not see."""
        had, single = target["has_mask"], ~target["iscrowd"]
        has_mask = had & single
        if self.training:
            has_mask &= torch.isin(target["labels"], self.known)
            has_mask &= self.chosen(len(had), index)
        kept = {name: target[name][single] for name in ("boxes", "labels")}
        kept |= {name: target[name] for name in ("image_id", "file", "size")}
        return kept | {"has_mask": has_mask[single], "masks": target["masks"][has_mask[had]]}

    def chosen(self, count: int, index: int) -> Tensor:
        """Which objects of an image keep their mask under `mask_share`, the same every time."""
        if self.share == 1:
            return torch.ones(count, dtype=torch.bool)
        generator = torch.Generator().manual_seed(mix(7, index))
        return torch.rand(count, generator=generator) < self.share

    def split(self) -> dict[str, list[int]]:
        """A and B by category ids, as a checkpoint keeps them."""
        labels = {A_IDS: self.with_masks, B_IDS: self.boxes_only}
        return {name: [self.category_ids[label] for label in each] for name, each in labels.items()}

    def count_masks(self) -> Tensor:
        """Objects with a mask, and those with a box only, of each class: (K, 2)."""
        counts = torch.zeros(len(self.category_ids), 2, dtype=torch.int64)
        for index in range(len(self)):
            target = self.source_target(index)
            had, single = target["has_mask"], ~target["iscrowd"]
            known = torch.isin(target["labels"], self.known)
            known &= had & self.chosen(len(had), index)
            for column, which in enumerate((known & single, ~known & single)):
                counts[:, column] += target["labels"][which].bincount(minlength=len(counts))
        return counts

    def source_target(self, index: int) -> dict[str, Any]:
        """The target of an image as it is in the files; no image is read, no mask decoded."""
        if isinstance(self.source, Paintings):
            return self.source[index][1]
        return self.source.target(index, decode=False)

    def batches(self, cfg: Config, start: int, stop: int) -> Iterator[list[Piece]]:
        """Its share, for this process, of the steps after `start` to `stop`, cut for its GPUs."""
        count = pieces_of(cfg)
        groups = self.groups(cfg.images_per_gpu) if cfg.data.aspect_groups else None
        loader = train_loader(
            self,
            SampleStream(
                len(self), cfg.batch_size, seed=cfg.seed, groups=groups, chunk=cfg.images_per_gpu
            ),
            start,
            stop,
            workers=cfg.data.workers,
            collate=collate,
            accumulate=count,
            bad=BadImages(cfg.data.bad_images),
        )
        parts = [slice(cfg.images_per_gpu * k, cfg.images_per_gpu * (k + 1)) for k in range(count)]
        return (
            [Piece(images[part], targets[part]) for part in parts] for images, targets in loader
        )

    def check_images(self) -> None:
        """Open the header of each image of this process's share; ValueError for a wrong size."""
        if not isinstance(self.source, Paintings):
            for index in range(dist.rank(), len(self), dist.world_size()):
                self.source.check_image(index)

    def ground_truth(self, *, boxes: bool = False) -> dict[str, Any]:
        """What `common.coco.evaluate` compares with, in COCO's format.

        Objects without a mask are there with `boxes` alone.
        """
        if isinstance(self.source, Paintings):
            return self.source.coco()
        return self.source.ground_truth(boxes=boxes)

    def groups(self, minimum: int) -> list[int] | None:
        """0 or 1 for each image, wide or tall; None where either has fewer than `minimum`."""
        if isinstance(self.source, Paintings):
            return None
        groups = self.source.aspect_groups()[: self.count]
        return groups if min(groups.count(0), groups.count(1)) >= minimum else None


def pieces_of(cfg: Config) -> int:
    """How many pieces of `images_per_gpu` a process has in a step; ValueError for a rest."""
    share = cfg.images_per_gpu * dist.world_size()
    if cfg.batch_size % share:
        raise ValueError(
            f"batch_size={cfg.batch_size} is no multiple of {share}, images_per_gpu times "
            "processes: choose one."
        )
    return cfg.batch_size // share


def check_masks(training: PartialMasks, cfg: Config) -> None:
    """Print how many objects of each class have a mask; ValueError where none has.

    Neither training the detector alone nor an evaluation needs one.
    """
    counts = training.count_masks()
    objects = int(counts.sum())
    if not objects:
        raise ValueError(
            f"data.train={cfg.data.train} has no objects: take a split whose images have some."
        )
    if cfg.stage != "detector" and not cfg.only_evaluate and not counts[:, 0].any():
        raise ValueError(
            f"data.train={cfg.data.train} has no masks for A ({len(training.with_masks)} classes "
            f"by data.masks={cfg.data.masks}): give a split whose files have them, or other "
            "classes."
        )
    if dist.is_main():
        with_masks, boxes = counts.sum(0).tolist()
        print(f"{with_masks:,} of {objects:,} objects have a mask, {boxes:,} a box only:")
        for name, (masks, only) in zip(training.names, counts.tolist(), strict=True):
            print(f"  {name:20} {masks:8,} masks {only:8,} boxes only")


def collate(examples: list[tuple[Tensor, dict[str, Any]]]) -> Examples:
    """Images of any sizes, and their targets."""
    return [image for image, _ in examples], [target for _, target in examples]


def to_device(examples: Examples, device: torch.device) -> Examples:
    """What the network takes: images in 0..1, labels from 1; 0 is the background."""
    images, targets = examples
    inputs = [image.to(device, non_blocking=True).float() / 255 for image in images]
    names = ("boxes", "labels", "has_mask", "masks")
    wanted = [
        {name: target[name].to(device, non_blocking=True) for name in names} for target in targets
    ]
    for each in wanted:
        each["labels"] = each["labels"] + 1
        each["masks"] = each["masks"].to(torch.uint8)  # the network resizes them
    return inputs, wanted


def validation_batches(dataset: PartialMasks, cfg: Config) -> Iterable[Examples]:
    """The share of this process in the images to evaluate on, each exactly once."""
    return eval_loader(dataset, cfg.test.batch_size, workers=cfg.data.workers, collate=collate)
