"""CLEVR's scenes and questions files: the forms they come in, and what is wrong with bad ones."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest

from common.clevr.execute import execute
from common.clevr.questions import (
    Question,
    find_questions,
    read_questions,
    write_questions,
)
from common.clevr.scene_graph import (
    find_scenes,
    read_scenes,
    relations_of,
    scenes_of,
    write_scenes,
)
from common.clevr.vocabulary import program_tokens
from common.scenes.annotate import clevr_scene
from common.scenes.place import place_all
from common.scenes.world import World

RIGHT, FRONT = (0.656, 0.754, 0.0), (0.754, -0.656, 0.0)
DIRECTIONS = {
    "right": RIGHT,
    "front": FRONT,
    "left": tuple(-v for v in RIGHT),
    "behind": tuple(-v for v in FRONT),
}


def scene(index: int = 0, **changes: object) -> dict:
    """Three things in a row: 0 furthest to the left, 2 in front."""
    places = ([-2.0, -2.0, 0.7], [0.0, 0.0, 0.35], [2.0, 1.0, 0.7])
    kinds = (
        ("large", "red", "metal", "cube"),
        ("small", "gray", "rubber", "sphere"),
        ("large", "red", "rubber", "cylinder"),
    )
    rows = []
    for place, kind in zip(places, kinds, strict=True):
        row = dict(zip(("size", "color", "material", "shape"), kind, strict=True))
        rows.append(row | {"3d_coords": place, "pixel_coords": [1, 2, 9.5], "rotation": 30.0})
    relations = relations_of(places, DIRECTIONS)
    return {
        "split": "val",
        "image_index": index,
        "image_filename": f"CLEVR_val_{index:06d}.png",
        "directions": {name: list(v) for name, v in DIRECTIONS.items()},
        "objects": rows,
        "relationships": {r: [list(js) for js in lists] for r, lists in relations.items()},
    } | changes


def node(function: str, *inputs: int, value: str | None = None) -> dict:
    values = [] if value is None else [value]
    return {"function": function, "inputs": list(inputs), "value_inputs": values}


PROGRAM = [
    node("scene"),
    node("filter_color", 0, value="gray"),
    node("unique", 1),
    node("relate", 2, value="left"),
    node("count", 3),
]


def question(index: int = 0, **changes: object) -> dict:
    return {
        "split": "val",
        "image_index": 0,
        "image_filename": "CLEVR_val_000000.png",
        "question_index": index,
        "question_family_index": 72,
        "question": "How many things are left of the gray thing?",
        "answer": "1",
        "program": copy.deepcopy(PROGRAM),
    } | changes


def written(folder: Path, *rows: dict, key: str = "questions") -> Path:
    path = folder / f"{key}.json"
    path.write_text(json.dumps({"info": {}, key: rows}))
    return path


def test_relations_of_ten_placed_scenes_are_total_orders_and_those_of_the_file() -> None:
    documents = [clevr_scene(s, "val") for s in place_all(World(), 3, range(10))]
    for graph in scenes_of({"scenes": documents}):  # compares with `relationships`
        others = [set(range(len(graph))) - {i} for i in range(len(graph))]
        for one, other in (("left", "right"), ("behind", "front")):
            pairs = zip(graph.relations[one], graph.relations[other], others, strict=True)
            assert all(set(a) | set(b) == rest and not set(a) & set(b) for a, b, rest in pairs)
            assert sorted(map(len, graph.relations[one])) == list(range(len(graph)))


def test_relations_follow_the_formula_with_its_margin() -> None:
    points = np.array([[0, 0, 0], [0.19, 0, 0], [0.41, 0, 0]])
    found = relations_of(
        points, dict.fromkeys(("left", "behind", "front"), FRONT) | {"right": (1, 0, 0)}
    )
    assert found["right"] == ((2,), (2,), ())
    assert relations_of([], DIRECTIONS)["left"] == ()


def test_scenes_come_back_as_they_were_written(tmp_path: Path) -> None:
    graphs = scenes_of({"scenes": [scene(0), scene(4)]})
    write_scenes(tmp_path / "CLEVR_val_scenes.json", graphs)
    assert read_scenes(tmp_path / "CLEVR_val_scenes.json") == graphs
    assert graphs[0].things[1].color == "gray"
    assert graphs[0].things[1].position == (0.0, 0.0, 0.35)


def test_the_names_of_the_note_that_comes_with_the_data_are_read_too() -> None:
    row = scene()
    row["relations"] = row.pop("relationships")
    row["spit"] = row.pop("split")
    assert scenes_of({"scenes": [row]}) == scenes_of(scene())


def test_relations_that_a_file_lacks_are_computed() -> None:
    row = scene()
    del row["relationships"]
    assert scenes_of(row) == scenes_of(scene())


def test_relations_that_contradict_the_coordinates_are_refused_unless_asked_for() -> None:
    row = scene()
    row["relationships"]["left"] = [[], [], []]
    with pytest.raises(ValueError, match=r"scene 0 .*left of object 1.*check=False"):
        scenes_of(row)
    assert scenes_of(row, check=False)[0].relations["left"] == ((), (), ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_index": None}, "has no whole `image_index`"),
        ({"image_filename": "../secret.png"}, r"image_filename .* leads out"),
        ({"objects": None}, "is not a scene"),
        ({"objects": [{"size": "huge"}]}, r"object 0: size 'huge' is not one of small, large"),
        ({"directions": {"left": [1, 0, 0]}}, "`directions` lacks right, behind, front"),
        ({"directions": dict.fromkeys(DIRECTIONS, 1)}, "direction .* three finite numbers"),
        ({"directions": dict.fromkeys(DIRECTIONS, (1, 0, 10**400))}, "three finite numbers"),
        ({"directions": dict.fromkeys(DIRECTIONS, ("1", 0, 0))}, "three finite numbers"),
        ({"relationships": {"left": [[1], [0]]}}, "relation left needs one list for each of 3"),
        ({"relationships": {"left": [[1], [3], []]}}, r"relation left of object 1 .*\[3\]"),
        ({"relationships": {"left": [[0], [], []]}}, r"relation left of object 0 .*\[0\]"),
    ],
)
def test_a_bad_scene_is_named_with_its_fault(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"some\.json: scene 0.*{message}"):
        scenes_of({"scenes": [scene(**changes)]}, "some.json")


def test_two_scenes_of_one_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image index: 'val 4' appears twice"):
        scenes_of({"scenes": [scene(4), scene(4)]})
    with pytest.raises(ValueError, match="name a scenes file"):
        read_scenes(tmp_path)
    written(tmp_path, scene(), key="scenes")
    with pytest.raises(ValueError, match=r"holds whole splits: name .*scenes\.json"):
        read_scenes(tmp_path)


def test_the_release_and_the_public_generator_give_the_same_question(tmp_path: Path) -> None:
    public = question(
        question_family_index=0,
        template_filename="one_hop.json",
        answer=1,
        image="CLEVR_val_000000",
    )
    older = question()
    for row in public["program"]:
        row["type"] = row.pop("function")
        row["_output"] = [0]
    for row in (*older["program"], *public["program"][:2]):
        row["side_inputs"] = row.pop("value_inputs")
    released, generated, old = read_questions(written(tmp_path, question(), public, older))
    assert generated.program == old.program == released.program
    assert (generated.family, generated.answer) == (released.family, released.answer) == (72, "1")
    assert (generated.template, generated.template_index) == ("one_hop", 0)
    assert program_tokens(released) == [
        *("count", "relate[left]", "unique", "filter_color[gray]", "scene")
    ]


def test_yes_and_no_come_from_bools_before_ints(tmp_path: Path) -> None:
    rows = [question(i, answer=answer) for i, answer in enumerate([True, False, 1, 0, "yes"])]
    answers = [q.answer for q in read_questions(written(tmp_path, *rows))]
    assert answers == ["yes", "no", "1", "0", "yes"]


def test_test_questions_have_no_answer_and_human_ones_no_program(tmp_path: Path) -> None:
    row = question()
    for key in ("answer", "program", "question_family_index", "question_index"):
        del row[key]
    human = row | {"answer": "no", "question": "is the crimson ball hiding?"}
    first, second = read_questions(written(tmp_path, row, human))
    assert (first.answer, first.program, first.family) == (None, None, None)
    assert (second.answer, second.program, second.index) == ("no", None, 1)


def test_questions_come_back_as_they_were_written(tmp_path: Path) -> None:
    questions = read_questions(
        written(tmp_path, question(), question(1, answer=None, program=None))
    )
    questions.append(
        Question("How many?", 3, "x.png", "val", 2, "2", questions[0].program, 84, "zero_hop", 0)
    )
    write_questions(tmp_path / "again.json", questions)
    assert read_questions(tmp_path / "again.json") == questions


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ([node("scene"), node("juggle", 0)], "juggle"),
        ([node("scene"), node("count", 0, 0)], "count.* 2 inputs"),
        ([node("scene"), node("count", 2), node("exist", 1)], "cycle"),
        ([node("scene"), node("count", 9)], "node 9"),
        ([node("scene"), node("filter_color", 0, value="mauve"), node("count", 1)], "mauve"),
        ([node("scene"), *(node("filter_color", i, value="red") for i in range(200))], "more than"),
        ([], "no functions"),
        ([{"inputs": []}], "function 0 has no name"),
        ([None], "function 0 is not an object"),
        ("scene", "program is not a list"),
        ([node("scene"), {"function": "count", "inputs": ["0"]}], "function 1: .*whole numbers"),
        ([node("scene"), {"function": "count", "inputs": [True]}], "function 1: .*whole numbers"),
        ([node("scene"), {"function": "count", "inputs": None}], "function 1: .*whole numbers"),
        ([node("scene"), node("count", 0) | {"value_inputs": "red"}], "function 1: .*of words"),
        ([node("scene"), node("count", 0) | {"value_inputs": [["red"]]}], "function 1: .*of words"),
        ([{"function": "scene", "inputs": [], "side_inputs": ["red"]}], "scene.* has 1 value"),
    ],
)
def test_a_bad_program_is_named_by_file_and_question(
    tmp_path: Path, program: list, message: str
) -> None:
    path = written(tmp_path, question(6), question(7, program=program))
    with pytest.raises(ValueError, match=rf"questions\.json: question 7.*{message}"):
        read_questions(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " "}, "question 5 has no text"),
        ({"question": None}, "question 5 has no text"),
        ({"image_index": "0"}, "question 5 has no whole `image_index`"),
        ({"image_index": 10**400}, "question 5 has no whole `image_index`"),
        ({"question_index": "5"}, "entry 0: question_index '5'"),
        ({"image_filename": "/etc/passwd"}, "question 5: image_filename .*leads out"),
        ({"answer": 1.5}, "question 5: answer 1.5 is neither"),
        ({"question_family_index": "one"}, "question 5: question_family_index 'one'"),
    ],
)
def test_a_bad_question_is_named_by_file_and_index(
    tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"questions\.json: {message}"):
        read_questions(written(tmp_path, question(5, **changes)))


def test_a_file_that_is_cut_off_or_of_another_kind_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, question())
    text = path.read_text()
    for bad in (
        text[:-9],
        text[:-1],
        text.replace("}]}", "},]}"),
        text + "}",
        text.replace(":", ""),
    ):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"questions\.json is not JSON, or was cut off: "):
            read_questions(path)
    path.write_text(json.dumps({"questions": [], "info": {"questions": [1]}}, indent=1))
    assert read_questions(path) == []
    with pytest.raises(ValueError, match="is not a questions file"):
        read_questions(written(tmp_path, scene(), key="scenes"))


@pytest.mark.parametrize("read", [read_questions, read_scenes])
def test_what_is_no_json_text_is_named_and_utf_16_is_read(read, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for content, message in (
        (b"\xff{}", "is not UTF-8 text"),
        (b"[" * 100_000, "is nested too deeply|is not a questions file"),
        (b'{"questions": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"questions": [' + b"9" * 5000 + b"]}", "holds a number that is too long"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"file\.json {message}"):
            read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"file\.json is not a regular file"):
        read(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"file\.json does not exist"):
        read(path)
    content = {"questions": [question()]} if read is read_questions else {"scenes": [scene()]}
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32-le"):
        path.write_bytes(json.dumps(content).encode(encoding))
        assert len(read(path)) == 1


def test_both_name_schemes_of_the_human_questions_are_found(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no questions of 'val': .*CLEVR_val_questions\.json does"
    ):
        find_questions(tmp_path, "val")
    for name in ("CLEVR_humans/CLEVR_humans_val.json", "CLEVR-Humans-val.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        assert find_questions(tmp_path, "val") == path
    (tmp_path / "questions").mkdir()
    for split in ("val", "trainA"):
        path = tmp_path / "questions" / f"CLEVR_{split}_questions.json"
        path.write_text("{}")
        assert find_questions(tmp_path, split) == path


def test_all_116_real_questions_execute_to_the_given_answers(shared_data: Path) -> None:
    root = shared_data / "clevr_small"
    total = 0
    for split in ("train", "val", "test"):
        scenes = {g.image_index: g for g in read_scenes(find_scenes(root, split))}
        assert all(g.split == split for g in scenes.values())
        for q in read_questions(find_questions(root, split)):
            assert execute(program_tokens(q), scenes[q.image_index]).answer == q.answer
            assert q.template == "simple_query"
            total += 1
    assert total == 116
