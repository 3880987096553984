"""What is measured of each part alone: AP and AP^NO of instances, Table 3; mIoU of a map, Table 4.

M instances of an image, H x W pixels, C classes; percent. AP^NO is the AP that is left once the
instances no longer overlap: the overlaps are resolved as in the merge (`merge.remove_overlaps`),
scores stay, and COCO's own evaluation follows.

Unstated: the thresholds of the paper's AP^NO. The overlap is the merge's 0.5; no detection is
dropped for its score, as AP ranks by it.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from common import dist
from common.coco import evaluate

from ..files.categories import Category, whole
from ..files.detection import decode
from ..files.entries import is_image_id
from ..files.pixels import MAX_PIXELS
from ..merge import OVERLAP, remove_overlaps

Entries = list[dict[str, Any]]  # of COCO's detection format


class InstanceQuality:
    """AP and AP_no over the images added, whose true instances are segments of panoptic maps.

    Crowds are ignored as by COCO. categories: by id. overlap: as of `merge.remove_overlaps`.
    """

    def __init__(self, categories: Mapping[int, Category], *, overlap: float = OVERLAP) -> None:
        self.categories, self.overlap = categories, overlap
        self.images: Entries = []
        self.truths: Entries = []
        self.found: dict[str, Entries] = {"AP": [], "AP_no": []}

    def add(
        self,
        image: int,
        instances: tuple[Tensor, Tensor, Sequence[int]],
        truth: tuple[Tensor, Sequence[Mapping[str, Any]]],
    ) -> None:
        """Count an image, which has this number from 1 on.

        instances: masks bool (M, H, W), scores (M,) and category ids. truth: ids (H, W), segments.
        """
        ids, segments = truth
        self.images.append({"id": image, "height": ids.shape[0], "width": ids.shape[1]})
        for segment in segments:
            if self.categories[segment["category_id"]].isthing:
                mask = (ids == segment["id"]).numpy()
                self.truths.append({"image_id": image, **annotation(mask, segment)})
        masks, points, labels = instances[0].cpu().numpy(), instances[1].float().cpu(), instances[2]
        scores = points.tolist()
        disjoint = disjoint_masks(masks, points, overlap=self.overlap)
        for name, left in (("AP", enumerate(masks)), ("AP_no", disjoint)):
            self.found[name] += [
                {
                    "image_id": image,
                    "category_id": labels[i],
                    "score": scores[i],
                    "segmentation": encode(mask),
                }
                for i, mask in left
                if mask.any()  # it may fall between the pixels
            ]

    def compute(self) -> dict[str, float]:
        """AP and AP_no over the images of all processes."""
        truth = {
            "images": _gather(self.images),
            "annotations": [{"id": i, **entry} for i, entry in enumerate(_gather(self.truths), 1)],
            "categories": [{"id": c.id, "name": c.name} for c in self.categories.values()],
        }
        return {
            name: evaluate.evaluate(truth, _gather(found), kind="segm")["AP"]
            for name, found in self.found.items()
        }


class SemanticQuality:
    """mIoU over the classes of semantic maps that occur in the truth; void is left out.

    categories: all ids. classes: those that the maps tell apart, for a network of stuff alone the
    stuff.
    """

    def __init__(self, categories: Collection[int], classes: Collection[int]) -> None:
        known = [category for category in categories if category in classes]
        self.table = torch.zeros(max(categories) + 2, dtype=torch.int64)  # of category id + 1
        self.table[torch.tensor(known) + 1] = torch.arange(1, len(known) + 1)
        self.confusion = torch.zeros(len(known) + 1, len(known) + 1, dtype=torch.int64)

    def add(self, semantic: Tensor, truth: Tensor) -> None:
        """Count an image; both are maps (H, W) of category ids, negative for none."""
        known = truth >= 0
        size = len(self.confusion)
        pairs = self.table[truth[known] + 1] * size + self.table[semantic[known] + 1]
        self.confusion += torch.bincount(pairs, minlength=size * size).view(size, size)

    def compute(self) -> float:
        """The mean over the images of all processes."""
        return mean_iou(dist.total(self.confusion))


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU in percent of counts (C + 1, C + 1), true class by predicted; 0 is no class."""
    right = confusion.diagonal()[1:].double()
    truth, predicted = confusion.sum(1)[1:], confusion.sum(0)[1:]
    occurs = truth > 0
    if not occurs.any():
        return math.nan
    return 100 * float((right / (truth + predicted - right))[occurs].mean())


def without_overlap(
    detections: Entries, *, confidence: float = 0.0, overlap: float = OVERLAP
) -> Entries:
    """Copies of the detections that survive, image by image, each with the pixels left to it.

    detections: COCO's results with run-length masks. Raises ValueError, naming the image, for masks
    of different sizes or without `counts` and `size`, and for what `remove_overlaps` refuses.
    """
    by_image: dict[Any, Entries] = {}
    for place, detection in enumerate(detections):
        if not isinstance(detection, dict) or not is_image_id(detection.get("image_id")):
            raise ValueError(f"detection {place} has no `image_id`: {detection!r:.80}")
        by_image.setdefault(detection["image_id"], []).append(detection)
    kept: Entries = []
    for image, members in by_image.items():
        masks = _decode_all(members, image)
        try:
            scores = np.array([detection.get("score") for detection in members], np.float64)
            left = disjoint_masks(masks, scores, confidence=confidence, overlap=overlap)
            kept += [{**members[i], "segmentation": encode(mask)} for i, mask in left]
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"image {image}: {error}") from error
    return kept


def disjoint_masks(
    masks: np.ndarray, scores: Tensor | np.ndarray, *, confidence: float = 0.0, overlap: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Index and pixels (H, W) of each of M instances that survives, by falling score."""
    found = remove_overlaps(masks, scores, confidence=confidence, overlap=overlap)
    for number, i in enumerate(found.kept, 1):
        yield i, found.owner == number


def encode(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run-length code of a mask (H, W), as a JSON file holds it."""
    code = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def annotation(mask: np.ndarray, segment: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a segment, of these pixels, in COCO's detection format, without its ids."""
    code = encode(mask)
    return {
        "category_id": segment["category_id"],
        "iscrowd": int(segment.get("iscrowd", 0)),
        "area": float(mask.sum()),
        "bbox": rle.toBbox(code).tolist(),
        "segmentation": code,
    }


def _decode_all(detections: Entries, image: Any) -> np.ndarray:
    """Masks bool (M, H, W) of one image."""
    size: list[int] = []
    masks = []
    for detection in detections:
        code = detection.get("segmentation")
        given = code.get("size") if isinstance(code, dict) else None
        sides = [whole(side) or 0 for side in given] if isinstance(given, list | tuple) else []
        if len(sides) != 2 or min(sides) < 1 or math.prod(sides) > MAX_PIXELS:
            raise ValueError(f"image {image}: a detection has no run-length mask of known size.")
        size = size or sides
        masks.append(decode(code, *size, where=f"image {image}: a detection"))
    return np.stack(masks)


def _gather(share: Entries) -> Entries:
    """The entries of all processes."""
    return [entry for part in dist.gather(share) for entry in part]
