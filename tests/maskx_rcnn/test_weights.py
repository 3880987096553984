"""Weight files of others by their names: every blob finds its place or is listed."""

import pickle

import numpy as np
import pytest
import torch
from torchvision import models

from maskx_rcnn.model import MaskBranch, Network, mask_rcnn
from maskx_rcnn.weights.formats import DETECTRON, DETECTRON2, convert
from maskx_rcnn.weights.initialise import initialise

D1 = {"mean": [0.481458, 0.454692, 0.403844], "std": [1 / 255] * 3, "stride_in_1x1": True}
NARROW = {"channels": 32, "hidden": 64}
CLASSES = 4


@pytest.fixture(scope="module")
def blobs():
    """What a file of the official code holds of a network with 4 classes and T of two layers."""
    torch.manual_seed(0)
    model = mask_rcnn(CLASSES, Network(**D1, **NARROW), MaskBranch())
    return model, to_caffe2(model.state_dict())


def to_caffe2(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Our tensors by Caffe2's names; written apart from `formats.py`."""
    last = {"1": 2, "2": 3, "3": 5, "4": 2}  # last block of each stage of ResNet-50
    kinds = {"weight": "w", "bias": "b"}
    found = {}
    for name, value in state.items():
        words, kind = name.split("."), name.rsplit(".", 1)[1]
        if name.startswith("backbone.body"):
            if kind in ("running_mean", "running_var"):
                continue
            norm = "bn" in words[-2] or words[-3:-1] == ["downsample", "1"]
            suffix = {"weight": "s", "bias": "b"}[kind] if norm else "w"
            if words[2] == "conv1":
                theirs, value = "conv1_w", value.flip(1)
            elif words[2] == "bn1":
                theirs = f"res_conv1_bn_{suffix}"
            else:
                branch = "1" if words[4] == "downsample" else "2" + "abc"[int(words[4][-1]) - 1]
                theirs = f"res{int(words[2][-1]) + 1}_{words[3]}_branch{branch}"
                theirs += f"{'_bn' if norm else ''}_{suffix}"
        elif name.startswith("backbone.fpn"):
            level, block = int(words[3]), last[str(int(words[3]) + 1)]
            inner = "fpn_inner_" if words[2] == "inner_blocks" else "fpn_"
            lateral = "_lateral" if inner == "fpn_inner_" and level < 3 else ""
            theirs = f"{inner}res{level + 2}_{block}_sum{lateral}_{kinds[kind]}"
        else:
            theirs = {
                "rpn.head.conv.0.0": "conv_rpn_fpn2",
                "rpn.head.cls_logits": "rpn_cls_logits_fpn2",
                "rpn.head.bbox_pred": "rpn_bbox_pred_fpn2",
                "roi_heads.box_head.fc6": "fc6",
                "roi_heads.box_head.fc7": "fc7",
                "roi_heads.box_predictor.cls_score": "cls_score",
                "roi_heads.box_predictor.bbox_pred": "bbox_pred",
                "roi_heads.mask_head.0.0": "_[mask]_fcn1",
                "roi_heads.mask_head.1.0": "_[mask]_fcn2",
                "roi_heads.mask_head.2.0": "_[mask]_fcn3",
                "roi_heads.mask_head.3.0": "_[mask]_fcn4",
                "roi_heads.mask_predictor.conv5_mask": "conv5_mask",
                "roi_heads.mask_predictor.transfer.0": "bbox2mask_mlp_l1",
                "roi_heads.mask_predictor.transfer.2": "mask_fcn_logits_w_flat",
            }[name.rsplit(".", 1)[0]] + f"_{kinds[kind]}"
        found[theirs] = value.numpy()
    return found


def test_a_file_of_the_official_code_is_loaded_whole(blobs, tmp_path):
    model, content = blobs
    file = tmp_path / "model_final.pkl"
    extra = {"conv1_w_momentum": content["conv1_w"], "unheard_of_w": np.zeros(3, np.float32)}
    file.write_bytes(pickle.dumps({"blobs": content | extra, "cfg": "yaml"}, protocol=2))
    torch.manual_seed(1)
    ours = mask_rcnn(CLASSES, Network(**D1, **NARROW), MaskBranch())
    report = initialise(ours, str(file), "resnet50")
    assert "1 are unused: unheard_of_w" in report
    assert "stay as initialised" not in report
    wanted = model.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    with pytest.raises(ValueError, match=r"set network.mean=\[0.481458,0.454692,0.403844\]"):
        initialise(mask_rcnn(CLASSES, Network(**NARROW), MaskBranch()), str(file), "resnet50")
    other = mask_rcnn(CLASSES, Network(mean=D1["mean"], std=D1["std"], **NARROW), MaskBranch())
    with pytest.raises(ValueError, match=r"network.stride_in_1x1=True"):
        initialise(other, str(file), "resnet50")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_last_layer_of_t_comes_after_its_others(layers):
    state = {f"bbox2mask_mlp_l{n}_w": torch.zeros(2, 2) for n in range(1, layers)}
    state |= {"mask_fcn_logits_w_flat_w": torch.ones(2, 2), "cls_score_w": torch.zeros(2, 2)}
    found = convert(state, "x").tensors
    names = [f"roi_heads.mask_predictor.transfer.{2 * n}.weight" for n in range(layers)]
    assert [name for name in found if "transfer" in name] == names
    assert found[names[-1]].all()


def test_rows_that_were_set_aside_are_taken():
    state = {"cls_score_w": torch.zeros(81, 3), "cls_score_w_jcvbackup": torch.ones(3002, 3)}
    assert len(convert(state, "x").tensors["roi_heads.box_predictor.cls_score.weight"]) == 3002


def test_detectron2_has_its_background_last_and_without_a_box():
    state = {
        "backbone.bottom_up.stem.conv1.weight": torch.randn(64, 3, 7, 7),
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": torch.arange(5.0)[:, None],
        "roi_heads.box_predictor.bbox_pred.weight": torch.arange(16.0)[:, None] + 1,
        "roi_heads.mask_head.predictor.weight": torch.arange(4.0)[:, None, None, None] + 1,
        "roi_heads.mask_head.mask_fcn2.bias": torch.ones(2),
        "something.else": torch.ones(1),
    }
    found = convert(state, "x")
    box, mask = "roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.weight"
    assert found.tensors[f"{box}cls_score.weight"].flatten().tolist() == [4, 0, 1, 2, 3]
    assert found.tensors[f"{box}bbox_pred.weight"].flatten().tolist() == [0] * 4 + list(
        range(1, 17)
    )
    assert found.tensors[mask].flatten().tolist() == [0, 1, 2, 3, 4]
    assert "roi_heads.mask_head.1.0.bias" in found.tensors
    assert found.unused == ["something.else"]
    assert found.stride_in_1x1
    assert found.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-4)
    stem = found.tensors["backbone.body.conv1.weight"]
    assert torch.equal(stem, state["backbone.bottom_up.stem.conv1.weight"].flip(1))


def test_torchvisions_old_names_are_read():
    state = {
        "backbone.body.conv1.weight": torch.zeros(1),
        "backbone.fpn.inner_blocks.2.weight": torch.zeros(1),
        "rpn.head.conv.weight": torch.zeros(1),
        "roi_heads.mask_head.mask_fcn4.bias": torch.zeros(1),
    }
    assert list(convert(state, "x").tensors) == [
        "backbone.body.conv1.weight",
        "backbone.fpn.inner_blocks.2.0.weight",
        "rpn.head.conv.0.0.weight",
        "roi_heads.mask_head.3.0.bias",
    ]


def test_an_unknown_file_names_the_formats():
    with pytest.raises(ValueError, match=r"it holds a, b\): known are"):
        convert({"a": torch.zeros(1), "b": torch.zeros(1)}, "x.pt")
    assert len({ours for _, ours in DETECTRON2}) == len(DETECTRON2)
    assert len({ours for _, ours in DETECTRON}) == len(DETECTRON)


def test_a_detector_gives_a_new_branch_everything_but_its_own(tmp_path):
    small = Network(
        backbone="small", channels=8, hidden=8, mask_size=8, mask_convs=1, anchors=[12, 24]
    )
    old = mask_rcnn(CLASSES, small, MaskBranch(kind="agnostic"))
    file = tmp_path / "detector.pt"
    torch.save(old.state_dict(), file)
    new = mask_rcnn(CLASSES, small, MaskBranch())
    before = {n: v.clone() for n, v in new.state_dict().items()}
    report = initialise(new, str(file), "small", mask_branch=False)
    for name, value in new.state_dict().items():
        branch = name.startswith(("roi_heads.mask_head.", "roi_heads.mask_predictor."))
        assert torch.equal(value, before[name] if branch else old.state_dict()[name]), name
    assert "are unused: roi_heads.mask_head" in report
    with pytest.raises(ValueError, match="has no checkpoint: train that run first"):
        initialise(new, str(tmp_path), "small")


def test_weights_of_another_network_are_refused_and_counters_of_norms_are_not_listed(tmp_path):
    networks = {name: Network(backbone=name, **NARROW) for name in ("resnet18", "resnet34")}
    for name in networks:
        torch.save(models.get_model(name, weights=None).state_dict(), tmp_path / f"{name}.pth")
    ours = mask_rcnn(CLASSES, networks["resnet18"], MaskBranch())
    report = initialise(ours, str(tmp_path / "resnet18.pth"), "resnet18")
    assert report.startswith("100 tensors from ")  # 20 convolutions and as many norms of 4
    assert "num_batches_tracked" not in report
    wider = mask_rcnn(CLASSES, Network(backbone="resnet50", **NARROW), MaskBranch())
    with pytest.raises(ValueError, match=r"is of another network: \d+ of 265 tensors fit"):
        initialise(wider, str(tmp_path / "resnet18.pth"), "resnet50")
