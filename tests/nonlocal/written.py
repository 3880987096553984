"""Videos whose pixels are the number of the frame, written by PyAV, and what reads it off."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

BLOCK, BITS = 16, 8  # pixels a side, and numbers below 256
HEIGHT, WIDTH = 2 * BLOCK, 4 * BLOCK


def frame(number: int) -> np.ndarray:
    """uint8 (32, 64, 3): 2 x 4 black and white blocks, the number in binary."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8).reshape(2, 4)
    return (bits * 255).repeat(BLOCK, 0).repeat(BLOCK, 1)[..., None].repeat(3, 2)


def numbers(clip: Tensor) -> list[int]:
    """The numbers of frames (T, 3, 32, 64)."""
    blocks = clip.float().mean(1).unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK).mean((3, 4))
    bits = (blocks > 128).flatten(1).long()
    return (bits << bits.new_tensor(range(BITS))).sum(1).tolist()


def write_video(
    path: Path,
    count: int,
    *,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 2,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    noise: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of `count` numbered frames, 25 a second, or at `times` in hundredths of a second.

    noise: levels, which make the file larger.
    """
    av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
    own = {"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, 25, options=own | (options or {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        rng = np.random.default_rng(0)
        unit = Fraction(1, 25 if times is None else 100)
        stream.codec_context.time_base = unit
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            pixels = frame(number) // 2 + 64 - noise // 2
            pixels += rng.integers(0, noise + 1, pixels.shape, np.uint8)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = number if times is None else times[number]
            picture.time_base = unit
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with sound alone."""
    av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 16000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 4096), np.float32), format="fltp", layout="mono"
        )
        sound.sample_rate, sound.pts = 16000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path
