"""Which classes have masks: A of A and B, Sec. 4.

voc             the 20 classes of PASCAL VOC within COCO's
nonvoc          the other 60
random20_1      20 random classes, trial 1: the official code's 25 splits for sizes 20, 30, ...
                60 and trials 1 to 5, Fig. 3; other sizes and numbers of classes work alike
even, odd       every second class by rising id
all             every class
FILE.json       {"A": [names or category ids], "B": [...]}; B may be left out: the rest

The named ones are drawn from the classes of the data set itself: those that data.boxes_only adds
are always in B.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.coco.dataset import Categories
from common.coco.files import read_json

VOC = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "boat",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "bottle",
    "chair",
    "couch",
    "potted plant",
    "dining table",
    "tv",
]
SIZES = (20, 30, 40, 50, 60)  # of 80 classes; official code
SEED = 3


def split_classes(name: str, categories: Categories, added: int = 0) -> tuple[list[int], list[int]]:
    """Labels 0..K-1 of the classes with masks, and of those with boxes only.

    added: how many of the classes, the last ones, come from data.boxes_only. Raises ValueError,
    naming the class or option, where the split does not fit the data set.
    """
    count = len(categories.ids) - added
    random = re.fullmatch(r"random(\d+)_(\d+)", name)
    if name == "all":
        chosen = list(range(count))
    elif name in ("even", "odd"):
        chosen = list(range(name == "odd", count, 2))
    elif name in ("voc", "nonvoc"):
        own = Categories(categories.ids[:count], (categories.names or [])[:count], categories.where)
        voc = find_labels(VOC, own, name)
        chosen = voc if name == "voc" else [k for k in range(count) if k not in voc]
    elif random:
        chosen = draw_classes(int(random[1]), int(random[2]), count)
    elif name.endswith(".json"):
        return read_split(Path(name), categories, added)
    else:
        raise ValueError(
            f"data.masks={name} is no split: give voc, nonvoc, even, odd, all, random20_1 (size "
            "and trial) or FILE.json."
        )
    rest = [label for label in range(len(categories.ids)) if label not in chosen]
    if not chosen or (not rest and name != "all"):
        raise ValueError(f"data.masks={name} leaves A or B empty of {count} classes.")
    return sorted(chosen), rest


def draw_classes(size: int, trial: int, count: int) -> list[int]:
    """A random set of `size` of `count` labels, as the official code draws them for Fig. 3."""
    sizes = SIZES if count == 80 else (size,)
    if size not in sizes or not 0 < size < count or not trial:
        raise ValueError(
            f"random{size}_{trial}: the official code draws {', '.join(map(str, SIZES))} of 80 "
            f"classes in trials 1, 2, ...; here are {count}."
        )
    random = np.random.RandomState(SEED)
    for _ in range(trial):
        drawn = {each: random.choice(count, each, replace=False).tolist() for each in sizes}
    return drawn[size]


def read_split(path: Path, categories: Categories, added: int) -> tuple[list[int], list[int]]:
    """The two sets of classes that a JSON file names."""
    content = read_json(path)
    named = content if isinstance(content, dict) else {}
    if [type(named.get("A")), type(named.get("B", []))] != [list, list] or set(named) - {"A", "B"}:
        raise ValueError(f'{path} names no classes: write {{"A": ["person", ...], "B": [...]}}.')
    with_masks = find_labels(content["A"], categories, str(path))
    rest = [label for label in range(len(categories.ids)) if label not in with_masks]
    boxes_only = find_labels(content["B"], categories, str(path)) if "B" in content else rest
    count = len(categories.ids) - added
    if max(with_masks, default=0) >= count:
        raise ValueError(
            f"{path}: category {categories.ids[max(with_masks)]} is in A, but of data.boxes_only, "
            "which has no masks: leave it in B."
        )
    if set(with_masks) & set(boxes_only):
        both = categories.ids[min(set(with_masks) & set(boxes_only))]
        raise ValueError(f"{path}: category {both} is in A and in B: leave it in one.")
    if not with_masks or not boxes_only:
        raise ValueError(f"{path} leaves A or B empty: name at least one class in each.")
    return sorted(set(with_masks)), sorted(set(boxes_only))


def find_labels(wanted: Sequence[Any], categories: Categories, where: str) -> list[int]:
    """The labels of names or category ids."""
    names = [categories.by_id()[number] for number in categories.ids]
    known: dict[Any, int] = {name: label for label, name in enumerate(names)}
    known |= {number: label for label, number in enumerate(categories.ids)}
    labels = []
    for each in wanted:
        same = [n for n, name in zip(categories.ids, names, strict=True) if name == f"{each} ({n})"]
        if same:  # `category_names` has told them apart
            raise ValueError(f"{where}: {each!r} is listed twice; use their ids, {same}.")
        if type(each) not in (int, str) or each not in known:
            near = difflib.get_close_matches(str(each), names, 1)
            advice = f"did you mean {near[0]}?" if near else f"{categories.where} has others."
            raise ValueError(f"{where}: {each!r} is no class of the data set; {advice}")
        labels.append(known[each])
    return labels
