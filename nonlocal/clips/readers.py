"""Videos of any kind by one function: files, folders of frames, arrays.

reader = open_video("cat.mp4")          # or a folder of JPEG files, or cat.npy
clip = reader.read(range(0, 64, 2))     # uint8 (32, 3, H, W)
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .decoders import (
    MAX_PIXELS,
    PyAVReader,
    TorchCodecReader,
    UnreadableVideo,
    check_indices,
    require_playable,
    require_small,
)

READERS = ("auto", "pyav", "torchcodec")  # of video files
VIDEO_SUFFIXES: tuple[str, ...] = (".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".flv")
VIDEO_SUFFIXES += (".mpg", ".mpeg", ".ts", ".wmv", ".ogv")
ARRAY_SUFFIXES = (".npy", ".pt")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Reader(Protocol):
    """What `open_video` gives."""

    count: int  # frames
    fps: float  # frames a second; 0: unknown
    damage: str  # what is wrong with the file; empty: nothing

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` (T), each 0 to count - 1, as uint8 (T, 3, H, W)."""
        ...


def open_video(
    path: str | Path, reader: str = "auto", *, damaged: str = "raise", count: int = 0
) -> Reader:
    """A reader of a video file, a folder of frames, or an array (T, H, W, 3) in .npy or .pt.

    reader: of video files, "auto", "pyav" or "torchcodec". damaged: "raise" stops at a file that
    breaks off, "play" takes what can be read. count: frames that a folder must have; 0: any.
    Raises UnreadableVideo, also where there is no such file.
    """
    path = os.fspath(path)
    if damaged not in ("raise", "play"):
        raise ValueError(f"damaged={damaged} is not known: choose raise or play.")
    if os.path.isdir(path):
        return FolderReader(path, damaged, count)
    if not os.path.exists(path):
        raise UnreadableVideo(f"{path} does not exist: check the list and its folder")
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise UnreadableVideo(f"{path} is no regular file")
    if path.lower().endswith(ARRAY_SUFFIXES):
        return ArrayReader(path)
    if choose_reader(reader) == "pyav":
        return PyAVReader(path, damaged)
    return TorchCodecReader(path, damaged)


@cache
def choose_reader(name: str) -> str:
    """The reader of video files: PyAV, or torchcodec where only that loads; ValueError if none."""
    if name not in READERS:
        raise ValueError(f"reader={name} is not known: choose {', '.join(READERS)}.")
    faults = []
    for each in ("pyav", "torchcodec") if name == "auto" else (name,):
        fault = _load(each)
        if not fault:
            return each
        faults.append(fault)
    raise ValueError(
        f"video files cannot be read: {'; '.join(faults)}. Install PyAV (pip install -e "
        "'.[video]'), or extract the frames into folders."
    )


def _load(reader: str) -> str:
    """Why a reader's package does not load; empty if it does."""
    try:
        if reader == "pyav":
            import av  # noqa: F401
        else:
            from torchcodec.decoders import VideoDecoder

            VideoDecoder(b"")  # FFmpeg's libraries are loaded by the first one
    except ImportError as error:
        return f"{error.name or reader} is not installed"
    except RuntimeError as error:
        if "Could not load" in str(error):
            return "torchcodec finds no FFmpeg libraries on this system"
    except (ValueError, TypeError):
        pass  # it is there, and says that an empty file is no video
    return ""


class FolderReader:
    """The images of a folder in the order of the numbers in their names, as 2.jpg before 10.jpg."""

    fps = 0.0

    def __init__(self, path: str, damaged: str = "raise", count: int = 0) -> None:
        names = [name for name in os.listdir(path) if name.lower().endswith(FRAME_SUFFIXES)]
        names = sorted((name for name in names if name[0] != "."), key=natural)
        self.path, self.damage = path, ""
        if len(names) < count:
            self.damage = f"it has {len(names)} frames, and the list says {count}"
        self.names = names[:count] if count else names
        self.count = len(self.names)
        require_playable(path, self.count, self.damage, damaged)

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` (T), each 0 to count - 1, as uint8 (T, 3, H, W)."""
        frames: dict[int, Tensor] = {}
        for i in check_indices(indices, self.count, self.path):
            frames[i] = _read_frame(os.path.join(self.path, self.names[i]))
            first = next(iter(frames.values()))
            if frames[i].shape != first.shape:
                sizes = f"{tuple(frames[i].shape[1:])}, others {tuple(first.shape[1:])}"
                raise UnreadableVideo(f"{self.path}/{self.names[i]} has the size {sizes}")
        return torch.stack([frames[int(i)] for i in indices])


class ArrayReader:
    """A uint8 array (T, H, W, 3) in a .npy file, or such a tensor in a .pt file."""

    fps, damage = 0.0, ""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            if path.lower().endswith(".npy"):
                self.array = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                self.array = torch.load(path, weights_only=True, mmap=True).numpy()
        except Exception as error:  # damage shows in many ways
            reason = (str(error).splitlines() or [""])[0]
            raise UnreadableVideo(f"{path} cannot be read as an array ({reason})") from error
        shape, dtype = self.array.shape, self.array.dtype
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
            raise UnreadableVideo(f"{path} is {dtype} {shape}: expected uint8 (T, H, W, 3)")
        self.count = shape[0]
        require_small(path, shape[1] * shape[2])
        require_playable(path, self.count, "", "raise")

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` (T), each 0 to count - 1, as uint8 (T, 3, H, W)."""
        check_indices(indices, self.count, self.path)
        frames = torch.from_numpy(self.array[np.asarray(indices, np.int64)])
        return frames.permute(0, 3, 1, 2).contiguous()


def all_frames(video: Reader, block: int = 32) -> Iterator[Tensor]:
    """Each frame uint8 (3, H, W) of a video in order, holding `block` of them at most."""
    if isinstance(video, PyAVReader):
        yield from video.all_frames()
        return
    for start in range(0, video.count, block):
        yield from video.read(range(start, min(start + block, video.count)))


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _read_frame(path: str) -> Tensor:
    """An image file as uint8 (3, H, W) RGB."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has more than {MAX_PIXELS} pixels")
            array = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        reason = str(error).replace(f" {path!r}", "")
        raise UnreadableVideo(f"{path} cannot be read as an image ({reason})") from error
    return torch.from_numpy(array).permute(2, 0, 1)
