"""The data as the paper sees it: labelled images, cropped and flipped, kn of them to a step.

N images of a batch, S pixels a side, K classes. `ImageFiles` reads files, `InMemory` holds uint8
pixels; both give each process its share of a step in pieces, each small enough for one forward.
Which images a step has, and what becomes of each, is a function of (seed, step) alone: one
shuffle of the whole set an epoch (Remark 4, Sec. 3) for any number of processes.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common import dist
from common.data import BadImages, eval_loader, train_loader
from common.sampling import SampleStream
from large_minibatch import recipe
from large_minibatch.config import Config
from large_minibatch.config import Data as DataConfig
from large_minibatch.inputs.augment import Augment
from large_minibatch.inputs.builtin import first_of_each, scenes, synthetic
from large_minibatch.inputs.decode import ImageFiles, collate, decode_all
from large_minibatch.inputs.folders import (
    Files,
    class_folders,
    find,
    read_names,
    require_same,
    require_there,
)
from large_minibatch.inputs.memory import Batch, InMemory


def build(cfg: DataConfig, split: str) -> "ImageFiles | InMemory":
    """The images of `split`, "train" or "val", with what that split does to them.

    Both number the classes alike: those of `cfg.classes`, else the sorted folders of the training
    split. Raises ValueError with one sentence about the first fault.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split is {split!r}: choose 'train' or 'val'")
    training, augment = split == "train", augmentation(cfg)
    if cfg.name == "scenes":
        return scenes(cfg.scenes, augment, training=training, limit=cfg.limit)
    if cfg.name == "synthetic":
        return synthetic(cfg.size, training=training, limit=cfg.limit)
    files, labels, classes = find_files(cfg, training=training)
    chosen = first_of_each(labels, cfg.limit if training else 0)
    source = ImageFiles(
        files.only(chosen),
        labels[chosen],
        classes,
        augment,
        training=training,
        # fb and torchvision take ImageNet's images as they are stored.
        upright=cfg.name == "folder",
        draft=cfg.draft,
    )
    if not cfg.in_memory:
        return source
    return decode_all(source, workers=cfg.workers, bad=BadImages(cfg.bad_images))


def find_files(cfg: DataConfig, *, training: bool) -> tuple[Files, Tensor, list[str]]:
    """Files (M), labels (M,) and all classes (K) of one split; checks the layout."""
    wnids, root = cfg.name.startswith("imagenet"), Path(cfg.root)
    if not cfg.root or not root.is_dir():
        raise ValueError(
            f"data.root={cfg.root!r} is not a folder: expected {cfg.train}/<class>/<image> and "
            f"{cfg.val}/<class>/<image> in it"
        )
    there = class_folders(root / cfg.train, wnids=wnids)
    classes = read_names(cfg.classes) if cfg.classes else there
    require_there(classes, there, cfg.classes, root / cfg.train)
    if training:
        return *find(root / cfg.train, classes, classes), classes
    shown, folder = class_folders(root / cfg.val, wnids=wnids), root / cfg.val
    if cfg.evaluated:
        names = read_names(cfg.evaluated)
        require_there(names, classes, cfg.evaluated, cfg.classes or root / cfg.train)
        require_there(names, shown, cfg.evaluated, folder)
    elif cfg.classes:
        require_there(names := classes, shown, cfg.classes, folder)
    else:
        require_same(names := classes, shown, folder)
    return *find(folder, classes, names), classes


def augmentation(cfg: DataConfig) -> Augment:
    """The options that concern pixels."""
    red, green, blue = (round(255 * value) for value in cfg.mean)
    return Augment(
        size=cfg.size,
        crop=cfg.crop,
        interpolation=cfg.interpolation,
        resize=cfg.resize,
        area=(cfg.area[0], cfg.area[1]),
        flip=cfg.flip,
        color_jitter=cfg.color_jitter,
        lighting=cfg.lighting,
        fill=(red, green, blue),
    )


def plan_of(cfg: Config, examples: int) -> recipe.Plan:
    """How these processes compute a step; the loop divides by its number of pieces.

    Made once a run and handed on. Only ghost norms tie images together in groups.
    """
    ghost = cfg.norm.kind == "ghost"
    plan = recipe.plan(
        examples=examples,
        batch_size=cfg.batch_size,
        processes=dist.world_size(),
        group=cfg.norm.group if ghost else 1,
        per_forward=cfg.per_forward,
    )
    if not ghost:
        _require_statistics(cfg, plan)
        if plan.accumulation > 1 and dist.is_main():
            print(
                f"norm.kind={cfg.norm.kind}: batch norm takes its statistics over "
                f"{plan.per_forward} images of a process at a time, as its {plan.per_process} are "
                f"more than per_forward={cfg.per_forward}."
            )
    return plan


def _require_statistics(cfg: Config, plan: recipe.Plan) -> None:
    """Raise ValueError where norms without groups would take their statistics over one image.

    Normalised by itself alone, an image tells the network nothing of the others; and where a layer
    has one pixel left, its variance is 0.
    """
    together = plan.processes if cfg.norm.kind == "sync" else 1
    if plan.per_forward * together > 1:
        return
    remedy = f"set per_forward={plan.per_process} or another batch_size"
    if plan.per_process == 1:
        remedy = f"set batch_size={2 * plan.processes} or more"
    raise ValueError(
        f"norm.kind={cfg.norm.kind}: batch_size={cfg.batch_size} over processes={plan.processes} "
        f"can only be computed one image at a time with per_forward={cfg.per_forward}, which "
        f"leaves batch norm no statistics: {remedy}."
    )


def _memory_pieces(
    dataset: InMemory, cfg: Config, plan: recipe.Plan, start: int, stop: int
) -> Iterator[Batch]:
    """The pieces of this process's share of steps start, ..., stop - 1."""
    stream = SampleStream(len(dataset), plan.batch_size, seed=cfg.seed)
    held = dataset.to(dist.device())
    for step in range(start, stop):
        share = stream.share(step, dist.rank(), plan.processes)
        for i in range(0, len(share), plan.per_forward):
            keys = share[i : i + plan.per_forward]
            yield held.batch([index for _, index in keys], held.rows(keys, cfg.seed))


def training_batches(
    dataset: ImageFiles | InMemory, cfg: Config, plan: recipe.Plan, start: int, stop: int
) -> Iterator[Iterable[Batch]]:
    """The share of this process in the steps after `start`, up to `stop`, each as pieces.

    A step's pieces are made while they are taken: `plan` says how many and how large, so that a
    share of any size fits. Pieces that a loop leaves out are dropped. ValueError where the plan is
    of another data set or number of processes.
    """
    steps_per_epoch, world = len(dataset) // plan.batch_size, dist.world_size()
    if (plan.processes, plan.steps_per_epoch) != (world, steps_per_epoch):
        raise ValueError(
            f"The plan is for {plan.processes} processes and {plan.steps_per_epoch} steps an "
            f"epoch, but there are {world} and {steps_per_epoch}: make it anew with recipe.plan."
        )
    if isinstance(dataset, InMemory):
        pieces = _memory_pieces(dataset, cfg, plan, start, stop)
        return _steps(pieces, stop - start, plan.accumulation)
    loader = train_loader(
        dataset,
        SampleStream(len(dataset), plan.batch_size, seed=cfg.seed),
        start,
        stop,
        workers=cfg.data.workers,
        collate=collate,
        accumulate=plan.accumulation,
        cut=True,
        bad=BadImages(cfg.data.bad_images),
    )
    return _steps(loader, stop - start, plan.accumulation)


def _steps(pieces: Iterable[Batch], steps: int, per_step: int) -> Iterator[Iterable[Batch]]:
    """`steps` times the next `per_step` pieces."""
    left = iter(pieces)
    for _ in range(steps):
        step = itertools.islice(left, per_step)
        yield step
        deque(step, maxlen=0)  # what the loop did not take


def validation_batches(
    dataset: ImageFiles | InMemory, cfg: Config, batch_size: int
) -> Iterable[Batch]:
    """The share of this process in the images to evaluate on, each exactly once over all."""
    if isinstance(dataset, ImageFiles):
        return eval_loader(dataset, batch_size, workers=cfg.data.workers, collate=collate)
    mine = range(dist.rank(), len(dataset), dist.world_size())
    held = dataset.to(dist.device())
    return (held.batch(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size))


def some(dataset: ImageFiles | InMemory, indices: list[int]) -> Batch:
    """The validation images `indices` as one batch."""
    if isinstance(dataset, ImageFiles):
        return collate([dataset[i] for i in indices])
    return dataset.batch(indices)


def look_through(dataset: ImageFiles | InMemory, cfg: Config) -> None:
    """Read this process's share of the validation images once, as the evaluation will.

    So an image that cannot be read, or is smaller than the crop, ends a run before its first step.
    Those in memory have been read.
    """
    if isinstance(dataset, ImageFiles):
        batches = validation_batches(dataset, cfg, cfg.per_forward)
        deque(tqdm(batches, "check", leave=False, disable=None if dist.is_main() else True), 0)


def evaluation_columns(dataset: ImageFiles | InMemory, cfg: DataConfig) -> Tensor | None:
    """Which classes (K,) bool are told apart in evaluation; None: all.

    ImageNet-5k is trained on 5,000 classes and evaluated as a choice among 1,000, Fig. 6.
    """
    if not cfg.evaluated:
        return None
    names = read_names(cfg.evaluated)
    require_there(names, dataset.classes, cfg.evaluated, "the training set")
    wanted = set(names)
    return torch.tensor([name in wanted for name in dataset.classes])


def normalise(images: Tensor, cfg: DataConfig) -> Tensor:
    """Images uint8 (N, 3, H, W) as float32, channels last: (x / 255 - mean) / std."""
    N, C, H, W = images.shape
    scale, offset = _affine(tuple(cfg.mean), tuple(cfg.std), W, images.device)
    rows = images.permute(0, 2, 3, 1).reshape(N * H, W * C)  # long rows: vector instructions
    if rows.is_cuda:
        rows = torch.addcmul(offset, rows, scale)  # one kernel, conversion included
    else:
        rows = rows.float()
        torch.addcmul(offset, rows, scale, out=rows)
    return rows.view(N, H, W, C).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factor and summand (3 * width,) of a row of RGB pixels."""
    means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (255 * stds), -means / stds
    return scale.float().repeat(width).to(device), offset.float().repeat(width).to(device)
