"""Two processes step as one would, whatever they share out, and save and resume whole states.

Run as a script, this file is what the processes do: `python <file> FOLDER` forks them after one
import of torch, and leaves what each rank saw in FOLDER.
"""

import copy
import datetime
import multiprocessing
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.optim import parameter_groups
from common.run import checkpoint
from hashtag_pretrain.model import Network, build_model
from hashtag_pretrain.net.parallel import (
    WAYS,
    WholeModel,
    WholeOptimizer,
    gather_model,
    parallelise,
    shard_optimizer,
    share_norms,
    summing,
)
from hashtag_pretrain.targets.finetune import FineTune, Setting, train_one
from hashtag_pretrain.targets.sets import read_target
from tests.hashtag_pretrain.small_target import READING, write_images

WORLD, LOCAL, STEPS = 2, 24, 3
State = dict[str, Tensor]


def make(*, recompute: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(Network("small", width=8, zero_gamma=False, checkpoint=recompute), 6)
    nn.init.normal_(model.fc.weight, std=0.5)
    return model


def images(rank: int, step: int, piece: int = 0) -> Tensor:
    """(24, 3, 16, 16), of another brightness on each rank."""
    generator = torch.Generator().manual_seed(100 * step + 10 * piece + rank)
    return torch.rand(LOCAL, 3, 16, 16, generator=generator) * (1 + rank)


def backward(network: nn.Module, x: Tensor, pieces: int = 1) -> None:
    labels = torch.arange(LOCAL) % 6
    (nn.functional.cross_entropy(network(x), labels) / pieces).backward()


def sgd(network: nn.Module, how: str) -> torch.optim.Optimizer:
    groups = parameter_groups(network, weight_decay=1e-2)
    return shard_optimizer(groups, how, partial(torch.optim.SGD, lr=0.1, momentum=0.9))


@pytest.fixture(scope="module")
def seen(commands, tmp_path_factory) -> list[dict]:
    """What both ranks saw."""
    folder = tmp_path_factory.mktemp("parallel")
    # From the repository, where `tests` is found.
    done = commands.run("", str(folder), script=__file__)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def alone(pieces: int = 1, steps: int = STEPS) -> State:
    """Parameters after steps with the mean of the ranks' gradients, computed in one process."""
    model = make()
    optimizer = sgd(model, "ddp")
    for step in range(steps):
        gradients = [torch.zeros_like(each) for each in model.parameters()]
        for rank in range(WORLD):
            for piece in range(pieces):
                model.zero_grad()
                backward(model, images(rank, step, piece), pieces)
                for total, each in zip(gradients, model.parameters(), strict=True):
                    total += each.grad / WORLD
        for total, each in zip(gradients, model.parameters(), strict=True):
            each.grad = total
        optimizer.step()
    return dict(model.named_parameters())


def assert_near(found: State, expected: State, bound: float = 1e-6) -> None:
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= bound, name


@pytest.mark.parametrize("how", WAYS)
def test_three_steps_of_two_processes_are_those_with_the_mean_gradient(seen, how):
    assert_near(seen[0][how, "steps"], alone())


@pytest.mark.parametrize("how", WAYS)
def test_gradients_of_several_pieces_are_averaged_once(seen, how):
    assert_near(seen[0][how, "pieces"], alone(pieces=2, steps=1))


@pytest.mark.parametrize("how", WAYS)
def test_a_resumed_run_ends_as_the_one_without_a_break(seen, how):
    for name, value in seen[0][how, "steps"].items():
        assert torch.equal(seen[0][how, "resumed"][name], value), name


@pytest.mark.parametrize("other", WAYS)
@pytest.mark.parametrize("how", WAYS)
def test_a_run_resumes_with_another_way_to_share_out(seen, how, other):
    assert_near(seen[0][how, other], seen[0]["ddp", "steps"])


@pytest.mark.parametrize("how", WAYS)
def test_what_is_saved_are_the_plain_model_and_the_plain_optimizer(seen, how):
    saved, model = seen[0][how, "saved"], make()
    model.load_state_dict(saved["model"])
    optimizer = sgd(model, "ddp")
    optimizer.load_state_dict(saved["optimizer"])
    assert len(optimizer.state) == len(list(model.parameters()))
    for state, parameter in zip(optimizer.state.values(), optimizer.state, strict=True):
        assert state["momentum_buffer"].shape == parameter.shape


@pytest.mark.parametrize("how", WAYS)
def test_the_gathered_model_gives_its_features_on_every_rank(seen, how):
    for rank in seen:
        expected = rank["ddp", "features"]
        torch.testing.assert_close(rank[how, "features"], expected, rtol=1e-5, atol=1e-6)


def test_zero1_and_fsdp_keep_a_share_of_the_optimizers_state(seen):
    numbers = sum(each.numel() for each in make().parameters())
    for how in ("zero1", "fsdp"):
        shares = [rank[how, "numbers"] for rank in seen]
        assert sum(shares) == numbers
        assert max(shares) < 0.75 * numbers
    assert seen[0]["fsdp", "parameters"] < 0.75 * numbers


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_gradients_in_bfloat16_are_near_those_in_float32(seen, how):
    found, expected = seen[0][how, "compressed"], alone(steps=1)
    start = dict(make().named_parameters())
    change = torch.cat([(expected[name] - start[name]).flatten() for name in start])
    error = torch.cat([(found[name] - expected[name]).flatten() for name in start])
    assert 0 < error.norm() < 0.01 * change.norm()


def test_recomputed_blocks_may_be_sharded(seen):
    assert_near(seen[0]["fsdp", "recomputed"], alone(steps=1))


def test_a_fine_tuned_network_is_saved_as_it_ends(seen):
    """With the mean of the ranks' running statistics, so that a run resumed at its end has them."""
    saved, ended = seen[0]["finetuned"]
    assert saved.keys() == ended.keys()
    assert all(torch.equal(saved[name], value) for name, value in ended.items())
    assert all(torch.equal(seen[1]["finetuned"][1][name], ended[name]) for name in ended)


# Batch norm


def test_running_statistics_are_local_until_they_are_shared_as_their_mean(seen):
    local = [rank["statistics"]["local"] for rank in seen]
    shared = [rank["statistics"]["shared"] for rank in seen]
    for name in (each for each in local[0] if each.endswith(("running_mean", "running_var"))):
        assert not torch.allclose(local[0][name], local[1][name]), name
        torch.testing.assert_close(shared[0][name], (local[0][name] + local[1][name]) / 2)
        assert torch.equal(shared[0][name], shared[1][name])


def test_each_rank_normalises_by_its_own_24_images(seen):
    for rank in range(WORLD):
        model = make()
        model(images(rank, 0))
        torch.testing.assert_close(
            seen[rank]["statistics"]["local"]["bn1.running_mean"], model.bn1.running_mean
        )


# One process


def test_in_one_process_model_and_optimizer_stay_as_they_are():
    model = make()
    before = copy.deepcopy(model.state_dict())
    for how in WAYS:
        assert parallelise(model, how, compress=True) is model
        assert type(sgd(model, how)) is torch.optim.SGD
    share_norms(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_compiled_model_keeps_its_names_and_its_copies_train():
    model = make()
    names = list(model.state_dict())
    assert list(parallelise(model, compiled=True).state_dict()) == names
    assert copy.deepcopy(model)._compiled_call_impl is None


def test_an_unknown_way_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="parallel=zero3: choose from ddp, zero1, fsdp"):
        parallelise(make(), "zero3")


# What the processes do


class Run:
    """A network on two processes with its parts of a checkpoint."""

    def __init__(self, rank: int, how: str, *, compress: bool = False, recompute: bool = False):
        model = make(recompute=recompute)
        if rank:  # so that a missing broadcast from rank 0 shows
            nn.init.ones_(model.fc.weight)
        self.rank, self.model = rank, model
        self.network = parallelise(model, how, compress=compress)
        self.optimizer = sgd(self.network, how)
        self.parts = {
            "model": WholeModel(self.network),
            "optimizer": WholeOptimizer(self.network, self.optimizer),
        }

    def step(self, first: int, last: int, pieces: int = 1) -> None:
        for step in range(first, last):
            self.optimizer.zero_grad(set_to_none=True)
            for piece in range(pieces):
                with summing(self.network, last=piece == pieces - 1):
                    backward(self.network, images(self.rank, step, piece), pieces)
            self.optimizer.step()

    def collect(self) -> None:
        for part in self.parts.values():
            part.collect()

    def state(self) -> State:
        """The whole model, on rank 0."""
        self.parts["model"].collect()
        return copy.deepcopy(self.parts["model"].state_dict()) if self.rank == 0 else {}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def train(rank: int, how: str, folder: Path) -> dict:
    """Three steps; with a break after two; resumed from there in all ways."""
    whole = Run(rank, how)
    whole.step(0, STEPS)
    found = {(how, "steps"): whole.state()}
    gathered = gather_model(whole.network, make)
    found[how, "features"] = gathered.eval().features(images(0, 0)).detach()
    whole.network.train()
    inner = getattr(whole.optimizer, "optim", whole.optimizer)
    states = [local(state["momentum_buffer"]) for state in inner.state.values()]
    found[how, "numbers"] = sum(each.numel() for each in states)
    found[how, "parameters"] = sum(local(each).numel() for each in whole.network.parameters())
    pieces = Run(rank, how)
    pieces.step(0, 1, pieces=2)
    found[how, "pieces"] = pieces.state()
    broken = Run(rank, how)
    broken.step(0, 2)
    broken.collect()
    path = checkpoint.save(folder / how, 2, **broken.parts)
    checkpoint.unlock(folder / how)
    found[how, "saved"] = checkpoint.load(path)["parts"]
    for other in WAYS:
        resumed = Run(rank, other)
        assert checkpoint.resume(folder / how, **resumed.parts) == 2
        checkpoint.unlock(folder / how)
        resumed.step(2, STEPS)
        found[how, other] = resumed.state()
    found[how, "resumed"] = found[how, how]
    return found


def statistics(rank: int) -> dict:
    """Buffers after one step, and once they are shared."""
    run = Run(rank, "ddp")
    run.step(0, 1)
    before = {name: value.clone() for name, value in run.model.named_buffers()}
    share_norms(run.model)
    return {"local": before, "shared": dict(run.model.named_buffers())}


def finetune(rank: int, folder: Path) -> tuple[State, State]:
    """The last checkpoint of a fine-tuned model, and the model itself."""
    target = write_images(folder / "target") if rank == 0 else folder / "target"
    dist.barrier()
    options = FineTune(epochs=1, batch_size=6, size=16, resize=16, augment="none")
    train, model = read_target("folder", target).train, make()
    train_one(model, train, 3, Setting(0.1, 0, 1), options, 0, READING, folder=folder / "fit")
    checkpoint.unlock(folder / "fit")
    return checkpoint.load(folder / "fit/checkpoint-00000003.pt")["parts"]["model"], (
        model.state_dict()
    )


def work(rank: int, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    timeout = datetime.timedelta(seconds=90)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timeout)
    seen: dict = {"statistics": statistics(rank), "finetuned": finetune(rank, folder)}
    for how in WAYS:
        seen |= train(rank, how, folder)
    for how in ("ddp", "fsdp"):
        run = Run(rank, how, compress=True)
        run.step(0, 1)
        seen[how, "compressed"] = run.state()
    run = Run(rank, "fsdp", recompute=True)
    run.step(0, 1)
    seen["fsdp", "recomputed"] = run.state()
    torch.save(seen, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    import torch._dynamo  # which DDP imports at its first use: here once instead of twice

    fork = multiprocessing.get_context("fork")
    arguments = [(rank, Path(sys.argv[1])) for rank in range(WORLD)]
    processes = [fork.Process(target=work, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))
