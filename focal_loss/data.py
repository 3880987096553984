"""The data as the paper sees it: images with boxes, flipped and resized, in padded batches.

N images of a batch, padded to one size (H, W); M boxes of an image, float xyxy in pixels.
"""

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import dist, transforms
from common.coco.dataset import CocoDataset
from common.coco.fields import Categories
from common.coco.files import find_split
from common.data import BadImages, eval_loader, train_loader
from common.sampling import SampleStream
from common.scenes import Scenes, World
from focal_loss.config import Config, Loss
from focal_loss.config import Data as DataConfig
from focal_loss.config import Scenes as ScenesConfig
from focal_loss.net.anchors import Anchors
from focal_loss.weights.initialise import Report


def build(cfg: DataConfig, split: str, categories: Categories | None = None) -> "Detection":
    """Data set of `split`, "train" or "val", resized and flipped as that split is.

    categories: those of the training set, which this split must follow; by default the file's own,
    sorted by id.
    """
    training = split == "train"
    if cfg.name == "scenes":
        source: Any = scenes(cfg.scenes, training)
    else:
        name = cfg.train if training else cfg.val
        folders, files = find_split(cfg.root, name)
        source = CocoDataset(
            folders,
            files,
            keep_empty=not (training and cfg.skip_empty),
            strict=cfg.strict,
            categories=categories,
        )
    return Detection(source, cfg, training)


def scenes(cfg: ScenesConfig, training: bool) -> Scenes:
    """The built-in images of a split."""
    options: dict[str, Any] = asdict(cfg)
    for own in ("train_images", "val_images", "classes", "seed"):
        del options[own]
    world = World(**options)
    count = cfg.train_images if training else cfg.val_images
    # The training images lie a million further on, so that either split may grow.
    start = 1_000_000 if training else 0
    return Scenes(world, count=count, seed=cfg.seed, start=start, classes_by=tuple(cfg.classes))


class Detection(Dataset):
    """Images and boxes of one split: (image uint8 (3, H, W), target).

    target: boxes (M, 4) float32, labels (M,) int64, ignore (C, 4) float32 crowd regions, all in
    pixels of the image returned; image_id, file, and size (height, width) of the file.
    """

    def __init__(self, source: Any, cfg: DataConfig, training: bool) -> None:
        self.source, self.cfg, self.training = source, cfg, training
        self.names: list[str] = source.names
        self.category_ids: list[int] = source.category_ids
        self.categories = (
            Categories(source.category_ids, source.names, "the built-in scenes")
            if isinstance(source, Scenes)
            else source.categories
        )
        self.files: Sequence[str] = source.files
        sides = cfg.short_side if training else [cfg.test_short_side]
        self.resize = transforms.Resize(sides, cfg.long_side) if cfg.resize else None
        self.flip = transforms.HorizontalFlip(cfg.flip)
        self.count = min(len(source), cfg.limit or len(source)) if training else len(source)

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> "Detection":
        """Its first `count` images; 0: all."""
        part = copy(self)
        part.count = min(self.count, count or self.count)
        return part

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = self.source[index]
        if self.resize:
            image, target = self.resize(image, target)
        if self.training:
            image, target = self.flip(image, target)
        crowd = target["iscrowd"]
        return image, {
            "boxes": target["boxes"][~crowd],
            "labels": target["labels"][~crowd],
            "ignore": target["boxes"][crowd],
            "image_id": target["image_id"],
            "file": target["file"],
            "size": target["size"],
        }

    def objects(self, most: int = 20_000) -> tuple[Tensor, Tensor]:
        """Boxes (M, 4) of the objects of up to `most` images, in pixels of the resized images.

        And the padded height and width (M, 2) of each one's image. No image is read; of several
        scales the middle one is taken.
        """
        boxes, sizes = [torch.zeros(0, 4)], [torch.zeros(0, 2).long()]
        for index in range(0, len(self), -(-len(self) // most)):
            target = self._target(index)
            old = new = target["size"]
            if self.resize:
                sides = self.cfg.short_side
                new = transforms.scaled_size(old, sides[len(sides) // 2], self.cfg.long_side)
            down, right = new[0] / old[0], new[1] / old[1]
            own = target["boxes"][~target["iscrowd"]]
            boxes.append(own * torch.tensor([right, down, right, down]))
            padded = [-(-side // self.cfg.pad_multiple) * self.cfg.pad_multiple for side in new]
            sizes.append(torch.tensor(padded).expand(len(own), 2))
        return torch.cat(boxes), torch.cat(sizes)

    def has_objects(self) -> bool:
        """Whether any of its images has an object that is no crowd."""
        return any(not self._target(index)["iscrowd"].all() for index in range(len(self)))

    def _target(self, index: int) -> dict:
        """The target of an image in pixels of the file."""
        scenes = isinstance(self.source, Scenes)
        return self.source[index][1] if scenes else self.source.target(index)

    def check_images(self) -> None:
        """Open the header of each image of this process's share; ValueError for a wrong size."""
        if not isinstance(self.source, Scenes):
            for index in range(dist.rank(), len(self), dist.world_size()):
                self.source.check_image(index)

    def ground_truth(self) -> dict:
        """What `common.coco.evaluate` compares with, in COCO's format."""
        return self.source.coco() if isinstance(self.source, Scenes) else self.source.ground_truth()


@dataclass
class Batch:
    """A padded batch: `images` (N, 3, H, W) float32, normalised, 0 in the padding."""

    images: Tensor
    targets: list[dict]  # of `Detection`
    sizes: list[tuple[int, int]]  # height and width of each image inside the padding

    @property
    def files(self) -> list[str]:
        """The images' files, for messages."""
        return [target["file"] for target in self.targets]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the loader calls it where there is a GPU."""
        return replace(self, images=self.images.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`, its images in the channels-last layout."""
        images = self.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        targets = [
            {
                key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for key, value in target.items()
            }
            for target in self.targets
        ]
        return replace(self, images=images, targets=targets)


class Collate:
    """Makes a `Batch` of (image, target) pairs; a class, so that it reaches spawned workers."""

    def __init__(self, cfg: DataConfig) -> None:
        scale = 1.0 if cfg.bgr else 1 / 255
        self.normalise = transforms.Normalize(cfg.mean, cfg.std, scale, cfg.bgr)
        self.pad = transforms.PadCollate(cfg.pad_multiple)

    def __call__(self, examples: list[tuple[Tensor, dict]]) -> Batch:
        """Normalise first, so that the padding is exactly 0, as in D1."""
        images, sizes, targets = self.pad([self.normalise(*example) for example in examples])
        return Batch(images, targets, [(height, width) for height, width in sizes.tolist()])


def require_pixels(cfg: DataConfig, report: Report) -> None:
    """Print what was loaded; stop where the weights want other pixels than the data gives."""
    if dist.is_main():
        print(report)
    wants = report.wants
    if wants.mean is None or wants.std is None:
        return
    pairs = zip((*wants.mean, *wants.std), (*cfg.mean, *cfg.std), strict=False)
    if wants.bgr == cfg.bgr and all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs):
        return
    mean, std = ("[" + ",".join(map(str, values)) + "]" for values in (wants.mean, wants.std))
    raise ValueError(
        f"{wants.source} wants other pixels than the data gives: set data.bgr={wants.bgr} "
        f"data.mean={mean} data.std={std}"
    )


def check_objects(training: Detection, validation: Detection, cfg: Config) -> None:
    """Print a line if the validation split has nothing to find.

    Raises ValueError if the training split has nothing to learn from.
    """
    if not cfg.only_evaluate and not training.has_objects():
        raise ValueError(
            f"data.train={cfg.data.train} has no objects: take a split whose images have some."
        )
    if dist.is_main() and not validation.has_objects():
        print(f"{cfg.data.val} has no objects: AP will be left out.")


def report_unmatched(dataset: Detection, grid: Anchors, loss: Loss) -> None:
    """Print how many training objects have no positive anchor, if any."""
    boxes, sizes = dataset.objects()
    best = grid.best_overlap(boxes, sizes)
    least = {"none": loss.positive_iou, "d1": loss.negative_iou, "any": 0.0}[loss.low_quality]
    count = int(((best < least) | (best == 0)).sum())
    if not count:
        return
    why = f"as none overlaps them by an IoU of {least}: small ones need a smaller model.anchor_size"
    if boxes.max() < 8:  # of the pixels of a resized image
        why = "as their boxes seem to be in 0..1: give them in pixels"
    elif dataset.resize:
        why += " or a larger data.short_side"
    print(f"{count:,} of {len(boxes):,} objects have no positive anchor, {why}.")


def training_batches(dataset: Detection, cfg: Config, start: int, stop: int) -> Iterable[Batch]:
    """The batches of this process in the steps after `start`, up to `stop`.

    Raises ValueError unless each batch can be cut into `accumulate` equal pieces a process.
    """
    groups = None
    if cfg.data.aspect_groups:
        groups = dataset.source.aspect_groups()[: len(dataset)]
        if min(groups.count(0), groups.count(1)) < cfg.batch_size:
            groups = None  # the few of one kind would never fill a batch
    return train_loader(
        dataset,
        SampleStream(len(dataset), cfg.batch_size, seed=cfg.seed, groups=groups),
        start,
        stop,
        workers=cfg.data.workers,
        collate=Collate(cfg.data),
        accumulate=cfg.accumulate,
        bad=BadImages(cfg.data.bad_images),
    )


def validation_batches(dataset: Detection, cfg: Config) -> Iterable[Batch]:
    """The share of this process in the images to evaluate on, each exactly once."""
    return eval_loader(
        dataset, cfg.test.batch_size, workers=cfg.data.workers, collate=Collate(cfg.data)
    )
