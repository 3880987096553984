"""Tensors by name out of a weight file, whatever they are wrapped in, and what does not fit."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from . import pickles

State = dict[str, Tensor]

# Ours, detectron2 and others, pycls, common, Detectron: keys of what holds the tensors
WRAPPERS = ("parts", "model", "model_state", "model_state_dict", "state_dict", "teacher", "blobs")
# COCO's ids of its 80 classes, in order: torchvision's detectors have a row for each of 0..90.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
PREFIX = re.compile(r"^((module|model|state_dict|teacher)\.|gpu_\d+/)+")


@dataclass
class Report:
    """What loading weights into a model did; printing it tells all of it."""

    source: str
    loaded: int = 0  # tensors
    kept: list[str] = field(default_factory=list)  # the model's, absent from the file
    unused: list[str] = field(default_factory=list)  # the file's, without a place in the model
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors from {self.source}."]
        for names, what in ((self.kept, "stay as initialised"), (self.unused, "are unused")):
            if names:
                lines.append(f"{len(names)} {what}: {few(names)}.")
        return "\n".join([*lines, *self.notes])


def read(path: str | Path) -> State:
    """Tensors of a weight file by their plain names; ValueError where it has none or is refused."""
    content = pickles.read(path)
    state = tensors_by_name(content)
    if not state:
        kind = f"only {few(map(str, content))}" if isinstance(content, dict) else "no dictionary"
        raise ValueError(f"{path} holds no tensors by name, {kind}: give a file of weights.")
    return state


def tensors_by_name(content: Any) -> State:
    """The tensors of a file's content by their plain names; empty where it has none."""
    for _ in WRAPPERS:
        inner = content if isinstance(content, dict) else {}
        content = next((inner[k] for k in WRAPPERS if isinstance(inner.get(k), dict)), content)
    if not isinstance(content, dict):
        return {}
    return plain_names({str(k): v for k, v in content.items() if isinstance(v, Tensor)})


def plain_names(state: State) -> State:
    """Names without what DistributedDataParallel, torch.compile and trainers put in front.

    Of a teacher and its student, which training averages into it, the teacher.
    """
    found = [(name.replace("_orig_mod.", ""), value) for name, value in state.items()]
    plain = [(name, PREFIX.sub("", name), value) for name, value in found]
    taught = [each for each in plain if "teacher." in each[0].removesuffix(each[1])]
    return {name: value for _, name, value in taught or plain}


@contextmanager
def converting(source: str | Path) -> Iterator[None]:
    """Raise ValueError where the tensors of a known format have not the shapes of that format."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{source} has tensors of other shapes than its names promise ({reason}): use the file "
            "as its authors publish it."
        ) from error


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What of `given` does not fit the tensors `own`, the first ten of each kind; "" if all does.

    BN's counters of batches may be missing.
    """
    shapes = {
        name: (tuple(given[name].shape), tuple(own[name].shape)) for name in given if name in own
    }
    kinds = {
        "missing": [n for n in own if n not in given and not n.endswith("num_batches_tracked")],
        "unknown": [name for name in given if name not in own],
        "of another shape": [f"{n} {a} for {b}" for n, (a, b) in shapes.items() if a != b],
    }
    return "; ".join(f"{len(n)} {kind}: {few(n)}" for kind, n in kinds.items() if n)


def few(names: Iterable[str], count: int = 10) -> str:
    """The first names of several."""
    shown = list(names)
    return ", ".join(shown[:count]) + (", ..." if len(shown) > count else "")
