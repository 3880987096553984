"""A quarter of a million parameters: trunk and heads of the miniature experiments."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import interpolate


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, GroupNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    )


class NarrowTrunk(nn.Module):
    """Images (N, 3, H, W) -> {"0": (N, C, H / 2, W / 2), "1": (N, C, H / 4, W / 4)}.

    H and W are multiples of 4. The coarse map is added to the fine one, as in a feature pyramid.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.out_channels = channels
        self.stem = nn.Sequential(conv(3, channels, 2), conv(channels, channels))
        self.coarse = nn.Sequential(conv(channels, channels, 2), conv(channels, channels))
        self.fine = conv(channels, channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The maps of both strides."""
        stem = self.stem(images)
        coarse = self.coarse(stem)
        fine = self.fine(stem + interpolate(coarse, scale_factor=2.0))
        return OrderedDict([("0", fine), ("1", coarse)])


class BoxHead(nn.Sequential):
    """Pooled regions (N, C, P, P) -> (N, hidden); inputs: C P^2."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


def region_head(inputs: int, channels: int, count: int) -> nn.Sequential:
    """Pooled regions (N, inputs, P, P) -> (N, channels, P, P), by `count` convolutions."""
    return nn.Sequential(
        *(conv(channels if number else inputs, channels) for number in range(count))
    )
