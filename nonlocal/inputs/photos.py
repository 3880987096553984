"""COCO's photos for the detectors of Tables 5 and 6: pieces of a step to train on, and AP.

M objects of an image, J joints. Boxes are float xyxy in pixels of the image; joints continuous x, y
(a pixel's centre is at + 0.5) and visibility, as torchvision's network takes and gives them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from common import dist
from common.coco import evaluate as coco
from common.coco.dataset import Categories, CocoDataset
from common.coco.files import find_split
from common.data import BadImages, eval_loader, train_loader
from common.sampling import SampleStream
from common.transforms import HorizontalFlip

from ..config import Config, count_pieces

FIGURES = {  # of each kind, what is scored: name of the figure -> COCO's kind
    "masks": {"box": "bbox", "mask": "segm"},
    "keypoints": {"box": "bbox", "keypoint": "keypoints"},
}
Examples = tuple[list[Tensor], list[dict[str, Any]]]


@dataclass
class PhotoPiece:
    """Some photos and their targets, as much as one of the paper's GPUs has in a step."""

    images: list[Tensor]
    targets: list[dict[str, Any]]

    @property
    def files(self) -> list[str]:
        """The photos' files, for messages."""
        return [target["file"] for target in self.targets]

    def to(self, device: torch.device) -> Examples:
        """What the network takes: images in 0..1, labels from 1; 0 is the background."""
        inputs = [image.to(device, non_blocking=True).float() / 255 for image in self.images]
        names = ("boxes", "labels", "masks", "keypoints")
        wanted = [
            {name: target[name].to(device, non_blocking=True) for name in names if name in target}
            for target in self.targets
        ]
        for each in wanted:
            each["labels"] = each["labels"] + 1
            if "masks" in each:
                each["masks"] = each["masks"].to(torch.uint8)  # the network resizes them
        return inputs, wanted


class Photos(Dataset):
    """Photos of one split: (image uint8 (3, H, W), target).

    target: boxes (M, 4) float32, labels (M,) 0..K-1, by `kind` masks bool (M, H, W) or keypoints
    (M, J, 3); image_id, file, size (H, W) of the file. Crowds are left out, as they have no box of
    one object; in training, images without an object, or of keypoints without a labelled joint.

    limit: only the first ones are trained on; 0: all. like: the training set, for the validation's
    categories.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        kind: str,
        *,
        training: bool,
        flip: float = 0.5,
        limit: int = 0,
        like: "Photos | None" = None,
    ) -> None:
        self.kind = kind
        folders, files = find_split(root, split, kind=kind)
        categories = None if like is None else like.categories
        self.source = CocoDataset(folders, files, kind=kind, categories=categories)
        self.categories: Categories = self.source.categories
        self.names = self.source.names
        mirrored = mirrored_joints(self.source.joints if kind == "keypoints" else [])
        if training and flip and kind == "keypoints" and mirrored is None:
            raise ValueError(
                f"{self.source.where} names no joints with a left and a right, so that its photos "
                "cannot be mirrored: name them as left_hand and right_hand in `categories`, or "
                "give clip.flip=0."
            )
        self.flip = HorizontalFlip(flip if training else 0, mirrored or ())
        kept = list(range(len(self.source)))
        if training:
            kept = [index for index in kept if self.has_object(index)][: limit or None]
            if not kept:
                raise ValueError(
                    f"{self.source.where} has nothing to train on: give another split."
                )
        self.kept = np.array(kept, np.int64)
        self.files = self.source.files[self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = self.source[int(self.kept[index])]
        single = ~target["iscrowd"]
        objects = {name: target[name][single] for name in ("boxes", "labels", self.kind)}
        return self.flip(image, objects | {k: target[k] for k in ("image_id", "file", "size")})

    @property
    def joint_count(self) -> int:
        """J, of keypoints; else 0."""
        if self.kind != "keypoints":
            return 0
        return self.source.target(0)["keypoints"].shape[1]

    def has_object(self, index: int) -> bool:
        """Whether a photo has an object that is no crowd, or of keypoints a labelled joint."""
        target = self.source.target(index, decode=False)
        single = ~target["iscrowd"]
        if self.kind == "keypoints":
            return bool((target["keypoints"][single][..., 2] > 0).any())
        return bool(single.any())

    def batches(self, cfg: Config, start: int, stop: int) -> Iterator[list[PhotoPiece]]:
        """Its share, for this process, of the steps after `start` to `stop`, cut for its GPUs.

        Those of a GPU are all wide or all tall where both are many enough, as in Detectron.
        """
        tall = (self.source.sizes[:, 0] > self.source.sizes[:, 1])[self.kept]
        both = min(tall.sum(), (~tall).sum()) >= cfg.per_gpu
        loader = train_loader(
            self,
            SampleStream(
                len(self),
                cfg.batch_size,
                seed=cfg.seed,
                groups=tall.astype(int).tolist() if both else None,
                chunk=cfg.per_gpu,
            ),
            start,
            stop,
            workers=cfg.data.workers,
            collate=collate,
            accumulate=count_pieces(cfg, dist.world_size()),
            bad=BadImages(cfg.data.bad_images),
        )
        for images, targets in loader:
            parts = [slice(i, i + cfg.per_gpu) for i in range(0, len(images), cfg.per_gpu)]
            yield [PhotoPiece(images[part], targets[part]) for part in parts]

    def check_images(self) -> None:
        """Open the header of each photo of this process's share; ValueError for a wrong size."""
        for index in range(dist.rank(), len(self), dist.world_size()):
            self.source.check_image(int(self.kept[index]))


def mirrored_joints(names: Sequence[str]) -> list[int] | None:
    """The joint that each becomes in a mirror; None where names have no left or lack a partner."""
    other = {"left": "right", "right": "left"}
    lower = [name.lower() for name in names]
    swapped = [re.sub("left|right", lambda found: other[found[0]], name) for name in lower]
    if swapped == lower or not set(swapped) <= set(lower):
        return None
    return [lower.index(name) for name in swapped]


def collate(examples: list[tuple[Tensor, dict[str, Any]]]) -> Examples:
    """Images of any sizes, and their targets."""
    return [image for image, _ in examples], [target for _, target in examples]


def evaluate_detector(
    model: nn.Module,
    dataset: Photos,
    *,
    batch_size: int = 1,
    workers: int = 0,
    amp: bool = False,
    backend: str = "pycocotools",
    save: Path | None = None,
) -> dict[str, float]:
    """box_AP, box_AP50, ..., mask_AP or keypoint_AP, ... in percent, on every process.

    NaN where the data has no object of a size; keypoints are COCO's 17. save: where the main
    process writes the detections in COCO's format.
    """
    training = model.training
    model.eval()
    found = list(detect(model, dataset, batch_size=batch_size, workers=workers, amp=amp))
    model.train(training)
    detections = [each for part in dist.gather(found) for each in part]
    if save is not None and dist.is_main():
        coco.save_results(save, detections)
    truth = dataset.source.ground_truth()
    metrics: dict[str, float] = {}
    for name, kind in FIGURES[dataset.kind].items():
        scores = coco.evaluate(truth, detections, kind=kind, backend=backend)
        metrics |= {f"{name}_{key}": value for key, value in scores.items()}
    return metrics


@torch.no_grad()
def detect(
    model: nn.Module, dataset: Photos, *, batch_size: int, workers: int, amp: bool
) -> Iterator[dict[str, Any]]:
    """Detections in this process's photos in COCO's result format."""
    device = dist.device()
    batches = eval_loader(dataset, batch_size, workers=workers, collate=collate)
    for images, targets in tqdm(
        batches, "evaluate", leave=False, disable=None if dist.is_main() else True
    ):
        inputs, _ = PhotoPiece(images, []).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            results = model(inputs)
        for target, result in zip(targets, results, strict=True):
            masks, points = result.get("masks"), result.get("keypoints")
            yield from coco.to_coco(
                target["image_id"],
                result["boxes"].float().cpu(),
                result["scores"].float().cpu(),
                result["labels"].cpu() - 1,
                dataset.source.category_ids,
                masks=None if masks is None else masks[:, 0].cpu() >= 0.5,
                keypoints=None if points is None else points.float().cpu(),
            )
