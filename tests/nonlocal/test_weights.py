"""Weight files of others by their names, which are written here apart from `formats.py`."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck, ResNet

from common.run import checkpoint
from common.run.options import Options
from nonlocal_.block import Block
from nonlocal_.config import Config, Data, may_change
from nonlocal_.model import Network
from nonlocal_.net.insert import insert
from nonlocal_.net.norm import freeze_norm
from nonlocal_.net.resnet import BLOCKS, Sizes, VideoNetwork
from nonlocal_.weights import initialise as initialise_module
from nonlocal_.weights.formats import convert
from nonlocal_.weights.initialise import fit, initialise, read_run

AT = ["res3.1", "res4.4"]
IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
PEERS = IMAGENET | {"variant": "mmaction2", "pool1_pad": 1}
COUNTER = "num_batches_tracked"


def narrow(network, block, classes=5):
    """A network as the options say, but for channels: those of a ResNet of width 8."""
    depth = network.depth if network.depth in BLOCKS else "resnet50"
    sizes = Sizes(BLOCKS[depth], (8, 8, 8, 8), (8, 7, 5), 1, (1, 1), 0)
    model = VideoNetwork(sizes, classes, inflate=network.inflate)
    if network.norm == "frozen":
        freeze_norm(model)
    return insert(model, network.at, block)


def trained(network, block):
    """Such a network whose tensors are all random."""
    torch.manual_seed(0)
    model = narrow(network, block).eval()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif not name.endswith(COUNTER):
            value.copy_(torch.randn_like(value) * (0.5 / max(1, value[0].numel()) ** 0.5))
    return model


def caffe2_name(name):
    """The blob of one of our tensors, as the official code names it."""
    words = name.split(".")
    norm = "bn" in words[-2] or words[-3:-1] == ["downsample", "1"]
    kind = {"weight": "s" if norm else "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    last = kind[words[-1]]
    if words[0] == "fc":
        return f"pred_{last}"
    if not words[0].startswith("layer"):
        return f"{'res_conv1_bn' if norm else 'conv1'}_{last}"
    stage, number, part = int(words[0][-1]) + 1, words[1], words[2]
    if part == "nl":
        return f"nonlocal_conv{stage}_{number}_{words[3]}_{last}"
    branch = "1" if part == "downsample" else "2" + "abc"[int(part[-1]) - 1]
    return f"res{stage}_{number}_branch{branch}{'_bn' if norm else ''}_{last}"


def slowfast_name(name):
    words = name.split(".")
    norm, last = "bn" in words[-2] or words[-3:-1] == ["downsample", "1"], words[-1]
    if words[0] == "fc":
        return f"head.projection.{last}"
    if not words[0].startswith("layer"):
        return f"s1.pathway0_stem.{'bn' if norm else 'conv'}.{last}"
    stage, number, part = f"s{int(words[0][-1]) + 1}.pathway0", words[1], words[2]
    if part == "nl":
        return f"{stage}_nonlocal{number}.{'bn' if norm else f'conv_{words[3]}'}.{last}"
    branch = "branch1" if part == "downsample" else "branch2." + "abc"[int(part[-1]) - 1]
    return f"{stage}_res{number}.{branch}{'_bn' if norm else ''}.{last}"


def mmaction2_name(name):
    words = name.split(".")
    norm, last = "bn" in words[-2] or words[-3:-1] == ["downsample", "1"], words[-1]
    kind = "bn" if norm else "conv"
    if words[0] == "fc":
        return f"cls_head.fc_cls.{last}"
    if not words[0].startswith("layer"):
        return f"backbone.conv1.{kind}.{last}"
    block = f"backbone.{words[0]}.{words[1]}"
    if words[2] == "nl":
        ours = {"phi": "phi.0", "g": "g.0", "bn": "conv_out", "out": "conv_out"}
        if words[3] == "w_f":
            return f"{block}.non_local_block.concat_project.conv.weight"
        return f"{block}.non_local_block.{ours.get(words[3], words[3])}.{kind}.{last}"
    part = "downsample" if words[2] == "downsample" else f"conv{words[2][-1]}"
    return f"{block}.{part}.{kind}.{last}"


def gluoncv_name(name):
    words = name.split(".")
    if words[0] == "fc":
        return name
    if not words[0].startswith("layer"):
        return f"first_stage.{int(words[0] == 'bn1')}.{words[-1]}"
    rest = ".".join(words[2:]).replace("nl.out", "nl.W").replace("nl.", "nonlocal_block.")
    return f"res_layers.{int(words[0][-1]) - 1}.{words[1]}.{rest}"


def renamed(model, name_of):
    state = model.state_dict()
    return {name_of(name): v for name, v in state.items() if not name.endswith(COUNTER)}


def settings(init, network, block=None, **options):
    options = {"init": str(init), "data": Data(name="builtin", root="")} | options
    return Config(network=Network(**network), block=Block(**(block or {})), **options)


def write_caffe2(path, blobs):
    arrays = {name: value.numpy() for name, value in blobs.items()}
    arrays |= {
        "lr": np.float32(0.01),
        "model_iter": np.int64(4),
        "conv1_w_momentum": arrays["conv1_w"],
    }
    path.write_bytes(pickle.dumps({"blobs": arrays}, protocol=2))
    return path


FAMILIES = {
    # names, options of the network, options of the blocks
    "Caffe2": (caffe2_name, {}, {}),
    "SlowFast": (slowfast_name, {"variant": "fast", "pool1_pad": 1}, {}),
    "mmaction2": (mmaction2_name, PEERS, {"pool_first": False, "scale": "none"}),
    "GluonCV": (gluoncv_name, PEERS, {"pool": False}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inflate", ["3x1x1", "none"])
def test_every_tensor_of_a_family_finds_its_place(family, inflate, tmp_path):
    name_of, network, block = FAMILIES[family]
    cfg = settings(tmp_path / "weights", network | {"inflate": inflate, "at": AT}, block)
    theirs = trained(cfg.network, cfg.block)
    state = renamed(theirs, name_of)
    if family == "Caffe2":
        write_caffe2(tmp_path / "weights", state)
    else:
        torch.save({"model_state": state, "epoch": 3}, tmp_path / "weights")
    ours = narrow(cfg.network, cfg.block)
    report = initialise(ours, cfg)
    assert not ours.training  # video-nonlocal-net#65: 48 % in training mode
    assert report.source.endswith(f"({family})")
    assert (report.kept, report.unused) == ([], [])
    assert report.loaded == len(state)
    wanted = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, wanted[name]) or name.endswith(COUNTER), name


def test_the_official_licence_is_printed_and_what_names_do_not_tell(tmp_path):
    cfg = settings(tmp_path / "c2.pkl", {"at": AT})
    theirs = trained(cfg.network, cfg.block)
    write_caffe2(tmp_path / "c2.pkl", renamed(theirs, caffe2_name))
    text = str(initialise(narrow(cfg.network, cfg.block), cfg))
    assert "CC-BY-NC 4.0" in text
    assert "network.variant=fast is for the official 8x8 and 32x4 models" in text


@pytest.mark.parametrize("mode", ["gaussian", "concatenation"])
def test_mmaction2s_other_blocks_are_told_by_their_names(mode):
    network, block = Network(at=AT, **PEERS), Block(mode=mode, pool_first=False, scale="none")
    theirs = trained(network, block)
    state = renamed(theirs, mmaction2_name)
    for name in state:
        if "concat_project" in name:
            state[name] = state[name][None, :, None, None]
    found = convert(state, "x")
    assert found.wants["block.mode"] == (mode,)
    assert found.unused == []
    own = theirs.state_dict()
    assert set(found.tensors) == {name for name in own if not name.endswith(COUNTER)}
    assert all(torch.equal(fit(v, own[name]), own[name]) for name, v in found.tensors.items())


def test_gluoncvs_tensors_that_are_there_twice_are_taken_once():
    theirs = trained(Network(at=AT, **PEERS), Block(pool=False))
    state = renamed(theirs, gluoncv_name)
    twice = {"head.1.weight": state["fc.weight"]}
    twice["res_layers.1.1.nonlocal_block.W_bn.0.weight"] = torch.zeros(1)
    assert convert(state | twice, "x").unused == []


def misfit(tmp_path, name_of, network, block, ours, our_block=None):
    """The sentence for weights of a network and blocks in the network of other options."""
    theirs = trained(Network(**network), Block(**block))
    torch.save(renamed(theirs, name_of), tmp_path / "x.pth")
    cfg = settings(tmp_path / "x.pth", ours, our_block)
    with pytest.raises(ValueError, match="set ") as error:
        initialise(narrow(cfg.network, cfg.block), cfg)
    return str(error.value)


def test_options_of_another_network_are_named_in_one_sentence(tmp_path):
    peers = {"at": AT, "inflate": "3x1x1"}
    text = misfit(tmp_path, mmaction2_name, peers, {}, {"at": AT})
    assert text == (
        f"{tmp_path}/x.pth (mmaction2) is of another network: set "
        "network.mean=[123.675,116.28,103.53] network.std=[58.395,57.12,57.375] "
        "network.variant=mmaction2 network.pool1_pad=1 block.scale=none block.pool_first=false "
        "network.inflate=3x1x1."
    )
    text = misfit(tmp_path, slowfast_name, {"at": AT}, {}, {"at": AT}, {"pool_first": False})
    wanted = "set network.variant=fast network.pool1_pad=1 block.pool_first=true."
    assert text.endswith(wanted)
    text = misfit(tmp_path, caffe2_name, {"at": AT}, {}, {"at": AT}, {"mode": "gaussian"})
    assert text.endswith("set block.mode=embedded_gaussian.")
    text = misfit(tmp_path, caffe2_name, {"at": AT}, {}, {"at": ["res4.4"]})
    assert text.endswith("where the network has none: set network.at=[res3.1,res4.4].")
    text = misfit(tmp_path, caffe2_name, {"depth": "resnet101"}, {}, {})
    assert text.endswith("set network.depth=resnet101.")
    text = misfit(tmp_path, caffe2_name, {"at": AT}, {"norm": "none"}, {"at": AT})
    assert text.endswith("set block.norm=none.")


def test_the_dot_product_has_no_scale_to_set(tmp_path):
    network, block = {"at": AT} | PEERS, {"mode": "dot_product", "pool_first": False}
    theirs = trained(Network(**network), Block(**block))
    torch.save(renamed(theirs, mmaction2_name), tmp_path / "x.pth")
    cfg = settings(tmp_path / "x.pth", network, block | {"scale": "sqrt"})
    assert not initialise(narrow(cfg.network, cfg.block), cfg).kept


def affine_file(tmp_path, network, block):
    """A file as long clips start from: norms as affine maps, flat, without a classifier."""
    theirs = freeze_norm(trained(Network(**network), Block(**block)))
    for name, value in theirs.state_dict().items():
        if name.endswith("running_mean"):
            value.zero_()
        elif name.endswith("running_var"):
            value.fill_(1 - 1e-5)
    blobs = renamed(theirs, caffe2_name)
    blobs = {n: v.numpy() for n, v in blobs.items() if not n.endswith(("_rm", "_riv"))}
    pred = {name: blobs.pop(name) for name in list(blobs) if name.startswith("pred")}
    (tmp_path / "affine.pkl").write_bytes(pickle.dumps(blobs | {"lr": 0.00125}, protocol=2))
    return theirs, pred


def test_an_affine_file_gives_frozen_norms_and_may_lack_the_classifier(tmp_path):
    theirs, pred = affine_file(tmp_path, {"norm": "frozen"}, {})
    cfg = settings(tmp_path / "affine.pkl", {"norm": "frozen", "at": AT}, {"norm": "none"})
    ours = narrow(cfg.network, cfg.block)
    report = initialise(ours, cfg)
    assert {name for name in report.kept if ".nl." not in name} == {"fc.weight", "fc.bias"}
    for name, value in pred.items():
        getattr(ours.fc, {"pred_w": "weight", "pred_b": "bias"}[name]).data = torch.tensor(value)
    clips = torch.randn(1, 3, 4, 96, 96)
    torch.testing.assert_close(ours.train().features(clips), theirs.features(clips))
    plain = settings(tmp_path / "affine.pkl", {})
    with pytest.raises(ValueError, match=r"set network\.norm=frozen"):
        initialise(narrow(plain.network, plain.block), plain)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        initialise(ours, replace(cfg, only_evaluate=True))


def test_a_missing_classifier_stops_elsewhere_and_a_new_one_can_be_asked_for(tmp_path):
    theirs = trained(Network(), Block())
    state = renamed(theirs, caffe2_name)
    write_caffe2(tmp_path / "x.pkl", {n: v for n, v in state.items() if "pred" not in n})
    cfg = settings(tmp_path / "x.pkl", {})
    with pytest.raises(ValueError, match="has no classifier: set new_classifier=true"):
        initialise(narrow(cfg.network, cfg.block), cfg)
    write_caffe2(tmp_path / "x.pkl", state)
    ours = narrow(cfg.network, cfg.block)
    before = ours.fc.weight.detach().clone()
    assert initialise(ours, replace(cfg, new_classifier=True)).kept == ["fc.weight", "fc.bias"]
    assert torch.equal(ours.fc.weight, before)
    other = narrow(cfg.network, cfg.block, classes=7)
    assert initialise(other, cfg).kept == ["fc.weight", "fc.bias"]  # of other classes
    with pytest.raises(ValueError, match="nothing to evaluate"):
        initialise(other, replace(cfg, only_evaluate=True))


def test_a_missing_tensor_of_the_trunk_or_of_a_block_stops(tmp_path):
    cfg = settings(tmp_path / "x.pkl", {"at": AT})
    state = renamed(trained(cfg.network, cfg.block), caffe2_name)
    for blob, ours in (
        ("res4_2_branch2b_w", "layer3.2.conv2.weight"),
        ("nonlocal_conv3_1_phi_b", "layer2.1.nl.phi.bias"),
    ):
        write_caffe2(tmp_path / "x.pkl", {n: v for n, v in state.items() if n != blob})
        with pytest.raises(ValueError, match=f"it lacks {ours}"):
            initialise(narrow(cfg.network, cfg.block), cfg)


def test_blocks_that_the_file_lacks_stay_the_identity(tmp_path):
    """The official long clips start so, from the baseline without blocks."""
    theirs = trained(Network(), Block())
    write_caffe2(tmp_path / "x.pkl", renamed(theirs, caffe2_name))
    cfg = settings(tmp_path / "x.pkl", {"at": AT})
    ours = narrow(cfg.network, cfg.block)
    assert all(".nl." in name for name in initialise(ours, cfg).kept)
    clips = torch.randn(1, 3, 4, 96, 96)
    torch.testing.assert_close(ours(clips), theirs(clips))


def test_the_norm_of_a_block_is_folded_where_ours_has_none(tmp_path):
    theirs = trained(Network(at=AT), Block())
    write_caffe2(tmp_path / "x.pkl", renamed(theirs, caffe2_name))
    cfg = settings(tmp_path / "x.pkl", {"at": AT}, {"norm": "none"})
    ours = narrow(cfg.network, cfg.block)
    assert initialise(ours, cfg).unused == []
    clips = torch.randn(1, 3, 4, 96, 96)
    torch.testing.assert_close(ours(clips), theirs(clips), atol=1e-4, rtol=1e-4)


def test_images_are_inflated_by_repeating_and_dividing(monkeypatch):
    torch.manual_seed(0)
    images = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=64, num_classes=10)
    sizes = Sizes(BLOCKS["resnet50"], (64, 128, 256, 512), (64, 7, 5), 1, (1, 1), 1)
    ours = VideoNetwork(sizes, 5, inflate="3x1x1")
    monkeypatch.setattr(initialise_module, "imagenet", lambda depth: dict(images.state_dict()))
    report = initialise(ours, settings("imagenet", {"inflate": "3x1x1"}))
    assert report.kept == ["fc.weight", "fc.bias"]
    assert report.unused == []
    assert report.notes == ["53 kernels of images were inflated."]
    kernel = images.conv1.weight
    torch.testing.assert_close(ours.conv1.weight.sum(2), kernel)
    assert torch.equal(ours.conv1.weight[:, :, 0], ours.conv1.weight[:, :, 4])
    assert torch.equal(ours.layer4[2].conv2.weight[:, :, 0], images.layer4[2].conv2.weight)


def test_every_known_resnet_inflates_by_name_and_shape():
    for depth in ("resnet50", "resnet101"):
        with torch.device("meta"):
            images = get_model(depth, weights=None).state_dict()
            sizes = Sizes(BLOCKS[depth], (64, 128, 256, 512), (64, 7, 5), 2, (2, 2), 0)
            own = VideoNetwork(sizes, 5, inflate="3x3x3").state_dict()
        fitting = {n for n, v in images.items() if fit(v, own[n]) is not None}
        assert fitting == set(own) - {"fc.weight", "fc.bias"}


def test_the_small_network_has_no_imagenet_weights():
    cfg = settings("imagenet", {"depth": "small"})
    with pytest.raises(ValueError, match=r"network\.depth=small has no ImageNet weights"):
        initialise(nn.Identity(), cfg)


def test_files_of_others_stop_with_a_sentence(tmp_path):
    cfg = settings(tmp_path / "x.pth", {})
    for state, message in (
        ({"s1.pathway1_stem.conv.weight": torch.ones(1)}, "SlowFast of two pathways"),
        ({"t_res2_0_branch2a_w": torch.ones(1)}, "SlowFast of two pathways"),
        ({"cls_token": torch.ones(1)}, r"no known format \(it holds cls_token\)"),
    ):
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            initialise(narrow(cfg.network, cfg.block), cfg)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no checkpoint: train that run first"):
        initialise(narrow(cfg.network, cfg.block), replace(cfg, init=str(tmp_path / "empty")))


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "concatenation"])
def test_a_run_of_ours_gives_its_weights_settings_and_classes(mode, tmp_path):
    cfg = settings(tmp_path, {"at": AT, "inflate": "3x1x1"}, {"mode": mode})
    theirs = trained(cfg.network, cfg.block)
    options = Options(cfg, may_change(cfg))
    checkpoint.save(tmp_path, 7, model=theirs, classes=list("abcde"), options=options)
    ours = narrow(cfg.network, cfg.block)
    report = initialise(ours, cfg)
    assert (report.kept, report.unused, report.notes) == ([], [], [])
    assert all(torch.equal(v, theirs.state_dict()[n]) for n, v in ours.state_dict().items())
    run = read_run(tmp_path / "checkpoint-00000007.pt")
    assert run.classes == list("abcde")
    assert run.settings.network.at == AT
    assert run.settings.block.mode == mode
    other = settings(tmp_path, {"at": AT})
    with pytest.raises(ValueError, match=r"network\.inflate=3x1x1"):
        initialise(narrow(other.network, other.block), other)


def test_a_file_of_others_is_no_run(tmp_path):
    torch.save({"model_state": {"conv1.weight": torch.ones(1)}}, tmp_path / "x.pth")
    assert read_run(tmp_path / "x.pth") is None
