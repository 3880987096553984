"""Ours beside the usual ways: every speed that the README claims.

    python benchmark.py                                   # all; a few minutes
    python benchmark.py what=compact repeats=15 out=speed.json
    python benchmark.py what=files data=/data/coco/annotations/panoptic_val2017.json
    python benchmark.py what=ids device=cuda

The usual ways are in `peers.py`: the steps of the public tools, written plainly. The contestants
run by turns in one process, each round another one first, and were seen to give the same result
before. `theirs / ours` is the ratio of the medians: above 1, ours is faster.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from common import timing
from common.config import require_choice, require_range, typed
from common.config import run as run_command
from common.timing import Calls, Row, named
from panoptic import merge
from panoptic.files.categories import kinds
from panoptic.files.coco import PanopticFiles
from panoptic.files.detection import run_lengths
from panoptic.files.pixels import read_ids, write_ids
from panoptic.merging.runs import merge_runs
from panoptic.metric import peers
from panoptic.metric.overlaps import LIMIT
from panoptic.quality import PanopticQuality

Pair = tuple[np.ndarray, list[dict], np.ndarray, list[dict]]  # prediction, truth, their segments
THINGS = {category: category <= 20 for category in range(1, 31)}


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
        require_choice("what", self.what, ["all", *BENCHMARKS])
        require_choice("device", self.device, ("cpu", "cuda"))
        require_range("repeats", self.repeats, 2)
        for name in ("threads", "pairs", "segments", "instances"):
            require_range(name, getattr(self, name), 1)
        for name in ("width", "height"):
            require_range(name, getattr(self, name), 32)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda, but PyTorch sees no GPU: use device=cpu.")


def ids(options: Options) -> Calls:
    """PQ of maps in memory with ids anywhere below 2**24, as in COCO's files."""
    return _in_memory(*_pairs(options), options)


def compact(options: Options) -> Calls:
    """PQ of maps in memory with ids 1, 2, 3, ... in each image, as models give them."""
    pairs, things = _pairs(options)
    return _in_memory([_renumbered(pair) for pair in pairs], things, options)


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

    def ours() -> torch.Tensor:
        assert folder.name  # keeps the files for as long as this function
        metric = PanopticQuality(things)
        for i, (prediction, predicted, truth, true) in enumerate(entries):
            metric.update(read_ids(prediction), predicted, read_ids(truth), true, image=i)
        return metric.sums[:, :4]

    def theirs() -> torch.Tensor:
        read = ((peers.read(p), ps, peers.read(t), ts) for p, ps, t, ts in entries)
        return _tensor(peers.panoptic_quality(read, things))

    return {"ours": ours, "two `unique` an image": theirs}


def merging(options: Options) -> Calls:
    """One image's instances and stuff to a panoptic map, from run-length codes as in files.

    Ours is that of merge_files.py, checks included; the last line is ours where the masks are
    there, as after a model.
    """
    masks, scores, labels, stuff = _instances(options)
    codes = [
        {"category_id": label, "score": score, "segmentation": code}
        for label, score, code in zip(labels, scores.tolist(), peers.encode(masks), strict=True)
    ]
    stuff_codes: list[dict[str, Any]] = [
        {"category_id": category, "segmentation": peers.encode(mask[None])[0]}
        for category, mask in stuff
    ]
    size = (options.height, options.width)
    area = merge.scaled_area(*size)

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

    made = _made_up(0, options, void=False)

    def coloured(drawn: np.ndarray, listed: list[dict]) -> torch.Tensor:
        category = np.zeros(drawn.shape, np.int64)
        for segment in listed:
            category[drawn == segment["id"]] = segment["category_id"]
        return torch.from_numpy(np.stack([category, drawn], -1))[None]

    pairs = coloured(*made[:2]), coloured(*made[2:])

    def ours() -> torch.Tensor:
        metric = PanopticQuality(dict.fromkeys(THINGS, True))
        metric.update(*made)
        return torch.tensor(metric.compute().all.pq)

    def theirs() -> torch.Tensor:
        metric = Theirs(set(THINGS), set())
        metric.update(*pairs)
        return metric.compute().double()

    return {"ours": ours, named("torchmetrics"): theirs}


BENCHMARKS: Mapping[str, Callable[[Options], Calls]] = {
    "ids": ids,
    "compact": compact,
    "files": files,
    "merge": merging,
    "torchmetrics": torchmetrics,
}


def _in_memory(pairs: list[Pair], things: dict[int, bool], options: Options) -> Calls:
    """Our metric and the plain one on the same arrays; on a GPU ours has the maps there."""
    maps: list[Any] = [(prediction, truth) for prediction, _, truth, _ in pairs]
    if options.device == "cuda":
        maps = [tuple(torch.from_numpy(each).cuda() for each in both) for both in maps]

    def ours() -> torch.Tensor:
        metric = PanopticQuality(things)
        for (prediction, truth), (_, predicted, _, true) in zip(maps, pairs, strict=True):
            metric.update(prediction, predicted, truth, true)
        return metric.sums[:, :4]

    def theirs() -> torch.Tensor:
        return _tensor(peers.panoptic_quality(pairs, things))

    return {"ours": ours, "two `unique` an image": theirs}


def _tensor(sums: peers.Sums) -> torch.Tensor:
    return torch.tensor(list(sums.values()), dtype=torch.float64)


def _pairs(options: Options) -> tuple[list[Pair], dict[int, bool]]:
    """Pairs with 24-bit ids, and the things among the categories."""
    if not options.data:
        return [_made_up(i, options) for i in range(options.pairs)], THINGS
    content = PanopticFiles(options.data)
    pairs = []
    for image in content.images[: options.pairs]:
        truth, true = content.ids(image["id"]), content.segments(image["id"])
        prediction = np.zeros_like(truth)
        prediction[4:, 4:] = truth[:-4, :-4]  # shifted, its border void
        present = set(np.unique(prediction).tolist())
        predicted = [segment for segment in true if segment["id"] in present]
        pairs.append((prediction, predicted, truth, true))
    return pairs, kinds(content.categories)


def _made_up(seed: int, options: Options, *, void: bool = True) -> Pair:
    """Cells around random points, their borders bent at random, in another way for each map."""
    generator = torch.Generator().manual_seed(seed)
    n = options.segments
    points = torch.rand(n, 2, generator=generator)
    numbers = np.array(random.Random(seed).sample(range(1, LIMIT), 2 * n), np.int32).reshape(2, n)
    categories = torch.randint(1, len(THINGS) + 1, (2, n), generator=generator)
    same = torch.rand(n, generator=generator) < 0.9
    categories[1] = torch.where(same, categories[0], categories[1])
    drawn = []
    for table in numbers:
        coarse = torch.randn(1, 2, options.height // 32, options.width // 32, generator=generator)
        size = (options.height, options.width)
        bend = 0.01 * F.interpolate(coarse, size, mode="bicubic", align_corners=False)[0]
        nearest = torch.full(size, torch.inf)
        cell = torch.zeros(size, dtype=torch.int64)
        for i, (y, x) in enumerate(points.tolist()):
            down = torch.linspace(0, 1, size[0])[:, None] + bend[0] - y
            right = torch.linspace(0, 1, size[1]) + bend[1] - x
            distance = down.square() + right.square()
            cell[distance < nearest] = i
            nearest = torch.minimum(nearest, distance)
        drawn.append(table[cell.numpy()])
    truth, prediction = drawn
    if void:
        truth[truth == numbers[0, 0]] = 0
    lists = []
    for each, table, kind in zip(drawn, numbers, categories, strict=True):
        area = dict(
            zip(*(part.tolist() for part in np.unique(each, return_counts=True)), strict=True)
        )
        lists.append(
            [
                {"id": key, "category_id": category, "iscrowd": 0, "area": area[key]}
                for key, category in zip(table.tolist(), kind.tolist(), strict=True)
                if key in area
            ]
        )
    return prediction, lists[1], truth, lists[0]


def _renumbered(pair: Pair) -> Pair:
    """The same with ids 1, 2, 3, ..."""
    prediction, predicted, truth, true = pair
    parts: list[Any] = []
    for drawn, listed in ((prediction, predicted), (truth, true)):
        keys = np.array([0, *sorted(segment["id"] for segment in listed)])
        number = {int(key): i for i, key in enumerate(keys)}
        parts.append(np.searchsorted(keys, drawn).astype(np.int32))
        parts.append([{**segment, "id": number[segment["id"]]} for segment in listed])
    return parts[0], parts[1], parts[2], parts[3]


def _instances(
    options: Options,
) -> tuple[np.ndarray, np.ndarray, list[int], list[tuple[int, np.ndarray]]]:
    """Ellipses (N, H, W), scores, categories, and stuff regions in vertical strips."""
    generator = np.random.default_rng(0)
    N, H, W = options.instances, options.height, options.width
    y, x = np.arange(H)[:, None] / H, np.arange(W) / W
    masks = np.zeros((N, H, W), bool)
    for mask, (cy, cx, ry, rx) in zip(masks, generator.random((N, 4)), strict=True):
        radius = 0.02 + 0.15 * np.array([ry, rx])
        mask[:] = ((y - cy) / radius[0]) ** 2 + ((x - cx) / radius[1]) ** 2 < 1
    scores = generator.uniform(0.3, 1, N)
    labels = generator.integers(1, 21, N).tolist()
    edges = np.linspace(0, W, 11).astype(int)
    stuff = [(21 + i, np.zeros((H, W), bool)) for i in range(10)]
    for i, (_, mask) in enumerate(stuff):
        mask[:, edges[i] : edges[i + 1]] = True
    return masks, scores, labels, stuff


def measure(what: str, options: Options) -> list[Row]:
    """Rows of one benchmark, ours first, after a look at the results."""
    calls = BENCHMARKS[what](options)
    first, *others = (call().double() for call in calls.values())
    tolerance = 1e-6 if what == "torchmetrics" else 1e-9  # its IoUs are float32
    for other in others:
        torch.testing.assert_close(first, other, rtol=0, atol=tolerance)
    device = options.device if what in ("ids", "compact") else "cpu"
    seconds = timing.by_turns(calls, options.repeats, device)
    return [Row(what, name, times) for name, times in seconds.items()]


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    cfg = OmegaConf.structured(Options)
    cfg.merge_with_dotlist(sys.argv[1:] if words is None else words)
    options: Options = typed(cfg)
    torch.set_num_threads(options.threads)
    facts = timing.conditions(options.device)
    print(*(f"{key} {value}" for key, value in (facts | asdict(options)).items()), sep=", ")
    names = list(BENCHMARKS) if options.what == "all" else [options.what]
    rows, absent = [], []
    for name in names:
        try:
            rows += measure(name, options)
        except ModuleNotFoundError as error:
            if name != "torchmetrics" or error.name != "torchmetrics":
                raise
            absent.append("torchmetrics is not installed, so it was not measured.")
    print(f"\n{timing.table(rows)}\n")
    for name in dict.fromkeys(row.benchmark for row in rows):
        print(f"- {name}: {' '.join((BENCHMARKS[name].__doc__ or '').split())}")
    print(*absent, sep="\n")
    if options.out:
        results = [asdict(row) | {"quartiles": row.quartiles} for row in rows]
        content = {"conditions": facts, "options": asdict(options), "results": results}
        Path(options.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
