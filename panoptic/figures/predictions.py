"""Predictions beside the truth: image, truth, prediction, and what is right and wrong about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from common.draw import grid, legend, save_png

from ..files.categories import Category
from ..metric.matching import Matching
from . import draw

Map = tuple[Tensor, Sequence[Mapping[str, Any]]]  # ids (H, W), segments
SIDE = 200  # pixels of the shorter side of a drawn image, about
CLASSES = 20  # of more, no legend is drawn
TITLES = ["image", "truth", "prediction", "right and wrong"]


class Images:
    """Panels of the first `count` images that are added."""

    def __init__(self, categories: Mapping[int, Category], count: int) -> None:
        self.categories, self.count = categories, count
        self.panels: list[Tensor] = []

    def add(self, image: Tensor, truth: Map, prediction: Map, matching: Matching) -> None:
        """Draw four panels of an image uint8 (3, h, w), which may be of another size."""
        if len(self.panels) == len(TITLES) * self.count:
            return
        sides = truth[0].shape
        short = min(sides)
        size = sides if short < 2 * SIDE else [side * SIDE // short for side in sides]
        scale = max(1, round(SIDE / short))
        shown = transforms.resize(image, list(size), antialias=True)
        true, predicted = (
            F.interpolate(ids[None, None].double(), list(size), mode="nearest-exact")[0, 0].int()
            for ids, _ in (truth, prediction)
        )  # float64 holds every id
        self.panels += [
            draw.enlarge(shown, scale),
            draw.overlay(shown, true, truth[1], self.categories, scale=scale),
            draw.overlay(shown, predicted, prediction[1], self.categories, scale=scale),
            draw.errors(shown, predicted, true, matching, scale=scale),
        ]

    def close(self, path: Path) -> None:
        """Write all panels, four to a line, and what their colours mean; nothing without any."""
        if not self.panels:
            return
        legends = [legend(list(draw.ERRORS), colors=list(draw.ERRORS.values()))]
        categories = self.categories.values()
        if len(categories) <= CLASSES:
            colors = [draw.color_of(category, self.categories) for category in categories]
            names = [category.name for category in categories]
            legends.append(legend([*names, "void"], colors=[*colors, draw.VOID]))
        titles = TITLES * (len(self.panels) // len(TITLES))
        titles += ["right and wrong", "classes"][: len(legends)]
        save_png(grid([*self.panels, *legends], columns=len(TITLES), titles=titles), path)
