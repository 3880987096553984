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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING, OmegaConf
from tqdm import tqdm

from common import dist
from common.config import require_range, typed
from common.config import run as run_command
from panoptic.figures.report import csv_text
from panoptic.figures.search import heat_maps, rows, table
from panoptic.files.categories import kinds, read_categories, whole
from panoptic.files.coco import (
    PanopticFiles,
    Result,
    panoptic_folder,
    read_json,
    require_apart,
    write_panoptic,
)
from panoptic.files.detection import decode, run_lengths
from panoptic.files.entries import image_entries, is_image_id
from panoptic.files.ids import SegmentIds
from panoptic.files.pixels import write_bytes
from panoptic.files.pool import in_order
from panoptic.merge import CONFIDENCE, OVERLAP, STUFF_AREA
from panoptic.merging.runs import merge_runs
from panoptic.merging.search import CONFIDENCES, Point, Prediction, best, search

Entry = Mapping[str, Any]
INPUTS = ("instances", "semantic", "images", "categories", "gt")  # options that name a file
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
    def thresholds(self) -> dict[str, float]:
        """As `merge` takes them."""
        return {
            "confidence": self.confidence,
            "overlap": self.overlap,
            "stuff_area": self.stuff_area,
        }


class Results:
    """Instance and semantic results by image."""

    def __init__(self, options: Options) -> None:
        self.images = image_entries(read_json(options.images), options.images)
        for number, image in self.images.items():
            if not {"height", "width"} <= image.keys():
                raise ValueError(f"{options.images}: image {number!r} has no height and width")
        content = read_json(options.categories)
        listed = content.get("categories") if isinstance(content, dict) else content
        self.categories = read_categories(listed, options.categories)
        self.unlisted: dict[str, int] = {}  # results of images that are not listed, by file
        self.instances = self._read(options.instances, things=True)
        self.semantic = self._read(options.semantic, things=False)

    def _read(self, file: str, *, things: bool) -> dict[int | str, list[Entry]]:
        """Checked entries by image, in the order of the file; of instances, or of stuff."""
        content = read_json(file)
        entries = content.get("annotations") if isinstance(content, dict) else content
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"{file} is no list of results {{image_id, category_id, ...}}")
        found: dict[int | str, list[Entry]] = {number: [] for number in self.images}
        for place, entry in enumerate(entries):
            image, number = entry.get("image_id"), whole(entry.get("category_id"))
            where = f"{file}: result {place} (of image {image!r:.40})"
            category = None if number is None else self.categories.get(number)
            if not is_image_id(image):
                raise ValueError(f"{where} has no `image_id` that is text or a whole number")
            if category is None:
                raise ValueError(
                    f"{where} is of category {entry.get('category_id')!r:.40}, which is not one of "
                    f"the {len(self.categories)} categories"
                )
            if things and not category.isthing:
                raise ValueError(f"{where} is of {category.name}, which is stuff, not a thing")
            if things and not _finite(entry.get("score")):
                raise ValueError(f"{where} has no `score`: these must be detection results")
            if image not in found:
                self.unlisted[file] = self.unlisted.get(file, 0) + 1
            elif things or not category.isthing:
                found[image].append({**entry, "category_id": number, "where": where})
        return found

    def prediction(self, number: int | str, *, confidence: float = 0.0) -> Prediction:
        """Of one image, turned on its side, without instances below `confidence`.

        Run-length codes go down the columns, so that the masks come out as (N, W, H) at no cost.
        """
        image = self.images[number]
        size = image["height"], image["width"]
        # The others would be dropped anyway: that saves decoding them.
        instances = [e for e in self.instances[number] if e["score"] >= confidence]
        semantic = self.semantic[number]
        masks = [
            decode(entry.get("segmentation"), *size, where=entry["where"]).T
            for entry in (*instances, *semantic)
        ]
        things, stuff = masks[: len(instances)], masks[len(instances) :]
        return Prediction(
            np.stack(things) if things else np.zeros((0, *size[::-1]), bool),
            np.array([entry["score"] for entry in instances], np.float64),
            [entry["category_id"] for entry in instances],
            [(entry["category_id"], mask) for entry, mask in zip(semantic, stuff, strict=True)],
            image=number,
        )


def _finite(score: Any) -> bool:
    """Whether it is a number that a float can hold."""
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return number and abs(score) <= sys.float_info.max


_results: Results  # of a worker process


def _start(options: Options) -> None:
    """Read the files once in each worker, instead of sending them image by image."""
    global _results
    torch.set_num_threads(1)
    _results = Results(options)


def _merge_one(number: int | str, thresholds: Mapping[str, float]) -> Result:
    return merge_image(_results, number, **thresholds)


def merge_image(
    results: Results,
    number: int | str,
    *,
    confidence: float = CONFIDENCE,
    overlap: float = OVERLAP,
    stuff_area: float = STUFF_AREA,
) -> Result:
    """Image id, map (H, W) int32 with ids of the categories' colours, and segments."""
    size = results.images[number]["height"], results.images[number]["width"]
    # The others would be dropped anyway: that saves reading their masks.
    instances = [e for e in results.instances[number] if e["score"] >= confidence]
    semantic = results.semantic[number]
    runs = [
        run_lengths(entry.get("segmentation"), *size, where=entry["where"])
        for entry in (*instances, *semantic)
    ]
    things, stuff = runs[: len(instances)], runs[len(instances) :]
    try:
        drawn, segments = merge_runs(
            things,
            [entry["score"] for entry in instances],
            [entry["category_id"] for entry in instances],
            [(entry["category_id"], mask) for entry, mask in zip(semantic, stuff, strict=True)],
            size,
            confidence=confidence,
            overlap=overlap,
            stuff_area=stuff_area,
        )
    except ValueError as error:
        raise ValueError(f"image {number!r}: {error}") from error
    names = SegmentIds(results.categories)
    table = np.zeros(len(segments) + 1, np.int32)
    named = []
    for segment in segments:
        table[segment["id"]] = names.new(segment["category_id"])
        kept = {key: value for key, value in segment.items() if key != "instance"}
        named.append({**kept, "id": int(table[segment["id"]])})
    return number, table[drawn], named


def merged(results: Results, options: Options, thresholds: Mapping[str, float]) -> Iterator[Result]:
    """The panoptic map of each image, in the order of the images, with a progress bar."""
    numbers = list(results.images)
    bar = partial(tqdm, total=len(numbers), desc="merging", unit="image", disable=None)
    workers = options.workers if options.workers >= 0 else dist.cores()
    workers = min(workers, len(numbers) // FEW)
    if workers < 2:
        yield from bar(merge_image(results, number, **thresholds) for number in numbers)
        return
    work = partial(_merge_one, thresholds=thresholds)
    # Spawned, not forked: torch's threads, which the search used, do not survive a fork.
    yield from bar(in_order(work, numbers, workers, start=_start, args=(options,), method="spawn"))


def searched(results: Results, options: Options) -> list[Point]:
    """All points of the grid against the truth, with a progress bar."""
    truth = PanopticFiles(options.gt, options.gt_folder or None)
    absent = [number for number in results.images if number not in truth]
    if absent:
        raise ValueError(f"{options.gt} has no annotation of image {absent[0]!r}")
    least = min(CONFIDENCES)  # instances below are dropped at every point of the grid
    things = kinds(results.categories)
    if things != kinds(truth.categories):
        raise ValueError(f"{options.categories} and {options.gt} differ in their categories")
    examples = (
        (results.prediction(number, confidence=least), truth.ids(number).T, truth.segments(number))
        for number in tqdm(results.images, "searching", unit="image", disable=None)
    )
    return search(examples, things)


def write_search(points: Sequence[Point], out: Path) -> tuple[Path, Path]:
    """The grid as CSV and as heat maps beside `out`."""
    sheet, figure = (out.with_name(f"{out.stem}_search{end}") for end in (".csv", ".png"))
    lines = rows(points)
    write_bytes(sheet, csv_text(lines[0], lines).encode())
    heat_maps(points, figure)
    return sheet, figure


def run(options: Options) -> dict[str, float]:
    """Merge as the options say; the thresholds that were used."""
    inputs = {name: getattr(options, name) for name in INPUTS}
    if options.gt:
        inputs["gt_folder"] = panoptic_folder(options.gt, options.gt_folder or None)
    folder = panoptic_folder(options.out, options.folder or None)
    require_apart({"out": options.out, "folder": folder}, inputs)
    results = Results(options)
    thresholds = options.thresholds
    for file, count in results.unlisted.items():
        print(
            f"{count} results of {file} are left out: {options.images} does not list their images",
            file=sys.stderr,
        )
    if options.search:
        points = searched(results, options)
        thresholds = best(points).thresholds
        print(table(points))
        print(*write_search(points, Path(options.out)), sep="\n")
    count = write_panoptic(
        options.out,
        options.folder or None,
        categories=results.categories,
        images=list(results.images.values()),
        results=merged(results, options, thresholds),
    )
    words = ", ".join(f"{name}={value:g}" for name, value in thresholds.items())
    print(f"{count} images merged with {words}: {options.out}")
    return thresholds


def main(words: list[str] | None = None) -> None:
    """Read the options from the command line."""
    cfg = OmegaConf.structured(Options)
    cfg.merge_with_dotlist(sys.argv[1:] if words is None else words)
    run(typed(cfg))


if __name__ == "__main__":
    run_command(main)
