"""Ghost batch norm is as many workers' batch norms; the buffers are those of k workers."""

import copy
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from large_minibatch.norm import buffers, groups
from large_minibatch.norm.ghost import GhostBatchNorm2d, convert, update_running

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images_of(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    x = 3 * torch.randn(*shape, dtype=torch.float64) + 1
    return x.contiguous(memory_format=layout).requires_grad_()


def norm_of(channels: int, **options) -> GhostBatchNorm2d:
    norm = GhostBatchNorm2d(channels, **options).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def one_by_one(norm: GhostBatchNorm2d, x: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    parts = [
        F.batch_norm(part, None, None, norm.weight, norm.bias, True) for part in x.split(norm.group)
    ]
    y = torch.cat(parts) if add is None else torch.cat(parts) + add
    return y.relu() if relu else y


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 5, 70])
@pytest.mark.parametrize("group", [2, 4, 8, 100])
@pytest.mark.parametrize(("adds", "relu"), [(False, False), (True, True), (False, True)])
def test_ghost_norm_equals_the_batch_norm_of_each_group(layout, channels, group, adds, relu):
    x = images_of(8, channels, 6, 7, layout=layout)
    add = images_of(8, channels, 6, 7, layout=layout) if adds else None
    norm = norm_of(channels, group=group)
    expected, y = one_by_one(norm, x, add, relu), norm(x, add, relu=relu)
    scale = expected.abs().max().item()
    torch.testing.assert_close(y, expected, atol=1e-15 * scale, rtol=1e-15)
    assert y.stride() == x.stride()

    inputs = [x, norm.weight, norm.bias, *([add] if adds else [])]
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, gradient)
    for mine, other in zip(found, torch.autograd.grad(expected, inputs, gradient), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-14 * other.abs().max().item(), rtol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_formula_for_compilers_is_the_same(layout):
    x, add = (images_of(10, 6, 5, 4, layout=layout) for _ in range(2))
    norm = norm_of(6)
    for group in (5, 4):
        args = (x, add, norm.weight, norm.bias)
        eager = groups.normalise(*args, group=group, eps=1e-5, relu=True)
        formula = groups.compose(*args, group, 1e-5, True)
        for mine, other in zip(eager, formula, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-13, rtol=1e-13)


def test_the_gradient_of_a_mean_over_the_map_and_other_layouts_are_taken():
    x = images_of(8, 5, 6, 7, layout=torch.channels_last)
    norm = norm_of(5, group=4)
    plain = one_by_one(norm, x, None, True).mean((2, 3))
    ghost = norm(x, relu=True).mean((2, 3))
    gradient = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, x, gradient)[0]
    torch.testing.assert_close(torch.autograd.grad(ghost, x, gradient)[0], expected)
    transposed = images_of(8, 5, 7, 6).transpose(2, 3)
    torch.testing.assert_close(norm(transposed), one_by_one(norm, transposed, None, False))


def test_float32_is_as_exact_as_pytorchs_own_batch_norm():
    x = (torch.randn(64, 8, 16, 16) * 3 + 20).contiguous(memory_format=torch.channels_last)
    norm = norm_of(8, group=32)
    exact = one_by_one(norm, x.double(), None, False)
    norm = norm.float()
    theirs = (one_by_one(norm, x, None, False) - exact).abs().max()
    mine = (norm(x) - exact).abs().max()
    assert mine <= 2 * theirs
    assert theirs < 1e-4


def test_groups_of_the_whole_batch_are_plain_batch_norm_and_smaller_ones_are_not():
    x = torch.randn(8, 3, 4, 4)
    plain, whole, halves = nn.BatchNorm2d(3), norm_of(3, group=8), norm_of(3, group=4)
    for norm in (whole.float(), halves.float()):
        norm.load_state_dict(plain.state_dict())
    expected = plain(x)
    assert torch.equal(whole(x), expected)
    update_running(whole)
    torch.testing.assert_close(whole.state_dict(), plain.state_dict())
    weights = torch.randn_like(expected)
    gradients = []
    for norm in (plain, halves):
        y = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad((norm(y) * weights).sum(), y)[0])
    assert (gradients[0] - gradients[1]).abs().max() > 0.01


def test_the_running_variance_is_unbiased():
    norm = GhostBatchNorm2d(1, group=2)
    norm(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    update_running(norm)
    assert norm.running_mean.item() == pytest.approx(0.2)
    assert norm.running_var.item() == pytest.approx(1.1)


@pytest.mark.parametrize(("forwards", "group"), [(1, 2), (2, 2), (4, 2), (8, 2), (1, 8), (2, 8)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_buffers_are_those_of_k_workers_however_many_forwards_play_them(forwards, group, layout):
    steps = [images_of(16, 5, 3, 3, layout=layout).detach() for _ in range(3)]
    ghosts = {kind: norm_of(5, group=group, running=kind) for kind in ("mean", "first")}
    sequential = norm_of(5, group=group, running="sequential")
    workers = [nn.BatchNorm2d(5).double() for _ in range(16 // group)]
    alone = nn.BatchNorm2d(5).double()
    for step in steps:
        for part in step.chunk(forwards):
            for norm in (*ghosts.values(), sequential):
                norm(part)
        for ghost in ghosts.values():
            update_running(ghost)
        for worker, part in zip(workers, step.split(group), strict=True):
            worker(part)
            alone(part)
    for name in ("running_mean", "running_var"):
        averaged = torch.stack([getattr(worker, name) for worker in workers]).mean(0)
        torch.testing.assert_close(getattr(ghosts["mean"], name), averaged)
        torch.testing.assert_close(getattr(ghosts["first"], name), getattr(workers[0], name))
        torch.testing.assert_close(getattr(sequential, name), getattr(alone, name))
    assert ghosts["mean"].num_batches_tracked == 3
    assert sequential.num_batches_tracked == alone.num_batches_tracked


def test_a_momentum_of_none_averages_all_steps_alike():
    norm = GhostBatchNorm2d(2, group=2, momentum=None)
    plain = nn.BatchNorm2d(2, momentum=None)
    for _ in range(3):
        x = torch.randn(2, 2, 3, 3)
        norm(x), plain(x), update_running(norm)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())


def test_evaluation_is_that_of_plain_batch_norm():
    norm, plain = norm_of(3, group=2).float(), nn.BatchNorm2d(3)
    nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var, 1, 2)
    plain.load_state_dict(norm.state_dict())
    norm.eval(), plain.eval()
    x, add = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    assert torch.equal(norm(x), plain(x))
    assert torch.equal(norm(x, add, relu=True), (plain(x) + add).relu())


def test_a_batch_that_the_group_does_not_divide_is_refused_with_sizes_that_work():
    norm = GhostBatchNorm2d(3, group=32)
    with pytest.raises(ValueError, match=r"batch of 80 .* group = 32: .* 64 or 96 images"):
        norm(torch.randn(80, 3, 2, 2))
    partial = norm_of(3, group=4, allow_partial=True)
    x = images_of(10, 3, 2, 2)
    torch.testing.assert_close(partial(x), one_by_one(partial, x, None, False))


def test_arguments_without_meaning_are_refused():
    with pytest.raises(ValueError, match="group = 0"):
        GhostBatchNorm2d(3, group=0)
    with pytest.raises(ValueError, match="running = 'median' is not one of mean"):
        GhostBatchNorm2d(3, running="median")
    with pytest.raises(ValueError, match="no variance"):
        GhostBatchNorm2d(3, group=1)(torch.randn(4, 3, 1, 1))


def test_forgetting_to_update_the_buffers_is_told_before_evaluation():
    norm = GhostBatchNorm2d(3, group=2)
    norm(torch.randn(4, 3, 2, 2))
    with pytest.raises(RuntimeError, match=r"call update_running\(model\)"):
        norm.eval()
    update_running(norm)
    norm.eval()
    immediate = GhostBatchNorm2d(3, group=2, running="sequential")
    immediate(torch.randn(4, 3, 2, 2))
    immediate.eval()


def test_conversion_keeps_weights_names_buffers_and_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3)))
    net[1][0](torch.randn(2, 4, 2, 2))
    state, parameters = copy.deepcopy(net.state_dict()), list(net.parameters())
    for kind, expected in (("ghost", GhostBatchNorm2d), ("sync", nn.SyncBatchNorm)):
        net = convert(net.eval(), 16, kind=kind)
        norm = net[1][0]
        assert isinstance(norm, expected)
        assert norm.eps == 1e-3
        assert not norm.training
        torch.testing.assert_close(net.state_dict(), state, rtol=0, atol=0)
        assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert convert(nn.BatchNorm2d(4), 16).group == 16
    assert type(convert(net, kind="worker")[1][0]) is nn.BatchNorm2d
    with pytest.raises(ValueError, match="norm 'batch' is not one of ghost"):
        convert(net, kind="batch")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_norm_computes_and_records_the_same():
    eager = norm_of(5, group=4)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for forwards in (1, 2):
        for _ in range(forwards):
            x = images_of(8, 5, 4, 4).detach()
            torch.testing.assert_close(run(x, relu=True), eager(x, relu=True))
        update_running(compiled), update_running(eager)
        torch.testing.assert_close(compiled.state_dict(), eager.state_dict())


def test_bfloat16_images_keep_their_type_and_float32_statistics():
    norm = GhostBatchNorm2d(4, group=2)
    for layout in LAYOUTS:
        x = torch.randn(4, 4, 3, 3).bfloat16().contiguous(memory_format=layout).requires_grad_()
        y = norm(x, relu=True)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert norm.weight.grad.dtype == torch.float32
        torch.testing.assert_close(y, one_by_one(norm, x.float(), None, True).bfloat16())
        update_running(norm)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 4)
    ).double()
    net[1].running_mean += 1
    return net


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (8, 3, 6, 6)
    return torch.randn(shape, generator=generator, dtype=torch.float64), torch.arange(8) % 2


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images, labels = data()
    net = network()
    ddp = DistributedDataParallel(net, broadcast_buffers=False)
    mine = slice(4 * rank, 4 * rank + 4)
    F.cross_entropy(ddp(images[mine])[..., 0, 0], labels[mine]).backward()
    result = {"gradients": [p.grad for p in net.parameters()], "own": net[1].state_dict()}
    first, mean, precise = (copy.deepcopy(net) for _ in range(3))
    buffers.broadcast_first(first)
    buffers.average(mean)
    # one process sees 3 images, the other 5, in two batches
    parts = [images[:3]] if rank == 0 else [images[3:5], images[5:]]
    buffers.precise(precise, parts)
    result |= {"first": first[1].state_dict(), "mean": mean[1].state_dict()}
    result["precise"] = precise[1].state_dict()
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(commands, tmp_path_factory):
    """What each of two gloo processes with half of the batch computed."""
    folder = tmp_path_factory.mktemp("two")
    for rank in commands.start_ranks(folder, str(folder), script=__file__):
        assert rank.wait() == 0, rank.text
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_gradients_are_those_of_ddp_with_a_worker_a_group(two_processes):
    images, labels = data()
    net = convert(network(), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.cross_entropy(net(images)[..., 0, 0], labels).backward()
    for parameter, other in zip(net.parameters(), two_processes[0]["gradients"], strict=True):
        torch.testing.assert_close(parameter.grad, other, atol=1e-14, rtol=1e-12)
    update_running(net)
    torch.testing.assert_close(net[1].state_dict(), two_processes[1]["mean"])


def test_buffers_are_the_first_workers_or_the_average_on_all_processes(two_processes):
    first, second = (result["own"] for result in two_processes)
    assert not torch.equal(first["running_mean"], second["running_mean"])
    for result in two_processes:
        torch.testing.assert_close(result["first"], first, rtol=0, atol=0)
        for name in ("running_mean", "running_var"):
            average = (first[name] + second[name]) / 2
            torch.testing.assert_close(result["mean"][name], average)


def test_precise_statistics_are_those_of_all_images_of_all_processes(two_processes):
    values = network()[0](data()[0]).detach()
    for result in two_processes:
        mean, var = result["precise"]["running_mean"], result["precise"]["running_var"]
        torch.testing.assert_close(mean, values.mean((0, 2, 3)), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(var, values.var((0, 2, 3), correction=0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        two_processes[0]["precise"], two_processes[1]["precise"], rtol=0, atol=0
    )


def test_precise_statistics_leave_everything_else_as_it_was():
    net = convert(network(), 4)
    net.append(nn.BatchNorm2d(2).double())
    net.eval()
    before = copy.deepcopy(net.state_dict())
    images = data()[0]
    buffers.precise(net, iter([images, images + 1]))
    after = net.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"{i}.running_{kind}" for i in (1, 4) for kind in ("mean", "var")}
    assert not any(module.training for module in net[1:])
    net.train().eval()  # nothing is pending
    values = net[0](torch.cat([images, images + 1]))
    torch.testing.assert_close(net[1].running_mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, values.var((0, 2, 3), correction=0))


def test_precise_statistics_without_images_change_nothing_and_say_so():
    net = convert(network(), 4)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="at least one batch"):
        buffers.precise(net, [])
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_precise_variance_survives_a_large_mean():
    net = nn.Sequential(nn.BatchNorm2d(1))
    x = 1e4 + torch.randn(64, 1, 8, 8)
    buffers.precise(net, x.split(16))
    expected = x.double().var(correction=0).float()
    torch.testing.assert_close(net[0].running_var[0], expected, rtol=1e-5, atol=0)


if __name__ == "__main__":
    worker(int(os.environ["RANK"]), sys.argv[1])
