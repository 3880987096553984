"""How well what is found fits the true objects of an image; T true objects, D found ones, J joints.

Objects are dictionaries of COCO's format, as in `instances`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.cocoeval import Params
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from common.coco.masks import encode

from .instances import Entry, joints_of

COCO_SIGMAS = tuple(Params("keypoints").kpt_oks_sigmas.tolist())


@dataclass(frozen=True)
class Measure:
    """What is compared: "boxes" or "masks" by IoU, "keypoints" by OKS with a sigma per joint."""

    kind: str
    sigmas: Sequence[float] = ()

    @property
    def name(self) -> str:
        """As it stands in a figure."""
        return "OKS" if self.kind == "keypoints" else "IoU"

    def compare(self, truth: Sequence[Entry], found: Sequence[Entry], image: Entry) -> Tensor:
        """Similarity (T, D) in 0..1; 0 between different classes."""
        if not truth or not found:
            return torch.zeros(len(truth), len(found), dtype=torch.float64)
        if self.kind == "boxes":
            similar = box_iou(corners(truth), corners(found))
        elif self.kind == "masks":
            size = (image["height"], image["width"])
            codes = [[encode(e["segmentation"], *size) for e in each] for each in (truth, found)]
            similar = torch.from_numpy(rle.iou(codes[1], codes[0], [0] * len(truth)).T.copy())
        else:
            seen = torch.stack([joints_of(entry)[:, 2] > 0 for entry in truth])[
                :, None
            ]  # (T, 1, J)
            near = self.closeness(truth, found) * seen
            similar = near.sum(2) / seen.sum(2).clamp(min=1)
        classes = [torch.tensor([e["category_id"] for e in each]) for each in (truth, found)]
        return similar * (classes[0][:, None] == classes[1])

    def closeness(self, truth: Sequence[Entry], found: Sequence[Entry]) -> Tensor:
        """Each joint's part of OKS (T, D, J), exp(-d^2 / (2 (2 sigma)^2 area))."""
        real = torch.stack([joints_of(entry)[:, :2] for entry in truth])
        given = torch.stack([joints_of(entry)[:, :2] for entry in found])
        area = torch.tensor([entry["area"] for entry in truth], dtype=torch.float64)
        variance = (2 * torch.tensor(self.sigmas, dtype=torch.float64)) ** 2
        distance2 = (real[:, None] - given).pow(2).sum(-1)
        return torch.exp(-distance2 / (2 * variance * (area[:, None, None] + np.spacing(1))))

    def match(
        self, truth: Sequence[Entry], found: Sequence[Entry], image: Entry
    ) -> tuple[list[int | None], float]:
        """The found object of each true one, so that all fit best, and their mean similarity."""
        similar = self.compare(truth, found, image)
        rows, columns = linear_sum_assignment(similar.numpy(), maximize=True)
        pairs: list[int | None] = [None] * len(truth)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if similar[row, column] > 0.05:  # else it is another object
                pairs[row] = column
        mean = similar[rows, columns].sum() / max(1, len(truth))
        return pairs, float(mean)


def corners(entries: Sequence[Entry]) -> Tensor:
    """Boxes (M, 4) x1, y1, x2, y2 of some objects."""
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float64)
    return box_convert(boxes, "xywh", "xyxy")


def measure_of(truth: Entry, sigmas: Sequence[float] | None) -> Measure:
    """What can be compared of a COCO-format content: joints, else masks, else boxes."""
    annotations = truth["annotations"]
    if annotations and "keypoints" in annotations[0]:
        sigmas, joints = sigmas or COCO_SIGMAS, len(annotations[0]["keypoints"]) // 3
        if len(sigmas) != joints:
            raise ValueError(f"{joints} joints need as many sigmas; there are {len(sigmas)}")
        return Measure("keypoints", sigmas)
    return Measure("masks" if annotations and "segmentation" in annotations[0] else "boxes")
