"""Scene graphs are out of the agent's reach, whatever functions and objects it holds."""

from dataclasses import replace
from functools import partial

import pytest

from learning_by_asking import data
from learning_by_asking import train as script

from .small import settings
from .test_wiring import FREE, prepare, reached

RESULT = {"online": 0.0, "validity": 0.0}


@pytest.mark.parametrize(
    ("draw", "kind"), [("lstm", "refreshed"), ("typed", "none"), ("lstm", "oracle")]
)
def test_the_agent_of_a_run_reaches_scene_graphs_as_an_upper_bound_alone(
    draw, kind, tmp_path, monkeypatch
):
    kept = []
    monkeypatch.setattr(script, "evaluate", lambda agent, *rest: kept.append(agent) or RESULT)
    plain = settings(tmp_path, budget=6)
    relevance, generator = replace(plain.relevance, kind=kind), replace(plain.generator, kind=draw)
    script.train(replace(plain, oracle=FREE, relevance=relevance, generator=generator))
    assert kept[0].memory.bought > 0
    assert bool(reached(kept[0])) == (kind == "oracle")


def test_scenes_behind_a_closure_a_default_a_method_or_a_partial_are_found(tmp_path):
    cfg = settings(tmp_path, oracle=FREE)
    agent, _, ledger = prepare(cfg)
    scenes = data.scenes_of(cfg.data, "train")
    for draw in (
        lambda: scenes,
        lambda held=scenes: held,
        ledger.peek,
        partial(len, scenes),
        {"scenes": [scenes]},
    ):
        assert reached(replace(agent, draw=draw))
