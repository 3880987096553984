"""Which classes are base and which are novel, and the benchmark's files that say so.

C classes. A class id is a place in the list of names. `_1` are the classes that every choice is
made on (cross-validation), `_2` those that are reported; the trunk and the meta-learner see all
base classes and no novel one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("base_1", "base_2", "novel_1", "novel_2")
PHASES = ("cv", "test")
ORDERS = ("hg", "imagefolder")
BENCHMARK = (193, 196, 300, 311)  # classes of each part, of ImageNet's 1,000


@dataclass(frozen=True)
class ClassSplit:
    """Four lists of class ids, without a common one."""

    names: list[str]  # by class id
    base_1: list[int]
    base_2: list[int]
    novel_1: list[int]
    novel_2: list[int]

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"two classes have the name {twice!r}: give each another one.")
        part_of: dict[int, str] = {}
        for part in PARTS:
            for k in getattr(self, part):
                if not 0 <= k < len(self.names):
                    raise ValueError(
                        f"{part} has class {k}, but the {len(self.names)} classes are "
                        f"0 to {len(self.names) - 1}."
                    )
                if k in part_of:
                    raise ValueError(
                        f"class {k} ({self.names[k]}) is in {part_of[k]} and again in {part}: "
                        "give it once."
                    )
                part_of[k] = part

    @property
    def base(self) -> list[int]:
        """All base classes, ascending."""
        return sorted(self.base_1 + self.base_2)

    @property
    def novel(self) -> list[int]:
        """All novel classes, ascending."""
        return sorted(self.novel_1 + self.novel_2)

    def classes_of(self, phase: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids (C',) int64, ascending, of phase "cv" or "test", and which are novel, bool."""
        number = PHASES.index(phase) + 1
        novel = getattr(self, f"novel_{number}")
        ids = np.array(sorted(getattr(self, f"base_{number}") + novel), np.int64)
        return ids, np.isin(ids, np.array(novel, np.int64))

    def renumber(self, names: Sequence[str]) -> "ClassSplit":
        """The same split of classes that have the ids of `names`, which may have others too."""
        ids = {name: k for k, name in enumerate(names)}
        missing = [self.names[k] for k in self.base + self.novel if self.names[k] not in ids]
        if missing:
            raise ValueError(
                f"the split has the class {missing[0]!r}, which is not among the {len(names)} "
                f"classes of the data ({len(missing)} such): complete the data or the split."
            )
        parts = [sorted(ids[self.names[k]] for k in getattr(self, part)) for part in PARTS]
        return ClassSplit(list(names), *parts)

    def lists(self) -> dict[str, list]:
        """Names and the four lists, for JSON."""
        return {"names": self.names} | {part: getattr(self, part) for part in PARTS}


def load_json(path: str | Path) -> Any:
    """What a JSON file holds; ValueError names it."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def read_label_idx(path: str | Path, order: str = "hg") -> ClassSplit:
    """The split of the benchmark's label_idx.json; its class ids are places in `label_names`.

    order: what the numbers in its lists count. "hg": `label_names`, as meant, which is not sorted.
    "imagefolder": sorted WordNet ids, as some public code takes them; that is another split of the
    same sizes, and its accuracies compare with that code's alone. The ids of the result count
    `label_names` either way. Some releases number classes from 1, which is detected.
    """
    if order not in ORDERS:
        raise ValueError(f"data.label_order={order} must be one of {ORDERS}.")
    content = load_json(path)
    keys = ["label_names", *(part.replace("_", "_classes_") for part in PARTS)]
    if not isinstance(content, dict) or any(not isinstance(content.get(k), list) for k in keys):
        raise ValueError(f"{path} is no label_idx.json: expected lists {', '.join(keys)}.")
    names, *parts = (content[key] for key in keys)
    _require_names(names, path)
    ids = [k for part in parts for k in part]
    if any(type(k) is not int for k in ids):
        raise ValueError(f"{path}: its lists must hold class numbers.")
    first = 1 if ids and min(ids) == 1 and max(ids) == len(names) else 0
    if sorted(ids) != list(range(first, first + len(names))):
        raise ValueError(
            f"{path}: {' '.join(keys[1:])} must have each of the {len(names)} classes of "
            f"label_names once, but hold {len(ids)} numbers, {len(set(ids))} different ones: "
            "download it again."
        )
    base = parts[0] + parts[1]
    stated = content.get("base_classes", base)
    if not isinstance(stated, list) or sorted(map(str, stated)) != sorted(map(str, base)):
        raise ValueError(f"{path}: base_classes differ from base_classes_1 and _2.")
    sizes = tuple(map(len, parts))
    if len(names) == 1000 and sizes != BENCHMARK:
        raise ValueError(
            f"{path} splits 1000 classes into {sizes}, the benchmark into {BENCHMARK}: download it "
            "again, or give a split of your own with other keys, base and novel."
        )
    parts = [[k - first for k in part] for part in parts]
    if order == "hg":
        return ClassSplit(names, *(sorted(part) for part in parts))
    return ClassSplit(sorted(names), *parts).renumber(names)


def read_split_file(path: str | Path) -> np.ndarray:
    """The benchmark's splitfile_N.json, int64 (C, S): S rows of train.json for each class.

    The support of n examples of class k are the rows [k, :n].
    """
    content = load_json(path)
    if not isinstance(content, list) or not content or not all(map(_are_rows, content)):
        raise ValueError(f"{path} is no split file: expected a list of rows for each class.")
    lengths = {len(rows) for rows in content}
    if len(lengths) > 1:
        raise ValueError(f"{path} has {min(lengths)} to {max(lengths)} rows a class: download it.")
    picks = np.array(content, np.int64)
    if len(np.unique(picks)) != picks.size:
        raise ValueError(f"{path} names a row twice: download it again.")
    return picks


def _are_rows(rows: Any) -> bool:
    """Whether an entry of a split file is a list of row numbers."""
    if not isinstance(rows, list) or not rows:
        return False
    return all(type(row) is int and 0 <= row < 2**63 for row in rows)


def split_at_random(
    names: Sequence[str], seed: int, base_share: float = 0.5, among: Iterable[int] | None = None
) -> ClassSplit:
    """Base and novel classes drawn at random, each parted into two halves.

    base_share: of the classes that are base. among: ids of the classes to split; None: all.
    """
    ids = np.arange(len(names)) if among is None else np.array(sorted(among), np.int64)
    if len(ids) < 4 or not 0 < base_share < 1:
        raise ValueError(
            f"{len(ids)} classes cannot be split with a base share of {base_share}: give four "
            "classes or more and a share between 0 and 1."
        )
    base = min(max(round(len(ids) * base_share), 2), len(ids) - 2)
    order = np.random.default_rng((seed, len(ids))).permutation(ids).tolist()
    return ClassSplit(list(names), *_halve(order[:base]), *_halve(order[base:]))


def _halve(classes: list[int]) -> tuple[list[int], list[int]]:
    """The first half, for choices, and the rest; both ascending."""
    middle = len(classes) // 2
    return sorted(classes[:middle]), sorted(classes[middle:])


def read_class_split(path: str | Path, names: Sequence[str], seed: int = 0) -> ClassSplit:
    """The split in a JSON file, of the classes `names`.

    The file has the lists base and novel, whose halves are drawn by `seed`, or the four lists
    base_1, base_2, novel_1 and novel_2, of class names or numbers. A label_idx.json is read too:
    its names are looked up, or taken over where `names` are mere numbers.
    """
    content = load_json(path)
    if isinstance(content, dict) and "label_names" in content:
        split = read_label_idx(path)
        if not all(map(_is_number, names)):
            return split.renumber(names)
        if len(names) > len(split.names):
            raise ValueError(f"{path} has {len(split.names)} classes, the data {len(names)}.")
        return split
    keys = [keys for keys in (PARTS, ("base", "novel")) if isinstance(content, dict)]
    keys = [each for each in keys if all(isinstance(content.get(key), list) for key in each)]
    if not keys:
        raise ValueError(f"{path} needs the lists base and novel, or {', '.join(PARTS)}.")
    lists = [_read_classes(content[key], names, f"{path}: {key}") for key in keys[0]]
    try:
        if len(lists) == 2:
            rng = np.random.default_rng((seed, len(names)))
            lists = [half for part in lists for half in _halve(rng.permutation(part).tolist())]
        split = ClassSplit(list(names), *map(sorted, lists))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    empty = [part for part in PARTS if not getattr(split, part)]
    if empty:
        raise ValueError(f"{path} leaves {empty[0]} without a class: give two base, two novel.")
    return split


def _read_classes(entries: list, names: Sequence[str], where: str) -> list[int]:
    """Class ids of names or numbers. Names that are numbers themselves are looked up as names."""
    ids = {name: k for k, name in enumerate(names)}
    numbered = all(map(_is_number, names))
    found = []
    for entry in entries:
        key = str(entry) if numbered and type(entry) is int else entry
        k = ids.get(key) if isinstance(key, str) else key
        if type(k) is not int or not 0 <= k < len(names):
            raise ValueError(
                f"{where} has the class {entry!r}, which the data has not: choose of its "
                f"{len(names)} classes, {', '.join(names[:3])}, ..."
            )
        found.append(k)
    return found


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _require_names(names: list, path: str | Path) -> None:
    """ValueError unless these are distinct names."""
    if any(type(name) is not str for name in names) or len(set(names)) != len(names):
        raise ValueError(f"{path}: label_names must be distinct names of classes.")
