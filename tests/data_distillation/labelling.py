"""Images of 48 pixels, a detector of a few thousand random parameters, and findings by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from data_distillation.distill import Merge, Transforms
from data_distillation.labels.counts import LabelledCounts
from data_distillation.labels.records import Record, Records
from data_distillation.weights.teacher import Teacher

SIZE = 48  # pixels
KINDS: dict[str, Any] = {"boxes": FasterRCNN, "masks": MaskRCNN, "keypoints": KeypointRCNN}
TRANSFORMS = Transforms(scales=[40, 56], flip=True, max_size=96)
MERGE = Merge(score=0.2, limit=6)


def detector(kind: str = "boxes", classes: int = 2) -> nn.Module:
    """Random weights that find something everywhere; 3 joints."""
    torch.manual_seed(0)
    trunk: Any = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU())
    trunk.out_channels = 8
    extra: dict[str, Any] = {}
    if kind != "boxes":
        pool = MultiScaleRoIAlign(["0"], 7, 2)
        head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        if kind == "keypoints":
            last: nn.Module = nn.ConvTranspose2d(8, 3, 4, 2, 1)
            extra = {"keypoint_roi_pool": pool, "keypoint_head": head, "keypoint_predictor": last}
        else:
            last = nn.Conv2d(8, classes + 1, 1)
            extra = {"mask_roi_pool": pool, "mask_head": head, "mask_predictor": last}
    model = KINDS[kind](
        trunk,
        min_size=SIZE,
        max_size=2 * SIZE,
        rpn_anchor_generator=AnchorGenerator(((12, 24),), ((1.0,),)),
        rpn_pre_nms_top_n_test=30,
        rpn_post_nms_top_n_test=15,
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU()),
        box_predictor=Predictor(classes),
        box_score_thresh=0.05,
        **extra,
    )
    return model.eval()


def flip_keypoints(points: Tensor, width: float, mirrored: Sequence[int]) -> Tensor:
    """(..., J, 2 or more: x, y, ...) in the mirrored image, where left joints are right ones."""
    points = points[..., list(mirrored), :].clone()
    points[..., 0] = width - points[..., 0]
    return points


class Predictor(nn.Module):
    """Scores (N, K + 1) and offsets (N, 4 K + 4), wide apart."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(16, classes + 1)
        self.bbox_pred = nn.Linear(16, 4 * classes + 4)
        nn.init.normal_(self.cls_score.weight, std=2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


def teacher(kind: str = "boxes", **changes: Any) -> Teacher:
    options = {
        "kind": kind,
        "category_ids": [7, 3],
        "mirrored": (0, 2, 1) if kind == "keypoints" else None,
        "digest": "d",
        "where": "here",
    } | changes
    return Teacher(detector(kind, len(options["category_ids"])), **options)


def write_images(folder: Path, count: int = 5) -> None:
    """image0.png, ... of noise in large squares, the last one lower."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        height = SIZE if number < count - 1 else SIZE * 2 // 3
        squares = generator.integers(0, 256, (height // 8, SIZE // 8, 3), np.uint8)
        pixels = squares.repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"image{number}.png")


def found(
    scores: list[list[float]], categories: list[list[int]] | None = None, joints: int = 0
) -> Records:
    """Records of images of 100 x 80 pixels with these scores; boxes lie apart, 10 x 20 pixels.

    Joint j of detection i is at (3 i + j + 0.5, 4.5), its confidence the score less j / 100.
    """
    images = []
    for number, row in enumerate(scores):
        count = len(row)
        left = 11 * np.arange(count, dtype=np.float32)[:, None]
        points = None
        if joints:
            j = np.arange(joints, dtype=np.float32) + 0 * left  # (M, J)
            x = 3 * left / 11 + j + 0.5
            sure = np.array(row, np.float32)[:, None] - j / 100
            points = np.stack([x, np.full_like(x, 4.5), sure], -1).astype(np.float32)
        images.append(
            Record(
                f"image{number}.png",
                number + 1,
                100,
                80,
                boxes=np.concatenate([left, left * 0, left + 10, left * 0 + 20], 1),
                scores=np.array(row, np.float32),
                categories=np.array(categories[number] if categories else [1] * count, np.int64),
                keypoints=points,
            )
        )
    info = {"teacher": "run", "digest": "abc", "kind": "boxes", "folder": "/images"}
    return Records(info, images, [])


def counts(
    images: int, instances: dict[int, int], joints: int = 0, **changes: Any
) -> LabelledCounts:
    """A labelled set of these counts; the category with the id 1 is named class 1."""
    categories: list[dict[str, Any]] = [{"id": n, "name": f"class {n}"} for n in instances]
    values: dict[str, Any] = {
        "annotated": images,
        "categories": categories,
        "digest": "list",
        "where": "train.json",
    }
    return LabelledCounts(images=images, instances=instances, joints=joints, **values | changes)


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path
