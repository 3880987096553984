"""Accuracy over the views of a video, Sec. 4; mAP of several labels, Sec. 5.2; COCO's AP.

K classes. The softmax, or the sigmoid, comes before any mean: over positions of a view, then over
the views of a video.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import dist, draw, files
from common.metrics import topk_correct
from common.run.log import require_finite
from nonlocal_ import data
from nonlocal_.config import Config
from nonlocal_.figures.attention import draw_attention
from nonlocal_.figures.focus import blocks_of, look
from nonlocal_.figures.solids import look_from_a_solid
from nonlocal_.inputs.builtin import MatchClips
from nonlocal_.inputs.photos import Photos, evaluate_detector
from nonlocal_.net.count import count
from nonlocal_.net.resnet import VideoNetwork

TOP = 5


def columns(cfg: Config) -> tuple[str, ...]:
    """What a run's table shows."""
    if cfg.task == "detection":
        return ("box_AP", "mask_AP" if cfg.detector.kind == "masks" else "keypoint_AP")
    if cfg.task == "multi_label":
        return ("mAP",)
    return ("top1",) if cfg.data.name == "builtin" else ("top1", "top5")


def evaluate(
    model: nn.Module, cfg: Config, validation: data.Examples, *, step: int = 0, save: bool = False
) -> dict[str, float]:
    """top1 and top5, mAP, or box_AP, mask_AP, ... in percent, on every process.

    With `save`, the main process also writes what was found in each video or photo, and draws what
    some positions attend to. top5 is NaN where there are no more than 5 classes. Raises Diverged,
    of `step`, where a score is not finite.
    """
    folder = Path(cfg.output_dir)
    if isinstance(validation.dataset, Photos):
        found = evaluate_detector(
            model,
            validation.dataset,
            batch_size=cfg.test.batch_size,
            workers=cfg.data.workers,
            amp=cfg.amp,
            backend=cfg.test.evaluator,
            save=folder / "detections.json" if save else None,
        )
        occurs = {name: value for name, value in found.items() if math.isfinite(value)}
        return {name: found.get(name, math.nan) for name in columns(cfg)} | occurs
    assert isinstance(model, VideoNetwork)
    scores, labels = score_videos(model, cfg, validation)
    bad = (~scores.isfinite().all(1)).nonzero()[:, 0].tolist()
    require_finite({"test": scores.sum()}, step, [name_of(validation, n) for n in bad[:TOP]])
    if labels.is_floating_point():
        metrics = {"mAP": 100 * mean_average_precision(scores, labels)}
    else:
        top = (1, TOP) if len(validation.names) > TOP else (1,)
        correct = topk_correct(scores, labels, top).tolist()
        metrics = {f"top{k}": 100 * n / len(labels) for k, n in zip(top, correct, strict=True)}
        metrics = {name: metrics.get(name, math.nan) for name in columns(cfg)}
    if save and dist.is_main():
        files.write_text(folder / "predictions.jsonl", describe(validation, scores, labels))
        draw_blocks(model, cfg, validation)
    return metrics


def count_costs(model: nn.Module, cfg: Config) -> dict[str, float]:
    """A network's `kparams` and, of one training clip, `MMACs`, as in Table 2e, in 1e3 and 1e6.

    Nothing for detectors, whose cost depends on the photo.
    """
    if not isinstance(model, VideoNetwork):
        return {}
    if cfg.data.name == "builtin":
        frames, side = cfg.data.builtin.frames, cfg.data.builtin.side
    else:
        frames, side = cfg.clip.frames, cfg.clip.resample or cfg.clip.crop
    costs = count(model, frames, side, side)
    if dist.is_main():
        print(costs)
    return {"kparams": costs.parameters / 1e3, "MMACs": costs.multiply_adds / 1e6}


@dataclass
class Video:
    """The probabilities (K,) of a video's views: their sum, the largest of each, their number."""

    label: Tensor
    total: Tensor
    largest: Tensor
    count: int = 1

    def add(self, other: "Video") -> None:
        """Take in other views of the same video."""
        self.total = self.total + other.total
        self.largest = torch.maximum(self.largest, other.largest)
        self.count += other.count


def take_in(videos: dict[int, Video], number: int, video: Video) -> None:
    """Add views of a video to those that were seen of it."""
    if number in videos:
        videos[number].add(video)
    else:
        videos[number] = video


@torch.no_grad()
def score_videos(
    model: VideoNetwork, cfg: Config, validation: data.Examples
) -> tuple[Tensor, Tensor]:
    """Probabilities (N, K) and labels of all N videos, on every process."""
    training, device = model.training, dist.device()
    model.eval()
    seen: dict[int, Video] = {}
    for clips, labels, numbers in tqdm(
        data.views(validation, cfg),
        "evaluate",
        leave=False,
        disable=None if dist.is_main() else True,
    ):
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            found = model.scores(clips.to(device), multi_label=cfg.task == "multi_label")
        for score, label, number in zip(found.double().cpu(), labels, numbers, strict=True):
            own = score.clone()  # a pickled row would take its whole batch along
            take_in(seen, number, Video(label, own, own))
    model.train(training)
    videos: dict[int, Video] = {}
    for part in dist.gather(seen):
        for number, video in part.items():
            take_in(videos, number, video)
    ordered = [videos[number] for number in sorted(videos)]
    mean = cfg.test.fuse == "mean"
    scores = [video.total / video.count if mean else video.largest for video in ordered]
    return torch.stack(scores), torch.stack([video.label for video in ordered])


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """The mean over the classes that occur of the area under precision and recall, 0..1.

    scores, labels: (N, K). Equal scores are one threshold, as in scikit-learn's
    average_precision_score.
    """
    values = []
    for score, label in zip(scores.T, labels.T, strict=True):
        if not label.any():
            continue
        order = score.argsort(descending=True)
        ends = torch.ones(len(order), dtype=torch.bool)  # of each run of equal scores
        ends[:-1] = score[order][1:] != score[order][:-1]
        hits = label[order].double().cumsum(0)[ends]
        precision = hits / (torch.arange(len(order))[ends] + 1)
        gained = torch.diff(hits, prepend=hits.new_zeros(1)) / label.sum()
        values.append(float((precision * gained).sum()))
    return sum(values) / len(values) if values else math.nan


def describe(validation: data.Examples, scores: Tensor, labels: Tensor) -> str:
    """A line of JSON for each video: its file, its labels, its likeliest classes."""
    lines = []
    for number, (score, label) in enumerate(zip(scores, labels, strict=True)):
        best = score.topk(min(TOP, len(score)))
        found = {
            validation.names[k]: round(p, 6)
            for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        }
        wanted = label.nonzero()[:, 0].tolist() if label.is_floating_point() else [int(label)]
        lines.append(
            json.dumps(
                {
                    "file": name_of(validation, number),
                    "labels": [validation.names[k] for k in wanted],
                    "top": found,
                }
            )
        )
    return "\n".join(lines) + "\n"


def name_of(validation: data.Examples, number: int) -> str:
    """What messages and files call an example."""
    return validation.records[number].path if validation.records else f"clip {number}"


def draw_blocks(model: nn.Module, cfg: Config, validation: data.Examples) -> None:
    """Write `attention.png`: what the last block attends to in the first `test.images` clips.

    Of the built-in clips as many of each class, seen from one of the solids.
    """
    blocks = list(blocks_of(model).items())
    if not blocks or not cfg.test.images:
        return
    (name, block), device, dataset = blocks[-1], dist.device(), validation.dataset
    entries = []
    if isinstance(dataset, MatchClips):
        for k in of_each_class(dataset, cfg.test.images):
            clip, label = dataset[k]
            truth, title = dataset.truth(k), dataset.names[label]
            looking = partial(look, model, block, clip.to(device), title=title)
            entries.append(
                look_from_a_solid(truth.boxes, truth.frames, lambda at, see=looking: see(at=at))
            )
    else:
        for k, record in enumerate(validation.records[: cfg.test.images]):
            views = dataset[k * cfg.test.clips + cfg.test.clips // 2][0]
            clip = views[len(views) // 2].to(device)
            entries.append(look(model, block, clip, title=Path(record.path).name))
    note = f"{name}, {cfg.block.mode.replace('_', ' ')}"
    draw.save_png(draw_attention(entries, note), Path(cfg.output_dir, "attention.png"))


def of_each_class(dataset: MatchClips, count: int) -> list[int]:
    """The first `count` clips with equally many of each class, as far as that goes."""
    chosen: list[int] = []
    left = {k: (count + k) // len(dataset.names) for k in range(len(dataset.names))}
    for k in range(len(dataset)):
        label = dataset[k][1]
        if left[label]:
            left[label] -= 1
            chosen.append(k)
        if len(chosen) == count:
            break
    return chosen


def draw_versus(cfg: Config, folders: Mapping[str, Path]) -> None:
    """Write `attention.png` beside several runs: that of the first run which has a block."""
    for folder in folders.values():
        picture = Path(folder, "attention.png")
        if picture.is_file():
            shutil.copyfile(picture, Path(cfg.output_dir, "attention.png"))
            return
