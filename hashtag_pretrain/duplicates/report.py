"""Test images that were trained on: which they are, and what accuracy is without them.

The paper looks through the 21 nearest training images of each test image. It leaves duplicates in
the training set and gives a lower bound of the accuracy, which takes them all for mistakes.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..words.vocabulary import write_whole
from .neighbours import K, find_neighbours

Name = Callable[[int], str]  # of an image by its number


@dataclass(frozen=True)
class Pairs:
    """P pairs of a test image and a training image, the nearest first."""

    test: Tensor  # int64 (P,), numbers of images
    train: Tensor  # int64 (P,)
    distance: Tensor  # float64 (P,), L2
    mirrored: Tensor  # bool (P,): the test image's mirror image is the nearer one
    threshold: float  # the largest distance
    k: int  # training images that were looked at for each test image
    full: int  # test images all of whose k are duplicates: there may be more
    test_images: int
    train_images: int

    @property
    def duplicates(self) -> list[int]:
        """The test images that have a copy among the training images, ascending."""
        return self.test.unique().tolist()


def find_duplicates(
    train: Tensor | np.ndarray,
    test: Tensor,
    threshold: float,
    k: int = K,
    *,
    mirrored: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Pairs:
    """Pairs at most `threshold` apart, among the k training images nearest to each test image.

    train: descriptors (M, D), as `find_neighbours` takes a database. test: (N, D). mirrored: those
    of the test images' mirror images, (N, D): training images need not be described twice.
    """
    # Unstated: the distance from which on people looked at the paper's pairs.
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold}: give a distance of 0 or more")
    sides = [test] if mirrored is None else [test, mirrored]
    nearest: dict[tuple[int, int], tuple[float, bool]] = {}
    full = torch.zeros(len(test), dtype=torch.bool)
    for side, queries in enumerate(sides):
        distances, rows = find_neighbours(queries, train, k, device=device)
        near = distances <= threshold  # (N, k)
        if rows.shape[1] < len(train):
            full |= near.all(1)
        for i, j in near.nonzero().tolist():
            found = (float(distances[i, j]), bool(side))
            pair = (i, int(rows[i, j]))
            nearest[pair] = min(found, nearest.get(pair, found))
    order = sorted(nearest, key=lambda pair: (nearest[pair], pair))
    return Pairs(
        test=torch.tensor([i for i, _ in order], dtype=torch.int64),
        train=torch.tensor([row for _, row in order], dtype=torch.int64),
        distance=torch.tensor([nearest[pair][0] for pair in order], dtype=torch.float64),
        mirrored=torch.tensor([nearest[pair][1] for pair in order], dtype=torch.bool),
        threshold=threshold,
        k=k,
        full=int(full.sum()),
        test_images=len(test),
        train_images=len(train),
    )


def lower_bound(correct: Tensor, duplicates: Collection[int]) -> float:
    """Accuracy in percent where each duplicated test image counts as a mistake.

    correct: bool (N,). duplicates: numbers of test images.
    """
    counted = correct.clone()
    counted[torch.tensor(sorted(duplicates), dtype=torch.int64)] = False
    return 100 * counted.double().mean().item()


def write_report(folder: str | Path, pairs: Pairs, train: Name, test: Name) -> list[str]:
    """Write the pairs and what follows from them; give the lines of a summary.

    duplicates.json: the pairs by name, for people to look at. exclude.txt: the training images, as
    `train` names them, one a line; duplicates.txt: the test images, as `test` names them.
    """
    folder = Path(folder)
    rows = zip(pairs.test, pairs.train, pairs.distance, pairs.mirrored, strict=True)
    found = [
        {
            "test": test(int(i)),
            "train": train(int(j)),
            "distance": round(float(distance), 6),
            "mirrored": bool(mirrored),
        }
        for i, j, distance, mirrored in rows
    ]
    share = 100 * len(pairs.duplicates) / max(1, pairs.test_images)
    content = {
        "threshold": pairs.threshold,
        "k": pairs.k,
        "test_images": pairs.test_images,
        "train_images": pairs.train_images,
        "duplicated": len(pairs.duplicates),
        "percent": round(share, 4),
        "full": pairs.full,
        "pairs": found,
    }
    write_whole(folder / "duplicates.json", json.dumps(content, indent=1) + "\n")
    for name, side, numbers in (("exclude", train, pairs.train), ("duplicates", test, pairs.test)):
        names = [side(number) for number in numbers.unique().tolist()]
        write_whole(folder / f"{name}.txt", "".join(f"{each}\n" for each in names))
    lines = [
        f"{len(pairs.duplicates):,} of {pairs.test_images:,} test images ({share:.2f} %) have a "
        f"copy among {pairs.train_images:,} training images, at most {pairs.threshold:g} apart"
    ]
    if pairs.full:
        lines.append(
            f"{pairs.full:,} test images have {pairs.k} copies or more: a larger k may find others"
        )
    return lines
