"""The usual ways, written plainly: contestants of `benchmark.py` and oracles of the tests.

They follow what the public tools do step by step; nothing here shares code with the library.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

Sums = dict[int, list[float]]  # category id -> Σ IoU, TP, FP, FN


def read(path: str | Path) -> np.ndarray:
    """Ids uint32 (H, W) of a panoptic PNG, three channels turned into numbers one after another."""
    with Image.open(path) as file:
        colours = np.array(file, np.uint32)
    return colours[:, :, 0] + 256 * colours[:, :, 1] + 256 * 256 * colours[:, :, 2]


def panoptic_quality(
    images: Iterable[tuple[np.ndarray, list[dict], np.ndarray, list[dict]]],
    categories: Mapping[int, Any],
) -> Sums:
    """Sums per class by two `numpy.unique` an image: of the prediction, and of pairs of ids.

    images: prediction, its segments, truth, its segments. Areas of the truth are those listed.
    """
    sums: Sums = {category: [0.0, 0, 0, 0] for category in categories}
    for prediction, prediction_segments, truth, truth_segments in images:
        true = {segment["id"]: dict(segment) for segment in truth_segments}
        predicted = {segment["id"]: dict(segment) for segment in prediction_segments}
        ids, counts = np.unique(prediction, return_counts=True)
        for key, count in zip(ids, counts, strict=True):
            if key != 0:
                predicted[int(key)]["area"] = int(count)
        codes = truth.astype(np.uint64) * 2**24 + prediction.astype(np.uint64)
        shared = {}
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            shared[int(code) // 2**24, int(code) % 2**24] = int(count)
        _score(sums, shared, true, predicted)
    return sums


def _score(sums: Sums, shared: dict, true: dict[int, dict], predicted: dict[int, dict]) -> None:
    """Add one image to `sums`."""
    done_true, done_predicted = set(), set()
    for (t, p), intersection in shared.items():
        if t not in true or p not in predicted or true[t].get("iscrowd", 0) == 1:
            continue
        if true[t]["category_id"] != predicted[p]["category_id"]:
            continue
        void = shared.get((0, p), 0)
        union = predicted[p]["area"] + true[t]["area"] - intersection - void
        if intersection / union > 0.5:
            sums[true[t]["category_id"]][0] += intersection / union
            sums[true[t]["category_id"]][1] += 1
            done_true.add(t)
            done_predicted.add(p)
    crowd = {}
    for t, segment in true.items():
        if t in done_true:
            continue
        if segment.get("iscrowd", 0) == 1:
            crowd[segment["category_id"]] = t
        else:
            sums[segment["category_id"]][3] += 1
    for p, segment in predicted.items():
        if p in done_predicted:
            continue
        excused = shared.get((0, p), 0)
        if segment["category_id"] in crowd:
            excused += shared.get((crowd[segment["category_id"]], p), 0)
        if excused / segment["area"] <= 0.5:
            sums[segment["category_id"]][2] += 1


def merge(
    instances: Sequence[Mapping[str, Any]],
    stuff: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    *,
    confidence: float = 0.5,
    overlap: float = 0.5,
    stuff_area: int = 4096,
) -> tuple[np.ndarray, list[dict[str, int]]]:
    """Panoptic ids int32 (H, W), numbered from 1, and segments, with COCO's run-length codes.

    instances: category_id, score and segmentation, a code; stuff: category_id and segmentation.
    Instances go by falling score, those of equal score in their order.
    """
    ids = np.zeros(size, np.int32)
    used: dict | None = None
    segments: list[dict[str, int]] = []
    for instance in sorted(instances, key=lambda instance: -instance["score"]):
        if instance["score"] < confidence:
            break
        code = instance["segmentation"]
        area = int(rle.area(code))
        if area == 0:
            continue
        taken = 0 if used is None else int(rle.area(rle.merge([used, code], intersect=True)))
        if taken / area > overlap:
            continue
        used = code if used is None else rle.merge([used, code])
        _paint(ids, segments, decode(code), instance["category_id"])
    for region in stuff:
        pixels = decode(region["segmentation"]) & (ids == 0)
        if 0 < pixels.sum() >= stuff_area:
            _paint(ids, segments, pixels, region["category_id"])
    return ids, segments


def _paint(
    ids: np.ndarray, segments: list[dict[str, int]], pixels: np.ndarray, category: int
) -> None:
    """Give the free pixels among `pixels` a new segment."""
    pixels = pixels & (ids == 0)
    key = len(segments) + 1
    ids[pixels] = key
    segments.append({"id": key, "category_id": category, "area": int(pixels.sum())})


def decode(code: Mapping[str, Any]) -> np.ndarray:
    """Mask bool (H, W) of a run-length code."""
    with warnings.catch_warnings():  # pycocotools' own, under NumPy 2
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return rle.decode(code) == 1


def encode(masks: np.ndarray) -> list[dict]:
    """Run-length codes of masks bool (N, H, W)."""
    return rle.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
