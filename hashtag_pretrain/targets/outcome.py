"""What a classifier made of the test images of a target: accuracies, by class, lower bound."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import dist
from common.files import write_text

from ..duplicates.report import lower_bound
from .sets import Target


@dataclass
class Outcome:
    """N test images in the order of the list, the same on every process.

    labels: int64 (N,). places: int64 (N,) of the own class among the scores, 0 for the highest.
    predictions: int64 (N,), the class of the highest score.
    """

    labels: Tensor
    places: Tensor
    predictions: Tensor

    def accuracy(self, k: int = 1) -> float:
        """Top-k accuracy in percent."""
        return 100 * (self.places < k).double().mean().item()

    def lower_bound(self, duplicates: Collection[int]) -> float:
        """Top-1 in percent that takes each duplicated image for a mistake, Sec. 2.4."""
        return lower_bound(self.places < 1, duplicates)

    def per_class(self, classes: int) -> list[tuple[int, float, float]]:
        """Images, top-1 and top-5 in percent of each class; nan for a class without images."""
        rows = []
        for label in range(classes):
            places = self.places[self.labels == label]
            shares = [100 * (places < k).double().mean().item() for k in (1, 5)]
            rows.append((len(places), shares[0], shares[1]))
        return rows

    def write_classes(self, path: Path, names: Sequence[str]) -> None:
        """Write class, images, top1, top5 as CSV."""
        table = [
            {"class": name, "images": count, "top1": f"{top1:.2f}", "top5": f"{top5:.2f}"}
            for name, (count, top1, top5) in zip(names, self.per_class(len(names)), strict=True)
        ]
        write_text(path, to_csv(table))


class Scores:
    """Gathers the logits of this process's images, then the outcome of all."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch: logits (B, K), labels int64 (B,)."""
        labels = labels.to(logits.device)
        own = logits.gather(1, labels[:, None])
        places = (logits >= own).sum(1) - 1  # an equal score counts against the class
        places[logits.isnan().any(1)] = logits.shape[1]
        self.rows.append(torch.stack([labels, places, logits.argmax(1)], 1).cpu())

    def accuracy(self) -> float:
        """Top-1 in percent over all processes; nan without images."""
        rows = torch.cat(self.rows) if self.rows else torch.zeros(0, 3)
        counts = torch.tensor([int((rows[:, 1] < 1).sum()), len(rows)], device=dist.device())
        correct, count = dist.total(counts).tolist()
        return 100 * correct / count if count else math.nan

    def outcome(self) -> Outcome:
        """Of all images; every process calls it. Process r of w has images r, r + w, ..."""
        mine = torch.cat(self.rows) if self.rows else torch.zeros(0, 3, dtype=torch.int64)
        parts: list[Any] = dist.gather(mine)
        rows = torch.empty(sum(map(len, parts)), 3, dtype=torch.int64)
        for rank, part in enumerate(parts):
            rows[rank :: len(parts)] = part
        return Outcome(*rows.unbind(1))


def to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows, one at least, as a csv file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def report(
    outcome: Outcome, target: Target, name: str, folder: Path | None = None
) -> dict[str, float]:
    """{name: top-1, name5: top-5}, and lower_bound where duplicates were looked for, in percent.

    folder: where the main process writes `name`.csv, the accuracy by class.
    """
    metrics = {name: outcome.accuracy(), f"{name}5": outcome.accuracy(5)}
    if target.duplicates is not None:
        metrics["lower_bound"] = outcome.lower_bound(target.duplicates)
    if folder is not None and dist.is_main():
        outcome.write_classes(folder / f"{name}.csv", target.classes)
    return metrics
