"""T as a hyper-network, its gradients, the masks that are left out; card, section 7."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_loss, project_masks_on_boxes

from maskx_rcnn.transfer import (
    MLP,
    MaskPredictor,
    MaskXHeads,
    Standardise,
    WeightTransfer,
    append_classes,
    detection_weights,
    mask_targets,
)

CLASSES, WIDTH, CHANNELS = 7, 12, 8  # with background; of the box head; of the mask features


def box_head(classes: int = CLASSES) -> FastRCNNPredictor:
    return FastRCNNPredictor(WIDTH, classes)


def transferring(source: str = "cls+box", **options) -> MaskPredictor:
    size = {"cls": WIDTH, "box": 4 * WIDTH, "cls+box": 5 * WIDTH}.get(source, 5)
    transfer = WeightTransfer(size, CHANNELS)
    return MaskPredictor(CHANNELS, CHANNELS, transfer=transfer, source=source, **options)


@pytest.mark.parametrize("source", ["cls", "box", "cls+box"])
def test_masks_are_those_of_a_predictor_whose_weights_are_predicted(source):
    boxes, predictor = box_head(), transferring(source)
    stock = MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES)
    stock.conv5_mask.load_state_dict(predictor.conv5_mask.state_dict())
    with torch.no_grad():
        w_seg = predictor.transfer(detection_weights(boxes, source))
        stock.mask_fcn_logits.weight.copy_(w_seg[:, :, None, None])
        stock.mask_fcn_logits.bias.zero_()
        features, labels = torch.randn(5, CHANNELS, 3, 3), torch.tensor([1, 6, 2, 2, 4])
        ours = predictor(features, labels, boxes)
        theirs = stock(features)[torch.arange(5), labels]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_rows_of_a_class_are_its_own():
    boxes = box_head()
    weights = detection_weights(boxes)
    scores, offsets = boxes.cls_score.weight, boxes.bbox_pred.weight
    for label in range(CLASSES):
        rows = torch.cat([scores[label], *offsets[4 * label : 4 * label + 4]])
        assert torch.equal(weights[label], rows)
    boxes.bbox_pred = nn.Linear(WIDTH, 8)
    with pytest.raises(ValueError, match="has 8 box outputs for 7 classes"):
        detection_weights(boxes)


@pytest.mark.parametrize(("layers", "count"), [(1, 1_310_976), (2, 1_376_768), (3, 1_442_560)])
def test_t_has_the_parameters_of_the_paper(layers, count):
    assert sum(p.numel() for p in WeightTransfer(5120, 256, layers=layers).parameters()) == count


def test_the_mlp_of_one_layer_has_the_parameters_of_the_official_code():
    with torch.device("meta"):
        assert sum(p.numel() for p in MLP(256, 28).parameters()) == 157_352_720


@pytest.mark.parametrize(("init", "std"), [("fan_out", (2 / 64) ** 0.5), ("fan_in", 0)])
def test_t_starts_as_caffe2s_fill_does(init, std):
    layer = WeightTransfer(600, 64, layers=1, init=init)[0]
    if init == "fan_out":
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    else:
        bound = math.sqrt(2 / 600)
        assert bound * 0.99 < layer.weight.abs().max().item() <= bound
    assert not layer.bias.any()
    torch.manual_seed(1)
    whole = WeightTransfer(600, 64, layers=1, init=init)[0].weight
    torch.manual_seed(1)
    small = WeightTransfer(600, 64, layers=1, init=init, scale=0.1)[0].weight
    torch.testing.assert_close(small, whole * 0.1)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_t_stays_in_float32_under_autocast(activation):
    transfer = WeightTransfer(6, 4, layers=3, activation=activation)
    with torch.autocast("cpu", torch.bfloat16):
        assert transfer(torch.randn(2, 6)).dtype == torch.float32


def test_the_mlp_adds_one_map_to_every_class():
    boxes, mlp = box_head(), MLP(CHANNELS, 6, layers=2)
    for layer in (mlp[0], mlp[2]):
        nn.init.normal_(layer.weight)
    predictor = transferring(mlp=mlp)
    features = torch.randn(1, CHANNELS, 3, 3).expand(CLASSES, -1, -1, -1)
    with torch.no_grad():
        fused = predictor(features, torch.arange(CLASSES), boxes)
        predictor.mlp = None
        added = fused - predictor(features, torch.arange(CLASSES), boxes)
    assert added.abs().max() > 0.1
    torch.testing.assert_close(added, added[:1].expand_as(added), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_mlp_flattens_channels_first(layers, pool):
    mlp = MLP(CHANNELS, 4, layers=layers, pool=pool)
    z = torch.randn(2, CHANNELS, 4, 4)
    value = F.avg_pool2d(z, pool).reshape(2, -1)
    for index, layer in enumerate(each for each in mlp if isinstance(each, nn.Linear)):
        value = F.linear(F.relu(value) if index else value, layer.weight, layer.bias)
    torch.testing.assert_close(mlp(z), value.reshape(2, 4, 4))


def test_an_agnostic_head_draws_one_mask_and_a_specific_one_that_of_the_class():
    features, labels = torch.randn(3, CHANNELS, 3, 3), torch.tensor([1, 2, 1])
    agnostic = MaskPredictor(CHANNELS, CHANNELS, "agnostic")
    one = agnostic(features[:1].expand(3, -1, -1, -1), labels, box_head())
    assert torch.equal(one[0], one[1])
    specific = MaskPredictor(CHANNELS, CHANNELS, "specific", num_classes=CLASSES)
    stock = MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES)
    specific.load_state_dict(stock.state_dict())  # the same names
    wanted = stock(features)[torch.arange(3), labels]
    torch.testing.assert_close(specific(features, labels, box_head()), wanted)


def test_fixed_embeddings_take_the_place_of_the_detectors_weights():
    vectors = torch.randn(CLASSES, 5)
    vectors[0] = 0
    predictor = transferring("embedding", embeddings=vectors)
    features = torch.randn(2, CHANNELS, 3, 3)
    first = predictor(features, torch.tensor([3, 0]), box_head())
    assert torch.equal(first, predictor(features, torch.tensor([3, 0]), box_head()))
    w_seg = predictor.w_seg(box_head())
    torch.testing.assert_close(w_seg[0], predictor.transfer(torch.zeros(1, 5))[0])
    with pytest.raises(ValueError, match="belong together"):
        transferring("embedding")


def test_evaluation_computes_t_once_until_the_weights_change():
    boxes, predictor = box_head(), transferring().eval()
    with torch.no_grad():
        kept = predictor.w_seg(boxes)
        assert predictor.w_seg(boxes) is kept
        predictor.load_state_dict({k: v + 1 for k, v in predictor.state_dict().items()})
        changed = predictor.w_seg(boxes)
        assert not torch.equal(changed, kept)
        predictor.train()
        predictor.eval()
        assert predictor.w_seg(boxes) is not changed
    assert predictor.w_seg(boxes).requires_grad  # without no_grad nothing is kept


def test_standardised_weights_have_mean_0_and_deviation_1_and_ignore_later_rows():
    standardise = Standardise((WIDTH, 4 * WIDTH))
    weights = detection_weights(box_head()).detach()
    own = standardise(weights)[1:]
    torch.testing.assert_close(own.mean(0), torch.zeros(5 * WIDTH), atol=1e-5, rtol=0)
    for part in own.split(standardise.sizes, 1):
        assert part.square().mean().item() == pytest.approx(1, rel=1e-4)
    standardise.eval()
    more = torch.cat([weights, torch.randn(3, 5 * WIDTH)])
    torch.testing.assert_close(standardise(more)[1:CLASSES], own)


# Within a stock Mask R-CNN


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
        box_predictor=box_head(),
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
    for part in (heads.mask_predictor.transfer, heads.mask_head, model.backbone):
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


def test_the_loss_of_all_masks_is_torchvisions_where_its_targets_are_binary():
    model = network()
    heads = model.roi_heads
    _, wanted = targets()
    features = {
        name: torch.randn(2, 256, s, s) for name, s in zip("0123", (16, 8, 4, 2), strict=True)
    }
    shapes = [(64, 64)] * 2
    boxes = [each["boxes"] for each in wanted]
    matched = [torch.arange(len(each)) for each in boxes]
    labels = [each["labels"] for each in wanted]
    ours = heads.mask_loss(features, boxes, matched, labels, shapes, wanted)
    own = torch.cat(labels)
    logits = heads.logits(features, boxes, own, shapes)
    full = torch.zeros(len(own), CLASSES, *logits.shape[1:])
    full[torch.arange(len(own)), own] = logits
    # These boxes have whole coordinates and the masks end on pixels: soft targets are 0, 1 and a
    # line between, the same for both but for that line.
    theirs = maskrcnn_loss(full, boxes, [w["masks"] for w in wanted], labels, matched)
    assert ours.item() == pytest.approx(theirs.item(), rel=0.05)
    hard = torch.cat(
        [mask_targets(w["masks"], w["boxes"], m, 28) for w, m in zip(wanted, matched, strict=True)]
    )
    counted = F.binary_cross_entropy_with_logits(logits, hard, reduction="sum") / hard.numel()
    assert ours.item() == pytest.approx(counted.item(), rel=1e-6)


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
def test_results_have_masks_of_the_classes_asked_for():
    model = network().eval()
    model.roi_heads.score_thresh = 0.0
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


@torch.no_grad()
def test_appended_classes_get_masks_and_change_no_other():
    boxes, predictor = box_head(), transferring().eval()
    before = predictor.w_seg(boxes)
    kept = copy.deepcopy(boxes)
    other = box_head(5)
    append_classes(boxes, other, [4, 2])
    after = predictor.w_seg(boxes)
    torch.testing.assert_close(after[:CLASSES], before, rtol=0, atol=0)
    wanted = predictor.transfer(detection_weights(other))[[4, 2]]
    torch.testing.assert_close(after[CLASSES:], wanted)
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(boxes(x)[0][:, :CLASSES], kept(x)[0])
    torch.testing.assert_close(
        boxes(x)[1][:, 4 * CLASSES :], other(x)[1][:, [16, 17, 18, 19, *range(8, 12)]]
    )


def test_slips_are_said_in_one_sentence():
    with pytest.raises(ValueError, match="T is for kind=transfer alone"):
        MaskPredictor(4, 4, "transfer")
    with pytest.raises(ValueError, match="name the classes whose masks are known"):
        network(classes_with_masks=[])
    images, wanted = targets()
    wanted[0]["has_mask"] = torch.tensor([True, False])
    with pytest.raises(ValueError, match="2 masks for 1 objects"):
        loss(network(), images, wanted)
    del wanted[0]["labels"]
    with pytest.raises(ValueError, match="no labels"):
        network().roi_heads.check_targets(wanted)
