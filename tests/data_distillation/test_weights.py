"""Weight files of others by their names: every blob finds its place or is listed."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import get_model, resnet50
from torchvision.ops import FrozenBatchNorm2d

from data_distillation.model import Network, build_detector
from data_distillation.weights.formats import DETECTRON, DETECTRON2, convert
from data_distillation.weights.initialise import initialise
from tests.data_distillation.test_model import small

D1 = {"mean": [0.481458, 0.454692, 0.403844], "std": [1 / 255] * 3, "stride_in_1x1": True}
NARROW = {"channels": 16, "hidden": 16, "keypoint_channels": 16}
LAST = {1: 2, 2: 3, 3: 5, 4: 2}  # number of the last block of each stage of ResNet-50

HEADS = {
    "rpn.head.conv.0.0": "conv_rpn_fpn2",
    "rpn.head.cls_logits": "rpn_cls_logits_fpn2",
    "rpn.head.bbox_pred": "rpn_bbox_pred_fpn2",
    "roi_heads.box_head.fc6": "fc6",
    "roi_heads.box_head.fc7": "fc7",
    "roi_heads.box_predictor.cls_score": "cls_score",
    "roi_heads.box_predictor.bbox_pred": "bbox_pred",
    "roi_heads.keypoint_predictor.kps_score_lowres": "kps_score_lowres",
}
HEADS |= {f"roi_heads.keypoint_head.{2 * n - 2}": f"conv_fcn{n}" for n in range(1, 9)}


def to_caffe2(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Our tensors by Detectron's names (card of its configs); written apart from `formats.py`."""
    found = {}
    for name, value in state.items():
        words, kind = name.split("."), name.rsplit(".", 1)[1]
        if kind in ("running_mean", "running_var"):
            continue
        letter = "w" if kind == "weight" else "b"
        if words[1] == "body" and words[2] in ("conv1", "bn1"):
            stem = {"conv1": "conv1_w", "bn1": f"res_conv1_bn_{letter.replace('w', 's')}"}
            theirs = stem[words[2]]
            value = value.flip(1) if words[2] == "conv1" else value
        elif words[1] == "body":
            norm = "bn" in words[4] or words[-3:-1] == ["downsample", "1"]
            branch = "1" if words[4] == "downsample" else "2" + "abc"[int(words[4][-1]) - 1]
            theirs = f"res{int(words[2][-1]) + 1}_{words[3]}_branch{branch}"
            theirs += f"_bn_{letter.replace('w', 's')}" if norm else f"_{letter}"
        elif words[1] == "fpn":
            level = int(words[3])
            place = f"res{level + 2}_{LAST[level + 1]}_sum"
            if words[2] == "layer_blocks":
                theirs = f"fpn_{place}_{letter}"
            else:
                theirs = f"fpn_inner_{place}{'_lateral' if level < 3 else ''}_{letter}"
        else:
            theirs = f"{HEADS[name.rsplit('.', 1)[0]]}_{letter}"
        found[theirs] = value.numpy()
    return found


@pytest.fixture(scope="module")
def trained():
    """A keypoint network whose norms are the affine maps that a file of Detectron can hold."""
    torch.manual_seed(0)
    model = build_detector("keypoints", 1, 17, Network(**D1, **NARROW))
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.fill_(1 - 1e-5)
        elif "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand_like(value) if "running" not in name else torch.zeros(()))
    return model


def test_a_pickle_of_detectron_is_loaded_whole(trained, tmp_path):
    file = tmp_path / "model_final.pkl"
    blobs = to_caffe2(trained.state_dict())
    assert len(blobs) == 53 + 2 * 53 + 16 + 6 + 4 + 4 + 16 + 2  # convs, norms, FPN, RPN, heads
    extra = {
        "conv1_w_momentum": blobs["conv1_w"],
        "kps_score_w": np.zeros((17, 17, 4, 4), np.float32),
    }
    file.write_bytes(pickle.dumps({"blobs": blobs | extra, "cfg": "yaml"}, protocol=4))
    ours = copy.deepcopy(trained)
    for value in ours.state_dict().values():
        value.zero_()
    report = initialise(ours, str(file), "resnet50")
    assert "1 are unused: kps_score_w" in report
    assert "stay as initialised" not in report
    wanted = trained.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    norm = ours.backbone.body.bn1  # an affine map to the last bit but one
    image = torch.randn(1, 64, 2, 2)
    scaled = image * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(image), scaled)


def test_pixels_and_strides_of_another_kind_stop_and_name_the_option(trained, tmp_path):
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros((64, 3, 7, 7), np.float32)}}))
    with torch.device("meta"):
        plain = build_detector("boxes", 1, 0, Network())
        other = build_detector("boxes", 1, 0, Network(mean=D1["mean"], std=D1["std"]))
    with pytest.raises(ValueError, match=r"set network.mean=\[0.481458,0.454692,0.403844\]"):
        initialise(plain, str(file), "resnet50")
    with pytest.raises(ValueError, match=r"network.stride_in_1x1=True"):
        initialise(other, str(file), "resnet50")


def test_detectron2_has_its_background_last_and_without_a_box():
    state = {
        "backbone.bottom_up.stem.conv1.weight": torch.randn(64, 3, 7, 7),
        "backbone.bottom_up.res4.5.conv2.norm.running_var": torch.ones(2),
        "backbone.fpn_lateral5.weight": torch.ones(2),
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": torch.arange(3.0)[:, None],
        "roi_heads.box_predictor.bbox_pred.weight": torch.arange(8.0)[:, None] + 1,
        "roi_heads.keypoint_head.conv_fcn8.bias": torch.ones(2),
        "roi_heads.keypoint_head.score_lowres.weight": torch.ones(2),
        "something.else": torch.ones(1),
    }
    found = convert(state, "x")
    box = "roi_heads.box_predictor."
    assert found.tensors[f"{box}cls_score.weight"].flatten().tolist() == [2, 0, 1]
    assert found.tensors[f"{box}bbox_pred.weight"].flatten().tolist() == [0] * 4 + [*range(1, 9)]
    assert {
        "backbone.body.layer3.5.bn2.running_var",
        "backbone.fpn.inner_blocks.3.0.weight",
        "roi_heads.keypoint_head.14.bias",
        "roi_heads.keypoint_predictor.kps_score_lowres.weight",
    } <= found.tensors.keys()
    assert found.unused == ["something.else"]
    assert found.stride_in_1x1
    assert found.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-4)
    stem = found.tensors["backbone.body.conv1.weight"]
    assert torch.equal(stem, state["backbone.bottom_up.stem.conv1.weight"].flip(1))


def test_our_names_for_detectron2s_are_those_of_a_whole_network():
    """Each rule's target, filled with numbers, is a tensor of torchvision's network."""
    with torch.device("meta"):
        names = set(build_detector("keypoints", 1, 17, Network()).state_dict())
        names |= set(build_detector("masks", 1, 0, Network()).state_dict())
    theirs = {
        "backbone.bottom_up.stem.conv1.weight",
        "backbone.bottom_up.stem.conv1.norm.running_mean",
        "backbone.bottom_up.res2.0.conv3.weight",
        "backbone.bottom_up.res5.2.conv1.norm.weight",
        "backbone.bottom_up.res3.0.shortcut.weight",
        "backbone.bottom_up.res3.0.shortcut.norm.bias",
        "backbone.fpn_lateral2.weight",
        "backbone.fpn_output5.bias",
        "proposal_generator.rpn_head.conv.weight",
        "proposal_generator.rpn_head.objectness_logits.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_heads.box_head.fc1.weight",
        "roi_heads.box_head.fc2.bias",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.mask_head.mask_fcn4.weight",
        "roi_heads.mask_head.deconv.weight",
        "roi_heads.mask_head.predictor.bias",
        "roi_heads.keypoint_head.conv_fcn1.weight",
        "roi_heads.keypoint_head.score_lowres.bias",
    }
    found = convert({name: torch.zeros(8, 3, 1, 1) for name in theirs}, "x")
    assert not found.unused
    assert len(found.tensors) == len(theirs) == len(DETECTRON2)
    assert found.tensors.keys() <= names
    assert len({ours for _, ours in DETECTRON}) == len(DETECTRON)


def test_torchvisions_old_names_are_read():
    state = {
        "backbone.body.conv1.weight": torch.zeros(1),
        "backbone.fpn.inner_blocks.2.weight": torch.zeros(1),
        "rpn.head.conv.weight": torch.zeros(1),
        "roi_heads.keypoint_head.14.bias": torch.zeros(1),
    }
    assert list(convert(state, "x").tensors) == [
        "backbone.body.conv1.weight",
        "backbone.fpn.inner_blocks.2.0.weight",
        "rpn.head.conv.0.0.weight",
        "roi_heads.keypoint_head.14.bias",
    ]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_a_students_file_starts_the_next_one(wrap, tmp_path):
    torch.manual_seed(0)
    old, new = (build_detector("keypoints", 2, 3, small()) for _ in range(2))
    file = tmp_path / "student.pth"
    torch.save(wrap(old.state_dict()), file)
    report = initialise(new, str(file), "small")
    assert report == f"{len(old.state_dict())} tensors from {file}."
    for name, value in new.state_dict().items():
        assert torch.equal(value, old.state_dict()[name]), name


def test_a_network_for_other_classes_keeps_its_own_rows(tmp_path):
    old = build_detector("boxes", 2, 0, small())
    new = build_detector("boxes", 3, 0, small())
    before = new.roi_heads.box_predictor.cls_score.weight.clone()
    file = tmp_path / "teacher.pth"
    torch.save(old.state_dict(), file)
    report = initialise(new, str(file), "small")
    assert "4 stay as initialised: roi_heads.box_predictor.cls_score.weight" in report
    assert "4 are unused: roi_heads.box_predictor.cls_score.weight" in report
    assert torch.equal(new.roi_heads.box_predictor.cls_score.weight, before)


def test_cocos_91_rows_fit_its_80_classes(tmp_path):
    old, new = (build_detector("boxes", classes, 0, small()) for classes in (90, 80))
    file = tmp_path / "coco.pth"
    torch.save(old.state_dict(), file)
    initialise(new, str(file), "small")
    theirs, ours = (each.roi_heads.box_predictor for each in (old, new))
    for ours_row, their_row in ((0, 0), (1, 1), (12, 13), (80, 90)):  # id 12 is no class
        assert torch.equal(ours.cls_score.weight[ours_row], theirs.cls_score.weight[their_row])
        boxes = ours.bbox_pred.weight.unflatten(0, (81, 4))[ours_row]
        assert torch.equal(boxes, theirs.bbox_pred.weight.unflatten(0, (91, 4))[their_row])


def test_a_classifiers_file_starts_the_body_alone(tmp_path):
    torch.manual_seed(0)
    weights = get_model("resnet18", norm_layer=FrozenBatchNorm2d).state_dict()
    file = tmp_path / "resnet18.pth"
    torch.save(weights, file)
    model = build_detector("boxes", 1, 0, Network(backbone="resnet18", **NARROW))
    report = initialise(model, str(file), "resnet18")
    body = model.backbone.body.state_dict()
    assert f"{len(body)} tensors from {file}" in report
    for name, value in body.items():
        assert torch.equal(value, weights[name]), name


def test_imagenet_is_torchvisions_first_file_in_the_cache_of_torch_hub(tmp_path):
    """Of ResNet-50 there are two files."""
    with torch.device("meta"):  # the initial values of 25 M parameters take seconds
        names = resnet50().state_dict()
        model = build_detector("boxes", 1, 0, Network(channels=16, hidden=16))
    model.to_empty(device="cpu")
    weights = {
        name: torch.full_like(v, n, device="cpu") for n, (name, v) in enumerate(names.items())
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "resnet50-0676ba61.pth")
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    try:
        report = initialise(model, "imagenet", "resnet50")
    finally:
        torch.hub.set_dir(before)
    body = model.backbone.body.state_dict()
    assert report.startswith(f"{len(body)} tensors from imagenet")
    assert all(torch.equal(value, weights[name]) for name, value in body.items())


@pytest.mark.parametrize("backbone", ["small", "resnext101_32x4d"])
def test_imagenet_without_weights_says_what_to_do(backbone):
    model = build_detector("boxes", 1, 0, small())
    with pytest.raises(ValueError, match=f"no weights of network.backbone={backbone}; give a file"):
        initialise(model, "imagenet", backbone)


def test_files_that_hold_nothing_of_the_network_stop_with_a_sentence(tmp_path: Path):
    model = build_detector("boxes", 1, 0, small())
    with pytest.raises(ValueError, match="has no checkpoint: train that run first"):
        initialise(model, str(tmp_path), "small")
    file = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"it holds a, b\): known are checkpoints of this folder"):
        initialise(model, str(file), "small")
    torch.save({"backbone.body.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"is of another network: 0 of 0 tensors fit"):
        initialise(model, str(file), "small")


def test_a_file_of_which_less_than_half_fits_stops_and_leaves_the_network(tmp_path: Path):
    wide = build_detector("boxes", 1, 0, small(channels=32, hidden=32))
    model = build_detector("boxes", 1, 0, small())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same = [n for n, v in wide.state_dict().items() if v.shape == before[n].shape]
    assert 0 < 2 * len(same) < len(before)
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    fault = f"is of another network: {len(same)} of {len(before)} tensors fit; give weights of"
    with pytest.raises(ValueError, match=fault):
        initialise(model, str(tmp_path / "wide.pth"), "small")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
