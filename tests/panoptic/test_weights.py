"""Weights of others: built from a known network by their own rules, they give it again."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
)
from torchvision.ops import FrozenBatchNorm2d

from common.weights.formats import COCO_IDS
from panoptic.model import Options, PanopticFPN, Separate
from panoptic.net.instance import Sizes
from panoptic.net.regions import paste
from panoptic.weights import initialise
from panoptic.weights.formats import BOX, MASK, STEM, bare, detectron2_names

SIZES = Sizes(
    channels=16, hidden=32, mask_channels=16, semantic_channels=32, proposals=(40, 40), score=0.01
)
THINGS, STUFF = 4, 3
IMAGE = torch.randint(0, 255, (3, 64, 96), generator=torch.Generator().manual_seed(1)).byte()
MEAN, STD = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)  # detectron2's: blue, green, red


def network(seed: int = 0, **options: object) -> PanopticFPN:
    """A network whose weights and statistics are all different."""
    torch.manual_seed(seed)
    settings = {"thing_classes": THINGS, "stuff_classes": STUFF, "sizes": SIZES}
    settings = {name: options.pop(name, value) for name, value in settings.items()}
    model = PanopticFPN(Options(**{"stride_in_1x1": True, **options}), **settings).eval()
    stir(model.instance)
    return model


def detectron2_state(model: PanopticFPN) -> dict[str, Tensor]:
    """The network's tensors as detectron2 keeps them, for its pixels in BGR, 0..255, std 1."""
    own = {bare(name): value for name, value in model.state_dict().items()}
    state = {}
    for name, theirs in detectron2_names(model).items():
        value = own[name].detach().clone()
        if name == STEM:
            scale = torch.tensor([255 * s for s in (0.229, 0.224, 0.225)]).view(1, 3, 1, 1)
            value = (value / scale).flip(1)
        elif name.startswith(f"{BOX}cls_score."):
            value = value.roll(-1, 0)
        elif name.startswith(f"{BOX}bbox_pred."):
            value = value[4:]
        elif name.startswith(MASK):
            value = value[1:]
        state[theirs] = value
    return state


def stir(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1),
                (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(values, low, high)
    heads = model.roi_heads
    for layer in (heads.box_predictor.cls_score, heads.mask_predictor.mask_fcn_logits):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)


def their_state(model: PanopticFPN) -> dict[str, Tensor]:
    """The network as detectron2 would have saved it, written out layer by layer."""
    body, heads = model.instance.backbone.body, model.instance.roi_heads
    state: dict[str, Tensor] = {}

    def norm(name: str, module: FrozenBatchNorm2d) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.norm.{part}"] = getattr(module, part)

    def layer(name: str, module: nn.Module) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = module.weight, module.bias

    bottom = "backbone.bottom_up"
    # Their pixel is 255 times the deviation from the mean, ours that deviation over std.
    scale = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255
    state[f"{bottom}.stem.conv1.weight"] = (body.conv1.weight / scale)[:, [2, 1, 0]]
    norm(f"{bottom}.stem.conv1", body.bn1)
    for stage, blocks in enumerate((body.layer1, body.layer2, body.layer3, body.layer4), 2):
        for number, block in enumerate(blocks):
            name = f"{bottom}.res{stage}.{number}"
            for i in (1, 2, 3):
                state[f"{name}.conv{i}.weight"] = getattr(block, f"conv{i}").weight
                norm(f"{name}.conv{i}", getattr(block, f"bn{i}"))
            if number == 0:
                state[f"{name}.shortcut.weight"] = block.downsample[0].weight
                norm(f"{name}.shortcut", block.downsample[1])
    for i in range(4):
        layer(f"backbone.fpn_lateral{i + 2}", model.instance.backbone.fpn.inner_blocks[i][0])
        layer(f"backbone.fpn_output{i + 2}", model.instance.backbone.fpn.layer_blocks[i][0])
    layer("proposal_generator.rpn_head.conv", model.instance.rpn.head.conv[0][0])
    layer("proposal_generator.rpn_head.objectness_logits", model.instance.rpn.head.cls_logits)
    layer("proposal_generator.rpn_head.anchor_deltas", model.instance.rpn.head.bbox_pred)
    layer("roi_heads.box_head.fc1", heads.box_head.fc6)
    layer("roi_heads.box_head.fc2", heads.box_head.fc7)
    for i in range(4):
        layer(f"roi_heads.mask_head.mask_fcn{i + 1}", heads.mask_head[i][0])
    layer("roi_heads.mask_head.deconv", heads.mask_predictor.conv5_mask)
    for kind in ("weight", "bias"):
        score = getattr(heads.box_predictor.cls_score, kind)
        state[f"roi_heads.box_predictor.cls_score.{kind}"] = torch.cat([score[1:], score[:1]])
        box = getattr(heads.box_predictor.bbox_pred, kind)
        state[f"roi_heads.box_predictor.bbox_pred.{kind}"] = box[4:]
        mask = getattr(heads.mask_predictor.mask_fcn_logits, kind)
        state[f"roi_heads.mask_head.predictor.{kind}"] = mask[1:]
    for name, value in model.sem_seg_head.state_dict().items():
        state[f"sem_seg_head.{name}"] = value
    return {name: value.detach().clone() for name, value in state.items()}


def write_pickle(path: Path, state: dict[str, Tensor]) -> Path:
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


@pytest.fixture(scope="module")
def source() -> PanopticFPN:
    return network()


@pytest.fixture(scope="module")
def zoo(source, tmp_path_factory) -> Path:
    return write_pickle(tmp_path_factory.mktemp("zoo") / "model_final.pkl", their_state(source))


def test_the_map_of_names_is_total_in_both_directions(source):
    names = detectron2_names(source)
    assert set(names) == {name.removeprefix("instance.") for name in source.state_dict()}
    assert sorted(names.values()) == sorted(their_state(source))


@torch.no_grad()
def test_a_panoptic_fpn_of_detectron2_gives_the_identical_network(source, zoo):
    model = network(9)
    report = initialise.initialise(model, zoo)
    assert (report.kept, report.unused, report.notes) == ([], [], [])
    assert report.loaded == len(source.state_dict())
    heads, background = "instance.roi_heads.", {"box_predictor.bbox_pred": 4, "mask_fcn_logits": 1}
    for name, value in model.state_dict().items():
        expected = source.state_dict()[name].clone()
        for layer, rows in background.items():  # of which detectron2 has none
            if name.startswith(heads) and layer in name:
                expected[:rows] = 0
        tolerance = 1e-6 if name == "instance.backbone.body.conv1.weight" else 0
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
    (ours,), (theirs,) = model([IMAGE]), source([IMAGE])
    for key in ("boxes", "labels", "scores", "semantic"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-4)
    assert len(ours["labels"]) > 5
    assert (ours["masks"] != theirs["masks"]).float().mean() < 1e-3


def test_our_own_export_is_what_detectron2_keeps(source):
    expected = their_state(source)
    state = detectron2_state(source)
    assert set(state) == set(expected)
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-12)


@torch.no_grad()
def test_pieces_whose_order_changes_agree_with_detectron2s_own_arithmetic(source, zoo):
    theirs, model = initialise.read(zoo), network(9)
    initialise.initialise(model, zoo)
    # Blue, green, red in 0..255 less the mean, against red, green, blue in 0..1 normalised
    pixels = (IMAGE.flip(0).double() - torch.tensor(MEAN).double().view(3, 1, 1))[None]
    stem = theirs["backbone.bottom_up.stem.conv1.weight"].double()
    expected = torch.conv2d(pixels, stem, stride=2, padding=3)
    mean, std = (torch.tensor(x).double().view(3, 1, 1) for x in ((0.485, 0.456, 0.406), STD_RGB))
    ours = ((IMAGE / 255.0).double() - mean) / std
    found = torch.conv2d(
        ours[None], model.instance.backbone.body.conv1.weight.double(), stride=2, padding=3
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)

    # The background is last there, first here; deltas of class k are rows 4 k to 4 k + 3
    features = torch.randn(5, 32)
    box = "roi_heads.box_predictor"
    scores = features @ theirs[f"{box}.cls_score.weight"].T + theirs[f"{box}.cls_score.bias"]
    deltas = features @ theirs[f"{box}.bbox_pred.weight"].T + theirs[f"{box}.bbox_pred.bias"]
    logits, offsets = model.instance.roi_heads.box_predictor(features)
    things = logits.softmax(1)[:, 1:], scores.softmax(1)[:, :-1]
    torch.testing.assert_close(*things, rtol=1e-6, atol=1e-6)
    offsets = offsets.view(5, THINGS + 1, 4)
    torch.testing.assert_close(offsets[:, 1:].flatten(1), deltas, rtol=1e-6, atol=1e-6)
    assert offsets[:, 0].abs().max() == 0


STD_RGB = (0.229, 0.224, 0.225)


@torch.no_grad()
def test_weights_for_other_pixels_are_turned_too(source, zoo, tmp_path):
    state = initialise.read(zoo)
    stem = "backbone.bottom_up.stem.conv1.weight"
    std = torch.tensor([58.395, 57.12, 57.375])  # detectron2's, with torchvision's backbone
    state[stem] = state[stem].flip(1) * std.view(1, 3, 1, 1)
    state |= {"pixel_mean": torch.tensor(MEAN[::-1]).view(3, 1, 1), "pixel_std": std}
    model = network(9, stride_in_1x1=False)
    initialise.initialise(model, write_pickle(tmp_path / "rgb.pkl", state))
    torch.testing.assert_close(
        model.instance.backbone.body.conv1.weight,
        source.instance.backbone.body.conv1.weight,
        rtol=1e-5,
        atol=0,
    )


def test_predictors_for_other_classes_start_anew(zoo):
    model = network(9, thing_classes=7, stuff_classes=5)
    before = model.sem_seg_head.predictor.weight.clone()
    report = initialise.initialise(model, zoo)
    assert len(report.notes) == 4
    assert "sem_seg_head.predictor has other classes and starts anew" in str(report)
    assert torch.equal(model.sem_seg_head.predictor.weight, before)
    assert "8 stay as initialised" in str(report)


def test_the_pairs_mask_rcnn_takes_a_panoptic_fpn_without_its_branch(zoo, source):
    classes = {"thing_classes": THINGS, "stuff_classes": STUFF}
    pair = Separate(
        Options("separate", stride_in_1x1=True, part="instance"), **classes, sizes=SIZES
    )
    report = initialise.initialise(pair, zoo)
    assert all(name.startswith("sem_seg_head.") for name in report.unused)
    weight = pair.instance.roi_heads.box_head.fc6.weight
    assert torch.equal(weight, source.instance.roi_heads.box_head.fc6.weight)
    with pytest.raises(ValueError, match="the model is the semantic part alone"):
        initialise.initialise(Separate(Options("separate", part="semantic"), **classes), zoo)


# torchvision


@pytest.fixture(scope="module")
def torchvisions() -> nn.Module:
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=91,
        min_size=64,
        max_size=96,
        rpn_post_nms_top_n_test=60,
        box_detections_per_img=30,
    ).eval()
    stir(model)
    return model


@torch.no_grad()
def test_a_mask_rcnn_of_torchvision_gives_its_detections(torchvisions, tmp_path):
    torch.save(torchvisions.state_dict(), tmp_path / "mask.pth")
    sizes = Sizes(proposals=(60, 60), detections=30)
    model = PanopticFPN(
        Options(aligned=False), thing_classes=90, stuff_classes=2, sizes=sizes
    ).eval()
    report = initialise.initialise(model, tmp_path / "mask.pth")
    assert all(name.startswith("sem_seg_head.") for name in report.kept)
    assert report.notes == []
    (ours,), (theirs,) = model([IMAGE]), torchvisions([IMAGE / 255])
    assert len(theirs["boxes"]) > 10
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-4, atol=1e-5)
    assert torch.equal(ours["labels"] + 1, theirs["labels"])
    # Masks are pasted by another rule there, but what is pasted is the same.
    batch, _ = torchvisions.transform([IMAGE / 255])
    features = torchvisions.backbone(batch.tensors)
    proposals, _ = torchvisions.rpn(batch, features)
    (found,), _ = torchvisions.roi_heads(features, proposals, batch.image_sizes)
    masks = paste(found["masks"][:, 0], found["boxes"], (64, 96))
    assert (ours["masks"] != masks).float().mean() < 1e-3


@pytest.mark.filterwarnings("ignore:.*meta parameter")
@pytest.mark.parametrize("build", [fasterrcnn_resnet50_fpn, keypointrcnn_resnet50_fpn])
def test_other_rcnns_of_torchvision_give_all_but_what_they_have_not(build, tmp_path):
    with torch.device("meta"):
        theirs = build(weights=None, weights_backbone=None).state_dict()
        model = PanopticFPN(Options(aligned=False), thing_classes=90, stuff_classes=2)
    state = {f"model.{name}": torch.zeros(value.shape) for name, value in theirs.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "rcnn.pth")
    report = initialise.initialise(model, tmp_path / "rcnn.pth")
    assert all(name.split(".")[1] in ("backbone", "rpn", "roi_heads") for name in report.unused)
    kept = {".".join(name.removeprefix("instance.").split(".")[:2]) for name in report.kept}
    masks = {"roi_heads.mask_head", "roi_heads.mask_predictor"}
    assert {name for name in kept if not name.startswith("sem_seg_head")} - masks <= {
        "roi_heads.box_predictor"
    }
    assert "stay as initialised" in str(report)


@torch.no_grad()
def test_torchvisions_first_file_has_old_names_and_norms_without_eps(torchvisions, tmp_path):
    state = {}
    for name, value in torchvisions.state_dict().items():
        name = re.sub(r"(_blocks\.\d|rpn\.head\.conv\.0)\.0\.", r"\1.", name)
        name = name.replace("rpn.head.conv.0.", "rpn.head.conv.")
        name = re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", name)
        if "num_batches_tracked" not in name:
            state[name] = value * 1e-3 if name.endswith("running_var") else value
    torch.save(state, tmp_path / "old.pth")
    pair = Separate(
        Options("separate", part="instance", aligned=False), thing_classes=80, stuff_classes=53
    )
    report = initialise.initialise(pair, tmp_path / "old.pth", category_ids=COCO_IDS)
    assert report.kept == []
    model = pair.instance
    norm, prefix = model.backbone.body.layer2[1].bn2, "backbone.body.layer2.1.bn2"
    x = torch.randn(1, 128, 4, 4)
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"{prefix}.{part}"].view(1, -1, 1, 1) for part in parts)
    torch.testing.assert_close(norm(x), (x - mean) / var.sqrt() * weight + bias)
    # Category 90 is the 80th class, of 91 rows with the background
    box = "roi_heads.box_predictor"
    predictor = model.roi_heads.box_predictor
    assert torch.equal(predictor.cls_score.weight[80], state[f"{box}.cls_score.weight"][90])
    assert torch.equal(predictor.bbox_pred.bias[-4:], state[f"{box}.bbox_pred.bias"][-4:])
    assert torch.equal(predictor.cls_score.bias[0], state[f"{box}.cls_score.bias"][0])


def test_a_classification_network_starts_the_bodies_of_both_networks(tmp_path):
    torch.manual_seed(0)
    source = resnet50(weights=None)
    torch.save(source.state_dict(), tmp_path / "resnet50.pth")
    pair = Separate(Options("separate"), thing_classes=3, stuff_classes=2, sizes=SIZES)
    report = initialise.initialise(pair, tmp_path / "resnet50.pth")
    assert report.unused == ["fc.weight", "fc.bias"]
    for body in (pair.semantic.body, pair.instance.backbone.body):
        assert torch.equal(body.layer4[2].conv3.weight, source.layer4[2].conv3.weight)


# Own checkpoints, and what is refused

CLASSES = {"thing_classes": 3, "stuff_classes": 2}
MINI = {"backbone": "mini", "norm": "gn", "freeze_at": 0}


def test_two_own_checkpoints_of_the_parts_make_the_pair(tmp_path):
    pair, report = Separate(Options("separate", **MINI, semantic_norm="gn"), **CLASSES), None
    for part in ("semantic", "instance"):
        own = Separate(Options("separate", **MINI, semantic_norm="gn", part=part), **CLASSES)
        torch.save({"parts": {"model": own.state_dict()}, "step": 3}, tmp_path / f"{part}.pt")
        report = initialise.initialise(pair, tmp_path / f"{part}.pt")
        assert all(not name.startswith(part) for name in report.kept)
        for name, value in own.state_dict().items():
            assert torch.equal(pair.state_dict()[name], value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_in_1x1": False}, "set model.stride_in_1x1=True"),
        ({"norm": "bn"}, "set model.norm=frozen"),
        (
            {"backbone": "resnet101"},
            r"255 missing: .*layer3\.6.*Name its network as model.backbone",
        ),
        ({"sizes": Sizes(channels=32)}, r"of another shape: .* \(16, .*\) for \(32, "),
    ],
)
def test_a_model_that_does_not_suit_is_refused_unchanged(options, message, zoo):
    model = network(9, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as found:
        initialise.initialise(model, zoo)
    assert len(str(found.value).splitlines()) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_alignment_a_note_says_what_to_set(zoo):
    report = initialise.initialise(network(9, aligned=False), zoo)
    assert "set model.aligned=True" in str(report)


def test_files_that_are_no_such_weights_are_refused(zoo, tmp_path):
    model, state = network(9), initialise.read(zoo)
    strange = {"cascade.pkl": {"roi_heads.box_head.0.fc1.weight": torch.ones(2)}}
    strange |= {"mean.pkl": {"pixel_mean": torch.tensor([100.0, 110, 120])}}
    for name, change in strange.items():
        write_pickle(tmp_path / name, state | change)
    write_pickle(tmp_path / "other.pkl", {"encoder.weight": torch.ones(2)})
    names = ("backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.1.weight")
    torch.save({name: torch.ones(64) for name in names}, tmp_path / "v2.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "v2.pth").read_bytes()[:300])
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps({"model": print}))
    for name, message in (
        ("cascade.pkl", "box_head.0.fc1.weight, for which"),
        ("mean.pkl", r"subtracts \[100.0, 110.0, 120.0\] from its pixels"),
        ("other.pkl", r"is in no known format \(it holds encoder.weight\)"),
        ("v2.pth", "is maskrcnn_resnet50_fpn_v2"),
        ("cut.pth", "was refused, it is damaged"),
        ("hostile.pkl", "it asks for builtins.print. Nothing of it was run"),
        ("absent.pkl", "is not a file"),
    ):
        with pytest.raises(ValueError, match=message):
            initialise.initialise(model, tmp_path / name)
    with pytest.raises(ValueError, match="has no ImageNet weights"):
        initialise.initialise(PanopticFPN(Options(**MINI), **CLASSES), "imagenet")
