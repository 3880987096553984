"""Other people's weight files arrive under torchvision's names and compute what they did there."""

import pickle
import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from large_minibatch.model import resnet
from large_minibatch.weights import formats, initialise


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's ResNet-50 with statistics that are not those of the start."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50(num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


def names(state: dict[str, Tensor], patterns: dict) -> dict[str, Tensor]:
    """The state under other names; {pattern of torchvision's: what `re.sub` makes of it}."""
    renamed = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        pattern = next(p for p in patterns if re.fullmatch(p, name))
        renamed[re.sub(pattern, patterns[pattern], name)] = value
    return renamed


def stage(match: re.Match, text: str) -> str:
    return text.format(int(match[1]) + 1, *match.groups()[1:])


def slowfast(state: dict[str, Tensor]) -> dict[str, Tensor]:
    abc = {"1": "a", "2": "b", "3": "c"}
    renamed = names(
        state,
        {
            r"(conv|bn)1\.(\w+)": r"s1.pathway0_stem.\1.\2",
            r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)": lambda m: stage(
                m, f"s{{0}}.pathway0_res{{1}}.branch2.{abc[m[3]]}.{{3}}"
            ),
            r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)": lambda m: stage(
                m, f"s{{0}}.pathway0_res{{1}}.branch2.{abc[m[3]]}_bn.{{3}}"
            ),
            r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)": lambda m: stage(
                m, "s{0}.pathway0_res{1}.branch1.{2}"
            ),
            r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)": lambda m: stage(
                m, "s{0}.pathway0_res{1}.branch1_bn.{2}"
            ),
            r"fc\.(\w+)": r"head.projection.\1",
        },
    )
    return {n: v[:, :, None] if v.dim() == 4 else v for n, v in renamed.items()}


BLOBS = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


def caffe2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    before = (0, 3, 7, 13)
    comp = lambda m: before[int(m[1]) - 1] + int(m[2])  # noqa: E731
    return names(
        state,
        {
            r"conv1\.weight": "conv1_w",
            r"bn1\.(\w+)": lambda m: f"conv1_spatbn_relu_{BLOBS[m[1]]}",
            r"layer(\d)\.(\d+)\.conv(\d)\.weight": lambda m: f"comp_{comp(m)}_conv_{m[3]}_w",
            r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)": lambda m: (
                f"comp_{comp(m)}_spatbn_{m[3]}_{BLOBS[m[4]]}"
            ),
            r"layer(\d)\.(\d+)\.downsample\.0\.weight": lambda m: (
                f"shortcut_projection_{comp(m)}_w"
            ),
            r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)": lambda m: (
                f"shortcut_projection_{comp(m)}_spatbn_{BLOBS[m[3]]}"
            ),
            r"fc\.(\w)\w+": r"last_out_L10_\1",
        },
    )


def detectron(net: nn.Module) -> dict[str, Tensor]:
    """Norms folded into scale and bias, under the names of `R-50.pkl`."""
    state = dict(net.state_dict())
    for name in [n.removesuffix("running_var") for n in state if n.endswith("running_var")]:
        mean, var = state.pop(f"{name}running_mean"), state.pop(f"{name}running_var")
        state[f"{name}weight"] = state[f"{name}weight"] / (var + 1e-5).sqrt()
        state[f"{name}bias"] = state[f"{name}bias"] - mean * state[f"{name}weight"]
    abc = {"1": "a", "2": "b", "3": "c"}
    sb = {"weight": "s", "bias": "b"}
    return names(
        state,
        {
            r"conv1\.weight": "conv1_w",
            r"bn1\.(\w+)": lambda m: f"res_conv1_bn_{sb[m[1]]}",
            r"layer(\d)\.(\d+)\.conv(\d)\.weight": lambda m: (
                f"res{int(m[1]) + 1}_{m[2]}_branch2{abc[m[3]]}_w"
            ),
            r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)": lambda m: (
                f"res{int(m[1]) + 1}_{m[2]}_branch2{abc[m[3]]}_bn_{sb[m[4]]}"
            ),
            r"layer(\d)\.(\d+)\.downsample\.0\.weight": lambda m: (
                f"res{int(m[1]) + 1}_{m[2]}_branch1_w"
            ),
            r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)": lambda m: (
                f"res{int(m[1]) + 1}_{m[2]}_branch1_bn_{sb[m[3]]}"
            ),
            r"fc\.(\w)\w+": r"fc1000_\1",
        },
    )


def write(path, content) -> None:
    if path.suffix == ".pkl":
        blobs = {name: value.numpy() for name, value in content.items()}
        path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    else:
        torch.save(content, path)


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tv.pth", lambda net: net.state_dict(), "torchvision's names"),
        (
            "ddp.pth",
            lambda net: {
                "state_dict": {f"module._orig_mod.{n}": v for n, v in net.state_dict().items()}
            },
            "torchvision's names",
        ),
        (
            "ours.pt",
            lambda net: {"meta": {}, "parts": {"model": net.state_dict(), "step": 3}},
            "torchvision's names",
        ),
        ("R50.pyth", lambda net: {"model_state": slowfast(net.state_dict())}, "SlowFast"),
        ("rcnn.pth", lambda net: detector(net), "torchvision detector"),
    ],
)
def test_weights_of_every_format_compute_what_they_did_there(tmp_path, theirs, file, content, said):
    write(tmp_path / file, content(theirs))
    net = resnet("resnet50", num_classes=10)
    report = initialise.initialise(net, tmp_path / file)
    assert said in str(report)
    assert "want pixels of data.mean=[0.485,0.456,0.406]" in str(report)
    net.fc.load_state_dict(theirs.fc.state_dict())  # which a detector has not
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(IMAGES), theirs(IMAGES), atol=1e-4, rtol=1e-4)


def detector(net: nn.Module) -> dict[str, Tensor]:
    """A Faster R-CNN of torchvision on the network, as in its first files: frozen norms, eps 0."""
    state = {}
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value = value + 1e-5
        if not name.startswith("fc."):
            state[f"backbone.body.{name}"] = value
    return state | {"backbone.fpn.inner_blocks.0.weight": torch.zeros(256, 256, 1, 1)}


def test_weights_for_blue_green_red_read_the_datas_pixels(tmp_path, theirs):
    blobs = {f"gpu_0/{n}": v for n, v in caffe2(theirs.state_dict()).items()}
    write(tmp_path / "c2.pkl", blobs)
    net = resnet("resnet50", num_classes=10)
    with pytest.raises(ValueError, match=r"set data\.mean=\[0\.50196078,.*data\.std=\[0\.501960"):
        initialise.initialise(net, tmp_path / "c2.pkl")
    report = initialise.initialise(net, tmp_path / "c2.pkl", [128 / 255] * 3, [128 / 255] * 3)
    assert "Caffe2 trainer" in str(report)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    ours, caffe = (pixels / 255 - 128 / 255) / (128 / 255), (pixels.flip(1) - 128.0) / 128
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(ours), theirs(caffe), atol=1e-4, rtol=1e-4)


def test_detectrons_backbone_strides_in_its_1x1_convolutions(tmp_path, theirs):
    write(tmp_path / "R-50.pkl", detectron(theirs))
    net = resnet("resnet50", num_classes=10)
    mean = [value / 255 for value in (122.7717, 115.9465, 102.9801)]
    report = str(initialise.initialise(net, tmp_path / "R-50.pkl", mean, [1 / 255] * 3))
    assert "data.mean=[0.48145765,0.45469216,0.40384353] data.std=[0.00392157," in report
    assert "cannot go on training" in report
    blocks = [m for m in theirs.modules() if getattr(m, "stride", 0) == 2 and hasattr(m, "conv3")]
    for block in blocks:
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    with torch.no_grad():
        found = net.eval()(IMAGES.flip(1))  # red, green, blue
        torch.testing.assert_close(found, theirs(IMAGES), atol=1e-4, rtol=1e-4)
    for block in blocks:
        block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)
    with pytest.raises(ValueError, match="torchvision has no such network"):
        initialise.save_backbone(net, tmp_path / "x.pt")


def test_a_bias_of_a_convolution_moves_into_the_mean_of_its_norm(theirs):
    blobs = caffe2(theirs.state_dict())
    blobs["comp_3_conv_2_b"] = torch.ones(128)
    blobs["conv1_w_momentum"] = torch.ones(1)
    converted = formats.convert(blobs)
    mean = converted.tensors["layer2.0.bn2.running_mean"]
    torch.testing.assert_close(mean, blobs["comp_3_spatbn_2_rm"] - 1)
    assert "layer2.0.conv2.bias" not in converted.tensors
    assert converted.unused == ["conv1_w_momentum"]


def test_blocks_of_a_small_caffe2_network_are_counted_by_its_projections():
    with torch.device("meta"):
        small = torchvision.models.resnet18(num_classes=10).state_dict()
    blobs = caffe2(torchvision.models.resnet50(num_classes=10).state_dict())
    number = {"1": 0, "2": 2, "3": 4, "4": 6}
    for name, value in small.items():
        if found := re.fullmatch(r"layer(\d)\.(\d)\.conv(\d)\.weight", name):
            blobs[f"comp_{number[found[1]] + int(found[2])}_conv_{found[3]}_w"] = value
    kept = {n: v for n, v in blobs.items() if v.is_meta}
    kept |= {f"shortcut_projection_{b}_w": torch.zeros(1) for b in (2, 4, 6)}
    tensors = formats.convert(kept).tensors
    for name, value in small.items():
        if ".conv" in name:
            assert tensors[name].shape == value.shape


def test_other_classes_leave_the_last_layer_as_it_started(tmp_path, theirs):
    write(tmp_path / "a.pth", theirs.state_dict())
    net = resnet("resnet50", num_classes=3)
    before = net.fc.weight.clone()
    report = str(initialise.initialise(net, tmp_path / "a.pth"))
    assert "The file has 10 classes, the model 3" in report
    assert torch.equal(net.fc.weight, before)
    assert torch.equal(net.conv1.weight, theirs.conv1.weight)


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path, theirs):
    write(tmp_path / "a.pth", theirs.state_dict())
    for net in (resnet("resnet18"), resnet("wide_resnet50_2"), resnet("mini")):
        before = {n: v.clone() for n, v in net.state_dict().items()}
        with pytest.raises(ValueError, match=r"does not fit the model: \d+ (missing|unknown|of)"):
            initialise.initialise(net, tmp_path / "a.pth")
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_files_that_are_no_weights_are_refused_by_name(tmp_path):
    net = resnet("mini")
    with pytest.raises(ValueError, match=r"nowhere\.pth is not a file"):
        initialise.initialise(net, tmp_path / "nowhere.pth")
    (tmp_path / "x.pth").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"x\.pth was refused"):
        initialise.initialise(net, tmp_path / "x.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "y.pth")
    with pytest.raises(ValueError, match=r"no known format \(it holds a\)"):
        initialise.initialise(net, tmp_path / "y.pth")
    torch.save([1], tmp_path / "z.pth")
    with pytest.raises(ValueError, match="holds no tensors by name, no dictionary"):
        initialise.initialise(net, tmp_path / "z.pth")
    with pytest.raises(ValueError, match="no weights imagenet"):
        initialise.initialise(net, "imagenet")


def test_video_kernels_are_refused(theirs):
    state = slowfast(theirs.state_dict())
    state["s1.pathway0_stem.conv.weight"] = torch.zeros(64, 3, 5, 7, 7)
    with pytest.raises(ValueError, match="spans 5 frames"):
        formats.convert(state)


def test_a_saved_backbone_loads_into_torchvision_and_back(tmp_path):
    net = resnet("resnet18", num_classes=5)
    initialise.save_backbone(net, tmp_path / "deep" / "backbone.pt")
    content = torch.load(tmp_path / "deep" / "backbone.pt", weights_only=True)
    torchvision.models.resnet18(num_classes=5).load_state_dict(content["state_dict"], strict=True)
    assert content["meta"]["name"] == "resnet18"
    assert content["meta"]["stride_in_3x3"]
    assert content["meta"]["mean"] == [0.485, 0.456, 0.406]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["backbone.pt"]
    again = resnet("resnet18", num_classes=5)
    initialise.initialise(again, tmp_path / "deep" / "backbone.pt")
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
