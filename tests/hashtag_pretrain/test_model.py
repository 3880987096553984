"""The networks are torchvision's and the paper's to the parameter, and start as Sec. 2 says."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hashtag_pretrain import model as models
from hashtag_pretrain.model import Network, build_model, choose_format, normalise
from hashtag_pretrain.net.resnext import ResNeXt, pool

# Parameters with 1000 classes; millions of the trunk, and with 1.5k, 8.5k and 17k tags;
# 1e9 multiply-adds at 224 x 224
SIZES = {
    "resnext101_32x4d": (44_177_704, (42.13, 45.2, 59.5, 77.0), 7.97),
    "resnext101_32x8d": (88_791_336, (86.74, 89.8, 104.2, 121.6), 16.41),
    "resnext101_32x16d": (194_026_792, (191.98, 195.1, 209.4, 226.8), 36.16),
    "resnext101_32x32d": (468_530_472, (466.48, 469.6, 483.9, 501.3), 87.11),
    "resnext101_32x48d": (828_411_176, (826.36, 829.4, 843.8, 861.2), 153.31),
}


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def small(**options) -> nn.Module:
    torch.manual_seed(0)
    return build_model(Network("small", **{"width": 8, **options}), 6)


def tiny(**options) -> ResNeXt:
    """A ResNeXt of two groups of 8 channels and 5 blocks."""
    torch.manual_seed(0)
    return ResNeXt((1, 2, 1, 1), 2, 8, classes=5, **options)


def stir(model: nn.Module) -> nn.Module:
    """Norms whose values are not those of the start."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


# Sizes


# Beside 8d and 48d the two between them repeat the formula of the widths
REPEATS = ("resnext101_32x16d", "resnext101_32x32d")


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.slow) if each in REPEATS else each for each in SIZES],
)
def test_parameters_and_multiply_adds_are_exact(name):
    parameters, millions, gmacs = SIZES[name]
    with torch.device("meta"):
        model = build_model(Network(name), 1000)
        with FlopCounterMode(display=False) as counter:
            model(torch.rand(1, 3, 224, 224))
    assert count(model) == parameters
    trunk = count(model) - count(model.fc)
    sizes = [trunk + count(nn.Linear(2048, tags, device="meta")) for tags in (1500, 8500, 17000)]
    assert [trunk / 1e6, *(each / 1e6 for each in sizes)] == pytest.approx(millions, abs=0.051)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.006)
    assert len(model.state_dict()) == 626


@pytest.mark.parametrize("name", ["resnext101_32x8d", "resnext50_32x4d", "resnet50"])
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        ours = build_model(Network(name), 1000).state_dict()
        theirs = torchvision.models.get_model(name).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


def test_the_32x8d_computes_what_torchvisions_does_and_loads_strictly_both_ways():
    with torch.device("meta"):  # nobody waits for 88 million random numbers twice
        theirs = torchvision.models.resnext101_32x8d(num_classes=10).eval()
        ours = build_model(Network("resnext101_32x8d"), 10).eval()
    theirs.to_empty(device="cpu")
    for parameter in theirs.parameters():
        nn.init.uniform_(parameter, -0.05, 0.05)
    for buffer in theirs.buffers():
        buffer.fill_(1)
    stir(theirs)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(ours.state_dict())


def test_the_small_network_has_75828_parameters_with_36_classes_at_width_16():
    model = build_model(Network("small", width=16), 36)
    assert count(model) == 75_828
    assert model.features(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    assert model.fc.in_features == 64


def test_maps_of_the_small_network_are_16_16_and_8_wide():
    model, sizes = small(), []
    for each in (model.conv1, model.layer1, model.layer2):
        each.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1:]))
    model(torch.rand(1, 3, 32, 32))
    assert sizes == [(8, 16, 16), (16, 16, 16), (32, 8, 8)]


# The start


@pytest.mark.parametrize("make", [small, tiny])
def test_every_block_starts_as_its_shortcut(make):
    model = make().eval()
    stages = [each for name, each in model.named_children() if name.startswith("layer")]
    for block in (block for stage in stages for block in stage):
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        shortcut = x if block.downsample is None else block.downsample(x)
        assert torch.equal(block(x), shortcut.relu())


def test_without_zero_gamma_all_scales_start_at_1():
    for model in (small(zero_gamma=False), tiny(zero_gamma=False)):
        norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
        assert all((each.weight == 1).all() for each in norms)


def test_kernels_start_with_hes_deviation_and_the_last_layer_with_fc_std():
    model = build_model(Network("small", width=64, fc_std=0.02), 1000)
    kernel = model.layer2[0].conv2.weight
    assert kernel.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)  # fan-out
    assert model.fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.fc.bias.any()


# Properties


@pytest.mark.parametrize("make", [small, tiny])
def test_logits_are_the_last_layer_on_the_features(make):
    model = stir(make()).eval()
    images = torch.rand(3, 3, 48, 40)
    assert torch.equal(model(images), model.fc(model.features(images)))


def test_the_pooled_features_are_means_over_a_map_of_any_size():
    x = torch.rand(2, 16, 5, 7)
    torch.testing.assert_close(pool(x), x.mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "compiled"),
    [(small, False), (tiny, False), pytest.param(small, True, marks=pytest.mark.slow)],
)
def test_recomputed_blocks_give_the_same_gradients_and_the_same_statistics(make, compiled):
    plain = stir(make()).train()
    again = copy.deepcopy(plain)
    again.recompute = True
    if compiled:
        again.compile(backend="aot_eager")
    images = torch.rand(4, 3, 32, 32)
    for model in (plain, again):
        model(images).logsumexp(1).mean().backward()
    for ours, theirs in zip(again.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    for name, value in plain.state_dict().items():  # one update of each running statistic
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_recomputed_blocks_keep_less_for_the_backward_pass():
    kept = {}
    for recompute in (False, True):
        model, sizes = tiny(recompute=recompute), []

        def note(tensor: torch.Tensor, sizes: list = sizes) -> torch.Tensor:
            sizes.append(tensor.numel() * (tensor.ndim == 4))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(torch.rand(2, 3, 64, 64))
        kept[recompute] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_pixels_are_normalised_as_torchvision_does():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    options = Network()
    expected = torchvision.transforms.Normalize(options.mean, options.std)(images / 255)
    torch.testing.assert_close(normalise(images, options.mean, options.std), expected)


# The memory format


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        (torch.contiguous_format, torch.channels_last),
        (torch.channels_last, torch.contiguous_format),
    ],
)
def test_auto_takes_the_faster_memory_format(monkeypatch, slow, expected):
    model = small()

    def seconds(model: nn.Module, images: torch.Tensor, *, amp: bool) -> float:
        return 1.0 + images.is_contiguous(memory_format=slow)

    monkeypatch.setattr(models, "time_steps", seconds)
    assert choose_format(model, Network("small", width=8), (4, 3, 32, 32)) == expected


def test_timing_leaves_the_model_and_the_random_numbers_as_they_were():
    model = stir(small())
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    chosen = choose_format(model, Network("small", width=8), (2, 3, 32, 32), amp=True)
    assert chosen in models.FORMATS.values()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_than_8_channels_a_group_stay_contiguous_on_a_cpu():
    narrow = Network("small", width=4)
    assert choose_format(build_model(narrow, 6), narrow, (2, 3, 32, 32)) is torch.contiguous_format
    grouped = ResNeXt((1, 1, 1, 1), 32, 4, classes=5)
    assert models.narrowest(grouped) == 4
    narrow.memory_format = "channels_last"
    with pytest.raises(ValueError, match="8 channels a group or more: give auto or contiguous"):
        choose_format(build_model(narrow, 6), narrow, (2, 3, 32, 32))


@pytest.mark.parametrize("name", models.FORMATS)
def test_a_memory_format_that_is_given_is_not_timed(name):
    options = Network("small", width=8, memory_format=name)
    assert choose_format(small(), options, (10**9, 3, 32, 32)) is models.FORMATS[name]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "resnext101_32x64d"}, "network.name=resnext101_32x64d: choose from resnext101_"),
        ({"memory_format": "nhwc"}, "network.memory_format=nhwc: choose from auto, contiguous"),
        ({"width": 0}, "network.width=0: give 1 or more."),
        ({"fc_std": -1.0}, "network.fc_std=-1.0: give 0 or more."),
        ({"std": [0.2, 0.2, 0.0]}, "network.std=[0.2, 0.2, 0.0]: give three numbers each"),
        ({"mean": [0.5]}, "network.mean=[0.5]"),
    ],
)
def test_an_option_that_no_network_has_is_refused(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Network(**options)
