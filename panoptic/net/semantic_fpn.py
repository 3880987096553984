"""The semantic branch of Panoptic FPN: one map of classes from all levels of the pyramid.

Legend: N images of H x W pixels, C classes; P2 to P5 have strides 4 to 32. The paper merges the
outputs of two networks (Sec. 7); this branch lets one network give both. Names of parameters are
detectron2's (`p2.0.weight`, `p4.2.norm.bias`, `predictor.weight`).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # of the maps that are added up


class ConvNorm(nn.Conv2d):
    """3x3 convolution without bias, GroupNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return F.relu(self.norm(super().forward(x)), inplace=True)


class SemanticFPN(nn.Module):
    """Pyramid maps [P2, P3, ...] -> logits (N, C, H, W) at the image's resolution.

    Each level is convolved and doubled until its stride is 4 (one convolution for stride 4 or 8,
    two for 16, three for 32); the sum goes through a 1x1 convolution and is enlarged four times.

    inputs: channels of the pyramid; strides: of its maps, each 4 times a power of two.
    classes: C. channels: of this branch; groups: of its GroupNorm.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        strides: Sequence[int] = (4, 8, 16, 32),
        channels: int = 128,
        groups: int = 32,
    ):
        super().__init__()
        self.levels = [f"p{stride.bit_length() - 1}" for stride in strides]
        for level, stride in zip(self.levels, strides, strict=True):
            doublings = (stride // STRIDE).bit_length() - 1
            layers: list[nn.Module] = []
            for index in range(max(1, doublings)):
                layers.append(ConvNorm(channels if index else inputs, channels, groups))
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.add_module(level, nn.Sequential(*layers))
        self.predictor = nn.Conv2d(channels, classes, 1)
        nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.predictor.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, inputs, H / stride, W / stride), finest first -> (N, C, H, W) in float32."""
        levels = [self.get_submodule(level)(x) for level, x in zip(self.levels, maps, strict=True)]
        logits = self.predictor(sum(levels[1:], levels[0])).float()
        return F.interpolate(logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)
