"""A box head of many classes, cut to the first ones and put together again: two stages of Sec. 5.

    stage 1: a detector of 3,001 classes is trained on boxes
    cut:     the background and COCO's 80 classes stay, the other rows are set aside in the file
    stage 2: T and the mask head are trained on COCO's masks, all else is frozen
    restore: the rows come back, and T gives every class its masks

Rows are classes, the background first; `bbox_pred` has four of them for each class.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.run import sealed
from common.weights import pickles
from common.weights.formats import State, converting, tensors_by_name

from .formats import BOX, MASK, convert
from .initialise import MASK_BRANCH, SCORES, weights_file

AWAY = "set_aside."  # in front of the names of the rows that were cut off
CLASSES = ("categories", "category_ids")  # parts of a checkpoint
NAMES = {  # tensors with rows of classes, and how many for each
    SCORES: 1,
    f"{BOX}cls_score.bias": 1,
    f"{BOX}bbox_pred.weight": 4,
    f"{BOX}bbox_pred.bias": 4,
}


def cut_rows(state: State, rows: int) -> State:
    """The weights with the first classes of the box head alone; the others are set aside.

    rows: of `cls_score`, the background among them: 81 for COCO. Raises ValueError where the
    weights have no box head of its own boxes for each class, or not more classes than that.
    """
    missing = [name for name in NAMES if name not in state]
    if missing:
        raise ValueError(f"there is no box head, {missing[0]} is missing: give a detector.")
    if any(name.startswith(AWAY) for name in state):
        raise ValueError("they were cut before: restore them first, or take the original.")
    classes = len(state[SCORES])
    if any(len(state[name]) != each * classes for name, each in NAMES.items()):
        raise ValueError("the box head has not four box outputs for each class, which T needs.")
    if not 1 < rows < classes:
        raise ValueError(f"rows={rows}: give more than 1 and less than its {classes} classes.")
    cut = dict(state)
    for name, each in NAMES.items():
        cut[name], cut[AWAY + name] = state[name][: each * rows], state[name][each * rows :]
    return cut


def restore_rows(trained: State, cut: State) -> State:
    """The weights that were trained after `cut_rows`, with the rows that it set aside.

    Raises ValueError where the detector is no longer the one that was cut, so that these rows do
    not belong to it, or its masks do not come from the box head by T.
    """
    if not all(AWAY + name in cut for name in NAMES):
        raise ValueError("no rows were set aside there: give the file that `cut` wrote.")
    changed = [name for name in NAMES if name not in trained]
    for name, value in cut.items():
        if name.startswith(MASK_BRANCH) or name not in trained:
            continue
        if not torch.equal(trained[name], value.to(trained[name].dtype)):
            changed.append(name)
    if changed:
        raise ValueError(
            f"{changed[0]} is not as it was cut: train with stage=masks, which leaves the detector "
            "as it is, and init= that file."
        )
    if f"{MASK}transfer.0.weight" not in trained or f"{MASK}embeddings" in trained:
        raise ValueError(
            "its masks are not made from the box head: train with branch.kind=transfer."
        )
    whole = {name: torch.cat([trained[name], cut[AWAY + name]]) for name in NAMES}
    return trained | whole


def cut(init: str, out: Path, rows: int) -> None:
    """`cut_rows` of a run's folder or of a weight file of any known format, into a file."""
    path = weights_file(init)
    content = pickles.read(path)
    with converting(path):
        converted = convert(tensors_by_name(content), str(path))
    with naming(path):
        state = cut_rows(converted.tensors, rows)
    write(out, state, {name: v for name, v in parts_of(content).items() if name in CLASSES})
    print(f"{out}: {rows} classes; {len(state[AWAY + SCORES])} more are set aside.")
    if converted.mean and converted.std:
        pixels = [
            f"network.{name}=[{','.join(f'{value:.6g}' for value in values)}]"
            for name, values in (("mean", converted.mean), ("std", converted.std))
        ]
        stride = f"network.stride_in_1x1={converted.stride_in_1x1}"
        print(f"Its network needs {' '.join(pixels)} {stride}.")


def restore(init: str, source: Path, out: Path) -> None:
    """`restore_rows` of the run of stage 2, with the file `source` that `cut` wrote, into a file.

    It keeps the options of that run and the classes of stage 1, as far as they are known.
    """
    path = weights_file(init)
    content, before = pickles.read(path), pickles.read(source)
    with naming(f"{path} and {source}"):
        state = restore_rows(tensors_by_name(content), tensors_by_name(before))
    kept = {name: v for name, v in parts_of(content).items() if name == "options"}
    write(out, state, kept | {n: v for n, v in parts_of(before).items() if n in CLASSES})
    print(f"{out}: masks for {len(state[SCORES]) - 1:,} classes.")


def parts_of(content: Any) -> dict[str, Any]:
    """The parts of a checkpoint of ours; empty for other files."""
    parts = content.get("parts") if isinstance(content, dict) else None
    return parts if isinstance(parts, dict) else {}


def write(out: Path, state: State, parts: dict[str, Any]) -> None:
    """Write weights as a checkpoint of ours has them, whole or not at all."""
    content = {"parts": sealed.plain({"model": state, **parts}, str(out))}
    sealed.write(out, lambda file: sealed.seal(content, file))


@contextmanager
def naming(where: str | Path) -> Iterator[None]:
    """Raise a ValueError with the file in front."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
