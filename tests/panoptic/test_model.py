"""The networks: layer plans, losses, predictions, and that two branches share one backbone."""

import pytest
import torch
from torch import Tensor, nn

from panoptic.model import Options, PanopticFPN, Separate, build
from panoptic.net.backbone import ResNet
from panoptic.net.instance import MaskRCNN, Sizes
from panoptic.net.padding import pad, semantic_loss
from panoptic.net.pspnet import PSPNet
from panoptic.net.semantic_fpn import SemanticFPN

CLASSES = {"thing_classes": 3, "stuff_classes": 2}
MINI = {"backbone": "mini", "norm": "gn", "freeze_at": 0}
INSTANCE = {"objectness", "proposal", "label", "box", "mask"}


def scene(
    number: int, classes: str, height: int = 48, width: int = 64
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image with two squares, and its target; ground and sky below and above."""
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 40, (3, height, width), generator=generator, dtype=torch.uint8)
    image[:, height // 2 :] += 150
    semantic = torch.full((height, width), 1 if classes == "stuff" else 3)
    semantic[height // 2 :] += 1
    masks, boxes = [], []
    for label, (x, y, side) in enumerate([(4 + number, 6, 14), (34, 20 + number, 20)]):
        image[label, y : y + side, x : x + side] = 255
        mask = torch.zeros(height, width, dtype=torch.uint8)
        mask[y : y + side, x : x + side] = 1
        semantic[mask.bool()] = 0 if classes == "stuff" else label
        masks.append(mask)
        boxes.append([x, y, x + side, y + side])
    semantic[:2] = 255
    return image, {
        "boxes": torch.tensor(boxes).float(),
        "labels": torch.tensor([0, 1]),
        "masks": torch.stack(masks),
        "semantic": semantic,
    }


def empty(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return target | {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": target["masks"][:0],
    }


def small(name: str, **options: object) -> PanopticFPN | Separate:
    torch.manual_seed(0)
    extra = {"semantic_norm": "gn", "dropout": 0.0} if name == "separate" else {}
    return build(Options(name, **{**MINI, **extra, **options}), **CLASSES)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Layer plans


def test_mask_rcnn_has_the_parameters_of_torchvisions():
    assert parameters(MaskRCNN(thing_classes=90)) == 44_401_393  # as published with its weights


def test_the_semantic_branch_has_the_parameters_of_its_layer_plan():
    head = SemanticFPN(256, 54)
    convolutions = 4 * 9 * 256 * 128 + (0 + 0 + 1 + 2) * 9 * 128 * 128
    norms = (1 + 1 + 2 + 3) * 2 * 128
    assert parameters(head) == convolutions + norms + 54 * (128 + 1)
    names = {name.rsplit(".", 1)[0] for name in head.state_dict()}
    layers = {"p2.0", "p3.0", "p4.0", "p4.2", "p5.0", "p5.2", "p5.4"}
    assert names == layers | {f"{layer}.norm" for layer in layers} | {"predictor"}
    assert all(m.num_groups == 32 for m in head.modules() if isinstance(m, nn.GroupNorm))


def test_the_semantic_branch_equals_its_plan_written_out():
    torch.manual_seed(1)
    head = SemanticFPN(8, 5, channels=16, groups=4)
    maps = [torch.randn(2, 8, 64 // 2**level, 96 // 2**level) for level in range(4)]
    state, total = head.state_dict(), torch.zeros(())
    double = nn.Upsample(scale_factor=2, mode="bilinear")
    for level, doublings in enumerate((0, 1, 2, 3)):
        x = maps[level]
        for i in range(max(1, doublings)):
            layer = f"p{level + 2}.{2 * i}"
            x = torch.conv2d(x, state[f"{layer}.weight"], padding=1)
            scale, shift = state[f"{layer}.norm.weight"], state[f"{layer}.norm.bias"]
            x = torch.relu(torch.group_norm(x, 4, scale, shift))
            x = double(x) if doublings else x
        total = total + x
    logits = torch.conv2d(total, state["predictor.weight"], state["predictor.bias"])
    expected = nn.Upsample(scale_factor=4, mode="bilinear")(logits)
    torch.testing.assert_close(head(maps), expected)


def test_the_semantic_branch_starts_with_fan_out_initialisation():
    head = SemanticFPN(256, 54)
    for weight, fan_out in ((head.p2[0].weight, 128 * 9), (head.predictor.weight, 54)):
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)


def test_the_semantic_loss_is_the_mean_over_pixels_that_are_not_void():
    torch.manual_seed(2)
    logits = torch.randn(2, 3, 8, 8)
    maps = [torch.randint(0, 3, (8, 6)), torch.randint(0, 3, (5, 8))]  # the rest is padding
    maps[0][2:4] = 255
    loss = semantic_loss(logits, [{"semantic": m} for m in maps])
    log = logits.log_softmax(1)
    values = [
        -log[n, m[y, x], y, x]
        for n, m in enumerate(maps)
        for y in range(m.shape[0])
        for x in range(m.shape[1])
        if m[y, x] != 255
    ]
    torch.testing.assert_close(loss, torch.stack(values).mean())
    nothing = semantic_loss(logits, [{"semantic": torch.full_like(m, 255)} for m in maps])
    assert nothing == 0


def test_pspnet_keeps_stride_8_and_has_the_parameters_of_its_layer_plan():
    network = PSPNet(150)
    body = 23_508_032  # ResNet-50 without its classifier
    pooling = 4 * (2048 * 512 + 2 * 512)
    classifier = 9 * 4096 * 512 + 2 * 512 + 150 * 513
    auxiliary = 9 * 1024 * 256 + 2 * 256 + 150 * 257
    assert parameters(network) == body + pooling + classifier + auxiliary
    maps = network.eval().body(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (256, 16, 24),
        (512, 8, 12),
        (1024, 8, 12),
        (2048, 8, 12),
    ]
    convolutions = (m for m in network.body.layer4.modules() if isinstance(m, nn.Conv2d))
    assert {m.dilation[0] for m in convolutions if m.kernel_size == (3, 3)} == {2, 4}
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout2d)] == [0.1, 0.1]


def test_pooling_adds_averages_over_1_2_3_and_6_bins():
    torch.manual_seed(3)
    network = PSPNet(4, backbone="mini", norm="gn").eval()
    pooling, x = network.pooling, torch.randn(1, 32, 12, 18)
    out = pooling(x)
    assert out.shape == (1, 64, 12, 18)
    assert torch.equal(out[:, :32], x)
    whole = pooling.branches[0](x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(out[:, 32:40], whole.expand(-1, -1, 12, 18))
    assert pooling.bins == (1, 2, 3, 6)


def test_the_auxiliary_loss_weighs_0_4_and_the_semantic_loss_of_panoptic_fpn_0_5():
    image, target = scene(0, "all")
    losses = []
    for weight in (0.4, 1.0):
        network = small("separate", part="semantic", auxiliary_weight=weight)
        losses.append(network([image], [target])["auxiliary"].item())
    assert losses[0] == pytest.approx(0.4 * losses[1], rel=1e-5)
    image, target = scene(0, "stuff")
    network = small("panoptic_fpn")
    logits = network.semantic_logits(
        network.instance.backbone(pad([image], 16, torch.device("cpu")).tensors)
    )
    loss = network([image], [target])["semantic"]
    torch.testing.assert_close(loss, 0.5 * semantic_loss(logits, [target]))


# Training


@pytest.mark.parametrize(("name", "kind"), [("panoptic_fpn", "stuff"), ("separate", "all")])
def test_losses_are_finite_and_fall_on_two_images(name, kind):
    network = small(name)
    assert network.semantic_labels == kind
    images, targets = zip(scene(0, kind), scene(1, kind), strict=True)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    totals = []
    for _ in range(30):
        losses = network(images, targets)
        total = sum(losses.values())
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    extra = {"auxiliary"} if name == "separate" else set()
    assert set(losses) == INSTANCE | {"semantic"} | extra
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])


def test_gradients_reach_the_backbone_from_both_branches():
    network = small("panoptic_fpn")
    image, target = scene(0, "stuff")
    for branch in (INSTANCE, {"semantic"}):
        network.zero_grad()
        losses = network([image], [target])
        sum(losses[name] for name in branch).backward()
        assert network.instance.backbone.body.conv1.weight.grad.abs().sum() > 0
        assert network.instance.backbone.fpn.layer_blocks[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["panoptic_fpn", "separate"])
def test_images_without_instances_and_without_a_labelled_pixel_give_finite_gradients(name):
    network = small(name)
    images, targets = zip(scene(0, "stuff"), scene(1, "stuff"), strict=True)
    nothing = [empty(t) | {"semantic": torch.full((48, 64), 255)} for t in targets]
    losses = network(images, nothing)
    assert losses["mask"] == losses["box"] == losses["semantic"] == 0
    sum(losses.values()).backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_an_image_without_instances_is_a_negative():
    network = small("panoptic_fpn")
    image, target = scene(0, "stuff")
    losses = network([image, image], [target, empty(target)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["label"] > 0


def test_images_of_different_sizes_train_together():
    network = small("panoptic_fpn")
    images, targets = zip(scene(0, "stuff"), scene(1, "stuff", 80, 56), strict=True)
    losses = network(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_frozen_norms_and_stages_stay_as_they_are():
    network = PanopticFPN(Options(norm="frozen", freeze_at=2), **CLASSES, sizes=TINY)
    trained = {
        name.removeprefix("instance.backbone.body.").split(".")[0]
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    assert trained & {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"} == {
        "layer2",
        "layer3",
        "layer4",
    }
    assert not any(".bn" in name for name, _ in network.named_parameters())
    body = ResNet("resnet18", norm="bn", freeze_at=2).train()
    body(torch.randn(2, 3, 32, 32))
    assert body.layer1[0].bn1.running_mean.abs().max() == 0
    assert body.layer2[0].bn1.running_mean.abs().max() > 0


TINY = Sizes(
    channels=16,
    hidden=32,
    mask_channels=16,
    mask_convs=1,
    semantic_channels=32,
    candidates=(50, 50),
    proposals=(20, 20),
    regions=16,
)


def test_the_stride_moves_into_the_first_convolution_of_a_bottleneck():
    body = ResNet("resnet50", stride_in_1x1=True)
    for stage in (body.layer2, body.layer3, body.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((2, 2), (1, 1))
    assert body.layer1[0].conv1.stride == (1, 1)
    assert body(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 2048, 2, 2)


# Evaluation


@pytest.mark.parametrize(("name", "classes"), [("panoptic_fpn", 3), ("separate", 5)])
def test_predictions_have_the_size_asked_for(name, classes):
    network = small(name).eval()
    images = [scene(0, "stuff")[0], scene(1, "stuff", 80, 56)[0]]
    sizes = [(96, 100), (33, 47)]
    with torch.no_grad():
        own, resized = network(images), network(images, sizes=sizes)
    for predictions, shapes in ((own, [(48, 64), (80, 56)]), (resized, sizes)):
        for one, (height, width) in zip(predictions, shapes, strict=True):
            count = len(one["scores"])
            assert count > 0
            assert one["boxes"].shape == (count, 4)
            assert one["boxes"].min() >= 0
            assert (one["boxes"][:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
            assert set(one["labels"].tolist()) <= {0, 1, 2}
            assert torch.equal(one["scores"], one["scores"].sort(descending=True).values)
            assert one["masks"].shape == (count, height, width)
            assert one["masks"].dtype == torch.bool
            assert one["semantic"].shape == (classes, height, width)


@pytest.mark.parametrize("name", ["panoptic_fpn", "separate"])
def test_a_prediction_does_not_depend_on_the_batch(name):
    network = small(name).eval()
    images = [scene(0, "stuff")[0], scene(1, "stuff", 80, 56)[0], scene(2, "stuff")[0]]
    with torch.no_grad():
        together = network(images)
        for image, one in zip(images, together, strict=True):
            (alone,) = network([image])
            torch.testing.assert_close(one["semantic"], alone["semantic"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one["scores"], alone["scores"])


def test_a_network_that_finds_nothing_gives_empty_masks():
    network = small("panoptic_fpn").eval()
    network.instance.roi_heads.score_thresh = 1.0
    with torch.no_grad():
        (one,) = network([scene(0, "stuff")[0]], sizes=[(20, 30)])
    assert one["masks"].shape == (0, 20, 30)
    assert one["boxes"].shape == (0, 4)


def test_floats_in_0_to_1_and_bytes_are_the_same_image():
    network = small("separate", part="semantic").eval()
    image = scene(0, "all")[0]
    with torch.no_grad():
        (a,), (b,) = network([image]), network([image / 255])
    torch.testing.assert_close(a["semantic"], b["semantic"])


# The separate pair


@pytest.mark.parametrize(
    ("part", "losses", "keys"),
    [
        ("semantic", {"semantic", "auxiliary"}, {"semantic"}),
        ("instance", INSTANCE, {"boxes", "labels", "scores", "masks"}),
    ],
)
def test_a_part_of_the_pair_is_trained_and_asked_alone(part, losses, keys):
    image, target = scene(0, "all")
    network = small("separate", part=part)
    needed = {"semantic"} if part == "semantic" else {"boxes", "labels", "masks"}
    found = network([image], [{key: target[key] for key in needed}])
    assert set(found) == losses
    assert set(network.eval()([image])[0]) == keys
    assert {name.split(".")[0] for name in network.state_dict()} == {part}


def test_the_states_of_two_parts_together_are_the_pairs():
    parts = [small("separate", part=part) for part in ("semantic", "instance")]
    pair = small("separate")
    pair.load_state_dict(parts[0].state_dict() | parts[1].state_dict())
    image = scene(0, "all")[0]
    with torch.no_grad():
        (one,) = pair.eval()([image])
        for part in parts:
            for key, value in part.eval()([image])[0].items():
                torch.testing.assert_close(one[key], value)


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 3])}, r"pic\.png has a label outside 0\.\.2"),
        ({"boxes": torch.tensor([[4.0, 6, 4, 9], [0, 0, 2, 2]])}, "pic.png has a box that"),
        ({"boxes": torch.full((2, 4), float("nan"))}, "pic.png has a box that"),
        ({"semantic": torch.full((48, 64), 3)}, r"neither in 0\.\.2 nor 255"),
        ({"semantic": torch.zeros(48, 60)}, r"'semantic' of pic\.png is \(48, 60\)"),
        ({"masks": torch.zeros(1, 48, 64)}, r"'masks' of pic\.png is \(1, 48, 64\)"),
    ],
)
def test_a_target_that_does_not_fit_is_named(change, message):
    image, target = scene(0, "stuff")
    with pytest.raises(ValueError, match=message):
        small("panoptic_fpn")([image], [target | {"file": "pic.png"} | change])


def test_other_mistakes_get_one_sentence():
    network = small("panoptic_fpn")
    image, target = scene(0, "stuff")
    del target["masks"]
    for call, message in (
        (lambda: network([image], [target]), "image 0 of the batch has no 'masks'"),
        (lambda: network([image]), "1 images and none targets"),
        (lambda: network.eval()([image[:2]]), r"image 0 is \(2, 48, 64\)"),
        (lambda: network.eval()([image], sizes=[]), "1 images and 0 sizes"),
        (lambda: network.eval()([image.int()]), "image 0 is torch.int32"),
        (lambda: network.train()([], []), "the batch is empty"),
        (lambda: Options("fpn"), "name = 'fpn' is not one of"),
        (lambda: Options(part="semantic"), 'is for name "separate"'),
        (lambda: small("separate", part="things"), "part = 'things' is not one of"),
        (lambda: small("panoptic_fpn", norm="frozen"), "trained from scratch"),
        (lambda: small("panoptic_fpn", backbone="vgg"), "backbone = 'vgg' is not one of"),
        (lambda: PSPNet(3, backbone="resnet18"), "no bottlenecks"),
        (lambda: PSPNet(3, backbone="mini")([image], [{"semantic": image[0]}]), "neither in"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_pspnet_with_batch_norm_refuses_a_single_image():
    image, target = scene(0, "all")
    with pytest.raises(ValueError, match="train on 2 or more images"):
        PSPNet(5, backbone="mini", norm="bn")([image], [target])
