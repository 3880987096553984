"""Splits, subsets and batches of questions; files that prepare.py makes; the symbolic engine."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.clevr import builtin, questions, scene_graph
from common.clevr.arrays import question_files
from common.clevr.dataset import UNK, Questions, in_order, training_batches
from common.clevr.vocabulary import Vocabulary
from program_execution import check_data, data, prepare, train
from program_execution.config import BuiltIn, Config, Data, Evaluate, Model, Tune
from program_execution.execution.symbolic import SymbolicEngine

SMALL = BuiltIn(train_images=24, val_images=8, per_image=5, objects=[3, 5], materials=["rubber"])
FEW = builtin.Options(objects=(3, 5))
MADE = Data(name="builtin", root="", workers=0, builtin=SMALL)


def split(name: str, cfg: Data = MADE, **options: bool) -> Questions:
    return data.build(cfg, name, data.vocabulary_of(cfg, "train", name), **options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder as prepare.py makes it, from built-in questions, and those questions."""
    root = tmp_path_factory.mktemp("prepared")
    made = builtin.build(split="train", images=12, per_image=5, options=FEW)
    people = builtin.build(
        split="train",
        images=12,
        per_image=5,
        options=FEW,
        paraphrase=True,
    )
    questions.write_questions(root / "CLEVR_train_questions.json", made.questions)
    source = root / "CLEVR_train_questions.json"
    prepare.encode(source, root / "train_questions", build=True)
    prepare.encode(source, root / "val_questions.h5")
    people_root = root / "people"
    questions.write_questions(people_root / "CLEVR-Humans-train.json", people.questions)
    prepare.humans(people_root, root, splits=["train"], min_count=2)
    for name in ("train", "val"):
        np.save(root / f"{name}_features.npy", made.features)
    return root, made


def test_the_training_and_validation_scenes_differ_and_the_vocabulary_is_the_training_s():
    train, val = split("train"), split("val")
    assert train.words == val.words
    assert val.rows.questions.max() < len(train.words.words)
    features = train.features[np.arange(24)].flatten(1), val.features[np.arange(8)].flatten(1)
    assert torch.cdist(*features).min() > 0.1


def test_cubes_and_cylinders_swap_their_colours_between_a_and_b():
    def seen(name: str, shape: str) -> set[str]:
        return {t.color for g in split(name).scenes for t in g.things if t.shape == shape}

    assert not seen("trainA", "cube") & seen("valB", "cube")
    assert not seen("trainA", "cylinder") & seen("trainB", "cylinder")
    assert seen("trainA", "cube") <= {"gray", "blue", "brown", "yellow"}


@pytest.mark.parametrize("name", ["test", "trainC", "validation"])
def test_a_split_that_is_not_built_in_is_one_sentence(name):
    with pytest.raises(ValueError, match=f"no split '{name}'"):
        split(name)


def test_a_batch_holds_every_image_once_and_knows_whose_it_is():
    dataset = split("train")
    places = np.array([3, 40, 4, 3])
    batch = dataset[places]
    assert len(batch.features) == len(set(dataset.rows.image_idxs[places].tolist())) == 2
    own = dataset.features[dataset.rows.image_idxs[places]]
    assert torch.equal(batch.features[batch.image_of], own)
    assert torch.equal(batch.questions[0], batch.questions[3])
    assert (batch.questions[:, 0] == 1).all()
    assert (batch.programs[:, -1] != 0).any()  # no column of padding alone
    assert batch.names[1] == "train question 40"


@pytest.mark.parametrize("by_image", [False, True])
def test_the_batches_are_a_function_of_seed_and_step(by_image):
    dataset = split("train")
    options = {"batch_size": 10, "by_image": by_image}
    whole = [b.rows for b in training_batches(dataset, **options, seed=3, start=0, stop=9)]
    later = [b.rows for b in training_batches(dataset, **options, seed=3, start=5, stop=9)]
    assert all(np.array_equal(a, b) for a, b in zip(whole[5:], later, strict=True))
    other = training_batches(dataset, **options, seed=4, start=0, stop=1)
    assert not np.array_equal(whole[0], next(iter(other)).rows)
    images = [len(np.unique(dataset.rows.image_idxs[rows])) for rows in whole]
    assert (max(images) <= 4) == by_image


def test_every_question_is_evaluated_once():
    dataset = split("val")
    rows = np.concatenate([batch.rows for batch in in_order(dataset, 7)])
    assert np.array_equal(np.sort(rows), np.arange(len(dataset)))


def test_known_programs_are_counted_exactly_and_drawn_again_from_the_same_seed():
    dataset = split("train")
    assert len(data.select_known(dataset, 0, "first", 0)) == len(dataset)
    first = data.select_known(dataset, 30, "first", 0)
    assert np.array_equal(first.rows.orig_idxs, dataset.rows.orig_idxs[:30])
    assert np.array_equal(first.programs, dataset.programs[:30])
    a, b, c = (data.select_known(dataset, 30, "random", seed).rows.orig_idxs for seed in (0, 0, 1))
    assert len(set(a.tolist())) == 30
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    each = data.select_known(dataset, 2, "per_family", 0)
    families, counts = np.unique(each.rows.families, return_counts=True)
    assert set(families) == set(dataset.rows.families)
    there = [int((dataset.rows.families == family).sum()) for family in families]
    assert counts.tolist() == [min(2, count) for count in there]


def test_short_and_long_families_share_out_the_questions():
    cfg = replace(MADE, short=8.0)
    whole, short, long = (split(name, cfg) for name in ("val", "val:short", "val:long"))
    assert len(short) + len(long) == len(whole)
    listed = data.short_families(cfg, whole.words)
    assert set(short.rows.families) <= set(listed)
    assert not set(long.rows.families) & set(listed)
    assert all(mean < 8 for mean in listed.values())
    named = replace(MADE, short_families=[int(whole.rows.families[0])])
    assert set(split("val:short", named).rows.families) == set(named.short_families)


def test_a_split_is_cut_by_its_images():
    first, after = split("val:first3"), split("val:after3")
    assert first.rows.image_idxs.max() == 2
    assert after.rows.image_idxs.min() == 3
    assert len(first) + len(after) == len(split("val"))


def test_people_s_words_come_last_and_are_unknown_to_a_model_without_them():
    words, more = data.vocabulary_of(MADE, "train"), data.vocabulary_of(MADE, "humans_train")
    assert more.words[: len(words.words)] == words.words
    assert len(more.words) > len(words.words)
    assert more == data.vocabulary_of(MADE, "train", "humans_train")
    asked, known = data.build(MADE, "humans_val", words), data.build(MADE, "humans_val", more)
    a, b = (next(iter(in_order(each, 40))).questions for each in (asked, known))
    assert (a == UNK).sum() > (b == UNK).sum()
    assert a.max() < len(words.words)


def test_prepared_files_are_read_as_the_built_in_questions_are(prepared):
    root, made = prepared
    cfg = Data(name="clevr", root=str(root), workers=0)
    words = data.vocabulary_of(cfg, "train")
    folder, h5 = data.build(cfg, "train", words), data.build(cfg, "val", words)
    a, b = (next(iter(in_order(each, 60))) for each in (folder, h5))
    for name in ("questions", "programs", "answers", "types", "features", "image_of"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert words.decode_answer(int(a.answers[7])) == made.questions[7].answer
    people = data.build(cfg, "humans_train", data.vocabulary_of(cfg, "humans_train"))
    assert len(people) == len(folder)
    before = data.build(cfg, "humans_train", words)[np.arange(20)].questions
    assert before.max() < len(words.words)
    assert (before == UNK).any()


def test_files_of_another_vocabulary_are_refused(prepared, tmp_path):
    root, _ = prepared
    cfg = Data(name="clevr", root=str(root), workers=0)
    words = data.vocabulary_of(cfg, "train")
    table = dict(words.answer) | {"no": words.answer["yes"], "yes": words.answer["no"]}
    other = Vocabulary(words.question, words.program, table)
    with pytest.raises(ValueError, match="another vocabulary"):
        data.build(cfg, "train", other)


def test_files_that_are_missing_are_named_with_what_is_expected(prepared, tmp_path):
    root, _ = prepared
    words = Vocabulary.load(root / "vocab.json")
    cfg = Data(name="clevr", root=str(root), workers=0)
    with pytest.raises(ValueError, match=r"test_questions does not exist \(data\.root\)"):
        data.build(cfg, "test", words)
    with pytest.raises(ValueError, match="is not a folder: give data"):
        data.vocabulary_of(replace(cfg, root=str(tmp_path / "no")), "train")


def spoilt(prepared, folder, *, lacking="", features=None, split="val", **parts):
    """A copy of the prepared folder in which one split has a fault; its settings."""
    root, _ = prepared
    words = Vocabulary.load(root / "vocab.json")
    words.save(folder / "vocab.json")
    for name in ("train", "val"):
        rows = data.build(Data("clevr", str(root)), name, words).rows
        maps = np.load(root / f"{name}_features.npy")
        if name == split:
            rows = replace(rows, **{lacking: None} if lacking else {}, **parts)
            maps = maps if features is None else features(maps)
        question_files.write_h5(folder / f"{name}_questions.h5", rows, words)
        np.save(folder / f"{name}_features.npy", maps)
    return Config(data=Data("clevr", str(folder), workers=0), output_dir=str(folder / "run"))


def burnt(maps):
    maps[3, 0, 0, 0] = np.nan
    return maps


FAULTS = {
    "no answers": ({"lacking": "answers"}, "the split 'val' has no answers"),
    "no programs": ({"lacking": "programs"}, "the split 'val' has no programs"),
    "few images": (
        {"features": lambda maps: maps[:9]},
        r"question 45 of the split 'val' is about image 9, but .*val_features.npy holds images 0 "
        "to 8",
    ),
    "few images to train on": (
        {"features": lambda maps: maps[:3], "split": "train"},
        r"question 15 of the split 'train' is about image 3, but .*train_features.npy",
    ),
    "another size": (
        {"features": lambda maps: maps[:, :, 1:]},
        r"val_features.npy holds maps of 18 x 7 x 8, but those of the split 'train' are 18 x 8 x 8",
    ),
    "other channels": (
        {"features": lambda maps: maps[:, 1:]},
        "holds maps of 17 x 8 x 8, but those of the split 'train' are 18 x 8 x 8",
    ),
    "special answers": (
        {"answers": np.full(60, 2)},
        r"val_questions.h5: the answer of question 0 has the number 2, .* are 4 to",
    ),
    "no image": ({"image_idxs": np.arange(60) - 1}, "question 0 of the split 'val' is about im"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_any_split_shows_before_the_first_stage_and_in_check_data(
    fault, prepared, tmp_path
):
    options, message = FAULTS[fault]
    cfg = spoilt(prepared, tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        train.run(cfg)
    assert not list(tmp_path.rglob("*.pt"))
    with pytest.raises(ValueError, match=message):
        check_data.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "ee", "ee_programs": "ground_truth"}, "'train' has no programs: take ee_progr"),
        ({"stage": "joint", "evaluate": Evaluate(programs="ground_truth")}, "take evaluate.progra"),
        ({"stage": "joint", "model": Model(engine="symbolic")}, "no scenes: give data.scenes=FILE"),
        ({"stage": "all", "tune": Tune(5, train="humans_val")}, "humans_vocab.json does not exist"),
    ],
)
def test_what_a_stage_needs_is_asked_for_before_the_first_one(options, message, prepared, tmp_path):
    split = "train" if options["stage"] == "ee" else "val"
    cfg = spoilt(prepared, tmp_path, lacking="programs", split=split)
    if options["stage"] == "all":
        cfg = spoilt(prepared, tmp_path)
    with pytest.raises(ValueError, match=message):
        train.run(replace(cfg, **options))


def test_a_folder_without_a_fault_is_described(prepared, tmp_path, capsys):
    spoilt(prepared, tmp_path, lacking="programs")
    check_data.main([str(tmp_path), "--without-programs"])
    told = capsys.readouterr().out
    assert "train: 60 questions about 12 images, features 18 x 8 x 8" in told
    assert "0 with a program that is no well-typed tree" in told
    assert "val: 60 questions" in told
    assert "without programs" in told
    assert told.endswith("no fault found\n")
    spoilt(prepared, tmp_path, features=burnt)
    with pytest.raises(ValueError, match=r"val_features.npy: the map of image 3 holds numbers th"):
        check_data.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        check_data.main([])


def test_questions_without_programs_cannot_teach_the_generator():
    dataset = split("train")
    bare = dataset.subset(np.arange(5))
    bare.rows = replace(bare.rows, programs=None)
    with pytest.raises(ValueError, match="has no programs, but stage=pg"):
        data.select_known(bare, 0, "first", 0)


def test_true_programs_on_true_scenes_give_all_answers():
    dataset = split("val")
    engine = SymbolicEngine(dataset.words)
    batch = dataset[np.arange(len(dataset))]
    found = engine(batch.programs, dataset.scene_arrays, dataset.rows.image_idxs[batch.rows])
    assert torch.equal(found, batch.answers)
    assert not engine.find_malformed(batch.programs).any()
    broken = batch.programs.clone()
    broken[:, 3] = dataset.words.program["equal_integer"]
    assert engine.find_malformed(broken).all()


def test_generated_files_have_clevr_s_layout_and_are_right(tmp_path, capsys):
    out = str(tmp_path)
    assert prepare.main(["generate", out, "--images", "2", "--size", "96", "64"]) == 0
    file = tmp_path / "questions" / "CLEVR_train_questions.json"
    scenes = tmp_path / "scenes" / "CLEVR_train_scenes.json"
    check_data.main([f"questions={file}", f"scenes={scenes}"])
    assert "100.00 % as their answers say" in capsys.readouterr().out
    names = {row["image_filename"] for row in json.loads(file.read_text())["questions"]}
    assert names <= {path.name for path in (tmp_path / "images" / "train").iterdir()}
    with pytest.raises(ValueError, match=r"is a download .*: give .* `python prepare.py clevr"):
        check_data.main([out])
    words = ["clevr", out, f"{out}/ready", "--weights", "none"]  # of train alone, as there is
    words += ["--float32", "--workers", "0"]  # random features may be too large for float16
    assert prepare.main(words) == 0
    cfg = Data(name="clevr", root=f"{out}/ready", workers=0)
    with pytest.raises(ValueError, match=r"val_questions does not exist .* or --splits of check"):
        check_data.main([cfg.root])
    ready = data.build(cfg, "train", data.vocabulary_of(cfg, "train"))
    assert ready.features.shape == (2, 1024, 14, 14)
    assert prepare.main(words) == 0
    assert "is there already" in capsys.readouterr().out


def test_programs_that_do_not_give_their_answers_end_with_1_and_other_scenes_with_a_sentence(
    tmp_path, capsys
):
    made = builtin.build(split="train", images=2, per_image=2, options=FEW)
    file, scenes = tmp_path / "questions.json", tmp_path / "scenes.json"
    words = [f"questions={file}", f"scenes={scenes}"]
    scene_graph.write_scenes(scenes, made.scenes)
    wrong = "no" if made.questions[0].answer == "yes" else "yes"
    changed = [replace(made.questions[0], answer=wrong), *made.questions[1:]]
    questions.write_questions(file, changed)
    with pytest.raises(SystemExit, match="1"):
        check_data.main(words)
    assert "1 x another answer" in capsys.readouterr().out
    others = [replace(q, image_filename=f"CLEVR_test_{i}.png") for i, q in enumerate(changed)]
    questions.write_questions(file, others)
    with pytest.raises(ValueError, match=r"questions.json asks about CLEVR_test_0.png: give the"):
        check_data.main(words)


def test_prepare_names_what_is_wrong(tmp_path, capsys):
    assert prepare.main(["clevr", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no questions of 'train'" in capsys.readouterr().err
    bad = tmp_path / "bad.json"
    bad.write_text('{"questions": [{"question": "Is it?", "image_index": "x"}]}')
    assert prepare.main(["questions", str(bad), str(tmp_path / "out"), "--build"]) == 2
    assert "question 0" in capsys.readouterr().err
    (tmp_path / "CLEVR_trainA_questions.json").touch()
    assert prepare.main(["clevr", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "with --splits" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["answer", "program"])
def test_a_question_without_its_answer_or_program_is_named_with_its_file(
    lacking, prepared, tmp_path
):
    _, made = prepared
    source = tmp_path / "CLEVR_train_questions.json"
    spoilt_ = [replace(made.questions[0], **{lacking: None}), *made.questions[1:]]
    questions.write_questions(source, spoilt_)
    with pytest.raises(ValueError, match=f"train_questions.json: question 0 .* has no {lacking}"):
        prepare.encode(source, tmp_path / "out", build=True)


def test_the_real_questions_are_answered_by_their_programs(shared_data):
    root = shared_data / "clevr_small"
    for name in ("train", "val", "test"):
        file, scenes = questions.find_questions(root, name), root / "scenes" / name
        assert check_data.check_programs(check_data.Files(str(file), str(scenes)))["overall"] == 100
