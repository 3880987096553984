"""Instance and semantic results in files, merged into COCO panoptic files (JSON and PNGs).

    python merge_files.py instances=INST.json semantic=SEM.json images=IMAGES.json
        categories=CATS.json out=panoptic.json [folder=DIR] [workers=4]
        [confidence=0.5 overlap=0.5 stuff_area=4096] [search=true gt=FILE.json gt_folder=DIR]

The inputs are the official script's: `instances` are COCO detection results (image_id, category_id,
segmentation, score), `semantic` one segmentation an image and category (image_id, category_id,
segmentation), `images` a JSON with the list `images` of id, width, height and file_name,
`categories` a list of id, name, isthing and color, or a JSON that has it. Segmentations are
run-length codes, compressed or not, or polygons. Every image gets a map, also an empty one; results
of other images are left out, and counted in a line. Things keep their `score`.

search=true looks for the thresholds of the highest PQ against gt= first, prints the best ones,
leaves the whole grid in OUT_search.csv and OUT_search.png, and merges with the best.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from tqdm import tqdm

from common import dist
from common.config import read_options, require_range
from common.config import run as run_command
from common.pool import in_order
from panoptic.figures.search import table, write_search
from panoptic.files.categories import kinds
from panoptic.files.coco import (
    PanopticFiles,
    Result,
    panoptic_folder,
    require_apart,
    write_panoptic,
)
from panoptic.merge import CONFIDENCE, OVERLAP, STUFF_AREA
from panoptic.merging.results import Results
from panoptic.merging.search import CONFIDENCES, Point, best, search

INPUTS = ("instances", "semantic", "images", "categories")
FEW = 8  # images a process: for fewer another one is not worth its start


@dataclass
class Options:
    """Words of the command line."""

    instances: str = MISSING  # detection results
    semantic: str = MISSING  # segmentations by category
    images: str = MISSING
    categories: str = MISSING
    out: str = MISSING  # the JSON to write
    folder: str = ""  # for the PNGs; X for out=X.json
    confidence: float = CONFIDENCE  # instances of a lower score are dropped
    overlap: float = OVERLAP  # instances of which a larger share is hidden are discarded
    stuff_area: float = STUFF_AREA  # pixels; smaller rests of stuff become void
    workers: int = -1  # processes; 0: this one alone, -1: one a core
    search: bool = False  # look for the thresholds first
    gt: str = ""  # panoptic JSON of the truth, for the search
    gt_folder: str = ""  # of its PNGs; X for gt=X.json

    def __post_init__(self) -> None:
        require_range("confidence", self.confidence, 0, 1)
        require_range("overlap", self.overlap, 0, 1)
        require_range("stuff_area", self.stuff_area, 0)
        require_range("workers", self.workers, -1)
        if self.search and not self.gt:
            raise ValueError("search=true needs the truth: give gt=FILE.json.")
        if self.gt and not self.search:
            raise ValueError(f"gt={self.gt} is for the search: add search=true.")

    @property
    def inputs(self) -> dict[str, str]:
        """The files of results, as `Results` takes them."""
        return {name: getattr(self, name) for name in INPUTS}

    @property
    def thresholds(self) -> dict[str, float]:
        """As `merge` takes them."""
        return {name: getattr(self, name) for name in ("confidence", "overlap", "stuff_area")}


_results: Results  # of a worker process


def _start(inputs: dict[str, str]) -> None:
    """Read the files once in each worker, instead of sending them image by image."""
    global _results
    torch.set_num_threads(1)
    _results = Results(**inputs)


def _merge_one(number: int | str, thresholds: dict[str, float]) -> Result:
    return _results.merge(number, **thresholds)


def merge_all(results: Results, options: Options, thresholds: dict[str, float]) -> Iterator[Result]:
    """The panoptic map of each image, in the order of the images, with a progress bar."""
    numbers = list(results.images)
    bar = partial(tqdm, total=len(numbers), desc="merging", unit="image", disable=None)
    workers = options.workers if options.workers >= 0 else dist.cores()
    workers = min(workers, len(numbers) // FEW)
    if workers < 2:
        yield from bar(results.merge(number, **thresholds) for number in numbers)
        return
    work = partial(_merge_one, thresholds=thresholds)
    # Spawned, not forked: torch's threads, which the search used, do not survive a fork.
    pool = in_order(work, numbers, workers, start=_start, args=(options.inputs,), method="spawn")
    yield from bar(pool)


def search_files(results: Results, options: Options) -> list[Point]:
    """All points of the grid against the truth, with a progress bar."""
    truth = PanopticFiles(options.gt, options.gt_folder or None)
    absent = [number for number in results.images if number not in truth]
    if absent:
        raise ValueError(f"{options.gt} has no annotation of image {absent[0]!r}")
    things = kinds(results.categories)
    if things != kinds(truth.categories):
        raise ValueError(f"{options.categories} and {options.gt} differ in their categories")
    least = min(CONFIDENCES)  # instances below are dropped at every point of the grid
    examples = (
        (results.prediction(number, confidence=least), truth.ids(number).T, truth.segments(number))
        for number in tqdm(results.images, "searching", unit="image", disable=None)
    )
    return search(examples, things)


def run(options: Options) -> dict[str, float]:
    """Merge as the options say; the thresholds that were used."""
    inputs: dict[str, Any] = {**options.inputs, "gt": options.gt}
    if options.gt:
        inputs["gt_folder"] = panoptic_folder(options.gt, options.gt_folder or None)
    folder = panoptic_folder(options.out, options.folder or None)
    require_apart({"out": options.out, "folder": folder}, inputs)
    results = Results(**options.inputs)
    thresholds = options.thresholds
    for file, count in results.unlisted.items():
        print(
            f"{count} results of {file} are left out: {options.images} does not list their images",
            file=sys.stderr,
        )
    if options.search:
        points = search_files(results, options)
        thresholds = best(points).thresholds
        print(table(points))
        print(*write_search(points, Path(options.out)), sep="\n")
    count = write_panoptic(
        options.out,
        options.folder or None,
        categories=results.categories,
        images=list(results.images.values()),
        results=merge_all(results, options, thresholds),
    )
    words = ", ".join(f"{name}={value:g}" for name, value in thresholds.items())
    print(f"{count} images merged with {words}: {options.out}")
    return thresholds


def main(words: list[str] | None = None) -> None:
    """Read the options from the command line."""
    run(read_options(Options, words, usage=__doc__))


if __name__ == "__main__":
    run_command(main)
