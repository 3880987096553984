"""How a run ends: its budget spent, nothing left to ask, no image for a process, a wrong start."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.clevr.execute import execute
from learning_by_asking import data
from learning_by_asking.ask import Policy
from learning_by_asking.asking.history import read_history
from learning_by_asking.evaluate import read_losses
from learning_by_asking.oracle.oracles import Oracle
from learning_by_asking.train import train

from .small import settings
from .test_wiring import play, prepare, saved


def test_the_best_of_a_round_alone_are_bought_until_the_budget_is_spent(tmp_path):
    train(settings(tmp_path, policy=Policy(refresh=4, global_pick=1)))
    history = read_history(tmp_path)
    assert [line.round for line in history] == list(range(1, 13))


def test_a_run_ends_after_all_images_where_none_has_a_new_question(tmp_path, capsys):
    few = replace(settings(tmp_path).data, images=2, init=8)
    cfg = settings(tmp_path, source="passive_active", budget=40, data=few, save_every=100)
    metrics = train(cfg)
    left = 40 - int(metrics["bought"])
    assert 0 < left < 40
    assert f"{left} of 40 replies were not bought: no image has a new question." in (
        capsys.readouterr().out
    )
    last = max(line.round for line in read_history(tmp_path))
    # All images come in a round of six, so that the second round without a question is the last.
    step = json.loads((tmp_path / "result.json").read_text())["steps"]
    assert step == last + 2
    parts, earlier = saved(tmp_path, step), saved(tmp_path, 0)
    assert parts["ledger"]["calls"] == metrics["bought"]
    assert any(
        not torch.equal(value, earlier["answerer"][name])
        for name, value in parts["answerer"].items()
    )


def test_a_run_without_a_valid_reply_exports_what_it_began_with(tmp_path):
    cfg = settings(tmp_path, budget=0, export=True)
    train(cfg)
    root, known = tmp_path / "data", data.build(cfg.data, cfg.seed).init.rows
    rows = data.read_files(root, "train", data.load_vocabulary(root, "train"))[0]
    assert rows.answers.tolist() == known.answers.tolist()
    assert not (tmp_path / "asked_questions.json").exists()


def test_a_round_without_a_question_learns_nothing(tmp_path):
    few = replace(settings(tmp_path).data, images=2, init=8)
    ends = [
        settings(tmp_path / str(budget), source="passive_active", budget=budget, data=few)
        for budget in (4, 40)
    ]
    metrics = [train(cfg) for cfg in ends]
    assert metrics[0]["bought"] == metrics[1]["bought"] == 4
    assert metrics[0]["online"] == metrics[1]["online"]
    weights = [
        saved(Path(cfg.output_dir), step)["answerer"]
        for cfg, step in zip(ends, (3, 5), strict=True)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])


@pytest.mark.parametrize("source", ["lba", "passive"])
def test_a_process_without_an_image_takes_part(source, tmp_path):
    agent, _, ledger = prepare(settings(tmp_path, source=source))
    agent.begin()
    none = np.zeros(0, np.int64)
    proposals = agent.propose(1, none)
    chances = agent.answer(proposals)
    assert chances.shape == (0, proposals.tokens.shape[1], 28)
    scores = agent.score(1, proposals, chances)
    choice = agent.choose(1, scores, proposals, ledger.left)
    entries = agent.describe(proposals, chances, scores, choice, ledger.left)
    assert ledger.buy(1, entries) == entries == []


def test_invalid_replies_that_cost_nothing_leave_the_whole_budget_to_learn_from(tmp_path):
    cfg = settings(tmp_path, oracle=Oracle(cost_invalid=0), budget=6)
    agent, world, ledger = prepare(cfg)
    agent.begin()
    step = 0
    while ledger.left:
        step += 1
        play(agent, ledger, step)
    assert ledger.calls > ledger.spent == ledger.valid == 6
    features = world.init.features
    sizes = [len(agent.memory.dataset(world.words, features, most)) for most in (0, 2, 6, None)]
    assert sizes == [40, 42, 46, 46]


def test_replies_are_about_the_images_that_are_asked_about_not_their_places(tmp_path):
    other = replace(settings(tmp_path).data, init=8, init_images="others")
    cfg = settings(tmp_path, data=other)
    world = data.build(cfg.data, cfg.seed)
    assert 0 < len(world.images) < world.images.max() + 1
    train(cfg)
    history = read_history(tmp_path)
    scenes = data.scenes_of(cfg.data, "train")
    assert {line.image_index for line in history} <= set(world.images.tolist())
    replies = [execute(line.program, scenes[line.image_index]).answer for line in history]
    assert replies == [line.reply for line in history]


def test_what_is_no_program_costs_one_and_the_run_goes_on(tmp_path):
    cfg = settings(tmp_path)
    free = replace(cfg.generator, kind="lstm", mask=False, temperature=5.0)
    metrics = train(replace(cfg, generator=free))
    reasons = {line.reason for line in read_history(tmp_path)}
    assert reasons & {"underflow", "trailing", "type_error", "no_end", "unknown"}
    assert metrics["bought"] == 12
    assert all(math.isfinite(value) for name, value in metrics.items() if "order" not in name)


def test_losses_before_it_asked_are_of_all_types_also_those_that_the_test_lacks(tmp_path):
    plain = settings(tmp_path)
    world = replace(plain.data.builtin, untested=["query_color"])
    cfg = replace(plain, data=replace(plain.data, builtin=world))
    train(cfg)
    assert "query_color" in read_losses(tmp_path)
    assert read_losses(tmp_path / "elsewhere") == {}


def test_answerer_and_relevance_have_convolutions_where_there_are_images(tmp_path):
    plain = settings(tmp_path, budget=6)
    world = replace(plain.data.builtin, features="pixels", height=16, width=24)
    relevance = replace(plain.relevance, kind="learned")
    train(replace(plain, data=replace(plain.data, builtin=world), relevance=relevance))
    parts, first = saved(tmp_path, 1), saved(tmp_path, 0)
    for name in ("answerer", "relevance"):
        assert any("convolutions" in key for key in parts[name]), name
    moved = [key for key, value in parts["answerer"].items() if "convolutions" in key
             and not torch.equal(value, first["answerer"][key])]  # fmt: skip
    assert len(moved) == 6


def test_the_template_generator_is_refused_where_an_attribute_is_hidden(tmp_path):
    plain = settings(tmp_path, source="generator_passive")
    dark = replace(plain.data, init=5, builtin=replace(plain.data.builtin, hidden=["color"]))
    with pytest.raises(ValueError, match=r"generator_passive .* data\.builtin\.hidden"):
        train(replace(plain, data=dark))


def test_a_test_that_lacks_every_type_is_refused(tmp_path):
    plain = settings(tmp_path)
    names = ["exist", "count", "query_size", "query_shape", "query_material", "query_color"]
    world = replace(plain.data.builtin, untested=names)
    with pytest.raises(ValueError, match="the split 'val' has no question"):
        data.build(replace(plain.data, builtin=world), seed=0)
