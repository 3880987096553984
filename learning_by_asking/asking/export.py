"""What was asked as a data set: CLEVR's JSON, the public code's H5, a folder to train on.

Questions keep the place of their reply as index, so that the side file tells of each its type, the
round, and why it was chosen. Invalid ones have no answer and are left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common import files
from common.clevr.arrays import encode, question_files
from common.clevr.arrays.features import Features
from common.clevr.dataset import Questions
from common.clevr.functions import SPECIAL, START
from common.clevr.programs import from_prefix, to_list
from common.clevr.questions import Question, write_questions
from common.clevr.vocabulary import Vocabulary
from common.run import sealed

from ..language.sentences import add_words, sentence
from .history import Asked, read_history

HUMANS = "humans_"  # before the name of a split: people's questions about its images
SPLIT = "lba"
NAME = "asked_questions"
IMAGES = "CLEVR_train_{:06d}.png"


def export_asked(folder: str | Path, words: Vocabulary, *, images: str = IMAGES) -> list[Path]:
    """Write asked_questions.json, .h5, vocab.json and the side file of a run; their paths.

    images: file name of an image by its number. words: of the run; words of the sentences that it
    lacks come last in vocab.json, which the H5 file is encoded with. Without h5py there is a folder
    asked_questions of .npy files in its place. A run without a valid reply has none of these.
    """
    folder = Path(folder)
    history = read_history(folder)
    questions = to_questions(history, images=images)
    if not questions:
        return []
    words = add_words(words)
    rows = encode.encode(questions, words)
    names = (f"{NAME}.json", f"{NAME}_extra.json", "vocab.json", f"{NAME}.h5", NAME)
    json_path, side_path, words_path, h5_path, array_path = (folder / name for name in names)
    write_questions(json_path, questions)
    files.write_text(side_path, json.dumps(describe(history)) + "\n")
    words.save(words_path)
    if find_spec("h5py"):
        question_files.write_h5(h5_path, rows, words)
        return [json_path, side_path, words_path, h5_path]
    question_files.save(array_path, rows, words)
    return [json_path, side_path, words_path, array_path]


def to_questions(history: Sequence[Asked], *, images: str = IMAGES) -> list[Question]:
    """The valid ones as CLEVR's questions in split `lba`; index: place among all replies.

    The text is the program's sentence, its wording drawn by the index.
    """
    return [
        Question(
            text=sentence(asked.program, place),
            image_index=asked.image_index,
            image_filename=images.format(asked.image_index),
            split=SPLIT,
            index=place,
            answer=asked.reply,
            program=tuple(to_list(from_prefix(asked.program))),
        )
        for place, asked in enumerate(history)
        if asked.valid
    ]


def describe(history: Sequence[Asked]) -> dict[str, list]:
    """The side file: for each exported question its index, type, round and what chose it."""
    names = ("type", "round", "score", "relevance", "eps_random", "v_prob_answer", "v_entropy")
    known = [(place, asked) for place, asked in enumerate(history) if asked.valid]
    columns: dict[str, list] = {"question_index": [place for place, _ in known]}
    return columns | {name: [getattr(asked, name) for _, asked in known] for name in names}


def export_training(out: str | Path, train: Questions, tests: Mapping[str, Questions]) -> None:
    """A folder that program_execution trains on: data=clevr data.root=OUT.

    train: what the agent knows, see Memory.dataset; tests: those of the run, by split. Written are
    vocab.json, and `<split>_questions` and `<split>_features` of `train` and each test; feature
    files are linked, maps in memory written. What was asked has its program's sentence as text.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    words = add_words(train.words)
    assert train.rows.programs is not None
    rows = replace(train.rows, questions=_fill(_spell(train, words)))
    for name, split, arrays in (
        ("train", train, rows),
        *((name, test, test.rows) for name, test in tests.items()),
    ):
        question_files.save(out / f"{name}_questions", arrays, words)
        assert split.features is not None
        _place_features(out / f"{name.removeprefix(HUMANS)}_features", split.features)
    words.save(out / "vocab.json")
    if any(name.startswith(HUMANS) for name in tests):
        words.save(out / f"{HUMANS}vocab.json")  # by which people's questions are read


def _spell(train: Questions, words: Vocabulary) -> list[list[int]]:
    """The text of each question as numbers: its own, or else its program's sentence."""
    assert train.programs is not None
    rows = []
    for place, (own, program) in enumerate(zip(train.rows.questions, train.programs, strict=True)):
        if own[0] == SPECIAL.index(START):
            rows.append(own[own > 0].tolist())
        else:
            text = sentence(train.words.decode_program(program), place)
            rows.append(words.encode_question(text, unknown="error"))
    return rows


def _fill(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of different lengths as int16 (N, longest), filled up with NULL (0)."""
    out = np.zeros((len(rows), max(map(len, rows), default=0)), np.int16)
    for row, numbers in zip(out, rows, strict=True):
        row[: len(numbers)] = numbers
    return out


def _place_features(stem: Path, features: Features) -> None:
    """The features as stem.npy, or where they are a file a link to it."""
    if features.path is not None:
        link = stem.with_name(stem.name + features.path.suffix)
        link.unlink(missing_ok=True)
        link.symlink_to(features.path.resolve())
        return
    maps = features[np.arange(len(features))].numpy()
    sealed.write(stem.with_name(f"{stem.name}.npy"), lambda file: np.save(file, maps))
