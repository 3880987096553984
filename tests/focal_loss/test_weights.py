"""Weights of other people: every format, built from a known network, gives its outputs again."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
)
from torchvision.ops import FrozenBatchNorm2d

from common.weights.formats import COCO_IDS
from focal_loss import data
from focal_loss.config import Data
from focal_loss.model import Architecture, RetinaNet
from focal_loss.weights import initialise
from focal_loss.weights.export import torchvision_state
from focal_loss.weights.formats import convert

SMALL = {"num_classes": 5, "channels": 8, "convs": 2}
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))

# A cell's anchors by (scale, ratio): where each source keeps what detectron2 keeps at 3 s + r
TORCHVISION = [r * 3 + s for s in range(3) for r in range(3)]
DETECTRON = [s * 3 + position for s in range(3) for position in (2, 0, 1)]  # it has 1, 2, 1/2


def network(**options: object) -> RetinaNet:
    """A network whose weights and statistics are all different."""
    torch.manual_seed(0)
    model = RetinaNet(Architecture(**{**SMALL, **options})).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for head in (model.classification, model.regression):
        nn.init.normal_(head.predict.weight, std=0.1)
        nn.init.normal_(head.predict.bias)
    return model


def fresh(**options: object) -> RetinaNet:
    torch.manual_seed(9)
    return RetinaNet(Architecture(**{**SMALL, **options})).eval()


@torch.no_grad()
def assert_same_outputs(ours: RetinaNet, source: RetinaNet, order: list[int] | None = None) -> None:
    """`order`: for each of our cell's anchors, its place in the source's cell."""
    for mine, other in zip(ours(IMAGES), source(IMAGES), strict=True):
        other = other.unflatten(1, (-1, 9))
        other = (other if order is None else other[:, :, order]).flatten(1, 2)
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


# Writing the formats of others, by their own rules


def detectron2_names(state: dict[str, Tensor], convs: int = 2) -> dict[str, Tensor]:
    named = {}
    for name, value in state.items():
        name = re.sub(r"^backbone\.(conv1|bn1)", r"backbone.bottom_up.stem.\1", name)
        for stage in range(1, 5):
            name = name.replace(f"backbone.layer{stage}.", f"backbone.bottom_up.res{stage + 1}.")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
        name = re.sub(r"^fpn\.(lateral|output)\.(\d)", _level, name)
        name = name.replace("fpn.p", "backbone.top_block.p")
        for i in range(convs):
            name = name.replace(f"classification.tower.{i}.conv", f"head.cls_subnet.{2 * i}")
            name = name.replace(f"regression.tower.{i}.conv", f"head.bbox_subnet.{2 * i}")
        name = name.replace("classification.predict", "head.cls_score")
        named[name.replace("regression.predict", "head.bbox_pred")] = value
    return named


def _level(found: re.Match) -> str:
    return f"backbone.fpn_{found[1]}{int(found[2]) + 3}"


def caffe2_blobs(model: RetinaNet) -> dict[str, np.ndarray]:
    blobs = {}
    for name, module in model.named_modules():
        block = re.match(r"backbone\.layer(\d)\.(\d+)\.(.*)", name)
        if name == "backbone.conv1":
            blobs["conv1_w"] = module.weight
        elif name == "backbone.bn1":
            blobs["res_conv1_bn_s"], blobs["res_conv1_bn_b"] = affine(module)
        elif block and isinstance(module, nn.Conv2d | FrozenBatchNorm2d):
            branches = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "downsample.0": "1"}
            branches |= {"bn1": "2a", "bn2": "2b", "bn3": "2c", "downsample.1": "1"}
            blob = f"res{int(block[1]) + 1}_{block[2]}_branch{branches[block[3]]}"
            if isinstance(module, nn.Conv2d):
                blobs[f"{blob}_w"] = module.weight
            else:
                blobs[f"{blob}_bn_s"], blobs[f"{blob}_bn_b"] = affine(module)
    last = {5: 2, 4: 5, 3: 3}  # blocks of ResNet-50
    for i, stage in enumerate((3, 4, 5)):
        inner = f"fpn_inner_res{stage}_{last[stage]}_sum" + ("_lateral" if stage < 5 else "")
        add(blobs, inner, model.fpn.lateral[i])
        add(blobs, f"fpn_res{stage}_{last[stage]}_sum", model.fpn.output[i])
    add(blobs, "fpn_6", model.fpn.p6)
    add(blobs, "fpn_7", model.fpn.p7)
    for head, name in ((model.classification, "cls"), (model.regression, "bbox")):
        for i, unit in enumerate(head.tower):
            add(blobs, f"retnet_{name}_conv_n{i}_fpn3", unit.conv)
        add(blobs, f"retnet_{name}_pred_fpn3", head.predict)
    momenta = {f"{k}_momentum": torch.zeros(1) for k in list(blobs)[:3]}
    return {k: v.detach().numpy() for k, v in (blobs | momenta).items()}


def affine(norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def add(blobs: dict, name: str, conv: nn.Conv2d) -> None:
    blobs[f"{name}_w"], blobs[f"{name}_b"] = conv.weight, conv.bias


def write_pickle(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# Round trips


def test_detectron_weights_give_the_same_outputs(tmp_path):
    source = network(stride_in_1x1=True)
    path = write_pickle(tmp_path / "final.pkl", {"blobs": caffe2_blobs(source), "cfg": "A: 1"}, 2)
    ours = fresh(stride_in_1x1=True)
    report = initialise.initialise(ours, path)
    assert_same_outputs(ours, source, DETECTRON)
    assert report.kept == report.unused == []
    wants = report.wants
    assert (wants.anchors, wants.p6, wants.stride_in_1x1, wants.bgr) == (
        "detectron",
        "c5",
        True,
        True,
    )
    assert wants.mean == (102.9801, 115.9465, 122.7717)
    assert wants.std == (1.0, 1.0, 1.0)
    assert "blue, green, red in 0..255" in str(report)
    assert "set model.anchors=detectron" in str(report)


def test_detectron_weights_keep_their_order_in_a_model_with_detectrons_anchors(tmp_path):
    source = network(stride_in_1x1=True)
    path = write_pickle(tmp_path / "final.pkl", {"blobs": caffe2_blobs(source)})
    ours = fresh(stride_in_1x1=True, anchors="detectron", ratios=(1.0, 2.0, 0.5))
    initialise.initialise(ours, path)
    assert_same_outputs(ours, source)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_detectron2_weights_give_the_same_outputs(tmp_path, suffix):
    source = network(stride_in_1x1=True)
    state = detectron2_names(source.state_dict())
    state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    state["pixel_std"] = torch.ones(3, 1, 1)
    path = tmp_path / f"model.{suffix}"
    if suffix == "pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        write_pickle(path, {"model": arrays, "__author__": "Detectron2 Model Zoo"})
    else:
        torch.save({"model": state, "iteration": 3}, path)
    ours = fresh(stride_in_1x1=True, anchors="torchvision")
    report = initialise.initialise(ours, path)
    assert_same_outputs(ours, source, [s * 3 + r for r in range(3) for s in range(3)])
    assert report.unused == ["pixel_mean", "pixel_std"]
    assert report.wants.bgr
    assert report.wants.norm_eps == 1e-5


@pytest.mark.parametrize("old_names", [False, True])
def test_torchvision_weights_give_the_same_outputs(tmp_path, old_names):
    torch.manual_seed(0)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.01, 0.05)
            module.weight.data.fill_(0.1)
            module.eps = 0.0 if old_names else 1e-5
    state = theirs.state_dict()
    if old_names:  # as in the files on disk, made when a frozen norm had no eps
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        for old, new in (
            (r"(_blocks\.\d)\.0\.", r"\1."),
            (r"_head\.conv\.(\d)\.0\.", lambda m: f"_head.conv.{2 * int(m[1])}."),
        ):
            state = {re.sub(old, new, name): value for name, value in state.items()}
    torch.save(OrderedDict(state), tmp_path / "retinanet.pth")
    ours = RetinaNet(Architecture(num_classes=5, p6="p5")).eval()
    report = initialise.initialise(ours, tmp_path / "retinanet.pth")
    with torch.no_grad():
        outputs = theirs.head(list(theirs.backbone(IMAGES).values()))
        logits, offsets = ours(IMAGES)
    for mine, other in ((logits, "cls_logits"), (offsets, "bbox_regression")):
        expected = outputs[other].unflatten(1, (-1, 9))[:, :, TORCHVISION].flatten(1, 2)
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)
    assert report.kept == report.unused == []
    assert report.wants.norm_eps == (0.0 if old_names else 1e-5)
    assert report.wants.p6 == "p5"


def test_weights_exported_to_torchvision_give_the_same_outputs():
    ours = network(p6="p5", channels=256, convs=4)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).eval()
    theirs.load_state_dict(torchvision_state(ours))
    with torch.no_grad():
        outputs = theirs.head(list(theirs.backbone(IMAGES).values()))
        logits, _ = ours(IMAGES)
    expected = outputs["cls_logits"].unflatten(1, (-1, 9))[:, :, TORCHVISION].flatten(1, 2)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_export_and_import_give_back_every_tensor():
    ours = network(p6="p5", head_norm="gn")
    other = fresh(p6="p5", head_norm="gn", anchors="torchvision")
    found = convert(torchvision_state(ours), "there and back")
    assert found.wants.head_norm == "gn"
    other.load_state_dict(found.tensors)
    assert_same_outputs(other, ours, [s * 3 + r for r in range(3) for s in range(3)])


def test_checkpoints_of_this_folder_are_loaded_as_they_are(tmp_path):
    source = network(anchors="torchvision")
    torch.save({"parts": {"model": source.state_dict(), "batch_size": 2}}, tmp_path / "c.pt")
    ours = fresh(anchors="torchvision")
    report = initialise.initialise(ours, tmp_path / "c.pt")
    assert_same_outputs(ours, source)
    assert report.loaded == len(source.state_dict())


def test_torchvisions_91_channels_find_cocos_80_classes(tmp_path):
    source = network(num_classes=91, p6="p5", anchors="torchvision")
    torch.save(torchvision_state(source), tmp_path / "tv.pth")
    ours = fresh(num_classes=80, p6="p5", anchors="torchvision")
    initialise.initialise(ours, tmp_path / "tv.pth", COCO_IDS)
    with torch.no_grad():
        expected = source(IMAGES)[0][..., COCO_IDS]
        torch.testing.assert_close(ours(IMAGES)[0], expected, atol=1e-4, rtol=1e-4)
    assert COCO_IDS[0] == 1
    assert COCO_IDS[-1] == 90
    assert len(COCO_IDS) == 80


def test_other_classes_leave_the_classifier_as_initialised(tmp_path):
    source = network(num_classes=7, p6="p5")
    torch.save(torchvision_state(source), tmp_path / "tv.pth")
    ours = fresh(p6="p5")
    before = ours.classification.predict.weight.clone()
    report = initialise.initialise(ours, tmp_path / "tv.pth")
    assert torch.equal(ours.classification.predict.weight, before)
    assert report.kept == ["classification.predict.weight", "classification.predict.bias"]
    assert "7 classes, the model 5" in str(report)
    torch.testing.assert_close(
        ours.regression.predict.bias.sum(), source.regression.predict.bias.sum()
    )


# Backbones alone


def test_msra_backbones_fill_the_backbone_and_nothing_else(tmp_path):
    source = network(stride_in_1x1=True)
    blobs = {k: v for k, v in caffe2_blobs(source).items() if k.startswith(("conv1", "res"))}
    blobs["fc1000_w"] = np.zeros((10, 4), np.float32)
    path = write_pickle(tmp_path / "R-50.pkl", blobs)
    ours = fresh(stride_in_1x1=True)
    before = ours.fpn.p6.weight.clone()
    report = initialise.initialise(ours, path)
    with torch.no_grad():
        for mine, other in zip(ours.backbone(IMAGES), source.backbone(IMAGES), strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.fpn.p6.weight, before)
    assert report.unused == ["fc1000_w"]
    assert all(not name.startswith("backbone.") for name in report.kept)


def test_turned_round_weights_take_red_green_blue(tmp_path):
    source = network(stride_in_1x1=True)
    path = write_pickle(tmp_path / "R-50.pkl", caffe2_blobs(source))
    ours = fresh(stride_in_1x1=True)
    report = initialise.initialise(ours, path, to_rgb=True)
    with torch.no_grad():
        expected = source.backbone(IMAGES)[0]
        torch.testing.assert_close(ours.backbone(IMAGES.flip(1))[0], expected, atol=1e-4, rtol=1e-4)
    assert not report.wants.bgr
    assert report.wants.mean == pytest.approx([m / 255 for m in (122.7717, 115.9465, 102.9801)])
    assert report.wants.std == pytest.approx([1 / 255] * 3)
    assert "red, green, blue in 0..1" in str(report)


@pytest.mark.parametrize("detectron2", [False, True])
def test_torchvision_backbones_fill_the_backbone(tmp_path, detectron2):
    source = network()
    state = {k.removeprefix("backbone."): v for k, v in source.backbone.state_dict().items()}
    if detectron2:  # its conversion of the same weights, no prefix
        state = detectron2_names({f"backbone.{k}": v for k, v in state.items()})
        state = {k.removeprefix("backbone.bottom_up."): v for k, v in state.items()}
    else:
        state |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "r50.pth")
    ours = fresh()
    report = initialise.initialise(ours, tmp_path / "r50.pth")
    with torch.no_grad():
        assert torch.equal(ours.backbone(IMAGES)[2], source.backbone(IMAGES)[2])
    assert report.wants.mean == (0.485, 0.456, 0.406)
    assert not report.wants.stride_in_1x1


def test_resnext_blobs_stride_in_the_3x3():
    blobs = {"conv1_w": torch.zeros(64, 3, 7, 7), "res2_0_branch2b_w": torch.zeros(256, 8, 3, 3)}
    assert convert(blobs, "X-101-32x8d.pkl").wants.stride_in_1x1 is False


RCNNS = [
    (fasterrcnn_resnet50_fpn, True),
    (maskrcnn_resnet50_fpn, False),
    (keypointrcnn_resnet50_fpn, False),
    (fasterrcnn_resnet50_fpn_v2, False),
]


@pytest.fixture(scope="module")
def backbone() -> dict[str, Tensor]:
    """torchvision's names for the tensors of a network of ours that are an R-CNN's as well."""
    state = {}
    for name, value in torchvision_state(network(channels=256)).items():
        if name.startswith("backbone.body"):
            state[name] = value
    return state


@pytest.mark.parametrize(("build", "old_names"), RCNNS)
def test_an_rcnn_of_torchvision_gives_backbone_and_pyramid(tmp_path, backbone, build, old_names):
    with torch.device("meta"):
        theirs = build(weights=None, weights_backbone=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.rand(v.shape, generator=generator) for k, v in theirs.items() if "fpn" in k}
    state |= backbone | {k: torch.zeros(v.shape[:1]) for k, v in theirs.items() if k[0] == "r"}
    if old_names:
        state = {re.sub(r"(_blocks\.\d)\.0\.", r"\1.", k): v for k, v in state.items()}
    torch.save(state, tmp_path / "rcnn.pth")
    ours = fresh(channels=256)
    report = initialise.initialise(ours, tmp_path / "rcnn.pth")
    assert report.wants.norm_eps == (0.0 if old_names else 1e-5)
    heads = [name for name in state if name.startswith(("rpn.", "roi_heads."))]
    assert set(heads) < set(report.unused)
    kept = {name.rpartition(".")[0] for name in report.kept}
    pyramid = {f"fpn.{part}.{i}" for part in ("lateral", "output") for i in range(3)}
    assert {"fpn.p6", "fpn.p7", "classification.predict"} < kept
    assert report.loaded + len(report.unused) == len(state)
    assert f"{len(report.unused)} are unused: {report.unused[0]}, " in str(report)
    if build is fasterrcnn_resnet50_fpn_v2:
        assert pyramid < kept
        return
    assert not pyramid & kept
    dot = "" if old_names else ".0"
    for i in range(3):  # C3 to C5; theirs starts at C2
        for mine, other in (("lateral", "inner"), ("output", "layer")):
            expected = state[f"backbone.fpn.{other}_blocks.{i + 1}{dot}.weight"]
            assert torch.equal(ours.fpn.get_submodule(f"{mine}.{i}").weight, expected)


@pytest.mark.parametrize("std", [(58.395, 57.12, 57.375), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_pixels_asked_for_are_those_of_detectron2(order, std):
    mean = (123.675, 116.28, 103.53)
    mean, std = (mean, std) if order == "RGB" else (mean[::-1], std[::-1])
    state = {"pixel_mean": torch.tensor(mean), "pixel_std": torch.tensor(std)}
    state["backbone.bottom_up.stem.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    report = initialise.Report("", wants=convert(state, "model_final.pkl").wants)
    assert report.wants.stride_in_1x1 == (std[0] == 1)
    cfg = Data(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="wants other pixels than the data gives") as found:
        data.require_pixels(cfg, report)
    options = dict(re.findall(r"data\.(\w+)=(\S+)", str(found.value)))
    values = {key: [float(v) for v in options[key][1:-1].split(",")] for key in ("mean", "std")}
    asked = Data(bgr=options["bgr"] == "True", **values)
    data.require_pixels(asked, report)
    image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    given = data.Collate(asked)([(image, target)]).images[0, :, :32, :32]
    theirs = image if order == "RGB" else image.flip(0)  # INPUT.FORMAT, 0..255
    theirs = (theirs - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(given, theirs, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="other pixels"):
        data.require_pixels(Data(bgr=asked.bgr, mean=asked.mean, std=[0.5] * 3), report)


# Refusals


@pytest.fixture(scope="module")
def blobs() -> dict[str, np.ndarray]:
    return caffe2_blobs(network(stride_in_1x1=True))


def test_weights_of_another_network_are_refused_with_the_option_to_set(tmp_path, blobs):
    path = write_pickle(tmp_path / "final.pkl", {"blobs": blobs})
    for options, sentence in (
        ({}, "set model.stride_in_1x1=True"),
        ({"stride_in_1x1": True, "p6": "p5"}, "set model.p6=c5"),
        ({"stride_in_1x1": True, "head_norm": "gn"}, "set model.head_norm=none"),
        ({"stride_in_1x1": True, "backbone_norm": "bn"}, "set model.backbone_norm=frozen"),
        ({"stride_in_1x1": True, "backbone": "resnet101"}, r"resnet101: 255 missing: .*layer3\.6"),
        ({"stride_in_1x1": True, "channels": 16}, "of another shape: fpn.lateral.0.weight"),
    ):
        with torch.device("meta"):
            model = fresh(**options)
        with pytest.raises(ValueError, match=sentence):
            initialise.initialise(model, path)


def test_a_deeper_backbone_is_refused_and_changes_nothing(tmp_path):
    with torch.device("meta"):
        deep = RetinaNet(Architecture(num_classes=5, backbone="resnet34"))
    state = {k: torch.zeros(v.shape) for k, v in deep.backbone.state_dict().items()}
    torch.save(state, tmp_path / "r34.pth")
    model = fresh(backbone="resnet18")
    before = model.backbone.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"resnet18: \d+ unknown: .*layer1\.2"):
        initialise.initialise(model, tmp_path / "r34.pth")
    assert torch.equal(model.backbone.conv1.weight, before)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "res4_1_branch2c_bn_s",
            (3, 5),
            r"than its names promise \(The size of tensor",
        ),
        ("retnet_cls_pred_fpn3_w", (1,), "other shapes than its names promise"),
        ("fpn_6_w", (2, 2), r"1 of another shape: fpn\.p6\.weight \(2, 2\) for"),
    ],
)
def test_right_names_with_other_shapes_end_in_a_sentence(tmp_path, blobs, name, shape, message):
    path = write_pickle(tmp_path / "final.pkl", {"blobs": blobs | {name: np.zeros(shape, "f4")}})
    with torch.device("meta"):
        model = fresh(stride_in_1x1=True)
    with pytest.raises(ValueError, match=message):
        initialise.initialise(model, path)


def test_unknown_and_missing_files_are_answered_with_a_sentence(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no known format"):
        initialise.initialise(fresh(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is not a file"):
        initialise.initialise(fresh(), tmp_path / "nothing.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match="damaged"):
        initialise.read(tmp_path / "cut.pth")
