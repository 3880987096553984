"""The random generators of a process, Python's, NumPy's and torch's, as plain values."""

import random
from typing import Any

import numpy as np
import torch

from .. import dist


def get() -> dict[str, Any]:
    """States of all random generators of this rank, as plain values."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), *map(float, rest)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state(dist.device())
    return state


def restore(state: dict[str, Any]) -> None:
    """Set the generators of this rank to `state`."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), int(rest[0]), int(rest[1]), rest[2]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"], dist.device())
