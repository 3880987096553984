"""Trunks of SWAG, the paper's successor (arXiv 2201.08371): torchvision's, with a layer `fc`.

Names of the weights are torchvision's, but for its `heads.head`, which is `fc` here.
"""

import torch
from torch import Tensor, nn
from torchvision.models import get_model, regnet, vision_transformer

from .resnext import pool

SWAG = {  # D of the features: torchvision's name
    3024: "regnet_y_16gf",
    3712: "regnet_y_32gf",
    7392: "regnet_y_128gf",
    768: "vit_b_16",
    1024: "vit_l_16",
    1280: "vit_h_14",
}


def build_swag(name: str, side: int, classes: int) -> "RegNet | Transformer":
    """The network of this name, for K classes; images of a transformer have `side` pixels."""
    if name.startswith("regnet"):
        return RegNet(get_model(name, weights=None, num_classes=classes))
    return Transformer(get_model(name, weights=None, num_classes=classes, image_size=side))


class RegNet(nn.Module):
    """A RegNet of torchvision, whose layers it takes."""

    def __init__(self, net: regnet.RegNet) -> None:
        super().__init__()
        self.fc: nn.Linear
        self.stem, self.trunk_output, self.fc = net.stem, net.trunk_output, net.fc

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> the pooled map (N, D)."""
        return pool(self.trunk_output(self.stem(images)))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        return self.fc(self.features(images))


class Transformer(nn.Module):
    """A vision transformer of torchvision, whose layers it takes; images have S pixels a side."""

    def __init__(self, net: vision_transformer.VisionTransformer) -> None:
        super().__init__()
        self.fc: nn.Linear
        self.conv_proj, self.class_token, self.encoder = net.conv_proj, net.class_token, net.encoder
        self.side, self.fc = net.image_size, net.heads.head

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> the class token behind the last block (N, D)."""
        if images.shape[2:] != (self.side, self.side):
            raise ValueError(
                f"network.side={self.side} wants images of that many pixels, not of "
                f"{images.shape[3]}: give size={self.side} where the images are cropped."
            )
        patches = self.conv_proj(images).flatten(2).mT
        token = self.class_token.expand(len(images), -1, -1)
        return self.encoder(torch.cat([token, patches], 1))[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> logits (N, K)."""
        return self.fc(self.features(images))
