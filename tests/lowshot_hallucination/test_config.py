"""Settings: all experiments compose, and what does not go together stops with one sentence."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from common.config import to_dataclass
from common.errors import UserError
from common.run.checkpoint import CheckpointError
from common.run.options import Options
from lowshot_hallucination import train
from lowshot_hallucination.config import MAY_CHANGE, Config
from lowshot_hallucination.evaluate import columns

from .small import run, settings, write_root

CONF = Path(__file__).resolve().parents[2] / "lowshot_hallucination" / "conf"
GOES_WITH = {  # experiments and the data that each takes
    "demo": ["builtin"],
    "mini": ["builtin", "folder", "omniglot", "cifar10"],
    "smoke": ["builtin"],
    "photos": ["folder"],
    "paper": ["imagenet"],
    "resnet50": ["imagenet"],
}


@cache
def groups(*words: str) -> DictConfig:
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*words, "output_dir=unused"])


def read(*words: str) -> Config:
    """The settings that these words give."""
    chosen = tuple(word for word in words if word.startswith(("data=", "experiment=")))
    cfg, rest = groups(*chosen).copy(), [word for word in words if word not in chosen]
    for each in OverridesParser.create().parse_overrides(rest):  # as `compose` does, only sooner
        OmegaConf.update(cfg, each.key_or_group, each.value())
    return to_dataclass(cfg)


def names(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def test_every_experiment_composes_with_every_data_that_it_takes():
    assert set(GOES_WITH) == names("experiment")
    assert {each for group in GOES_WITH.values() for each in group} == names("data")
    for experiment, kinds in GOES_WITH.items():
        for kind in kinds:
            cfg = read(f"experiment={experiment}", f"data={kind}", "data.root=/x")
            assert cfg.data.name == kind
    demo = read()
    assert demo == read("experiment=demo")
    assert list(demo.versus) == ["PN", "PN with G", "PN shrunk", "centred cosine"]
    mini = read("experiment=mini")
    assert replace(demo, versus={}, test=mini.test) == mini
    assert replace(demo.test, shots=[1, 2, 5, 10, 20]) == mini.test


def test_the_settings_of_the_demo_are_what_their_names_say():
    demo = groups()
    found = {}
    for name, words in demo.versus.items():
        cfg = to_dataclass(OmegaConf.merge(demo, OmegaConf.from_dotlist(list(words))))
        learner = cfg.learner
        found[name] = (cfg.hallucination.kind, learner.method, learner.shrink, learner.metric)
    assert found == {
        "PN": ("none", "pn", "1", "euclidean"),
        "PN with G": ("learned", "pn", "1", "euclidean"),
        "PN shrunk": ("none", "pn", "cv", "euclidean"),
        "centred cosine": ("none", "nearest", "1", "centred_cosine"),
    }


def test_the_recipe_at_full_scale_is_the_papers_or_the_cards():
    cfg = read("experiment=paper", "data=imagenet", "data.root=/x")
    assert (cfg.stage, cfg.features, cfg.versus, cfg.amp) == ("meta", "", {}, False)
    assert 20_000 <= cfg.steps <= 60_000
    assert (cfg.lr, cfg.weight_decay, cfg.clip_norm) == (1e-3, 1e-4, 5)
    g, learner, episodes = cfg.hallucination, cfg.learner, cfg.episodes
    assert (g.kind, g.layers, g.noise, g.init) == ("learned", 3, 0, "identity")
    assert (g.n_aug, g.noise_in, g.trained) == (5, "always", "jointly")
    assert (learner.method, learner.embed_layers, learner.has_embedding) == ("pn", 2, True)
    assert (learner.metric, learner.final_relu, learner.shrink) == ("euclidean", False, "1")
    assert (learner.hops, learner.mn_score, learner.order_ensemble) == (5, "cosine", 1)
    assert (episodes.classes, episodes.shots) == (0, [1, 2, 5, 10, 20])
    assert (episodes.mixed, episodes.queries, episodes.per_step) == (True, 3, 1)
    trunk, backbone, view = cfg.trunk, cfg.backbone, cfg.data.view()
    assert (trunk.name, trunk.head, trunk.weights) == ("resnet10", "linear", "")
    assert (backbone.epochs, backbone.batch_size, backbone.lr) == (90, 256, 0.1)
    assert (backbone.schedule, backbone.drop_every, backbone.gamma) == ("step", 30, 0.1)
    assert (backbone.momentum, backbone.nesterov, backbone.weight_decay) == (0.9, False, 1e-4)
    assert (backbone.aux, backbone.warmup_epochs) == ("none", 0)
    assert (view.size, view.resize, view.crop, view.jitter) == (224, 256, "random_resized", 0.4)
    assert view.flip
    logistic, older, test = cfg.logistic, cfg.analogies, cfg.test
    assert (logistic.iterations, logistic.batch_size, logistic.lr) == (10_000, 1000, 0.1)
    assert (logistic.weight_decay, logistic.momentum, logistic.dampening) == (0.01, 0.9, 0.9)
    assert (older.centroids, older.cluster_iterations, older.hidden) == (100, 20, 512)
    assert (older.iterations, older.batch_size, older.drop_every) == (120_000, 128, 40_000)
    assert (older.lr, older.weight_decay, older.momentum) == (0.1, 1e-4, 0.9)
    assert older.mse_weight == 10
    assert (test.shots, test.draws, test.base_support) == ([1, 2, 5, 10, 20], 5, 100)
    assert (test.z_seeds, test.protocol) == (1, "new")
    assert test.priors == [k / 20 for k in range(21)]


def test_resnet_50_has_a_recipe_of_its_own():
    cfg = read("experiment=resnet50", "data=imagenet", "data.root=/x")
    backbone = cfg.backbone
    assert (cfg.trunk.name, backbone.batch_size) == ("resnet50", 100)
    assert (backbone.warmup_epochs, backbone.warmup_lr, backbone.lr) == (1, 0.01, 0.1)


def test_small_images_are_seen_whole():
    for kind in ("builtin", "omniglot", "cifar10"):
        view = read("experiment=mini", f"data={kind}", "data.root=/x").data.view()
        assert (view.size, view.resize, view.crop, view.jitter) == (32, 32, "shift", 0)
        assert view.flip == (kind != "omniglot")


WRONG = [
    (["stage=meat"], r"stage=meat is unknown.*stage=meta"),
    (["stage=test"], r"stage=test needs init=RUN"),
    (["steps=0"], r"steps=0 is out of range"),
    (["log_every=0"], r"log_every=0"),
    (["save_every=0"], r"save_every=0"),
    (["lr=-1"], r"lr=-1\.0"),
    (["weight_decay=-1"], r"weight_decay=-1"),
    (["clip_norm=-1"], r"clip_norm=-1"),
    (["processes=-1"], r"processes=-1"),
    (["threads=-1"], r"threads=-1"),
    (["labels=x.npy"], r"labels=x\.npy goes with features=FILE\.npy: give both"),
    (
        ["learner.method=nearest"],
        r"learner\.method=nearest trains no G: .*hallucination\.kind=none",
    ),
    (["learner.method=logistic"], r"learner\.method=logistic trains no G"),
    (["problem.queries_share=1"], r"problem\.queries_share=1\.0: give a share"),
    (["problem.seed=-1"], r"problem\.seed=-1"),
    (["hallucination.kind=gan"], r"hallucination\.kind=gan must be one of"),
    (["hallucination.kind=views"], r"hallucination\.kind=views needs data\.views="),
    (["hallucination.n_aug=1"], r"hallucination\.n_aug=1 must be 2 or more"),
    (["hallucination.init=zeros"], r"hallucination\.init=zeros"),
    (["hallucination.noise_in=sometimes"], r"hallucination\.noise_in=sometimes"),
    (["hallucination.layers=0"], r"hallucination\.layers=0"),
    (["hallucination.noise=-1"], r"hallucination\.noise=-1"),
    (["hallucination.std=-1"], r"hallucination\.std=-1"),
    (["hallucination.rate=1"], r"hallucination\.rate=1\.0 must be at least 0 and below 1"),
    (["hallucination.trained=''"], r"hallucination\.trained is empty"),
    (["learner.method=protonet"], r"learner\.method=protonet: choose from pn"),
    (["learner.distance=manhattan"], r"learner\.distance=manhattan"),
    (["learner.shrink=2"], r"learner\.shrink=2: give a number from 0 to 1, or cv"),
    (["learner.shrink=some"], r"learner\.shrink=some"),
    (["learner={method: mn, shrink: cv}"], r"learner\.shrink=cv has no effect .*method=mn"),
    (["learner={method: mn, distance: cosine}"], r"learner\.distance=cosine has no effect"),
    (["learner.mn_score=hg"], r"learner\.mn_score=hg has no effect"),
    (["learner.order_ensemble=3"], r"learner\.order_ensemble=3 has no effect"),
    (["learner.hops=0"], r"learner\.hops=0"),
    (["learner={method: pmn, distance: centred_cosine}"], r"centred_cosine is for"),
    (["learner={method: mn, mn_score: hg, scale: 2}"], r"learner\.scale has no effect"),
    (["episodes.classes=1"], r"episodes\.classes=1"),
    (["episodes.shots=[]"], r"episodes\.shots=\[\]"),
    (["episodes.shots=[0]"], r"episodes\.shots=\[0\]"),
    (["episodes.queries=0"], r"episodes\.queries=0"),
    (["episodes.per_step=0"], r"episodes\.per_step=0"),
    (["test.protocol=old"], r"test\.protocol=old"),
    (["test.shots=[]"], r"test\.shots is empty"),
    (["test.shots=[0]"], r"test\.shots=0"),
    (["test.draws=0"], r"test\.draws=0"),
    (["test.base_support=-1"], r"test\.base_support=-1"),
    (["test.z_seeds=0"], r"test\.z_seeds=0"),
    (["test.n_augs=[1]"], r"test\.n_augs=1"),
    (["test.shrinks=[0]"], r"test\.shrinks=0"),
    (["test.shrinks=[]"], r"test\.shrinks is empty"),
    (["test.priors=[1.5]"], r"test\.priors=1\.5"),
    (["logistic.iterations=0"], r"logistic\.iterations=0"),
    (["logistic.batch_size=-1"], r"logistic\.batch_size=-1"),
    (["logistic.momentum=2"], r"logistic\.momentum=2"),
    (["logistic.dampening=-1"], r"logistic\.dampening=-1"),
    (["logistic.lr=0"], r"logistic\.lr=0\.0 must be above 0"),
    (["logistic.scale=0"], r"logistic\.scale=0\.0"),
    (["analogies.centroids=1"], r"analogies\.centroids=1"),
    (["analogies.iterations=0"], r"analogies\.iterations=0"),
    (["analogies.lr=0"], r"analogies\.lr=0\.0 must be above 0"),
    (["analogies.mse_weight=-1"], r"analogies\.mse_weight=-1"),
    (["data.name=photos"], r"data\.name=photos"),
    (["data.split=x.json"], r"data\.split is of data\.name=folder; builtin has its own"),
    (["data.base_share=1"], r"data\.base_share=1\.0"),
    (["data.queries_share=0"], r"data\.queries_share=0"),
    (["data.label_order=wnid"], r"data\.label_order=wnid"),
    (["data.crop=centre"], r"data\.crop=centre"),
    (["data.size=300", "data.resize=256"], r"data\.size=300, data\.resize=256"),
    (["data.jitter=2"], r"data\.jitter=2"),
    (["data.workers=-1"], r"data\.workers=-1"),
    (["data.bad_images=drop"], r"data\.bad_images=drop"),
    (["data.bad_share=2"], r"data\.bad_share=2"),
    (["data.builtin.train=0"], r"data\.builtin\.train=0"),
    (["data.builtin.side=4"], r"data\.builtin\.side=4"),
    (["data.builtin.occluded=2"], r"occluded=2"),
    (["trunk.name=resnet11"], r"trunk\.name=resnet11: choose from resnet10"),
    (["trunk.head=softmax"], r"trunk\.head=softmax"),
    (["trunk.relu=false"], r"trunk\.relu=false is for"),
    (["trunk.channels=0"], r"trunk\.channels=0"),
    (["trunk.std=[1,1]"], r"trunk\.std=\[1\.0, 1\.0\]"),
    (["backbone.schedule=linear"], r"backbone\.schedule=linear"),
    (["backbone.aux=l1"], r"backbone\.aux=l1"),
    (["backbone.epochs=0"], r"backbone\.epochs=0"),
    (["backbone.momentum=1"], r"backbone\.momentum=1"),
    (["backbone.lr=0"], r"backbone\.lr"),
    (["backbone.nesterov=true", "backbone.momentum=0"], r"backbone\.nesterov=true needs"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda each: str(each)[:40])
def test_what_makes_no_sense_is_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read("experiment=paper", *words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["stage=test", "learner.method=nearest", "hallucination.kind=none"],
        ["stage=test", "init=RUN"],
        ["learner.method=logistic", "hallucination.kind=analogies"],
        ["learner.method=logistic", "hallucination.trained=RUN"],
        ["hallucination.kind=views", "data.views=4"],
        ["hallucination.kind=views", "features=FOLDER"],
        ["learner={method: mn, mn_score: hg}"],
        ["trunk={head: cosine, relu: false}"],
    ],
    ids=lambda each: " ".join(each),
)
def test_what_makes_sense_together_is_taken(words):
    assert read("experiment=paper", *words)


def test_what_may_change_is_there_and_shapes_no_weight(tmp_path):
    options = Options(settings(tmp_path, tmp_path), MAY_CHANGE)
    for name in MAY_CHANGE:
        assert any(each == name or each.startswith(f"{name}.") for each in options.values)
    fixed = ("seed", "steps", "lr", "weight_decay", "clip_norm", "init", "amp", "problem.split")
    fixed += ("problem.rescale", "problem.seed", "episodes.shots", "episodes.per_step")
    fixed += ("learner.method", "learner.shrink", "hallucination.kind", "hallucination.n_aug")
    fixed += ("analogies.iterations", "trunk.name", "backbone.epochs", "data.size")
    assert set(fixed) <= options.values.keys()
    assert not [name for name in fixed if options._may_change(name)]


def test_a_run_resumes_only_with_the_options_that_shape_its_weights(tmp_path, monkeypatch):
    def unscored(_: Any, __: Any, cfg: Config, ___: Any) -> dict[str, float]:
        return dict.fromkeys(columns(cfg), 1.0)

    monkeypatch.setattr(train, "evaluate", unscored)
    root = write_root(tmp_path / "data")
    cfg = settings(root, tmp_path / "run", steps=1)
    run(cfg)
    for named, changed in {
        "lr=": replace(cfg, lr=0.5),
        "steps=": replace(cfg, steps=2),
        "seed=": replace(cfg, seed=4),
        r"learner\.shrink=": replace(cfg, learner=replace(cfg.learner, shrink="0.5")),
        r"hallucination\.n_aug=": replace(
            cfg, hallucination=replace(cfg.hallucination, n_aug=5)
        ),
        r"problem\.rescale=False.*problem\.rescale=True": replace(
            cfg, problem=replace(cfg.problem, rescale=True)
        ),
    }.items():  # fmt: skip
        with pytest.raises(CheckpointError, match=f"{named}.*: give the same, or another output"):
            run(changed)
    other = write_root(tmp_path / "other")
    (tmp_path / "moved").symlink_to(root)
    moved = replace(cfg, features=str(tmp_path / "moved"), save_every=7)
    moved = replace(moved, test=replace(cfg.test, shots=[2]))
    assert run(moved).keys() >= {"novel_2", "all_2"}
    labels = other / "train_labels.npy"
    labels.write_bytes((root / "test_labels.npy").read_bytes())
    (other / "train.npy").write_bytes((root / "test.npy").read_bytes())
    with pytest.raises(CheckpointError, match=r"data=\w+, this run has data=\w+"):
        run(replace(cfg, features=str(other)))
