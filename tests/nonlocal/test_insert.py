"""Blocks in torchvision's networks: where they are, and that they change nothing at the start."""

import copy
import pickle
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import ResNet, get_model, resnet18
from torchvision.models.detection import keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads
from torchvision.models.resnet import Bottleneck
from torchvision.models.video import r3d_18

from nonlocal_.block import Block, NonLocalBlock
from nonlocal_.net.insert import insert

pytestmark = pytest.mark.filterwarnings("ignore:A non-local block sees a map")

HEAD = ["head.2", "head.4", "head.6", "head.8"]
CONV = Block(norm="none", zero_init="conv")


def on_meta(build, **options) -> nn.Module:
    """A network without numbers, which is built at once."""
    with torch.device("meta"):
        return build(weights=None, weights_backbone=None, **options)


def hosts(model: nn.Module) -> list[str]:
    """The modules that a block follows."""
    blocks = (name for name, each in model.named_modules() if isinstance(each, NonLocalBlock))
    return [name.removesuffix(".nl") for name in blocks]


def narrow_head(count: int = 4, channels: int = 16) -> KeypointRCNNHeads:
    torch.manual_seed(0)
    return KeypointRCNNHeads(8, (channels,) * count)


def wake(model: nn.Module) -> None:
    """Draw all that starts at zero in the blocks, so that they are no identity."""
    for each in model.modules():
        if isinstance(each, NonLocalBlock):
            for name, value in each.named_parameters():
                nn.init.normal_(value, std=0.5 if "bn" in name else 0.2)


# Names and places


def test_a_block_in_mask_rcnn_adds_its_own_names_and_leaves_all_others():
    before = {k: v.shape for k, v in on_meta(maskrcnn_resnet50_fpn).state_dict().items()}
    model = insert(on_meta(maskrcnn_resnet50_fpn), ["1-block"])
    after = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v for k, v in after.items() if ".nl." not in k} == before
    own = {k.removeprefix("backbone.body.layer3.4.nl.") for k in after if k not in before}
    parts = {
        f"{part}.{kind}" for part in ("theta", "phi", "g", "out") for kind in ("weight", "bias")
    }
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert own == parts | {f"bn.{name}" for name in norm}
    assert after["backbone.body.layer3.4.nl.theta.weight"] == (512, 1024, 1, 1)


def test_keypoint_rcnn_has_four_blocks_in_its_head_and_one_in_its_backbone():
    model = insert(on_meta(keypointrcnn_resnet50_fpn), ["1-block", *HEAD])
    head = [f"roi_heads.keypoint_head.{number}" for number in (3, 7, 11, 15)]  # the ReLUs
    assert hosts(model) == ["backbone.body.layer3.4", *head]
    assert all(isinstance(model.get_submodule(name), nn.ReLU) for name in head)
    shape = model.state_dict()["roi_heads.keypoint_head.3.nl.theta.weight"].shape
    assert shape == (256, 512, 1, 1)


R50_TEN = [f"layer2.{i}" for i in range(4)] + [f"layer3.{i}" for i in range(6)]
R101_TEN = [f"layer2.{i}" for i in range(4)] + [f"layer3.{i}" for i in (2, 6, 10, 14, 18, 22)]


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        ("resnet50", "1-block", ["layer3.4"]),
        ("resnet50", "5-block", ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]),
        ("resnet50", "10-block", R50_TEN),
        ("resnet101", "1-block", ["layer3.21"]),
        ("resnet101", "5-block", ["layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"]),
        ("resnet101", "10-block", R101_TEN),
        ("resnet152", "1-block", ["layer3.34"]),
        ("resnext50_32x4d", "res2.1", ["layer1.1"]),
        ("resnet18", "res5.0", ["layer4.0"]),
    ],
)
def test_the_papers_sets_are_where_it_puts_them(name, place, expected):
    with torch.device("meta"):
        assert hosts(insert(get_model(name), [place])) == expected


def test_a_block_stands_between_two_residual_blocks():
    torch.manual_seed(0)
    model = insert(resnet18(), ["1-block"]).eval()
    wake(model)
    x = torch.rand(1, 3, 96, 64)
    y = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    y = model.layer2(model.layer1(y))
    first, last = model.layer3
    y = first.nl(first.forward(y))  # `forward` alone runs no hook
    y = model.layer4(last(y))
    torch.testing.assert_close(model(x), model.fc(model.avgpool(y).flatten(1)))


def test_a_block_of_the_head_follows_the_relu_of_its_convolution():
    plain, model = narrow_head(), narrow_head()
    insert(model, ["head.2", "head.4"])
    wake(model.eval())
    x = torch.rand(3, 8, 14, 14)
    first, last = nn.Sequential(*list(plain)[:4]), nn.Sequential(*list(plain)[4:])
    expected = model[7].nl(last(model[3].nl(first(x))))
    torch.testing.assert_close(model(x), expected)


def test_blocks_may_come_one_after_the_other():
    model = narrow_head()
    for place in ("head.2", "head.4", "head.1"):
        insert(model, [place])
    assert hosts(model) == ["1", "3", "7"]


def test_a_block_in_a_video_network_attends_over_time():
    torch.manual_seed(0)
    model = insert(r3d_18(), ["res3.0"]).eval()
    wake(model)
    assert model.layer2[0].nl.theta.weight.shape == (64, 128, 1, 1, 1)
    clip = torch.rand(1, 3, 4, 32, 32)
    model.layer2[0].nl.register_forward_hook(lambda nl, x, y: seen.append(nl.attention(x[0])))
    seen: list[Tensor] = []
    model(clip)
    assert seen[0].shape == (1, 2 * 8 * 8, 2 * 4 * 4)  # queries and keys of both frames


def test_a_block_has_the_dtype_and_the_mode_of_its_host():
    model = insert(narrow_head().double().eval(), ["head.2"])
    nl = model[3].nl
    assert not nl.training
    assert {each.dtype for each in nl.parameters()} == {torch.float64}
    assert model(torch.rand(1, 8, 14, 14, dtype=torch.float64)).dtype == torch.float64


# The start


@pytest.mark.parametrize("block", [Block(), CONV, Block(mode="concatenation", norm="group")])
@pytest.mark.parametrize("training", [True, False])
def test_a_fresh_block_leaves_a_resnets_outputs_bit_equal(block, training):
    torch.manual_seed(0)
    model = resnet18().train(training)
    x = torch.rand(2, 3, 96, 96)
    expected = model(x)
    assert torch.equal(insert(model, ["res3.1", "1-block"], block)(x), expected)


def test_weights_without_blocks_load_and_those_with_blocks_come_back():
    plain = narrow_head()
    model = insert(narrow_head(), ["head.2"])
    wake(model)
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("3.nl.") for name in missing.missing_keys)
    other = insert(narrow_head(), ["head.2"])
    other.load_state_dict(model.state_dict())
    x = torch.rand(1, 8, 14, 14)
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_runs_its_own_block(way):
    model = insert(narrow_head(), ["head.2"]).eval()
    wake(model)
    x = torch.rand(2, 8, 14, 14)
    before = model(x)
    other = way(model)
    assert torch.equal(other(x), before)
    wake(other)
    assert not torch.equal(other(x), before)
    assert torch.equal(model(x), before)


# Training


def step(model: nn.Module, x: Tensor) -> dict[str, float]:
    """One step of SGD; the largest gradient of each tensor of the blocks."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    sizes = {n: float(p.grad.abs().max()) for n, p in model.named_parameters() if ".nl." in n}
    optimizer.step()
    return {name.split(".nl.")[1]: size for name, size in sizes.items()}


@pytest.mark.parametrize(("block", "first"), [(Block(), "bn"), (CONV, "out")])
def test_what_starts_at_zero_learns_first_and_then_all_of_the_block(block, first):
    model = insert(narrow_head(2), ["head.2"], block)
    x = torch.rand(3, 8, 14, 14)
    now = step(model, x)
    assert {name for name, size in now.items() if size} == {f"{first}.weight", f"{first}.bias"}
    later = step(model, x)
    assert all(later[f"{part}.weight"] > 0 for part in ("theta", "phi", "g", "out"))


def test_under_ddp_all_of_a_block_learns_also_from_no_region_at_all(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        model = DistributedDataParallel(insert(narrow_head(2), ["head.1", "head.2"]))
        for count in (0, 2, 0, 2):  # DDP raises at a step if the one before left out a tensor
            model.zero_grad()
            y = model(torch.rand(count, 8, 14, 14))
            assert y.shape == (count, 16, 14, 14)
            y.sum().backward()
            nl = model.module[3].nl
            assert all(p.grad is not None for p in nl.parameters())
            assert bool(nl.bn.bias.grad.any()) == bool(count)
        assert nl.bn.num_batches_tracked == 2
        assert nl.bn.running_var.isfinite().all()
    finally:
        torch.distributed.destroy_process_group()


# Faults


@cache
def faulty() -> list[tuple[nn.Module, list[str], str]]:
    with torch.device("meta"):
        small, large = resnet18(), ResNet(Bottleneck, [3, 8, 36, 3])
        return [
            (small, ["res4.0", "res4.2"], "at=res4.2 is not in this ResNet, .* res4.0 to res4.1"),
            (small, ["res6.0"], "at=res6.0 is no place: give such as res4.4"),
            (small, ["res4.00"], "at=res4.00 is no place: give such as res4.4"),
            (small, ["1-block", "res4.0"], "names res4.0 twice"),
            (small, ["head.2"], "at=head.2 is not in this ResNet"),
            (
                large,
                ["5-block"],
                "at=5-block is not known for 3-8-36 residual blocks",
            ),
            (narrow_head(), ["head.2", "head.5"], "at=head.5 .* which has head.1 to head.4"),
            (narrow_head(), ["head.0"], "at=head.0 is not in"),
            (narrow_head(), ["1-block"], "at=1-block is not known for 0-0-0 residual"),
            (nn.Linear(2, 2), ["res4.4"], "has no ResNet and no keypoint head"),
            (small, "res4.0", r"at='res4.0' must be a list"),  # type: ignore[list-item]
            (small, [4], r"at=\[4\] must be a list of places"),  # type: ignore[list-item]
            (nn.ModuleList([small, large]), ["res4.0"], "2 ResNets inside: hand over one"),
        ]


@pytest.mark.parametrize("number", range(13))
def test_a_place_that_is_not_there_is_named_and_nothing_changes(number):
    model, at, message = faulty()[number]
    with pytest.raises(ValueError, match=message):
        insert(model, at)
    assert not hosts(model)


def test_a_second_block_at_a_place_is_refused():
    model = insert(narrow_head(), ["head.2"])
    with pytest.raises(ValueError, match=r"at=head\.2 has a non-local block already: leave it out"):
        insert(model, ["head.2"])
