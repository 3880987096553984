"""Maps of joints: their average and decoding; card, section 7, numbers 2 and 5."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.ops import roi_align

from data_distillation.distill import (
    Merge,
    Transforms,
    View,
    average_maps,
    distill,
    flip_boxes,
    flip_maps,
    keypoint_maps,
    make_views,
    passes,
)
from data_distillation.net.decode import decode_keypoints
from data_distillation.net.inference import labelling
from tests.data_distillation.labelling import SIZE, detector, flip_keypoints

SWAP = (0, 2, 1)  # joints: nose, left, right
BOXES = torch.tensor([[4.0, 8, 28, 40], [10, 3, 44, 33], [20, 20, 60, 47]])


def random_boxes(sides: Tensor) -> Tensor:
    corner = torch.rand(len(sides), 2) * 50 - 5
    return torch.cat((corner, corner + sides), 1)


@pytest.mark.parametrize(("m", "joints"), [(56, 17), (24, 1), (7, 5)])
def test_decoding_equals_torchvisions(m, joints):
    torch.manual_seed(m)
    sides = torch.cat((torch.rand(12, 2) * 70, torch.rand(4, 2) * 1.2, torch.rand(2, 2) * 250))
    sides[0], sides[1], sides[2] = torch.tensor([[0, 0], [0.3, 90], [56, 56]])
    boxes = random_boxes(sides)
    maps = torch.randn(len(boxes), joints, m, m)
    theirs, _ = heatmaps_to_keypoints(maps, boxes)
    points, peaks = decode_keypoints(maps, boxes)
    torch.testing.assert_close(points, theirs[..., :2], rtol=0, atol=1e-4)
    assert torch.equal(peaks, maps.amax((2, 3)))


def test_decoding_in_pieces_is_the_same(monkeypatch):
    torch.manual_seed(0)
    boxes, maps = random_boxes(20 + torch.rand(9, 2) * 5), torch.randn(9, 4, 14, 14)
    points, _ = decode_keypoints(maps, boxes)
    monkeypatch.setattr("data_distillation.net.decode.PIXELS", 1)
    assert torch.equal(decode_keypoints(maps, boxes)[0], points)


def test_decoding_takes_the_first_of_equal_maxima_as_torchvision():
    boxes = torch.tensor([[0.0, 0, 9.5, 5.5], [0, 0, 10, 6]])
    maps = torch.zeros(2, 3, 8, 8)
    theirs = heatmaps_to_keypoints(maps, boxes)[0][..., :2]
    assert torch.equal(decode_keypoints(maps, boxes)[0], theirs)


@pytest.mark.parametrize(("row", "column"), [(10, 40), (30, 1), (54, 54)])
def test_a_peak_is_decoded_at_its_cell_within_one_pixel(row, column):
    maps = torch.zeros(1, 1, 56, 56)
    maps[0, 0, row, column] = 9
    points, peaks = decode_keypoints(maps, torch.tensor([[12.5, 30.25, 112.0, 230.0]]))
    expected = (12.5 + (column + 0.5) * 99.5 / 56, 30.25 + (row + 0.5) * 199.75 / 56)
    assert points[0, 0].tolist() == pytest.approx(expected, abs=1)
    assert peaks.item() == 9


def test_a_confidence_does_not_depend_on_the_size_of_the_box():
    maps = torch.randn(1, 2, 56, 56).flatten(2).softmax(-1).view(1, 2, 56, 56).expand(4, -1, -1, -1)
    sides = torch.tensor([28.0, 56, 112, 448])[:, None].expand(-1, 2)
    _, peaks = decode_keypoints(maps, torch.cat((torch.zeros(4, 2), sides), 1))
    assert torch.equal(peaks, peaks[:1].expand(4, -1))


def test_no_boxes_have_no_joints():
    points, peaks = decode_keypoints(torch.zeros(0, 5, 56, 56), torch.zeros(0, 4))
    assert points.shape == (0, 5, 2)
    assert peaks.shape == (0, 5)


def test_decoding_under_autocast_is_that_in_float32():
    torch.manual_seed(0)
    boxes, maps = random_boxes(20 + torch.rand(9, 2) * 20), torch.randn(9, 4, 14, 14)
    with torch.autocast("cpu", torch.bfloat16):
        points, _ = decode_keypoints(maps, boxes)
    assert torch.equal(points, decode_keypoints(maps, boxes)[0])


def test_a_map_that_is_flipped_twice_is_as_before_and_joints_swap():
    maps = torch.randn(2, 3, 4, 5)
    flipped = flip_maps(maps, SWAP)
    assert torch.equal(flipped[:, 1, :, 0], maps[:, 2, :, -1])
    assert torch.equal(flip_maps(flipped, SWAP), maps)
    assert torch.equal(flip_maps(maps, None), maps.flip(-1))


def test_the_average_is_a_loops():
    views = make_views(Transforms(scales=[40, 60], flip=True), 50)
    maps = [torch.randn(3, 3, 4, 4) for _ in views]
    loop = sum(
        each.flip(-1)[:, [0, 2, 1]] if view.flip else each
        for view, each in zip(views, maps, strict=True)
    ) / len(views)
    pairs = [(view, each.clone()) for view, each in zip(views, maps, strict=True)]
    mean = average_maps(pairs, BOXES, 50, Transforms(), SWAP)
    torch.testing.assert_close(mean, loop)


def test_large_boxes_have_no_part_in_up_scaled_passes_and_small_none_in_down_scaled():
    transforms = Transforms(scales=[40, 60], flip=False, size_dependent=True, area=900)
    views = [View(0, False), View(40, False), View(60, False)]
    maps = [torch.full((3, 1, 2, 2), value) for value in (1.0, 10.0, 100.0)]
    boxes = torch.tensor([[0.0, 0, 30, 29], [0, 0, 30, 30], [0, 0, 300, 300]])
    mean = average_maps(zip(views, maps, strict=True), boxes, 50, transforms, None)
    assert mean[:, 0, 0, 0].tolist() == [50.5, 5.5, 5.5]


class AlignedPool(nn.Module):
    """RoIAlign that a flip maps on itself, which torchvision's is not by half a cell."""

    def forward(self, features: dict, boxes: list[Tensor], sizes: list) -> Tensor:
        return roi_align(features["0"], boxes, 8, 0.25, 2, aligned=True)


class Sides(nn.Module):
    """Maps of a nose, and of a left and right joint that a mirror swaps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        nose = x[:, :1]
        left = x[:, 1:2] - x[:, 2:3].roll(1, -1)
        right = x[:, 1:2] - x[:, 2:3].roll(-1, -1)
        return self.scale * torch.cat((nose, left, right), 1)


def equivariant() -> nn.Module:
    """A keypoint detector whose maps are as those of the mirrored image, mirrored."""
    model = detector("keypoints")
    model.backbone = nn.Sequential(nn.AvgPool2d(4))
    heads = model.roi_heads
    heads.box_roi_pool.output_size = (4, 4)
    heads.box_head = nn.Sequential(nn.Flatten(), nn.Linear(48, 16))
    model.rpn.head.conv = nn.Conv2d(3, 8, 3, padding=1)
    heads.keypoint_roi_pool = AlignedPool()
    heads.keypoint_head, heads.keypoint_predictor = nn.Identity(), Sides()
    return model.eval()


def mean_maps(
    model: nn.Module, image: Tensor, boxes: Tensor, transforms: Transforms, heatmaps: str = "prob"
) -> Tensor:
    pairs = []
    with labelling(model):
        for one in passes(model, image, make_views(transforms, SIZE), transforms.max_size):
            pairs += zip(one.views, keypoint_maps(model, one, boxes, heatmaps), strict=True)
        return average_maps(pairs, boxes, SIZE, transforms, SWAP)


def test_a_flip_changes_nothing_for_an_equivariant_network():
    torch.manual_seed(0)
    model, image = equivariant(), torch.rand(3, SIZE, 64)
    once, both = Transforms([], flip=False), Transforms([], flip=True)
    maps = [mean_maps(model, image, BOXES, each) for each in (once, both)]
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-6)
    points = [decode_keypoints(each, BOXES)[0] for each in maps]
    torch.testing.assert_close(points[0], points[1], rtol=0, atol=1e-3)
    # Where a map ends at the border of the image, its maxima tie; their height stays.
    plain = distill(model, [image], once, Merge(), SWAP)[0]
    twice = distill(model, [image], both, Merge(), SWAP)[0]
    assert len(plain["boxes"]) > 5
    assert torch.equal(plain["boxes"], twice["boxes"])
    torch.testing.assert_close(plain["keypoints"][..., 2], twice["keypoints"][..., 2])
    wrong = distill(model, [image], both, Merge(), (0, 1, 2))[0]
    assert (wrong["keypoints"] - plain["keypoints"])[..., 2].abs().max() > 1e-3


def test_the_ensemble_of_a_mirrored_image_is_the_mirrored_ensemble():
    torch.manual_seed(0)
    model, image = detector("keypoints"), torch.rand(3, SIZE, 64)
    transforms = Transforms([40], flip=True, max_size=96)
    maps = mean_maps(model, image, BOXES, transforms)
    boxes = flip_boxes(BOXES, 64)
    mirrored = mean_maps(model, image.flip(-1), boxes, transforms)
    torch.testing.assert_close(flip_maps(mirrored, SWAP), maps, rtol=0, atol=1e-6)
    points, _ = decode_keypoints(maps, BOXES)
    others, _ = decode_keypoints(mirrored, boxes)
    torch.testing.assert_close(flip_keypoints(others, 64, SWAP), points, rtol=0, atol=1e-3)


@pytest.mark.parametrize("heatmaps", ["prob", "logit"])
def test_one_pass_and_many_have_confidences_of_one_kind(heatmaps):
    torch.manual_seed(0)
    model, image = detector("keypoints"), torch.rand(3, SIZE, 64)
    maps = []
    model.roi_heads.keypoint_predictor.register_forward_hook(lambda *args: maps.append(args[2]))
    merge = Merge(heatmaps=heatmaps)
    plain = distill(model, [image, image], Transforms([], flip=False), merge)[1]
    flat = maps[0].flatten(2)[len(maps[0]) // 2 :]
    peaks = (flat.softmax(-1) if heatmaps == "prob" else flat).amax(-1)
    torch.testing.assert_close(plain["keypoints"][..., 2], peaks)
    transforms = Transforms([40], flip=False)
    many = distill(model, [image], transforms, merge)[0]
    mean = mean_maps(model, image, many["boxes"], transforms, heatmaps)
    torch.testing.assert_close(many["keypoints"][..., 2], mean.amax((2, 3)))


def test_probabilities_and_logits_agree_for_one_pass_and_not_for_many():
    torch.manual_seed(0)
    model, image = detector("keypoints"), torch.rand(3, SIZE, 64)
    points = {
        (heatmaps, flip): distill(
            model, [image], Transforms([], flip=flip), Merge(heatmaps=heatmaps), SWAP
        )[0]["keypoints"]
        for heatmaps in ("prob", "logit")
        for flip in (False, True)
    }
    assert torch.equal(points["prob", False][..., :2], points["logit", False][..., :2])
    assert not torch.equal(points["prob", True][..., :2], points["logit", True][..., :2])


def test_joints_without_sides_see_no_flip():
    torch.manual_seed(0)
    model, image = detector("keypoints"), torch.rand(3, SIZE, 64)
    with pytest.warns(UserWarning, match="no joint is left or right"):
        found = distill(model, [image], Transforms([40], flip=True), Merge())[0]
    plain = distill(model, [image], Transforms([40], flip=False), Merge())[0]
    assert torch.equal(found["keypoints"], plain["keypoints"])
