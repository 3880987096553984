"""What the networks learn from: boxes, labels, masks and a semantic map of a panoptic map.

H x W pixels, M things of an image, T thing and S stuff classes of a data set. Labels are
contiguous: things 0..T-1 and stuff 0..S-1, both in the order of the data set's categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..files.categories import Category

VOID = 255  # of semantic maps: no loss there, as in detectron2


@dataclass(frozen=True)
class Labels:
    """The category ids behind the labels of a network.

    semantic: what the semantic map tells apart. "stuff": class 0 is any thing, 1..S are the stuff
        classes, as in detectron2's Panoptic FPN. "all": 0..T-1 are the thing classes, T..T+S-1 the
        stuff classes, as for the paper's separate semantic network.
    """

    things: tuple[int, ...]  # T category ids
    stuff: tuple[int, ...]  # S category ids
    classes: tuple[int, ...]  # the category id of each semantic class; -1: any thing
    semantic: str

    @classmethod
    def of(cls, categories: Mapping[int, Category], semantic: str) -> "Labels":
        """The labels for a data set; ValueError where they do not fit below `VOID`."""
        if semantic not in ("stuff", "all"):
            raise ValueError(f"semantic is {semantic!r}: choose 'stuff' or 'all'")
        things = tuple(c.id for c in categories.values() if c.isthing)
        stuff = tuple(c.id for c in categories.values() if not c.isthing)
        classes = (-1, *stuff) if semantic == "stuff" else (*things, *stuff)
        if len(classes) > VOID:
            raise ValueError(
                f"{len(classes)} semantic classes do not fit beside {VOID}, which stands for void: "
                "choose a set of at most 255 classes"
            )
        return cls(things, stuff, classes, semantic)

    @property
    def class_of(self) -> dict[int, int]:
        """The semantic class of each category id."""
        own = {category: label for label, category in enumerate(self.classes) if category >= 0}
        return dict.fromkeys(self.things, 0) | own

    def to_categories(self, semantic: Tensor) -> Tensor:
        """A map of semantic classes (..., H, W) as one of category ids; -1: any thing, or void."""
        table = torch.tensor([*self.classes, *[-1] * (VOID + 1 - len(self.classes))])
        return table.to(semantic.device)[semantic.long()]


def training_target(
    ids: Tensor, segments: Sequence[Mapping[str, Any]], labels: Labels
) -> dict[str, Tensor]:
    """Boxes (M, 4) float32 xyxy, labels (M,) int64, masks (M, H, W) uint8, semantic (H, W) int64.

    ids: (H, W) whole numbers, 0 void. Crowds are no instances, but their pixels count in the
    semantic map, as in detectron2's. Segments without a pixel, cropped away or lost in resizing,
    are left out; pixels of ids that are not in `segments` are void.
    """
    class_of, thing_of = labels.class_of, {c: i for i, c in enumerate(labels.things)}
    semantic = torch.full(ids.shape, VOID, dtype=torch.int64)
    masks, boxes, thing_labels = [], [], []
    for segment in segments:
        mask = ids == segment["id"]  # (H, W)
        box = extent(mask)
        if box is None:
            continue
        category = segment["category_id"]
        semantic[mask] = class_of[category]
        if category in thing_of and not segment.get("iscrowd"):
            masks.append(mask)
            boxes.append(box)
            thing_labels.append(thing_of[category])
    height, width = ids.shape
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(thing_labels, dtype=torch.int64),
        "masks": torch.stack(masks).byte()
        if masks
        else torch.zeros(0, height, width, dtype=torch.uint8),
        "semantic": semantic,
    }


def extent(mask: Tensor) -> tuple[int, int, int, int] | None:
    """x1, y1, x2, y2 around the pixels of a mask (H, W), from 0 to W and H; None: it has none."""
    columns, rows = mask.any(0).nonzero(), mask.any(1).nonzero()
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
