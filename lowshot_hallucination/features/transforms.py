"""What is seen of an image: a random view in training, the centre at test.

Images are uint8 (3, H, W), views uint8 (3, S, S). Random choices come from torch's global
generator, which the train loader seeds for each example.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

CROPS = ("random_resized", "shift", "none")


@dataclass(frozen=True)
class View:
    """The views of training and of test; sizes in pixels."""

    size: int
    resize: int  # shorter side of the image of which `centre` is cut
    crop: str = "random_resized"  # | shift | none
    flip: bool = True
    jitter: float = 0.0  # brightness, contrast and colour each times U[1 - jitter, 1 + jitter]

    def __post_init__(self) -> None:
        if not 8 <= self.size <= self.resize:
            raise ValueError(
                f"data.size={self.size}, data.resize={self.resize}: choose 8 <= size <= resize."
            )

    def centre(self, image: Tensor) -> Tensor:
        """The centre of the image whose shorter side became `resize`."""
        return F.center_crop(resize_short(image, self.resize), [self.size, self.size])

    def random(self, image: Tensor) -> Tensor:
        """A random crop, mirrored or not, in random light."""
        match self.crop:
            case "random_resized":
                image = random_resized_crop(image, self.size)
            case "shift":
                image = shift(self.centre(image), self.size // 8)
            case _:
                image = self.centre(image)
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return jitter(image, self.jitter) if self.jitter else image


def resize_short(image: Tensor, short: int) -> Tensor:
    """The image scaled to this shorter side; the very same where it has it already."""
    return image if min(image.shape[-2:]) == short else F.resize(image, [short], antialias=True)


def random_resized_crop(image: Tensor, size: int) -> Tensor:
    """8 % to 100 % of the area, of ratio 3/4 to 4/3, scaled to (size, size)."""
    top, left, height, width = v2.RandomResizedCrop(size).make_params([image]).values()
    return F.resized_crop(image, top, left, height, width, [size, size], antialias=True)


def shift(image: Tensor, most: int) -> Tensor:
    """The image (3, S, S) moved by up to `most` pixels each way, its border repeated."""
    size = image.shape[-1]
    top, left = torch.randint(2 * most + 1, (2,)).tolist()
    padded = F.pad(image, [most], padding_mode="edge")
    return padded[:, top : top + size, left : left + size]


def jitter(image: Tensor, strength: float) -> Tensor:
    """Brightness, then contrast, then colour, each by a factor of its own [HG: main.py]."""
    factors = (1 + strength * (2 * torch.rand(3) - 1)).tolist()
    for adjust, factor in zip(
        (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation), factors, strict=True
    ):
        image = adjust(image, factor)
    return image
