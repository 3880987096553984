"""Numbers that describe a class without a detector, for `branch.source=embedding`, Table 1a.

FILE.npy   (K, D), a row for each class by rising id
FILE.txt   word vectors as GloVe's files have them, "word 0.1 -0.2 ...": a class is the mean of its
           name's words
random     300 random numbers, the same in every run
hues       of the built-in paintings: where the class lies on the circle of hues
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RANDOM = (300, 0.0548)  # numbers a class, and their deviation; official code


def read_embeddings(name: str, classes: Sequence[str]) -> Tensor | None:
    """(K, D) float32 of the named classes; None for an empty `name`.

    Raises ValueError, naming the file and the class, where a file does not fit the classes.
    """
    if not name:
        return None
    if name == "random":
        width, deviation = RANDOM
        generator = torch.Generator().manual_seed(0)
        return deviation * torch.randn(len(classes), width, generator=generator)
    if name == "hues":
        return hues(classes)
    try:
        if name.endswith(".txt"):
            return word_vectors(Path(name), classes)
        values = np.load(name, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"branch.embeddings={name} cannot be read: {error}") from None
    wanted = isinstance(values, np.ndarray) and values.dtype.kind in "fiu" and values.ndim == 2
    if not wanted or len(values) != len(classes) or not np.isfinite(values).all():
        shape = f"of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise ValueError(
            f"branch.embeddings={name} is {shape}: give {len(classes)} rows of finite numbers, one "
            "for each class by rising id."
        )
    return torch.from_numpy(values).float()


def hues(classes: Sequence[str]) -> Tensor:
    """Cosine and sine of the hue in a painting's class name, "hue 090": (K, 2)."""
    if not all(name.startswith("hue ") for name in classes):
        raise ValueError("branch.embeddings=hues is for data=paintings alone: give a file.")
    turns = torch.tensor([math.radians(float(name.split()[1])) for name in classes])
    return torch.stack([turns.cos(), turns.sin()], 1)


def word_vectors(path: Path, classes: Sequence[str]) -> Tensor:
    """The mean vector of the words of each class's name, (K, D)."""
    wanted = {word for name in classes for word in name.lower().split()}
    found: dict[str, list[float]] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            word, _, numbers = line.partition(" ")
            if word in wanted:
                found[word] = [float(number) for number in numbers.split()]
    if missing := sorted(wanted - set(found)):
        raise ValueError(f"it has no vector of {', '.join(missing)}.")
    rows = [np.mean([found[word] for word in name.lower().split()], axis=0) for name in classes]
    return torch.from_numpy(np.stack(rows)).float()
