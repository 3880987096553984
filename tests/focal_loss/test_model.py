"""The network of focal_loss: anchors, backbones, pyramid, heads; torchvision is the oracle."""

from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, resnet50
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from focal_loss.config import Model
from focal_loss.criterion import DetectionLoss
from focal_loss.detect import Detector
from focal_loss.model import Architecture, RetinaNet
from focal_loss.net.backbone import RESNETS, ResNet, conv_norm
from focal_loss.net.fpn import FPN
from focal_loss.net.heads import Head, class_bias
from focal_loss.weights import initialise

MINI = {
    "num_classes": 3,
    "backbone": "mini",
    "backbone_norm": "bn",
    "freeze_at": 0,
    "levels": (2, 4),
    "channels": 16,
    "convs": 2,
    "anchor_size": 2.0,
    "tower_init": "he",
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parameters(model: nn.Module) -> int:
    """Parameters, and the affine pairs that a frozen norm keeps as buffers."""
    affine = sum(
        module.weight.numel() + module.bias.numel()
        for module in model.modules()
        if isinstance(module, FrozenBatchNorm2d)
    )
    return affine + sum(p.numel() for p in model.parameters())


# The whole network beside torchvision's


def both(version: int, **sizes: int) -> tuple[RetinaNet, nn.Module]:
    """Our network and torchvision's with the same random weights, in float64 against ties."""
    build = retinanet_resnet50_fpn if version == 1 else retinanet_resnet50_fpn_v2
    theirs = build(weights=None, weights_backbone=None, num_classes=91, **sizes)
    nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.05)
    nn.init.constant_(theirs.head.classification_head.cls_logits.bias, -2.5)
    nn.init.normal_(theirs.head.regression_head.bbox_reg.weight, std=0.05)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    ours = RetinaNet(
        Architecture(
            num_classes=91,
            anchors="torchvision",
            p6="p5" if version == 1 else "c5",
            head_norm="none" if version == 1 else "gn",
        )
    )
    converted = initialise.convert(theirs.state_dict(), "torchvision").tensors
    missing, unexpected = ours.load_state_dict(converted, strict=False)
    assert not missing
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    return ours.double().eval(), theirs.double().eval()


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_outputs_and_detections_equal_torchvisions(version):
    ours, theirs = both(version, min_size=96, max_size=128)
    images = [torch.rand(3, 96, 110).double(), torch.rand(3, 120, 100).double()]
    batch, _ = theirs.transform([image.clone() for image in images])
    outputs = theirs.head(list(theirs.backbone(batch.tensors).values()))
    logits, offsets = ours(batch.tensors.to(memory_format=torch.channels_last))
    assert outputs["cls_logits"].std() > 0.1
    torch.testing.assert_close(logits, outputs["cls_logits"], atol=1e-9, rtol=0)
    torch.testing.assert_close(offsets, outputs["bbox_regression"], atol=1e-9, rtol=0)

    expected = theirs(images)
    sizes = [tuple(image.shape[-2:]) for image in images]
    found = Detector(detections=300)(ours, batch.tensors, batch.image_sizes, sizes)
    for mine, other in zip(found, expected, strict=True):
        assert len(mine["boxes"]) > 20
        assert torch.equal(mine["labels"], other["labels"])
        torch.testing.assert_close(mine["scores"], other["scores"], atol=1e-9, rtol=0)
        torch.testing.assert_close(mine["boxes"], other["boxes"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_float32_logits_equal_torchvisions_to_five_digits():
    ours, theirs = (model.float() for model in both(1, min_size=96, max_size=128))
    images = torch.randn(1, 3, 96, 128)
    outputs = theirs.head(list(theirs.backbone(images).values()))
    logits, offsets = ours(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, outputs["cls_logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(offsets, outputs["bbox_regression"], atol=1e-5, rtol=1e-5)


def test_training_losses_and_gradients_equal_torchvisions():
    ours, theirs = both(1)
    boxes = [
        [[10.0, 12, 80, 90], [40, 30, 90, 95], [80, 20, 83, 24]],
        [[5.0, 5, 60, 70]],
    ]
    targets = [
        {"boxes": torch.tensor(b).double(), "labels": torch.arange(len(b)) + 7} for b in boxes
    ]
    batch = torch.randn(2, 3, 96, 96).double()
    features = list(theirs.backbone(batch).values())
    anchors = theirs.anchor_generator(ImageList(batch, [(96, 96)] * 2), features)
    expected = theirs.compute_loss(targets, theirs.head(features), anchors)
    sum(expected.values()).backward()

    criterion = DetectionLoss(normalizer="image", box="l1", low_quality="any")
    targets = [{"boxes": t["boxes"].float(), "labels": t["labels"]} for t in targets]
    losses = criterion(*ours(batch), ours.anchors(96, 96), targets)
    sum(losses.values()).backward()
    torch.testing.assert_close(
        losses["classification"].double(), expected["classification"], atol=0, rtol=1e-5
    )
    torch.testing.assert_close(
        losses["box"].double(), expected["bbox_regression"], atol=0, rtol=1e-5
    )
    for name in ("backbone.layer3.0.conv2.weight", "classification.tower.0.conv.weight"):
        mine = ours.get_parameter(name).grad
        other = theirs.get_parameter(
            name.replace("backbone.", "backbone.body.").replace(
                "classification.tower.0.conv", "head.classification_head.conv.0.0"
            )
        ).grad
        torch.testing.assert_close(mine, other, atol=1e-6 * other.abs().max().item(), rtol=1e-4)


# Sizes and counts


def test_the_papers_network_has_37_968_692_parameters():
    model = RetinaNet(Architecture(num_classes=80))
    assert parameters(model) == 37_968_692
    assert parameters(model.backbone) == 23_508_032
    assert parameters(model.fpn) == 7_997_440
    assert parameters(model.classification) == 4_019_920
    assert parameters(model.regression) == 2_443_300


def test_torchvisions_first_network_has_34_014_999_parameters():
    model = RetinaNet(Architecture(num_classes=91, p6="p5"))
    assert sum(p.numel() for p in model.parameters()) == 34_014_999
    assert parameters(model) == 34_068_119


@pytest.mark.parametrize("name", list(RESNETS))
def test_backbones_have_torchvisions_names_and_shapes(name):
    with torch.device("meta"):
        ours = ResNet(name, norm="bn", freeze_at=0)
        theirs = get_model(name)
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected
    expansion = 1 if name in ("resnet18", "resnet34") else 4
    assert ours.channels == [128 * expansion, 256 * expansion, 512 * expansion]


@pytest.mark.parametrize("levels", [(3, 7), (2, 4), (3, 6), (3, 5), (4, 4)])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 131), (33, 65)])
def test_any_image_size_gives_one_output_per_anchor(levels, height, width):
    model = RetinaNet(Architecture(**{**MINI, "levels": levels})).eval()
    logits, offsets = model(torch.randn(2, 3, height, width))
    anchors = model.anchors(height, width)
    assert logits.shape == (2, len(anchors), 3)
    assert offsets.shape == (2, len(anchors), 4)


def test_an_odd_image_fits_the_anchors_through_a_resnet():
    model = RetinaNet(Architecture(num_classes=2, backbone="resnet18", channels=8, convs=1)).eval()
    logits, _ = model(torch.randn(1, 3, 101, 203))
    assert logits.shape[1] == len(model.anchors(101, 203))


def test_output_channel_a_k_belongs_to_anchor_a_and_class_k():
    head = Head(4, 3, 2, levels=1, convs=0)
    features = torch.randn(1, 4, 5, 6)
    flat = head([features])[0]
    maps = head.predict(features)
    row, column, anchor, number = 2, 3, 1, 1
    place = (row * 6 + column) * 3 + anchor
    assert flat[0, place, number] == maps[0, anchor * 2 + number, row, column]


def test_channels_last_outputs_are_views():
    head = Head(8, 3, 2, levels=1, convs=0).to(memory_format=torch.channels_last)
    features = torch.randn(2, 8, 5, 6).to(memory_format=torch.channels_last)
    assert head([features])[0]._is_view()


def test_p6_is_a_convolution_of_c5_without_relu_and_p7_of_relu_p6():
    fpn = FPN([4, 4, 4], 8)
    maps = [torch.randn(1, 4, side, side) for side in (16, 8, 4)]
    pyramid = fpn(maps)
    assert [p.shape[-1] for p in pyramid] == [16, 8, 4, 2, 1]
    assert torch.equal(pyramid[3], fpn.p6(maps[-1]))
    assert torch.equal(pyramid[4], fpn.p7(pyramid[3].relu()))
    from_p5 = FPN([4, 4, 4], 8, p6="p5")
    pyramid = from_p5(maps)
    assert torch.equal(pyramid[3], from_p5.p6(pyramid[2]))


def test_coarse_maps_are_added_to_finer_ones_by_nearest_neighbour():
    fpn = FPN([1, 1], 1, levels=(4, 5))
    for conv in (*fpn.lateral, *fpn.output):
        nn.init.dirac_(conv.weight)
    fine, coarse = torch.zeros(1, 1, 3, 3), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    out = fpn([fine, coarse])[0]
    # size 3 from 2: rows 0, 0, 1, as the last row of an odd map has no partner
    assert torch.equal(out[0, 0], torch.tensor([[1.0, 1, 2], [1, 1, 2], [3, 3, 4]]))


# Initialisation


def test_every_class_starts_at_probability_one_percent():
    model = RetinaNet(Architecture(num_classes=20, backbone="resnet18")).eval()
    logits, offsets = model(torch.randn(1, 3, 128, 128))
    assert model.classification.predict.bias.unique().item() == pytest.approx(-4.59512, abs=1e-5)
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, abs=5e-4)
    assert offsets.abs().mean() < 0.05


def test_an_image_without_objects_costs_the_cards_first_loss():
    # 201,600 anchors x 80 classes at p = 0.01: FL = 0.75 * 0.01**2 * -log(0.99) each; over 100
    model = RetinaNet(Architecture(num_classes=80))
    logits = model.classification.predict.bias[:80].expand(201_600, 80)
    p = logits.double().sigmoid()
    assert (-0.75 * p**2 * (1 - p).log()).sum().item() / 100 == pytest.approx(0.1216, abs=1e-4)


def test_softmax_background_starts_at_detectrons_bias():
    model = RetinaNet(Architecture(**MINI, softmax=True))
    assert class_bias(80, 0.01, softmax=True)[0] == pytest.approx(8.97715, abs=1e-5)
    bias = torch.tensor(class_bias(80, 0.01, softmax=True))
    assert bias.softmax(0)[1:].sum().item() == pytest.approx(0.01, abs=1e-6)
    assert model(torch.randn(1, 3, 32, 32))[0].shape[-1] == 4


def test_prior_zero_starts_every_class_at_one_half():
    model = RetinaNet(Architecture(**MINI, prior=0.0))
    assert not model.classification.predict.bias.any()


# Options


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_normalised_heads_train(norm):
    model = RetinaNet(Architecture(**MINI, head_norm=norm))
    logits, offsets = model(torch.randn(2, 3, 64, 64))
    (logits.sum() + offsets.square().sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_batch_norm_in_a_head_keeps_statistics_of_each_level():
    model = RetinaNet(Architecture(**MINI, head_norm="bn"))
    model(torch.randn(2, 3, 64, 64))
    means = [norm.running_mean for norm in model.classification.tower[0].norm]
    assert len(means) == 3
    assert not torch.equal(means[0], means[1])


def test_a_shared_tower_feeds_both_predictions():
    model = RetinaNet(Architecture(**MINI, shared_tower=True))
    assert len(model.regression.tower) == 0
    logits, offsets = model(torch.randn(1, 3, 32, 32))
    offsets.sum().backward()
    assert model.classification.tower[0].conv.weight.grad is not None
    assert logits.shape[1] == offsets.shape[1]


def test_class_specific_boxes_have_four_numbers_a_class():
    model = RetinaNet(Architecture(**MINI, class_specific_box=True))
    assert model(torch.randn(1, 3, 32, 32))[1].shape[-1] == 12


def test_level_outputs_joined_are_the_forward_pass():
    model = RetinaNet(Architecture(**MINI)).eval()
    images = torch.randn(1, 3, 64, 64)
    levels, _ = model.level_outputs(images)
    assert [len(x[0]) for x in levels] == model.anchor_grid.counts(64, 64)
    assert torch.equal(torch.cat(levels, 1), model(images)[0])


@pytest.mark.parametrize("norm", ["frozen", "bn"])
def test_frozen_stages_get_no_gradients_and_keep_their_statistics(norm):
    net = ResNet("resnet18", norm=norm, freeze_at=2).train()
    before = net.bn1.running_mean.clone(), net.layer1[0].bn1.running_var.clone()
    sum(x.sum() for x in net(torch.randn(2, 3, 64, 64))).backward()
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {"layer2", "layer3", "layer4"}
    assert torch.equal(net.bn1.running_mean, before[0])
    assert torch.equal(net.layer1[0].bn1.running_var, before[1])


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_stages_from_the_stem(freeze_at):
    with torch.device("meta"):
        net = ResNet("resnet18", freeze_at=freeze_at)
    stages = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == set(stages[freeze_at:])


def randomise_norms(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_a_folded_frozen_norm_equals_the_affine_map_with_its_gradients(eps):
    conv = nn.Conv2d(3, 5, 3, bias=False).double()
    norm = FrozenBatchNorm2d(5, eps=eps).double()
    randomise_norms(norm)
    x = torch.randn(2, 3, 8, 8).double().requires_grad_()
    plain = norm(conv(x))
    folded = conv_norm(x, conv, norm)
    torch.testing.assert_close(folded, plain, atol=1e-12, rtol=0)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad((folded * weight).sum(), (x, conv.weight)),
        torch.autograd.grad((plain * weight).sum(), (x, conv.weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_frozen_resnet_equals_torchvisions_unfolded_one():
    theirs = resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=1e-5))
    randomise_norms(theirs)
    ours = ResNet("resnet50")
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state)
    ours, theirs = ours.double(), theirs.double()
    x = torch.randn(1, 3, 64, 64).double()

    def last(x: Tensor) -> Tensor:
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        return theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))

    expected = last(x)
    torch.testing.assert_close(ours(x)[-1], expected, atol=0, rtol=1e-8)


def test_msra_backbones_stride_in_the_first_1x1():
    with torch.device("meta"):
        net = ResNet("resnet50", stride_in_1x1=True)
    assert net.layer2[0].conv1.stride == (2, 2)
    assert net.layer2[0].conv2.stride == (1, 1)
    assert net.layer1[0].conv1.stride == (1, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 0}, "at least one class"),
        ({"backbone": "resnet51"}, "resnet51.*is not one of"),
        ({"backbone_norm": "frozen"}, "trained from scratch"),
        ({"freeze_at": 2}, "trained from scratch"),
        ({"levels": (3, 8)}, "must end at P7"),
        ({"levels": (6, 7)}, "first from 2 to 5"),
        ({"prior": 1.0}, "prior = 1.0"),
        ({"p6": "c4"}, '"c5" or "p5"'),
        ({"head_norm": "ln"}, "none, gn, bn"),
        ({"tower_init": "xavier"}, "normal, he"),
        ({"anchors": "yolo"}, "exact, torchvision, detectron"),
        ({"ratios": ()}, "positive heights"),
        ({"width": 7}, "even"),
    ],
)
def test_wrong_options_are_answered_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RetinaNet(Architecture(**{**MINI, **options}))


def test_every_option_of_the_config_is_an_argument():
    with torch.device("meta"):
        model = RetinaNet(Architecture(num_classes=80, **asdict(Model())))
    assert parameters(model) == 37_968_692
