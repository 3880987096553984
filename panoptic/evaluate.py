"""PQ of a model on the validation split, and pictures of what it finds and gets wrong.

H x W pixels of the file, where everything is compared, whatever the size the network sees; M
instances of a picture, C semantic classes. Metrics are percent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from common import dist
from common import draw as sheets
from panoptic.config import Config
from panoptic.data import Batch, Panoptic, validation_batches
from panoptic.figures import draw
from panoptic.figures.report import class_table, summary
from panoptic.files.categories import kinds, to_entries
from panoptic.files.coco import write_json
from panoptic.files.entries import complete, refuse_unsafe
from panoptic.files.pixels import write_ids
from panoptic.merging.sources import Output, PanopticMap, Thresholds, panoptic_map
from panoptic.metric.matching import Matching
from panoptic.metric.parts import Parts
from panoptic.model import PanopticFPN, Separate
from panoptic.quality import PAPER, PanopticQuality, Scores

SIDE = 200  # pixels of the shorter side of a drawn picture, about
CLASSES = 20  # of more, no legend is drawn

Network = PanopticFPN | Separate


def evaluate(
    model: Network, cfg: Config, dataset: Panoptic, *, pictures: bool = False
) -> dict[str, float]:
    """PQ, SQ, RQ, the same with _th (things) and _st (stuff), in percent, alike on all processes.

    Also SOURCE_PQ_th, ... for each of `predict.also`; AP, AP_no and mIoU where they are asked for;
    PQ/NAME with `predict.per_class`. Of source "separate" PQ itself is undefined: nan.
    pictures: the main process also prints the official table and writes `predictions.png`.
    """
    folder = Path(cfg.output_dir)
    metrics = {name: empty_metric(cfg, dataset) for name in sub_sources(cfg)}
    parts = Parts(dataset, ap=cfg.predict.ap, miou=cfg.predict.miou, overlap=cfg.merge.overlap)
    entries: list[dict[str, Any]] = []
    panels: list[Tensor] = []
    for image, output, target in predictions(model, cfg, dataset):
        maps = {name: mapped(name, output, target, cfg, dataset) for name in metrics}
        for name, metric in metrics.items():
            matching = score(metric, maps[name], target)
            shown = dist.is_main() and pictures and metric.count <= cfg.predict.pictures
            if shown and name == next(iter(metrics)):
                panels += drawn(image, maps[name], target, matching, dataset)
        parts.add(output, target)
        if cfg.predict.save:
            entries.append(save(folder / "predictions", maps[next(iter(metrics))], target))
    scores = {name: metric.reduce(dist.total).compute() for name, metric in metrics.items()}
    everything = [entry for share in dist.gather(entries) for entry in share]
    figures = named(scores, cfg, dataset) | parts.compute()
    if dist.is_main() and pictures:
        print(report(scores, cfg, dataset), flush=True)
        if panels:
            sheets.save_png(sheet(panels, dataset), folder / "predictions.png")
    if dist.is_main() and cfg.predict.save:
        save_json(folder / "predictions.json", everything, dataset)
    return figures


def sub_sources(cfg: Config) -> list[str]:
    """The maps to make of each picture, the first of them that of `predict.source`."""
    wanted = [cfg.predict.source, *cfg.predict.also]
    parts = {"semantic": ("stuff",), "instance": ("things",)}.get(
        cfg.model.part, ("things", "stuff")
    )
    several = [parts if source == "separate" else (source,) for source in wanted]
    return list(dict.fromkeys(name for names in several for name in names))


def empty_metric(cfg: Config, dataset: Panoptic) -> PanopticQuality:
    """The metric by the rules and the threshold of `cfg.predict`."""
    rules = PAPER if cfg.predict.rules == "paper" else {}
    return PanopticQuality(kinds(dataset.categories), threshold=cfg.predict.threshold, **rules)


@torch.no_grad()
def predictions(
    model: Network, cfg: Config, dataset: Panoptic
) -> Iterator[tuple[Tensor, Output, dict[str, Any]]]:
    """The picture as the network saw it, its output, and the target; this process's share of all.

    The output is of the size of the target's `ids`, and on the device of the network. The network
    is left in the mode that it was in.
    """
    training = model.training
    model.eval()
    batches = validation_batches(dataset, cfg)
    hidden = None if dist.is_main() else True
    for batch in tqdm(batches, "evaluate", leave=False, disable=hidden):
        outputs = outputs_of(model, cfg, dataset, batch)
        yield from zip(batch.images, outputs, batch.targets, strict=True)
    model.train(training)


def outputs_of(model: Network, cfg: Config, dataset: Panoptic, batch: Batch) -> list[Output]:
    """What the network, in evaluation mode, says of each picture of a batch."""
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
            scores = at_scales(model, image, size, cfg) if several else one["semantic"]
            semantic = dataset.labels.to_categories(scores.argmax(0))
        masks = one.get("masks", torch.zeros(0, *size, dtype=torch.bool, device=device))
        labels = [things[label] for label in one["labels"].tolist()] if "labels" in one else []
        outputs.append(Output(masks, one.get("scores", semantic.new_zeros(0)), labels, semantic))
    return outputs


def at_scales(model: Network, image: Tensor, size: tuple[int, int], cfg: Config) -> Tensor:
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


def mapped(
    source: str, output: Output, target: dict[str, Any], cfg: Config, dataset: Panoptic
) -> PanopticMap:
    """The panoptic map of a source, on the CPU."""
    merge = cfg.merge
    ids, segments = panoptic_map(
        source,
        output,
        target["ids"].to(output.semantic.device),
        target["segments"],
        dataset.categories,
        thresholds=Thresholds(
            merge.confidence, merge.overlap, merge.stuff_area, merge.scale_stuff_area
        ),
        component_area=cfg.predict.component_area,
        human_shift=cfg.predict.human_shift,
        image=target["image_id"],
    )
    return ids.cpu(), segments


def score(metric: PanopticQuality, prediction: PanopticMap, target: dict[str, Any]) -> Matching:
    """Count a picture."""
    return metric.update(*prediction, target["ids"], target["segments"], image=target["image_id"])


def named(scores: dict[str, Scores], cfg: Config, dataset: Panoptic) -> dict[str, float]:
    """The figures of all sources by name."""
    figures = percent(cfg.predict.source, scores)
    if cfg.predict.per_class:
        for category, values in next(iter(scores.values())).classes.items():
            figures[f"PQ/{dataset.categories[category].name}"] = 100 * values.pq
    for source in cfg.predict.also:
        figures |= {f"{source}_{name}": value for name, value in percent(source, scores).items()}
    return figures


def percent(source: str, scores: dict[str, Scores]) -> dict[str, float]:
    """PQ, SQ and RQ of one source; of "separate" things and stuff come from a part each."""
    if source != "separate":
        return scores[source].percent()
    nothing = dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
    groups = {"_th": scores.get("things"), "_st": scores.get("stuff")}
    return nothing | {
        f"{name}{suffix}": part.percent()[f"{name}{suffix}"] if part else float("nan")
        for suffix, part in groups.items()
        for name in nothing
    }


def report(scores: dict[str, Scores], cfg: Config, dataset: Panoptic) -> str:
    """The official table of the source, and where there are others a line for each."""
    lines = []
    first = next(iter(scores.values()))
    if cfg.predict.source != "separate":
        lines.append(summary(first))
    if cfg.predict.per_class:
        lines.append(class_table(first, dataset.categories))
    if cfg.predict.also or cfg.predict.source == "separate":
        rows = ["| Table 5 | PQ | PQ^Th | PQ^St |", "|:--|--:|--:|--:|"]
        for source in (cfg.predict.source, *cfg.predict.also):
            values = [percent(source, scores)[name] for name in ("PQ", "PQ_th", "PQ_st")]
            words = ["–" if value != value else f"{value:.1f}" for value in values]
            rows.append(f"| {source.replace('_', ' ')} | {' | '.join(words)} |")
        lines.append("\n".join(rows))
    return "\n\n".join(lines)


def drawn(
    image: Tensor,
    prediction: PanopticMap,
    target: dict[str, Any],
    matching: Matching,
    dataset: Panoptic,
) -> list[Tensor]:
    """Four panels: the picture, the truth, the prediction, and what is right and wrong about it."""
    ids, segments = prediction
    truth = target["ids"]
    short = min(truth.shape)
    size = truth.shape if short < 2 * SIDE else [side * SIDE // short for side in truth.shape]
    scale = max(1, round(SIDE / short))
    shown = transforms.resize(image, list(size), antialias=True)
    ids, truth = (
        F.interpolate(part[None, None].double(), list(size), mode="nearest-exact")[0, 0].int()
        for part in (ids, truth)
    )  # float64 holds every id
    return [
        draw.enlarged(shown, scale),
        draw.overlay(shown, truth, target["segments"], dataset.categories, scale=scale),
        draw.overlay(shown, ids, segments, dataset.categories, scale=scale),
        draw.errors(shown, ids, truth, matching, scale=scale),
    ]


def sheet(panels: list[Tensor], dataset: Panoptic) -> Tensor:
    """All panels, four to a line, and what their colours mean."""
    titles = ["image", "truth", "prediction", "right and wrong"] * (len(panels) // 4)
    legends = [sheets.legend(list(draw.ERRORS), colors=list(draw.ERRORS.values()))]
    categories = dataset.categories.values()
    if len(categories) <= CLASSES:
        colors = [draw.color_of(category, dataset.categories) for category in categories]
        names = [category.name for category in categories]
        legends.append(sheets.legend([*names, "void"], colors=[*colors, draw.VOID]))
    titles += ["right and wrong", "classes"][: len(legends)]
    return sheets.grid([*panels, *legends], columns=4, titles=titles)


def save(folder: Path, prediction: PanopticMap, target: dict[str, Any]) -> dict[str, Any]:
    """Write the map as a PNG; its entry among the `annotations` of a COCO panoptic file."""
    ids, segments = prediction
    number = target["image_id"]
    name = f"{number:012d}.png" if isinstance(number, int) else f"{number}.png"
    refuse_unsafe(name, f"the prediction of image {number!r}")
    write_ids(folder / name, ids.numpy())
    keys = ("id", "category_id", "iscrowd", "area", "bbox", "score")
    segments = complete(ids.numpy(), segments, where=f"image {number}")
    info = [{key: segment[key] for key in keys if key in segment} for segment in segments]
    return {"image_id": number, "file_name": name, "segments_info": info}


def save_json(path: Path, annotations: list[dict[str, Any]], dataset: Panoptic) -> None:
    """The COCO panoptic file of all predictions, in the order of the data set."""
    place = {number: i for i, number in enumerate(dataset.source.image_ids)}
    source, evaluated = dataset.source, slice(len(dataset))
    images = [
        {"id": number, "file_name": Path(file).name, "height": height, "width": width}
        for number, file, (height, width) in zip(
            source.image_ids[evaluated],
            source.files[evaluated],
            source.sizes[evaluated],
            strict=True,
        )
    ]
    annotations.sort(key=lambda annotation: place[annotation["image_id"]])
    categories = to_entries(dataset.categories)
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
