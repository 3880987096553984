"""Scores on held-out hashtags, and of the trunk on a target, Sec. 3."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import dist, files
from hashtag_pretrain.config import Config
from hashtag_pretrain.data import Hashtags, held_out_batches, stream_of
from hashtag_pretrain.figures.predictions import draw_predictions
from hashtag_pretrain.figures.sampling import Row, by_group, compare_sampling, draw_sampling
from hashtag_pretrain.hashtags import hits, recall
from hashtag_pretrain.model import normalise
from hashtag_pretrain.targets.finetune import finetune
from hashtag_pretrain.targets.images import Reading
from hashtag_pretrain.targets.outcome import to_csv
from hashtag_pretrain.targets.probe import probe
from hashtag_pretrain.words.tags import normalise as normalise_tag

TOP = (1, 5)
_SCORES = 200_000_000  # of images and tags that average precision is taken over, in memory at once


def columns(cfg: Config) -> tuple[str, ...]:
    """What a run's table shows."""
    return tuple(cfg.protocols) or tuple(f"hit{k}" for k in TOP)


def evaluate(model: nn.Module, cfg: Config, data: Hashtags) -> dict[str, float]:
    """Scores on held-out images, and what `protocols` names, in percent, on every process.

    The main process also writes tags.csv, tags.png and predictions.png into the run's folder.
    """
    folder = Path(cfg.output_dir)
    scores = score_hashtags(model, cfg, data)
    metrics = scores.metrics()
    if dist.is_main():
        report = report_tags(cfg, data, scores)
        files.write_text(folder / "tags.csv", to_csv(report))
        draw_sampling(folder / "tags.png", report)
        draw_predictions(folder / "predictions.png", cfg, data, model)
    network, options = cfg.network, cfg.data
    reading = Reading(
        network.mean, network.std, options.workers, options.bad_images, "data.bad_images"
    )
    if data.target and "probe" in cfg.protocols:
        metrics |= probe(
            model, data.target, cfg.probe, seed=cfg.seed, reading=reading, folder=folder
        )
    if data.target and "finetune" in cfg.protocols:
        metrics |= finetune(
            model, data.target, cfg.finetune, seed=cfg.seed, reading=reading, folder=folder
        )
    return metrics


@dataclass
class Scores:
    """What was found in the N held-out images."""

    hit: Tensor  # (N, 2) bool: one of the first 1, 5 labels is right
    recall: Tensor  # (N,) share of the labels that are among the first 5
    tags: list[np.ndarray]  # labels of each
    logits: Tensor  # (M, V) of the first M images

    def metrics(self) -> dict[str, float]:
        """hit1, hit5 and recall5 in percent; NaN where no image is held out."""
        share = 100 * self.hit.float().mean(0)
        metrics = {f"hit{k}": float(value) for k, value in zip(TOP, share, strict=True)}
        return metrics | {f"recall{TOP[-1]}": 100 * float(self.recall.mean())}


@torch.no_grad()
def score_hashtags(model: nn.Module, cfg: Config, data: Hashtags) -> Scores:
    """Predictions for the held-out images, gathered on every process."""
    training, device = model.training, dist.device()
    model.eval()
    tags_count = len(data.tagged.vocabulary.names)
    most = _SCORES // tags_count // dist.world_size()
    hit: list[Tensor] = []
    recalled: list[Tensor] = []
    logits: list[Tensor] = []
    labels: list[np.ndarray] = []
    for piece in tqdm(
        held_out_batches(data, cfg),
        "held-out hashtags",
        disable=None if dist.is_main() else True,  # None: no terminal
        leave=False,
    ):
        images, tags = piece.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            found = model(normalise(images, cfg.network.mean, cfg.network.std)).float()
        hit.append(torch.stack([hits(found, tags, k) for k in TOP], 1).cpu())
        recalled.append(recall(found, tags, TOP[-1]).cpu())
        if sum(len(each) for each in logits) < most:
            logits.append(found.cpu())
        labels += [row[row >= 0].numpy() for row in piece.tags]
    model.train(training)
    mine = (
        torch.cat(hit) if hit else torch.zeros(0, len(TOP), dtype=torch.bool),
        torch.cat(recalled) if recalled else torch.zeros(0),
        labels,
        torch.cat(logits) if logits else torch.zeros(0, tags_count),
    )
    every = dist.gather(mine)
    return Scores(
        torch.cat([each[0] for each in every]),
        torch.cat([each[1] for each in every]),
        # Only the first images of each process have their scores kept: the same ones of the labels
        [tag for each in every for tag in each[2][: len(each[3])]],
        torch.cat([each[3] for each in every]),
    )


def report_tags(cfg: Config, data: Hashtags, scores: Scores) -> list[dict[str, float | str]]:
    """For each tag: how frequent it is, how often it is seen in an epoch, how well it is found.

    frequency: share of the trained images. seen: share of the images of the first epoch, as drawn.
    AP: average precision over held-out images, in percent; nan where none has the tag.
    """
    vocabulary, frequencies = data.tagged.vocabulary, data.tagged.frequencies()
    seen = count_seen(cfg, data)
    precision = average_precision(scores)
    return [
        {
            "tag": name,
            "images": int(data.tagged.counts[i]),
            "frequency": float(frequencies[i]),
            "factor": float(data.factors[i]),
            "seen": float(seen[i]),
            "AP": float(precision[i]),
        }
        for i, name in enumerate(vocabulary.names)
    ]


def count_seen(cfg: Config, data: Hashtags, images: int = 100_000) -> np.ndarray:
    """The share (V,) of the images drawn that have each tag, over the first `images` drawn."""
    stream = stream_of(data, cfg)
    counts, drawn = np.zeros(len(data.factors)), 0
    for step in range(math.ceil(min(images, data.length) / cfg.batch_size)):
        for _, index in stream.share(step, 0, 1):
            counts[data.tagged.labels(index)] += 1
            drawn += 1
    return counts / max(1, drawn)


def average_precision(scores: Scores) -> np.ndarray:
    """AP (V,) in percent of each tag over the images whose logits were kept; nan where none has it.

    The mean over an image set's positives of the precision at their ranks; ties count as if the
    positive came last.
    """
    images, count = scores.logits.shape
    truth = np.zeros((images, count), bool)
    for row, labels in zip(truth, scores.tags, strict=True):
        row[labels] = True
    found = np.full(count, np.nan)
    for tag in np.flatnonzero(truth.any(0)):
        values, right = scores.logits[:, tag].numpy(), truth[:, tag]
        order = np.lexsort((right, -values))
        ranks = np.flatnonzero(right[order]) + 1
        found[tag] = 100 * (np.arange(1, len(ranks) + 1) / ranks).mean()
    return found


def draw_versus(cfg: Config, folders: Mapping[str, Path]) -> None:
    """Write sampling.png: how often the runs saw each tag, and how well they know head and tail."""
    reports, scores = {}, {}
    for name, folder in folders.items():
        if not (folder / "tags.csv").is_file() or not (folder / "probe.csv").is_file():
            continue
        report: list[Row] = [
            {key: value if key == "tag" else float(value) for key, value in row.items()}
            for row in read_csv(folder / "tags.csv")
        ]
        if files.read_json(folder / "result.json")["steps"]:
            reports[name] = report
        found = {normalise_tag(row["class"]): row["top1"] for row in read_csv(folder / "probe.csv")}
        scores[name] = by_group(report, {tag: float(value) for tag, value in found.items()})
    if reports:
        compare_sampling(Path(cfg.output_dir, "sampling.png"), reports, scores)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
