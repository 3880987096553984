"""A residual trunk for images of 32 x 32 pixels on two CPU cores."""

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import Basic, initialise, run_blocks


class Small(nn.Module):
    """A stem of stride 2 and three basic blocks; d = 4 * channels, 64 at 16 channels.

    The maps of 32 x 32 pixels are 16, 8 and 4 wide.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(Basic(channels, channels, 1))
        self.layer2 = nn.Sequential(Basic(channels, 2 * channels, 2))
        self.layer3 = nn.Sequential(Basic(2 * channels, 4 * channels, 2))
        self.width = 4 * channels
        initialise(self)

    def forward(self, images: Tensor, *, last_relu: bool = True) -> Tensor:
        """Normalised (B, 3, H, W) -> the averaged last map (B, d), >= 0 after its ReLU."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        stages = self.layer1, self.layer2, self.layer3
        return run_blocks(stages, x, last_relu=last_relu).mean((2, 3))
