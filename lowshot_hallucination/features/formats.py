"""Files of features: .npy, .npz, HDF5 of the benchmark's code, and the folder of stage=features.

N rows, one an image, of d features, with the class of each. A feature folder holds

    train.npy train_labels.npy    rows that supports are drawn from
    test.npy  test_labels.npy     queries
    train_views.npy               (N, V, d): random views of the images of train.npy, if wanted
    classes.json                  {"names", "base_1", "base_2", "novel_1", "novel_2", "trunk", ...}

and may have .npz or .hdf5 in the place of a .npy, and `val` in the place of `test`.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.clevr.arrays.features import H5_SUFFIXES, h5py_for, map_array, open_h5

from .splits import ClassSplit, load_json

VALUES = ("all_feats", "all_features", "features", "values")  # names inside .npz and HDF5
LABELS = ("all_labels", "labels")
SUFFIXES = (".npy", ".npz", *H5_SUFFIXES)
_BLOCK = 64  # rows that the benchmark's code writes at a time, so its files hold a multiple
_ROWS = 8192  # rows looked at together


@dataclass(frozen=True)
class Features:
    """Rows with their classes.

    values: (N, d) float16 or float32, in memory or memory-mapped. labels: (N,) int64 class ids, at
    least 0. source: the file, for messages. views: (N, V, d), of random views of the same images.
    """

    values: np.ndarray
    labels: np.ndarray
    source: str = "the features"
    views: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape, labels = self.values.shape, self.labels.shape
        if len(shape) != 2 or not shape[0] or not shape[1]:
            raise ValueError(f"{self.source}: features of shape {shape}, expected (rows, width).")
        if labels != shape[:1]:
            raise ValueError(
                f"{self.source} has {shape[0]} rows, but its labels have the shape {labels}: give "
                "one label a row."
            )
        if self.views is not None and (self.views.ndim != 3 or self.views.shape[::2] != shape):
            raise ValueError(
                f"{self.source} has features of shape {shape}, but its views have the shape "
                f"{self.views.shape}, expected (rows, views, width): extract both together."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """Number of features d of a row."""
        return self.values.shape[1]

    def rows_of(self, classes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of these classes, ascending."""
        return np.flatnonzero(np.isin(self.labels, np.asarray(classes, np.int64)))

    def take(self, rows: np.ndarray) -> "Features":
        """These rows, copied into memory."""
        views = None if self.views is None else self.views[rows]
        return Features(self.values[rows], self.labels[rows], self.source, views)


def read_features(path: str | Path, labels: str | Path = "") -> Features:
    """The rows of a file and their classes; ValueError names the file and what is wrong.

    path: .npy, mapped and not read; .npz or HDF5 with `all_feats` (or `all_features`, `features`)
    and `all_labels` (or `labels`), cut at `count` where there is one: what follows is padding.
    labels: a .npy of the classes, for a .npy; by default FILE_labels.npy beside FILE.npy.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a file of features, or a folder of them.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} has the suffix {path.suffix!r}: give one of {SUFFIXES}.")
    if path.suffix == ".npy":
        beside = Path(labels) if labels else path.with_name(f"{path.stem}_labels.npy")
        values = map_array(path)
        if not beside.is_file():
            raise ValueError(f"{path} needs its classes: there is no {beside}, give labels=FILE.")
        return _make(values, map_array(beside), str(path), str(beside))
    if labels:
        raise ValueError(f"labels={labels} is for a .npy: {path} holds its own labels.")
    arrays = _read_npz(path) if path.suffix == ".npz" else _read_hdf5(path)
    values, found = _choose(arrays, VALUES, path), _choose(arrays, LABELS, path)
    if "count" in arrays:
        count = np.asarray(arrays["count"]).reshape(-1)
        if len(count) != 1 or not 1 <= count[0] <= min(len(values), len(found)):
            raise ValueError(
                f"{path}: count is {count.tolist()}, but there are {len(values)} rows and "
                f"{len(found)} labels: write the file again."
            )
        values, found = values[: int(count[0])], found[: int(count[0])]
    return _make(values, found, str(path), str(path))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in (*VALUES, *LABELS, "count")}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path} is not a .npz file of arrays, or is damaged: {error}") from error


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """The data sets that we know."""
    with open_h5(path) as file:
        known = [name for name in (*VALUES, *LABELS, "count") if name in file]
        odd = [name for name in known if not hasattr(file[name], "shape")]
        if odd:
            raise ValueError(f"{path}: {odd[0]} is a group, expected a data set.")
        try:
            return {name: np.asarray(file[name][()]) for name in known}
        except OSError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _choose(arrays: dict[str, np.ndarray], names: Sequence[str], path: Path) -> np.ndarray:
    """The array that has one of the names."""
    for name in names:
        if name in arrays:
            return np.atleast_1d(arrays[name])
    raise ValueError(f"{path} has no array named {', '.join(names)}: give one of these names.")


def _make(values: np.ndarray, labels: np.ndarray, path: str, labels_path: str) -> Features:
    """Features whose every number was looked at."""
    values = _to_floats(values, path)
    whole = labels.dtype.kind in "iu"
    if labels.dtype.kind == "f":  # of files that hold numbers of one kind only
        whole = bool((np.abs(labels) < 2**53).all() and (labels == np.trunc(labels)).all())
    if not whole:
        raise ValueError(f"{labels_path} holds {labels.dtype} labels that are not whole numbers.")
    labels = np.array(labels, np.int64, ndmin=1)
    features = Features(values, labels, path)
    if labels.min() < 0:
        row = int(labels.argmin())
        raise ValueError(f"{labels_path}: row {row} has class {labels[row]}, expected 0 or more.")
    _require_finite(values, path)
    return features


def _to_floats(values: np.ndarray, path: str) -> np.ndarray:
    """Other numbers than float16 become float32."""
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {values.dtype}, expected float16 or float32 features.")
    if values.dtype not in (np.float16, np.float32) or not values.dtype.isnative:
        with np.errstate(over="ignore"):  # infinite then, and named by `_require_finite`
            values = values.astype(np.float32)
    return values


def _require_finite(values: np.ndarray, path: str) -> None:
    """ValueError where one of the values (N, ..., d) is not a finite number."""
    for first in range(0, len(values), _ROWS):
        part = values[first : first + _ROWS]
        bad = np.argwhere(~np.isfinite(part))
        if len(bad):
            row, *_, column = bad[0].tolist()
            raise ValueError(
                f"{path}: feature {column} of row {first + row} is {part[tuple(bad[0])]}: extract "
                "the features again."
            )


def write_hdf5(path: str | Path, features: Features) -> None:
    """Write rows as the benchmark's code does: float32, padded to a multiple of 64, and `count`."""
    padded = -(-len(features) // _BLOCK) * _BLOCK
    h5py = h5py_for(path)

    def fill(stream: Any) -> None:
        with h5py.File(stream, "w") as file:
            values = file.create_dataset("all_feats", (padded, features.width), "float32")
            for first in range(0, len(features), _ROWS):
                part = features.values[first : first + _ROWS]
                values[first : first + len(part)] = part
            labels = file.create_dataset("all_labels", (padded,), "int32")
            labels[: len(features)] = features.labels
            file["count"] = np.array([len(features)], np.int32)

    files.write(Path(path), fill)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `folder` where nothing failed."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: remove it, or write to another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield part
        part.chmod(0o755)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_classes(
    folder: Path, split: ClassSplit, trunk: dict[str, Any], notes: Sequence[str] = ()
) -> None:
    """Write classes.json. trunk: plain values, what a later image needs to be one more row.

    notes: sentences on the data, which go into the report of every run on these features.
    """
    content = {**split.lists(), "trunk": trunk, "notes": list(notes)}
    files.write_text(folder / "classes.json", json.dumps(content, indent=1))


def read_folder(folder: str | Path) -> tuple[Features, Features, dict[str, Any]]:
    """Training rows, queries and classes.json of a feature folder; {} where that is absent.

    The training rows have the views of train_views.npy where there is one, mapped and not read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that stage=features wrote.")
    parts = []
    for names in (("train",), ("test", "val")):
        paths = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        there = [path for path in paths if path.is_file()]
        if len(there) != 1:
            found = ", ".join(path.name for path in there) or "neither"
            raise ValueError(
                f"{folder} needs one file {' or '.join(names)} with a suffix of {SUFFIXES}, "
                f"it has {found}."
            )
        parts.append(read_features(there[0]))
    views = folder / "train_views.npy"
    if views.is_file():
        values = _to_floats(map_array(views), str(views))
        parts[0] = replace(parts[0], views=values)
        _require_finite(values, str(views))
    classes = folder / "classes.json"
    content = load_json(classes) if classes.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{classes} holds no JSON object: write the features again.")
    return parts[0], parts[1], content
