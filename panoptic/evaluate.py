"""PQ of a model on the validation split, and images of what it finds and gets wrong.

H x W pixels of the file, where everything is compared, whatever the size the network sees; M
instances of an image, C semantic classes. Metrics are percent.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from common import dist
from panoptic.config import Config
from panoptic.data import Batch, Panoptic, validation_batches
from panoptic.figures import report
from panoptic.figures.predictions import Images
from panoptic.files.categories import kinds
from panoptic.files.predictions import Files
from panoptic.merging.sources import Output, PanopticMap, Thresholds, panoptic_map, true_semantics
from panoptic.metric.matching import RULES, Matching
from panoptic.metric.parts import InstanceQuality, SemanticQuality
from panoptic.metric.scores import Scores
from panoptic.model import PanopticFPN, Separate
from panoptic.quality import PanopticQuality

Network = PanopticFPN | Separate
Target = dict[str, Any]  # of `data.Panoptic`


def evaluate(
    model: Network, cfg: Config, dataset: Panoptic, *, show: bool = False
) -> dict[str, float]:
    """PQ, SQ, RQ, the same with _th (things) and _st (stuff), in percent, alike on all processes.

    Also SOURCE_PQ_th, ... for each of `predict.also`; AP and AP_no with `predict.ap`, mIoU with
    `predict.miou`, PQ/NAME with `predict.per_class`. Of source "separate" PQ is undefined: nan.
    show: the main process also prints the official table and writes `predictions.png`.
    """
    folder, show = Path(cfg.output_dir), show and dist.is_main()
    scores = SourceScores(cfg, dataset)
    images = Images(dataset.categories, cfg.predict.pictures if show else 0)
    files = Files(folder / "predictions.json") if cfg.predict.save else None
    for image, output, target in predictions(model, cfg, dataset):
        prediction, matching = scores.add(output, target)
        images.add(image, (target["ids"], target["segments"]), prediction, matching)
        if files:
            files.add(target["image_id"], prediction[0].numpy(), prediction[1])
    metrics, table = scores.compute()
    if show:
        print(table, flush=True)
    images.close(folder / "predictions.png")
    if files:
        files.close(entries(dataset), dataset.categories)
    return metrics


class SourceScores:
    """PQ of the map of each source that `cfg.predict` names, and AP and mIoU of the parts."""

    def __init__(self, cfg: Config, dataset: Panoptic) -> None:
        self.cfg, self.categories = cfg, dataset.categories
        wanted, merge = cfg.predict, cfg.merge
        self.metrics = {  # the first is that of `predict.source`
            source: PanopticQuality(
                kinds(self.categories), threshold=wanted.threshold, **RULES[wanted.rules]
            )
            for source in map_sources(cfg)
        }
        self.thresholds = Thresholds(
            merge.confidence, merge.overlap, merge.stuff_area, merge.scale_stuff_area
        )
        self.instances = self.semantics = None
        if wanted.ap:
            self.instances = InstanceQuality(self.categories, overlap=merge.overlap)
        if wanted.miou:
            self.semantics = SemanticQuality(self.categories, dataset.labels.classes)
        self.numbers = {image: i for i, image in enumerate(dataset.source.image_ids, 1)}

    def add(self, output: Output, target: Target) -> tuple[PanopticMap, Matching]:
        """Count an image; the map of the first source, on the CPU, and what became of it."""
        image, truth = target["image_id"], (target["ids"], target["segments"])
        results = []
        for source, metric in self.metrics.items():
            ids, segments = panoptic_map(
                source,
                output,
                truth[0].to(output.semantic.device),
                truth[1],
                self.categories,
                thresholds=self.thresholds,
                component_area=self.cfg.predict.component_area,
                human_shift=self.cfg.predict.human_shift,
                image=image,
            )
            ids = ids.cpu()
            results.append(((ids, segments), metric.update(ids, segments, *truth, image=image)))
        if self.instances:
            found = output.masks, output.scores, output.labels
            self.instances.add(self.numbers[image], found, truth)
        if self.semantics:
            self.semantics.add(output.semantic.cpu(), true_semantics(*truth))
        return results[0]

    def compute(self) -> tuple[dict[str, float], str]:
        """All figures over the images of all processes, and the text that shows them."""
        wanted = self.cfg.predict
        scores = {
            source: metric.reduce(dist.total).compute() for source, metric in self.metrics.items()
        }
        first = next(iter(scores.values()))
        sources = {name: percent(name, scores) for name in (wanted.source, *wanted.also)}
        figures = dict(sources[wanted.source])
        if wanted.per_class:
            for category, values in first.classes.items():
                figures[f"PQ/{self.categories[category].name}"] = 100 * values.pq
        for source in wanted.also:
            figures |= {f"{source}_{name}": value for name, value in sources[source].items()}
        if self.instances:
            figures |= self.instances.compute()
        if self.semantics:
            figures["mIoU"] = self.semantics.compute()
        parts = [report.summary(first)] if wanted.source != "separate" else []
        if wanted.per_class:
            parts.append(report.class_table(first, self.categories))
        if wanted.also or wanted.source == "separate":
            parts.append(report.source_table(sources))
        return figures, "\n\n".join(parts)


def map_sources(cfg: Config) -> list[str]:
    """The maps to make of each image, the first of them that of `predict.source`."""
    wanted = [cfg.predict.source, *cfg.predict.also]
    parts = {"semantic": ("stuff",), "instance": ("things",)}.get(
        cfg.model.part, ("things", "stuff")
    )
    several = [parts if source == "separate" else (source,) for source in wanted]
    return list(dict.fromkeys(name for names in several for name in names))


def percent(source: str, scores: dict[str, Scores]) -> dict[str, float]:
    """PQ, SQ and RQ of one source; of "separate" things and stuff come from a part each."""
    if source != "separate":
        return scores[source].percent()
    nothing = dict.fromkeys(("PQ", "SQ", "RQ"), math.nan)
    groups = {"_th": scores.get("things"), "_st": scores.get("stuff")}
    return nothing | {
        f"{name}{suffix}": part.percent()[f"{name}{suffix}"] if part else math.nan
        for suffix, part in groups.items()
        for name in nothing
    }


@torch.no_grad()
def predictions(
    model: Network, cfg: Config, dataset: Panoptic
) -> Iterator[tuple[Tensor, Output, Target]]:
    """The image as the network saw it, its output, and the target; this process's share of all.

    The output is of the size of the target's `ids`, and on the device of the network. The network
    is left in the mode that it was in.
    """
    training = model.training
    model.eval()
    batches = validation_batches(dataset, cfg)
    for batch in tqdm(batches, "evaluate", leave=False, disable=not dist.is_main() or None):
        outputs = predict_batch(model, cfg, dataset, batch)
        yield from zip(batch.images, outputs, batch.targets, strict=True)
    model.train(training)


def predict_batch(model: Network, cfg: Config, dataset: Panoptic, batch: Batch) -> list[Output]:
    """The output of a network in evaluation mode for each image of a batch."""
    device, sizes = dist.device(), [target["size"] for target in batch.targets]
    images = [image.to(device, non_blocking=True) for image in batch.images]
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
        found = model(images, sizes=sizes)
    several = cfg.predict.flip or list(cfg.predict.scales) != [1.0]
    things = dataset.labels.things
    outputs = []
    for one, image, size in zip(found, images, sizes, strict=True):
        semantic = torch.full(size, -1, device=device)
        if "semantic" in one:
            scores = average_scales(model, image, size, cfg) if several else one["semantic"]
            semantic = dataset.labels.to_categories(scores.argmax(0))
        masks = one.get("masks", torch.zeros(0, *size, dtype=torch.bool, device=device))
        labels = [things[label] for label in one["labels"].tolist()] if "labels" in one else []
        outputs.append(Output(masks, one.get("scores", semantic.new_zeros(0)), labels, semantic))
    return outputs


def average_scales(model: Network, image: Tensor, size: tuple[int, int], cfg: Config) -> Tensor:
    """Mean class probabilities (C, *size) over `predict.scales`, and mirrored with `predict.flip`.

    The test-time augmentation of PSPNet (Sec. 5.1 there); "multi-scale" in Table 4.
    """
    network: nn.Module = model
    if isinstance(model, Separate) and model.semantic is not None:
        network = model.semantic
    total, passes = torch.zeros((), device=image.device), 0
    for scale in cfg.predict.scales:
        sides = [max(1, round(scale * side)) for side in image.shape[1:]]
        scaled = transforms.resize(image, sides, antialias=True)
        for mirrored in (False, True)[: 1 + cfg.predict.flip]:
            with torch.autocast(image.device.type, torch.bfloat16, enabled=cfg.amp):
                seen = scaled.flip(-1) if mirrored else scaled
                probabilities = network([seen], sizes=[size])[0]["semantic"].float().softmax(0)
            total = total + (probabilities.flip(-1) if mirrored else probabilities)
            passes += 1
    return total / passes


def entries(dataset: Panoptic) -> list[dict[str, Any]]:
    """COCO's entries of the images to evaluate on."""
    source, count = dataset.source, len(dataset)
    return [
        {"id": number, "file_name": Path(file).name, "height": height, "width": width}
        for number, file, (height, width), _ in zip(
            source.image_ids, source.files, source.sizes, range(count), strict=False
        )
    ]
