"""Joints and masks from maps; joints as torchvision's `heatmaps_to_keypoints`, many times as fast.

R regions, J joints, m the side of a map, N = R J. Boxes are float32 x1, y1, x2, y2 and joints x, y
in pixels of the image, continuous: a pixel's centre is at + 0.5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

PIXELS = 2**24  # of up-sampled maps at a time
OVERSHOOT = 57 / 128  # of bicubic weights: 2 n (1 + n), where n = 3 / 16 is that of one axis


def decode_keypoints(maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Joints (R, J, 2) at the maxima of maps (R, J, m, m), and the maxima (R, J) on the m x m grid.

    The maps are up-sampled to whole pixels of their boxes, bicubically, as torchvision's
    `heatmaps_to_keypoints` does box by box; here only where the maximum can be, and windows of
    similar sizes are one batch.
    """
    maps, boxes = maps.float(), boxes.float()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = sides.ceil().repeat_interleave(maps.shape[1], 0)  # (R J, 2), width and height
    flat = maps.flatten(0, 1)[:, None]
    start, size, peaks = find_windows(flat, pixels)
    places = torch.zeros_like(start)
    octave, bucket = (2 * size.clamp(min=16).log2()).ceil().unique(dim=0, return_inverse=True)
    for number in range(len(octave)):
        members = (bucket == number).nonzero()[:, 0]
        width, height = size[members].amax(0).long().tolist()
        for some in members.split(max(1, PIXELS // (width * height))):
            x = sample_points(start[some, 0], size[some, 0], pixels[some, 0], width)
            y = sample_points(start[some, 1], size[some, 1], pixels[some, 1], height)
            x, y = x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
            grid = torch.stack((x, y), -1)  # (n, height, width, 2)
            large = F.grid_sample(flat[some], grid, "bicubic", "border", align_corners=False)
            best = large.flatten(1).argmax(-1)  # (n,)
            places[some] = start[some] + torch.stack((best % width, best // width), -1)
    places = (places + 0.5).unflatten(0, maps.shape[:2])
    points = places * (sides / sides.ceil())[:, None] + boxes[:, None, :2]
    return points, peaks.unflatten(0, maps.shape[:2])


def find_windows(maps: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the maxima of maps (N, 1, m, m) are once up-sampled to `pixels` (N, 2: width, height).

    Returns the first pixel of each window and its size, (N, 2) both, and the maxima (N,) before.

    A point's 16 weights add up to 1 and the negative ones to -n at most, so that it is no more than
    (1 + n) max - n min of its 16 cells. A point that reaches what is known to be reached, at the
    pixel of the highest cell, therefore has a cell among its own that is above a bound.
    """
    m = maps.shape[-1]
    lines = torch.stack((maps[:, 0].amax(-2), maps[:, 0].amax(-1)), 1)  # of columns, of rows
    peaks, least = lines[:, 0].amax(-1), maps.flatten(1).amin(-1)
    near = ((lines.argmax(-1) + 0.5) * pixels / m).floor().minimum(pixels - 1)
    point = ((2 * near + 1) / pixels - 1)[:, None, None]
    known = F.grid_sample(maps, point, "bicubic", "border", align_corners=False).flatten()
    known = known - 1e-5 * (peaks.abs() + least.abs())  # rounding
    bound = (known + OVERSHOOT * least) / (1 + OVERSHOOT)
    high = (lines >= bound[:, None, None]).byte()  # (N, 2, m)
    first, last = high.argmax(-1), m - 1 - high.flip(-1).argmax(-1)
    start = ((first - 1.5) * pixels / m - 0.5).floor().clamp(min=0)  # two cells before the first
    stop = ((last + 2.5) * pixels / m - 0.5).ceil().minimum(pixels - 1)
    return start, stop - start + 1, peaks


def sample_points(start: Tensor, size: Tensor, pixels: Tensor, length: int) -> Tensor:
    """Centres of `size` pixels (N,) of a side of `pixels` from `start` on, -1..1, (N, length).

    The last one fills up. A repeated pixel is never the first of the largest, which is the one that
    argmax gives.
    """
    index = torch.arange(length, device=pixels.device)
    index = start[:, None] + torch.minimum(index, size[:, None] - 1)
    return (2 * index + 1) / pixels[:, None] - 1


def paste_masks(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (M, H, W) bool on the CPU of soft ones (M, 1, m, m): above 0.5."""
    pieces = [
        paste_masks_in_image(soft, own, size)[:, 0].gt(0.5).cpu()
        for soft, own in zip(maps.split(16), boxes.split(16), strict=True)
    ]
    return torch.cat(pieces)
