"""COCO's AP of keypoints, boxes or masks, Sec. 4, and of the automatic labels themselves.

M detections of an image; boxes are xyxy in pixels of the original image.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common import dist, draw
from common.coco import evaluate as coco
from common.coco.files import read_json
from data_distillation import data
from data_distillation.config import Config
from data_distillation.distill import Transforms, distill, mirrored_joints
from data_distillation.figures.labels import draw_compare, is_comparable
from data_distillation.inputs.builtin import SIGMAS
from data_distillation.labels.quality import label_quality
from data_distillation.labels.transforms import joint_shift, without_flips

KINDS = {  # of each task, what is scored: name of the figure -> COCO's kind
    "keypoints": {"keypoint": "keypoints", "box": "bbox"},
    "boxes": {"box": "bbox"},
    "masks": {"mask": "segm", "box": "bbox"},
}


def columns(cfg: Config) -> tuple[str, ...]:
    """What a run's table shows; the AP of its labels where the truth of their images is known."""
    return (*(f"{name}_AP" for name in KINDS[cfg.task]), "label_AP")


def evaluate(
    model: nn.Module, cfg: Config, dataset: data.Labelled, *, save: bool = False
) -> dict[str, float]:
    """keypoint_AP, keypoint_AP50, box_AP, ... in percent, on every process.

    Figures of sizes that do not occur are left out. With `save`, the main process also writes
    `detections.json` and draws some; label_AP, ... say how good the automatic labels are and, by
    `test.tta`, tta_keypoint_AP, ... what the transforms give at test time.
    """
    plain = Transforms(scales=[], flip=False)
    detections = find(model, cfg, dataset, plain)
    metrics = score(cfg, dataset, detections)
    if save and dist.is_main():
        coco.save_results(Path(cfg.output_dir, "detections.json"), detections)
        draw_runs(cfg, dataset, {"found": detections}, "detections.png")
    if save and cfg.test.tta:
        mirrored = mirrored_joints(dataset.joints)
        transforms, note = without_flips(cfg.transforms, cfg.task, mirrored)
        if note and dist.is_main():
            print(f"warning: {note}")
        found = find(model, cfg, dataset, transforms)
        metrics |= {f"tta_{name}": value for name, value in score(cfg, dataset, found).items()}
    if save:
        metrics |= score_labels(cfg, dataset)
    occurs = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return {name: metrics.get(name, math.nan) for name in columns(cfg)} | occurs


def score(
    cfg: Config, dataset: data.Labelled, detections: list[dict[str, Any]]
) -> dict[str, float]:
    """COCO's figures of the task."""
    truth = dataset.ground_truth()
    metrics: dict[str, float] = {}
    for name, kind in KINDS[cfg.task].items():
        scores = coco.evaluate(
            truth,
            detections,
            kind=kind,
            backend=cfg.test.evaluator,
            per_class=cfg.test.per_class,
            sigmas=sigmas(cfg) if kind == "keypoints" else None,
        )
        metrics |= {f"{name}_{key}": value for key, value in scores.items()}
    return metrics


def sigmas(cfg: Config) -> list[float] | None:
    """The fall-off of each joint; None stands for COCO's 17."""
    if cfg.data.name == "builtin" and not cfg.test.sigmas:
        return list(SIGMAS)
    return cfg.test.sigmas or None


def check_sigmas(cfg: Config, joints: int) -> None:
    """ValueError unless each joint has a fall-off; `joints`: their number, of keypoints."""
    given = len(sigmas(cfg) or range(17))
    if cfg.task == "keypoints" and joints != given:
        raise ValueError(
            f"the labelled images have {joints} joints, but test.sigmas gives {given} (COCO's 17 "
            "where it is empty): give test.sigmas=[...], one for each joint, such as 0.07."
        )


def score_labels(cfg: Config, dataset: data.Labelled) -> dict[str, float]:
    """label_AP, ...: the automatic labels against the hidden truth, where `data.truth` names it."""
    if not cfg.data.automatic or not cfg.data.truth:
        return {}
    folders, files = data.locate(cfg.data, cfg.data.truth, cfg.task)
    hidden = data.Labelled(
        folders, files, cfg.data, cfg.task, training=False, categories=dataset.categories
    )
    content = read_json(cfg.data.automatic)
    scores = label_quality(content, hidden.ground_truth(), cfg.task, sigmas(cfg))
    return {f"label_{name}": value for name, value in scores.items()}


def find(
    model: nn.Module, cfg: Config, dataset: data.Labelled, transforms: Transforms
) -> list[dict[str, Any]]:
    """Detections of all images in COCO's result format, on every process."""
    return [d for part in dist.gather(list(detect(model, cfg, dataset, transforms))) for d in part]


@torch.no_grad()
def detect(
    model: nn.Module, cfg: Config, dataset: data.Labelled, transforms: Transforms
) -> Iterator[dict[str, Any]]:
    """Detections of this process's images in COCO's result format."""
    device = dist.device()
    batches = data.validation_batches(dataset, cfg)
    shift = joint_shift(cfg.data.joint_offset, transforms)
    for examples in tqdm(
        batches, "evaluate", leave=False, disable=None if dist.is_main() else True
    ):
        images, _ = data.to_device(examples, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            results = distill(model, images, transforms, cfg.merge, mirrored_joints(dataset.joints))
        for target, result in zip(examples[1], results, strict=True):
            points = result.get("keypoints")
            if points is not None:
                points = points + torch.tensor([shift, shift, 0])
                points[..., 2] = 1  # COCO scores all joints of a detection
            yield from coco.to_coco(
                target["image_id"],
                result["boxes"],
                result["scores"],
                result["labels"] - 1,
                dataset.category_ids,
                keypoints=points,
                masks=result.get("masks"),
            )


def draw_versus(cfg: Config, folders: Mapping[str, Path]) -> None:
    """Write `compare.png` beside several runs: test images under each, from `detections.json`."""
    dataset = data.build_validation(cfg.data, cfg.task)
    runs = {
        name: json.loads(Path(folder, "detections.json").read_bytes())
        for name, folder in folders.items()
        if Path(folder, "detections.json").is_file()  # a run that diverged has none
    }
    if runs:
        draw_runs(cfg, dataset, runs, "compare.png")


def draw_runs(
    cfg: Config,
    dataset: data.Labelled,
    runs: Mapping[str, Sequence[dict[str, Any]]],
    file: str,
) -> None:
    """Write a picture of what runs find in `test.images` of the images, beside the truth."""
    truth = dataset.ground_truth()
    if cfg.test.images and any(is_comparable(entry) for entry in truth["annotations"]):
        sheet = draw_compare(
            truth,
            runs,
            lambda number: dataset[number][0],
            cfg.test.images,
            sigmas=sigmas(cfg) if cfg.task == "keypoints" else None,
        )
        draw.save_png(sheet, Path(cfg.output_dir, file))
