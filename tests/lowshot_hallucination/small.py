"""The settings of a run of a few hundred parameters, made-up features for it, what it leaves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.run import checkpoint
from lowshot_hallucination import train
from lowshot_hallucination.baselines.analogies import Analogies
from lowshot_hallucination.baselines.logistic import Logistic
from lowshot_hallucination.config import Config
from lowshot_hallucination.features.episodes import Episodes
from lowshot_hallucination.features.formats import Features, new_folder, write_classes
from lowshot_hallucination.features.splits import ClassSplit
from lowshot_hallucination.hallucinate import Hallucination
from lowshot_hallucination.protocol.draws import Test

WIDTH = 8
NAMES = [f"thing {k}" for k in range(24)]
SPLIT = ClassSplit(NAMES, [*range(0, 24, 4)], [*range(1, 24, 4)], [*range(2, 24, 4)],
                   [*range(3, 24, 4)])  # fmt: skip
OF_TEST = np.arange(24) % 4 % 2 == 1  # classes of base_2 and novel_2


def write_folder(
    folder: str | Path,
    train: Features,
    test: Features,
    split: ClassSplit,
    trunk: dict[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Write a feature folder, whole or not at all. As extract.py does in parts."""
    with new_folder(Path(folder)) as part:
        for name, features in (("train", train), ("test", test)):
            np.save(part / f"{name}.npy", features.values)
            np.save(part / f"{name}_labels.npy", features.labels)
        write_classes(part, split, trunk, notes)


def make_rows(each: int, seed: int, *, classes: int = 24) -> Features:
    """`each` rows of every class: its own point and noise, cut at 0."""
    points = np.random.default_rng(9).normal(0.5, 1, (classes, WIDTH))
    noise = np.random.default_rng(seed).normal(0, 0.7, (classes, each, WIDTH))
    values = np.maximum(points[:, None] + noise, 0).reshape(-1, WIDTH).astype(np.float32)
    return Features(values, np.repeat(np.arange(classes), each))


def write_root(folder: Path) -> Path:
    """A feature folder of 24 classes, six of each part, with 10 rows for support and 4 queries."""
    write_folder(folder, make_rows(10, 0), make_rows(4, 1), SPLIT, {})
    return folder


def settings(features: Path | str, folder: Path | str, **options: Any) -> Config:
    """Three steps and a test of two draws."""
    plain = {
        "seed": 3,
        "features": str(features),
        "steps": 3,
        "lr": 0.02,
        "log_every": 1,
        "output_dir": str(folder),
        "episodes": Episodes(shots=[1, 2], queries=2),
        "hallucination": Hallucination(n_aug=3),
        "logistic": Logistic(iterations=20, batch_size=32),
        "analogies": Analogies(centroids=3, iterations=20, hidden=8, classifier_iterations=20),
        "test": Test(shots=[1, 2], draws=2, base_support=6),
    }
    return Config(**plain | options)


def run(cfg: Config) -> dict[str, float]:
    """`train.py` in this process."""
    try:
        return train.run(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)


def saved(cfg: Config, step: int | None = None) -> dict[str, Any]:
    """The parts of a checkpoint of a run that has ended, of its last one if not said."""
    step = cfg.steps if step is None else step
    return checkpoint.load(Path(cfg.output_dir) / f"checkpoint-{step:08d}.pt")["parts"]


def lines(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
