"""Built-in paintings whose foreground is ambiguous unless the class is known.

In each image one object lies on another at almost the same place, so that both have nearly one box;
a third one stands apart. A class is a hue, whatever the shape: what belongs to an object within its
box follows from its class alone. With one object a box, a class-agnostic mask head would already be
perfect.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes

APART = 1_000_000  # between the splits in the stream of images, so that either may grow
MIN_VISIBLE = 30  # pixels of an object

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of x and y in -1..1
REAR: dict[str, Shape] = {
    "disc": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88,
    "diamond": lambda x, y: abs(x) + abs(y) <= 1.1,
    "triangle": lambda x, y: (y <= 0.8) & (abs(x) <= (y + 1) * 0.55),
}
FRONT: dict[str, Shape] = {  # open ones: what lies behind remains in sight
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.4),
    "plus": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.26) & (np.maximum(abs(x), abs(y)) <= 1),
    "cross": lambda x, y: (np.minimum(abs(x - y), abs(x + y)) <= 0.4) & (abs(x) + abs(y) <= 1.7),
    "frame": lambda x, y: (
        (np.maximum(abs(x), abs(y)) <= 0.9) & (np.maximum(abs(x), abs(y)) >= 0.58)
    ),
}


@dataclass
class World:
    """How images are painted."""

    side: int = 48  # pixels
    classes: int = 16  # hues, evenly spaced
    jitter: float = 0.15  # of an object's hue, in spacings of the hues
    radius: list[float] = field(default_factory=lambda: [9.0, 13.0])  # pixels, of a pair's objects
    shift: float = 2.0  # pixels at most between their centres
    noise: float = 0.06
    stretch: float = 0.0  # width follows the cosine of the hue, height its sine: e^(+-stretch / 2)


class Paintings(Dataset):
    """`count` images of a world: (image uint8 (3, H, W), target), the same for the same seed.

    target: boxes (M, 4) xyxy of the visible pixels, labels (M,) 0..K-1, iscrowd and has_mask (M,),
    masks bool (M, H, W), area (M,), image_id, file, size (H, W).
    """

    def __init__(self, world: World, count: int, *, seed: int = 0, start: int = 0) -> None:
        self.world, self.seed, self.start, self.count = world, seed, start, count
        self.names = [f"hue {round(360 * k / world.classes):03d}" for k in range(world.classes)]
        self.category_ids = list(range(1, world.classes + 1))
        self.files = [f"paintings/{seed}/{start + index}" for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, labels, masks = paint(self.world, (self.seed, self.start + index))
        visible, number = torch.from_numpy(masks), len(labels)
        boxes = masks_to_boxes(visible)  # of pixel centres, counted from 0
        boxes[:, 2:] += 1
        return torch.from_numpy(image), {
            "boxes": boxes,
            "labels": torch.tensor(labels),
            "iscrowd": torch.zeros(number, dtype=torch.bool),
            "has_mask": torch.ones(number, dtype=torch.bool),
            "masks": visible,
            "area": torch.from_numpy(masks.sum((1, 2)).astype(np.float32)),
            "image_id": self.start + index + 1,
            "file": self.files[index],
            "size": (self.world.side, self.world.side),
        }

    def coco(self) -> dict:
        """The truth in COCO's format, with masks as run lengths."""
        annotations: list[dict] = []
        images = []
        for index in range(self.count):
            _, target = self[index]
            side = self.world.side
            images.append({"id": target["image_id"], "width": side, "height": side})
            for box, label, mask in zip(
                target["boxes"].tolist(), target["labels"].tolist(), target["masks"], strict=True
            ):
                code = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
                left, top, right, bottom = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": target["image_id"],
                        "category_id": label + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": float(mask.sum()),
                        "segmentation": code | {"counts": code["counts"].decode()},
                        "iscrowd": 0,
                    }
                )
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


def paint(world: World, seed: tuple[int, int]) -> tuple[np.ndarray, list[int], np.ndarray]:
    """An image (3, H, W) uint8, its labels, its visible masks (M, H, W)."""
    random = np.random.default_rng(seed)
    while True:
        image, labels, masks = _attempt(world, random)
        if masks.sum((1, 2)).min() >= MIN_VISIBLE:
            return image, labels, masks


def _attempt(world: World, random: np.random.Generator) -> tuple[np.ndarray, list[int], np.ndarray]:
    side = world.side
    image = np.full((side, side, 3), random.uniform(0.1, 0.6))
    radius = random.uniform(world.radius[0], world.radius[1])
    center = random.uniform(radius, side - radius, 2)
    near = center + random.uniform(-world.shift, world.shift, 2)
    small = random.uniform(4.5, 7)
    objects = [
        (REAR, random.uniform(small, side - small, 2), small),
        (REAR, center, radius),
        (FRONT, near, radius * random.uniform(0.85, 1.15)),
    ]
    labels: list[int] = []
    masks = np.zeros((len(objects), side, side), dtype=bool)
    rows, columns = np.mgrid[:side, :side] + 0.5
    for number, (shapes, (x, y), size) in enumerate(objects):
        label = int(random.integers(world.classes))
        turn = label / world.classes
        wide = size * np.exp(world.stretch * np.cos(2 * np.pi * turn) / 2)
        high = size * np.exp(world.stretch * np.sin(2 * np.pi * turn) / 2)
        shape = shapes[list(shapes)[random.integers(len(shapes))]]
        mask = shape((columns - x) / wide, (rows - y) / high)
        hue = turn + random.uniform(-world.jitter, world.jitter) / world.classes
        image[mask] = colorsys.hsv_to_rgb(hue % 1, random.uniform(0.75, 1), random.uniform(0.75, 1))
        masks[:number] &= ~mask
        masks[number] = mask
        labels.append(label)
    image += random.normal(0, world.noise, image.shape)
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), labels, masks
