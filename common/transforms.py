"""Transforms of an image together with its detection target, and padding into batches.

Each takes and returns (image (3, H, W), target): boxes (M, 4) as x1, y1, x2, y2 from 0 to W and H,
area (M,), optionally masks (M, H, W) and keypoints (M, J, 3) of x, y and visibility. Joints are in
the coordinates of the boxes: a pixel's centre is at + 0.5, and what is not labelled (visibility 0)
stays as it is. Targets are not changed in place; `size` stays the listed size. Random
choices come from torch's global generator, which the train loader seeds for each example. Chain
them with torchvision.transforms.v2.Compose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Target = dict[str, Any]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, 0..1
# Joints 1, 3, ... are left and 2, 4, ... right ones in COCO's 17; 0 is the nose.
COCO_MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror with probability `p`; `mirrored` gives each joint's counterpart."""

    p: float = 0.5
    mirrored: Sequence[int] = COCO_MIRRORED

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p is {self.p}: choose a probability from 0 to 1")

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if torch.rand(()) >= self.p:
            return image, target
        width = image.shape[-1]
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        target = target | {"boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
        if "masks" in target:
            target["masks"] = target["masks"].flip(-1)
        if "keypoints" in target:
            joints = target["keypoints"].shape[1]
            if joints != len(self.mirrored):
                raise ValueError(f"{joints} joints, but {len(self.mirrored)} in `mirrored`")
            x, y, visibility = target["keypoints"][:, list(self.mirrored)].unbind(2)
            x = torch.where(visibility > 0, width - x, x)
            target["keypoints"] = torch.stack([x, y, visibility], 2)
        return image.flip(-1), target


@dataclass(frozen=True)
class Resize:
    """Scale the shorter side to `short` pixels, or less so that the longer is at most `longest`.

    Of several values of `short` one is drawn for each image. Bilinear with antialiasing.
    """

    short: int | Sequence[int]
    longest: int

    def __post_init__(self) -> None:
        if min(self._choices()) < 1 or self.longest < max(self._choices()):
            raise ValueError(
                f"short={self.short}, longest={self.longest}: choose 1 <= short <= longest"
            )

    def _choices(self) -> list[int]:
        return [self.short] if isinstance(self.short, int) else list(self.short)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        choices = self._choices()
        short = choices[int(torch.randint(len(choices), ()))] if len(choices) > 1 else choices[0]
        H, W = image.shape[-2:]
        new_h, new_w = scaled_size((H, W), short, self.longest)
        if (new_h, new_w) == (H, W):
            return image, target
        sx, sy = new_w / W, new_h / H
        target = target | {"boxes": target["boxes"] * torch.tensor([sx, sy, sx, sy])}
        if "area" in target:
            target["area"] = target["area"] * (sx * sy)
        if "masks" in target:
            nearest = F.InterpolationMode.NEAREST_EXACT
            masks = F.resize(target["masks"].to(torch.uint8), [new_h, new_w], interpolation=nearest)
            target["masks"] = masks.to(target["masks"].dtype)
        if "keypoints" in target:
            xy, visibility = target["keypoints"][..., :2], target["keypoints"][..., 2:]
            xy = torch.where(visibility > 0, xy * torch.tensor([sx, sy]), xy)
            target["keypoints"] = torch.cat([xy, visibility], 2)
        return F.resize(image, [new_h, new_w], antialias=True), target


def scaled_size(size: Sequence[int], short: int, longest: int) -> tuple[int, int]:
    """Height and width after scaling to shorter side `short`, longer side at most `longest`."""
    scale = min(short / min(size), longest / max(size))
    height, width = (max(1, round(n * scale)) for n in size)
    return height, width


@dataclass(frozen=True)
class Normalize:
    """uint8 RGB image to float32 (image * scale - mean) / std, per channel.

    The defaults suit torchvision's weights; Caffe's have scale=1, std=(1, 1, 1) and bgr=True, and
    mean and std then in the order B, G, R.
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    scale: float = 1 / 255
    bgr: bool = False

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if image.dtype != torch.uint8:
            raise ValueError(f"the image is {image.dtype}, not uint8 with values 0..255")
        image = (image.flip(0) if self.bgr else image).float() * self.scale
        return F.normalize(image, list(self.mean), list(self.std), inplace=True), target


@dataclass(frozen=True)
class PadCollate:
    """Batch of (image, target): (images (N, 3, H, W), sizes int64 (N, 2), targets).

    Images lie at the top left, zeros right and below; H and W are the largest of the batch,
    rounded up to a multiple of `multiple`. sizes: height and width of each image without them.
    """

    multiple: int = 32

    def __call__(self, batch: list[tuple[Tensor, Target]]) -> tuple[Tensor, Tensor, list[Target]]:
        sizes = torch.tensor([image.shape[-2:] for image, _ in batch])
        height, width = (-(-n // self.multiple) * self.multiple for n in sizes.amax(0).tolist())
        first = batch[0][0]
        images = first.new_zeros(len(batch), first.shape[0], height, width)
        for padded, (image, _) in zip(images, batch, strict=True):
            padded[:, : image.shape[1], : image.shape[2]] = image
        return images, sizes, [target for _, target in batch]
