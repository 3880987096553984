"""The networks are torchvision's, initialised as the paper initialises them."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from common.run.machine import keep_freed_memory
from large_minibatch.model import MODELS, RESNETS, resnet
from large_minibatch.norm.ghost import GhostBatchNorm2d, update_running


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", RESNETS)
def test_state_dicts_have_torchvisions_names_in_its_order_and_load_both_ways(name):
    with torch.device("meta"):
        mine = resnet(name)
        theirs = torchvision.models.get_model(name)
    state, other = mine.state_dict(), theirs.state_dict()
    assert list(state) == list(other)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.items()}
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.parametrize(
    ("name", "norm"),
    [("resnet18", "worker"), ("resnet50", "ghost"), ("resnext50_32x4d", "ghost")],
)
def test_losses_and_gradients_are_those_of_torchvisions_network(name, norm):
    mine, theirs = resnet(name, num_classes=7, norm=norm), torchvision.models.get_model(name)
    theirs.fc = nn.Linear(theirs.fc.in_features, 7)
    theirs.load_state_dict(mine.state_dict())
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    losses = []
    for net in (mine, theirs):
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        losses.append(loss.item())
    update_running(mine)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), atol=1e-5, rtol=1e-4)
    logits = mine.eval()(images)
    torch.testing.assert_close(logits, theirs.eval()(images), atol=1e-5, rtol=1e-3)


def test_resnet_50_has_the_papers_parameters():
    with torch.device("meta"):
        net = resnet("resnet50")
    norms = [m for m in net.modules() if isinstance(m, GhostBatchNorm2d)]
    assert sum(p.numel() for p in net.parameters()) == 25_557_032
    assert len(list(net.parameters())) == 161
    assert len(norms) == 53
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 53_120
    assert {norm.group for norm in norms} == {32}
    strides = [b.conv2.stride for b in net.modules() if hasattr(b, "conv3") and b.stride == 2]
    assert strides == [(2, 2)] * 3  # in the 3x3 convolution


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 8), ("resnet50", 16), ("resnet101", 33), ("mini", 3)]
)
def test_the_last_gamma_of_every_block_starts_at_zero_unless_told_otherwise(name, blocks):
    for zero_gamma, expected in ((True, blocks), (False, 0)):
        net = resnet(name, zero_gamma=zero_gamma)
        norms = [m for m in net.modules() if isinstance(m, GhostBatchNorm2d)]
        assert sum(bool((norm.weight == 0).all()) for norm in norms) == expected
        assert all((norm.weight == norm.weight[0]).all() for norm in norms)
        assert all((norm.bias == 0).all() for norm in norms)


def test_the_first_weights_are_those_of_section_5_1():
    net = resnet("resnet50")
    assert net.fc.weight.std().item() == pytest.approx(0.01, abs=1e-4)
    assert (net.fc.bias == 0).all()
    for conv in (net.conv1, net.layer3[2].conv2, net.layer4[0].conv3):
        fan_out = conv.out_channels * math.prod(conv.kernel_size)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
    assert resnet("mini", fc_std=1.0, width=64).fc.weight.std().item() == pytest.approx(1, rel=0.03)


def test_a_block_with_zero_gamma_starts_as_its_shortcut():
    net = resnet("resnet50")
    x = torch.randn(4, 256, 8, 8)
    assert torch.equal(net.layer1[1](x), x.relu())


def test_only_the_branches_of_blocks_have_no_gradient_in_the_first_step():
    net = resnet("resnet50", group=2)
    F.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    zero = [name for name, p in net.named_parameters() if (p.grad == 0).all()]
    assert len(zero) == 112  # 16 blocks, all of a branch but its last norm
    assert not any("bn3" in name or "downsample" in name for name in zero)


def test_the_first_loss_is_that_of_a_thousand_even_chances():
    net = resnet("resnet18")
    loss = F.cross_entropy(net(torch.randn(8, 3, 64, 64)), torch.randint(1000, (8,)))
    assert loss.item() == pytest.approx(math.log(1000), abs=0.1)


def test_the_miniature_has_twenty_thousand_parameters_and_three_stages():
    net = resnet("mini", num_classes=16)
    assert sum(p.numel() for p in net.parameters()) == 20_152
    shapes = []
    for stage in (net.conv1, net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape[1:])))
    assert net(torch.randn(32, 3, 32, 32)).shape == (32, 16)
    assert shapes == [(8, 16, 16), (8, 16, 16), (16, 8, 8), (32, 4, 4)]


def test_a_batch_of_groups_is_as_many_batches_of_one_group():
    images, labels = torch.randn(96, 3, 32, 32), torch.randint(10, (96,))
    net = resnet("mini", num_classes=10, zero_gamma=False).double()
    images = images.double()
    F.cross_entropy(net(images), labels).backward()
    update_running(net)
    expected = [p.grad.clone() for p in net.parameters()]
    buffers = {name: b.clone() for name, b in net.named_buffers()}

    for name, buffer in net.named_buffers():
        buffer.fill_(1 if name.endswith("var") else 0)
    net.zero_grad()
    for part, some in zip(images.split(32), labels.split(32), strict=True):
        (F.cross_entropy(net(part), some) / 3).backward()
    update_running(net)
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-12, rtol=1e-9)
    for name, buffer in net.named_buffers():
        if "pending" not in name:
            torch.testing.assert_close(buffer, buffers[name])


def test_options_reach_every_norm():
    net = resnet("mini", group=16, running="first")
    norms = [m for m in net.modules() if isinstance(m, GhostBatchNorm2d)]
    assert len(norms) == 9
    assert {(norm.group, norm.running) for norm in norms} == {(16, "first")}
    for norm, layer in (("worker", nn.BatchNorm2d), ("sync", nn.SyncBatchNorm)):
        net = resnet("resnet18", norm=norm)
        assert sum(type(m) is layer for m in net.modules()) == 20


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=f"resnet51.*{MODELS[0]}"):
        resnet("resnet51")
    with pytest.raises(ValueError, match="norm 'group' is not one of ghost, worker, sync"):
        resnet("resnet18", norm="group")


def test_bfloat16_autocast_trains():
    net = resnet("mini", num_classes=4)
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 4
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), net(images), atol=0.05, rtol=0.1)
    F.cross_entropy(logits.float(), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_keeping_freed_memory_is_allowed_where_there_is_glibc():
    assert keep_freed_memory() in (True, False)
    assert torch.ones(1 << 20).sum() == 1 << 20
