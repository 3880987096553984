"""Images of COCO-format files as the paper's networks learn them, whoever labelled them.

M objects of an image, J joints. Boxes are float xyxy in pixels of the image, joints continuous x, y
and visibility.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import dist
from common.coco.dataset import Categories, CocoDataset
from common.transforms import HorizontalFlip

from ..config import Data
from ..distill import mirrored_joints
from ..labels.counts import hash_images


class Labelled(Dataset):
    """Images of COCO-format files with their objects: (image uint8 (3, H, W), target).

    target: boxes (M, 4) float32, labels (M,) 0..K-1, by the task keypoints (M, J, 3) or masks
    (M, H, W) bool; ignore (I, 4) boxes of crowds, which are left out of these; image_id, file, size
    (H, W) of the file.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        files: Sequence[Path],
        cfg: Data,
        task: str,
        *,
        training: bool,
        categories: Categories | None = None,
        skip_empty: bool = False,
    ) -> None:
        self.task, self.annotations = task, [Path(file) for file in files]
        self.source = CocoDataset(
            folders, files, kind=task, categories=categories, strict=cfg.strict
        )
        self.categories, self.names = self.source.categories, self.source.names
        self.category_ids = self.source.category_ids
        self.joints = self.source.joints if task == "keypoints" else []
        self.shift = 0.5 - cfg.joint_offset
        mirrored = mirrored_joints(self.joints)
        if training and task == "keypoints" and cfg.flip and mirrored is None:
            raise ValueError(
                f"{self.annotations[0]} names no joints with a left and a right, so that its "
                "images cannot be mirrored: name them as left_hand and right_hand in "
                "`categories`, or give data.flip=0."
            )
        self.flip = HorizontalFlip(cfg.flip if training else 0, mirrored or ())
        self.kept = np.arange(len(self.source))
        if skip_empty:
            self.kept = self.kept[[self.has_object(index) for index in self.kept.tolist()]]
        self.limit = cfg.limit if training else 0
        if self.limit:
            self.kept = self.kept[: self.limit]
        self.files = self.source.files[self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = self.source[int(self.kept[index])]
        image, target = self.flip(image, self.without_crowds(target))
        if self.shift and self.task == "keypoints":  # after the flip: pixel x goes to W - 1 - x
            seen = target["keypoints"][..., 2:] > 0
            target["keypoints"][..., :2] -= torch.where(seen, self.shift, 0.0)
        return image, target

    def without_crowds(self, target: dict[str, Any]) -> dict[str, Any]:
        """The target of single objects, and the boxes of crowds as `ignore`."""
        single = ~target["iscrowd"]
        names = ["boxes", "labels", *([self.task] if self.task != "boxes" else [])]
        kept = {name: target[name][single] for name in names}
        kept |= {name: target[name] for name in ("image_id", "file", "size")}
        return kept | {"ignore": target["boxes"][~single]}

    def has_object(self, index: int) -> bool:
        """Whether an image of the files has a single object, or of keypoints a labelled joint."""
        target = self.source.target(index, decode=False)
        single = ~target["iscrowd"]
        if self.task == "keypoints":
            return bool((target["keypoints"][single][..., 2] > 0).any())
        return bool(single.any())

    @property
    def joint_count(self) -> int:
        """J, of the task of keypoints."""
        if self.task != "keypoints":
            return 0
        return self.source.target(0)["keypoints"].shape[1]

    @property
    def digest(self) -> str:
        """Which images these are, as `info` of label files has it."""
        return hash_images(self.source.ids[self.kept])

    def ground_truth(self) -> dict[str, Any]:
        """What `common.coco.evaluate` compares with, in COCO's format."""
        return self.source.ground_truth()

    def whole_truth(self) -> dict[str, Any]:
        """The truth of all labelled images, empty ones too; to the last one of `data.limit`."""
        truth = self.ground_truth()
        if not self.limit:
            return truth
        ids = set(self.source.ids[: self.kept.max(initial=-1) + 1].tolist())
        return truth | {
            "images": [entry for entry in truth["images"] if entry["id"] in ids],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in ids],
        }

    def wide(self) -> np.ndarray:
        """Whether each image is at least as wide as high, (N,)."""
        sizes = self.source.sizes[self.kept]
        return sizes[:, 1] >= sizes[:, 0]

    def check_images(self) -> None:
        """Open the header of each image of this process's share; ValueError for a wrong size."""
        for index in range(dist.rank(), len(self), dist.world_size()):
            self.source.check_image(int(self.kept[index]))
