"""Reading and writing PNGs of whole numbers: segment ids, class labels, instance numbers.

H, W height and width. Pillow decodes, as nothing else at hand is faster. What it accepts silently
is checked before: 16-bit colours, which it reduces to 8 bits, and wrong checksums.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from .ids import LIMIT, id_to_rgb

MAX_PIXELS = 2**26  # larger PNGs are not read: decoded, one would take a gigabyte
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = 33  # bytes of the signature and the first chunk
_KINDS = {0: "grey", 2: "RGB", 3: "a palette", 4: "grey with alpha", 6: "RGBA"}
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError)
_DAMAGE = (*_BROKEN, struct.error, zlib.error, Image.DecompressionBombError)  # of Pillow


def read_ids(path: str | Path) -> np.ndarray:
    """Ids (H, W) int32 of a panoptic PNG.

    Raises ValueError, naming the file, where it is missing, cut off, larger than `MAX_PIXELS`, or
    anything but a PNG of 8-bit red, green and blue.
    """
    data = read_bytes(path)
    depth, kind, _ = _header(data, path)
    if (depth, kind) != (8, 2):
        raise ValueError(
            f"{path} holds {_KINDS.get(kind, 'unknown')} pixels of {depth} bits: a panoptic PNG is "
            "8-bit RGB, id = red + 256 green + 65536 blue"
        )
    with _open(data, path) as image:
        width, height = image.size
        pixels = image.tobytes("raw", "RGBX")  # 4 bytes each, so that no arithmetic is needed
    ids = np.frombuffer(pixels, "<u4") & (LIMIT - 1)
    return ids.astype(np.int32, copy=False).reshape(height, width)


def read_labels(path: str | Path, *, channels: int = 1) -> np.ndarray:
    """Labels (H, W) of a grey or palette PNG of 8 or 16 bits, int32; palettes give their indices.

    channels: 2 for the first two of several channels, (H, W, 2), which must be of 8 bits.
    Raises ValueError, naming the file, for another kind of PNG and what `read_ids` refuses.
    """
    data = read_bytes(path)
    depth, kind, _ = _header(data, path)
    several = kind in (2, 4, 6)
    # Pillow would stretch grey of fewer bits to 0..255, and drop the lower byte of 16-bit colours.
    if several != (channels > 1) or (several and depth != 8) or (kind == 0 and depth < 8):
        expected = (
            "two or more channels of 8 bits" if channels > 1 else "one channel of 8 or 16 bits"
        )
        found = f"{_KINDS.get(kind, 'unknown')} pixels of {depth} bits"
        raise ValueError(f"{path} holds {found}: expected {expected}")
    with _open(data, path) as image:
        labels = np.asarray(image)
    return labels.astype(np.int32)[..., :channels] if several else labels.astype(np.int32)


def png_size(path: str | Path) -> tuple[int, int]:
    """Height and width from the header of a PNG; ValueError, naming the file, where it is none."""
    return _header(read_bytes(path, most=_HEADER), path)[2]


def _header(data: bytes, path: str | Path) -> tuple[int, int, tuple[int, int]]:
    """Bits of a channel, kind of pixels, and (height, width).

    Pillow does not tell the first: 16-bit RGB is RGB to it.
    """
    if len(data) < _HEADER or not data.startswith(_SIGNATURE):
        raise ValueError(f"{path} is not a PNG, or was cut off: write it again")
    width, height = struct.unpack(">II", data[16:24])
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(
            f"{path} says that it has {width} x {height} pixels: give a PNG of at most "
            f"panoptic.files.pixels.MAX_PIXELS = {MAX_PIXELS}"
        )
    return data[24], data[25], (height, width)


def _verify(data: bytes, path: str | Path) -> None:
    """Check the checksums of a PNG, which Pillow does not do for the pixels."""
    place, name = len(_SIGNATURE), b""
    while name != b"IEND":
        if place + 12 > len(data):
            raise ValueError(f"{path} is cut off: write it again")
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[place + 4 : end])):
            raise ValueError(f"{path} is damaged or cut off: a checksum is wrong: write it again")
        place = end + 4


@contextmanager
def _open(data: bytes, path: str | Path) -> Iterator[Image.Image]:
    """The decoded image; ValueError where it cannot be decoded."""
    _verify(data, path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            yield image
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be decoded ({error}): write it again") from error


def read_bytes(path: str | Path, *, most: int = -1) -> bytes:
    """Content of a file, or its first `most` bytes; ValueError names it where it cannot be read."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError(f"{path} cannot be read: it is not a regular file")
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def write_ids(path: str | Path, ids: np.ndarray) -> None:
    """Write ids (H, W) in [0, 2**24) as a panoptic PNG, whole or not at all."""
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"{path}: ids have the shape {ids.shape} instead of (H, W)")
    try:
        rgb = id_to_rgb(ids)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    write_bytes(path, encode_png(rgb))


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of pixels (H, W, 3) or (H, W), uint8, or uint16 where grey.

    Each row is stored as its difference to the row above (PNG's filter 2): most rows of a map are
    like the one above, and a fixed filter saves the search that takes most of Pillow's time.
    """
    height, width = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    rows = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">"))
    rows = rows.view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    header = struct.pack(">IIBBBBB", width, height, depth, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made. Raises OSError, naming the file."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if part.exists():
            part.unlink()
