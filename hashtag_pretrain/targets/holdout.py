"""Hyper-parameters by a grid on images held out of the training list, then a fit on all of it.

The test images are no argument of anything here: they cannot be looked at.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from common import dist, files

S = TypeVar("S")  # setting
M = TypeVar("M")  # what is fitted


@dataclass(frozen=True)
class Found(Generic[S, M]):
    """What a search gives: the model of all training images, and how its setting was chosen.

    scores: of each setting on held-out images, higher is better; none where the grid has but one.
    """

    model: M
    setting: S
    scores: list[float]


def search(
    labels: Tensor,
    grid: Sequence[S],
    fit: Callable[[S, Tensor, str], M],
    score: Callable[[M, Tensor], float],
    *,
    share: float,
    seed: int,
    splits: int = 1,
    ledger: "Ledger | None" = None,
) -> Found[S, M]:
    """Fit each setting on a part of the training images, the best on all of them.

    labels: int64 (n,) of the training images. fit(setting, images, name): a model of the images
    numbered `images`, under a name of its own. score(model, images): of held-out images; nan is
    the worst. share: that is held out, of each class. splits: how many splits a score is the mean
    of. ledger: holds the scores of an interrupted search. Of equal scores the first setting wins.
    """
    if not grid:
        raise ValueError("the grid has no settings: give each list of it at least one value.")
    scores: list[float] = []
    if len(grid) > 1:
        parts = [split(labels, share, seed + number) for number in range(splits)]
        for number, setting in enumerate(grid):
            found = []
            for part, (kept, held_out) in enumerate(parts):
                name = f"{number}-{part}"
                known = ledger.scores.get(name) if ledger else None
                if known is None:
                    known = score(fit(setting, kept, name), held_out)
                    if ledger:
                        ledger.add(name, known)
                found.append(known)
            mean = sum(found) / splits
            scores.append(-math.inf if math.isnan(mean) else mean)
            if dist.is_main():
                print(f"{describe(setting)}: {mean:.2f} on held-out training images")
        if max(scores) == -math.inf:
            raise ValueError("no setting of the grid gave a finite score: lower the rates.")
    best = grid[scores.index(max(scores))] if scores else grid[0]
    return Found(fit(best, torch.arange(len(labels)), "all"), best, scores)


class Ledger:
    """The scores of a search so far, in folder/scores.json, for a run that is started again.

    options: what the scores depend on, plain values by name; a file of other ones stops the run.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.path, self.options = folder / "scores.json", options
        content = dist.gather(files.read_json(self.path))[0]
        before = content.get("options", options)
        other = [name for name in options if before.get(name) != options[name]]
        if other:
            was = ", ".join(f"{name}={before.get(name)}" for name in other)
            now = ", ".join(f"{name}={options[name]}" for name in other)
            raise ValueError(
                f"{self.path} is of a fine-tuning that began with {was}, this one has {now}: give "
                "the same, or another hydra.run.dir=."
            )
        self.scores: dict[str, float] = content.get("scores", {})
        self.write()

    def add(self, name: str, score: float) -> None:
        """Keep a score; nan as -inf, which JSON readers of Python know."""
        self.scores[name] = -math.inf if math.isnan(score) else score
        self.write()

    def write(self) -> None:
        """Write the file, on the main process."""
        if dist.is_main():
            content = {"options": self.options, "scores": self.scores}
            files.write_text(self.path, json.dumps(content, indent=1) + "\n")


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the images (n,) that stay and of those held out, both in rising order.

    `share` of each class, rounded, is held out: one image at least, and never the only one.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]  # by class, shuffled within
    counts = torch.bincount(labels)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    most = (counts * share).round().clamp(min=1).minimum((counts - 1).clamp(min=0))
    out = place < most[labels[order]]
    if not out.any():
        raise ValueError(
            f"{len(labels)} training images have no class with two, of which one could be held "
            "out: give a grid of one setting, or more images."
        )
    return order[~out].sort().values, order[out].sort().values


def describe(setting: object) -> str:
    """A setting for the eye: `lr 0.01, decay 0.0001`."""
    values = getattr(setting, "__dict__", {})
    return ", ".join(f"{name} {value:g}" for name, value in values.items()) or str(setting)
