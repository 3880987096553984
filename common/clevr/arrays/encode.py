"""Questions as arrays: encoding, the public code's H5 files, and folders of .npy files.

N questions, Lq and Lp: longest question and program including START and END. Rows are padded with
NULL (0) on the right; programs are in prefix order. The features of the pictures that go with them
are in `maps.py`; its names can be imported from here too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...coco.files import read_json
from ...run import sealed
from ..accuracy import type_of
from ..functions import NULL, SPECIAL, START
from ..questions import Question, read_questions
from ..vocabulary import Vocabulary, program_tokens
from .maps import H5_SUFFIXES, ByImage, Features, h5py_for, mapped, open_features, open_h5

__all__ = [
    "ByImage",
    "Features",
    "QuestionArrays",
    "encode",
    "load",
    "open_features",
    "open_questions",
    "read_h5",
    "root_types",
    "save",
    "write_h5",
]

# The names in the public code's files are those of the fields, but for this one.
_H5_NAMES = {"families": "question_families"}
_H5_TYPES = {"questions": np.int32, "programs": np.int32}  # all else int64
_OPTIONAL = ("programs", "answers", "families", "types")


@dataclass(frozen=True)
class QuestionArrays:
    """N questions as numbers; what a split does not have is None. Arrays may be memory-mapped.

    image_idxs: row of the picture in the features. orig_idxs: the question's index in its split.
    types: index in `accuracy.TYPES` of the function at the program's root. -1: unknown.
    """

    questions: np.ndarray  # (N, Lq) int16
    programs: np.ndarray | None  # (N, Lp) int16
    answers: np.ndarray | None  # (N,) int64
    image_idxs: np.ndarray  # (N,) int64
    orig_idxs: np.ndarray  # (N,) int64
    families: np.ndarray | None = None  # (N,) int64
    types: np.ndarray | None = None  # (N,) int8

    def __post_init__(self) -> None:
        for name, array in self.parts().items():
            dims = 2 if name in ("questions", "programs") else 1
            if array.ndim != dims or len(array) != len(self.questions):
                raise ValueError(
                    f"{name} has the shape {array.shape}: expected {len(self.questions)} "
                    f"{'rows' if dims == 2 else 'numbers'}, one for each question"
                )

    def __len__(self) -> int:
        return len(self.questions)

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def select(self, indices: np.ndarray | Sequence[int]) -> "QuestionArrays":
        """The questions with these places, in this order; a bool (N,) selects where it is true."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        return replace(self, **{name: part[chosen] for name, part in self.parts().items()})


def encode(
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    *,
    max_question: int | None = None,
    max_program: int | None = None,
    unknown: str = "unk",
) -> QuestionArrays:
    """Number all words, program tokens and answers.

    max_question, max_program: widths of the arrays; by default those of the longest. unknown: what
    becomes of a word that the vocabulary lacks, see `Vocabulary.encode_question`.

    Raises ValueError with the question's index where one does not fit its row, where a program
    token or an answer is not in the vocabulary, and where only some have a program or an answer.
    """
    if not questions:
        raise ValueError("there are no questions to encode")
    has_programs = _all_or_none(questions, "program")
    has_answers = _all_or_none(questions, "answer")
    words, programs, answers = [], [], []
    known: dict[tuple, list[int]] = {}  # most programs occur many times
    for question in questions:
        try:
            words.append(vocabulary.encode_question(question.text, unknown=unknown))
            if has_programs:
                assert question.program is not None
                if question.program not in known:
                    ids = vocabulary.encode_program(program_tokens(question))
                    known[question.program] = ids
                programs.append(known[question.program])
            if has_answers:
                assert question.answer is not None
                answers.append(vocabulary.encode_answer(question.answer))
        except ValueError as error:
            raise ValueError(f"{_name(question)}: {error}") from error
    rows = _padded(programs, max_program, "program", questions) if has_programs else None
    families = [-1 if q.family is None else q.family for q in questions]
    return QuestionArrays(
        questions=_padded(words, max_question, "question", questions),
        programs=rows,
        answers=np.array(answers, np.int64) if has_answers else None,
        image_idxs=np.array([question.image_index for question in questions], np.int64),
        orig_idxs=np.array([question.index for question in questions], np.int64),
        families=np.array(families, np.int64) if max(families) >= 0 else None,
        types=None if rows is None else root_types(rows, vocabulary),
    )


def root_types(programs: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Question types (N,) int8 of programs (N, Lp) that begin with START; -1 for none of the 13."""
    table = np.array([type_of(token) for token in vocabulary.tokens], np.int8)
    return table[programs[:, 1]] if programs.shape[1] > 1 else np.full(len(programs), -1, np.int8)


def open_questions(path: str | Path, vocabulary: Vocabulary) -> QuestionArrays:
    """The questions of a .json file, of the public code's .h5 file, or of a folder from `save`."""
    path = Path(path)
    if path.is_dir():
        return load(path, vocabulary)
    if path.suffix in H5_SUFFIXES:
        return read_h5(path, vocabulary)
    if path.suffix == ".json":
        return encode(read_questions(path), vocabulary)
    raise ValueError(f"{path} is no questions file: expected .json, .h5 or a folder of .npy files")


def read_h5(path: str | Path, vocabulary: Vocabulary | None = None) -> QuestionArrays:
    """The questions of an H5 file of the public code.

    vocabulary: check that all numbers are in it, and give types. Types that a file has itself are
    left alone: their numbering changes from run to run of the code that wrote them.
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
    return _checked(parts, vocabulary, digest, path)


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

    vocabulary: note its digest, so that `read_h5` notices another one.
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
    """Write one .npy file for each array, then `arrays.json`; without it `load` takes nothing."""
    folder = Path(folder)
    (folder / "arrays.json").unlink(missing_ok=True)
    for name, array in arrays.parts().items():
        sealed.write(folder / f"{name}.npy", _saver(array))
    shapes = {name: list(array.shape) for name, array in arrays.parts().items()}
    content = json.dumps({"vocabulary": vocabulary.digest, "arrays": shapes}).encode()
    sealed.write(folder / "arrays.json", lambda file: file.write(content))


def load(folder: str | Path, vocabulary: Vocabulary | None = None) -> QuestionArrays:
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
        parts[name] = mapped(folder / f"{name}.npy")
        if parts[name].shape != shape:
            raise ValueError(f"{folder / name}.npy has the shape {parts[name].shape}, not {shape}")
    return _checked(parts, vocabulary, digest, folder)


def _checked(
    parts: dict[str, Any], vocabulary: Vocabulary | None, digest: str | None, where: str | Path
) -> QuestionArrays:
    """Arrays of a file, after checks that no number leads out of the vocabulary's tables."""
    try:
        arrays = QuestionArrays(**parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if vocabulary is None:
        return arrays
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


def _all_or_none(questions: Sequence[Question], part: str) -> bool:
    """Whether the questions have programs, or answers."""
    missing = [question for question in questions if getattr(question, part) is None]
    if missing and len(missing) < len(questions):
        raise ValueError(
            f"{_name(missing[0])} has no {part}, but others have: encode those with and those "
            "without it apart"
        )
    return not missing


def _name(question: Question) -> str:
    return f"question {question.index}" + (f" of {question.split}" if question.split else "")


def _padded(
    rows: list[list[int]], width: int | None, what: str, questions: Sequence[Question]
) -> np.ndarray:
    """Rows (N, width) int16 with zeros on the right; ValueError where one is longer."""
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max()) if width is None else width
    if lengths.max() > width:
        first = int((lengths > width).argmax())
        raise ValueError(
            f"{_name(questions[first])}: its {what} has {lengths[first]} tokens with START and "
            f"END, more than the {width} of max_{what}: raise that, or leave the question out"
        )
    out = np.zeros((len(rows), width), np.int16)
    out[np.arange(width) < lengths[:, None]] = np.fromiter(
        (number for row in rows for number in row), np.int16, int(lengths.sum())
    )
    return out


def _saver(array: np.ndarray) -> Callable[[Any], None]:
    return lambda file: np.save(file, array, allow_pickle=False)
