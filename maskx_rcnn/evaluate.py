"""COCO AP of boxes and masks on A, on B and on all classes, Sec. 4.

M detections of an image; boxes are xyxy in pixels of the original image.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from common import dist, draw, files
from common.coco import evaluate as coco
from maskx_rcnn import data, grabcut
from maskx_rcnn.config import Config
from maskx_rcnn.figures import masks, neighbours

COLUMNS = ("mask_AP_B", "mask_AP_A", "mask_AP", "box_AP")
KINDS = {"box": "bbox", "mask": "segm"}


def evaluate(
    model: MaskRCNN, cfg: Config, dataset: data.PartialMasks, *, save: bool = False
) -> dict[str, float]:
    """mask_AP_B, mask_AP_A, mask_AP, box_AP_B, mask_AP50_B, ... in percent, on every process.

    Figures of sizes and classes that do not occur are left out. With `save`, the main process also
    writes `detections.json` and what is drawn of it.
    """
    training = model.training
    model.eval()
    found = list(detect(model, cfg, dataset))
    detections = [d for part in dist.gather(found) for d in part]
    truth = {"box": dataset.ground_truth(boxes=True), "mask": dataset.ground_truth()}
    metrics: dict[str, float] = {}
    for ending, labels in subsets(dataset).items():
        chosen = {dataset.category_ids[label] for label in labels}
        for name, kind in KINDS.items():
            if name == "mask" and not has_masks(cfg):
                continue
            scores = coco.evaluate(
                only_of(truth[name], chosen),
                [d for d in detections if d["category_id"] in chosen],
                kind=kind,
                backend=cfg.test.evaluator,
                per_class=cfg.test.per_class and not ending,
            )
            metrics |= {f"{name}_{key}{ending}": value for key, value in scores.items()}
    if save and dist.is_main():
        coco.save_results(Path(cfg.output_dir, "detections.json"), detections)
        draw_masks(cfg, dataset, truth["mask"], detections)
        draw_neighbours(model, cfg, dataset)
    model.train(training)
    occurs = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return {name: metrics.get(name, math.nan) for name in columns(cfg)} | occurs


def columns(cfg: Config) -> tuple[str, ...]:
    """What a run's table shows: nothing of B where all classes are in A."""
    names = COLUMNS if has_masks(cfg) else ("box_AP_B", "box_AP_A", "box_AP")
    return tuple(name for name in names if cfg.data.masks != "all" or not name.endswith("_B"))


def has_masks(cfg: Config) -> bool:
    """Whether the run gives masks: a detector has none but GrabCut's."""
    return cfg.stage != "detector" or cfg.test.grabcut


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
        for image, target, result in zip(*examples, results, strict=True):
            found = result["masks"][:, 0] >= 0.5
            if cfg.test.grabcut:
                found = grabcut.segment_boxes(image, result["boxes"])
            yield from coco.to_coco(
                target["image_id"],
                result["boxes"].float().cpu(),
                result["scores"].float().cpu(),
                result["labels"].cpu() - 1,
                dataset.category_ids,
                masks=found.cpu(),
            )


def draw_masks(
    cfg: Config, dataset: data.PartialMasks, truth: dict[str, Any], detections: list[dict[str, Any]]
) -> None:
    """Write `masks.png`: the first `test.images` images, the truth beside the masks found."""
    if cfg.test.images and has_masks(cfg):
        sheet = masks.draw_run(
            truth, detections, lambda k: dataset[k][0], b_classes(dataset), cfg.test.images
        )
        draw.save_png(sheet, Path(cfg.output_dir, "masks.png"))


def draw_neighbours(model: MaskRCNN, cfg: Config, dataset: data.PartialMasks) -> None:
    """Write `neighbours.json` and `neighbours.png`: the A classes near each B class, as T is."""
    heads = model.roi_heads
    trained = cfg.stage != "detector" and not cfg.test.grabcut
    if not trained or heads.mask_predictor.kind != "transfer" or not dataset.boxes_only:
        return
    with torch.no_grad():
        w_det, w_seg = (
            space(heads.box_predictor)[1:]  # without the background
            for space in (heads.mask_predictor.w_det, heads.mask_predictor.w_seg)
        )
    spaces, names = {"w_det": w_det, "w_seg": w_seg}, dataset.names
    found = neighbours.nearest(spaces, names, dataset.with_masks, dataset.boxes_only)
    files.write_text(Path(cfg.output_dir, "neighbours.json"), json.dumps(found, indent=1))
    picture = Path(cfg.output_dir, "neighbours.png")
    neighbours.draw(picture, spaces, names, dataset.with_masks, dataset.boxes_only)


def draw_versus(cfg: Config, folders: Mapping[str, Path]) -> None:
    """Write `masks.png` beside several runs: the masks of B under each, from `detections.json`."""
    dataset = data.PartialMasks(cfg.data, False)
    runs = {
        name: json.loads(Path(folder, "detections.json").read_bytes())
        for name, folder in folders.items()
        if Path(folder, "detections.json").is_file()  # a run that diverged has none
    }
    if cfg.test.images and has_masks(cfg) and dataset.boxes_only:
        truth = dataset.ground_truth()
        sheet = masks.draw_versus(truth, runs, lambda k: dataset[k][0], b_classes(dataset))
        draw.save_png(sheet, Path(cfg.output_dir, "masks.png"))


def b_classes(dataset: data.PartialMasks) -> set[int]:
    """Category ids of B."""
    return {dataset.category_ids[label] for label in dataset.boxes_only}
