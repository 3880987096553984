"""The low-shot problem of a configuration: features from files, or made from its images.

Features of images that no file holds are made once, by a trunk that is trained on the base classes
or that comes with weights, and kept in the cache.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import dist
from common.run import checkpoint
from common.run.options import Options
from common.scenes.cache import cache_folder
from lowshot_hallucination.backbone.extract import extract
from lowshot_hallucination.backbone.loop import train_backbone
from lowshot_hallucination.config import Config
from lowshot_hallucination.features.formats import Features, read_features
from lowshot_hallucination.features.images import Images, build_images, drop_unreadable
from lowshot_hallucination.features.problem import (
    LowShot,
    from_folder,
    from_one_table,
    number_names,
    report_shared_rows,
)
from lowshot_hallucination.features.splits import (
    read_class_split,
    read_split_file,
    split_at_random,
)
from lowshot_hallucination.weights.initialise import find_file, open_trunk, restore

VERSION = 1  # raise whenever a trunk's training changes: cached features of others are not read


def build(cfg: Config) -> LowShot:
    """The problem, its faults found: too few rows of a class, rows that are in both parts.

    `cfg.features` names a file or a folder; `prepare` has made one for images.
    """
    path = Path(cfg.features)
    if path.is_dir():
        lowshot = from_folder(path, cfg.problem.split, cfg.problem.seed, read_picks(cfg))
    elif cfg.problem.split_files:
        raise ValueError(
            f"problem.split_files={cfg.problem.split_files} names rows of a whole training set: "
            f"give features= a folder with the files train and test instead of {path}."
        )
    else:
        features = read_features(path, cfg.labels)
        names = number_names(features.labels, features.source)
        seed, there = cfg.problem.seed, np.unique(features.labels).tolist()
        notes: tuple[str, ...] = ()
        if cfg.problem.split:
            split = read_class_split(cfg.problem.split, names, seed)
        else:
            split = split_at_random(names, seed, among=there)
            notes = ("base and novel classes are drawn by problem.seed",)
        lowshot = from_one_table(features, split, cfg.problem.queries_share, seed)
        lowshot = replace(lowshot, notes=notes)
    lowshot.require_rows(max(cfg.test.shots))
    if (shared := report_shared_rows(lowshot)) and dist.is_main():
        print(f"WARNING: {shared}")
    if cfg.hallucination.kind == "views" and lowshot.train.views is None:
        raise ValueError(
            f"hallucination.kind=views: {lowshot.train.source} comes without train_views.npy: "
            "write the features again with data.views=4."
        )
    return rescale(lowshot) if cfg.problem.rescale else lowshot


def read_picks(cfg: Config) -> list[np.ndarray]:
    """The rows of the benchmark's split files; none where the examples are drawn."""
    if not cfg.problem.split_files:
        return []
    folder = Path(cfg.problem.split_files)
    return [read_split_file(folder / f"splitfile_{k}.json") for k in range(1, cfg.test.draws + 1)]


def rescale(lowshot: LowShot) -> LowShot:
    """All features divided by the mean of the base classes' training features."""
    base = lowshot.train.rows_of(lowshot.split.base)
    mean = float(np.mean(lowshot.train.values[base], dtype=np.float64))
    if mean <= 0:
        raise ValueError(
            f"{lowshot.train.source}: the features have the mean {mean:g}, so nothing can be "
            "divided by it: give problem.rescale=false."
        )
    train, test = (divide(part, mean) for part in (lowshot.train, lowshot.test))
    return replace(lowshot, train=train, test=test)


def divide(part: Features, number: float) -> Features:
    """Features in memory, float32, and their views, divided by a number."""
    values = np.asarray(part.values, np.float32) / np.float32(number)
    views = part.views
    if views is not None:
        views = np.asarray(views, np.float32) / np.float32(number)
    return replace(part, values=values, views=views)


def describe(lowshot: LowShot, cfg: Config) -> str:
    """The header of a run: what is tested on what."""
    split = lowshot.split
    sizes = [f"{len(getattr(split, part))} {part}" for part in ("base_1", "base_2")]
    sizes += [f"{len(getattr(split, part))} {part}" for part in ("novel_1", "novel_2")]
    how = f"{cfg.learner.method}, hallucination {cfg.hallucination.kind}"
    trunk = f" of {lowshot.trunk}" if lowshot.trunk else ""
    text = (
        f"{how}; {len(lowshot.train)} + {len(lowshot.test)} rows of {lowshot.train.width} "
        f"features{trunk}; classes: {', '.join(sizes)}; protocol {cfg.test.protocol}"
    )
    few = min(len(split.novel_1), len(split.novel_2))
    notes = list(lowshot.notes)
    if cfg.test.top > 1 and few <= cfg.test.top:
        notes.append(f"top-{cfg.test.top} of {few} novel classes is always right: give test.top=1")
    return "\n".join([text, *notes])


def prepare(cfg: Config) -> str:
    """The folder with the features of `cfg.data`'s images, made where the cache has none.

    Processes of other runs wait for the one that makes it. All ranks of this run call it. Features
    with and without views share their trunk.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    images = build_images(cfg.data)
    require_images(cfg, images)
    plain = cache_folder() / "lowshot_hallucination" / f"features-{key_of(cfg, images)}"
    views = cfg.data.views
    folder = plain.with_name(f"{plain.name}-{views}views") if views else plain
    if dist.gather(folder.is_dir())[0]:  # what the first rank sees, as other runs may be at it
        return str(folder)
    with alone(plain):
        if not dist.gather(folder.is_dir())[0]:
            if dist.is_main():
                print(f"Features of {images.name} are made once, in {folder}.")
            make_features(cfg, images, folder, run=plain.with_suffix(".trunk"))
    return str(folder)


def require_images(cfg: Config, images: Images) -> None:
    """ValueError where a class has fewer images than an episode or a test takes."""
    counts = np.bincount(images.source.train.labels, minlength=len(images.split.names))
    least = dict.fromkeys(images.split.novel, max(cfg.test.shots))
    if cfg.stage == "meta" and not cfg.is_fixed():
        of_episode = max(cfg.episodes.shots) + cfg.episodes.queries
        least |= dict.fromkeys(images.split.base, of_episode)
    for k, count in least.items():
        if counts[k] < count:
            words = "test.shots" if k in images.split.novel else "episodes.shots, episodes.queries"
            raise ValueError(
                f"class {images.split.names[k]!r} has {counts[k]} images for its support, fewer "
                f"than the {count} of {words}: add images, or lower these."
            )


def make_features(cfg: Config, images: Images, folder: Path, run: Path | None) -> None:
    """Train a trunk in `run`, unless its options name weights, and write its features.

    Images that cannot be read show before.
    """
    images = drop_unreadable(images, workers=cfg.data.workers)
    where = cfg.data
    options: dict[str, Any] = {"workers": where.workers, "views": where.views, "amp": cfg.amp}
    if cfg.trunk.weights or run is None:
        network, report = open_trunk(cfg.trunk, len(images.split.names))
        if dist.is_main() and report is not None:
            print(report)
        weights = Path(cfg.trunk.weights)
        extract(network, images, folder, run=weights if weights.is_dir() else "", **options)
        return
    require_images(cfg, images)
    train_trunk(cfg, images, run)
    checkpoint.unlock(run)
    extract(restore(run), images, folder, run=run, **options)


def train_trunk(
    cfg: Config, images: Images, run: Path | str, options: Options | None = None
) -> dict[str, float]:
    """Train the trunk on the base classes in the folder `run`; options: that may not change."""
    return train_backbone(
        images,
        cfg.trunk,
        cfg.backbone,
        seed=cfg.problem.seed,
        folder=run,
        workers=cfg.data.workers,
        amp=cfg.amp,
        log_every=cfg.log_every,
        save_every=cfg.save_every,
        config=options,
    )


def key_of(cfg: Config, images: Images) -> str:
    """What the features depend on, as a name: options, and names, sizes and times of the files.

    Without the number of views, which their trunk does not depend on.
    """
    digest = hashlib.sha256()
    where = asdict(replace(cfg.data, workers=0))
    del where["views"]
    parts = (VERSION, where, asdict(cfg.trunk), asdict(cfg.backbone), cfg.problem.seed, cfg.amp)
    digest.update(repr((parts, images.split)).encode())
    for pool in (images.source.train, images.source.test):
        digest.update(pool.labels.tobytes())
        for i in range(len(pool) if pool.pixels is None else 0):
            status = os.stat(pool[i])
            digest.update(f"{pool[i]} {status.st_size} {status.st_mtime_ns}".encode())
    if cfg.trunk.weights and Path(cfg.trunk.weights).exists():
        digest.update(str(find_file(cfg.trunk.weights).stat().st_mtime_ns).encode())
    return digest.hexdigest()[:16]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other run makes `folder`; the main process holds the place."""
    if not dist.is_main():
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
