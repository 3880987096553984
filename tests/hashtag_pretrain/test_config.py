"""Settings: all experiments compose, and what does not go together stops with one sentence."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from common.config import to_dataclass
from common.errors import UserError
from common.run.checkpoint import CheckpointError
from common.run.options import Options
from hashtag_pretrain.config import MAY_CHANGE, Config

from .runs import run, settings, write_root

CONF = Path(__file__).resolve().parents[2] / "hashtag_pretrain" / "conf"
GOES_WITH = {  # experiments and the data that each takes
    "demo": ["builtin"],
    "smoke": ["builtin"],
    "mini": ["builtin"],
    "paper": ["shards", "builtin"],
    "imagenet": ["shards"],
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
            place = ["data.root=/x"] if kind == "shards" else []
            cfg = read(f"experiment={experiment}", f"data={kind}", *place)
            assert cfg.data.name == kind
            assert cfg.batch_size % cfg.per_gpu == 0
    demo = read()
    assert demo == read("experiment=demo")
    assert list(demo.versus) == ["no pretraining", "natural sampling", "square root"]
    assert replace(demo, versus={}) == read("experiment=mini")


def test_the_recipe_at_full_scale_is_the_papers():
    cfg = read("experiment=paper", "data=shards", "data.root=/x")
    assert (cfg.batch_size, cfg.per_gpu, cfg.batch_size // cfg.per_gpu) == (8064, 24, 336)
    assert (cfg.momentum, cfg.nesterov, cfg.weight_decay) == (0.9, True, 1e-4)
    assert cfg.peak_lr() == pytest.approx(3.15)
    assert (cfg.warmup_lr, cfg.drops, cfg.gamma) == (0.1, 10, 0.5)
    assert (cfg.warmup_images, cfg.warmup_most) == (6.4e6, 0.05)
    assert (cfg.images, cfg.amp, cfg.ema, cfg.decay_norm) == (0, False, 0, False)
    assert (cfg.sampling.rule, cfg.sampling.threshold) == ("square_root", "max")
    assert (cfg.loss.kind, cfg.loss.prior_bias) == ("softmax", False)
    network, augment = cfg.network, cfg.augment
    assert (network.name, network.zero_gamma, network.fc_std) == ("resnext101_32x16d", True, 0.01)
    assert network.mean == [0.485, 0.456, 0.406]
    assert network.std == [0.229, 0.224, 0.225]
    assert (augment.size, augment.crop, augment.flip) == (224, "random", 0.5)
    assert augment.scale == [0.08, 1.0]
    assert augment.ratio == pytest.approx([3 / 4, 4 / 3])
    assert augment.resize == 256
    assert (cfg.data.share, cfg.data.noise, cfg.data.held_out) == (1.0, 0.0, 0.001)
    assert (cfg.target.name, cfg.protocols, cfg.versus) == ("", [], {})


def test_imagenet_from_scratch_has_a_recipe_of_its_own():
    cfg = read("experiment=imagenet", "data=shards", "data.root=/x")
    assert (cfg.batch_size, cfg.drops, cfg.gamma) == (3072, 3, 0.1)
    assert cfg.peak_lr() == pytest.approx(1.2)
    assert cfg.images == pytest.approx(100 * 1_281_167, rel=1e-6)
    assert cfg.sampling.rule == "natural"


WRONG = [
    (["data=shards"], r"data\.root is not set: give data\.root=/path"),
    (["data.root=/x"], r"data\.root=/x has no effect with the built-in images: .*data=shards"),
    (["data.noise=1.5"], r"data\.noise=1\.5 is out of range"),
    (["data.noise_seed=1"], r"data\.noise_seed=1 has no effect without data\.noise"),
    (["data.share=0"], r"data\.share=0\.0: give a share above 0"),
    (["data.held_out=0.9"], r"data\.held_out"),
    (["data.window=0"], r"data\.window"),
    (["data.bad_images=ignore"], r"data\.bad_images"),
    (["data.bad_images=skip", "data.bad_share=0"], r"data\.bad_share=0 lets no image be skipped"),
    (["data.name=folder"], r"data\.name"),
    (["sampling.rule=sqrt"], r"sampling\.rule"),
    (["sampling.length=0.5"], r"sampling\.length=0\.5: .*give 1 or more"),
    (["sampling.length=2", "sampling.rule=natural"], r"sampling\.length is for square_root"),
    (["sampling.length=2", "sampling.threshold=0.1"], r"threshold=0\.1 .* with sampling\.length"),
    (["sampling.rule=natural", "sampling.threshold=0.1"], r"no effect with sampling\.rule=natural"),
    (["sampling.threshold=often"], r"sampling\.threshold=often: give max, or a share"),
    (["sampling.threshold=2"], r"sampling\.threshold=2: give max, or a share"),
    (["sampling.most=0.5"], r"sampling\.most"),
    (["loss.kind=hinge"], r"loss\.kind"),
    (["loss.over=sum"], r"loss\.over is for loss\.kind=sigmoid"),
    (["target.name=cub"], r"target\.name=cub needs target\.root=FOLDER"),
    (["target.name=builtin", "target.root=/x"], r"target\.root=/x.* no effect"),
    (["target.root=/x"], r"target\.root=/x.* no effect"),
    (["protocols=[probe]"], r"needs a target: give target\.name"),
    (["protocols=[svm]"], "protocols"),
    (["data=shards", "data.root=/x", "target.name=builtin"], r"builtin goes with data=builtin"),
    (["parallel=tensor"], "parallel"),
    (["parallel=fsdp", "ema=0.9"], "ema does not go with parallel=fsdp"),
    (["images=-2"], r"images=-2: give a number, 0 for the paper's, or -1: none"),
    (["batch_size=24"], r"warmup_lr=0\.1 is above 0\.009375, .*: lower it"),
    (["gamma=2"], "gamma=2.0 is out of range"),
    (["network.name=resnext101_32x64d"], r"network\.name=resnext101_32x64d"),
    (["augment.resize=100"], r"augment\.resize=100"),
    (["test.batch_size=0"], r"test\.batch_size"),
    (["probe.iterations=0"], r"probe\.iterations"),
    (["network={name: vit_b_16, checkpoint: true}"], r"checkpoint is not for .*=vit_b_16"),
    (["network.side=8"], r"network\.side=8: give 16 or more"),
    (["finetune.learn=head"], r"finetune\.learn"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda each: str(each)[:40])
def test_what_makes_no_sense_is_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        read("experiment=paper", *words)
    assert "\n" not in str(error.value)


def test_what_may_change_is_there_and_shapes_no_weight(tmp_path):
    options = Options(settings(tmp_path, tmp_path), MAY_CHANGE)
    for name in MAY_CHANGE:
        assert any(each == name or each.startswith(f"{name}.") for each in options.values)
    fixed = ("seed", "images", "batch_size", "per_gpu", "lr", "weight_decay", "ema", "amp")
    fixed += ("data.share", "data.noise", "data.window", "data.held_out", "sampling.rule")
    fixed += ("loss.kind", "augment.size", "network.width", "network.mean", "init", "compress")
    assert set(fixed) <= options.values.keys()
    assert not [name for name in fixed if options._may_change(name)]


def test_a_run_resumes_only_with_the_options_that_shape_its_weights(tmp_path):
    root = write_root(tmp_path / "data")
    cfg = settings(root, tmp_path / "run", images=8)
    run(cfg)
    for changed in (
        replace(cfg, lr=0.8),
        replace(cfg, ema=0.9),
        replace(cfg, images=16),
        replace(cfg, data=replace(cfg.data, noise=0.1)),
        replace(cfg, data=replace(cfg.data, exclude=str(tmp_path / "list"))),
    ):
        (tmp_path / "list").write_text("\n".join(f"{i:06d}" for i in range(30)))
        with pytest.raises(CheckpointError, match=r"lr=|ema=0\.0, .*ema=0\.9|images=|noise=|data="):
            run(changed)
    (root / "vocabulary.json").rename(root / "words.json")
    same = replace(cfg, save_every=7, data=replace(cfg.data, vocabulary="words.json"))
    assert run(same).keys() >= {"hit1", "hit5"}
