"""What is taken of an image: a random crop in training (Sec. 3.1), the centre in evaluation.

Every random choice comes from torch's global generator, which the train loader seeds for each copy
of an image. S pixels a side.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from common.config import require_choice, require_range

from .decode import PADDING, View, decode_crop


@dataclass
class Augment:
    """The crops of training and of evaluation."""

    size: int = 224  # pixels of a side
    crop: str = "random"  # random | shift: the centre moved by up to 4 pixels, for small images
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # share of the area
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])  # width by height
    flip: float = 0.5  # probability
    resize: int = 256  # shorter side of an image of which an evaluation takes the centre

    def __post_init__(self) -> None:
        require_choice("augment.crop", self.crop, ("random", "shift"))
        require_range("augment.flip", self.flip, 0, 1)
        require_range("augment.size", self.size, 1)
        for name, high in (("scale", 1.0), ("ratio", float("inf"))):
            found = getattr(self, name)
            if len(found) != 2 or not 0 < found[0] <= found[1] <= high:
                limit = ", up to 1" if high == 1 else ""
                raise ValueError(f"augment.{name}={found}: give [low, high], both above 0{limit}.")
        if self.resize < self.size:
            raise ValueError(
                f"augment.resize={self.resize} is less than augment.size={self.size}: the centre "
                "is cut out of the resized image, so give as much or more."
            )

    def draw(self, height: int, width: int) -> View:
        """A view to train on, of an image of this size."""
        if self.crop == "random":
            # Torchvision's own numbers; an image on "meta" has a size and no pixels.
            image = torch.empty((1, height, width), device="meta")
            box = RandomResizedCrop.get_params(image, self.scale, self.ratio)  # type: ignore
            view = View(box, (self.size, self.size), (0, 0), self.size)  # type: ignore[arg-type]
        else:
            top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
            view = replace(self._centre(height, width, self.size), shift=(top, left))
        return replace(view, flip=bool(torch.rand(()) < self.flip))

    def centre(self, height: int, width: int) -> View:
        """The view of an evaluation."""
        return self._centre(height, width, self.resize)

    def _centre(self, height: int, width: int, resize: int) -> View:
        """The centre of the image resized to this shorter side; rounded as torchvision does."""
        short = min(height, width)
        scaled = (resize * height // short, resize * width // short)
        corner = (round((scaled[0] - self.size) / 2), round((scaled[1] - self.size) / 2))
        return View((0, 0, height, width), scaled, corner, self.size)


def training_image(data: bytes, options: Augment, name: str = "an image") -> Tensor:
    """The bytes of an image file as uint8 (3, S, S), drawn anew by each call."""
    return decode_crop(data, name, options.draw)


def test_image(data: bytes, options: Augment, name: str = "an image") -> Tensor:  # noqa: PT028
    """The bytes of an image file as uint8 (3, S, S), as an evaluation takes it."""
    return decode_crop(data, name, options.centre)
