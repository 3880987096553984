"""The benchmark's residual networks without their classifier: B images, features of width d.

ResNet-10 has torchvision's blocks. In ResNet-50's bottleneck the 3x3 convolution has a bias and the
shortcut's convolution no batch norm, so that torchvision's weights do not fit. Names of layers are
torchvision's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)  # of the four stages, a quarter of the bottleneck's outputs


class ResNet(nn.Module):
    """A 7x7 stem and four stages; `width` is the number d of features."""

    def __init__(self, depths: tuple[int, int, int, int], *, bottleneck: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        block, expansion = (Bottleneck, 4) if bottleneck else (Basic, 1)
        stages, channels = [], 64
        for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True)):
            blocks = []
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(block(channels, width * expansion, stride))
                channels = width * expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.width = channels
        initialise(self)

    def forward(self, images: Tensor, *, last_relu: bool = True) -> Tensor:
        """Normalised (B, 3, H, W) -> the averaged last map (B, d), >= 0 after its ReLU."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        stages = self.layer1, self.layer2, self.layer3, self.layer4
        return run_blocks(stages, x, last_relu=last_relu).mean((2, 3))


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride, norm=True)

    def forward(self, x: Tensor, *, last_relu: bool = True) -> Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return F.relu(out, inplace=True) if last_relu else out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the stride on the second."""

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        *,
        conv2_bias: bool = True,
        shortcut_bn: bool = False,
    ) -> None:
        super().__init__()
        inner = width // 4
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=conv2_bias)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride, norm=shortcut_bn)

    def forward(self, x: Tensor, *, last_relu: bool = True) -> Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        return F.relu(out, inplace=True) if last_relu else out


def shortcut(channels: int, width: int, stride: int, *, norm: bool) -> nn.Module:
    """The identity, or a 1x1 convolution where the number of channels changes."""
    if channels == width:
        return nn.Identity()
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 1, stride, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(width)) if norm else nn.Sequential(*layers)


def run_blocks(stages: tuple[nn.Sequential, ...], x: Tensor, *, last_relu: bool) -> Tensor:
    """The blocks of all stages in turn; the last one without its ReLU where asked for."""
    blocks = [block for stage in stages for block in stage]
    for block in blocks[:-1]:
        x = block(x)
    return blocks[-1](x, last_relu=last_relu)


def initialise(network: nn.Module) -> None:
    """Weights N(0, 2 / (k * k * c_out)) as the benchmark's; its norms start at 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
