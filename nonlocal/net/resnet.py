"""C2D and I3D ResNets: the backbones of Table 1, with torchvision's names.

Maps are (B, C, T, H, W) everywhere. A convolution of 1xkxk runs as a 2-D one on (B T, C, H, W):
the same numbers, sooner. Between such convolutions the memory stays in the order B, T, C, H, W or,
for clips in channels_last_3d, B, T, H, W, C: both are seen as (B T, C, H, W) without a copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "small": (1, 2, 2)}
# The paper's sets of places, Sec. 5.1; R-101's ten are GluonCV's, as the paper does not say.
SETS = {
    "resnet50": {
        "1-block": ["res4.4"],
        "5-block": ["res3.1", "res3.3", "res4.1", "res4.3", "res4.5"],
        "10-block": [f"res3.{n}" for n in range(4)] + [f"res4.{n}" for n in range(6)],
    },
    "resnet101": {
        "1-block": ["res4.21"],
        "5-block": ["res3.1", "res3.3", "res4.6", "res4.13", "res4.20"],
        "10-block": [f"res3.{n}" for n in range(4)] + [f"res4.{n}" for n in range(2, 23, 4)],
    },
}


@dataclass(frozen=True)
class Sizes:
    """What a network is made of; the stages are res2, res3, ..."""

    blocks: tuple[int, ...]  # residual blocks of each stage
    widths: tuple[int, ...]  # channels of each stage's 3x3 convolutions; it ends with 4 times these
    stem: tuple[int, int, int]  # channels; side and, where it is inflated, frames of conv1's kernel
    stem_stride: int  # of conv1 in time; 2 in space
    pool1: tuple[int, int] | None  # kernel and stride in time of the max pool behind; None: no pool
    pool1_pad: int  # in space


class Conv(nn.Conv3d):
    """A convolution without bias, padded to keep the size; kernel and stride as (time, space)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        *,
        flat: bool = True,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            (kernel[0], kernel[1], kernel[1]),
            (stride[0], stride[1], stride[1]),
            (kernel[0] // 2, kernel[1] // 2, kernel[1] // 2),
            bias=False,
        )
        self.flat = flat and kernel[0] == 1
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T / stride, H / stride, W / stride), rounded up."""
        if not self.flat:
            return super().forward(x)
        x = x[:, :, :: self.stride[0]]
        weight, stride, padding = self.weight.squeeze(2), self.stride[1:], self.padding[1:]
        return clips_of(F.conv2d(frames_of(x), weight, None, stride, padding), len(x))


class Norm(nn.BatchNorm2d):
    """Batch norm of (B, C, T, H, W), run on (B T, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), the same."""
        return clips_of(super().forward(frames_of(x)), len(x))


def frames_of(clips: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W)."""
    return clips.transpose(1, 2).flatten(0, 1)


def clips_of(frames: Tensor, count: int) -> Tensor:
    """(B T, C, H, W) -> (B, C, T, H, W) for B = count."""
    return frames.unflatten(0, (count, -1)).transpose(1, 2)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride is in the 3x3 one.

    inflated: the first 1x1 convolution becomes 3x1x1 ("3x1x1") or the 3x3 one 3x3x3 ("3x3x3");
    "none": neither.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, inflated: str = "none", *, flat: bool = True
    ) -> None:
        super().__init__()
        first, second = (3 if inflated == kind else 1 for kind in ("3x1x1", "3x3x3"))
        norm = Norm if flat else nn.BatchNorm3d
        self.conv1 = Conv(inputs, width, (first, 1), flat=flat)
        self.bn1 = norm(width)
        self.conv2 = Conv(width, width, (second, 3), (1, stride), flat=flat)
        self.bn2 = norm(width)
        self.conv3 = Conv(width, 4 * width, (1, 1), flat=flat)
        self.bn3 = norm(4 * width)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            shortcut = Conv(inputs, 4 * width, (1, 1), (1, stride), flat=flat)
            self.downsample = nn.Sequential(shortcut, norm(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H / stride, W / stride), rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class VideoNetwork(nn.Module):
    """A C2D or I3D ResNet, into which `insert` puts blocks; clips (B, 3, T, H, W) -> logits (B, K).

    mean, std: of red, green and blue in levels 0..255, for `normalise`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        sizes: Sizes,
        classes: int,
        *,
        inflate: str = "none",
        dropout: float = 0.5,
        flat: bool = True,
        mean: Sequence[float] = (114.75,) * 3,
        std: Sequence[float] = (57.375,) * 3,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        channels, side, frames = sizes.stem
        kernel = (frames if inflate != "none" else 1, side)
        self.conv1 = Conv(3, channels, kernel, (sizes.stem_stride, 2), flat=flat)
        self.bn1 = (Norm if flat else nn.BatchNorm3d)(channels)
        for stage, (count, width) in enumerate(zip(sizes.blocks, sizes.widths, strict=True)):
            made = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                inflated = inflate if is_inflated(stage, number) else "none"
                made.append(Bottleneck(channels, width, stride, inflated, flat=flat))
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def stages(self) -> list[nn.Sequential]:
        """res2, res3, ..."""
        return [getattr(self, f"layer{stage + 1}") for stage in range(len(self.sizes.blocks))]

    def normalise(self, clips: Tensor) -> Tensor:
        """Levels 0..255 (B, 3, T, H, W) of any type -> (levels - mean) / std, float32."""
        mean, std = (each.view(3, 1, 1, 1) for each in (self.mean, self.std))
        return (clips.float() - mean) / std

    def features(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 or normalised -> the last map (B, C, T', H', W')."""
        clips = self.normalise(clips) if clips.dtype == torch.uint8 else clips
        x = F.relu(self.bn1(self.conv1(clips)))
        x = self.pool1(x)
        first, *rest = self.stages()
        x = pool_pairs(first(x))  # pool2
        for stage in rest:
            x = stage(x)
        return x

    def pool1(self, x: Tensor) -> Tensor:
        """Max pool of 3x3, stride 2, in space."""
        if self.sizes.pool1 is None:
            return x
        kernel, stride = self.sizes.pool1
        pad = self.sizes.pool1_pad
        if stride == 2:
            x = pool_pairs(x) if kernel == 2 else x[:, :, ::2]
        return clips_of(F.max_pool2d(frames_of(x), 3, 2, pad), len(x))

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 or normalised -> logits (B, K) of the mean feature."""
        return self.fc(self.dropout(self.features(clips).mean((2, 3, 4))))

    def scores(self, clips: Tensor, *, multi_label: bool = False) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 or normalised -> probabilities (B, K), fully convolutional.

        The classifier sees each 7x7 window of the last map, as it does in training, Sec. 5.1. The
        softmax (multi_label: the sigmoid) comes first, then the mean over the windows.
        """
        x = self.features(clips).mean(2)
        x = F.avg_pool2d(x, (min(7, x.shape[2]), min(7, x.shape[3])), 1)
        logits = self.fc(x.movedim(1, -1)).float()  # (B, windows, windows, K)
        return (logits.sigmoid() if multi_label else logits.softmax(-1)).mean((1, 2))


def pool_pairs(x: Tensor) -> Tensor:
    """Max pool of 2 frames, stride 2; an odd last frame is dropped.

    Differs: Table 1 pools 3 frames in pool2 as in pool1, the official code 2 in both.
    """
    if x.shape[2] < 2:
        raise ValueError(
            "A clip has too few frames to pool them twice: give more, or set network.variant=fast."
        )
    pairs = frames_of(x[:, :, : x.shape[2] // 2 * 2]).unflatten(0, (-1, 2))
    return clips_of(torch.maximum(*pairs.unbind(1)), len(x))


def is_inflated(stage: int, number: int) -> bool:
    """Whether I3D inflates this residual block: all of res2, the even ones of res3 and res4, and
    the odd one of res5. The paper says one kernel in two blocks; so does the official code but for
    res2.
    """
    return stage == 0 or number % 2 == (1 if stage == 3 else 0)
