"""T as a hyper-network, its gradients, the masks that are left out; card, section 7."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from maskx_rcnn.transfer import (
    MLP,
    MaskPredictor,
    Standardise,
    WeightTransfer,
    append_classes,
    detection_weights,
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


@torch.no_grad()
def test_the_box_weights_of_a_class_change_its_own_masks_alone():
    boxes, predictor = box_head(), transferring()
    before = predictor.w_seg(boxes)
    for row in range(12, 16):  # of class 3
        boxes.bbox_pred.weight[row] += 1
        changed = (predictor.w_seg(boxes) != before).any(1)
        assert changed.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_t_is_its_layers_with_the_activation_between_them(layers, activation):
    transfer = WeightTransfer(6, 4, layers=layers, activation=activation)
    value = weights = torch.randn(CLASSES, 6)
    for index, layer in enumerate(each for each in transfer if isinstance(each, nn.Linear)):
        if index:
            value = torch.where(value > 0, value, (activation == "leaky_relu") * 0.1 * value)
        value = value @ layer.weight.T + layer.bias
    assert index == layers - 1
    torch.testing.assert_close(transfer(weights), value)


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


def test_what_a_fan_based_fill_would_let_diverge_starts_small():
    fused = MLP(CHANNELS, 14, layers=2)
    logits = MaskPredictor(64, 64, num_classes=81).mask_fcn_logits
    for layer in (fused[0], fused[2], logits):
        assert layer.weight.std().item() == pytest.approx(0.001, rel=0.05)
        assert not layer.bias.any()


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
    torch.testing.assert_close(added, added[:1].expand_as(added), rtol=1e-4, atol=1e-3)


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
    agnostic = MaskPredictor(CHANNELS, CHANNELS)
    one = agnostic(features[:1].expand(3, -1, -1, -1), labels, box_head())
    assert torch.equal(one[0], one[1])
    specific = MaskPredictor(CHANNELS, CHANNELS, num_classes=CLASSES)
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


class Detector(nn.Module):
    """What an exponential average averages: box head and mask predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.predictor = box_head(), transferring(standardise=Standardise([60]))
        self.predictor.w_det(self.boxes)  # the statistics

    def w_seg(self) -> torch.Tensor:
        return self.predictor.w_seg(self.boxes)

    def fresh(self) -> torch.Tensor:
        return self.predictor.transfer(self.predictor.w_det(self.boxes))


def load_other_boxes(model: Detector) -> None:
    model.boxes.load_state_dict(box_head().state_dict())


def replace_boxes(model: Detector) -> None:
    model.boxes = None
    model.boxes = box_head()  # at the address of those before, as it may be


def write_in_place(model: Detector) -> None:
    model.boxes.bbox_pred.weight[9, 3] += 1


def write_to_t(model: Detector) -> None:
    nn.init.normal_(model.predictor.transfer[2].weight)


def shift_the_mean(model: Detector) -> None:
    model.predictor.standardise.mean += 1


def replace_data(model: Detector) -> None:  # as a move to another device does
    model.boxes.cls_score.weight.data = torch.randn(CLASSES, WIDTH)


CHANGES = (
    load_other_boxes,
    replace_boxes,
    write_in_place,
    write_to_t,
    shift_the_mean,
    replace_data,
)


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_evaluation_keeps_is_of_the_weights_as_they_are(change):
    model = Detector().eval()
    before = model.w_seg()
    for _ in range(3):
        assert model.w_seg() is before
        change(model)
        after = model.w_seg()
        assert torch.equal(after, model.fresh())
        assert not torch.equal(after, before)
        before = after


@torch.no_grad()
def test_an_average_of_weights_and_a_copy_have_masks_of_their_own():
    model, other = Detector().eval(), Detector().eval()
    averaged = AveragedModel(model)
    for source in (model, other, other):
        averaged.update_parameters(source)
        assert torch.equal(averaged.module.w_seg(), averaged.module.fresh())
    assert not torch.equal(averaged.module.w_seg(), model.w_seg())
    assert torch.equal(copy.deepcopy(model).w_seg(), model.w_seg())


@torch.inference_mode()
def test_of_weights_whose_writes_are_not_counted_nothing_is_kept():
    model = Detector().eval()
    before = model.w_seg()
    model.boxes.cls_score.weight += 1
    assert not torch.equal(model.w_seg(), before)


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


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is computed."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self.count = max(self.count, result.numel())
        return result


@pytest.mark.parametrize("training", [True, False])
def test_the_masks_of_all_3002_classes_are_never_computed(training):
    predictor = transferring("cls").train(training)
    boxes, features = box_head(3002), torch.randn(4, CHANNELS, 14, 14)
    with torch.set_grad_enabled(training), Largest() as largest:
        logits = predictor(features, torch.tensor([1, 3001, 7, 7]), boxes)
        if training:
            logits.sum().backward()
    assert logits.shape == (4, 28, 28)
    assert largest.count <= 3002 * 5 * WIDTH  # the box head itself; all masks have 52 times more


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


def test_slips_of_a_predictor_are_said_in_one_sentence():
    with pytest.raises(ValueError, match="T predicts the weights that num_classes would learn"):
        MaskPredictor(4, 4, transfer=WeightTransfer(60, 4), num_classes=3)
    with pytest.raises(ValueError, match="source=boxes is unknown: choose cls, box"):
        MaskPredictor(4, 4, transfer=WeightTransfer(60, 4), source="boxes")
    for option in ({"init": "fanout"}, {"layers": 0}, {"layers": 4}, {"activation": "gelu"}):
        with pytest.raises(ValueError, match=r"=(fanout|0|4|gelu) is unknown: choose \w+, "):
            WeightTransfer(60, 4, **option)
    with pytest.raises(ValueError, match="layers=0 is unknown: choose 1, 2, 3"):
        MLP(4, 4, layers=0)


@pytest.mark.parametrize("rows", [[0], [-1], [], [5], ["cat"]])
def test_rows_to_append_are_classes_of_the_other_head(rows):
    boxes = box_head()
    with pytest.raises(ValueError, match=r"rows .*: give labels from 1 to 4, as 0 is the backgr"):
        append_classes(boxes, box_head(5), rows)
    assert boxes.cls_score.out_features == CLASSES


def test_t_reads_what_there_is():
    for predictor, fault in (
        (
            MaskPredictor(4, 4, transfer=WeightTransfer(50, 4)),
            r"\(7, 50\).* cls\+box has \(7, 60\)",
        ),
        (transferring("cls", standardise=Standardise([3])), r"\(7, 3\).* cls has \(7, 12\)"),
        (transferring("embedding", embeddings=torch.zeros(6, 5)), r"embedding has \(6, 5\)"),
    ):
        with pytest.raises(ValueError, match=fault):
            predictor.check(box_head())
    for predictor in (transferring(), MaskPredictor(4, 4), MaskPredictor(4, 4, num_classes=7)):
        predictor.check(box_head())
