"""The mask branch within a stock Mask R-CNN: whose masks count, and what is found."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import nn
from torchvision import tv_tensors
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss, project_masks_on_boxes
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from maskx_rcnn import transfer
from maskx_rcnn.model import segment
from maskx_rcnn.transfer import MaskPredictor, MaskXHeads, WeightTransfer, mask_targets

CLASSES, WIDTH, CHANNELS = 7, 12, 8  # with background; of the box head; of the mask features


def network(predictor: MaskPredictor | None = None, **options) -> MaskRCNN:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    model = MaskRCNN(
        backbone,
        min_size=64,
        max_size=64,
        rpn_post_nms_top_n_train=20,
        box_batch_size_per_image=16,
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(256 * 49, WIDTH), nn.ReLU()),
        box_predictor=FastRCNNPredictor(WIDTH, CLASSES),
        mask_predictor=MaskRCNNPredictor(256, CHANNELS, CLASSES),
    )
    predictor = predictor or MaskPredictor(256, CHANNELS, transfer=WeightTransfer(60, CHANNELS))
    model.roi_heads = MaskXHeads.of(model.roi_heads, predictor, **options)
    return model


def targets(labels=((1, 4), (4,))) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) for _ in labels]
    result = []
    for own in labels:
        boxes = torch.tensor([[4.0 + 8 * i, 6, 36 + 8 * i, 50] for i in range(len(own))])
        masks = torch.zeros(len(own), 64, 64, dtype=torch.uint8)
        for mask, (x, y, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y : bottom - 10, x:right] = 1
        result.append({"boxes": boxes, "labels": torch.tensor(own), "masks": masks})
    return images, result


def loss(model, images, wanted, seed=0):
    torch.manual_seed(seed)
    return model(images, [dict(each) for each in wanted])


def test_the_mask_loss_leaves_the_box_head_alone_and_reaches_the_rest():
    model = network()
    loss(model, *targets())["loss_mask"].backward()
    heads = model.roi_heads
    assert all(p.grad is None for p in heads.box_predictor.parameters())
    trunk = (model.backbone.body, model.backbone.fpn)
    for part in (heads.mask_predictor.transfer, heads.mask_head, *trunk):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


def test_without_the_stop_the_loss_reaches_the_rows_of_the_classes_with_masks():
    transfer = WeightTransfer(60, CHANNELS)
    predictor = MaskPredictor(256, CHANNELS, transfer=transfer, stop_gradient=False)
    model = network(predictor, classes_with_masks={1, 2, 3})
    loss(model, *targets())["loss_mask"].backward()
    boxes = model.roi_heads.box_predictor
    assert {int(n) for n in boxes.cls_score.weight.grad.any(1).nonzero()} == {1}
    assert {int(n) for n in boxes.bbox_pred.weight.grad.any(1).nonzero()} == {4, 5, 6, 7}


def test_masks_of_classes_without_masks_do_not_count_not_even_garbage():
    model = network(classes_with_masks={1, 2, 3})
    images, wanted = targets()
    first = loss(model, images, wanted)
    for each in wanted:
        each["masks"][each["labels"] == 4] = 1 - each["masks"][each["labels"] == 4]
    assert loss(model, images, wanted)["loss_mask"] == first["loss_mask"]
    for each in wanted:  # nor does it matter that they are there at all
        each["has_mask"] = each["labels"] != 4
        each["masks"] = each["masks"][each["has_mask"]]
    again = loss(model, images, wanted)
    assert {name: value.item() for name, value in again.items()} == pytest.approx(
        {name: value.item() for name, value in first.items()}, abs=0
    )


@pytest.mark.parametrize("way", ["no class", "no flag", "no key"])
def test_without_any_mask_the_loss_is_0_and_has_gradients(way):
    options = {"classes_with_masks": {3}} if way == "no class" else {}
    model = network(**options)
    images, wanted = targets()
    for each in wanted:
        if way == "no flag":
            each["has_mask"] = torch.zeros(len(each["labels"]), dtype=torch.bool)
            each["masks"] = each["masks"][:0]
        elif way == "no key":
            del each["masks"]
    value = loss(model, images, wanted)["loss_mask"]
    assert value.item() == 0
    value.backward()
    heads = model.roi_heads
    branch = [*heads.mask_head.parameters(), *heads.mask_predictor.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in branch)


def test_the_loss_of_all_masks_is_torchvisions_where_targets_are_left_soft(monkeypatch):
    heads = network().roi_heads
    _, wanted = targets()
    sides = dict(zip("0123", (16, 8, 4, 2), strict=True))
    features = {name: torch.randn(2, 256, side, side) for name, side in sides.items()}
    boxes = [each["boxes"] for each in wanted]
    matched = [torch.arange(len(each)) for each in boxes]
    labels = [each["labels"] for each in wanted]
    given = (features, boxes, matched, labels, [(64, 64)] * 2, wanted)
    own = torch.cat(labels)
    logits = heads.logits(features, boxes, own, [(64, 64)] * 2)
    pairs = list(zip(wanted, boxes, matched, strict=True))
    hard = torch.cat([mask_targets(w["masks"], box, rows, 28) for w, box, rows in pairs])
    counted = F.binary_cross_entropy_with_logits(logits, hard, reduction="sum") / hard.numel()
    assert heads.mask_loss(*given).item() == pytest.approx(counted.item(), rel=1e-6)
    full = torch.zeros(len(own), CLASSES, 28, 28)
    full[torch.arange(len(own)), own] = logits
    theirs = maskrcnn_loss(full, boxes, [w["masks"] for w in wanted], labels, matched)
    monkeypatch.setattr(transfer, "mask_targets", project_masks_on_boxes)
    assert heads.mask_loss(*given).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert abs(theirs.item() - counted.item()) > 1e-5  # so that the targets tell


def test_a_mask_without_any_pixel_is_a_target_of_zeros():
    heads = network(train_boxes="gt").roi_heads
    _, wanted = targets([[1]])
    wanted[0]["masks"] = torch.zeros_like(wanted[0]["masks"])
    features = {"0": torch.randn(1, 256, 16, 16)} | dict.fromkeys("123", torch.randn(1, 256, 8, 8))
    given = ([wanted[0]["boxes"]], [torch.tensor([0])], [torch.tensor([1])], [(64, 64)], wanted)
    logits = heads.logits(features, given[0], torch.tensor([1]), [(64, 64)])
    found = heads.mask_loss(features, *given)
    assert found.item() == pytest.approx(F.softplus(logits).mean().item(), rel=1e-6)


@pytest.mark.parametrize("side", [0.6, 0.01])
def test_a_box_of_less_than_a_pixel_is_trained_on_and_segmented(side):
    model = network(train_boxes="gt")
    images, wanted = targets([[1]])
    wanted[0]["boxes"] = torch.tensor([[20.2, 20.2, 20.2 + side, 20.2 + side]])
    value = loss(model, images, wanted)["loss_mask"]
    value.backward()
    assert 0 < value.item() < math.inf
    (inside,) = mask_targets(wanted[0]["masks"], wanted[0]["boxes"], torch.tensor([0]), 28)
    assert inside.all()  # it lies within the mask
    (found,) = segment(model.eval(), images, [wanted[0]["boxes"]], [torch.tensor([1])])
    assert found.shape == (1, 64, 64)
    assert found.sum() <= 4


def tight(mask: torch.Tensor) -> torch.Tensor:
    """The box around a mask (H, W)."""
    return masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])


def test_has_mask_stays_with_its_objects_through_flip_resize_and_crop():
    """By torchvision's transforms, with a mask of zeros for each object that has none."""
    has_mask = torch.tensor([False, True, False, True, True])
    masks = torch.zeros(5, 64, 64, dtype=torch.uint8)
    places = [(0, 0, 6, 6), (10, 20, 30, 50), (24, 24, 60, 40), (30, 30, 50, 62), (2, 50, 20, 60)]
    for mask, known, (left, top, right, bottom) in zip(masks, has_mask, places, strict=True):
        mask[top:bottom, left:right] = known
    boxes = tv_tensors.BoundingBoxes(places, format="XYXY", canvas_size=(64, 64))
    target = {"boxes": boxes, "labels": torch.arange(1, 6), "has_mask": has_mask}
    geometry = v2.Compose(
        [
            v2.RandomHorizontalFlip(1),
            v2.Resize((128, 128)),
            v2.CenterCrop((100, 108)),
            v2.SanitizeBoundingBoxes(labels_getter=lambda x: (x[1]["labels"], x[1]["has_mask"])),
        ]
    )
    image, target = geometry(torch.rand(3, 64, 64), target | {"masks": tv_tensors.Mask(masks)})
    target["masks"] = target["masks"][target["has_mask"]]
    labels = target["labels"].tolist()
    assert labels == [2, 3, 4, 5]  # the corner of the first one was cut off
    assert target["has_mask"].tolist() == [True, False, True, True]
    model = network(train_boxes="gt")
    _, (scaled,) = model.transform([image], [dict(target)])  # the network resizes once more
    assert torch.equal(scaled["has_mask"], target["has_mask"])
    assert scaled["masks"].shape == (3, 59, 64)
    matched = torch.arange(len(labels))
    found = model.roi_heads.regions(scaled["boxes"], matched, scaled["labels"], scaled)
    assert found[2].tolist() == [2, 4, 5]
    for box, row, _ in zip(*found, strict=True):
        assert (tight(scaled["masks"][row]) - box).abs().max() <= 2
    assert loss(model, [image], [target])["loss_mask"] > 0


def test_targets_are_close_to_polygons_drawn_at_their_size():
    random = np.random.default_rng(0)
    agreed, stock = [], []
    for _ in range(60):
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        radius = random.uniform(16, 80) * random.uniform(0.5, 1, 12)
        polygon = np.stack([90 + radius * np.cos(angles), 90 + radius * np.sin(angles)], 1)
        low, high = polygon.min(0), polygon.max(0)
        scaled = ((polygon - low) * 28 / (high - low)).ravel().tolist()
        drawn = torch.from_numpy(rle.decode(rle.frPyObjects([scaled], 28, 28)).copy())[..., 0]
        mask = rle.decode(rle.frPyObjects([polygon.ravel().tolist()], 180, 180))[..., 0]
        masks, box = torch.from_numpy(mask.copy())[None], torch.tensor([[*low, *high]]).float()
        rows = torch.zeros(1, dtype=torch.int64)
        agreed.append((mask_targets(masks, box, rows, 28)[0] == drawn).float().mean().item())
        theirs = project_masks_on_boxes(masks, box, rows, 28)[0] >= 0.5
        stock.append((theirs == drawn).float().mean().item())
    assert np.mean(agreed) > 0.985
    assert np.mean(agreed) > np.mean(stock)


def test_gt_boxes_change_what_the_mask_branch_is_trained_on_alone():
    images, wanted = targets()
    first = loss(network(), images, wanted)
    second = loss(network(train_boxes="gt"), images, wanted)
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"loss_mask"}


def test_by_overlap_a_region_may_take_the_mask_of_another_class():
    heads = network(classes_with_masks={1}, match="overlap").roi_heads
    _, wanted = targets([[1, 4]])
    proposals = wanted[0]["boxes"][1:]  # lies on the second object and was assigned to the first
    first, label = torch.tensor([0]), torch.tensor([1])
    assert heads.regions(proposals, first, label, wanted[0])[1].tolist() == [1]
    heads.match = "assigned"
    assert heads.regions(proposals, first, label, wanted[0])[1].tolist() == [0]


def test_new_heads_keep_the_options_of_those_before():
    heads = network(match="overlap", classes_with_masks={2}).roi_heads
    again = MaskXHeads.of(heads, heads.mask_predictor, match="assigned")
    assert (again.match, again.classes_with_masks) == ("assigned", {2})


@torch.no_grad()
def test_new_heads_with_stock_weights_find_what_stock_heads_find():
    images, _ = targets()
    model = network()
    stock = MaskRCNNPredictor(256, CHANNELS, CLASSES)
    ours = MaskPredictor(256, CHANNELS, num_classes=CLASSES)
    ours.load_state_dict(stock.state_dict())
    results = []
    for heads in (MaskXHeads.of(model.roi_heads, ours), stock_heads(model.roi_heads, stock)):
        heads.score_thresh, heads.detections_per_img = 0.0, 8
        model.roi_heads = heads
        results.append(model.eval()(images))
    for one, two in zip(*results, strict=True):
        assert len(two["labels"]) == 8
        assert two["masks"].any()
        for name, value in two.items():
            torch.testing.assert_close(one[name], value, msg=name)


def stock_heads(heads: RoIHeads, predictor: MaskRCNNPredictor) -> RoIHeads:
    """Torchvision's own with the modules of ours."""
    stock = copy.copy(heads)
    stock.__class__ = RoIHeads
    stock._modules = heads._modules | {"mask_predictor": predictor}
    return stock


@torch.no_grad()
def test_results_have_masks_of_the_classes_asked_for():
    model = network().eval()
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, 8
    images, _ = targets()
    full = model(images)
    assert all(each["has_mask"].all() for each in full)
    label = int(full[0]["labels"][0])
    model.roi_heads = MaskXHeads.of(
        model.roi_heads, model.roi_heads.mask_predictor, output_classes={label}
    ).eval()
    for some, every in zip(model(images), full, strict=True):
        assert torch.equal(some["labels"], every["labels"])
        named = every["labels"] == label
        assert torch.equal(some["has_mask"], named)
        torch.testing.assert_close(some["masks"][named], every["masks"][named])
        assert not some["masks"][~named].any()


BOTH, MASKS = torch.tensor([True, True]), torch.ones(3, 64, 64, dtype=torch.uint8)
FAULTS = {
    "too few": ({"masks": MASKS[:1]}, "1 masks for 2 objects without has_mask"),
    "too many": ({"masks": MASKS}, "3 masks for 2 objects without has_mask"),
    "of others": ({"has_mask": torch.tensor([True, False])}, "2 masks for 1 objects with has_mask"),
    "smaller": ({"masks": MASKS[:2, :50, :40]}, "masks of 50 x 40 pixels for an image of 64 x 64"),
    "to 255": ({"masks": 255 * MASKS[:2]}, "masks with a value of 255: give 0 and 1"),
    "floats": ({"masks": 2.0 * MASKS[:2]}, "masks with a value of 2: give 0 and 1"),
    "long": ({"has_mask": torch.tensor([True] * 3)}, "a has_mask of 3 x torch.bool: give a tensor"),
    "bytes": ({"has_mask": BOTH.byte()}, "a has_mask of 2 x torch.uint8: give a tensor of bool"),
    "list": ({"has_mask": [True, True]}, "a has_mask of 2 x list: give a tensor of bool for its 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_masks_that_do_not_belong_to_their_objects_stop_with_the_place_of_the_image(fault):
    images, wanted = targets([[4], [1, 4]])
    wanted[1] |= FAULTS[fault][0]
    with pytest.raises(ValueError, match=f"target 1 of the batch has {FAULTS[fault][1]}"):
        loss(network(), images, wanted)


def test_masks_may_be_bool_and_those_of_no_object_play_no_part():
    images, wanted = targets([[4], [1, 4]])
    first = loss(network(), images, wanted)["loss_mask"]
    wanted[1]["masks"] = wanted[1]["masks"].bool()
    assert loss(network(), images, wanted)["loss_mask"] == first
    wanted[0] |= {"has_mask": torch.tensor([False]), "masks": MASKS}
    assert loss(network(), images, wanted)["loss_mask"].isfinite()


def test_slips_are_said_in_one_sentence():
    for labels in ([], [7], [0], ["cat"], [True, 9]):
        with pytest.raises(ValueError, match=r"classes_with_masks .*: give labels from 1 to 6"):
            network(classes_with_masks=labels)
    with pytest.raises(ValueError, match="output_classes has 9: give labels"):
        network(output_classes=[9])
    with pytest.raises(ValueError, match="match=best is unknown: choose assigned, overlap"):
        network(match="best")
    with pytest.raises(ValueError, match=r"reads \(7, 50\) numbers"):
        network(MaskPredictor(256, CHANNELS, transfer=WeightTransfer(50, CHANNELS)))
    _, wanted = targets()
    del wanted[0]["labels"]
    with pytest.raises(ValueError, match="no labels"):
        network().roi_heads.check_targets(wanted)
