"""COCO AP of a model, a figure of what it finds, and the model of a finished run.

N images of a batch, M detections of an image; boxes are xyxy in pixels of the original image.
"""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize
from tqdm import tqdm

from common import dist, draw
from common.coco import evaluate as coco_eval
from common.coco.dataset import Categories
from common.config import to_dataclass
from common.run import checkpoint
from focal_loss import data
from focal_loss.config import Config
from focal_loss.detect import Detector
from focal_loss.model import Architecture, RetinaNet

COLUMNS = ("AP", "AP50", "AP75")
SHOWN = 0.5  # score from which a detection is drawn
WIDTH = 288  # pixels of an image in the sheet of detections


def evaluate(
    model: RetinaNet, cfg: Config, dataset: data.Detection, *, save: bool = False
) -> dict[str, float]:
    """AP, AP50, AP75, AP_small, ... in percent on a validation set, the same on every process.

    And `milliseconds` an image from the padded batch to the detections, as in Table 1e. Figures of
    sizes and classes that do not occur are left out. With `save`, the main process also writes
    `detections.json` and `detections.png`.
    """
    training = model.training
    model.eval()
    found: list[dict] = []
    ids: list[int] = []
    seconds = 0.0
    batches = data.validation_batches(dataset, cfg)
    for batch in tqdm(batches, "evaluate", leave=False, disable=None if dist.is_main() else True):
        batch = batch.to(dist.device())
        started = time.perf_counter()
        found += detect(model, batch, cfg, dataset.category_ids)  # on the CPU, so it waits for all
        seconds += time.perf_counter() - started
        ids += [target["image_id"] for target in batch.targets]
    model.train(training)
    detections = [d for part in dist.gather(found) for d in part]
    metrics = coco_eval.evaluate(
        dataset.ground_truth(),
        detections,
        backend=cfg.test.evaluator,
        per_class=cfg.test.per_class,
        image_ids=[image for part in dist.gather(ids) for image in part],
    )
    occurs = {name: value for name, value in metrics.items() if math.isfinite(value)}
    metrics = {name: metrics[name] for name in COLUMNS} | occurs
    metrics["milliseconds"] = 1000 * seconds * dist.world_size() / len(dataset)  # Table 1e
    if save and dist.is_main():
        folder = Path(cfg.output_dir)
        coco_eval.save_results(folder / "detections.json", detections)
        if cfg.test.pictures:
            sheet = contact_sheet(dataset, detections, cfg)
            draw.save_png(sheet, folder / "detections.png")
    return metrics


@torch.no_grad()
def detect(model: RetinaNet, batch: data.Batch, cfg: Config, category_ids: list[int]) -> list[dict]:
    """Detections of a batch in COCO's result format; boxes xywh in pixels of the files."""
    test = cfg.test
    detector = Detector(
        score=test.score,
        topk=test.topk,
        nms=test.nms,
        nms_kind=test.nms_kind,
        class_agnostic=test.class_agnostic,
        detections=test.detections,
    )
    originals = [target["size"] for target in batch.targets]
    device = batch.images.device
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
        if test.flip or test.short_sides:
            per_image = detector.detect_augmented(
                model,
                batch.images,
                batch.sizes,
                originals,
                short_sides=test.short_sides,
                flip=test.flip,
            )
        else:
            per_image = detector(model, batch.images, batch.sizes, originals)
    results = []
    for target, found in zip(batch.targets, per_image, strict=True):
        found = {key: value.cpu() for key, value in found.items()}
        results += coco_eval.to_coco(target["image_id"], **found, category_ids=category_ids)
    return results


def load_run(folder: Path) -> tuple[RetinaNet, Config, Categories]:
    """The trained model of a run, averaged where the run averages, its settings, its categories."""
    checkpoints = sorted(folder.glob("checkpoint-*.pt"))
    settings = folder / ".hydra" / "config.yaml"
    if not checkpoints or not settings.is_file():
        raise ValueError(f"{folder} holds no finished run: give run=outputs/... of train.py.")
    parts = checkpoint.load(checkpoints[-1])["parts"]
    schema = OmegaConf.structured(Config)
    cfg: Config = to_dataclass(cast(DictConfig, OmegaConf.merge(schema, OmegaConf.load(settings))))
    model = RetinaNet(Architecture(num_classes=len(parts["category_ids"]), **asdict(cfg.model)))
    averaged = {  # AveragedModel's names
        name.removeprefix("module."): value
        for name, value in parts.get("average", {}).items()
        if name.startswith("module.")
    }
    print(checkpoint.load_matching(model, averaged or parts["model"]))
    model.to(dist.device()).to(memory_format=torch.channels_last)
    return model.eval(), cfg, Categories(**parts["categories"], where=str(checkpoints[-1]))


def contact_sheet(dataset: data.Detection, detections: list[dict], cfg: Config) -> Tensor:
    """The first images, each beside itself, with its objects and with those found; (3, H, W) uint8.

    Images of similar shape stand together, so that little of the sheet stays white.
    """
    by_image: dict[int, list[dict]] = {}
    for detection in detections:
        by_image.setdefault(detection["image_id"], []).append(detection)
    label_of = {category: label for label, category in enumerate(dataset.category_ids)}
    pairs = []
    for index in range(min(cfg.test.pictures, len(dataset))):
        image, target = dataset.source[index]
        real = ~target["iscrowd"]
        truth = panel(image, target["boxes"][real], target["labels"][real], dataset.names)
        found = [d for d in by_image.get(target["image_id"], []) if d["score"] >= SHOWN]
        boxes = torch.tensor([d["bbox"] for d in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
        labels = torch.tensor([label_of[d["category_id"]] for d in found])
        scores = torch.tensor([d["score"] for d in found])
        pairs.append((truth, panel(image, boxes, labels, dataset.names, scores)))
    pairs.sort(key=lambda pair: pair[0].shape[1])
    titles = ["truth", "detected"] * len(pairs)
    return draw.grid([each for pair in pairs for each in pair], columns=6, titles=titles)


def panel(
    image: Tensor, boxes: Tensor, labels: Tensor, names: list[str], scores: Tensor | None = None
) -> Tensor:
    """An image with boxes (M, 4), as wide as all others; (3, H, WIDTH) uint8."""
    factor = WIDTH / image.shape[-1]
    height = max(1, round(factor * image.shape[-2]))
    image = resize(image, [height, WIDTH], InterpolationMode.BICUBIC, antialias=True)
    return draw.boxes(image, factor * boxes, labels=labels, scores=scores, names=names, width=2)
