"""What is measured of each part alone: AP of the instances (Table 3), mIoU of semantics (Table 4).

M instances, C categories.
"""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from common import dist
from common.coco import evaluate
from panoptic.data import Panoptic
from panoptic.merge import remove_overlaps
from panoptic.merging.sources import Output, boxes_of, true_semantics


class Parts:
    """AP, AP_no and mIoU over the pictures added, in percent; nothing unless asked for.

    AP: COCO's mask AP of the instances as they are; AP_no: of those that survive the removal of
    overlaps (AP^NO of Table 3), whose scores they keep and of which none is dropped for its score.
    The true instances are the segments of the panoptic maps; crowds are ignored as by COCO.
    mIoU: over the classes of the semantic map that occur in the truth, things included where the
    network tells their classes apart, else stuff alone; void is left out.
    """

    def __init__(self, dataset: Panoptic, *, ap: bool, miou: bool, overlap: float) -> None:
        self.dataset, self.ap, self.miou, self.overlap = dataset, ap, miou, overlap
        self.images: list[dict[str, Any]] = []
        self.truths: list[dict[str, Any]] = []
        self.found: dict[str, list[dict[str, Any]]] = {"AP": [], "AP_no": []}
        self.classes = [c for c in dataset.categories if c in dataset.labels.classes]
        self.confusion = torch.zeros(len(self.classes) + 1, len(self.classes) + 1).long()
        self.place = {number: i + 1 for i, number in enumerate(dataset.source.image_ids)}

    def add(self, output: Output, target: dict[str, Any]) -> None:
        """Count a picture."""
        if self.ap:
            self._add_instances(output, target)
        if self.miou:
            self._add_semantics(output.semantic.cpu(), target)

    def compute(self) -> dict[str, float]:
        """The figures, over the pictures of all processes."""
        figures = {}
        if self.ap:
            truth = {
                "images": _together(self.images),
                "annotations": _together(self.truths),
                "categories": [
                    {"id": c.id, "name": c.name} for c in self.dataset.categories.values()
                ],
            }
            for number, annotation in enumerate(truth["annotations"], start=1):
                annotation["id"] = number
            for name, detections in self.found.items():
                scores = evaluate.evaluate(truth, _together(detections), kind="segm")
                figures[name] = scores["AP"]
        if self.miou:
            figures["mIoU"] = mean_iou(dist.total(self.confusion))
        return figures

    def _add_instances(self, output: Output, target: dict[str, Any]) -> None:
        image = self.place[target["image_id"]]  # COCO's evaluator wants numbers
        height, width = target["size"]
        self.images.append({"id": image, "height": height, "width": width})
        for segment in target["segments"]:
            if self.dataset.categories[segment["category_id"]].isthing:
                self.truths.append(annotation(target["ids"] == segment["id"], segment, image))
        masks, scores = output.masks.cpu(), output.scores.float().cpu()
        labels = torch.tensor(output.labels, dtype=torch.int64)
        found = remove_overlaps(masks, scores, confidence=0, overlap=self.overlap)
        numbers = torch.arange(1, len(found.kept) + 1)[:, None, None]
        disjoint = found.owner == numbers  # (M', H, W)
        kept = found.kept
        for name, some, points, classes in (
            ("AP", masks, scores, labels),
            ("AP_no", disjoint, scores[kept], labels[kept]),
        ):
            seen = some.flatten(1).any(1)  # a mask may fall between the pixels
            self.found[name] += evaluate.to_coco(
                image,
                boxes_of(some[seen]),
                points[seen],
                classes[seen],
                range(max(self.dataset.categories) + 1),  # the labels are category ids already
                masks=some[seen],
            )

    def _add_semantics(self, semantic: Tensor, target: dict[str, Any]) -> None:
        """Counts of pixels by true and predicted class; 0 for what is neither."""
        table = torch.zeros(max(self.dataset.categories) + 2, dtype=torch.int64)
        table[torch.tensor(self.classes) + 1] = torch.arange(1, len(self.classes) + 1)
        truth = true_semantics(target["ids"], target["segments"])
        known = truth >= 0
        size = len(self.classes) + 1
        pairs = table[truth[known] + 1] * size + table[semantic[known] + 1]
        self.confusion += torch.bincount(pairs, minlength=size * size).view(size, size)


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU in percent of counts (C + 1, C + 1), true class by predicted; 0 is no class."""
    right = confusion.diagonal()[1:].double()
    truth, predicted = confusion.sum(1)[1:], confusion.sum(0)[1:]
    occurs = truth > 0
    if not occurs.any():
        return float("nan")
    return 100 * float((right / (truth + predicted - right))[occurs].mean())


def annotation(mask: Tensor, segment: dict[str, Any], image: int) -> dict[str, Any]:
    """The entry of a segment in COCO's detection format, without its id."""
    code = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    x1, y1, x2, y2 = boxes_of(mask[None])[0].tolist()
    return {
        "image_id": image,
        "category_id": segment["category_id"],
        "iscrowd": int(segment.get("iscrowd", 0)),
        "area": float(mask.sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": code | {"counts": code["counts"].decode()},
    }


def _together(share: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of all processes."""
    return [entry for part in dist.gather(share) for entry in part]
