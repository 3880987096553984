"""Classification and box subnets of RetinaNet, Sec. 4: one small net over all pyramid levels.

Legend: N images, C channels, a anchors of a cell, A anchors of all levels, K classes,
D numbers per anchor (K, or K + 1 with softmax; 4, or 4 K for class-specific boxes).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import winograd

NORMS = ("none", "gn", "bn")
TOWER_INITS = ("normal", "he")


class Unit(nn.Module):
    """3x3 convolution, norm and ReLU; a batch norm has separate statistics for every level.

    norm: "none", "gn" (32 groups, or channels / 4 below 128 channels) or "bn".
    init: "normal" is N(0, 0.01) of Sec. 4.1; "he" suits towers of few channels.
    """

    def __init__(self, channels: int, *, levels: int, norm: str, init: str):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none")
        if init == "he":
            nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        else:
            nn.init.normal_(self.conv.weight, std=0.01)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm: nn.Module | None = None
        if norm == "gn":
            self.norm = nn.GroupNorm(min(32, max(1, channels // 4)), channels)
        elif norm == "bn":
            self.norm = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """[(N, C, H, W), ...] -> the same shapes."""
        maps = convolve(self.conv, pyramid)
        if isinstance(self.norm, nn.ModuleList):
            maps = [norm(x) for norm, x in zip(self.norm, maps, strict=True)]
        elif self.norm is not None:
            maps = [self.norm(x) for x in maps]
        return [F.relu(x, inplace=True) for x in maps]


def convolve(conv: nn.Conv2d, maps: Sequence[Tensor]) -> list[Tensor]:
    """`conv`, a 3x3 convolution, of every map; all at once where that is faster."""
    if winograd.suits(conv.weight, maps):
        return winograd.conv3x3(maps, conv.weight, conv.bias)
    return [conv(x) for x in maps]


class Head(nn.Module):
    """Tower of `convs` units and a last convolution: pyramid -> D numbers per anchor.

    Channel a * D + d of the last convolution is number d of the cell's anchor a.
    bias: one number for all outputs, or D of them.
    """

    def __init__(
        self,
        channels: int,
        anchors: int,
        outputs: int,
        *,
        bias: float | Sequence[float] = 0.0,
        levels: int = 5,
        convs: int = 4,
        norm: str = "none",
        init: str = "normal",
    ):
        super().__init__()
        self.outputs = outputs
        self.tower = nn.ModuleList(
            Unit(channels, levels=levels, norm=norm, init=init) for _ in range(convs)
        )
        self.predict = nn.Conv2d(channels, anchors * outputs, 3, padding=1)
        nn.init.normal_(self.predict.weight, std=0.01)
        biases = torch.as_tensor(bias, dtype=torch.float32).expand(outputs)
        with torch.no_grad():
            self.predict.get_parameter("bias").copy_(biases.repeat(anchors))

    def features(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid -> the tower's last maps, same shapes."""
        maps = list(pyramid)
        for unit in self.tower:
            maps = unit(maps)
        return maps

    def outputs_of(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The tower's maps -> one (N, H * W * a, D) per level; free of copies in channels_last."""
        levels = []
        for x in convolve(self.predict, features):
            x = x.permute(0, 2, 3, 1)  # (N, H, W, a * D)
            levels.append(x.reshape(x.shape[0], -1, self.outputs))
        return levels

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """[(N, C, H, W), ...] -> [(N, H * W * a, D), ...]."""
        return self.outputs_of(self.features(pyramid))


def class_bias(num_classes: int, prior: float, softmax: bool) -> list[float]:
    """Bias of the K (softmax: 1 + K) class outputs: every object starts with probability `prior`.

    Sigmoid: -log((1 - prior) / prior), Sec. 4.1. Softmax: the background, output 0, starts at
    log(K (1 - prior) / prior), as in Detectron. A prior of 0 switches it off: every bias is 0.
    """
    if not 0 <= prior < 1:
        raise ValueError(f"prior = {prior} must lie between 0 and 1; 0 means biases of 0.")
    if softmax:
        background = math.log(num_classes * (1 - prior) / prior) if prior else 0.0
        return [background] + [0.0] * num_classes
    return [-math.log((1 - prior) / prior) if prior else 0.0] * num_classes
