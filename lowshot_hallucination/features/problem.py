"""A low-shot problem on features: rows for the supports, rows as queries, and the class split."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .formats import Features, read_folder
from .splits import PARTS, ClassSplit, read_class_split

_ROWS = 8192  # rows hashed together


@dataclass(frozen=True)
class LowShot:
    """What the learner is trained on and tested with.

    train: rows that supports are drawn from; those of base classes train the learner. test: rows
    that are classified. picks: of each split file, (C, S) int64 rows of `train`, the support of n
    examples of class k being [k, :n]. trunk: what made the features, for the report. notes:
    sentences on the data, for the report.
    """

    train: Features
    test: Features
    split: ClassSplit
    picks: list[np.ndarray] | None = None
    trunk: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.train.width != self.test.width:
            raise ValueError(
                f"{self.train.source} has {self.train.width} features a row, {self.test.source} "
                f"{self.test.width}: extract both with the same trunk."
            )
        counts = [self.count_rows(part) for part in (self.train, self.test)]
        for part in PARTS:
            for k in getattr(self.split, part):
                if not counts[0][k] or not counts[1][k]:
                    raise ValueError(
                        f"class {self.split.names[k]!r} (number {k}, {part}) has {counts[0][k]} "
                        f"rows in {self.train.source} and {counts[1][k]} in {self.test.source}: "
                        "it needs rows in both, or leave it out of the split."
                    )
        for number, picks in enumerate(self.picks or [], 1):
            self._require_picks(picks, f"split file {number}")

    def count_rows(self, features: Features) -> np.ndarray:
        """Rows of each class, (C,) int64."""
        counts = np.bincount(features.labels, minlength=len(self.split.names))
        if len(counts) > len(self.split.names):
            raise ValueError(
                f"{features.source} has the class {len(counts) - 1}, but the split names "
                f"{len(self.split.names)} classes: take the split of these features."
            )
        return counts

    def digest(self) -> str:
        """Differs, where a run's training would: by classes, labels, or 1,024 of the rows."""
        sample = np.linspace(0, len(self.train) - 1, min(len(self.train), 1024)).astype(np.int64)
        text = json.dumps([self.split.lists(), self.train.values.shape])
        found = hashlib.sha256(text.encode())
        found.update(self.train.labels.astype(np.int64).tobytes())
        found.update(self.train.values[sample].astype(np.float32).tobytes())
        return found.hexdigest()[:16]

    def require_rows(self, shots: int) -> None:
        """ValueError where a novel class has fewer than `shots` rows for its support."""
        for number, picks in enumerate(self.picks or [], 1):
            if picks.shape[1] < shots:
                raise ValueError(
                    f"split file {number} has {picks.shape[1]} rows a class, fewer than the "
                    f"{shots} of test.shots: test fewer shots."
                )
        counts = self.count_rows(self.train)
        for k in self.split.novel:
            if counts[k] < shots:
                raise ValueError(
                    f"novel class {self.split.names[k]!r} (number {k}) has {counts[k]} rows in "
                    f"{self.train.source}, fewer than the {shots} of test.shots: give it more, or "
                    "test fewer shots."
                )

    def _require_picks(self, picks: np.ndarray, where: str) -> None:
        """ValueError unless the rows of a split file are of the classes that it says."""
        if len(picks) != len(self.split.names):
            raise ValueError(f"{where}: {len(picks)} classes, the split {len(self.split.names)}.")
        if picks.max() >= len(self.train):
            raise ValueError(
                f"{where} has row {picks.max()}, but {self.train.source} has {len(self.train)} "
                "rows: split files need the rows of the whole train.json, in its order."
            )
        used = np.array(self.split.base + self.split.novel, np.int64)
        wrong = self.train.labels[picks[used]] != used[:, None]
        if wrong.any():
            place, slot = (int(index[0]) for index in wrong.nonzero())
            k, row = used[place], picks[used[place], slot]
            raise ValueError(
                f"{where}: row {row} should be of class {k} ({self.split.names[k]}), but is of "
                f"class {self.train.labels[row]} in {self.train.source}: split files need the rows "
                "in the order of train.json."
            )


def number_names(labels: np.ndarray, source: str) -> list[str]:
    """Names "0", "1", ... of the classes of a file that has numbers only; gaps have names too.

    source: the file, for messages.
    """
    most = int(labels.max())
    if most >= 1_000_000:
        raise ValueError(f"{source}: the labels go up to {most}: number the classes from 0.")
    return [str(k) for k in range(most + 1)]


def from_folder(
    folder: str | Path, split_file: str = "", seed: int = 0, picks: Sequence[np.ndarray] = ()
) -> LowShot:
    """The problem in a feature folder, which needs no classes.json where a split is given.

    split_file: JSON of base and novel classes (`read_class_split`), in the place of the split in
    classes.json; its halves are drawn by `seed`.
    """
    train, test, content = read_folder(folder)
    path = Path(folder) / "classes.json"
    require_plain(content, path)
    if split_file:
        numbered = number_names(np.array([train.labels.max(), test.labels.max()]), str(folder))
        split = read_class_split(split_file, content.get("names", numbered), seed)
    else:
        split = find_split(content, path)
    options = content.get("trunk", {}).get("options", {})
    trunk = ", ".join(f"{key}={value}" for key, value in options.items())
    return LowShot(train, test, split, list(picks) or None, trunk, tuple(content.get("notes", ())))


def require_plain(content: dict[str, Any], path: Path) -> None:
    """ValueError where an entry of classes.json is not of its kind."""
    trunk = content.get("trunk", {})
    if not isinstance(trunk, dict) or not isinstance(trunk.get("options", {}), dict):
        raise ValueError(f"{path}: trunk must be an object with options: extract again.")
    for key, kind in (("names", str), ("notes", str), *((part, int) for part in PARTS)):
        entries = content.get(key, [])
        if not isinstance(entries, list) or any(type(entry) is not kind for entry in entries):
            words = "texts" if kind is str else "class numbers"
            raise ValueError(f"{path}: {key} must be a list of {words}.")


def find_split(content: dict[str, Any], path: Path) -> ClassSplit:
    """The split in a classes.json; ValueError names the file where there is none."""
    if any(not content.get(key) for key in ("names", *PARTS)):
        raise ValueError(
            f"{path} does not say which classes are base and novel (names, {', '.join(PARTS)}, "
            "each with a class or more): give problem.split=FILE.json."
        )
    try:
        return ClassSplit(content["names"], *(content[part] for part in PARTS))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_one_table(
    features: Features, split: ClassSplit, queries_share: float = 0.25, seed: int = 0
) -> LowShot:
    """A problem whose queries are a share of each class's rows, drawn by `seed`, at least one.

    Rows of classes outside the split are left out. A class with one row raises ValueError.
    """
    if not 0 < queries_share < 1:
        raise ValueError(f"problem.queries_share={queries_share}: give a share between 0 and 1.")
    counts = np.bincount(features.labels, minlength=len(split.names))
    order = np.argsort(features.labels, kind="stable")  # rows, class after class
    starts = np.cumsum(counts) - counts
    is_query = np.zeros(len(features), bool)
    classes = split.base + split.novel
    for k in classes:
        if counts[k] < 2:
            raise ValueError(
                f"class {split.names[k]!r} (number {k}) has {counts[k]} rows in {features.source}: "
                "it needs two or more, for its support and its queries, or leave it out of the "
                "split."
            )
        queries = min(max(round(counts[k] * queries_share), 1), counts[k] - 1)
        rng = np.random.default_rng((seed, k))
        is_query[order[starts[k] + rng.permutation(counts[k])[:queries]]] = True
    rows = features.rows_of(classes)
    queried = is_query[rows]
    return LowShot(features.take(rows[~queried]), features.take(rows[queried]), split)


def report_shared_rows(problem: LowShot) -> str:
    """A sentence on rows that are both in the supports' pool and among the queries; "" for none.

    Equal features mean that an image is in both, so that accuracies are too high. Rows are compared
    by a hash of their float32 values.
    """
    queries = {digest: row for row, digest in enumerate(_hash_rows(problem.test))}
    shared = [
        (row, queries[digest])
        for row, digest in enumerate(_hash_rows(problem.train))
        if digest in queries
    ]
    if not shared:
        return ""
    row, query = shared[0]
    return (
        f"{len(shared)} of {len(problem.train)} rows of the supports' pool are also queries "
        f"(first: row {row} of {problem.train.source}, class {problem.train.labels[row]}, and row "
        f"{query} of {problem.test.source}): take one of each two away."
    )


def _hash_rows(features: Features) -> Iterator[bytes]:
    """A digest of each row; -0.0 and 0.0 are equal."""
    for first in range(0, len(features), _ROWS):
        rows = np.ascontiguousarray(features.values[first : first + _ROWS], np.float32) + 0.0
        for row in rows:
            yield hashlib.blake2b(row, digest_size=16).digest()
