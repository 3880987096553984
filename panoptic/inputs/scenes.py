"""The built-in images with panoptic maps: solids are things; floor, wall, sky, water are stuff.

Each image shows solids of a few of the shapes only, close together and overlapping, so that two
of one class often touch: there, connected pixels of a class are more than one thing. Pebbles on the
floor belong to no class: they are void.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.draw import palette
from common.scenes import Scenes, World
from common.scenes.world import REGIONS

from ..config import Scenes as ScenesConfig
from ..files.categories import Category

FIRST_STUFF = 256  # ids of stuff segments follow those of the 255 solids that a scene may hold
APART = 1_000_000  # between the two splits in the stream of scenes, so that either may grow


class PanopticScenes:
    """The scenes of one split: (image uint8 (3, H, W), ids int32 (H, W), segments).

    Item i shows the i-th (counted round) combination of `together` of the shapes.
    """

    def __init__(self, cfg: ScenesConfig, training: bool) -> None:
        self.count = cfg.train_images if training else cfg.val_images
        start = APART if training else 0
        groups = list(combinations(cfg.shapes, cfg.together))[: self.count]
        self.worlds = [
            Scenes(
                world(cfg, shapes),
                count=-(-(self.count - k) // len(groups)),  # items k, k + groups, k + 2 groups, ...
                seed=cfg.seed * 1000 + k,  # or all groups would have solids in the same places
                start=start,
                masks=False,
            )
            for k, shapes in enumerate(groups)
        ]
        self.image_ids = [start + i + 1 for i in range(self.count)]
        self.files = [f"scenes/{cfg.seed}/{i}" for i in self.image_ids]
        self.sizes = [(cfg.height, cfg.width)] * self.count
        names = [*cfg.shapes, *world(cfg, groups[0]).stuff]
        self.categories: dict[int, Category] = {}
        for number, (name, color) in enumerate(zip(names, palette(len(names)), strict=True), 1):
            isthing = number <= len(cfg.shapes)
            kind = "solid" if isthing else "ground"
            self.categories[number] = Category(number, name, isthing, color, kind)
        self._category_of = {category.name: number for number, category in self.categories.items()}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, list[dict]]:
        scenes, place = self.worlds[index % len(self.worlds)], index // len(self.worlds)
        image, target = scenes[place]
        ids, segments = self._panoptic(scenes, place, target["labels"].tolist())
        return image, ids, segments

    def _panoptic(self, scenes: Scenes, i: int, labels: list[int]) -> tuple[Tensor, list[dict]]:
        """The panoptic map: solids by their number in the scene, stuff where no solid hides it."""
        solids, regions = scenes.ids(i).int(), scenes.regions(i).int()  # (H, W)
        # `World.min_visible` is positive, so every labelled solid is seen, in the scene's order;
        # pebbles have the numbers after them.
        names = {number: scenes.names[label] for number, label in enumerate(labels, start=1)}
        ids = torch.where(solids > 0, solids * (solids <= len(names)), regions + FIRST_STUFF)
        segments = []
        for number in np.unique(ids.numpy()).tolist():
            if number:
                name = names.get(number) or REGIONS[number - FIRST_STUFF]
                segments.append({"id": number, "category_id": self._category_of[name]})
        return ids, [segment | {"iscrowd": 0} for segment in segments]


def world(cfg: ScenesConfig, shapes: Sequence[str]) -> World:
    """The family of scenes that shows `shapes`; options of one name are the same thing."""
    options: dict[str, Any] = asdict(cfg) | {"shapes": shapes}
    for own in ("train_images", "val_images", "together", "seed"):
        del options[own]
    for name in ("objects", "shapes", "radius", "clutter", "patches"):
        options[name] = tuple(options[name])
    return World(**options)
