"""Panoptic maps from what the networks say, in the ways that Tables 5 and 6 compare.

    merged             instances and semantics put together, Sec. 7
    unfiltered         the same with every stuff segment, however small: the paper's own merge
    separate           each part alone: PQ of things from the instances without their overlaps, PQ
                       of stuff from the semantic map, neither hiding anything of the other
    components         no instance network: connected pixels of a thing class are one thing
    oracle_semantic    the instances, and the true semantics
    oracle_instances   the true instances, and the semantics
    human              no network: what a simulated second annotator draws of the picture, Sec. 6

H x W pixels, M instances of an image. Semantic maps hold category ids, negative for any thing or
void.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files.categories import Category
from ..inputs.targets import extent
from ..merge import add_stuff, merge, scaled_area

PanopticMap = tuple[Tensor, list[dict[str, Any]]]  # ids (H, W) int32, segments


@dataclass(frozen=True)
class Output:
    """What the networks say of one picture, on the device of the network."""

    masks: Tensor  # (M, H, W) bool; may overlap
    scores: Tensor  # (M,)
    labels: list[int]  # M category ids
    semantic: Tensor  # (H, W) int64 category ids

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.semantic.shape
        return height, width

    def without_instances(self) -> "Output":
        """The semantic part alone."""
        return Output(self.masks[:0], self.scores[:0], [], self.semantic)

    def without_semantics(self) -> "Output":
        """The instances alone."""
        return Output(self.masks, self.scores, self.labels, torch.full_like(self.semantic, -1))


@dataclass(frozen=True)
class Thresholds:
    """Of the merge, see `merge.merge`; scale: stuff_area is meant for 640 x 480 pixels."""

    confidence: float = 0.5
    overlap: float = 0.5
    stuff_area: float = 4096
    scale: bool = False

    def area(self, size: tuple[int, int]) -> float:
        """Least pixels of a stuff segment in a picture of this size."""
        return scaled_area(*size, stuff_area=self.stuff_area) if self.scale else self.stuff_area


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

    truth: ids (H, W) on the output's device, with `segments`; asked by oracles and humans only.
    component_area: least pixels of a component. human_shift: pixels, by which the human's borders
    are off. image: the picture's id, from which the human's errors follow. ValueError for another
    source.
    """
    things = {category.id for category in categories.values() if category.isthing}
    match source:
        case "merged":
            return merged(output, thresholds, things)
        case "unfiltered":
            every = Thresholds(thresholds.confidence, thresholds.overlap, 0)
            return merged(output, every, things)
        case "things":
            return merged(output.without_semantics(), thresholds, things)
        case "stuff":
            return merged(output.without_instances(), thresholds, things)
        case "components":
            return components(output.semantic, thresholds, things, least=component_area)
        case "oracle_semantic":
            semantic = true_semantics(truth, segments)
            known = Output(output.masks, output.scores, output.labels, semantic)
            return merged(known, Thresholds(thresholds.confidence, thresholds.overlap, 0), things)
        case "oracle_instances":
            wanted = [s for s in segments if s["category_id"] in things and not s.get("iscrowd")]
            masks = [truth == segment["id"] for segment in wanted]
            known = Output(
                torch.stack(masks) if masks else output.masks.new_zeros(0, *output.size),
                torch.ones(len(masks), device=truth.device),
                [segment["category_id"] for segment in wanted],
                output.semantic,
            )
            return merged(known, thresholds, things)
        case "human":
            return human(truth, segments, categories, shift=human_shift, image=image)
    raise ValueError(f"source is {source!r}: choose one of those in sources.py")


def merged(output: Output, thresholds: Thresholds, things: Collection[int]) -> PanopticMap:
    """Instances and semantics of one picture put together, Sec. 7."""
    return merge(
        output.masks,
        output.scores,
        output.labels,
        output.semantic,
        confidence=thresholds.confidence,
        overlap=thresholds.overlap,
        stuff_area=thresholds.area(output.size),
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
        labelled, count = ndimage.label((classes == category).numpy(), np.ones((3, 3)))
        numbers = torch.zeros(count + 1, dtype=torch.int32)  # of each component; 0: dropped
        areas = np.bincount(labelled.ravel(), minlength=count + 1).tolist()
        for component in range(1, count + 1):
            if areas[component] >= max(1, least):
                number = numbers[component] = len(segments) + 1
                segments.append(
                    {"id": number, "category_id": category, "iscrowd": 0, "area": areas[component]}
                )
        ids += numbers[torch.from_numpy(labelled).long()]
    ids, stuff = add_stuff(
        ids,
        classes,
        stuff_area=thresholds.area((ids.shape[0], ids.shape[1])),
        things=things,
        first=len(segments) + 1,
    )
    return ids, segments + stuff


def human(
    truth: Tensor,
    segments: Sequence[Mapping[str, Any]],
    categories: Mapping[int, Category],
    *,
    shift: float = 1.3,
    image: int | str,
) -> PanopticMap:
    """The picture as a simulated annotator draws it, who knows the truth and errs a little.

    shift: standard deviation in pixels of a border's displacement. The other errors are those of
    `annotators.Annotator`, and all are always the same for an image id.
    """
    from ..annotators.simulate import Annotator, annotate  # needs scipy, as above

    ids, drawn = annotate(
        truth.cpu().numpy(),
        segments,
        np.random.default_rng(zlib.crc32(str(image).encode())),
        categories={category.id: category.isthing for category in categories.values()},
        annotator=Annotator(shift=shift),
    )
    return torch.from_numpy(ids), drawn


def true_semantics(truth: Tensor, segments: Sequence[Mapping[str, Any]]) -> Tensor:
    """The map of category ids (H, W) int64 that a panoptic map is; -1 for void."""
    semantic = torch.full_like(truth, -1, dtype=torch.int64)
    for segment in segments:
        semantic[truth == segment["id"]] = segment["category_id"]
    return semantic


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes (M, 4) float32 xyxy around masks (M, H, W); zeros for an empty one."""
    found = [extent(mask) or (0, 0, 0, 0) for mask in masks]
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
