"""Sec. 4: which anchor learns which object, how boxes are coded, and what a wrong box costs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder, Matcher

from focal_loss.loss import BACKGROUND, IGNORED
from focal_loss.targets import assign as module
from focal_loss.targets.assign import assign
from focal_loss.targets.boxes import box_loss, decode, encode

UNUSED = torch.tensor([200.0, 200, 210, 210])


def some_boxes(count: int, seed: int, most: float = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 60
    return torch.cat((low, low + 8 + torch.rand(count, 2, generator=generator) * most), dim=1)


def matches(anchors: Tensor, boxes: Tensor, **options: Any) -> list[int]:
    """Labels of one image whose object m is of class m."""
    labels, _ = assign(anchors, [boxes], [torch.arange(len(boxes))], **options)
    return labels[0].tolist()


@pytest.mark.parametrize("low_quality", ["none", "any"])
def test_matching_equals_torchvisions_matcher(low_quality):
    anchors = some_boxes(400, seed=0)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality == "any")
    for seed in range(1, 20):
        boxes = some_boxes(1 + seed % 6, seed)
        expected = matcher(ops.box_iou(boxes, anchors))
        assert matches(anchors, boxes, low_quality=low_quality) == expected.tolist()


def detectron(anchors: Tensor, boxes: Tensor) -> list[int]:
    """The rule of Detectron, one anchor and object at a time."""
    iou = ops.box_iou(anchors, boxes).tolist()
    labels = [IGNORED] * len(anchors)
    for m in range(len(boxes)):
        best = max(row[m] for row in iou)
        for a, row in enumerate(iou):
            if row[m] == best:
                labels[a] = row.index(max(row))
    for a, row in enumerate(iou):
        if max(row) >= 0.5:
            labels[a] = row.index(max(row))
    for a, row in enumerate(iou):
        if max(row) < 0.4:
            labels[a] = BACKGROUND
    return labels


def test_the_default_rescues_like_detectron():
    anchors, rescued = some_boxes(150, seed=0), 0
    for seed in range(1, 30):
        boxes = some_boxes(1 + seed % 6, seed)
        expected = detectron(anchors, boxes)
        assert matches(anchors, boxes) == expected
        rescued += expected != matches(anchors, boxes, low_quality="none")
    assert rescued  # the rule was at work


def test_an_overlap_of_exactly_04_is_ignored_and_of_05_is_positive():
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    for height, expected in ((5.0, 0), (4.0, IGNORED), (3.9, BACKGROUND), (4.9, IGNORED)):
        box = torch.tensor([[0.0, 0, 10, height]])
        assert matches(anchor, box, low_quality="none") == [expected]


@pytest.mark.parametrize(
    ("low_quality", "expected"),
    [
        ("none", [BACKGROUND, IGNORED, 2]),
        ("d1", [BACKGROUND, 1, 2]),
        ("any", [0, 1, 2]),
    ],
)
def test_best_anchors_below_05_are_rescued_as_asked(low_quality, expected):
    corners = torch.tensor([0.0, 100, 200])
    anchors = torch.stack((corners, corners, corners + 10, corners + 10), dim=1)
    boxes = anchors.clone()
    boxes[:, 3] -= torch.tensor([6.5, 5.5, 4.5])  # IoU 0.35, 0.45, 0.55
    assert matches(anchors, boxes, low_quality=low_quality) == expected


def test_a_rescued_anchor_learns_the_object_that_it_overlaps_most():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 4.2], [0, 0, 10, 4.4]])  # the anchor is the best of both
    labels, match = assign(anchors, [boxes], [torch.tensor([5, 7])])
    assert labels.tolist() == [[7]]
    assert match.tolist() == [[1]]


def test_boxes_without_area_match_nothing_instead_of_everything():
    anchors = torch.tensor([[0.0, 0, 32, 32], [16, 16, 48, 48], [100, 100, 164, 164]])
    boxes = torch.tensor([[10.0, 10, 10, 30], [0, 0, 30, 30]])
    for low_quality in ("none", "d1", "any"):
        expected = [1, BACKGROUND, BACKGROUND]
        assert matches(anchors, boxes, low_quality=low_quality) == expected
    for wrong in ([20.0, 20, 10, 10], [math.nan, 0, 5, 5], [0, 0, math.nan, 5], [5, 5, 5, 5]):
        boxes = torch.tensor([wrong])
        assert matches(anchors, boxes, low_quality="any") == [BACKGROUND] * 3


def test_an_object_that_no_anchor_touches_rescues_none():
    anchors = some_boxes(50, seed=0)
    assert matches(anchors, UNUSED[None], low_quality="any") == [BACKGROUND] * 50


def test_an_image_without_objects_is_background_alone_and_among_others():
    anchors, boxes = some_boxes(50, seed=0), some_boxes(3, seed=1)
    nothing, no_class = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    labels, _ = assign(anchors, [nothing], [no_class])
    assert labels.tolist() == [[BACKGROUND] * 50]
    labels, _ = assign(anchors, [nothing, boxes], [no_class, torch.arange(3)])
    assert labels.tolist() == [[BACKGROUND] * 50, matches(anchors, boxes)]


def test_images_are_matched_independently_of_their_batch():
    anchors = some_boxes(300, seed=0)
    boxes = [some_boxes(count, seed=count) for count in (1, 7, 3)]
    classes = [torch.arange(len(each)) + 10 for each in boxes]
    labels, match = assign(anchors, boxes, classes)
    for i in range(3):
        own_labels, own_match = assign(anchors, boxes[i : i + 1], classes[i : i + 1])
        assert labels[i].equal(own_labels[0])
        positive = labels[i] >= 0
        assert match[i][positive].equal(own_match[0][positive])


@pytest.mark.parametrize("low_quality", ["none", "d1", "any"])
def test_huge_inputs_are_matched_in_pieces_with_the_same_result(low_quality, monkeypatch):
    anchors, boxes = some_boxes(300, seed=0), [some_boxes(4, seed=3), some_boxes(2, seed=4)]
    classes = [torch.arange(4), torch.arange(2)]
    whole = assign(anchors, boxes, classes, low_quality=low_quality)
    monkeypatch.setattr(module, "CHUNK", 8 * 37)
    pieces = assign(anchors, boxes, classes, low_quality=low_quality)
    assert all(map(torch.equal, whole, pieces))


def test_background_anchors_mostly_on_a_crowd_are_ignored_if_asked():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 5, 10, 15], [0, 4, 10, 14], [0, 0, 10, 9]])
    crowd, boxes = torch.tensor([[0.0, 0, 40, 10], [0, 0, 1, 1]]), torch.tensor([[0.0, 0, 10, 10]])
    options: dict[str, Any] = {"low_quality": "none", "positive": 0.9, "negative": 0.9}
    labels, _ = assign(anchors, [boxes], [torch.tensor([3])], crowds=[crowd], **options)
    assert labels.tolist() == [[3, BACKGROUND, IGNORED, 3]]  # covered 1, 0.5, 0.6, 1
    labels, _ = assign(anchors, [boxes], [torch.tensor([3])], crowds=[crowd[:0]], **options)
    assert labels.tolist() == [[3, BACKGROUND, BACKGROUND, 3]]


def test_an_unknown_rescue_is_named():
    with pytest.raises(ValueError, match="'all'; choose one of none, d1, any"):
        matches(some_boxes(5, seed=0), some_boxes(1, seed=1), low_quality="all")


def test_offsets_of_a_box_by_hand_in_both_conventions():
    anchor, box = torch.tensor([0.0, 0, 32, 32]), torch.tensor([4.0, 8, 44, 40])
    expected = [0.25, 0.25, 0.2231435513, 0]
    assert encode(box, anchor).tolist() == pytest.approx(expected, abs=1e-7)
    expected = [0.2424242, 0.2424242, 0.2170645, 0]
    assert encode(box, anchor, plus_one=True).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_coding_equals_torchvisions(weights):
    boxes, anchors = some_boxes(50, seed=0), some_boxes(50, seed=1)
    coder = BoxCoder(weights)
    offsets = encode(boxes, anchors, weights=weights)
    torch.testing.assert_close(offsets, coder.encode([boxes], [anchors])[0])
    moved = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * 3
    expected = coder.decode(moved, [anchors])[:, 0]
    torch.testing.assert_close(decode(moved, anchors, weights=weights), expected)


@pytest.mark.parametrize("plus_one", [False, True])
def test_decoding_is_the_inverse_of_encoding(plus_one):
    boxes, anchors = some_boxes(50, seed=0), some_boxes(50, seed=1)
    weights = (10.0, 10.0, 5.0, 5.0)
    offsets = encode(boxes, anchors, weights=weights, plus_one=plus_one)
    back = decode(offsets, anchors, weights=weights, plus_one=plus_one)
    torch.testing.assert_close(back, boxes, rtol=1e-5, atol=1e-4)


def test_a_decoded_side_is_at_most_625_times_the_anchors():
    anchor = torch.tensor([0.0, 0, 16, 16])
    box = decode(torch.tensor([0.0, 0, 1e9, 5]), anchor)
    assert (box[2:] - box[:2]).tolist() == pytest.approx([1000, 1000], rel=1e-5)
    side = decode(torch.tensor([0.0, 0, 4.1351666, 0]), anchor)
    assert (side[2] - side[0]).item() == pytest.approx(1000, rel=1e-5)


def test_offsets_of_many_images_and_classes_decode_with_the_same_anchors():
    anchors = some_boxes(20, seed=0)
    offsets = torch.randn(2, 20, 3, 4, generator=torch.Generator().manual_seed(1))
    boxes = decode(offsets, anchors[:, None])
    torch.testing.assert_close(boxes[1, :, 2], decode(offsets[1, :, 2], anchors))


def test_smooth_l1_turns_linear_at_one_ninth():
    anchors = torch.tensor([[0.0, 0, 32, 32]]).expand(2, 4)
    offsets = torch.tensor([[0.05, 0, 0, 0], [0.5, 0, 0, 0]])
    loss = box_loss(offsets, anchors, anchors)
    assert loss.tolist() == pytest.approx([0.01125, 0.4444444], abs=1e-7)
    assert box_loss(offsets, anchors, anchors, kind="l1").tolist() == pytest.approx([0.05, 0.5])
    assert box_loss(offsets, anchors, anchors, beta=0).tolist() == pytest.approx([0.05, 0.5])


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_overlap_losses_compare_the_decoded_boxes(kind):
    theirs = {
        "giou": ops.generalized_box_iou_loss,
        "diou": ops.distance_box_iou_loss,
        "ciou": ops.complete_box_iou_loss,
    }[kind]
    anchors, predicted, boxes = (some_boxes(30, seed) for seed in (0, 1, 2))
    ours = box_loss(encode(predicted, anchors), anchors, boxes, kind=kind)
    torch.testing.assert_close(ours, theirs(predicted, boxes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "diou", "ciou"])
def test_no_positive_anchor_costs_exactly_nothing_and_keeps_the_graph(kind):
    offsets = torch.zeros(0, 4, requires_grad=True)
    loss = box_loss(offsets, torch.zeros(0, 4), torch.zeros(0, 4), kind=kind).sum()
    assert loss == 0
    assert torch.autograd.grad(loss, offsets)[0].shape == (0, 4)


def test_an_unknown_box_loss_is_named():
    with pytest.raises(ValueError, match="'iou'; choose one of smooth_l1, l1, giou, diou, ciou"):
        box_loss(torch.zeros(1, 4), torch.ones(1, 4), torch.ones(1, 4), kind="iou")
