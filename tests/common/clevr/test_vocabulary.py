"""CLEVR's words, tokens and answers as numbers, and the arrays and files of them."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.clevr.accuracy import TYPES
from common.clevr.arrays import encode, question_files
from common.clevr.functions import TOKENS
from common.clevr.programs import Node
from common.clevr.questions import Question, find_questions, read_questions
from common.clevr.vocabulary import Vocabulary, build, expand, program_tokens, standard, tokenize

PROGRAM = (
    Node("scene"),
    Node("filter_color", (0,), ("gray",)),
    Node("unique", (1,)),
    Node("query_shape", (2,)),
)
COUNT = (Node("scene"), Node("count", (0,)))


def ask(text: str, index: int = 0, **parts: object) -> Question:
    given: dict = {"answer": "cube", "program": PROGRAM, "family": 2} | parts
    return Question(text, index // 2, f"CLEVR_val_{index // 2:06d}.png", "val", index, **given)


QUESTIONS = [
    ask("What is the gray thing?"),
    ask("How many things; are there.", 1, answer="3", program=COUNT),
    ask("There is a thing, gray;  what is it?", 2, family=None),
]


def test_the_released_vocabulary_has_93_words_44_tokens_and_32_answers() -> None:
    tables = standard()
    assert [len(tables.question), len(tables.program), len(tables.answer)] == [93, 44, 32]
    for names in (tables.words, tables.tokens, tables.answers):
        assert names[:4] == ["<NULL>", "<START>", "<END>", "<UNK>"]
        assert names[4:] == sorted(names[4:])
    # Numbers that published models depend on.
    assert [tables.question[w] for w in ("", ";", "Are", "a", "yellow")] == [4, 5, 6, 14, 92]
    assert [tables.answer[a] for a in ("0", "1", "10", "2", "yes")] == [4, 5, 6, 7, 31]
    assert tables.program["count"] == 4
    assert tables.program["filter_color[blue]"] == 11
    assert tables.program["unique"] == 43


def test_words_are_cut_at_single_spaces_and_two_in_a_row_leave_an_empty_one() -> None:
    assert tokenize("Is it red; or a, b?") == ["Is", "it", "red", ";", "or", "a", ",", "b"]
    assert tokenize("things  than.") == ["things", "", "than"]


def test_tokens_and_answers_are_complete_unless_only_those_seen_are_wanted() -> None:
    full, seen = build(QUESTIONS), build(QUESTIONS, complete=False)
    assert (full.program, full.answer) == (standard().program, standard().answer)
    assert seen.answers[4:] == ["3", "cube"]
    assert seen.tokens[4:] == ["count", "filter_color[gray]", "query_shape", "scene", "unique"]
    assert full.words[4:9] == ["", ",", ";", "How", "There"]


def test_rare_words_are_left_out_and_become_unknown() -> None:
    tables = build(QUESTIONS, min_count=2)
    assert tables.words[4:] == [";", "gray", "is", "thing"]
    assert tables.encode_question("gray thing sits?") == [1, 5, 7, 3, 2]
    with pytest.raises(ValueError, match="the word 'sits' is not in the vocabulary"):
        tables.encode_question("gray thing sits?", unknown="error")


def test_new_words_come_last_and_old_numbers_stay() -> None:
    old = standard()
    new = expand(old, [ask("crimson ball"), ask("zany crimson ball")], min_count=2)
    assert new.words == [*old.words, "crimson"]
    assert (new.program, new.answer) == (old.program, old.answer)
    assert new.digest != old.digest


def test_decoding_gives_back_what_was_encoded() -> None:
    tables = standard()
    tokens = program_tokens(QUESTIONS[0])
    assert tokens == ["query_shape", "unique", "filter_color[gray]", "scene"]
    assert tables.decode_program([*tables.encode_program(tokens), 0, 0]) == tokens
    assert tables.decode_question(tables.encode_question("What is that?")) == "What is that"
    assert tables.decode_answer(tables.encode_answer("10")) == "10"


def test_a_vocabulary_comes_back_from_its_file(tmp_path: Path) -> None:
    tables = build(QUESTIONS)
    tables.save(tmp_path / "vocab.json")
    again = Vocabulary.load(tmp_path / "vocab.json")
    assert again == tables
    assert again.digest == tables.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("answer_token_to_idx"), "no table `answer_token_to_idx`"),
        (lambda d: d["question_token_to_idx"].update(gap=99), "'gap' the number 99"),
        (lambda d: d["question_token_to_idx"].update(twice=4), "the number 4"),
        (lambda d: d["program_token_to_idx"].update(text="5"), "a whole number to each word"),
        (lambda d: d.update(answer_token_to_idx={"yes": 0}), "must start with <NULL>"),
    ],
)
def test_a_bad_vocabulary_file_is_named(tmp_path: Path, change: object, message: str) -> None:
    document = build(QUESTIONS).document()
    change(document)  # type: ignore[operator]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"vocab\.json.*{message}"):
        Vocabulary.load(path)


def test_arrays_hold_padded_rows_with_start_and_end_and_the_types() -> None:
    tables = build(QUESTIONS)
    found = encode.encode(QUESTIONS, tables)
    assert found.questions.shape == (3, 13)
    assert found.programs is not None
    assert found.programs.shape == (3, 6)
    assert tables.decode_program(found.programs[1]) == ["count", "scene"]
    assert found.programs[1].tolist()[-2:] == [0, 0]
    assert tables.decode_question(found.questions[2]) == "There is a thing , gray ;  what is it"
    assert found.types is not None
    assert [TYPES[t] for t in found.types] == ["query_shape", "count", "query_shape"]
    assert found.families is not None
    assert found.families.tolist() == [2, 2, -1]
    assert found.image_idxs.tolist() == [0, 0, 1]
    assert found.select([2, 0]).orig_idxs.tolist() == [2, 0]
    assert len(found.select(found.image_idxs == 0)) == 2


def test_questions_without_answers_or_programs_have_no_such_arrays() -> None:
    bare = [ask("What?", i, answer=None, program=None, family=None) for i in range(2)]
    found = encode.encode(bare, standard())
    assert (found.programs, found.answers, found.families, found.types) == (None,) * 4
    with pytest.raises(ValueError, match="question 1 of val has no answer, but others have"):
        encode.encode([QUESTIONS[0], ask("What?", 1, answer=None)], standard())


def test_an_unknown_answer_or_program_token_is_named_with_its_question() -> None:
    small = build(QUESTIONS[:1], complete=False)
    with pytest.raises(ValueError, match="question 1 of val: the program token 'count' is not"):
        encode.encode(QUESTIONS, small)
    with pytest.raises(ValueError, match="question 7 of val: the answer 'a fez' is not"):
        encode.encode([ask("What?", 7, answer="a fez")], small)


def test_arrays_come_back_from_a_folder_and_from_h5(tmp_path: Path) -> None:
    tables = build(QUESTIONS)
    found = encode.encode(QUESTIONS, tables)
    question_files.save(tmp_path / "val", found, tables)
    question_files.write_h5(tmp_path / "val.h5", found, tables)
    for path in (tmp_path / "val", tmp_path / "val.h5"):
        again = question_files.open_questions(path, tables).parts()
        assert again.keys() == found.parts().keys()
        for name, array in found.parts().items():
            assert again[name].dtype == array.dtype
            assert np.array_equal(again[name], array)


def test_an_h5_file_has_the_layout_of_the_public_code(tmp_path: Path) -> None:
    question_files.write_h5(tmp_path / "val.h5", encode.encode(QUESTIONS, standard()))
    names = ("answers", "image_idxs", "orig_idxs", "programs", "question_families", "questions")
    with h5py.File(tmp_path / "val.h5") as file:
        assert tuple(sorted(file)) == names
        assert file["questions"].dtype == file["programs"].dtype == np.int32
        assert file["answers"].dtype == np.int64
        assert file["questions"][0, 0] == 1


def test_the_vocabulary_of_another_run_is_an_error(tmp_path: Path) -> None:
    mine, other = build(QUESTIONS), build(QUESTIONS[:1])
    found = encode.encode(QUESTIONS, mine)
    question_files.save(tmp_path / "val", found, mine)
    with pytest.raises(ValueError, match=r"was encoded with the vocabulary .* use that run's"):
        question_files.open_questions(tmp_path / "val", other)
    question_files.write_h5(
        tmp_path / "val.h5", found
    )  # without the digest, as the public code writes
    with pytest.raises(
        ValueError, match=r"val\.h5: a word of question 0 has the number 9, but .* are 0 to 8:"
    ):
        question_files.open_questions(tmp_path / "val.h5", other)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    tables = build(QUESTIONS)
    question_files.save(tmp_path, encode.encode(QUESTIONS, tables), tables)
    path = tmp_path / "questions.npy"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"questions\.npy is not a \.npy file, or was cut off"):
        question_files.load(tmp_path, tables)
    (tmp_path / "arrays.json").unlink()
    with pytest.raises(ValueError, match=r"arrays\.json does not exist"):
        question_files.load(tmp_path, tables)
    (tmp_path / "some.h5").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"some\.h5 is not an H5 file"):
        question_files.open_questions(tmp_path / "some.h5", tables)


def test_without_h5py_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "val.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)  # makes the import fail
    with pytest.raises(ValueError, match=r"val\.h5 needs h5py: pip install .fair-vision\[h5\]"):
        question_files.open_questions(tmp_path / "val.h5", standard())


def test_all_40_tokens_have_a_number_of_their_own() -> None:
    assert sorted(TOKENS) == standard().tokens[4:]


def test_the_real_h5_file_and_its_vocabulary_are_what_we_make_of_the_json(
    shared_data: Path,
) -> None:
    root = shared_data / "clevr_small"
    theirs = Vocabulary.load(root / "questions" / "vocab.v1.json")
    questions = read_questions(find_questions(root, "train"))
    assert build(questions, complete=False) == theirs
    file = question_files.open_questions(root / "questions" / "train_questions.v1.h5", theirs)
    own = encode.encode(questions, theirs)
    for name, array in own.parts().items():
        assert np.array_equal(file.parts()[name], array), name
