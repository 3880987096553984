"""A target of a few images that a linear classifier tells apart, and a guard of its test images."""

from pathlib import Path

import torch
from PIL import Image

from hashtag_pretrain.targets.images import Listing, Reading
from hashtag_pretrain.targets.sets import Target, read_target

COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 40, 60)}
READING = Reading(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Guard(Listing):
    """Images that must not be opened."""

    def __getitem__(self, i):
        raise AssertionError("a test image was opened")


def guard(target: Target) -> Target:
    """The target with a guard before its test images."""
    test = Guard(target.test.folder, [], [])
    test.names, test.labels = target.test.names, target.test.labels
    return Target(target.name, target.classes, target.train, test)


def write_images(root: Path, train: int = 6, test: int = 4, size: int = 16) -> Path:
    """Noisy images of three colours in root/train and root/test."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(-40, 40, (size, size, 3), generator=generator)
                pixels = (torch.tensor(colour) + noise).clamp(0, 255).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return root


def small_target(root: Path) -> Target:
    """That target, read."""
    return read_target("folder", write_images(root))
