"""Ignore regions: what neither trains as an object nor as background, and what they cost."""

import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork

from data_distillation.model import build_detector
from data_distillation.net.ignore import IgnoreRPN, covered_share
from tests.data_distillation.test_model import example, small

NONE = torch.zeros(0, 4)


def model_of(ignore: bool, **options):
    torch.manual_seed(0)
    return build_detector("keypoints", 1, 3, small(**options), ignore=ignore)


def test_the_covered_share_is_pycocotools_iou_with_a_crowd():
    torch.manual_seed(0)
    low = torch.rand(63, 2).double() * 40
    xywh = torch.cat([low, 1 + torch.rand(63, 2).double() * 25], 1)
    wanted = torch.from_numpy(coco.iou(xywh[3:].numpy(), xywh[:3].numpy(), [1] * 3)).amax(1)
    boxes = torch.cat([low, low + xywh[:, 2:]], 1)
    torch.testing.assert_close(covered_share(boxes[3:], boxes[:3]), wanted)
    assert (wanted == 0).any()
    assert (wanted > 0.99).any()


def test_anchors_in_a_region_are_neither_positive_nor_negative():
    rpn = model_of(True).rpn
    assert isinstance(rpn, IgnoreRPN)
    anchors = torch.tensor(
        [
            [0.0, 0, 10, 10],  # the object, inside the region
            [4.0, 4, 16, 16],  # inside the region
            [10.0, 10, 30, 30],  # a quarter of it inside
            [50.0, 50, 60, 60],  # far away
        ]
    )
    target = {"boxes": anchors[:1], "ignore": torch.tensor([[0.0, 0, 20, 20]])}
    labels, boxes = rpn.assign_targets_to_anchors(
        [anchors, anchors], [target, target | {"ignore": NONE}]
    )
    assert labels[0].tolist() == [1, -1, 0, 0]
    assert labels[1].tolist() == [1, 0, 0, 0]
    assert torch.equal(boxes[0][0], anchors[0])


def test_proposals_in_a_region_are_dropped_but_those_of_an_object():
    rpn = model_of(True).rpn
    proposals = torch.tensor([[0.0, 0, 10, 11], [4.0, 4, 16, 16], [10.0, 10, 30, 30]])
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "ignore": torch.tensor([[0.0, 0, 20, 20]])}
    assert rpn.uncovered(proposals, target).tolist() == proposals[[0, 2]].tolist()
    target["boxes"] = NONE
    assert rpn.uncovered(proposals, target).tolist() == proposals[2:].tolist()


def test_regions_are_resized_with_the_image():
    model = model_of(True, short_sides=[64], long_side=128).train()
    images, targets = example(ignore=torch.tensor([[8.0, 4, 16, 32]]))
    _, resized = model.transform(images, targets)
    assert resized[0]["ignore"].tolist() == [[16, 8, 32, 64]]
    assert targets[0]["ignore"].tolist() == [[8, 4, 16, 32]]  # the caller's stays
    torch.testing.assert_close(resized[0]["boxes"], 2 * targets[0]["boxes"])


@pytest.mark.parametrize("ignore", [{}, {"ignore": NONE}])
def test_without_regions_losses_are_bit_equal_to_torchvisions(ignore):
    losses = []
    for able in (False, True):
        model = model_of(able)
        losses.append(model(*example(**ignore)))
    assert type(model_of(False).rpn) is RegionProposalNetwork
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name


def test_evaluation_and_the_weights_are_torchvisions():
    plain, able = model_of(False).eval(), model_of(True).eval()
    able.load_state_dict(plain.state_dict())
    images, _ = example()
    with torch.no_grad():
        for a, b in zip(plain(images), able(images), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("objects", [0, 1])
def test_a_region_over_the_whole_image_leaves_finite_losses(objects):
    model = model_of(True)
    images, targets = example(ignore=torch.tensor([[-100.0, -100, 200, 200]]))
    targets = [
        {name: value[:objects] if name != "ignore" else value for name, value in target.items()}
        for target in targets
    ]
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


def objectness_loss(model, region: Tensor) -> float:
    images, targets = example(ignore=region)
    with torch.no_grad():
        return model(images, targets)["loss_objectness"].item()


def test_a_detector_sure_of_an_object_in_a_region_is_not_punished_for_it():
    model = model_of(True)
    head = model.rpn.head
    torch.nn.init.constant_(head.cls_logits.bias, 6.0)  # every anchor is an object
    far, whole = torch.tensor([[30.0, 0, 31, 1]]), torch.tensor([[-100.0, -100, 200, 200]])
    assert objectness_loss(model, far) > 2
    assert objectness_loss(model, whole) < 0.1
