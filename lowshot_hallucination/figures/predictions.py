"""Images with the class that they are taken for."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.transforms.v2.functional import resize

from common.draw import grid
from common.images import read_image

SIDE = 128  # pixels of an image's longer side
COLUMNS = 4


def draw_images(files: Sequence[str], classes: Sequence[tuple[str, float]]) -> Tensor:
    """The images, each below its likeliest class with the probability of it; uint8 (3, h, w)."""
    images = [fit(read_image(file)) for file in files]
    return grid(images, COLUMNS, titles=[f"{name} {p:.0%}" for name, p in classes])


def fit(image: Tensor) -> Tensor:
    """The image, enlarged or made smaller."""
    factor = SIDE / max(image.shape[1:])
    size = [max(1, round(factor * side)) for side in image.shape[1:]]
    return resize(image, size, antialias=True)
