"""The convolution of all pyramid levels at once is the ordinary one."""

import copy

import pytest
import torch
from torch import Tensor, nn

from focal_loss.net import winograd
from focal_loss.net.heads import Head


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def levels_of(channels: int, n: int) -> list[Tensor]:
    sizes = [(9, 13), (8, 4), (5, 7), (2, 2), (1, 1)]
    return [torch.randn(n, channels, *size, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_winograd_equals_the_convolution_of_every_level_and_its_gradients(n, bias):
    conv = nn.Conv2d(64, 70, 3, padding=1, bias=bias)
    maps = levels_of(64, n)
    outputs = winograd.conv3x3(maps, conv.weight, conv.bias)
    weights_ = [torch.randn_like(y) for y in outputs]
    inputs = [*conv.parameters(), *maps]
    found = torch.autograd.grad(outputs, inputs, weights_)

    exact, maps64 = copy.deepcopy(conv).double(), [x.detach().double() for x in maps]
    for x in maps64:
        x.requires_grad_()
    expected = [exact(x) for x in maps64]
    inputs = [*exact.parameters(), *maps64]
    gradients = torch.autograd.grad(expected, inputs, [w.double() for w in weights_])
    for mine, other in zip((*outputs, *found), (*expected, *gradients), strict=True):
        assert mine.shape == other.shape
        error = (mine - other).abs().max() / other.abs().max()
        assert error < 5e-6


def test_winograd_without_gradients_of_the_maps_or_of_the_weight():
    conv = nn.Conv2d(64, 64, 3, padding=1)
    maps = [x.detach() for x in levels_of(64, 1)]
    sum(y.sum() for y in winograd.conv3x3(maps, conv.weight, conv.bias)).backward()
    expected = conv.weight.grad.clone()
    conv.weight.grad = None
    sum(conv(x).sum() for x in maps).backward()
    torch.testing.assert_close(expected, conv.weight.grad, atol=1e-3, rtol=1e-4)
    conv.requires_grad_(False)
    maps = levels_of(64, 1)
    sum(y.sum() for y in winograd.conv3x3(maps, conv.weight, conv.bias)).backward()
    assert all(x.grad is not None for x in maps)


def test_winograd_serves_wide_float32_heads_on_a_cpu_only():
    wide, narrow = torch.zeros(64, 64, 3, 3), torch.zeros(64, 16, 3, 3)
    maps = [torch.zeros(1, 64, 4, 4)]
    assert winograd.suits(wide, maps)
    assert not winograd.suits(narrow, maps)
    assert not winograd.suits(wide.double(), [maps[0].double()])
    assert not winograd.suits(wide.to("meta"), [maps[0].to("meta")])
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.suits(wide, maps)


def test_wide_heads_train_the_same_with_and_without_winograd(monkeypatch):
    head = Head(64, 9, 8, levels=2, norm="gn").float()
    pyramid = [torch.randn(1, 64, 8, 8), torch.randn(1, 64, 4, 4)]

    def gradients() -> list[Tensor]:
        loss = sum(x.square().sum() for x in head(pyramid))
        return list(torch.autograd.grad(loss, list(head.parameters())))

    fast = gradients()
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 10_000)
    for mine, other in zip(fast, gradients(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4 * other.abs().max().item(), rtol=1e-3)
