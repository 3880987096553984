"""Settings: all experiments compose, and what does not go together stops with one sentence."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config import to_dataclass
from common.errors import UserError
from common.run.checkpoint import CheckpointError
from learning_by_asking.config import MAY_CHANGE, Config
from learning_by_asking.train import train

from .small import settings

CONF = Path(__file__).resolve().parents[2] / "learning_by_asking" / "conf"
BUILTIN = "data.builtin."


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def groups(*words: str) -> DictConfig:
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*words, "output_dir=unused"])


def read(*words: str, **changed: Any) -> Config:
    """The settings that these words give, with dotted options changed."""
    cfg = groups(*words).copy()
    for key, value in changed.items():
        OmegaConf.update(cfg, key, value)
    return to_dataclass(cfg)


def look_up(cfg: Config, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("experiment", names("experiment"))
@pytest.mark.parametrize("kind", names("data"))
def test_every_experiment_composes_with_every_data(experiment, kind):
    root = {} if kind == "builtin" else {"data.root": "/x"}
    cfg = read(f"experiment={experiment}", f"data={kind}", **root)
    assert cfg.data.name == ("builtin" if kind == "builtin" else "clevr")
    assert cfg.budget > 0


def test_the_paper_s_experiment_has_the_defaults_of_the_dataclasses():
    cfg, plain = read("experiment=paper", "data=clevr"), Config()
    for key in ("budget", "source", "question_form", "policy", "answerer", "start", "offline"):
        assert look_up(cfg, key) == look_up(plain, key), key


WRONG = [
    ({"start.lr": 0.0}, "start.lr"),
    ({"start.steps": -1}, "start.steps"),
    ({"offline.batch_size": 0}, "offline.batch_size"),
    ({"offline.weight_decay": -0.1}, "offline.weight_decay"),
    ({"init": "x.pt", "answerer.name": "film"}, "answerer.name=sa"),
    ({"source": "own"}, "source"),
    ({"question_form": "speech"}, "question_form"),
    ({"budget": -1}, "budget"),
    ({"evaluate_every": -1}, "evaluate_every"),
    ({"log_every": 0}, "log_every"),
    ({"save_every": 0}, "save_every"),
    ({"processes": -1}, "processes"),
    ({"threads": -1}, "threads"),
    ({"offline_at": [10**9]}, "offline_at"),
    ({"relevance.kind": "oracle"}, "oracle.relevance_free"),
    ({"policy.score": "oracle_loss"}, "oracle.relevance_free"),
    ({"policy.score": "best"}, "policy.score"),
    ({"policy.factor": "image"}, "policy.factor"),
    ({"policy.epsilon": 1.5}, "policy.epsilon"),
    ({"policy.rate": 0.0}, "policy.rate"),
    ({"policy.optimism": 2.0}, "policy.optimism"),
    ({"policy.refresh": -1}, "policy.refresh"),
    ({"policy.global_pick": -1}, "policy.global_pick"),
    ({"rounds.images": 0}, "rounds.images"),
    ({"rounds.lr": float("nan")}, "rounds.lr"),
    ({"offline.lr": float("inf")}, "offline.lr"),
    ({"finetune.steps": -1}, "finetune.steps"),
    ({"relevance.lr": float("nan")}, "relevance.lr"),
    ({"offline_learners": 0}, "offline_learners"),
    ({"export": True, "data.also": ["train"]}, "export=true"),
    ({"rounds.updates": -1}, "rounds.updates"),
    ({"rounds.batch_size": 0}, "rounds.batch_size"),
    ({"rounds.replay": 1.1}, "rounds.replay"),
    ({"generator.kind": "words"}, "generator.kind"),
    ({"generator.condition": "answer"}, "generator.condition"),
    ({"generator.level": "free"}, "generator.level"),
    ({"generator.dedupe": "all"}, "generator.dedupe"),
    ({"generator.types": ["why"]}, "generator.types"),
    ({"generator.types": ["count"], "generator.condition": "image"}, "generator.condition=image"),
    ({"generator.types": ["count"], "generator.kind": "typed"}, "generator.kind=typed"),
    ({"generator.raw": 0}, "generator.raw"),
    ({"generator.kept": 0}, "generator.kept"),
    ({"generator.temperature": 0.0}, "generator.temperature"),
    ({"relevance.kind": "some"}, "relevance.kind"),
    ({"relevance.threshold": "half"}, "relevance.threshold"),
    ({"relevance.held_out": 1.0}, "relevance.held_out"),
    ({"relevance.every": -1}, "relevance.every"),
    ({"answerer.name": "bert"}, "answerer.name"),
    ({"answerer.hidden": 0}, "answerer.hidden"),
    ({"answerer.fc": [0]}, "answerer.fc"),
    ({"oracle.kind": "god"}, "oracle.kind"),
    ({"oracle.cost_invalid": 2}, "oracle.cost_invalid"),
    ({"data.init": 0}, "data.init"),
    ({"data.init_images": "some"}, "data.init_images"),
    ({"data.root": "/x"}, "data.root"),
    ({"data.images": -1}, "data.images"),
    ({BUILTIN + "profile": "huge"}, BUILTIN + "profile"),
    ({BUILTIN + "features": "words"}, BUILTIN + "features"),
    ({BUILTIN + "grid": 3}, BUILTIN + "grid"),
    ({BUILTIN + "filters": 5}, BUILTIN + "filters"),
    ({BUILTIN + "objects": [3]}, BUILTIN + "objects"),
    ({BUILTIN + "hidden": ["weight"]}, BUILTIN + "hidden"),
    ({BUILTIN + "hidden": ["size"], BUILTIN + "features": "pixels"}, BUILTIN + "hidden"),
    ({BUILTIN + "train_images": 0}, BUILTIN + "train_images"),
    ({BUILTIN + "seed": -1}, BUILTIN + "seed"),
]


@pytest.mark.parametrize(("changed", "key"), WRONG)
def test_a_wrong_option_is_one_sentence_that_names_it(changed, key):
    with pytest.raises((UserError, ValueError)) as caught:
        read("experiment=smoke", **changed)
    text = str(caught.value)
    assert key in text
    assert "\n" not in text.strip()


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"data": {"init": 10_000}}, "data.init"),
        ({"data": {"init": 71, "init_images": "others"}}, "data.init_images"),
        ({"data": {"train": "test"}}, "'test'"),
        ({"data": {"also": ["valC"]}}, "'valC'"),
        ({"data": {"name": "clevr"}}, "data.root"),
        ({"budget": 10_000, "source": "passive"}, "budget"),
        ({"answerer": {"name": "modules"}, "question_form": "text"}, "question_form"),
        ({"models": ["bert"]}, "answerer.name"),
        ({"data": {"builtin": {"untested": ["why"]}}}, "untested"),
    ],
)
def test_what_the_data_do_not_have_is_named(changed, key, tmp_path):
    cfg = OmegaConf.merge(OmegaConf.structured(settings(tmp_path)), changed)
    with pytest.raises((UserError, ValueError), match=key):
        train(OmegaConf.to_object(cfg))
    assert not (tmp_path / "ask_log.jsonl").exists()


def test_what_may_change_is_an_option_each():
    for key in MAY_CHANGE:
        look_up(Config(), key)


def test_a_run_goes_on_with_what_may_change_and_with_nothing_else(tmp_path):
    cfg = settings(tmp_path, source="passive")
    before = train(cfg)
    again = train(replace(cfg, models=["lstm"], log_every=2, data=replace(cfg.data, workers=0)))
    assert again["online"] == before["online"]
    assert "offline" in again
    for changed in ({"seed": 4}, {"source": "lba"}, {"rounds": replace(cfg.rounds, images=5)}):
        with pytest.raises(CheckpointError, match=next(iter(changed))):
            train(replace(cfg, **changed))
