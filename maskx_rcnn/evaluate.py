"""COCO AP of boxes and masks on A, on B and on all classes, Sec. 4.

M detections of an image; boxes are xyxy in pixels of the original image.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from common import dist
from common.coco import evaluate as coco
from maskx_rcnn import data
from maskx_rcnn.config import Config

COLUMNS = ("mask_AP_B", "mask_AP_A", "mask_AP", "box_AP")
KINDS = {"box": "bbox", "mask": "segm"}


def evaluate(
    model: MaskRCNN, cfg: Config, dataset: data.PartialMasks, *, save: bool = False
) -> dict[str, float]:
    """mask_AP_B, mask_AP_A, mask_AP, box_AP_B, mask_AP50_B, ... in percent, on every process.

    Figures of sizes and classes that do not occur are left out. With `save`, the main process also
    writes `detections.json`.
    """
    training = model.training
    model.eval()
    found = list(detect(model, cfg, dataset))
    model.train(training)
    detections = [d for part in dist.gather(found) for d in part]
    truth = dataset.ground_truth()
    metrics: dict[str, float] = {}
    for ending, labels in subsets(dataset).items():
        chosen = {dataset.category_ids[label] for label in labels}
        for name, kind in KINDS.items():
            if cfg.stage == "detector" and name == "mask":
                continue
            scores = coco.evaluate(
                only_of(truth, chosen),
                [d for d in detections if d["category_id"] in chosen],
                kind=kind,
                backend=cfg.test.evaluator,
                per_class=cfg.test.per_class and not ending,
            )
            metrics |= {f"{name}_{key}{ending}": value for key, value in scores.items()}
    if save and dist.is_main():
        coco.save_results(Path(cfg.output_dir, "detections.json"), detections)
    occurs = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return {name: metrics.get(name, math.nan) for name in columns(cfg)} | occurs


def columns(cfg: Config) -> tuple[str, ...]:
    """What a run's table shows."""
    return COLUMNS if cfg.stage != "detector" else ("box_AP_B", "box_AP_A", "box_AP")


def subsets(dataset: data.PartialMasks) -> dict[str, Sequence[int]]:
    """The labels that each ending of a figure's name stands for."""
    sets = {"": range(len(dataset.category_ids)), "_A": dataset.with_masks}
    return sets | ({"_B": dataset.boxes_only} if dataset.boxes_only else {})


def only_of(truth: dict[str, Any], categories: set[int]) -> dict[str, Any]:
    """The truth of some categories, on all images; the same as COCOeval's `catIds`."""
    return truth | {
        "annotations": [a for a in truth["annotations"] if a["category_id"] in categories],
        "categories": [c for c in truth["categories"] if c["id"] in categories],
    }


@torch.no_grad()
def detect(model: MaskRCNN, cfg: Config, dataset: data.PartialMasks) -> Iterator[dict[str, Any]]:
    """Detections of this process's images in COCO's result format, with masks."""
    device = dist.device()
    batches = data.validation_batches(dataset, cfg)
    for examples in tqdm(
        batches, "evaluate", leave=False, disable=None if dist.is_main() else True
    ):
        images, _ = data.to_device(examples, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            results = model(images)
        for target, result in zip(examples[1], results, strict=True):
            yield from coco.to_coco(
                target["image_id"],
                result["boxes"].float().cpu(),
                result["scores"].float().cpu(),
                result["labels"].cpu() - 1,
                dataset.category_ids,
                masks=(result["masks"][:, 0] >= 0.5).cpu(),
            )
