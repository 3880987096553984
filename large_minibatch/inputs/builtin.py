"""The data sets that need no files: rendered scenes, and random pixels for speed tests."""

import torch
from torch import Tensor

from common.scenes import Scenes, World
from common.scenes.world import SHAPES

from ..config import Scenes as ScenesConfig
from .augment import Augment
from .folders import Files
from .memory import InMemory, squares

IMAGENET = (1_281_167, 50_000, 1000)  # images to train and to evaluate on, classes
POOL = 256  # different random images


def first_of_each(labels: Tensor, limit: int) -> Tensor:
    """Indices of the first `limit` images of each class, or of all where it is 0."""
    if not limit:
        return torch.arange(len(labels))
    found = [(labels == label).nonzero()[:limit, 0] for label in labels.unique()]
    return torch.cat(found).sort().values


def scenes(cfg: ScenesConfig, augment: Augment, *, training: bool, limit: int = 0) -> InMemory:
    """The built-in images: one solid on a plain floor, its shape and colour are the class."""
    world = World(
        height=cfg.size,
        width=cfg.size,
        objects=(1, 1),
        shapes=tuple(cfg.shapes),
        colors=tuple(cfg.colors),
        sizes=(("large", 0.7),),
        distractors=(cfg.distractors[0], cfg.distractors[1]),
        distractor_shapes=tuple(shape for shape in SHAPES if shape not in cfg.shapes),
        spread=0.8,
        noise=cfg.noise,
    )
    count = cfg.train_images if training else cfg.val_images
    # The training images lie a million further on, so that either split may grow.
    start = 1_000_000 if training else 0
    rendered = Scenes(world, count=count, seed=cfg.seed, start=start, classes_by=("shape", "color"))
    chosen = first_of_each(rendered.labels(), limit if training else 0)
    return InMemory(
        squares(rendered.images()[chosen], augment, training=training),
        rendered.labels()[chosen],
        [rendered.files[i] for i in chosen.tolist()],
        rendered.names,
        augment,
        training=training,
    )


def synthetic(size: int, *, training: bool, limit: int = 0) -> InMemory:
    """As many images as ImageNet has, repeated out of a pool of random ones; used as they are."""
    train, val, classes = IMAGENET
    count = (min(train, limit * classes) if limit else train) if training else val
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (POOL, size, size, 3), dtype=torch.uint8, generator=generator)
    return InMemory(
        pixels,
        torch.arange(count) % classes,
        Files("synthetic", range(count)),
        [str(label) for label in range(classes)],
        Augment(size=size, crop="none", resize=0, flip=0.0),
        training=training,
    )
