"""Scales, crops and flips of clips uint8 (T, 3, H, W), each a function of its arguments.

Random choices come from `generator`, or from torch's global one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from .sampling import crop_corner, scaled_size


@dataclass(frozen=True)
class Augment:
    """What becomes of a clip in training, Sec. 4.1; in pixels.

    jitter: least and most of the shorter side, one draw for a clip. resample: side of the crop in
    the end, 0: as it is (288 for Charades). flip: probability.
    """

    jitter: tuple[int, int] = (256, 320)
    crop: int = 224
    resample: int = 0
    flip: float = 0.5

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random view of a clip (T, 3, H, W): (T, 3, S, S)."""
        short = _draw(self.jitter[0], self.jitter[1], generator)
        clip = resize(clip, scaled_size(clip.shape[-2], clip.shape[-1], short))
        top = _draw(0, clip.shape[-2] - self.crop, generator)
        left = _draw(0, clip.shape[-1] - self.crop, generator)
        clip = clip[..., top : top + self.crop, left : left + self.crop]
        if torch.rand((), generator=generator) < self.flip:
            clip = clip.flip(-1)
        return resize(clip, (self.resample, self.resample)) if self.resample else clip


def resize(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear between the centres of pixels, without a filter, as OpenCV's INTER_LINEAR."""
    if size == tuple(clip.shape[-2:]):
        return clip
    return F.resize(clip.contiguous(), [size[0], size[1]], antialias=False)


def evaluation_crops(clip: Tensor, size: int, *, crops: int = 3, mirror: bool = False) -> Tensor:
    """The views (V, T, 3, S, S') of a clip for testing; its shorter side becomes `size` pixels.

    crops: 3 squares along the longer side, 1: the middle one, 0: the whole frame. mirror: these
    again, flipped.
    """
    clip = resize(clip, scaled_size(clip.shape[-2], clip.shape[-1], size))
    views = []
    for position in {0: [], 1: [1], 3: [0, 1, 2]}[crops]:
        top, left = crop_corner(clip.shape[-2], clip.shape[-1], size, position)
        views.append(clip[..., top : top + size, left : left + size])
    stacked = torch.stack(views or [clip])
    return torch.cat([stacked, stacked.flip(-1)]) if mirror else stacked


def _draw(low: int, high: int, generator: torch.Generator | None) -> int:
    """A whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
