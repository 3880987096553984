"""A quarter of a million parameters: trunk and heads of the miniature experiments."""

from collections import OrderedDict

from torch import Tensor, nn


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, GroupNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    )


class SmallTrunk(nn.Module):
    """Images (N, 3, H, W) -> {"0": (N, C, H / 2, W / 2), "1": (N, C, H / 4, W / 4)}."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.out_channels = channels
        self.fine = nn.Sequential(
            conv(3, channels, 2), conv(channels, channels), conv(channels, channels)
        )
        self.coarse = conv(channels, channels, 2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The maps of both strides."""
        fine = self.fine(images)
        return OrderedDict([("0", fine), ("1", self.coarse(fine))])


class BoxHead(nn.Sequential):
    """Pooled regions (N, C, 7, 7) -> (N, hidden); inputs: 49 C."""

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
