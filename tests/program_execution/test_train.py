"""The stages, what passes from one to the next, resuming, evaluation, the demo and its figure."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.clevr.accuracy import TYPES
from common.clevr.dataset import trim
from common.run import checkpoint
from program_execution import data, demo
from program_execution.all_stages import stages_of, summary
from program_execution.config import BuiltIn, Config, Data, Evaluate, Model, Reinforce, Stage, Tune
from program_execution.decoding import sample
from program_execution.figures import draw, explain
from program_execution.stages import build, datasets
from program_execution.train import run, train
from program_execution.weights.initialise import initialise, weights_file

WORLD = BuiltIn(
    train_images=16,
    val_images=6,
    per_image=4,
    objects=[3, 4],
    colors=["gray", "red", "blue", "green"],
    materials=["rubber"],
    filters=2,
)
TINY = Model(
    embedding=8,
    hidden=16,
    layers=1,
    stem_layers=1,
    module_dim=8,
    classifier_proj=8,
    classifier_fc=[16],
    cnn_dim=8,
    attention_dim=8,
    baseline_fc=[16],
)
SHORT = Stage(4, 2e-3, 8, 2)  # steps, rate, questions a step, steps between validations


def settings(folder: Path, **options) -> Config:
    """A run of seconds on the built-in questions."""
    small = {
        "pg": SHORT,
        "ee": SHORT,
        "joint": SHORT,
        "tune": Tune(0, 2e-3, 8, 2),
        "baseline": SHORT,
        "data": Data(name="builtin", root="", workers=0, builtin=WORLD),
        "model": TINY,
        "evaluate": Evaluate(batch_size=16, pictures=0),
        "log_every": 1,
        "save_every": 2,
    }
    return Config(**small | options, output_dir=str(folder))


def finished(cfg: Config) -> dict[str, float]:
    """Run, and give the folders back, as a process does when it ends."""
    try:
        return run(cfg)
    finally:
        parts = stages_of(cfg) if cfg.stage == "all" else [cfg]
        for part in parts:
            checkpoint.unlock(part.output_dir)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"]["model"]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All stages from a few programs, fine-tuned on CoGenT's other colours; folder and metrics."""
    folder = tmp_path_factory.mktemp("whole")
    splits = {"train": "trainA", "val": "valA", "also": ["valB"]}
    cogent = Data("builtin", "", **splits, programs=20, workers=0, builtin=WORLD)
    tune = Tune(2, 1e-3, 8, 2, train="trainB", val="valB")
    drawn = Evaluate(batch_size=16, pictures=1)
    critic = Reinforce(baseline="self_critical", entropy=0.01)
    cfg = settings(folder, data=cogent, tune=tune, evaluate=drawn, reinforce=critic)
    return cfg, folder, finished(cfg)


def test_all_stages_leave_a_folder_each_and_figures_of_each(whole):
    _, folder, metrics = whole
    assert {"pg", "ee", "joint", "tune"} <= {path.name for path in folder.iterdir()}
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 14
    names = {"accuracy", "program_match", "malformed", "valB_accuracy", "ee_accuracy"}
    names |= {"pg_program_match", "tune_accuracy", "tune_valB_accuracy", "drop", "recovery"}
    assert names <= metrics.keys()
    assert metrics["lift"] == pytest.approx(metrics["accuracy"] - metrics["ee_accuracy"])
    lost = metrics["accuracy"] - metrics["valB_accuracy"]
    assert metrics["drop"] == pytest.approx(lost)
    won = metrics["tune_valB_accuracy"] - metrics["valB_accuracy"]
    assert metrics["recovery"] == pytest.approx(won)
    steps = [line["step"] for line in lines_of(folder)]
    assert sorted(set(steps)) == list(range(1, 15))
    for stage in ("pg", "ee", "joint", "tune"):
        with Image.open(folder / stage / "programs.png") as figure:
            assert figure.width >= 700


def test_each_stage_starts_from_the_one_before_and_changes_its_own_part(whole):
    _, folder, _ = whole
    written = checkpoint.load(folder / "pg" / "best.pt")["parts"]["model"]
    run_ = weights(folder / "ee", 4)
    generator = {name: run_[name] for name in run_ if name.startswith("generator.")}
    assert equal(written, generator)
    after = weights(folder / "joint", 4)
    assert not torch.equal(
        after["generator.decoder_linear.weight"], generator["generator.decoder_linear.weight"]
    )
    assert not torch.equal(after["engine.classifier.0.weight"], run_["engine.classifier.0.weight"])


def test_the_engine_learns_from_the_generator_s_own_programs(whole):
    cfg, folder, _ = whole
    part = replace(stages_of(cfg)[1], init=[str(folder / "pg")])
    training, _, _ = datasets(part)
    network = build(part, training)
    initialise(network, part.init[0], training.words)
    kept = np.load(folder / "ee" / "programs.npy")
    assert len(kept) == len(training)
    assert (kept[:, 0] == 1).all()
    batch = training[np.arange(len(training))]
    online = sample.greedy(network.generator, batch.questions).programs
    assert np.array_equal(kept[:, 1:], online.numpy())


def test_a_finished_run_of_all_stages_started_again_trains_nothing(whole, capsys):
    cfg, folder, metrics = whole
    before = {stage: weights(folder / stage, 2) for stage in ("pg", "joint")}
    assert finished(cfg) == {name: value for name, value in metrics.items() if value == value}
    assert "step 1/4" not in capsys.readouterr().out
    assert all(equal(before[stage], weights(folder / stage, 2)) for stage in before)


def test_a_resumed_joint_stage_ends_with_the_same_weights(whole, tmp_path):
    cfg, folder, _ = whole
    joint = replace(cfg, stage="joint", init=[str(folder / "ee")], tune=Tune())
    joint = replace(joint, reinforce=Reinforce(entropy=0.01), joint=Stage(4, 2e-3, 8))
    finished(replace(joint, output_dir=str(tmp_path / "one")))
    cut = tmp_path / "cut"
    cut.mkdir()
    name = "checkpoint-00000002.pt"
    (cut / name).write_bytes((tmp_path / "one" / name).read_bytes())
    finished(replace(joint, output_dir=str(cut)))
    assert equal(weights(tmp_path / "one", 4), weights(cut, 4))


def test_a_cosine_schedule_keeps_its_length_and_a_constant_one_may_go_on(tmp_path):
    for schedule in ("constant", "cosine"):
        cfg = settings(tmp_path / schedule, stage="pg", pg=Stage(1, 2e-3, 8, 0, schedule))
        finished(cfg)
        longer = replace(cfg, pg=replace(cfg.pg, steps=2, evaluate_every=1))
        if schedule == "cosine":
            with pytest.raises(checkpoint.CheckpointError, match=r"pg\.steps"):
                finished(longer)
        else:
            finished(longer)
            assert weights(tmp_path / schedule, 2)


def test_the_best_weights_are_the_ones_that_are_evaluated(whole):
    _, folder, _ = whole
    best = checkpoint.load(folder / "joint" / "best.pt")["meta"]["best"]["accuracy"]
    lines = lines_of(folder / "joint")
    assert best == max(line["val_accuracy"] for line in lines if "val_accuracy" in line)
    result = json.loads((folder / "joint" / "result.json").read_text())["metrics"]
    assert result["accuracy"] == pytest.approx(best)


def test_fine_tuning_the_generator_alone_leaves_the_engine(tmp_path):
    clevr = Data("builtin", "", workers=0, builtin=WORLD)
    first = settings(tmp_path / "clevr", stage="joint", joint=Stage(1, 2e-3, 8), data=clevr)
    finished(first)
    people = replace(clevr, train="humans_train", val="humans_val")
    tuned = replace(first, stage="tune", tune=Tune(2, 1e-2, 8, update="pg"), data=people)
    tuned = replace(tuned, reinforce=Reinforce(entropy=0.1))  # moves it without a right answer too
    finished(replace(tuned, init=[str(tmp_path / "clevr")], output_dir=str(tmp_path / "people")))
    before, after = weights(tmp_path / "clevr", 1), weights(tmp_path / "people", 2)
    words = "generator.encoder_embed.weight"
    assert len(after[words]) > len(before[words])
    engine = [name for name in before if name.startswith("engine.")]
    assert all(torch.equal(before[name], after[name]) for name in engine)
    assert not torch.equal(after[words][: len(before[words])], before[words])


def test_further_words_leave_the_old_rows_as_they_are(whole, tmp_path):
    cfg, folder, _ = whole
    part = replace(cfg, stage="joint", init=[str(folder / "joint")])
    old = data.vocabulary_of(cfg.data, "trainA")
    more = data.vocabulary_of(cfg.data, "trainA", "humans_train")
    training = data.build(cfg.data, "trainA", more)
    network = build(part, training)
    initialise(network, str(folder / "joint"), more)
    best = checkpoint.load(folder / "joint" / "best.pt")["parts"]["model"]
    rows = network.generator.encoder_embed.weight.detach()
    count = len(old.words)
    assert torch.equal(rows[:count], best["generator.encoder_embed.weight"])
    assert len(rows) == len(more.words)
    assert rows[count:].std().item() == pytest.approx(0.01, rel=0.5)


def test_weights_of_another_vocabulary_are_refused(whole):
    cfg, folder, _ = whole
    other = data.vocabulary_of(cfg.data, "train")
    turned = replace(
        other, question={w: i for i, w in enumerate([*other.words[:4], *other.words[:3:-1]])}
    )
    training = data.build(cfg.data, "train", turned)
    network = build(replace(cfg, stage="joint"), training)
    with pytest.raises(ValueError, match="another vocabulary"):
        initialise(network, str(folder / "joint"), turned)


def test_a_folder_of_several_stages_has_no_weights_of_its_own(whole):
    _, folder, _ = whole
    assert weights_file(str(folder / "ee")).name == "best.pt"
    assert weights_file(f"{folder}/j*nt") == folder / "joint" / "best.pt"
    with pytest.raises(ValueError, match="name the folder of one"):
        weights_file(str(folder))
    with pytest.raises(ValueError, match="2 folders match"):
        weights_file(f"{folder}/[ej]*")


def test_a_batch_that_processes_cannot_share_stops_before_the_first_stage(tmp_path, monkeypatch):
    monkeypatch.setattr("common.dist.world_size", lambda: 3)
    cfg = settings(tmp_path, pg=replace(SHORT, batch_size=9))
    with pytest.raises(ValueError, match=r"^ee.batch_size=8 cannot be shared by processes=3: cho"):
        run(cfg)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_engine_wants_a_generator_or_true_programs(tmp_path):
    with pytest.raises(ValueError, match="takes programs from a generator: give init"):
        train(settings(tmp_path, stage="ee"))


@pytest.mark.parametrize("name", ["lstm", "cnn_lstm_sa_mlp"])
def test_a_baseline_trains_and_is_fine_tuned(name, tmp_path):
    tuned = Tune(1, 1e-3, 8, train="trainB", val="valB", update="pg")
    cfg = settings(tmp_path, model=replace(TINY, name=name), tune=tuned)
    metrics = finished(cfg)
    assert {"accuracy", "tune_accuracy"} <= metrics.keys()
    before = checkpoint.load(tmp_path / "baseline" / "best.pt")["parts"]["model"]
    after = weights(tmp_path / "tune", 1)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith("baseline.rnn.") for key in changed)


def test_the_most_frequent_answers_are_counted_by_hand(tmp_path):
    cfg = settings(tmp_path, model=replace(TINY, name="qtype_mode"))
    metrics = finished(cfg)
    training, _, sets = datasets(replace(cfg, stage="baseline"))
    rows, asked = training.rows, sets["val"].rows
    right = 0
    for kind, answer in zip(asked.types, asked.answers, strict=True):
        counts = Counter(rows.answers[rows.types == kind].tolist())
        top = max(counts.values())
        right += answer == min(a for a, n in counts.items() if n == top)
    assert metrics["accuracy"] == pytest.approx(100 * right / len(asked))


def test_on_true_scenes_programs_alone_are_learned_and_judged(tmp_path):
    cfg = settings(tmp_path, model=replace(TINY, engine="symbolic"))
    metrics = finished(cfg)
    assert not (tmp_path / "ee").exists()
    assert metrics["accuracy"] == pytest.approx(metrics["executed"])
    names = weights(tmp_path / "joint", 4)
    assert all(name.startswith("generator.") for name in names)


def test_answers_alone_teach_the_generator_more_programs(tmp_path):
    world = replace(
        WORLD, train_images=200, val_images=40, per_image=6, families=["zero_hop"]
    )  # questions without a relation
    cfg = settings(
        tmp_path,
        model=replace(TINY, engine="symbolic", embedding=24, hidden=48),
        data=Data(name="builtin", root="", workers=0, builtin=world, programs=100),
        pg=Stage(150, 1e-2, 64),
        joint=Stage(150, 2e-3, 64),
        reinforce=Reinforce(grammar=True, baseline="per_type_ema"),
        beta2=0.99,
        clip=5.0,
        log_every=50,
        save_every=150,
    )
    metrics = finished(cfg)
    assert metrics["pg_executed"] < 75  # percent: 100 programs are too few
    assert metrics["executed"] > metrics["pg_executed"] + 8
    assert metrics["program_match"] > metrics["pg_program_match"] + 5


def test_images_are_seen_by_convolutions_that_learn_with_the_engine(tmp_path):
    world = replace(WORLD, train_images=4, val_images=2, features="pixels", height=32, width=32)
    cfg = settings(
        tmp_path,
        stage="ee",
        ee=Stage(1, 1e-3, 4),
        ee_programs="ground_truth",
        data=Data(name="builtin", root="", workers=0, builtin=world),
        evaluate=Evaluate(programs="ground_truth", pictures=1),
    )
    finished(cfg)
    network = build(cfg, datasets(cfg)[0])
    assert network.engine.feature_size == (32, 4, 4)
    names = weights(tmp_path, 1)
    assert any(name.startswith("pixels.") for name in names)


def test_a_question_of_ones_own_is_answered_and_drawn(whole, tmp_path, monkeypatch, capsys):
    cfg, folder, _ = whole
    from omegaconf import OmegaConf

    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.structured(cfg), folder / ".hydra" / "config.yaml")
    monkeypatch.chdir(tmp_path)
    drawing = demo.answer(demo.Options(run=str(folder / "joint"), index=1))
    assert drawing.maps is not None
    assert len(drawing.maps) == len(drawing.tokens)
    assert Path("program.png").is_file()
    asked = demo.Options(run=str(folder / "joint"), question=drawing.question, out="own.png")
    assert demo.answer(asked).truth is None
    assert Path("own.png").is_file()
    assert drawing.question in capsys.readouterr().out
    with pytest.raises(ValueError, match="the word 'zebra'"):
        demo.answer(replace(asked, question="Is there a zebra?"))
    with pytest.raises(ValueError, match="several stages"):
        demo.answer(replace(asked, run=str(folder)))


def test_figures_show_as_many_kinds_of_questions_as_there_are(whole):
    cfg, _, _ = whole
    _, _, sets = datasets(replace(cfg, stage="pg"))
    dataset = sets["valA"]
    kinds = len(np.unique(dataset.rows.types))
    chosen = explain.choose_places(dataset, kinds)
    assert len(set(dataset.rows.types[chosen].tolist())) == kinds <= len(TYPES)
    images = dataset.rows.image_idxs
    few = explain.choose_places(dataset, min(3, kinds))
    assert len(set(images[few].tolist())) == len(few)  # each about another image
    assert len(set(explain.choose_places(dataset, len(dataset) + 9))) == len(dataset)


def test_front_is_lower_in_a_scene_drawn_from_above_as_the_figure_says(whole, monkeypatch):
    scene = datasets(replace(whole[0], stage="pg"))[2]["valA"].scenes[0]
    monkeypatch.setattr(draw, "draw_ground", lambda things: things)
    rows = [row for _, row, *_ in explain.draw_from_above(scene)]
    in_front = [np.dot(thing.position, scene.directions["front"]) for thing in scene.things]
    assert np.argsort(rows).tolist() == np.argsort(in_front).tolist()  # row 0 is the uppermost
    assert "front is towards the viewer, lower in the image" in draw.DIRECTIONS


def test_a_program_is_laid_out_from_its_leaves_to_its_root():
    tokens = ["<NULL>", "<START>", "<END>", "<UNK>", "scene", "unique", "union"]
    program = torch.tensor([1, 6, 5, 4, 4, 2, 0])
    names, children = explain.read_tree(program, tokens)
    assert names == ["scene", "unique", "scene", "union"]
    assert children == [[], [0], [], [1, 2]]
    assert draw.lay_out(children) == [(0, 0), (1, 0), (0, 1), (2, 0.5)]
    short, _ = explain.read_tree(torch.tensor([6, 5, 2]), tokens)  # END is a module, then completed
    assert short == ["scene", "<END>", "unique", "scene", "union"]
    assert draw.expression(names, children) == "union(unique(scene), scene)"
    drawing = draw.Drawing("Q?", torch.zeros(3, 8, 8, dtype=torch.uint8), names, children, "yes")
    assert not drawing.misread
    assert not replace(drawing, true_program="union(unique(scene), scene)").misread
    assert replace(drawing, true_program="unique(scene)").misread


def test_the_summary_of_one_stage_is_its_own():
    cfg = Config(data=Data(name="builtin", root=""))
    assert summary({"ee": {"accuracy": 50.0}}, cfg) == {"accuracy": 50.0}
    assert trim(np.zeros((2, 3))).shape == (2, 1)
