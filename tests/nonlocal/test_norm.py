"""Frozen and precise batch norm, against batch norm itself."""

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import distributed, nn

from nonlocal_.block import Block
from nonlocal_.model import Network, build_network
from nonlocal_.net.norm import FrozenNorm, freeze_norm, precise_norm, share_norms


def trained_norm(kind, channels=4):
    torch.manual_seed(0)
    norm = kind(channels)
    for name in ("weight", "bias", "running_mean"):
        nn.init.normal_(getattr(norm, name))
    nn.init.uniform_(norm.running_var, 0.1, 2)
    return norm


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_a_frozen_norm_is_batch_norm_in_evaluation_and_learns_nothing(kind):
    norm = trained_norm(kind)
    axes = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[kind]
    frozen = FrozenNorm(4)
    frozen.load_state_dict(norm.state_dict())  # strict: the counter has no place and is no error
    x = torch.randn(2, 4, *(5, 3, 2)[:axes], requires_grad=True)
    torch.testing.assert_close(frozen.train()(x), norm.eval()(x), atol=1e-5, rtol=0)
    shape = (-1, *[1] * axes)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    shift = norm.bias - norm.running_mean * scale
    torch.testing.assert_close(frozen(x), x * scale.view(shape) + shift.view(shape))
    frozen(x).square().sum().backward()
    assert x.grad is not None
    assert not list(frozen.parameters())
    half = x.detach().bfloat16()
    assert frozen(half).dtype == torch.bfloat16
    torch.testing.assert_close(frozen(half).float(), norm(half.float()), atol=0.05, rtol=0.05)


def test_a_frozen_network_is_the_network_in_evaluation_and_its_blocks_learn():
    torch.manual_seed(0)
    model = build_network(Network(depth="small", at=["res3.0"]), Block(zero_init="none"), 3)
    clips = torch.randn(2, 3, 8, 48, 48)
    model(clips)  # statistics other than 0 and 1
    wanted = copy.deepcopy(model).eval()
    freeze_norm(model)
    torch.testing.assert_close(model.eval()(clips), wanted(clips), atol=1e-5, rtol=1e-4)
    model.train()(clips).square().sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    assert isinstance(model.layer2[0].nl.bn, nn.BatchNorm3d)
    assert isinstance(model.layer2[0].bn3, FrozenNorm)
    assert not [
        name for name, _ in model.named_parameters() if ".bn" in name and ".nl." not in name
    ]


@pytest.mark.parametrize("mode", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
def test_every_parameter_of_a_frozen_network_gets_a_gradient_as_ddp_wants(mode):
    network = Network(depth="small", at=["res2.0", "res3.0"], norm="frozen")
    model = build_network(network, Block(mode=mode), 3)
    model(torch.randn(1, 3, 4, 32, 32)).sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def batches_of(*sizes):
    torch.manual_seed(1)
    return [3 + 5 * torch.randn(size, 4, 2, 3, 3) for size in sizes]


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 5, 2)])
def test_precise_norm_is_mean_and_variance_of_all_batches_together(sizes):
    norm = nn.BatchNorm3d(4, momentum=0.3)
    batches = batches_of(*sizes)
    precise_norm(norm.eval(), batches, norm)
    x = torch.cat(batches)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3, 4)))
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3, 4), unbiased=False))
    assert norm.momentum == 0.3
    assert not norm.training


def test_precise_norm_normalises_each_batch_by_itself_in_deeper_layers():
    """Of two norms in a row the second sees zero mean and unit variance, whatever the batches."""
    model = nn.Sequential(nn.BatchNorm3d(4), nn.BatchNorm3d(4))
    precise_norm(model, [10 * each + 7 for each in batches_of(4, 4)], model)
    torch.testing.assert_close(model[1].running_mean, torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(model[1].running_var, torch.ones(4), atol=1e-4, rtol=0)


def test_precise_norm_without_a_batch_stops():
    model = build_network(Network(depth="small"), Block(), 2)
    with pytest.raises(ValueError, match="has seen no batch"):
        precise_norm(model, [], model)


def measure(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    norm = nn.BatchNorm3d(4)
    precise_norm(norm, batches_of(3, 1, 2)[rank::2], norm)
    apart = nn.BatchNorm3d(4)
    apart.running_mean.fill_(rank + 1)
    share_norms(nn.Sequential(apart))
    state = norm.state_dict() | {"shared": apart.running_mean}
    torch.save(state, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_precise_norm_counts_the_batches_of_all_ranks_and_others_are_those_of_rank_0(
    tmp_path: Path,
):
    torch.multiprocessing.start_processes(measure, (str(tmp_path),), 2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (0, 1))
    x = torch.cat(batches_of(3, 1, 2))
    for name in ("running_mean", "running_var"):
        assert torch.equal(first[name], second[name])
    assert torch.equal(first["shared"], second["shared"])
    assert torch.equal(first["shared"], torch.ones(4))
    torch.testing.assert_close(first["running_mean"], x.mean((0, 2, 3, 4)))
    torch.testing.assert_close(first["running_var"], x.var((0, 2, 3, 4), unbiased=False))
