"""Maps and masks made up for `benchmark.py`: in number, size and shape like those of COCO.

H, W height and width.
"""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..files.entries import complete
from .overlaps import LIMIT

Pair = tuple[np.ndarray, list[dict], np.ndarray, list[dict]]  # prediction, truth, their segments
THINGS = {category: category <= 20 for category in range(1, 31)}


def make_pair(seed: int, size: tuple[int, int], segments: int, *, void: bool = True) -> Pair:
    """Two maps (H, W) of cells around the same random points, with ids of 24 bits.

    The borders are bent at random, in another way for each map. void: the first true cell is void.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(segments, 2, 1, 1, generator=generator)
    numbers = random.Random(seed).sample(range(1, LIMIT), 2 * segments)
    tables = np.array(numbers, np.int32).reshape(2, segments)
    categories = torch.randint(1, len(THINGS) + 1, (2, segments), generator=generator)
    same = torch.rand(segments, generator=generator) < 0.9
    categories[1] = torch.where(same, categories[0], categories[1])
    maps = []
    for table in tables:
        coarse = torch.randn(1, 2, size[0] // 32, size[1] // 32, generator=generator)
        bend = 0.01 * F.interpolate(coarse, size, mode="bicubic", align_corners=False)[0]
        y = torch.linspace(0, 1, size[0])[:, None] + bend[0]  # (H, W)
        x = torch.linspace(0, 1, size[1]) + bend[1]
        distance = (y - points[:, 0]).square() + (x - points[:, 1]).square()  # (segments, H, W)
        maps.append(table[distance.argmin(0).numpy()])
    truth, prediction = maps
    if void:
        truth[truth == tables[0, 0]] = 0
    true, predicted = (
        complete(
            ids,
            [{"id": i, "category_id": c} for i, c in zip(table.tolist(), kind, strict=True)],
            where="a made-up map",
            strict=False,
        )
        for ids, table, kind in zip(maps, tables, categories.tolist(), strict=True)
    )
    return prediction, predicted, truth, true


def renumber(pair: Pair) -> Pair:
    """The same with ids 1, 2, 3, ..."""
    prediction, predicted, truth, true = pair
    parts: list[Any] = []
    for ids, segments in ((prediction, predicted), (truth, true)):
        keys = [0, *sorted(segment["id"] for segment in segments)]
        parts.append(np.searchsorted(keys, ids).astype(np.int32))
        parts.append([{**segment, "id": keys.index(segment["id"])} for segment in segments])
    return parts[0], parts[1], parts[2], parts[3]


def make_instances(
    count: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, list[int], list[tuple[int, np.ndarray]]]:
    """Ellipses (count, H, W), scores, categories, and ten stuff regions in vertical strips."""
    generator = np.random.default_rng(0)
    y, x = np.arange(height)[:, None] / height, np.arange(width) / width
    masks = np.zeros((count, height, width), bool)
    for mask, (cy, cx, ry, rx) in zip(masks, generator.random((count, 4)), strict=True):
        radius = 0.02 + 0.15 * np.array([ry, rx])
        mask[:] = ((y - cy) / radius[0]) ** 2 + ((x - cx) / radius[1]) ** 2 < 1
    scores = generator.uniform(0.3, 1, count)
    labels = generator.integers(1, 21, count).tolist()
    strips = np.broadcast_to(10 * np.arange(width) // width, (height, width))
    return masks, scores, labels, [(21 + i, strips == i) for i in range(10)]
