"""Regions of Mask R-CNN: anchors, RoIAlign, mask targets and pasting, against other ways."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign, roi_align

from panoptic.model import Options, PanopticFPN
from panoptic.net.regions import Anchors, RegionHeads, RoIAlign, paste, pool_by_products

STRIDES = (4, 8, 16, 32)
MINI = {"backbone": "mini", "norm": "gn", "freeze_at": 0}


def boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
    low, high = corners.min(1).values, corners.max(1).values
    return torch.cat([low, high + 0.5], 1)


def pyramid(height: int, width: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {str(i): torch.randn(2, 5, height // s, width // s) for i, s in enumerate(STRIDES)}


def test_without_alignment_pooling_and_anchors_are_torchvisions():
    features = pyramid(320, 416)
    regions = [boxes(30, 320, 416, 1), boxes(20, 320, 416, 2)]
    ours = RoIAlign(7, STRIDES, aligned=False, products=False)(features, regions, [])
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    torch.testing.assert_close(ours, theirs(features, regions, [(320, 416)] * 2))

    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    maps = [torch.zeros(1, 1, 24, 40), torch.zeros(1, 1, 12, 20), torch.zeros(1, 1, 2, 3)]
    sizes, ratios = (32, 64, 128), (0.5, 1.0, 2.0)
    mine = Anchors(sizes, ratios, (4, 8, 64), aligned=False)(images, maps)
    other = AnchorGenerator(tuple((s,) for s in sizes), (ratios,) * 3)(images, maps)
    assert torch.equal(mine[0], other[0])


def test_aligned_anchors_keep_their_area_and_lie_one_stride_apart():
    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    maps = [torch.zeros(1, 1, 2, 3)]  # of stride 64, where a division would say 48 and 53
    (anchors,) = Anchors((50,), (0.5, 1.0, 2.0), (64,), aligned=True)(images, maps)
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.full((18,), 2500.0))
    torch.testing.assert_close((height / width)[:3], torch.tensor([0.5, 1.0, 2.0]))
    centres = ((anchors[:, 2:] + anchors[:, :2]) / 2)[1::3]
    expected = [[64.0 * x, 64.0 * y] for y in range(2) for x in range(3)]
    torch.testing.assert_close(centres, torch.tensor(expected))


@pytest.mark.parametrize("products", [False, True])
def test_aligned_pooling_of_a_ramp_gives_the_positions_of_the_bins(products):
    # Cell i of stride 4 has its centre at pixel 4 i + 2
    ramp = (4 * torch.arange(40) + 2.0).expand(1, 1, 40, 40)
    box = torch.tensor([[21.0, 30.0, 77.0, 100.0]])
    pool = RoIAlign(7, (4,), aligned=True, products=products)
    pooled = pool({"0": ramp}, [box], [])[0, 0]
    torch.testing.assert_close(pooled[3], 21 + 56 * (torch.arange(7) + 0.5) / 7)


@pytest.mark.parametrize("samples", [0, 2])
def test_products_equal_torchvisions_operator_and_its_gradient(samples):
    torch.manual_seed(1)
    found = []
    maps = torch.randn(3, 6, 16, 24, dtype=torch.float64)
    rois = [F.pad(boxes(9, 90, 130, n).double() - 20, (1, 0), value=n) for n in (0, 2)]
    weight = torch.randn(18, 6, 7, 7, dtype=torch.float64)
    for operator in ("products", "torchvision"):
        x = maps.clone().requires_grad_()
        if operator == "products":
            pooled = pool_by_products(x, torch.cat(rois), 7, 4, samples)
        else:
            pooled = roi_align(x, torch.cat(rois), 7, 0.25, samples, True)
        (pooled * weight).sum().backward()
        found.append((pooled.detach(), x.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_pooling_no_region_gives_none():
    pool = RoIAlign(7, STRIDES, aligned=True, products=True)
    nothing = [torch.zeros(0, 4), torch.zeros(0, 4)]
    assert pool(pyramid(64, 64), nothing, []).shape == (0, 5, 7, 7)


def small(**options: bool) -> PanopticFPN:
    return PanopticFPN(Options(**MINI, **options), thing_classes=3, stuff_classes=1)


def heads(aligned: bool) -> RegionHeads:
    return small(aligned=aligned).instance.roi_heads


def test_under_autocast_boxes_and_losses_stay_in_float32():
    torch.manual_seed(3)
    network = small()
    target = {"boxes": torch.tensor([[3.0, 4, 30, 25]]), "labels": torch.tensor([1])}
    target |= {"masks": torch.ones(1, 32, 48), "semantic": torch.zeros(32, 48).long()}
    image = torch.rand(3, 32, 48)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network([image], [target])
        (one,) = network.eval()([image])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {one[key].dtype for key in ("boxes", "scores", "semantic")} == {torch.float32}
    steps = one["boxes"] * 16  # bfloat16 has 8 bits: none finer than 1/8 from 16 on
    assert (steps != steps.round()).any()


def test_mask_targets_are_the_part_of_the_mask_within_the_box():
    mask = torch.zeros(2, 20, 30, dtype=torch.uint8)
    mask[1, 4:12, 10:18] = 1
    box = torch.tensor([[6.0, 4.0, 22.0, 12.0]])
    index = torch.tensor([1])
    cut = heads(True).mask_targets([box], [index], [{"masks": mask}], 16)[0]
    assert torch.equal(cut[8], torch.tensor([0.0] * 4 + [1.0] * 8 + [0.0] * 4))
    assert cut.mean() == 0.5
    theirs = heads(False).mask_targets([box], [index], [{"masks": mask}], 16)
    assert torch.equal(theirs, project_masks_on_boxes(mask, box, index, 16))


def test_a_pasted_mask_equals_grid_sampling():
    torch.manual_seed(2)
    probabilities, places = torch.rand(12, 28, 28), boxes(12, 60, 90) - 3
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(90) + 0.5, indexing="ij")
    x1, y1, x2, y2 = places[:, :, None, None].unbind(1)
    grid = torch.stack([(x - x1) / (x2 - x1), (y - y1) / (y2 - y1)], -1) * 2 - 1
    expected = F.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]
    sure = (expected - 0.5).abs() > 1e-4
    assert torch.equal(paste(probabilities, places, (60, 90))[sure], (expected >= 0.5)[sure])


def test_a_full_mask_fills_its_box_and_chunks_change_nothing(monkeypatch):
    places = torch.tensor([[10.0, 5.0, 38.0, 25.0], [70.0, 50.0, 90.0, 60.0], [3.0, 3.0, 4.0, 4.0]])
    full = torch.ones(3, 28, 28)
    masks = paste(full, places, (60, 90))
    for mask, (x1, y1, x2, y2) in zip(masks, places.int().tolist(), strict=True):
        expected = torch.zeros(60, 90, dtype=torch.bool)
        expected[y1:y2, x1:x2] = True
        assert torch.equal(mask, expected)
    monkeypatch.setattr("panoptic.net.regions.CHUNK", 1)
    assert torch.equal(paste(full, places, (60, 90)), masks)
