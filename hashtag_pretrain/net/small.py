"""A residual network for images of 32 x 32 pixels on two CPU cores, with torchvision's names."""

from torch import Tensor, nn
from torchvision.models import resnet

from .resnext import pool, run_stages


class Small(nn.Module):
    """A 5x5 stem of stride 2 and two basic blocks: 75,828 parameters at width 16, 36 classes.

    The maps of 32 x 32 pixels are 16, 16 and 8 wide, with w, 2w and 4w channels.
    """

    def __init__(
        self, width: int, *, classes: int, zero_gamma: bool = True, recompute: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(widen(width, stride=1))
        self.layer2 = nn.Sequential(widen(2 * width, stride=2))
        self.fc = nn.Linear(4 * width, classes)
        self.recompute = recompute
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, resnet.BasicBlock) and zero_gamma:
                nn.init.zeros_(module.bn2.weight)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> the pooled map (N, 4 * width)."""
        x = self.relu(self.bn1(self.conv1(images)))
        return pool(run_stages((self.layer1, self.layer2), x, recompute=self.recompute))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        return self.fc(self.features(images))


def widen(channels: int, stride: int) -> resnet.BasicBlock:
    """A basic block that doubles the channels."""
    shortcut = nn.Sequential(
        resnet.conv1x1(channels, 2 * channels, stride), nn.BatchNorm2d(2 * channels)
    )
    return resnet.BasicBlock(channels, 2 * channels, stride, shortcut)
