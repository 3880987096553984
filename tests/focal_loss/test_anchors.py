"""Anchors of focal_loss beside the paper, detectron2's formula and torchvision's generator."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from focal_loss.net.anchors import Anchors


@pytest.mark.parametrize(
    ("height", "width", "count"), [(800, 1344, 201_600), (640, 1024, 122_760), (800, 800, 120_087)]
)
@pytest.mark.parametrize("mode", ["exact", "torchvision", "detectron"])
def test_the_papers_images_have_as_many_anchors_as_the_card_says(height, width, count, mode):
    anchors = Anchors(mode=mode)
    assert anchors(height, width).shape == (count, 4)
    assert sum(anchors.counts(height, width)) == count


def test_level_3_anchors_have_the_sizes_of_section_4():
    boxes = Anchors().cell(3)
    sides = torch.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], 1)
    wide = torch.tensor([[45.255, 22.627], [57.018, 28.509], [71.838, 35.919]])
    torch.testing.assert_close(sides[0::3], wide, atol=5e-4, rtol=0)
    square = torch.tensor([32.0, 40.317, 50.797])
    torch.testing.assert_close(sides[1::3], square[:, None].expand(3, 2), atol=5e-4, rtol=0)
    torch.testing.assert_close(sides[2::3], wide.flip(1), atol=5e-4, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_exact_anchors_equal_detectron2s_formula(offset):
    ours = Anchors(levels=(3, 4), offset=offset)(40, 56)
    theirs = []
    for stride in (8, 16):
        for row in range(math.ceil(40 / stride)):
            for column in range(math.ceil(56 / stride)):
                x, y = (column + offset) * stride, (row + offset) * stride
                for size in (4 * stride * 2 ** (i / 3) for i in range(3)):
                    for ratio in (0.5, 1.0, 2.0):
                        w = math.sqrt(size**2 / ratio)
                        h = ratio * w
                        theirs.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(ours, torch.tensor(theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(800, 1344), (224, 160), (96, 608)])
def test_torchvision_anchors_equal_its_generator_bit_by_bit(height, width):
    sizes = tuple(
        (x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)
    )
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    anchors = Anchors(mode="torchvision")
    maps = [torch.empty(1, 1, *grid) for grid in anchors.grids(height, width)]
    theirs = generator(ImageList(torch.empty(1, 3, height, width), [(height, width)]), maps)[0]
    assert torch.equal(anchors(height, width), theirs)


def test_detectron_anchors_round_at_stride_size_and_count_pixels():
    cell = Anchors(mode="detectron", ratios=(1.0, 2.0, 0.5)).cell(3)
    # stride 8: square 8 x 8; ratio 2: width round(sqrt(32)) = 6, height 12; ratio 1/2: 11 x 6
    sides = cell[:, 2:] - cell[:, :2] + 1
    torch.testing.assert_close(sides[:3], torch.tensor([[32.0, 32], [24, 48], [44, 24]]))
    torch.testing.assert_close((cell[:, :2] + cell[:, 2:]) / 2, torch.full((9, 2), 3.5))


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
@pytest.mark.parametrize("ratios", [(1.0,), (0.5, 1.0, 2.0)])
def test_table_1c_has_scales_times_ratios_anchors_a_cell(scales, ratios):
    anchors = Anchors(levels=(3, 3), scales=scales, ratios=ratios)
    assert anchors(64, 64).shape == (64 * scales * len(ratios), 4)
    assert len(anchors.order) == anchors.per_cell == scales * len(ratios)


def test_anchors_are_remembered_and_usable_in_training_after_inference_mode():
    anchors = Anchors(levels=(3, 3))
    with torch.inference_mode():
        first = anchors(32, 32)
    assert anchors(32, 32) is first
    (first * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("mode", ["exact", "torchvision", "detectron"])
def test_the_best_overlap_of_a_box_is_the_largest_with_any_anchor(mode):
    grid = Anchors(levels=(3, 5), mode=mode, offset=0.3 if mode == "exact" else 0.0)
    generator = torch.Generator().manual_seed(0)
    for height, width in ((90, 150), (200, 64)):
        low = torch.rand(200, 2, generator=generator) * torch.tensor([width, height])
        side = 2 ** (torch.rand(200, 2, generator=generator) * 9 - 1)
        boxes = torch.cat([low, low + side], 1)  # also beyond the image
        sizes = torch.tensor([[height, width]]).expand(200, 2)
        expected = box_iou(boxes, grid(height, width)).amax(1)
        torch.testing.assert_close(grid.best_overlap(boxes, sizes), expected)


def test_no_anchor_meets_a_box_of_3_pixels_and_one_its_own():
    boxes = torch.tensor([[40.0, 40, 43, 43], [0.2, 0.3, 0.6, 0.9], [24, 24, 56, 56]])
    best = Anchors().best_overlap(boxes, torch.tensor([[128, 128]]).expand(3, 2))
    assert (best[:2] < 0.01).all()
    assert best[2] == 1
