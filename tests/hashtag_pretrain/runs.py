"""The settings of a run of a few thousand parameters on images with tags, and what it leaves."""

import json
from pathlib import Path
from typing import Any

from common.run import checkpoint
from hashtag_pretrain import train
from hashtag_pretrain.config import Config, Data, Test
from hashtag_pretrain.inputs.augment import Augment
from hashtag_pretrain.model import Network
from hashtag_pretrain.optimizer import steps_of

from .small import make_shards, make_vocabulary, random_tags

NAMES = ("cat", "dog", "owl", "fox", "bee", "ant")


def write_root(root: Path, count: int = 60, *, seed: int = 0) -> Path:
    """`count` images of 16 pixels in shards of ten, with one to three of the tags `NAMES`."""
    tags = random_tags(NAMES, count, seed)
    make_shards(root / "shards", tags, per_shard=10, side=16)
    make_vocabulary(*NAMES).write(root / "vocabulary.json")
    return root


def shards(root: Path, **options: Any) -> Data:
    """The options of the shards in a folder, a fifth of whose images is held out."""
    plain = {"root": str(root), "held_out": 0.2, "workers": 0, "window": 2}
    return Data(**plain | options)


def settings(root: Path, folder: Path | str, **options: Any) -> Config:
    """Three steps of two pieces of four images."""
    plain = {
        "seed": 3,
        "images": 24,
        "batch_size": 8,
        "per_gpu": 4,
        "lr": 1.6,
        "warmup_lr": 0.01,
        "warmup_images": 0,
        "log_every": 1,
        "output_dir": str(folder),
        "data": shards(root),
        "augment": Augment(size=16, resize=16, crop="shift"),
        "network": Network(
            "small", width=8, memory_format="contiguous", mean=[0.5] * 3, std=[0.25] * 3
        ),
        "test": Test(batch_size=4, drawn=2),
    }
    return Config(**plain | options)


def run(cfg: Config) -> dict[str, float]:
    """`train.py` in this process."""
    try:
        return train.run(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)


def saved(cfg: Config, step: int = 0) -> dict[str, Any]:
    """The parts of a checkpoint of a run that has ended, of its last one if not said."""
    step = step or steps_of(cfg.images, cfg.batch_size)
    return checkpoint.load(Path(cfg.output_dir) / f"checkpoint-{step:08d}.pt")["parts"]


def lines(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
