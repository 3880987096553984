"""Ours beside the usual ways: every speed that the README claims.

    python benchmark.py                                   # all; a few minutes
    python benchmark.py what=compact repeats=15 out=speed.json
    python benchmark.py what=files data=/data/coco/annotations/panoptic_val2017.json
    python benchmark.py what=ids device=cuda

The usual ways are in `metric/peers.py`: the steps of public tools, written plainly. The contestants
run by turns in one process, each round another one first, and were seen to give the same result
before. `theirs / ours` is the ratio of the medians: above 1, ours is faster.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import timing
from common.config import read_options, require_range
from common.config import run as run_command
from common.timing import Calls, Row, version_of
from panoptic import merge
from panoptic.files.categories import kinds
from panoptic.files.coco import PanopticFiles
from panoptic.files.detection import run_lengths
from panoptic.files.entries import complete
from panoptic.files.ids import paint
from panoptic.files.pixels import read_ids, write_ids
from panoptic.merging.runs import merge_runs
from panoptic.metric import peers
from panoptic.metric.examples import THINGS, Pair, make_instances, make_pair, renumber
from panoptic.quality import PanopticQuality


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | ids | compact | files | merge | torchmetrics
    repeats: int = 9
    threads: int = 1  # of the CPU
    device: str = "cpu"  # cpu | cuda: where the maps of `ids` and `compact` are for ours
    pairs: int = 100  # of maps
    width: int = 640
    height: int = 480
    segments: int = 30  # of a map
    instances: int = 100  # of `merge`
    data: str = ""  # a COCO panoptic JSON beside its folder of PNGs; empty: maps are made up
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        for name in ("pairs", "segments", "instances"):
            require_range(name, getattr(self, name), 1)
        for name in ("width", "height"):
            require_range(name, getattr(self, name), 32)


def ids(options: Options) -> Calls:
    """PQ of maps in memory with ids anywhere below 2**24, as in COCO's files."""
    return _in_memory(*_pairs(options), options)


def compact(options: Options) -> Calls:
    """PQ of maps in memory with ids 1, 2, 3, ... in each image, as models give them."""
    pairs, things = _pairs(options)
    return _in_memory([renumber(pair) for pair in pairs], things, options)


def files(options: Options) -> Calls:
    """PQ from PNG files in one process, decoding included; the JSON is read before."""
    pairs, things = _pairs(options)
    folder = tempfile.TemporaryDirectory(prefix="panoptic-")
    entries = []
    for i, (prediction, predicted, truth, true) in enumerate(pairs):
        paths = [Path(folder.name) / f"{i}-{name}.png" for name in ("prediction", "truth")]
        for path, drawn in zip(paths, (prediction, truth), strict=True):
            write_ids(path, drawn)
        entries.append((paths[0], predicted, paths[1], true))

    def read(one: Callable[[Path], np.ndarray]) -> Iterator[Pair]:
        assert folder.name  # keeps the files for as long as this function
        return ((one(p), predicted, one(t), true) for p, predicted, t, true in entries)

    ours, theirs = lambda: _ours(read(read_ids), things), lambda: _theirs(read(peers.read), things)
    return {"ours": ours, "two `unique` an image": theirs}


def merging(options: Options) -> Calls:
    """One image's instances and stuff to a panoptic map, from run-length codes as in files.

    Ours is that of merge_files.py, checks included; the last line is ours where the masks are
    there, as after a model.
    """
    masks, scores, labels, stuff = make_instances(options.instances, options.height, options.width)
    codes = [
        {"category_id": label, "score": score, "segmentation": code}
        for label, score, code in zip(labels, scores.tolist(), peers.encode(masks), strict=True)
    ]
    stuff_codes: list[dict[str, Any]] = [
        {"category_id": category, "segmentation": peers.encode(mask[None])[0]}
        for category, mask in stuff
    ]
    size = (options.height, options.width)
    area = merge.scale_area(*size)

    def from_codes() -> torch.Tensor:
        sure = [code for code in codes if code["score"] >= merge.CONFIDENCE]
        runs = [run_lengths(code["segmentation"], *size, where="an instance") for code in sure]
        regions = [
            (region["category_id"], run_lengths(region["segmentation"], *size, where="stuff"))
            for region in stuff_codes
        ]
        points, kinds_of = [code["score"] for code in sure], [code["category_id"] for code in sure]
        found, _ = merge_runs(runs, points, kinds_of, regions, size, stuff_area=area)
        return torch.from_numpy(found)

    def theirs() -> torch.Tensor:
        return torch.from_numpy(peers.merge(codes, stuff_codes, size, stuff_area=area)[0])

    def from_masks() -> torch.Tensor:
        found, _ = merge.merge(masks, scores, labels, stuff, stuff_area=area)
        return torch.from_numpy(found)

    return {"ours": from_codes, "run-length codes": theirs, "ours, from masks": from_masks}


def torchmetrics(options: Options) -> Calls:
    """PQ of a single pair of maps without void and crowds, where the rules are the same.

    All categories are things here, for theirs takes all segments of a stuff category as one.
    """
    from torchmetrics.detection import PanopticQuality as Theirs

    made = _make_pair(0, options, void=False)

    def color_map(drawn: np.ndarray, listed: list[dict]) -> torch.Tensor:
        category = paint(drawn, {s["id"]: s["category_id"] for s in listed}, 0, np.int64)
        return torch.from_numpy(np.stack([category, drawn], -1))[None]

    pairs = color_map(*made[:2]), color_map(*made[2:])

    def ours() -> torch.Tensor:
        metric = PanopticQuality(dict.fromkeys(THINGS, True))
        metric.update(*made)
        return torch.tensor(metric.compute().all.pq)

    def theirs() -> torch.Tensor:
        metric = Theirs(set(THINGS), set())
        metric.update(*pairs)
        return metric.compute().double()

    return {"ours": ours, version_of("torchmetrics"): theirs}


BENCHMARKS: Mapping[str, Callable[[Options], Calls]] = {
    "ids": ids,
    "compact": compact,
    "files": files,
    "merge": merging,
    "torchmetrics": torchmetrics,
}


def _in_memory(pairs: list[Pair], things: dict[int, bool], options: Options) -> Calls:
    """Our metric and the plain one on the same arrays; on a GPU ours has the maps there."""
    placed: list[Any] = pairs
    if options.device == "cuda":
        placed = [
            (torch.from_numpy(prediction).cuda(), predicted, torch.from_numpy(truth).cuda(), true)
            for prediction, predicted, truth, true in pairs
        ]
    ours, theirs = partial(_ours, placed, things), partial(_theirs, pairs, things)
    return {"ours": ours, "two `unique` an image": theirs}


def _ours(pairs: Iterable[Any], things: dict[int, bool]) -> torch.Tensor:
    metric = PanopticQuality(things)
    for i, (prediction, predicted, truth, true) in enumerate(pairs):
        metric.update(prediction, predicted, truth, true, image=i)
    return metric.sums[:, :4]


def _theirs(pairs: Iterable[Pair], things: dict[int, bool]) -> torch.Tensor:
    sums = peers.panoptic_quality(pairs, things)
    return torch.tensor(list(sums.values()), dtype=torch.float64)


def _pairs(options: Options) -> tuple[list[Pair], dict[int, bool]]:
    """Pairs with 24-bit ids, and the things among the categories."""
    if not options.data:
        return [_make_pair(i, options) for i in range(options.pairs)], THINGS
    content = PanopticFiles(options.data)
    pairs = []
    for image in content.images[: options.pairs]:
        truth, true = content.ids(image["id"]), content.segments(image["id"])
        prediction = np.zeros_like(truth)
        prediction[4:, 4:] = truth[:-4, :-4]  # shifted, its border void
        predicted = complete(prediction, true, where="the shifted map", strict=False)
        pairs.append((prediction, predicted, truth, true))
    return pairs, kinds(content.categories)


def _make_pair(seed: int, options: Options, *, void: bool = True) -> Pair:
    return make_pair(seed, (options.height, options.width), options.segments, void=void)


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, after a look at the results; and notes."""
    if what == "torchmetrics" and not find_spec("torchmetrics"):
        return [], ["torchmetrics is not installed, so it was not measured."]
    calls = BENCHMARKS[what](options)
    first, *others = (call().double() for call in calls.values())
    tolerance = 1e-6 if what == "torchmetrics" else 1e-9  # its IoUs are float32
    for other in others:
        torch.testing.assert_close(first, other, rtol=0, atol=tolerance)
    device = options.device if what in ("ids", "compact") else "cpu"
    seconds = timing.by_turns(calls, options.repeats, device)
    return [Row(what, name, times) for name, times in seconds.items()], []


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    timing.compare(read_options(Options, words, usage=__doc__), BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
