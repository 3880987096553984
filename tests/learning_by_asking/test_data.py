"""What an agent begins with, what it is asked about, and the files that both are read from."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.clevr import builtin, questions, scene_graph, vocabulary
from common.clevr.accuracy import TYPES
from common.clevr.arrays import question_files
from common.clevr.arrays.encode import QuestionArrays, encode
from common.clevr.arrays.grid import channels
from common.clevr.dataset import Questions
from common.clevr.execute import execute
from common.clevr.grammar import Grammar
from common.clevr.vocabulary import Vocabulary
from learning_by_asking import data
from learning_by_asking.asking.draws import draw_typed
from learning_by_asking.config import BuiltIn, Data
from learning_by_asking.language.sentences import sentence
from learning_by_asking.oracle.oracles import Oracle, Symbolic, open_ledger
from learning_by_asking.train import train

from .small import WORLD, settings

MADE = Data(name="builtin", init=30, builtin=WORLD)
FEW = builtin.Options(objects=(3, 5))


def keys(rows: QuestionArrays) -> Counter:
    """Questions as image and program, however the rows are padded."""
    programs = (tuple(row[row > 0].tolist()) for row in rows.programs)
    return Counter(zip(rows.image_idxs.tolist(), programs, strict=True))


# Splits


def test_what_it_begins_with_and_the_rest_are_the_training_questions():
    world = data.build(MADE, seed=5)
    whole = data.read_split(MADE, "train", world.words).rows
    assert len(world.init) == 30
    assert keys(world.init.rows) + keys(world.pool.rows) == keys(whole)
    assert world.images.tolist() == list(range(WORLD.train_images))
    again, other = data.build(MADE, seed=5), data.build(MADE, seed=6)
    assert keys(again.init.rows) == keys(world.init.rows) != keys(other.init.rows)
    assert world.feature_size == tuple(world.init.features.shape[1:])


def test_the_first_images_alone_are_asked_about():
    world = data.build(replace(MADE, images=8), seed=0)
    assert world.images.tolist() == list(range(8))
    assert max(world.init.rows.image_idxs.max(), world.pool.rows.image_idxs.max()) == 7


def test_too_few_questions_about_the_first_images_are_counted():
    with pytest.raises(ValueError, match=r"about the first 2 images: lower data.init or raise dat"):
        data.build(replace(MADE, images=2), seed=0)


def test_other_images_than_those_of_the_beginning_are_asked_about():
    world = data.build(replace(MADE, init=8, init_images="others"), seed=0)
    known = set(world.init.rows.image_idxs.tolist())
    assert known | set(world.images.tolist()) == set(range(WORLD.train_images))
    assert not known & set(world.images.tolist())
    assert set(world.pool.rows.image_idxs.tolist()) <= set(world.images.tolist())


def test_cubes_swap_their_colours_between_the_two_splits_of_cogent():
    cfg = replace(MADE, train="trainA", val="valA", also=["valB"])
    world = data.build(cfg, seed=0)
    assert list(world.tests) == ["valA", "valB"]
    colors = [
        {t.color for g in data.scenes_of(cfg, name) for t in g.things if t.shape == "cube"}
        for name in ("trainA", "valA", "valB")
    ]
    assert colors[0] | colors[1] <= {"gray", "blue", "brown", "yellow"}
    assert not (colors[0] | colors[1]) & colors[2]


def test_the_test_can_be_cut_and_lack_types_that_are_asked():
    left_out = ["exist", "query_color"]
    cfg = replace(MADE, val_questions=7, builtin=replace(WORLD, untested=left_out))
    world, whole = data.build(cfg, seed=0), data.build(MADE, seed=0)
    wanted = [kind for kind in whole.tests["val"].rows.types if TYPES[kind] not in left_out][:7]
    assert world.tests["val"].rows.types.tolist() == wanted
    assert keys(world.init.rows) == keys(whole.init.rows)


# What the maps show


def test_a_hidden_attribute_is_not_on_the_maps_and_still_in_the_scenes():
    cfg = replace(MADE, init=5, builtin=replace(WORLD, hidden=["color", "size"]))
    shown, hidden = data.build(MADE, seed=0), data.build(cfg, seed=0)
    names = channels(data.options_of(WORLD, "").world(64, 64, rendered=False))
    dark = torch.tensor([name.startswith(("color=", "size=")) for name in names])
    assert dark.sum() == 10
    for find in (lambda world: world.init, lambda world: world.tests["val"]):
        a, b = (find(world).features[np.arange(6)] for world in (shown, hidden))
        assert a[:, dark].any()
        assert not b[:, dark].any()
        assert torch.equal(a[:, ~dark], b[:, ~dark])
    assert data.scenes_of(cfg, "train") == data.scenes_of(MADE, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects_are_not_described_by_a_hidden_attribute_which_is_asked_for_all_the_same(split):
    cfg = replace(MADE, builtin=replace(WORLD, hidden=["color"]))
    words = data.find_vocabulary(MADE)
    shown, hidden = (data.read_split(each, split, words) for each in (MADE, cfg))
    spoken = [words.decode_program(row) for row in shown.rows.programs]
    left = [program for program in spoken if not any("filter_color" in part for part in program)]
    assert 0 < len(left) < len(spoken)
    assert [words.decode_program(row) for row in hidden.rows.programs] == left
    assert any("query_color" in program for program in left)


def test_scenes_of_other_images_are_told_by_the_answers_to_known_questions():
    world = data.build(MADE, seed=0)
    assert data.scenes_for(MADE, world) == data.scenes_of(MADE, "train")
    rows = world.init.rows
    other = replace(rows, answers=np.roll(rows.answers, 1))
    wrong = int((other.answers != rows.answers).sum())
    fault = rf"answer {wrong} of 30 questions of 'train' otherwise .*data\.scenes"
    with pytest.raises(ValueError, match=fault):
        data.scenes_for(MADE, replace(world, init=Questions("train", other, world.words, None)))


def test_rendered_images_are_the_features_where_these_are_pixels():
    pixels = replace(WORLD, train_images=3, val_images=2, features="pixels", height=32, width=48)
    world = data.build(replace(MADE, init=2, builtin=pixels), seed=0)
    assert world.feature_size == (3, 32, 48)
    assert world.init.features.dtype == np.uint8
    assert world.shows_images
    assert not data.build(replace(MADE, init=2), seed=0).shows_images


# Words


def test_the_vocabulary_is_that_of_the_training_questions_and_has_all_sentences_where_asked():
    plain, people, text = (
        data.build(cfg, seed=0, text=text).words
        for cfg, text in (
            (MADE, False),
            (replace(MADE, also=["humans_val"]), False),
            (MADE, True),
        )
    )
    assert people.words[: len(plain.words)] == text.words[: len(plain.words)] == plain.words
    assert len(people.words) > len(plain.words)
    for row in data.build(MADE, seed=0).init.rows.programs:
        text.encode_question(sentence(plain.decode_program(row)), unknown="error")


# Files


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data.root: train as folder and .npy, val as .h5, people's questions without programs."""
    folder = tmp_path_factory.mktemp("root")
    splits = {name: builtin.build(split=name, images=10, options=FEW) for name in ("train", "val")}
    people = builtin.build(split="val", images=10, options=FEW, paraphrase=True).questions
    words = vocabulary.build(splits["train"].questions)
    more = vocabulary.expand(words, people)
    words.save(folder / "vocab.json")
    more.save(folder / "humans_vocab.json")
    for name, made in splits.items():
        rows = encode(made.questions, words)
        if name == "train":
            question_files.save(folder / "train_questions", rows, words)
        else:
            question_files.write_h5(folder / "val_questions.h5", rows, words)
        np.save(folder / f"{name}_features.npy", made.features)
        scene_graph.write_scenes(folder / f"CLEVR_{name}_scenes.json", made.scenes)
    bare = [replace(q, program=None) for q in people]
    question_files.save(folder / "humans_val_questions", encode(bare, more), more)
    return folder


def of(root: Path, **changed) -> Data:
    scenes = str(root / "CLEVR_{split}_scenes.json")
    return replace(Data(name="clevr", root=str(root), scenes=scenes, init=20), **changed)


def test_files_give_the_questions_and_scenes_that_they_were_made_from(root):
    world = data.build(of(root), seed=0)
    for name, rows in (("val", world.tests["val"].rows), ("train", world.pool.rows)):
        made = builtin.build(split=name, images=10, options=FEW)
        assert data.scenes_of(of(root), name) == made.scenes
        assert keys(rows) <= keys(encode(made.questions, world.words))
        oracle = Symbolic(data.scenes_of(of(root), name), world.words)
        replies = oracle.ask(rows.image_idxs, rows.programs)
        assert [reply.answer for reply in replies] == rows.answers.tolist()
    assert len(world.tests["val"]) == len(builtin.build(split="val", images=10).questions)
    assert len(data.build(of(root, val_questions=9), seed=0).tests["val"]) == 9


def test_files_are_read_with_the_words_of_sentences_and_of_people_behind_their_own(root):
    own = Vocabulary.load(root / "vocab.json").words
    for cfg, text in ((of(root), True), (of(root, val="humans_val", also=["val"]), True)):
        world = data.build(cfg, seed=0, text=text)
        assert world.words.words[: len(own)] == own
        assert len(world.words.words) > len(own)
        last = {name: test.rows.questions.max() for name, test in world.tests.items()}
        assert last["val"] < len(own)
        assert last.get("humans_val", len(own)) >= len(own)


def test_an_agent_is_tested_on_people_s_questions_that_have_no_programs(root, tmp_path):
    cfg = of(root, val="humans_val", also=["val"])
    cfg = settings(tmp_path, data=cfg, question_form="text", models=["lstm"], export=True)
    metrics = train(cfg)
    assert {"online", "offline", "val_accuracy", "qtype"} <= metrics.keys()
    rows = data.build(cfg.data, 0, text=True).tests["humans_val"].rows
    shares = np.bincount(rows.answers) / len(rows.answers)
    assert metrics["qtype"] / 100 in shares  # one answer to all of them
    copied = replace(cfg.data, root=str(tmp_path / "data"), init=1)
    again = data.build(copied, 0, text=True).tests["humans_val"]
    assert again.rows.answers.tolist() == rows.answers.tolist()


def test_fresh_questions_are_about_the_images_that_are_asked_about(root, tmp_path):
    cfg = settings(tmp_path, budget=30, data=of(root, images=4, init=9))
    world = data.build(cfg.data, 0)
    rows = data.generate_questions(cfg, world)
    assert len(rows) >= 30
    assert set(rows.image_idxs.tolist()) == set(range(4))
    scenes = data.scenes_of(cfg.data, "train")
    for image, row, answer in zip(rows.image_idxs, rows.programs, rows.answers, strict=True):
        tokens = world.words.decode_program(row)
        assert execute(tokens, scenes[image]).answer == world.words.decode_answer(answer)


# Wrong files


def lose(name: str):
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def rewrite(name: str, keep: slice = slice(None), **changed):
    """Other questions of a split: some of the rows, or with some parts changed."""

    def change(root: Path) -> None:
        words = Vocabulary.load(root / "vocab.json")
        file = root / f"{name}_questions"
        file = file if file.is_dir() else file.with_suffix(".h5")
        rows = question_files.open_questions(file, words)
        rows = replace(rows.select(np.arange(len(rows))[keep]), **changed)
        lose(file.name)(root)
        question_files.save(root / f"{name}_questions", rows, words)

    return change


def narrow(root: Path) -> None:
    maps = np.load(root / "val_features.npy")
    np.save(root / "val_features.npy", maps[..., 1:])


def shorten(root: Path) -> None:
    np.save(root / "train_features.npy", np.load(root / "train_features.npy")[:9])


def reverse_words(root: Path) -> None:
    document = json.loads((root / "humans_vocab.json").read_text())
    table = document["answer_token_to_idx"]
    table["yes"], table["no"] = table["no"], table["yes"]
    (root / "humans_vocab.json").write_text(json.dumps(document))


FAULTS = {
    r"/vocab\.json does not exist \(data\.root\)": lose("vocab.json"),
    r"train_questions does not exist .*nor train_questions\.h5": lose("train_questions"),
    r"val_features\.npy does not exist .*nor val_features\.h5": lose("val_features.npy"),
    r"question \d+ of 'train' is about image 9, but .*train_features\.npy has 9 images": shorten,
    r"the maps of 'val' have the shape \(\d+, \d+, \d+\), those of 'train'": narrow,
    r"the split 'train' has no programs or no answers": rewrite("train", programs=None, types=None),
    r"the split 'val' has no answers": rewrite("val", answers=None),
    r"the split 'val' has no programs: give question_form=text": rewrite(
        "val", programs=None, types=None
    ),
    r"data\.init=20, but the split 'train' has 12 questions": rewrite("train", slice(12)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_of_the_files_is_one_sentence(message, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "root")
    FAULTS[message](copy)
    with pytest.raises(ValueError, match=message) as caught:
        data.build(of(copy), seed=0)
    assert "\n" not in str(caught.value)


def test_words_of_people_that_do_not_extend_the_others_are_named(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "root")
    reverse_words(copy)
    shutil.rmtree(copy / "humans_val_questions")
    with pytest.raises(ValueError, match=r"humans_vocab\.json does not extend vocab\.json"):
        data.build(of(copy, val="humans_val"), seed=0, text=True)


def half(scenes: list) -> list:
    return scenes[:5]


def renumbered(scenes: list) -> list:
    return [replace(scene, image_index=scene.image_index + 1) for scene in scenes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (half, "scenes of 5 images, but features of 10: data.scenes names"),
        (renumbered, "its images are not numbered 0, 1, 2"),
        (None, r"scenes\.json does not exist"),
    ],
)
def test_scenes_that_do_not_belong_to_the_images_stop_before_anything_is_learned(
    change, message, root, tmp_path
):
    file = tmp_path / "scenes.json"
    if change is not None:
        made = scene_graph.read_scenes(root / "CLEVR_train_scenes.json")
        scene_graph.write_scenes(file, change(made))
    cfg = settings(tmp_path / "run", data=of(root, scenes=str(file)))
    with pytest.raises(ValueError, match=message):
        train(cfg)
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_without_scenes_the_oracle_asks_for_them_and_a_cached_one_does_not(root, tmp_path):
    cfg = of(root, scenes="")
    with pytest.raises(ValueError, match=r"data\.scenes=FILE with \{split\} in its name"):
        data.scenes_of(cfg, "train")
    (tmp_path / "log.jsonl").touch()
    world = data.build(cfg, seed=0)
    ledger = open_ledger(
        Oracle(kind="cached", file=str(tmp_path / "log.jsonl")),
        5,
        tmp_path,
        vocabulary=world.words,
        features=world.init.features,
        find_scenes=lambda: data.scenes_of(cfg, "train"),
    )
    assert ledger.left == 5


@pytest.mark.parametrize("name", ["test", "trainC", "validation"])
def test_a_split_that_is_not_built_in_is_one_sentence(name):
    with pytest.raises(ValueError, match=f"no split '{name}'"):
        data.build_builtin(BuiltIn(), name)


def test_the_real_scenes_answer_the_real_questions_and_proposals_about_them(shared_data):
    root, total, valid = shared_data / "clevr_small", 0, 0
    words = vocabulary.standard()
    draw = draw_typed(Grammar(words.tokens, level="canonical"))
    for split in ("train", "val", "test"):
        asked = questions.read_questions(questions.find_questions(root, split))
        scenes = scene_graph.read_scenes(scene_graph.find_scenes(root, split))
        oracle, rows = Symbolic(scenes, words), encode(asked, words)
        place = {graph.image_index: i for i, graph in enumerate(scenes)}
        images = np.array([place[image] for image in rows.image_idxs.tolist()])
        replies = oracle.ask(images, rows.programs)
        assert [reply.answer for reply in replies] == rows.answers.tolist()
        total += len(asked)
        dice = torch.Generator().manual_seed(0)
        programs = draw(torch.arange(len(scenes)), torch.empty(len(scenes), 0), 50, dice)
        every = np.repeat(np.arange(len(scenes)), 50)
        replies = oracle.ask(every, programs.flatten(0, 1).numpy())
        for image, row, reply in zip(every, programs.flatten(0, 1).tolist(), replies, strict=True):
            true = execute([words.tokens[i] for i in row], scenes[image], require_end=True)
            assert reply.valid == (true.failure is None)
            valid += reply.valid
    assert total == 116
    assert valid > 50
