"""What a run is tested on, and the files that say what it asked."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.clevr.arrays.encode import QuestionArrays
from common.clevr.questions import read_questions
from common.data import seed_everything, seed_of
from common.run import checkpoint
from learning_by_asking import data
from learning_by_asking.asking.history import read_history
from learning_by_asking.asking.learn import accuracy, train_answerer
from learning_by_asking.build import new_answerer
from learning_by_asking.config import Config, Learn
from learning_by_asking.evaluate import columns, evaluate, learn_offline
from learning_by_asking.train import train

from .small import settings
from .test_wiring import play, prepare


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Config, dict[str, float]]:
    folder = tmp_path_factory.mktemp("run")
    cfg = settings(
        folder, source="passive", models=["sa", "lstm"], offline_at=[0, 5], evaluate_every=1
    )
    cfg = replace(cfg, export=True, data=replace(cfg.data, also=["valB", "humans_val"]))
    return cfg, train(replace(cfg, question_form="text"))


def score(network: torch.nn.Module, world: data.World) -> tuple[float, float]:
    """Percent right of all questions, and the mean of the types, one question at a time."""
    test = next(iter(world.tests.values()))
    network.eval()
    right: dict[int, list[bool]] = {}
    for i in range(len(test)):
        image = test.features[test.rows.image_idxs[i : i + 1]]
        words = torch.from_numpy(test.rows.questions[i : i + 1].astype(np.int64))
        with torch.no_grad():
            found = network(words, image, torch.zeros(1, dtype=torch.int64)).argmax(1).item()
        right.setdefault(int(test.rows.types[i]), []).append(found == test.rows.answers[i])
    every = [each for group in right.values() for each in group]
    return 100 * float(np.mean(every)), 100 * float(np.mean([np.mean(g) for g in right.values()]))


def test_the_online_figures_are_those_of_the_answerer_as_it_stands(run):
    cfg, metrics = run
    world = data.build(cfg.data, cfg.seed, text=True)
    network = new_answerer(cfg.answerer, world, "text")
    parts = checkpoint.load(Path(cfg.output_dir) / "checkpoint-00000002.pt")["parts"]
    network.load_state_dict(parts["answerer"])
    online, macro = score(network, world)
    assert metrics["online"] == pytest.approx(online)
    assert metrics["online_macro"] == pytest.approx(macro)


def test_there_is_a_figure_for_each_model_budget_and_split(run):
    cfg, metrics = run
    wanted = {"offline", "offline_0", "offline_5", "offline_macro", "valB_accuracy"}
    wanted |= {"humans_val_accuracy", "lstm_offline", "lstm_offline_0", "lstm_offline_5"}
    wanted |= {"lstm_valB_accuracy", "online", "online_macro", "validity", "qtype", "bought"}
    assert wanted <= metrics.keys()
    assert "offline_12" not in metrics
    assert all(0 <= metrics[name] <= 100 for name in wanted)
    assert metrics["bought"] == metrics["valid"] == 12
    assert metrics["validity"] == 100
    assert columns(cfg) == ("online", "offline", "validity")
    assert columns(replace(cfg, models=[])) == ("online", "validity")


def test_the_online_accuracy_is_also_logged_during_the_run(run):
    cfg, metrics = run
    text = (Path(cfg.output_dir) / "metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if "online" in line]
    assert [(line["step"], line["asked"]) for line in lines] == [(1, 0), (1, 6), (2, 12)]
    assert lines[-1]["online"] == pytest.approx(metrics["online"], rel=1e-4)


def known(cfg: Config) -> tuple[QuestionArrays, list[tuple[str, str]]]:
    """The questions of the test; type and answer of everything that was learned from."""
    world = data.build(cfg.data, cfg.seed, text=True)
    rows = world.init.rows
    given = [
        (world.words.decode_program(program)[0], world.words.decode_answer(answer))
        for program, answer in zip(rows.programs, rows.answers, strict=True)
    ]
    bought = [(line.program[0], line.reply) for line in read_history(cfg.output_dir)]
    return next(iter(world.tests.values())).rows, given + bought


def test_qtype_is_the_most_frequent_answer_of_each_type(run):
    cfg, metrics = run
    test, learned = known(cfg)
    words = data.build(cfg.data, cfg.seed, text=True).words
    counts: dict[str, dict[int, int]] = {}
    for kind, answer in learned:
        of_kind = counts.setdefault(kind, {})
        of_kind[words.answer[answer]] = of_kind.get(words.answer[answer], 0) + 1
    right = 0
    for program, answer in zip(test.programs, test.answers, strict=True):
        of_kind = counts.get(words.decode_program(program)[0], {})
        best = max(sorted(of_kind), key=lambda each: of_kind[each], default=-1)
        right += best == answer
    assert metrics["qtype"] == pytest.approx(100 * right / len(test.answers))


def test_the_offline_figure_is_the_mean_of_several_learners(tmp_path):
    cfg = settings(tmp_path, source="passive", models=["lstm"], offline_learners=2)
    agent, world, ledger = prepare(cfg)
    agent.begin()
    for step in (1, 2):
        play(agent, ledger, step)
    metrics = evaluate(agent, cfg, world, ledger)
    main = next(iter(world.tests.values()))
    learned = [learn_offline(agent, cfg, world, "lstm", cfg.budget, number) for number in (0, 1)]
    weights = [next(model.parameters()) for model in learned]
    assert not torch.equal(*weights)
    for column, kind in (("offline", "accuracy"), ("offline_count", "count")):
        figures = [accuracy(model, main)[kind] for model in learned]
        assert metrics[column] == pytest.approx(sum(figures) / 2)


def test_an_offline_answerer_goes_on_to_learn_from_people_s_questions(tmp_path):
    plain = settings(tmp_path, source="passive", models=["lstm"], question_form="text")
    people = replace(plain.data, val="humans_val", finetune="humans_train", val_questions=20)
    tune = Learn(steps=200, lr=2e-2, batch_size=7, weight_decay=1e-4)
    cfg = replace(plain, data=people, finetune=tune)
    agent, world, ledger = prepare(cfg)
    agent.begin()
    for step in (1, 2):
        play(agent, ledger, step)
    metrics = evaluate(agent, cfg, world, ledger)
    assert len(world.finetune) > len(world.tests["humans_val"]) == 20
    network = learn_offline(agent, cfg, world, "lstm", cfg.budget)
    before = accuracy(network, world.tests["humans_val"], form="text")["accuracy"]
    seed = seed_of(cfg.seed, 2, 0)
    train_answerer(network, world.finetune, **vars(tune), seed=seed, form="text")
    after = accuracy(network, world.tests["humans_val"], form="text")["accuracy"]
    assert (metrics["offline"], metrics["finetuned"]) == (before, after)
    assert before != after


def test_an_offline_answerer_learns_afresh_from_the_first_replies_alone(tmp_path):
    slow = Learn(steps=2, lr=2e-3, batch_size=8, weight_decay=0.5)
    cfg = settings(tmp_path, source="passive", offline=slow)
    agent, world, ledger = prepare(cfg)
    agent.begin()
    for step in (1, 2):
        play(agent, ledger, step)
    found = {
        budget: learn_offline(agent, cfg, world, "lstm", budget).state_dict() for budget in (5, 12)
    }
    first = agent.memory.dataset(world.words, world.init.features)
    first = first.subset(np.arange(cfg.data.init + 5))
    seed_everything(seed_of(cfg.seed, 1, 50))
    network = new_answerer(replace(cfg.answerer, name="lstm"), world, "program")
    learn = vars(slow) | {"seed": seed_of(cfg.seed, 1, 51)}
    train_answerer(network, first, **learn)
    for name, value in network.state_dict().items():
        assert torch.equal(found[5][name], value)
    assert any(not torch.equal(found[12][name], value) for name, value in found[5].items())


def test_the_folder_holds_the_curriculum_and_the_questions(run):
    cfg, metrics = run
    folder, history = Path(cfg.output_dir), read_history(cfg.output_dir)
    for name in ("curriculum.png", "questions.png", "first_losses.json", "data/vocab.json"):
        assert (folder / name).stat().st_size > 0
    rows = list(csv.DictReader((folder / "curriculum.csv").open()))
    assert rows
    asked = list(read_questions(folder / "asked_questions.json"))
    assert [question.answer for question in asked] == [line.reply for line in history]
    assert [question.image_index for question in asked] == [line.image_index for line in history]
    for kind in {line.type for line in history}:
        places = [(i + 0.5) / 12 for i, line in enumerate(history) if line.type == kind]
        if f"time_{kind}" in metrics:
            assert metrics[f"time_{kind}"] == pytest.approx(100 * np.mean(places))
    assert any(name.startswith("time_") for name in metrics)


def test_what_was_learned_from_is_written_as_a_data_root(run):
    cfg, _ = run
    root = Path(cfg.output_dir) / "data"
    read = replace(cfg.data, name="clevr", root=str(root), init=1)
    world = data.build(read, 0, text=True)
    assert len(world.init) + len(world.pool) == cfg.data.init + 12
    for name, test in data.build(cfg.data, 0, text=True).tests.items():
        assert world.tests[name].rows.answers.tolist() == test.rows.answers.tolist()
        maps, written = (each.features[np.arange(6)] for each in (test, world.tests[name]))
        assert torch.equal(maps, written)


def test_a_run_without_a_valid_reply_draws_no_curriculum(tmp_path):
    metrics = train(settings(tmp_path, budget=0))
    assert metrics["bought"] == metrics["validity"] == 0
    assert not (tmp_path / "curriculum.csv").exists()
    assert "online" in metrics
