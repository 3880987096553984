"""Where a joint is looked for: the windows hold the maxima of the whole up-sampled maps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from data_distillation.benchmark import Options, make_maps
from data_distillation.net.decode import OVERSHOOT, decode_keypoints, find_windows

SIZES = torch.tensor([[1.0, 1], [2, 90], [13, 7], [24, 24], [31, 50], [111, 64], [240, 150]])


def blobs(m: int) -> Tensor:
    """A narrow peak in each of some places, at borders and corners too, (N, 1, m, m)."""
    cells = torch.arange(m) + 0.5
    places = torch.tensor(
        [[0.0, 0], [m, m], [0.5, m / 2], [m / 3, m / 4], [m - 1.2, 3], [7.1, 7.9]]
    )
    distance = (cells - places[:, :1, None]) ** 2 + (cells[:, None] - places[:, 1:, None]) ** 2
    return torch.exp(-distance / 2)[:, None]


KINDS = {
    "probabilities": lambda m: (9 * blobs(m)).flatten(1).softmax(1).view(-1, 1, m, m),
    "logits": lambda m: 20 * blobs(m) - 10 + torch.randn(6, 1, m, m),
    "two peaks": lambda m: blobs(m) + 0.97 * blobs(m).roll(1, 0),
    "noise": lambda m: torch.randn(6, 1, m, m),
    "a constant": lambda m: torch.full((6, 1, m, m), -0.3),
    "single cells": lambda m: F.one_hot(torch.arange(6) * 7, m * m).float().view(6, 1, m, m),
    "holes": lambda m: -blobs(m),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [8, 24])
def test_a_window_holds_all_maxima_of_the_up_sampled_map(kind, m):
    torch.manual_seed(m)
    maps = KINDS[kind](m)
    for width, height in SIZES.long().tolist():
        pixels = torch.tensor([[width, height]]).float().expand(len(maps), -1)
        start, size, peaks = find_windows(maps, pixels)
        stop = start + size
        assert torch.equal(peaks, maps.amax((1, 2, 3)))
        assert (start >= 0).all()
        assert (stop <= pixels).all()
        large = F.interpolate(maps, (height, width), mode="bicubic", align_corners=False)[:, 0]
        for n, row, column in (large == large.amax((1, 2), keepdim=True)).nonzero().tolist():
            assert start[n, 0] <= column < stop[n, 0]
            assert start[n, 1] <= row < stop[n, 1]


@pytest.mark.parametrize("kind", ["probabilities", "logits", "two peaks"])
def test_joints_from_windows_are_torchvisions(kind):
    torch.manual_seed(0)
    maps = KINDS[kind](24).expand(-1, 3, -1, -1).repeat(len(SIZES), 1, 1, 1)
    maps = maps * (1 + 1e-2 * torch.rand(maps.shape))  # no ties
    sides = (SIZES - 0.4 * torch.rand(SIZES.shape)).repeat_interleave(6, 0)
    corners = 50 * torch.rand(len(sides), 2)
    boxes = torch.cat((corners, corners + sides), 1)
    theirs = heatmaps_to_keypoints(maps, boxes)[0][..., :2]
    torch.testing.assert_close(decode_keypoints(maps, boxes)[0], theirs, rtol=0, atol=1e-3)


def test_windows_of_peaks_are_a_small_part_of_their_boxes():
    maps, boxes = make_maps(Options(regions=20, sides=[64, 256]))
    pixels = (boxes[:, 2:] - boxes[:, :2]).ceil().repeat_interleave(17, 0)
    _, size, _ = find_windows(maps.flatten(0, 1)[:, None], pixels)
    assert (size.prod(1) / pixels.prod(1)).mean() < 0.05


def test_no_bicubic_point_has_more_negative_weights():
    weights = F.interpolate(torch.eye(9)[:, None, None], (1, 9 * 512), mode="bicubic")[:, 0, 0]
    negative, positive = -weights.clamp(max=0).sum(0), weights.clamp(min=0).sum(0)
    both = negative[:, None] * positive + positive[:, None] * negative
    assert both.max().item() == pytest.approx(OVERSHOOT, abs=1e-5)
