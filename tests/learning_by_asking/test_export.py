"""What was asked as a data set: it re-executes, reads as CLEVR does, and others train on it."""

import json

import numpy as np
import pytest

from common.clevr import builtin, vocabulary
from common.clevr.arrays import encode, question_files
from common.clevr.arrays.features import Features
from common.clevr.dataset import Questions
from common.clevr.execute import execute
from common.clevr.programs import canonical
from common.clevr.questions import read_questions
from common.clevr.vocabulary import Vocabulary, program_tokens
from learning_by_asking.asking.export import export_asked, export_training
from learning_by_asking.asking.history import read_history
from learning_by_asking.asking.memory import Memory
from learning_by_asking.language.parser import parse
from learning_by_asking.oracle.ledger import Entry, Ledger
from learning_by_asking.oracle.oracles import Symbolic
from program_execution import data as other
from program_execution.config import Data as OtherData


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes, their questions as a data set, and the vocabulary."""
    made = builtin.build(split="train", images=20, cache=tmp_path_factory.mktemp("clevr"))
    words = vocabulary.build(made.questions)
    rows = encode.encode(made.questions, words)
    return made, Questions("train", rows, words, Features(made.features)), words


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A folder where 120 questions about other images than their own were asked."""
    made, dataset, words = world
    folder = tmp_path_factory.mktemp("run")
    ledger = Ledger(Symbolic(made.scenes, words), folder, budget=120, vocabulary=words)
    places = np.random.default_rng(0).permutation(len(dataset))[:120].tolist()
    entries = [
        Entry(
            image=k % 20,
            program=tuple(words.encode_program(program_tokens(made.questions[place]))),
            type=int(dataset.rows.types[place]),
            probabilities=np.full(28, 1 / 28),
            score=k / 100,
        )
        for k, place in enumerate(places)
    ]
    replies = ledger.buy(1, entries[:60]) + ledger.buy(2, entries[60:])
    assert 20 < sum(reply.valid for reply in replies) < 100
    export_asked(folder, words, images="img_{:04d}.png")
    return folder


def test_every_exported_question_executes_to_its_answer(world, run):
    questions = read_questions(run / "asked_questions.json")
    asked = read_history(run)
    assert [question.index for question in questions] == [
        place for place, each in enumerate(asked) if each.valid
    ]
    for question in questions:
        assert question.image_filename == f"img_{question.image_index:04d}.png"
        scene = world[0].scenes[question.image_index]
        assert execute(program_tokens(question), scene).answer == question.answer
        assert tuple(program_tokens(question)) == asked[question.index].program


def test_the_text_says_the_program(run):
    for question in read_questions(run / "asked_questions.json"):
        assert canonical(parse(question.text)) == canonical(program_tokens(question))


def test_the_h5_file_holds_what_the_json_file_holds(run):
    pytest.importorskip("h5py")
    words = Vocabulary.load(run / "vocab.json")
    found = question_files.read_h5(run / "asked_questions.h5", words)
    wanted = encode.encode(read_questions(run / "asked_questions.json"), words)
    assert not (wanted.questions == words.question.get("<UNK>", 3)).any()
    for name, part in wanted.parts().items():
        np.testing.assert_array_equal(getattr(found, name), part)


def test_the_side_file_tells_of_each_question_why_it_was_asked(run):
    side = json.loads((run / "asked_questions_extra.json").read_text())
    questions = read_questions(run / "asked_questions.json")
    assert side["question_index"] == [question.index for question in questions]
    assert side["score"] == [question.index / 100 for question in questions]
    assert side["round"] == [1 if question.index < 60 else 2 for question in questions]
    assert side["type"] == [program_tokens(question)[0] for question in questions]


def test_a_run_without_a_valid_reply_exports_nothing(tmp_path):
    (tmp_path / "ask_log.jsonl").write_text("")
    assert export_asked(tmp_path, vocabulary.standard()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["ask_log.jsonl"]


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_known_becomes_a_folder_that_program_execution_reads(world, tmp_path, stored):
    made, dataset, words = world
    features = dataset.features
    if stored:
        np.save(tmp_path / "maps.npy", made.features)
        features = Features(tmp_path / "maps.npy")
    memory = Memory(dataset.rows.select(np.arange(30)))
    bought = dataset.rows.select(np.arange(50, 80))
    memory.add(
        1,
        images=bought.image_idxs,
        programs=bought.programs,
        answers=np.where(np.arange(30) % 3, bought.answers, -1),
        types=bought.types,
    )
    known = memory.dataset(words, features)
    export_training(tmp_path / "root", known, {"val": dataset})
    cfg = OtherData(name="clevr", root=str(tmp_path / "root"))
    read = other.build(cfg, "train", other.vocabulary_of(cfg, "train"))
    assert len(read) == 50
    np.testing.assert_array_equal(read.rows.answers, known.rows.answers)
    np.testing.assert_array_equal(read.rows.programs, known.rows.programs)
    np.testing.assert_array_equal(read.features[np.arange(20)], made.features)
    own = [words.decode_question(row) for row in dataset.rows.questions[:30]]
    texts = [read.words.decode_question(row) for row in read.rows.questions]
    assert texts[:30] == own  # those of the beginning keep their words
    for text, program in zip(texts[30:], read.rows.programs[30:], strict=True):
        assert canonical(parse(text)) == canonical(read.words.decode_program(program))
    test = other.build(cfg, "val", read.words)
    assert [read.words.decode_question(row) for row in test.rows.questions[:30]] == own
