"""Questions as arrays of numbers.

N questions, Lq and Lp: longest question and program including START and END. Rows are padded with
NULL (0) on the right; programs are in prefix order. Files of such arrays: question_files.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from ..accuracy import type_of
from ..questions import Question
from ..vocabulary import Vocabulary, program_tokens


@dataclass(frozen=True)
class QuestionArrays:
    """N questions as numbers; what a split does not have is None. Arrays may be memory-mapped.

    image_idxs: row of the image in the features. orig_idxs: index of the question in its split.
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


def encode(questions: Sequence[Question], vocabulary: Vocabulary) -> QuestionArrays:
    """Number all words, program tokens and answers; a word that the vocabulary lacks is <UNK>.

    Raises ValueError with the question's index where a program token or an answer is not in the
    vocabulary, and where only some questions have a program or an answer.
    """
    if not questions:
        raise ValueError("there are no questions to encode")
    has_programs = _all_or_none(questions, "program")
    has_answers = _all_or_none(questions, "answer")
    words, programs, answers = [], [], []
    known: dict[tuple, list[int]] = {}  # most programs occur many times
    for question in questions:
        try:
            words.append(vocabulary.encode_question(question.text))
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
    rows = _pad(programs) if has_programs else None
    families = [-1 if q.family is None else q.family for q in questions]
    return QuestionArrays(
        questions=_pad(words),
        programs=rows,
        answers=np.array(answers, np.int64) if has_answers else None,
        image_idxs=np.array([question.image_index for question in questions], np.int64),
        orig_idxs=np.array([question.index for question in questions], np.int64),
        families=np.array(families, np.int64) if max(families) >= 0 else None,
        types=None if rows is None else root_types(rows, vocabulary),
    )


def root_types(programs: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Question types (N,) int8 of programs (N, Lp) that begin with START; -1: none of the 13."""
    table = np.array([type_of(token) for token in vocabulary.tokens], np.int8)
    return table[programs[:, 1]] if programs.shape[1] > 1 else np.full(len(programs), -1, np.int8)


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


def _pad(rows: list[list[int]]) -> np.ndarray:
    """Rows (N, longest) int16 with zeros on the right."""
    lengths = np.array([len(row) for row in rows])
    out = np.zeros((len(rows), int(lengths.max())), np.int16)
    out[np.arange(out.shape[1]) < lengths[:, None]] = np.fromiter(
        (number for row in rows for number in row), np.int16, int(lengths.sum())
    )
    return out
