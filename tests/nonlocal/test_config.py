"""Settings: all experiments compose, and what does not go together stops with one sentence."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from common.config import to_dataclass
from common.errors import UserError
from nonlocal_ import config
from nonlocal_.config import MAY_CHANGE, Clip, Config, Data, may_change
from nonlocal_.optimizer import drops

from .small import settings

CONF = Path(__file__).resolve().parents[2] / "nonlocal" / "conf"
GOES_WITH = {  # experiments and the data that each takes
    "demo": ["builtin"],
    "smoke": ["builtin"],
    "mini": ["builtin", "folder", "instances"],
    "paper": ["kinetics", "folder", "instances"],
    "fast": ["kinetics", "folder"],
    "long": ["kinetics", "folder"],
    "charades": ["charades"],
    "coco_masks": ["coco"],
    "coco_keypoints": ["coco"],
}


@cache
def read(*words: str) -> Config:
    """The settings that these words give."""
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_dataclass(compose("config", [*words, "output_dir=unused"]))


def names(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def test_every_experiment_composes_with_every_data_that_it_takes():
    assert set(GOES_WITH) == names("experiment")
    assert {each for group in GOES_WITH.values() for each in group} == names("data")
    for experiment, kinds in GOES_WITH.items():
        for kind in kinds:
            root = [] if kind == "builtin" else ["data.root=/x"]
            start = ["init=/y"] if experiment in ("long", "charades") else []
            cfg = read(f"experiment={experiment}", f"data={kind}", *root, *start)
            expected = {"builtin": "builtin", "coco": "coco"}.get(kind, "videos")
            assert cfg.data.name == expected
            assert cfg.batch_size % cfg.per_gpu == 0


def test_the_recipe_at_full_scale_is_the_papers():
    cfg = read("experiment=paper", "data=kinetics", "data.root=/x")
    assert (cfg.steps, drops(cfg)) == (400_000, [150_000, 300_000])
    assert (cfg.batch_size, cfg.per_gpu, cfg.task) == (64, 8, "classification")
    assert (cfg.optimizer, cfg.nesterov, cfg.schedule) == ("sgd", True, "multistep")
    assert (cfg.lr, cfg.momentum, cfg.weight_decay) == (0.01, 0.9, 1e-4)
    assert (cfg.warmup, cfg.clip_norm, cfg.precise_norm, cfg.amp) == (0, 0, 200, False)
    assert (cfg.init, cfg.new_classifier) == ("imagenet", False)
    clip, network, block, test = cfg.clip, cfg.network, cfg.block, cfg.test
    assert (clip.frames, clip.stride, clip.jitter, clip.crop) == (32, 2, [256, 320], 224)
    assert (clip.resample, clip.flip) == (0, 0.5)
    assert (network.depth, network.inflate, network.variant) == ("resnet50", "none", "org")
    assert (network.at, network.dropout, network.norm) == ([], 0.5, "batch")
    assert (network.mean, network.std) == ([114.75] * 3, [57.375] * 3)
    assert (block.mode, block.scale, block.pool) == ("embedded_gaussian", "sqrt", True)
    assert (block.pool_first, block.over, block.group) == (True, "spacetime", 0)
    assert (block.norm, block.zero_init, block.inner_ratio) == ("batch", "norm", 0.5)
    assert (test.clips, test.crops, test.size, test.mirror) == (10, 3, 256, False)
    assert (test.sampler, test.fuse) == ("official", "mean")


def test_longer_clips_charades_and_photos_have_recipes_of_their_own():
    cfg = read("experiment=fast", "data=kinetics", "data.root=/x")
    assert (cfg.clip.frames, cfg.clip.stride, cfg.network.variant) == (8, 8, "fast")
    assert (cfg.batch_size, cfg.lr, cfg.steps) == (64, 0.01, 400_000)
    cfg = read("experiment=long", "data=kinetics", "data.root=/x", "init=/y")
    assert (cfg.clip.frames, cfg.clip.stride, cfg.batch_size, cfg.per_gpu) == (128, 1, 16, 2)
    assert (cfg.lr, cfg.steps, drops(cfg)) == (0.0025, 400_000, [150_000, 300_000])
    assert (cfg.network.norm, cfg.block.norm, cfg.block.zero_init) == ("frozen", "none", "conv")
    assert cfg.new_classifier
    cfg = read("experiment=charades", "data=charades", "data.root=/x", "init=/y")
    assert (cfg.task, cfg.steps, cfg.lr) == ("multi_label", 200_000, 0.00125)
    assert (cfg.batch_size, cfg.per_gpu, cfg.network.norm) == (8, 1, "frozen")
    assert (cfg.network.depth, cfg.network.inflate) == ("resnet101", "3x1x1")
    assert cfg.network.at == ["5-block"]
    assert (cfg.clip.frames, cfg.clip.stride, cfg.clip.resample) == (128, 1, 288)
    assert (cfg.test.size, cfg.test.fuse) == (320, "max")
    cfg = read("experiment=coco_masks", "data=coco", "data.root=/x")
    assert (cfg.steps, drops(cfg), cfg.lr) == (90_000, [60_000, 80_000], 0.02)
    assert (cfg.batch_size, cfg.per_gpu, cfg.detector.kind) == (16, 2, "masks")
    cfg = read("experiment=coco_keypoints", "data=coco", "data.root=/x")
    assert (cfg.steps, drops(cfg), cfg.lr) == (130_000, [100_000, 120_000], 0.02)
    assert (cfg.detector.kind, cfg.detector.backbone) == ("keypoints", "resnet101")
    assert cfg.detector.short_sides == list(range(640, 801, 32))


def test_charades_drops_the_rate_every_75k_steps():
    cfg = read("experiment=charades", "data=charades", "data.root=/x", "init=/y")
    assert drops(cfg) == [75_000, 150_000]


WRONG = [
    (["data=coco", "data.root=/x"], r"task=classification does not go with data\.name=coco"),
    (["experiment=coco_masks"], r"task=detection does not go with data\.name=builtin"),
    (["task=multi_label"], "task=multi_label: the built-in clips have one label each"),
    (["data.limit=5"], "data.limit is for files; of the built-in clips give data.builtin.train"),
    (["experiment=coco_masks", "data=coco", "data.root=/x", "network.at=[1-block]"], "detector.at"),
    (["detector.at=[1-block]"], r"detector\.at=.* has no effect .*: give network\.at"),
    (["experiment=coco_masks", "data=coco", "data.root=/x", "new_classifier=true"], "leave it out"),
    (["block.over=space", "block.group=4"], r"group=4 has no effect with block\.over=.*group=0"),
    (["block.over=space", "network.res3_group=4"], r"give network\.res3_group=0, or another"),
    (["experiment=mini", "network.variant=fast"], r"network\.variant=fast .* no effect .*=small"),
    (["experiment=mini", "network.pool1_pad=1"], r"network\.pool1_pad=1 .* no effect .*=small"),
    (["network.width=16"], r"network\.width=16 has no effect with network\.depth=resnet50"),
    (["experiment=mini", "warmup=5"], "warmup=5 has no effect with schedule=one_cycle.*warmup=0"),
    (["task=boxes"], "task.*classification.*detection"),
    (["data=kinetics"], r"data\.root is not set: give data\.root=/path"),
    (["experiment=long", "data=kinetics", "data.root=/x"], "give init=RUN or init=FILE"),
    (["test.sampler=center"], r"test\.sampler=center .*test\.clips=1"),
    (["test.crops=2"], r"test\.crops=2: choose 1, 3 or"),
    (["test.fuse=median"], r"test\.fuse"),
    (["clip.crop=300"], r"clip\.jitter=\[256, 320\].*clip\.crop=300"),
    (["clip.frames=0"], r"clip\.frames"),
    (["data.train_part=[0.5,0.2]"], r"data\.train_part=\[0\.5, 0\.2\].*\[0,0\.5\]"),
    (["milestones=[2]"], "milestones"),
    (["optimizer=lars"], "optimizer"),
    (["lr=nan"], "lr=nan"),
    (["weight_decay=inf"], "weight_decay=inf: give a finite number"),
    (["block.mode=dot"], r"block\.mode=dot"),
    (["block.inner_ratio=nan"], r"block\.inner_ratio=nan must be above 0"),
    (["data.builtin.side=100000"], r"data\.builtin\.side=100000: choose 1 to 512"),
    (["network.dropout=2"], r"network\.dropout=2.*: give a share"),
    (["network.depth=resnet18"], r"network\.depth is 'resnet18'"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda each: str(each)[:40])
def test_what_makes_no_sense_is_one_sentence(words, sentence):
    experiment = [] if words[0].startswith("experiment") else ["experiment=paper"]
    with pytest.raises(UserError, match=sentence) as error:
        read(*experiment, *words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "piece", "processes", "ways"),
    [
        (32, 32, 2, "processes=1 or per_gpu=16 or batch_size=64"),  # experiment=mini on two GPUs
        (64, 8, 6, "processes=4 or batch_size=96"),
        (12, 8, 2, "per_gpu=2 or batch_size=16"),
        (5, 2, 3, "batch_size=6"),
        (5, 2, 1, "per_gpu=1 or batch_size=6"),
    ],
)
def test_a_batch_that_cannot_be_shared_out_names_what_can(batch, piece, processes, ways):
    cfg = settings(".", batch_size=batch, per_gpu=piece)
    with pytest.raises(ValueError, match=f"batch_size={batch} is .*: give {ways}\\."):
        config.count_pieces(cfg, processes)
    for way in ways.split(" or "):
        name, _, value = way.partition("=")
        count = int(value) if name == "processes" else processes
        changed = cfg if name == "processes" else replace(cfg, **{name: int(value)})
        pieces = config.count_pieces(changed, count)
        assert pieces * count * changed.per_gpu == changed.batch_size


def test_what_may_change_is_there_and_depends_on_the_task(tmp_path):
    schema = OmegaConf.structured(Config)
    for name in MAY_CHANGE:
        assert name in schema or OmegaConf.select(schema, name) is not None or name == "data.root"
    clips = may_change(settings(tmp_path))
    assert "detector" in clips
    assert "network" not in clips
    assert "data.builtin" not in clips
    photos = may_change(Config(task="detection", data=Data(name="coco", root="/x")))
    assert {"network", "data.builtin"} <= set(photos)
    assert "detector" not in photos
    for option in ("lr", "clip", "block", "batch_size", "data.train", "precise_norm"):
        assert option not in clips


def test_defaults_are_checked_in_code_too():
    with pytest.raises(ValueError, match=r"test\.clips"):
        config.Test(clips=0)
    with pytest.raises(ValueError, match="least and the largest"):
        Clip(jitter=[320, 256])
