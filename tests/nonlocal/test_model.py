"""C2D and I3D against the image networks they are made of, and against Table 1."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model

from nonlocal_.block import Block, NonLocalBlock
from nonlocal_.model import Network, build_network
from nonlocal_.net.resnet import Conv
from nonlocal_.weights.initialise import fit

SMALL = {"depth": "small", "at": ["res3.0"]}


def build(network, block=None, classes=5):
    torch.manual_seed(0)
    return build_network(Network(**network), Block(**(block or {})), classes)


def on_meta(network, block=None):
    with torch.device("meta"):
        return build(network, block)


def maps_of(model, frames, side):
    """Time and height of the maps behind conv1, pool1 and the stages."""
    found = []
    for module in (model.conv1, *model.stages()):
        module.register_forward_hook(lambda *given: found.append(tuple(given[2].shape[2:4])))
        module.register_forward_pre_hook(lambda *given: found.append(tuple(given[1][0].shape[2:4])))
    model(torch.empty(1, 3, frames, side, side, device="meta"))
    return found[1:3] + found[3::2]


@pytest.mark.parametrize(
    ("network", "frames", "maps"),
    [
        ({}, 32, [(16, 112), (8, 55), (8, 55), (4, 28), (4, 14), (4, 7)]),
        ({"pool1_pad": 1}, 32, [(16, 112), (8, 56), (8, 56), (4, 28), (4, 14), (4, 7)]),
        ({"inflate": "3x1x1"}, 128, [(64, 112), (32, 55), (32, 55), (16, 28), (16, 14), (16, 7)]),
        ({"variant": "fast"}, 8, [(8, 112), (8, 55), (8, 55), (4, 28), (4, 14), (4, 7)]),
        ({"variant": "mmaction2"}, 32, [(16, 112), (8, 55), (8, 55), (4, 28), (4, 14), (4, 7)]),
    ],
)
def test_maps_have_the_sizes_of_table_1(network, frames, maps):
    assert maps_of(on_meta(network), frames, 224) == maps


@pytest.mark.parametrize(
    ("variant", "kernel", "stride"),
    [("org", 2, 2), ("fast", 1, 1), ("mmaction2", 1, 2)],
)
@pytest.mark.parametrize("pad", [0, 1])
def test_pool1_is_the_max_pool_of_its_variant(variant, kernel, stride, pad):
    model = on_meta({"variant": variant, "pool1_pad": pad})
    x = torch.randn(2, 4, 7, 11, 12)
    wanted = F.max_pool3d(x, (kernel, 3, 3), (stride, 2, 2), (0, pad, pad))
    assert torch.equal(model.pool1(x), wanted)


@pytest.mark.parametrize(
    ("depth", "inflated"),
    [
        ("resnet50", [[0, 1, 2], [0, 2], [0, 2, 4], [1]]),
        ("resnet101", [[0, 1, 2], [0, 2], [*range(0, 23, 2)], [1]]),
    ],
)
@pytest.mark.parametrize(("kind", "first", "second"), [("3x1x1", 3, 1), ("3x3x3", 1, 3)])
def test_i3d_inflates_the_blocks_that_the_official_code_does(depth, inflated, kind, first, second):
    model = on_meta({"depth": depth, "inflate": kind})
    assert model.conv1.kernel_size == (5, 7, 7)
    for stage, numbers in zip(model.stages(), inflated, strict=True):
        for number, block in enumerate(stage):
            times = [getattr(block, f"conv{n}").kernel_size[0] for n in (1, 2, 3)]
            assert times == ([first, second, 1] if number in numbers else [1, 1, 1])


@pytest.fixture(scope="module")
def images():
    """torchvision's ResNet-50, every tensor of it random."""
    torch.manual_seed(0)
    net = get_model("resnet50", weights=None, num_classes=5).eval()
    for name, value in net.state_dict().items():
        if name.endswith(("bn1.weight", "bn2.weight", "bn3.weight", "running_var")):
            value.uniform_(0.5, 1)
        elif "bn" in name and value.ndim == 1:
            value.uniform_(-0.2, 0.2)
    return net


def inflate(model, images):
    """The tensors of an image network in ours, all of them."""
    own = model.state_dict()
    state = {name: fit(value, own[name]) for name, value in images.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def test_names_are_those_of_torchvision_and_blocks_are_beside_them(images):
    plain, blocked = on_meta({}), on_meta({"at": ["5-block"]})
    assert list(plain.state_dict()) == list(images.state_dict())
    more = {name for name in blocked.state_dict() if name not in images.state_dict()}
    hosts = {name.partition(".nl.")[0] for name in more}
    assert hosts == {"layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"}
    assert "layer3.5.nl.theta.weight" in more


@pytest.mark.parametrize(("variant", "frames"), [("fast", 3), ("org", 8)])
def test_c2d_of_a_still_video_is_the_image_network(images, variant, frames):
    model = inflate(build({"variant": variant, "pool1_pad": 1}), images)
    image = torch.randn(2, 3, 64, 64)
    clips = image[:, :, None].expand(-1, -1, frames, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), images(image), atol=1e-4, rtol=1e-4)


class Repeated(nn.Module):
    """A convolution whose first and last frames are repeated beyond the ends, instead of zeros."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        time, height, _ = self.conv.padding
        x = F.pad(x, (0, 0, 0, 0, time, time), mode="replicate")
        return F.conv3d(x, self.conv.weight, None, self.conv.stride, (0, height, height))


@pytest.mark.parametrize("kind", ["3x1x1", "3x3x3"])
def test_i3d_of_a_still_video_is_the_image_network_but_for_the_ends(images, kind):
    model = inflate(build({"inflate": kind, "variant": "fast", "pool1_pad": 1}), images)
    image = torch.randn(1, 3, 64, 64)
    clips = image[:, :, None].expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        wanted = images(image)
        assert (model(clips) - wanted).abs().max() > 1e-3  # zeros beyond the ends
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Conv) and child.kernel_size[0] > 1:
                    setattr(parent, name, Repeated(child))
        torch.testing.assert_close(model(clips), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("inflated", ["none", "3x1x1"])
def test_two_dimensional_convolutions_give_the_numbers_of_three_dimensional_ones(inflated):
    clips = torch.randn(2, 3, 5, 34, 48, dtype=torch.float64)
    found = []
    for flat in (True, False):
        model = build(
            SMALL | {"flat_2d": flat, "inflate": inflated}, {"zero_init": "none"}
        ).double()
        logits = model(clips)
        logits.square().sum().backward()
        found.append([logits, *(value.grad for value in model.parameters())])
    assert len(found[0]) > 30
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("depth", "at", "places"),
    [
        ("resnet50", "1-block", {4: [4]}),
        ("resnet50", "5-block", {3: [1, 3], 4: [1, 3, 5]}),
        ("resnet50", "10-block", {3: [0, 1, 2, 3], 4: [0, 1, 2, 3, 4, 5]}),
        ("resnet50", "res2.1", {2: [1]}),
        ("resnet50", "res5.1", {5: [1]}),
        ("resnet101", "1-block", {4: [21]}),
        ("resnet101", "5-block", {3: [1, 3], 4: [6, 13, 20]}),
        ("resnet101", "10-block", {3: [0, 1, 2, 3], 4: [2, 6, 10, 14, 18, 22]}),
    ],
)
def test_blocks_are_where_the_paper_has_them(depth, at, places):
    model = on_meta({"depth": depth, "at": [at]})
    found = [name for name, each in model.named_modules() if isinstance(each, NonLocalBlock)]
    assert found == [f"layer{stage - 1}.{n}.nl" for stage, all_ in places.items() for n in all_]


def test_blocks_in_res3_can_have_groups_of_their_own():
    """As the official models of long clips."""
    model = on_meta({"at": ["5-block"], "res3_group": 4}, {"norm": "none"})
    blocks = {n: each for n, each in model.named_modules() if isinstance(each, NonLocalBlock)}
    groups = {name: each.block.group for name, each in blocks.items()}
    assert groups == {
        "layer2.1.nl": 4,
        "layer2.3.nl": 4,
        "layer3.1.nl": 0,
        "layer3.3.nl": 0,
        "layer3.5.nl": 0,
    }


@pytest.mark.parametrize("training", [True, False])
def test_new_blocks_leave_the_outputs_as_they_were(training):
    plain, blocked = build({"depth": "small"}).train(training), build(SMALL).train(training)
    blocked.load_state_dict(plain.state_dict(), strict=False)
    for model in (plain, blocked):
        model.dropout.p = 0.0
    clips = torch.randn(2, 3, 4, 48, 48)
    assert torch.equal(plain(clips), blocked(clips))


def test_the_small_network_has_the_parameters_of_the_miniature():
    counts = [
        sum(value.numel() for value in build(network, classes=2).parameters())
        for network in (
            {"depth": "small"},
            {"depth": "small", "inflate": "3x1x1"},
            SMALL,
        )
    ]
    assert counts == [14_762, 18_506, 16_954]


def test_scores_are_the_mean_of_the_softmax_over_the_windows():
    model = build(SMALL).eval()
    nn.init.normal_(model.fc.weight)
    clips = torch.randn(2, 3, 4, 57, 64)  # a last map of 8x8: 2x2 windows of 7x7
    with torch.no_grad():
        x = model.features(clips)
        assert x.shape[2:] == (2, 8, 8)
        windows = [x[..., i : i + 7, j : j + 7].mean((2, 3, 4)) for i in (0, 1) for j in (0, 1)]
        logits = torch.stack([model.fc(each) for each in windows])
        found = model.scores(clips)
        torch.testing.assert_close(found, logits.softmax(-1).mean(0))
        assert (found - logits.mean(0).softmax(-1)).abs().max() > 1e-4
        labels = model.scores(clips, multi_label=True)
        torch.testing.assert_close(labels, logits.sigmoid().mean(0))


def test_a_map_below_seven_is_one_window_and_scores_are_those_of_training():
    model = build(SMALL).eval()
    clips = torch.randn(2, 3, 4, 40, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.scores(clips), model(clips).softmax(-1))


def test_levels_are_normalised_by_the_networks_mean_and_std():
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    model = build({"depth": "small", "mean": mean, "std": std}).eval()
    clips = torch.randint(0, 256, (1, 3, 4, 48, 48), dtype=torch.uint8)
    wanted = (clips.double() - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(
        3, 1, 1, 1
    )
    torch.testing.assert_close(model.normalise(clips), wanted.float())
    assert torch.equal(model(clips), model(model.normalise(clips)))
    assert "mean" not in model.state_dict()


@pytest.mark.parametrize(("variant", "frames"), [("org", 6), ("mmaction2", 4), ("fast", 1)])
def test_too_few_frames_stop_with_a_sentence(variant, frames):
    model = on_meta({"variant": variant})
    with pytest.raises(ValueError, match="too few frames"):
        model(torch.empty(1, 3, frames, 64, 64, device="meta"))
    assert model(torch.empty(1, 3, frames + 1, 64, 64, device="meta")).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": "resnet18"}, "network.depth is 'resnet18': choose resnet50, resnet101, small"),
        ({"inflate": "5x1x1"}, "network.inflate is '5x1x1': choose none, 3x1x1, 3x3x3"),
        ({"variant": "slow"}, "network.variant is 'slow': choose org, fast, mmaction2"),
        ({"norm": "layer"}, "network.norm is 'layer': choose batch, frozen"),
        ({"pool1_pad": 2}, "network.pool1_pad=2: choose 0 or 1"),
        ({"width": 7}, "network.width=7: give an even number of at least 8"),
        ({"mean": [114.75]}, r"network.mean=\[114.75\]: give three levels"),
        ({"at": ["res4.6"]}, "res4.6"),
        ({"at": ["res9.0"]}, "res9.0"),
    ],
)
def test_options_that_no_network_has_stop_and_are_named(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build(options)


def test_convolutions_start_by_he_and_residual_blocks_at_zero():
    model = build({})
    kernel = model.layer2[0].conv2.weight  # 128 of 3x3
    assert float(kernel.detach().std()) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    assert all(not block.bn3.weight.any() for stage in model.stages() for block in stage)
    assert float(model.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
