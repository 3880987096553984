"""Files of encoded questions: the H5 files of the public code, and folders of .npy files.

N questions, as in encode.py.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...coco.files import read_json
from ...run import sealed
from ..functions import NULL, SPECIAL, START
from ..questions import read_questions
from ..vocabulary import Vocabulary
from .encode import QuestionArrays, encode, root_types
from .features import H5_SUFFIXES, h5py_for, map_array, open_h5

# The names in the public code's files are those of the fields, but for this one.
_H5_NAMES = {"families": "question_families"}
_H5_TYPES = {"questions": np.int32, "programs": np.int32}  # all else int64
_OPTIONAL = ("programs", "answers", "families", "types")


def open_questions(path: str | Path, vocabulary: Vocabulary) -> QuestionArrays:
    """The questions of a .json file, of an .h5 file of the public code or a folder by `save`."""
    path = Path(path)
    if path.is_dir():
        return load(path, vocabulary)
    if path.suffix in H5_SUFFIXES:
        return read_h5(path, vocabulary)
    if path.suffix == ".json":
        return encode(read_questions(path), vocabulary)
    raise ValueError(f"{path} is no questions file: expected .json, .h5 or a folder of .npy files")


def read_h5(path: str | Path, vocabulary: Vocabulary) -> QuestionArrays:
    """The questions of an H5 file of the public code, whose numbers must be in the vocabulary.

    Question types come from the programs. Those that a file itself holds are not read: their
    numbering changes from run to run of the code that wrote them.
    """
    parts: dict[str, Any] = dict.fromkeys(_OPTIONAL)
    with open_h5(Path(path)) as file:
        for name in ("questions", "image_idxs", "orig_idxs", "programs", "answers", "families"):
            key = _H5_NAMES.get(name, name)
            if key in file:
                parts[name] = _whole(np.asarray(file[key]), name in _H5_TYPES, f"{path}: {key}")
        digest = file.attrs.get("vocabulary")
    for name in ("questions", "image_idxs"):
        if name not in parts:
            raise ValueError(f"{path} has no data set `{name}`: it is no H5 file of questions")
    parts.setdefault("orig_idxs", np.arange(len(parts["questions"])))
    return _check_arrays(parts, vocabulary, digest, path)


def _whole(values: np.ndarray, small: bool, where: str) -> np.ndarray:
    """Whole numbers as int64, or as int16 where they are `small`."""
    kind = np.dtype(np.int16 if small else np.int64)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{where} holds {values.dtype}, where whole numbers are expected")
    if small and values.size and not 0 <= values.min() <= values.max() <= np.iinfo(np.int16).max:
        raise ValueError(
            f"{where} holds {values.min()} to {values.max()}, which are no numbers of a vocabulary"
        )
    return values.astype(kind)


def write_h5(
    path: str | Path, arrays: QuestionArrays, vocabulary: Vocabulary | None = None
) -> None:
    """Write an H5 file that the public code and its descendants read, whole or not at all.

    vocabulary: store its digest, by which `read_h5` detects another one.
    """
    h5py = h5py_for(path)

    def fill(stream: Any) -> None:
        with h5py.File(stream, "w") as file:
            for name, array in arrays.parts().items():
                if name != "types":  # the public code has none
                    values = array.astype(_H5_TYPES.get(name, np.int64))
                    file.create_dataset(_H5_NAMES.get(name, name), data=values)
            if vocabulary is not None:
                file.attrs["vocabulary"] = vocabulary.digest

    sealed.write(Path(path), fill)


def save(folder: str | Path, arrays: QuestionArrays, vocabulary: Vocabulary) -> None:
    """Write one .npy file for each array, then `arrays.json`, without which `load` reads none."""
    folder = Path(folder)
    (folder / "arrays.json").unlink(missing_ok=True)
    for name, array in arrays.parts().items():
        sealed.write(folder / f"{name}.npy", _saver(array))
    shapes = {name: list(array.shape) for name, array in arrays.parts().items()}
    content = json.dumps({"vocabulary": vocabulary.digest, "arrays": shapes}).encode()
    sealed.write(folder / "arrays.json", lambda file: file.write(content))


def load(folder: str | Path, vocabulary: Vocabulary) -> QuestionArrays:
    """The arrays of a folder written by `save`, memory-mapped.

    Raises ValueError where the folder is not whole, or was written with another vocabulary.
    """
    folder = Path(folder)
    content = read_json(folder / "arrays.json")
    try:
        digest = str(content["vocabulary"])
        shapes = {name: tuple(shape) for name, shape in content["arrays"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'arrays.json'} was not written by this program") from error
    parts: dict[str, Any] = dict.fromkeys(_OPTIONAL)
    for name, shape in shapes.items():
        parts[name] = map_array(folder / f"{name}.npy")
        if parts[name].shape != shape:
            raise ValueError(f"{folder / name}.npy has the shape {parts[name].shape}, not {shape}")
    return _check_arrays(parts, vocabulary, digest, folder)


def _check_arrays(
    parts: dict[str, Any], vocabulary: Vocabulary, digest: str | None, where: str | Path
) -> QuestionArrays:
    """The arrays of a file; ValueError where a number leads out of the vocabulary's tables."""
    try:
        arrays = QuestionArrays(**parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if digest is not None and digest != vocabulary.digest:
        raise ValueError(
            f"{where} was encoded with the vocabulary {digest}, but this one is "
            f"{vocabulary.digest}: use that run's vocab.json, or encode the questions anew"
        )
    _check_range(arrays, "questions", len(vocabulary.question), f"{where}: a word")
    _check_range(arrays, "programs", len(vocabulary.program), f"{where}: a program token")
    _check_range(arrays, "answers", len(vocabulary.answer), f"{where}: the answer")
    for name, rows in (("question", arrays.questions), ("program", arrays.programs)):
        if rows is not None:
            _check_start(arrays, rows, f"{where}: the {name}")
    if arrays.programs is not None and arrays.types is None:
        arrays = replace(arrays, types=root_types(arrays.programs, vocabulary))
    return arrays


def _check_range(arrays: QuestionArrays, part: str, size: int, what: str) -> None:
    values, least = arrays.parts().get(part), len(SPECIAL) if part == "answers" else 0
    if values is None or not values.size or (values.min() >= least and values.max() < size):
        return
    bad = (values < least) | (values >= size)
    row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(1))[0])
    number = int(values[row][bad[row]].flat[0]) if values.ndim == 2 else int(values[row])
    raise ValueError(
        f"{what} of question {int(arrays.orig_idxs[row])} has the number {number}, but the "
        f"vocabulary's are {least} to {size - 1}: it belongs to another run"
    )


def _check_start(arrays: QuestionArrays, rows: np.ndarray, what: str) -> None:
    """Raise ValueError unless every row is START and at least one word or token more."""
    bad = np.ones(len(rows), bool)
    if rows.shape[1] > 1:
        bad = (rows[:, 0] != SPECIAL.index(START)) | (rows[:, 1] == SPECIAL.index(NULL))
    if bad.any():
        raise ValueError(
            f"{what} of question {int(arrays.orig_idxs[bad.argmax()])} is not {START} with words "
            "behind it: encode the questions anew with prepare.py"
        )


def _saver(array: np.ndarray) -> Callable[[Any], None]:
    return lambda file: np.save(file, array, allow_pickle=False)
