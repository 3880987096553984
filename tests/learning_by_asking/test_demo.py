"""Proposals about one image, by the agent of a run."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.clevr.execute import execute
from common.clevr.programs import canonical
from common.run import checkpoint
from common.run.options import Options
from learning_by_asking import data, demo
from learning_by_asking.asking.propose import Generator
from learning_by_asking.asking.relevance import Relevance
from learning_by_asking.build import build_agent
from learning_by_asking.config import MAY_CHANGE, BuiltIn, Config, Data
from learning_by_asking.language.parser import parse
from learning_by_asking.model import Answerer
from learning_by_asking.oracle.oracles import Symbolic

SPARED = 4  # questions of the beginning that were not asked about image 2


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """An agent that proposes the questions of the beginning."""
    builtin = BuiltIn(train_images=12, val_images=4, colors=["red", "blue"])
    return Config(
        budget=100,
        data=Data(name="builtin", init=40, builtin=builtin),
        answerer=Answerer(embed=8, hidden=8, layers=1, attention=8, fc=[8]),
        generator=Generator(kind="empirical", raw=64, kept=3),
        relevance=Relevance(kind="learned"),
        output_dir=str(tmp_path_factory.mktemp("demo") / "lba"),
    )


def save(cfg):
    """A checkpoint of round 7 in which image 2 was asked nearly everything; its agent."""
    world = data.build(cfg.data, cfg.seed)
    torch.manual_seed(5)  # other weights than those that a fresh agent begins with
    agent = build_agent(
        cfg,
        world,
        torch.device("cpu"),
        peek=lambda *_: [],
        generated=lambda: None,
    )
    for part in (agent.answerer, agent.relevance):
        for value in part.parameters():
            value.data.normal_()
    rows = world.init.rows
    keys = [canonical(world.words.decode_program(row)) for row in rows.programs]
    spared = set(sorted(set(keys))[:SPARED])
    asked = rows.select([i for i, key in enumerate(keys) if key not in spared])
    oracle = Symbolic(data.scenes_of(cfg.data, "train"), world.words)
    images = np.full(len(asked), 2)
    replies = oracle.ask(images, asked.programs)
    agent.memory.add(
        1,
        images=images,
        programs=asked.programs,
        answers=np.array([reply.answer for reply in replies]),
        types=asked.types,
    )
    options = Options(cfg, MAY_CHANGE)
    checkpoint.save(cfg.output_dir, 7, **agent.parts(), options=options)
    return agent, spared


@pytest.fixture(scope="module")
def saved(cfg):
    return save(cfg)


@pytest.fixture
def type_words(monkeypatch, capsys, tmp_path):
    """`python demo.py words...` in a folder of its own; what it prints, line by line."""

    def answer(*words: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, words)])
        demo.main()
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    return answer


def read_cells(lines):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]


def test_ten_proposals_come_with_scores_in_order_and_the_reply_of_the_scene(
    cfg, saved, type_words, tmp_path
):
    lines = type_words(f"run={cfg.output_dir}", "image=5")
    assert lines[0] == "Image 5, by the agent of round 7"
    head, _, *rows = read_cells(lines)
    assert head == ["question", "relevance", "score", "answer", "sure of it", "oracle"]
    assert len(rows) == 10
    scores = [float(row[2]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    scene = data.scenes_of(cfg.data, "train")[5]
    for question, relevance, *_, reply in rows:
        true = execute(parse(question), scene)
        assert reply == true.answer or (true.answer is None and reply.startswith("no answer: "))
        assert 0 <= float(relevance) <= 1
    assert lines[-1] == "proposals.png"
    with Image.open(tmp_path / "proposals.png") as image:
        assert image.width > demo.WIDTH


def test_a_question_of_the_user_is_answered_and_a_riddle_refused(cfg, saved, type_words):
    ask = "'How many red things are there?'"
    head, _, row = read_cells(type_words(f"run={cfg.output_dir}", "image=5", f"ask={ask}"))
    tokens = parse(row[0])
    assert tokens == ["count", "filter_color[red]", "scene"]
    assert row[-1] == execute(tokens, data.scenes_of(cfg.data, "train")[5]).answer
    assert (row[head.index("relevance")], row[head.index("score")]) == ("–", "–")
    small = type_words(f"run={cfg.output_dir}", "image=5", f"ask={ask.lower()}")
    assert read_cells(small)[2] == row
    with pytest.raises(ValueError, match=r"'How many unicorns\?' is not understood"):
        type_words(f"run={cfg.output_dir}", "ask='How many unicorns?'")


def test_without_scenes_there_is_no_oracle_to_compare_with(cfg, saved):
    agent, _, step = demo.restore(demo.Options(run=cfg.output_dir))
    found = demo.propose(agent, None, 5, step + 1)
    found.append(demo.answer_own(agent, None, 5, "how many cubes are there?"))
    assert len(found) == 11
    assert {(each.truth, each.wrong) for each in found} == {("–", False)}


def test_the_agent_is_that_of_the_checkpoint(cfg, saved):
    agent, _, step = demo.restore(demo.Options(run=cfg.output_dir))
    assert step == 7
    for name in ("answerer", "relevance"):
        for key, value in getattr(saved[0], name).state_dict().items():
            assert torch.equal(getattr(agent, name).state_dict()[key].cpu(), value)
    assert agent.memory.bought == saved[0].memory.bought


def test_what_was_asked_about_an_image_is_not_proposed_again(cfg, saved, type_words):
    _, _, *rows = read_cells(type_words(f"run={cfg.output_dir}", "image=2", "proposals=40"))
    assert rows
    assert {canonical(parse(row[0])) for row in rows} <= saved[1]


def test_a_wrong_folder_image_or_source_is_named(cfg, saved, type_words, tmp_path):
    with pytest.raises(ValueError, match=r"has no checkpoint: name one of .*lba"):
        type_words(f"run={Path(cfg.output_dir).parent}")
    with pytest.raises(ValueError, match=r"has no checkpoint: train that run first"):
        type_words(f"run={tmp_path}")
    with pytest.raises(ValueError, match=r"image=12: name one of the run's images, 0 to 11"):
        type_words(f"run={cfg.output_dir}", "image=12")
    other = Options(Config(source="passive", data=cfg.data), MAY_CHANGE)
    checkpoint.save(tmp_path / "passive", 1, options=other)
    with pytest.raises(ValueError, match=r"does not choose its questions \(source=passive\)"):
        type_words(f"run={tmp_path / 'passive'}")
