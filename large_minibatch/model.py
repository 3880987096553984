"""ResNets as Sec. 5.1 trains them, with torchvision's names, and a small net for two CPU cores.

    net = resnet("resnet50")            # ghost batch norm over groups of 32 images
    logits = net(images)                # (N, 3, H, W) -> (N, K)
    torchvision.models.resnet50().load_state_dict(net.state_dict())

Stride 2 of a bottleneck is in its 3x3 convolution (footnote 4), as in torchvision. The nets keep
their weights and maps in channels_last, and norm, sum and ReLU are one operation of `ghost.py`.

Legend: N images, K classes; maps are (N, C, H, W).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from .norm.ghost import GhostBatchNorm2d, norm_layer

NormLayer = Callable[[int], nn.Module]  # channels -> norm


def norm_relu(norm: nn.Module, x: Tensor, add: Tensor | None = None) -> Tensor:
    """`relu(norm(x) + add)` of any norm."""
    if isinstance(norm, GhostBatchNorm2d):
        return norm(x, add, relu=True)
    y = norm(x)
    return F.relu(y if add is None else y.add_(add), inplace=True)


def pool(x: Tensor) -> Tensor:
    """Mean over the map, (N, C, H, W) -> (N, C).

    `x.mean` would hand back a gradient in another layout than x, and the kernels of all layers
    below would take a multiple of their time.
    """
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)


class BasicBlock(torchvision_resnet.BasicBlock):
    """torchvision's block of two 3x3 convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = norm_relu(self.bn1, self.conv1(x))
        return norm_relu(self.bn2, self.conv2(out), shortcut)


class Bottleneck(torchvision_resnet.Bottleneck):
    """torchvision's block of 1x1, 3x3 and 1x1 convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = norm_relu(self.bn1, self.conv1(x))
        out = norm_relu(self.bn2, self.conv2(out))
        return norm_relu(self.bn3, self.conv3(out), shortcut)


# block, blocks of each stage, groups of the convolution, width of a group
RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...], int, int]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), 64, 4),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), 1, 128),
}
MODELS = (*RESNETS, "mini")


class ResNet(torchvision_resnet.ResNet):
    """torchvision's ResNet, its convolutions drawn from He's normal distribution."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(norm_relu(self.bn1, self.conv1(x)), 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(pool(x))


class Mini(nn.Module):
    """A stem and three stages of basic blocks: 20 thousand parameters at width 8, one block each.

    The maps of 32 x 32 pixels are 16, 16, 8 and 4 wide, with w, w, 2w and 4w channels.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        *,
        num_classes: int,
        norm_layer: NormLayer,
        zero_gamma: bool,
    ):
        super().__init__()
        self.conv1 = torchvision_resnet.conv3x3(3, width, stride=2)
        self.bn1 = norm_layer(width)
        self.layer1 = self._stage(width, width, blocks, norm_layer)
        self.layer2 = self._stage(width, 2 * width, blocks, norm_layer)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, norm_layer)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_gamma:
                nn.init.zeros_(module.bn2.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, norm_layer: NormLayer) -> nn.Sequential:
        if inputs == outputs:
            first = BasicBlock(inputs, outputs, norm_layer=norm_layer)
        else:
            shortcut = nn.Sequential(
                torchvision_resnet.conv1x1(inputs, outputs, stride=2), norm_layer(outputs)
            )
            first = BasicBlock(inputs, outputs, 2, shortcut, norm_layer=norm_layer)
        more = [BasicBlock(outputs, outputs, norm_layer=norm_layer) for _ in range(blocks - 1)]
        return nn.Sequential(first, *more)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = norm_relu(self.bn1, self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(pool(x))


def resnet(
    name: str,
    *,
    num_classes: int = 1000,
    width: int = 8,
    blocks: int = 1,
    zero_gamma: bool = True,
    fc_std: float = 0.01,
    group: int = 32,
    norm: str = "ghost",
    running: str = "mean",
) -> nn.Module:
    """Network called `name`, initialised as in Sec. 5.1; its state dict is torchvision's.

    name: a key of `RESNETS`, or "mini".
    width, blocks: channels of the first stage of "mini", 8 or more, blocks of each of its stages.
    zero_gamma: every residual block starts as its shortcut: its last norm has gamma = 0.
    fc_std: standard deviation of the last layer's weights; its bias starts at 0.
    norm: "ghost", "worker" or "sync", see `norm_layer`; `running`: see `GhostBatchNorm2d`.
    """
    if name not in MODELS:
        raise ValueError(f"model = {name!r} is not one of {', '.join(MODELS)}.")
    if width < 8:  # On CPUs without AVX512 the backward pass of oneDNN's 1x1 stride-2 convolution
        # in channels_last writes beyond the gradient of 2 to 7 input channels (torch 2.14).
        raise ValueError(f"width = {width} must be at least 8.")
    layer = norm_layer(norm, group=group, running=running)
    net: ResNet | Mini
    if name == "mini":
        net = Mini(
            width,
            blocks,
            num_classes=num_classes,
            norm_layer=layer,
            zero_gamma=zero_gamma,
        )
    else:
        block, depths, groups, group_width = RESNETS[name]
        net = ResNet(
            block,
            list(depths),
            num_classes,
            zero_init_residual=zero_gamma,
            groups=groups,
            width_per_group=group_width,
            norm_layer=layer,
        )
    net.to(memory_format=torch.channels_last)
    nn.init.normal_(net.fc.weight, std=fc_std)
    nn.init.zeros_(net.fc.bias)
    net.name = name
    return net
