"""Backbones: ResNet and ResNeXt with torchvision's names, and a small net for two CPU cores.

Legend: N images, Cl the map of stride 2**l, (N, channels, ceil(H / 2**l), ceil(W / 2**l)).
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

NORMS = ("frozen", "bn", "gn")
NormLayer = Callable[[int], nn.Module]  # channels -> norm
STAGES = 5  # C1 (the stem) to C5


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """`norm(conv(x))`, with a frozen norm folded into the convolution's weight and bias.

    An affine map of the few weights replaces one of the many activations.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class BasicBlock(resnet.BasicBlock):
    """torchvision's block of two 3x3 convolutions, frozen norms folded."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = conv_norm(out, self.conv2, self.bn2)
        out += x if self.downsample is None else conv_norm(x, *self.downsample)
        return F.relu(out, inplace=True)


class Bottleneck(resnet.Bottleneck):
    """torchvision's block of 1x1, 3x3 and 1x1 convolutions, frozen norms folded."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = F.relu(conv_norm(out, self.conv2, self.bn2), inplace=True)
        out = conv_norm(out, self.conv3, self.bn3)
        out += x if self.downsample is None else conv_norm(x, *self.downsample)
        return F.relu(out, inplace=True)


# block, blocks of each stage, groups, width of a group
RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...], int, int]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), 64, 4),
}
BACKBONES = (*RESNETS, "mini")


def _norm_layer(norm: str, eps: float) -> NormLayer:
    match norm:
        case "frozen":
            return partial(FrozenBatchNorm2d, eps=eps)
        case "bn":
            return partial(nn.BatchNorm2d, eps=eps)
        case _:
            return partial(_group_norm, eps=eps)


def _group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of channels / 4 where there are fewer than 128 channels."""
    return nn.GroupNorm(min(32, max(1, channels // 4)), channels, eps=eps)


class ResNet(nn.Module):
    """ResNet or ResNeXt without its classifier: images -> [C_first, ..., C_last].

    name: a key of `RESNETS`.
    first, last: strides 2**first to 2**last of the maps returned; later stages are not built.
    norm: "frozen" (an affine map of stored statistics), "bn" or "gn".
    eps: of the norm; the first torchvision RetinaNet checkpoint wants 0.
    freeze_at: the stem and stages up to C_freeze_at are not trained (0: all are; 5: none is).
        Their parameters take no gradients, so autograd keeps none of their activations.
    stride_in_1x1: stride of a bottleneck in its first convolution, as in the MSRA weights.
    """

    def __init__(
        self,
        name: str,
        *,
        first: int = 3,
        last: int = 5,
        norm: str = "frozen",
        eps: float = 1e-5,
        freeze_at: int = 2,
        stride_in_1x1: bool = False,
    ):
        super().__init__()
        block, blocks, groups, group_width = RESNETS[name]
        net = resnet.ResNet(
            block,
            list(blocks),
            num_classes=1,
            groups=groups,
            width_per_group=group_width,
            norm_layer=_norm_layer(norm, eps),
        )
        self.name, self.norm, self.stride_in_1x1 = name, norm, stride_in_1x1
        self.first, self.last, self.freeze_at = first, last, freeze_at
        self.channels = [64 * 2 ** (i - 2) * block.expansion for i in range(first, last + 1)]
        self.conv1, self.bn1 = net.conv1, net.bn1
        for stage in range(2, last + 1):
            self.add_module(f"layer{stage - 1}", getattr(net, f"layer{stage - 1}"))
        if stride_in_1x1:
            for module in self.modules():
                if isinstance(module, Bottleneck) and module.stride == 2:
                    module.conv1.stride, module.conv2.stride = (2, 2), (1, 1)
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        if not self.freeze_at:
            return []
        layers = (f"layer{stage - 1}" for stage in range(2, min(self.freeze_at, self.last) + 1))
        return [self.conv1, self.bn1, *(self.get_submodule(layer) for layer in layers)]

    def train(self, mode: bool = True) -> "ResNet":
        """Train or evaluate; frozen stages keep their stored statistics either way."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the maps C_first to C_last."""
        x = F.relu(conv_norm(images, self.conv1, self.bn1), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in range(2, self.last + 1):
            x = self.get_submodule(f"layer{stage - 1}")(x)
            if stage >= self.first:
                maps.append(x)
        return maps


class MiniStage(nn.Module):
    """Halve the map, then add one residual 3x3 convolution: about a ninth of ResNet-18's stage."""

    def __init__(self, inputs: int, outputs: int, norm: NormLayer):
        super().__init__()
        self.conv1 = resnet.conv3x3(inputs, outputs, stride=2)
        self.bn1 = norm(outputs)
        self.conv2 = resnet.conv3x3(outputs, outputs)
        self.bn2 = norm(outputs)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / 2), ceil(W / 2))."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(x + self.bn2(self.conv2(x)), inplace=True)


class Mini(nn.Module):
    """A net of some ten thousand parameters, to be trained from scratch.

    width: channels of C2; C3 has 1.5, C4 and C5 have 2 times as many.
    norm: "bn" or "gn".
    """

    def __init__(
        self, width: int = 16, *, first: int = 2, last: int = 4, norm: str = "bn", eps: float = 1e-5
    ):
        super().__init__()
        layer = _norm_layer(norm, eps)
        widths = [width // 2, width, width * 3 // 2, width * 2, width * 2]
        self.name, self.norm, self.stride_in_1x1 = "mini", norm, False
        self.first, self.last = first, last
        self.channels = widths[first - 1 : last]
        self.conv1 = resnet.conv3x3(3, widths[0], stride=2)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = layer(widths[0])
        for stage in range(2, last + 1):
            self.add_module(
                f"layer{stage - 1}", MiniStage(widths[stage - 2], widths[stage - 1], layer)
            )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the maps C_first to C_last."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = []
        for stage in range(2, self.last + 1):
            x = self.get_submodule(f"layer{stage - 1}")(x)
            if stage >= self.first:
                maps.append(x)
        return maps


def build(
    name: str,
    *,
    first: int,
    last: int,
    norm: str,
    eps: float,
    freeze_at: int,
    stride_in_1x1: bool,
    width: int,
) -> ResNet | Mini:
    """Backbone called `name` (one of `BACKBONES`), after checking that the options suit it."""
    if name not in BACKBONES:
        raise ValueError(f"backbone = {name!r} is not one of {', '.join(BACKBONES)}.")
    if norm not in NORMS:
        raise ValueError(f"norm = {norm!r} is not one of {', '.join(NORMS)}.")
    if not 2 <= first <= last <= STAGES:
        raise ValueError(f"backbone maps C{first} to C{last} are not within C2 to C{STAGES}.")
    if not 0 <= freeze_at <= STAGES:
        raise ValueError(f"freeze_at = {freeze_at} must be 0 (train all) to {STAGES} (train none).")
    if eps < 0:
        raise ValueError(f"norm_eps = {eps} must not be negative.")
    if name != "mini":
        if stride_in_1x1 and RESNETS[name][0] is BasicBlock:
            raise ValueError(f"stride_in_1x1 needs bottleneck blocks; {name} has none.")
        return ResNet(
            name,
            first=first,
            last=last,
            norm=norm,
            eps=eps,
            freeze_at=freeze_at,
            stride_in_1x1=stride_in_1x1,
        )
    if norm == "frozen" or freeze_at or stride_in_1x1:
        raise ValueError(
            'backbone "mini" is trained from scratch: it needs norm="bn" or "gn", freeze_at=0 and '
            f"stride_in_1x1=False, not {norm!r}, {freeze_at} and {stride_in_1x1}."
        )
    if width < 2 or width % 2:
        raise ValueError(f"width = {width} of the mini backbone must be an even number.")
    return Mini(width, first=first, last=last, norm=norm, eps=eps)
