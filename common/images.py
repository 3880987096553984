"""Reading images of any common kind as RGB, and folders of them sorted into classes."""

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

# An image of more pixels is refused: decoded, it would take a gigabyte. Pillow's own limit lies at
# 179 million, from 89 million on it warns.
MAX_PIXELS = 2**26
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(ValueError):
    """A file that is no readable image; the message names the file."""


_ORIENTATION = 0x0112  # EXIF tag; from 5 on height and width are exchanged

# What Pillow raises for damaged files of one kind or another.
DAMAGE: tuple[type[Exception], ...]
DAMAGE = OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError
DAMAGE += struct.error, zlib.error, Image.DecompressionBombError


def read_image(path: str | Path, *, exif: bool = True) -> Tensor:
    """Image as uint8 (3, H, W) RGB, turned upright by its EXIF tag unless `exif` is false.

    Grey is repeated, 16 bits become 8, CMYK and palettes are converted, alpha is dropped. The
    format is recognised by content, not by name. Raises UnreadableImage, naming the file.
    """
    # Pillow, as torchvision.io is deprecated from 0.29 on.
    with open_image(path) as image:
        array = np.array(to_rgb(ImageOps.exif_transpose(image) if exif else image))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def image_size(path: str | Path, *, exif: bool = False) -> tuple[int, int]:
    """Height and width from the header alone: as stored, or with `exif` once turned upright.

    Raises UnreadableImage.
    """
    with open_image(path) as image:
        turned = exif and image.getexif().get(_ORIENTATION, 1) > 4
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """An open image of at most `MAX_PIXELS`; any failure becomes UnreadableImage."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist: check the data set's folder")
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise OSError("it is not a regular file")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"its {image.width} x {image.height} pixels are more than "
                    f"common.images.MAX_PIXELS = {MAX_PIXELS}"
                )
            yield image
    except DAMAGE as error:
        reason = str(error).replace(f" {os.fspath(path)!r}", "")  # Pillow names the file, too
        raise UnreadableImage(
            f"{path} cannot be read as an image ({reason}): replace the file"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB version of an image of any mode."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.asarray(image).astype(np.int32)
        if values.max(initial=0) > 65535 or values.min(initial=0) < 0:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 255 = 257
    elif image.mode == "F":
        raise ValueError("its pixels are 32-bit floats")
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette may hold transparency
    return image.convert("RGB")


class ImageFolder(Dataset):
    """Images in one folder per class: root/class/.../file, classes numbered by sorted name.

    Items are (image uint8 (3, H, W), label); `transform` is applied to the image. `files`,
    `labels` and `classes` hold what was found. Names that start with a dot are left out. Links to
    folders are followed, but no folder is searched twice for a class.
    """

    def __init__(self, root: str | Path, transform: Callable[[Tensor], Any] | None = None) -> None:
        self.root, self.transform = Path(root), transform
        tree = f"{root}/<class>/<image>"
        if not self.root.is_dir():
            raise ValueError(f"{root} is not a folder: expected {tree}")
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        loose = [e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)]
        if loose:
            raise ValueError(
                f"{self.root / loose[0]} lies outside a class folder ({len(loose)} such images): "
                f"sort them as {tree}"
            )
        self.classes = [entry.name for entry in entries if entry.is_dir()]
        if not self.classes:
            raise ValueError(f"{root} has no class folders: expected {tree}")
        self.files: list[str] = []
        self.labels: list[int] = []
        for label, (name, found) in enumerate(find_images(self.root, self.classes)):
            if not found:
                raise ValueError(f"class {name!r} has no images in {self.root / name}")
            self.files += found
            self.labels += [label] * len(found)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = read_image(self.files[index])
        return self.transform(image) if self.transform else image, self.labels[index]


def find_images(root: Path, classes: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each class with the image files anywhere below its folder in `root`, in order.

    Links to folders are followed, but no folder is searched twice for a class, and none above it.
    """
    outside: set[tuple[int, int]] = set()
    for folder in (root, *root.resolve().parents, *map(root.joinpath, classes)):
        _is_new(folder, outside)
    for name in classes:
        searched, found = set(outside), []
        for parent, folders, names in os.walk(root / name, followlinks=True):
            inner = sorted(folders)
            folders[:] = [f for f in inner if _is_new(os.path.join(parent, f), searched)]
            images = (n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and n[0] != ".")
            found += [os.path.join(parent, image) for image in images]
        yield name, sorted(found, key=os.path.split)


def _is_new(folder: str | Path, searched: set[tuple[int, int]]) -> bool:
    """Whether a folder is not among those searched, whatever link led to it; from now on it is."""
    status, before = os.stat(folder), len(searched)
    searched.add((status.st_dev, status.st_ino))
    return len(searched) > before
