"""Panoptic maps from what the networks say, in the ways that Tables 5 and 6 compare.

    merged             instances and semantics put together, Sec. 7
    unfiltered         the same with every stuff segment, however small: the paper's own merge
    separate           each part alone: PQ of things from the instances without their overlaps, PQ
                       of stuff from the semantic map, neither hiding anything of the other
    components         no instance network: connected pixels of a thing class are one thing
    oracle_semantic    the instances, and the true semantics
    oracle_instances   the true instances, and the semantics
    human              no network: what a simulated second annotator draws of the image, Sec. 6

H x W pixels, M instances of an image. Semantic maps hold category ids, negative for any thing or
void.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files.categories import Category, kinds
from ..merge import add_stuff, merge, scale_area

PanopticMap = tuple[Tensor, list[dict[str, Any]]]  # ids (H, W) int32, segments


@dataclass(frozen=True)
class Output:
    """What the networks say of one image, on the device of the network."""

    masks: Tensor  # (M, H, W) bool; may overlap
    scores: Tensor  # (M,)
    labels: list[int]  # M category ids
    semantic: Tensor  # (H, W) int64 category ids


@dataclass(frozen=True)
class Thresholds:
    """Of the merge, see `merge.merge`; scale: stuff_area is meant for 640 x 480 pixels."""

    confidence: float = 0.5
    overlap: float = 0.5
    stuff_area: float = 4096
    scale: bool = False

    def area(self, size: Sequence[int]) -> float:
        """The fewest pixels of a stuff segment in an image of this height and width."""
        return scale_area(*size, stuff_area=self.stuff_area) if self.scale else self.stuff_area


def panoptic_map(
    source: str,
    output: Output,
    truth: Tensor,
    segments: Sequence[Mapping[str, Any]],
    categories: Mapping[int, Category],
    *,
    thresholds: Thresholds,
    component_area: int = 0,
    human_shift: float = 1.3,
    image: int | str = 0,
) -> PanopticMap:
    """The map of `source`; "things" and "stuff" are the two parts of "separate".

    truth: ids (H, W) on the output's device, with `segments`; for oracles and humans only.
    component_area: the fewest pixels of a component. human_shift: pixels, by which the human's
    borders are off, as of `simulate.Annotator`. image: its id, from which the human's errors
    follow. ValueError for another source.
    """
    things = {category.id for category in categories.values() if category.isthing}
    semantic = output.semantic
    every = replace(thresholds, stuff_area=0)  # every stuff segment
    match source:
        case "merged":
            return merge_output(output, thresholds, things)
        case "unfiltered":
            return merge_output(output, every, things)
        case "things":
            alone = replace(output, semantic=torch.full_like(semantic, -1))
            return merge_output(alone, thresholds, things)
        case "stuff":
            alone = Output(output.masks[:0], output.scores[:0], [], semantic)
            return merge_output(alone, thresholds, things)
        case "components":
            return components(semantic, thresholds, things, least=component_area)
        case "oracle_semantic":
            known = replace(output, semantic=true_semantics(truth, segments))
            return merge_output(known, every, things)
        case "oracle_instances":
            wanted = [s for s in segments if s["category_id"] in things and not s.get("iscrowd")]
            masks = [truth == segment["id"] for segment in wanted]
            known = Output(
                torch.stack(masks) if masks else output.masks.new_zeros(0, *semantic.shape),
                torch.ones(len(masks), device=truth.device),
                [segment["category_id"] for segment in wanted],
                semantic,
            )
            return merge_output(known, thresholds, things)
        case "human":
            from ..annotators.simulate import Annotator, annotate  # needs scipy

            ids, drawn = annotate(
                truth.cpu().numpy(),
                segments,
                np.random.default_rng(zlib.crc32(str(image).encode())),
                categories=kinds(categories),
                annotator=Annotator(shift=human_shift),
            )
            return torch.from_numpy(ids), drawn
    raise ValueError(f"source is {source!r}: choose one of those in sources.py")


def merge_output(output: Output, thresholds: Thresholds, things: Collection[int]) -> PanopticMap:
    """Instances and semantics of one image put together, Sec. 7."""
    return merge(
        output.masks,
        output.scores,
        output.labels,
        output.semantic,
        confidence=thresholds.confidence,
        overlap=thresholds.overlap,
        stuff_area=thresholds.area(output.semantic.shape),
        things=things,
    )


def components(
    semantic: Tensor, thresholds: Thresholds, things: Collection[int], *, least: int = 0
) -> PanopticMap:
    """Connected pixels (also over corners) of a thing class as one thing, and the map's stuff.

    least: smaller components become void; at least 1.
    """
    from scipy import ndimage  # a heavy one that only this source needs

    ids = torch.zeros(semantic.shape, dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    classes = semantic.cpu()
    for category in sorted({*classes.unique().tolist()} & {*things}):
        labels, count = ndimage.label((classes == category).numpy(), np.ones((3, 3)))
        numbers = torch.zeros(count + 1, dtype=torch.int32)  # of each component; 0: dropped
        areas = np.bincount(labels.ravel(), minlength=count + 1).tolist()
        for component in range(1, count + 1):
            if areas[component] >= max(1, least):
                number = numbers[component] = len(segments) + 1
                segments.append(
                    {"id": number, "category_id": category, "iscrowd": 0, "area": areas[component]}
                )
        ids += numbers[torch.from_numpy(labels).long()]
    area, first = thresholds.area(semantic.shape), len(segments) + 1
    ids, stuff = add_stuff(ids, classes, stuff_area=area, things=things, first=first)
    return ids, segments + stuff


def true_semantics(truth: Tensor, segments: Sequence[Mapping[str, Any]]) -> Tensor:
    """The map of category ids (H, W) int64 that a panoptic map is; -1 for void."""
    semantic = torch.full_like(truth, -1, dtype=torch.int64)
    for segment in segments:
        semantic[truth == segment["id"]] = segment["category_id"]
    return semantic
