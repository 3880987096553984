"""PQ of COCO panoptic files, as the official tool computes and prints it; AP^NO of detections.

    python evaluate_files.py gt=panoptic_val2017.json pred=results.json  # PNGs in folders beside
    python evaluate_files.py gt=GT.json pred=PRED.json gt_folder=DIR pred_folder=DIR --per-class
    python evaluate_files.py gt=... pred=... json=scores.json csv=classes.csv workers=8
    python evaluate_files.py gt=... pred=... rules=paper threshold=0.4

The defaults follow the official evaluator wherever its input is sound. Where it is not, that one
trusts it, and each choice can be made:

    areas=counted|json        pixels of the PNG, or the `area` of the JSON, even if wrong (official)
    crowds=last|all           per class of an image the last crowd listed (official), or each
    void_crowd=sum|separate   "mostly void or crowd": both added (official), or one alone (paper)
    unlisted=raise|void|official   ids that only one of PNG and JSON has: see matching.Rules
    rules=official|paper      both of crowds= and void_crowd= at once

A group without a class that occurs is nan with N 0; the official tool divides by zero there.

    python evaluate_files.py disjoint_ap gt=instances_val2017.json pred=segm_results.json
    python evaluate_files.py disjoint_ap gt=... pred=... confidence=0.5 overlap=0.5 out=ap.json

prints AP and AP^NO of the paper's Table 3, what AP is left once the instances no longer overlap.
`gt` is then a COCO instances file, `pred` a list of detections with run-length masks.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from tqdm import tqdm

from common import dist
from common.coco import evaluate
from common.coco.files import read_json
from common.config import read_options, require_choice, require_range
from common.config import run as run_command
from common.pool import in_order
from panoptic.figures.report import class_csv, class_table, content, summary, without_nan
from panoptic.files.categories import kinds, require_equal
from panoptic.files.coco import PanopticFiles, require_apart, write_json
from panoptic.files.pixels import write_bytes
from panoptic.merge import OVERLAP
from panoptic.metric.matching import CHOICES, PAPER, RULES
from panoptic.metric.parts import without_overlap
from panoptic.metric.scores import Scores
from panoptic.quality import PanopticQuality

CHUNK = 16  # images at a time; fixed, so that the sums are the same for any number of workers


@dataclass
class Options:
    """Words of the command line."""

    gt: str = MISSING  # JSON of the ground truth
    pred: str = MISSING  # JSON of the predictions
    gt_folder: str = ""  # of the PNGs; empty: X for X.json
    pred_folder: str = ""
    per_class: bool = False  # also --per-class
    json: str = ""  # write everything there, percent
    csv: str = ""  # write a line per class there, percent
    workers: int = -1  # processes; 0: this one alone, -1: one a core
    threshold: float = 0.5  # of IoU
    rules: str = "official"  # official | paper
    crowds: str = ""  # last | all; empty: by `rules`
    void_crowd: str = ""  # sum | separate; empty: by `rules`
    areas: str = "counted"  # counted | json
    unlisted: str = "raise"  # raise | void | official

    def __post_init__(self) -> None:
        require_choice("rules", self.rules, RULES)
        for name, valid in CHOICES.items():
            require_choice(name, getattr(self, name), ("", *valid) if name in PAPER else valid)
        require_range("workers", self.workers, -1)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is out of range: give 0 <= threshold < 1")


@dataclass
class DisjointOptions:
    """Words of the command line after `disjoint_ap`."""

    gt: str = MISSING  # COCO instances file
    pred: str = MISSING  # detections with masks, in COCO's results format
    confidence: float = 0.0  # detections of a lower score are dropped
    overlap: float = OVERLAP  # and those with a larger share hidden by better ones
    backend: str = "pycocotools"  # or "faster" (faster-coco-eval)
    out: str = ""  # a JSON file for the figures

    def __post_init__(self) -> None:
        require_range("confidence", self.confidence, 0, 1)
        require_range("overlap", self.overlap, 0, 1)


def open_pair(
    gt: str | Path,
    pred: str | Path,
    gt_folder: str | Path | None = None,
    pred_folder: str | Path | None = None,
    *,
    zero: bool = False,
) -> tuple[PanopticFiles, PanopticFiles]:
    """Ground truth and the predictions of its images, checked against each other.

    Predictions without `categories` have the ground truth's. zero: as of PanopticFiles. Raises
    ValueError for categories that differ, and naming the first image without a prediction and the
    first PNG that does not exist.
    """
    truth = PanopticFiles(gt, gt_folder, zero=zero)
    prediction = PanopticFiles(pred, pred_folder, categories=truth.categories, zero=zero)
    require_equal(truth.categories, prediction.categories, files=(truth.file, prediction.file))
    numbers = [image["id"] for image in truth.images]
    missing = [number for number in numbers if number not in prediction]
    if missing:
        raise ValueError(
            f"{prediction.file} has no prediction of image {missing[0]!r} ({len(missing)} of the "
            f"{len(truth)} images in {truth.file} have none): add an entry, if need be without "
            "segments"
        )
    surplus = len(prediction) - len(numbers)
    if surplus:
        print(f"{surplus} predictions are of images that {gt} does not have", file=sys.stderr)
    prediction = prediction.only(numbers)
    for files in (truth, prediction):
        files.require_pngs()
    return truth, prediction


def measure(
    truth: PanopticFiles,
    prediction: PanopticFiles,
    *,
    workers: int = 0,
    rules: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> PanopticQuality:
    """The metric over all images of `truth`, each of which `prediction` has.

    workers: processes; 0 for none besides this one, -1 for one a core. rules: keyword arguments of
    PanopticQuality. progress: show a bar. Raises ValueError, naming image and id or file.
    """
    metric = PanopticQuality(kinds(truth.categories), **(rules or {}))
    numbers = [image["id"] for image in truth.images]
    parts = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    chunks = [(truth.only(part), prediction.only(part)) for part in parts]
    workers = min(workers if workers >= 0 else dist.cores(), len(chunks))
    work = partial(_measure_chunk, rules=dict(rules or {}))
    done = in_order(work, chunks, workers) if workers > 1 else map(work, chunks)
    with tqdm(total=len(numbers), desc="evaluating", unit="image", disable=not progress) as bar:
        for part in map(pickle.loads, done):
            metric.merge(part)
            bar.update(part.count)
    return metric


def _measure_chunk(chunk: tuple[PanopticFiles, PanopticFiles], *, rules: dict[str, Any]) -> bytes:
    """The pickled metric of some images: as an object its tensors would go by shared memory."""
    truth, prediction = chunk
    metric = PanopticQuality(kinds(truth.categories), **rules)
    for image in truth.images:
        number = image["id"]
        maps = [(part.ids(number), part.segments(number)) for part in (prediction, truth)]
        metric.update(*maps[0], *maps[1], image=number)
    return pickle.dumps(metric)


def evaluate_files(
    gt: str | Path,
    pred: str | Path,
    *,
    gt_folder: str | Path | None = None,
    pred_folder: str | Path | None = None,
    workers: int = 0,
    progress: bool = False,
    rules: Mapping[str, Any] | None = None,
) -> Scores:
    """Scores, as fractions, of predictions `pred` against ground truth `gt`, JSONs with PNGs.

    Arguments and errors as of `open_pair` and `measure`.
    """
    zero = (rules or {}).get("unlisted") == "official"
    truth, prediction = open_pair(gt, pred, gt_folder, pred_folder, zero=zero)
    return measure(truth, prediction, workers=workers, rules=rules, progress=progress).compute()


def print_quality(options: Options) -> None:
    """Evaluate panoptic files, print, and write what json= and csv= name."""
    require_apart(
        {"json": options.json, "csv": options.csv}, {"gt": options.gt, "pred": options.pred}
    )
    began = time.perf_counter()
    rules = RULES[options.rules] | {key: value for key in PAPER if (value := getattr(options, key))}
    rules |= {key: getattr(options, key) for key in ("areas", "unlisted", "threshold")}
    folders = options.gt_folder or None, options.pred_folder or None
    zero = options.unlisted == "official"
    truth, prediction = open_pair(options.gt, options.pred, *folders, zero=zero)
    shown = sys.stderr.isatty()
    metric = measure(truth, prediction, workers=options.workers, rules=rules, progress=shown)
    scores = metric.compute()
    print(summary(scores))
    if options.per_class:
        print(f"\n{class_table(scores, truth.categories)}\n")
    print(f"Time elapsed: {time.perf_counter() - began:0.2f} seconds")
    if options.json:
        facts = {"images": len(truth), "gt": options.gt, "pred": options.pred, "rules": rules}
        write_json(options.json, facts | content(scores, truth.categories))
    if options.csv:
        write_bytes(options.csv, class_csv(scores, truth.categories).encode())


def print_disjoint_ap(options: DisjointOptions) -> None:
    """Print AP and AP^NO of detections, and write what `out` names."""
    require_apart({"out": options.out}, {"gt": options.gt, "pred": options.pred})
    torch.set_num_threads(1)  # the masks are small
    truth, detections = read_json(options.gt), read_json(options.pred)
    if not isinstance(detections, list):
        raise ValueError(f"{options.pred} is not a list of detections.")
    score = partial(evaluate.evaluate, truth, kind="segm", backend=options.backend)
    figures = {"AP": score(detections)}
    disjoint = without_overlap(detections, confidence=options.confidence, overlap=options.overlap)
    figures["AP^NO"] = score(disjoint)
    columns = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    print(" " * 6 + "".join(f"{column:>10}" for column in columns))
    for name, values in figures.items():
        print(f"{name:6}" + "".join(f"{values[column]:10.1f}" for column in columns))
    if options.out:
        write_json(options.out, without_nan(figures))


def main(words: Sequence[str] | None = None) -> None:
    """Evaluate what the words name."""
    words = sys.argv[1:] if words is None else words
    if words and words[0] == "disjoint_ap":
        print_disjoint_ap(read_options(DisjointOptions, words[1:], usage=__doc__))
    else:
        print_quality(read_options(Options, words, usage=__doc__, least=1))


if __name__ == "__main__":
    run_command(main)
