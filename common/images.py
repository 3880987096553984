"""Reading pictures of any common kind as RGB, and folders of them sorted into classes."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


class UnreadableImage(ValueError):
    """A file that is no readable picture; the message names the file."""


# What Pillow raises for damaged files of one kind or another.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image(path: str | Path, *, exif: bool = True) -> Tensor:
    """Picture as uint8 (3, H, W) RGB, turned upright by its EXIF tag unless `exif` is false.

    Grey is repeated, 16 bits become 8, CMYK and palettes are converted, alpha is dropped. The
    format is recognised by content, not by name. Raises UnreadableImage, naming the file.
    """
    # Pillow, as torchvision.io is deprecated from 0.29 on.
    with _opened(path) as image:
        array = np.array(_rgb(ImageOps.exif_transpose(image) if exif else image))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width as stored, from the header alone. Raises UnreadableImage."""
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An open picture; whatever fails while it is open becomes UnreadableImage."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: check the data set's folder")
    try:
        with Image.open(path) as image:
            yield image
    except _DAMAGE as error:
        raise UnreadableImage(
            f"{path} cannot be read as a picture ({error}): replace the file, or count and "
            "replace such pictures in training (data.bad_images=skip)"
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB version of a picture of any mode."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.asarray(image).astype(np.float64)
        if values.max(initial=0) > 65535 or values.min(initial=0) < 0:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))  # 65535 / 255 = 257
    elif image.mode == "F":
        raise ValueError("its pixels are 32-bit floats")
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette may hold transparency
    return image.convert("RGB")


class ImageFolder(Dataset):
    """Pictures in one folder per class: root/class/.../file, classes numbered by sorted name.

    Items are (picture uint8 (3, H, W), label); `transform` is applied to the picture. `files`,
    `labels` and `classes` hold what was found. Names that start with a dot are left out.
    """

    def __init__(self, root: str | Path, transform: Callable[[Tensor], Any] | None = None) -> None:
        self.root, self.transform = Path(root), transform
        tree = f"{root}/<class>/<picture>"
        if not self.root.is_dir():
            raise ValueError(f"{root} is not a folder: expected {tree}")
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        loose = [e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)]
        if loose:
            raise ValueError(
                f"{self.root / loose[0]} lies outside a class folder ({len(loose)} such pictures): "
                f"sort them as {tree}"
            )
        self.classes = [entry.name for entry in entries if entry.is_dir()]
        if not self.classes:
            raise ValueError(f"{root} has no class folders: expected {tree}")
        self.files: list[str] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.classes):
            found = _pictures(self.root / name)
            if not found:
                raise ValueError(f"class {name!r} has no pictures in {self.root / name}")
            self.files += found
            self.labels += [label] * len(found)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_image(self.files[index])
        return self.transform(image) if self.transform else image, self.labels[index]


def _pictures(folder: Path) -> list[str]:
    """Picture files anywhere below a folder, in sorted order."""
    return [
        os.path.join(parent, name)
        for parent, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    ]
