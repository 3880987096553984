"""Bodies of the networks: torchvision's ResNets, a small one for two CPU cores, and the pyramid.

Legend: N images; Cl is the body's map of stride 2**l, Pl the pyramid's. Names of parameters are
torchvision's, so that its checkpoints fit.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

NORMS = ("frozen", "bn", "gn")
RESNETS: tuple[str, ...] = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
RESNETS += ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
BACKBONES = (*RESNETS, "mini")

NormLayer = Callable[[int], nn.Module]  # channels -> norm


def norm_layer(norm: str) -> NormLayer:
    """One of `NORMS`: an affine map of stored statistics, BN, or GN in groups of 4 channels."""
    match norm:
        case "frozen":
            return FrozenBatchNorm2d
        case "bn":
            return nn.BatchNorm2d
        case "gn":
            return lambda channels: nn.GroupNorm(min(32, max(1, channels // 4)), channels)
    raise ValueError(f"norm = {norm!r} is not one of {', '.join(NORMS)}.")


class ResNet(nn.Module):
    """ResNet or ResNeXt without its classifier: images -> [C2, C3, C4, C5].

    freeze_at: the stem (1) and stages up to C_freeze_at are not trained and keep their
        statistics; 0 trains everything, detectron2 freezes up to 2.
    stride_in_1x1: stride of a bottleneck in its first convolution, as the MSRA weights of
        detectron2 want it; torchvision has it in the 3x3 one.
    dilated: C4 and C5 keep stride 8 and dilate their convolutions by 2 and 4 instead (PSPNet).
    """

    def __init__(
        self,
        name: str,
        *,
        norm: str = "frozen",
        freeze_at: int = 2,
        stride_in_1x1: bool = False,
        dilated: bool = False,
    ):
        super().__init__()
        basic = name in ("resnet18", "resnet34")
        if basic and (stride_in_1x1 or dilated):
            raise ValueError(f"{name} has no bottlenecks to dilate or to stride: take resnet50.")
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"freeze_at = {freeze_at} must be 0 (train all) to 5 (train none).")
        net = getattr(resnet, name)(
            weights=None,
            norm_layer=norm_layer(norm),
            replace_stride_with_dilation=[False, dilated, dilated],
        )
        self.conv1, self.bn1 = net.conv1, net.bn1
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        self.name, self.stride_in_1x1 = name, stride_in_1x1
        self.channels = [net.inplanes // 8 * 2**stage for stage in range(4)]
        self.strides = [4, 8, 8, 8] if dilated else [4, 8, 16, 32]
        for block in self.modules():
            if stride_in_1x1 and isinstance(block, resnet.Bottleneck) and block.stride == 2:
                block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
        stem: list[nn.Module] = [self.conv1, self.bn1]
        stages = [self.layer1, self.layer2, self.layer3, self.layer4][: max(0, freeze_at - 1)]
        self._frozen = [*stem, *stages] if freeze_at else []
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "ResNet":
        """Train or evaluate; frozen stages keep their stored statistics either way."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> C2 to C5, (N, channels[i], ceil(H / strides[i]), ...)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images)), inplace=True), 3, 2, 1)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


class MiniStage(nn.Module):
    """A 3x3 convolution that may stride, then a residual one: a ninth of ResNet-18's stage."""

    def __init__(self, inputs: int, outputs: int, norm: NormLayer, *, stride: int, dilation: int):
        super().__init__()
        self.conv1 = resnet.conv3x3(inputs, outputs, stride=stride, dilation=dilation)
        self.bn1 = norm(outputs)
        self.conv2 = resnet.conv3x3(outputs, outputs, dilation=dilation)
        self.bn2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(x + self.bn2(self.conv2(x)), inplace=True)


class Mini(nn.Module):
    """A net of some hundred thousand parameters, to be trained from scratch: [C2, C3, C4].

    norm: "gn", which treats each image alone, or "bn". dilated: all maps keep stride 2, as the
    things of small images are small, and are narrower for it.
    """

    def __init__(self, *, norm: str = "gn", dilated: bool = False):
        super().__init__()
        layer = norm_layer(norm)
        self.name, self.stride_in_1x1 = "mini", False
        self.channels = [16, 24, 32] if dilated else [32, 48, 64]
        self.strides = [2, 2, 2] if dilated else [4, 8, 16]
        self.conv1 = resnet.conv3x3(3, 16, stride=2)
        self.bn1 = layer(16)
        stage = partial(MiniStage, norm=layer)
        stride = 1 if dilated else 2
        c2, c3, c4 = self.channels
        self.layer1 = stage(16, c2, stride=stride, dilation=1)
        self.layer2 = stage(c2, c3, stride=stride, dilation=2 if dilated else 1)
        self.layer3 = stage(c3, c4, stride=stride, dilation=4 if dilated else 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> C2 to C4, (N, channels[i], ceil(H / strides[i]), ...)."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            maps.append(x)
        return maps


def body(
    name: str, *, norm: str, freeze_at: int, stride_in_1x1: bool = False, dilated: bool = False
) -> ResNet | Mini:
    """The body called `name`, one of `BACKBONES`; ValueError where the options do not suit it."""
    if name not in BACKBONES:
        raise ValueError(f"backbone = {name!r} is not one of {', '.join(BACKBONES)}.")
    if name != "mini":
        return ResNet(
            name, norm=norm, freeze_at=freeze_at, stride_in_1x1=stride_in_1x1, dilated=dilated
        )
    if norm == "frozen" or freeze_at or stride_in_1x1:
        raise ValueError(
            'backbone "mini" is trained from scratch: it needs norm "gn" or "bn", freeze_at=0 and '
            f"stride_in_1x1=False, not {norm!r}, {freeze_at} and {stride_in_1x1}."
        )
    return Mini(norm=norm, dilated=dilated)


class Pyramid(nn.Module):
    """A body below a feature pyramid: images -> {"0": P2, "1": P3, ...}, all of `channels`.

    A ResNet's ends with "pool": every second value of P5, where the largest anchors are.
    """

    def __init__(self, body: ResNet | Mini, channels: int):
        super().__init__()
        self.body = body
        top = isinstance(body, ResNet)
        self.strides = [*body.strides, 64] if top else list(body.strides)
        self.fpn = FeaturePyramidNetwork(
            body.channels, channels, extra_blocks=LastLevelMaxPool() if top else None
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> maps (N, channels, H / strides[i], W / strides[i]), finest first."""
        maps = self.body(images)
        return self.fpn({str(level): x for level, x in enumerate(maps)})
