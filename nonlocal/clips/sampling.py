"""Which frames a clip has, and which part of them a view shows.

n frames of a video, L frames of a clip, s frames from one of them to the next (the stride). vnn is
facebookresearch/video-nonlocal-net, the code of the paper's authors.
"""

import torch
from torch import Tensor


def training_indices(
    n: int, frames: int, stride: int, generator: torch.Generator | None = None
) -> Tensor:
    """The frames (L,) int64 of a random clip: it starts at 0..n - L s, at 0 in a short video.

    What lies beyond the end is taken from the beginning (vnn).
    """
    last = max(n - frames * stride, 0)
    start = int(torch.randint(last + 1, (), generator=generator))
    return (start + stride * torch.arange(frames)) % n


def evaluation_indices(
    n: int, frames: int, stride: int, *, clips: int = 10, sampler: str = "official"
) -> Tensor:
    """The frames (clips, L) int64 of the clips of a test.

    official: clip k starts at int(n / clips * k) and wraps around. ends: evenly from the first
    frame to the last, which stands in for those beyond it (SlowFast on Charades). center: one clip,
    in the middle; in a short video it starts at 0 and wraps around.
    """
    offsets = stride * torch.arange(frames)
    if sampler == "official":
        starts = torch.tensor([int(n / clips * k) % n for k in range(clips)])
        return (starts[:, None] + offsets) % n
    if sampler == "ends":
        last = max(n - (frames - 1) * stride - 1, 0)
        gap = last / max(clips - 1, 1)
        starts = torch.tensor([round(gap * k) for k in range(clips)])
        if clips == 1:
            starts = torch.tensor([last // 2])
        return (starts[:, None] + offsets).clamp(max=n - 1)
    if sampler != "center" or clips != 1:
        raise ValueError(
            f"test.sampler={sampler} with test.clips={clips}: choose official or ends, or center "
            "with test.clips=1."
        )
    return (max(n - frames * stride, 0) // 2 + offsets)[None] % n


def part_of(n: int, part: tuple[float, float]) -> range:
    """The frames of a part of a video, as (0, 0.5) for the first half; at least one."""
    first = min(int(n * part[0]), n - 1)
    return range(first, max(int(n * part[1]), first + 1))


def crop_corner(height: int, width: int, size: int, position: int) -> tuple[int, int]:
    """Top and left of the square `size` at position 0, 1, 2 along the longer side (vnn).

    Whole divisions: 2 may miss the last pixel, and all are equal where a side is longer by one.
    """
    top, left = (height - size) // 2, (width - size) // 2
    if top > 0:
        return top * position, left
    return top, left * position


def scaled_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width with the shorter side at `short`, the longer rounded down (vnn)."""
    # Differs: the shorter side is exact; int(size * ratio) can be one less, as floats go.
    longer = max(int(max(height, width) * (short / min(height, width))), short)
    return (short, longer) if height <= width else (longer, short)
