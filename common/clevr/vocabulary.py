"""Words, program tokens and answers as numbers, with the numbering of the published models.

Every table starts with <NULL> 0, <START> 1, <END> 2, <UNK> 3; the others follow in the order of
their character codes. Words that are added later come last, so that old numbers stay.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..coco.files import read_json
from ..run import sealed
from .functions import ANSWERS, END, NULL, SPECIAL, START, TOKENS
from .programs import to_prefix, to_tree
from .questions import Question

_RELEASED_WORDS = """
Are Do Does How Is The There What a an and another any anything are as ball balls behind big block
blocks blue both brown color cube cubes cyan cylinder cylinders does either else equal fewer front
gray greater green has have how in is it its large left less made many material matte metal metallic
more number object objects of on or other purple red right rubber same shape shiny side size small
sphere spheres than that the there thing things tiny to visible what yellow
"""
# The words of CLEVR v1.0's training questions. The empty one is what two spaces in a row leave.
RELEASED_WORDS = ("", ";", *_RELEASED_WORDS.split())


def tokenize(text: str) -> list[str]:
    """The words of a question, split as in the public code.

    `;` and `,` are words of their own, `?` and `.` vanish, and case stays. The text is split at
    every space, so that two in a row leave an empty word; published models have it in their table.
    """
    for mark in ";,":
        text = text.replace(mark, f" {mark}")
    for mark in "?.":
        text = text.replace(mark, "")
    return text.split(" ")


def program_tokens(question: Question) -> list[str]:
    """The program's tokens in prefix order, the root first; ValueError where it has no program."""
    if question.program is None:
        raise ValueError(f"question {question.index} of {question.split!r} has no program")
    return to_prefix(to_tree(question.program))


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of the words of questions, of program tokens and of answers."""

    question: dict[str, int]
    program: dict[str, int]
    answer: dict[str, int]

    def __post_init__(self) -> None:
        for part, key in _KEYS.items():  # in the order of the numbers, which `words` etc. rely on
            object.__setattr__(self, part, _table(getattr(self, part), "vocabulary", key))

    @cached_property
    def words(self) -> list[str]:
        """Words of questions by number."""
        return list(self.question)

    @cached_property
    def tokens(self) -> list[str]:
        """Program tokens by number."""
        return list(self.program)

    @cached_property
    def answers(self) -> list[str]:
        """Answers by number."""
        return list(self.answer)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that differ for any other numbering."""
        return hashlib.sha256(json.dumps(self.document()).encode()).hexdigest()[:16]

    def document(self) -> dict[str, dict[str, int]]:
        """The content of vocab.json."""
        return {name: dict(getattr(self, part)) for part, name in _KEYS.items()}

    def save(self, path: str | Path) -> None:
        """Write vocab.json, readable by the public code, whole or not at all."""
        sealed.write(Path(path), lambda file: file.write(json.dumps(self.document()).encode()))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read vocab.json. Raises ValueError naming the file and what is wrong with it."""
        return cls.of(read_json(path), str(path))

    @classmethod
    def of(cls, document: Any, where: str = "vocabulary") -> "Vocabulary":
        """The vocabulary of vocab.json's content, as published checkpoints hold it too."""
        if not isinstance(document, Mapping):
            raise ValueError(f"{where} is not a vocabulary: expected an object with three tables")
        return cls(**{part: _table(document.get(key), where, key) for part, key in _KEYS.items()})

    def encode_question(self, text: str, *, unknown: str = "unk") -> list[int]:
        """Numbers of the words between START and END.

        unknown: "unk" puts <UNK> for a word that is not in the table, "error" raises ValueError.
        """
        words = tokenize(text)
        if unknown not in ("unk", "error"):
            raise ValueError(f"unknown is {unknown!r}: choose 'unk' or 'error'")
        if unknown == "error":
            return _encode(words, self.question, "the word")
        return [1, *(self.question.get(word, 3) for word in words), 2]

    def encode_program(self, tokens: Sequence[str]) -> list[int]:
        """Numbers of program tokens between START and END. Raises ValueError for an unknown one."""
        return _encode(tokens, self.program, "the program token")

    def encode_answer(self, answer: str) -> int:
        """Number of an answer. Raises ValueError for an unknown one."""
        if answer not in self.answer:
            raise ValueError(f"the answer {answer!r} is not in the vocabulary")
        return self.answer[answer]

    def decode_question(self, ids: Iterable[int]) -> str:
        """The words of a row up to END, joined by spaces."""
        return " ".join(_decode(ids, self.words))

    def decode_program(self, ids: Iterable[int]) -> list[str]:
        """The program tokens of a row up to END, without START and NULL."""
        return _decode(ids, self.tokens)

    def decode_answer(self, number: int) -> str:
        """The answer with this number."""
        return self.answers[number]


_KEYS = {
    "question": "question_token_to_idx",
    "program": "program_token_to_idx",
    "answer": "answer_token_to_idx",
}


def standard() -> Vocabulary:
    """The vocabulary of CLEVR v1.0 and of the published models: 93 words, 44 tokens, 32 answers."""
    return Vocabulary(_number(RELEASED_WORDS), _number(TOKENS), _number(ANSWERS))


def build(
    questions: Iterable[Question],
    *,
    min_count: int = 1,
    complete: bool = True,
) -> Vocabulary:
    """The vocabulary of training questions.

    min_count: how often a word must occur. complete: number all of CLEVR's tokens and answers,
    whether they occur or not, as the released tables do.
    """
    words: Counter[str] = Counter()
    tokens = set(TOKENS) if complete else set()
    answers = set(ANSWERS) if complete else set()
    for question in questions:
        words.update(tokenize(question.text))
        if question.program is not None:
            tokens.update(program_tokens(question))
        if question.answer is not None:
            answers.add(question.answer)
    return Vocabulary(
        question=_number(_frequent(words, min_count)),
        program=_number(sorted(tokens)),
        answer=_number(sorted(answers)),
    )


def expand(vocabulary: Vocabulary, questions: Iterable[Question], min_count: int = 1) -> Vocabulary:
    """The vocabulary with the further words that these questions have `min_count` times or more.

    They come last, sorted, so that a model only gains rows; tokens and answers stay as they are.
    """
    words: Counter[str] = Counter()
    for question in questions:
        words.update(tokenize(question.text))
    table = dict(vocabulary.question)
    for word in _frequent(words, min_count):
        table.setdefault(word, len(table))
    return Vocabulary(table, dict(vocabulary.program), dict(vocabulary.answer))


def _frequent(words: Counter[str], min_count: int) -> list[str]:
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}: choose 1 or more")
    return sorted(word for word, count in words.items() if count >= min_count)


def _number(names: Sequence[str]) -> dict[str, int]:
    """Name -> number, the special ones first."""
    rest = [name for name in names if name not in SPECIAL]
    return {name: number for number, name in enumerate((*SPECIAL, *rest))}


def _table(values: Any, where: str, key: str) -> dict[str, int]:
    """One table, in the order of its numbers, which must be 0, 1, 2, ... without a gap."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} has no table `{key}`")
    if not all(isinstance(name, str) and type(n) is int for name, n in values.items()):
        raise ValueError(f"{where}: `{key}` must give a whole number to each word")
    table = dict(sorted(values.items(), key=lambda item: item[1]))
    wrong = [name for place, (name, n) in enumerate(table.items()) if n != place]
    if wrong:
        raise ValueError(
            f"{where}: `{key}` gives {wrong[0]!r} the number {table[wrong[0]]}: the numbers must "
            f"be 0..{len(table) - 1}, each once"
        )
    if tuple(table)[:4] != SPECIAL:
        raise ValueError(f"{where}: `{key}` must start with {', '.join(SPECIAL)}")
    return table


def _encode(names: Sequence[str], table: Mapping[str, int], what: str) -> list[int]:
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ValueError(f"{what} {unknown[0]!r} is not in the vocabulary")
    return [table[START], *(table[name] for name in names), table[END]]


def _decode(ids: Iterable[int], names: Sequence[str]) -> list[str]:
    """Names of a row up to END, without START and NULL."""
    out = []
    for number in ids:
        name = names[int(number)]
        if name == END:
            break
        if name not in (START, NULL):
            out.append(name)
    return out
