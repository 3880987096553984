"""Sums over processes: Sec. 4.1's algorithms on real gloo processes, beside `dist.all_reduce`.

Run as a script, this file is what the processes do: `python <file> FOLDER` forks them after one
import of torch, and leaves what each rank saw in FOLDER.
"""

import datetime
import multiprocessing
import random
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from large_minibatch import allreduce as sums
from large_minibatch.allreduce import Transport, allreduce, hook, steps, volume

WORLD = 8
ALGORITHMS = ("ring", "halving_doubling")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int16, torch.int64)


def lengths(world: int) -> list[int]:
    return sorted({0, 1, world - 1, 1000, 1001, 840 * world})


def integers(length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1000, 1000, (length,), generator=generator).double()


def test_blocks_are_the_powers_of_two_of_the_world():
    assert [sums._powers_of_two(p) for p in (1, 6, 7, 8, 44)] == [
        [1],
        [4, 2],
        [4, 2, 1],
        [8],
        [32, 8, 4],
    ]


def test_steps_on_the_papers_32_servers_are_62_and_10():
    assert steps("ring", 32) == 62
    assert steps("halving_doubling", 32) == 10
    assert steps("halving_doubling", 44) == 12  # 352 GPUs: two steps more than 32 servers


def test_one_process_has_its_sum_already():
    x = torch.ones(5)
    traffic = allreduce(x)
    assert traffic == sums.Traffic()
    assert torch.equal(x, torch.ones(5))


def test_a_wrong_name_is_told_with_the_right_ones():
    with pytest.raises(ValueError, match="'tree' is none of auto, ring, halving_doubling"):
        allreduce(torch.ones(2), "tree")
    with pytest.raises(ValueError, match="none of"):
        hook("tree")


def test_servers_that_do_not_fill_the_world_are_refused():
    with pytest.raises(ValueError, match="1 processes are not servers of 8"):
        allreduce(torch.ones(2), per_server=8)
    with pytest.raises(ValueError, match="at least one"):
        hook("ring", concurrent=0)


def test_what_cannot_be_summed_is_refused():
    with pytest.raises(ValueError, match=r"torch.bool: .*\.int\(\)"):
        allreduce(torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="to_dense"):
        allreduce(torch.eye(2).to_sparse())


def test_auto_is_halving_doubling_up_to_a_million_elements():
    assert sums.choose("auto", 1_000_000, 32) is sums.halving_doubling
    assert sums.choose("auto", 1_000_000, 44) is sums.binary_blocks
    assert sums.choose("auto", 1_000_001, 32) is sums.ring


def test_an_error_in_a_lane_reaches_whoever_waits_for_the_gradient():
    def lost(gradient: torch.Tensor, lane: int) -> torch.Tensor:
        raise RuntimeError("rank 3 is gone")

    with pytest.raises(RuntimeError, match="rank 3 is gone"):
        sums._Lanes(lost, 2).comm_hook(None, Bucket(torch.ones(3))).wait()


@pytest.fixture(scope="module")
def seen(commands, tmp_path_factory) -> list[dict]:
    """What every rank of one run of 8 processes saw."""
    folder = tmp_path_factory.mktemp("allreduce")
    done = commands.run(folder, str(folder), script=__file__)
    assert done.returncode == 0, done.stderr
    torch.serialization.add_safe_globals([sums.Traffic])
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("world", range(2, WORLD + 1))
def test_the_sum_of_integers_is_exactly_that_of_torch(seen, world, algorithm):
    for rank in range(world):
        for length in lengths(world):
            assert seen[rank]["equal"][world, algorithm, length], (rank, length)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("world", range(2, WORLD + 1))
def test_the_slowest_rank_takes_the_steps_of_the_formula(seen, world, algorithm):
    for length in lengths(world):
        taken = [seen[rank]["traffic"][world, algorithm, length].steps for rank in range(world)]
        assert max(taken) == steps(algorithm, world)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("world", [2, 4, 8])
def test_every_rank_sends_and_receives_the_bytes_of_section_4(seen, world, algorithm):
    size = 840 * world * 8  # float64
    for rank in range(world):
        traffic = seen[rank]["traffic"][world, algorithm, 840 * world]
        assert traffic.sent == traffic.received == 2 * (world - 1) * size // world
        assert traffic.messages == steps(algorithm, world)


@pytest.mark.parametrize("world", range(2, WORLD + 1))
def test_the_busiest_rank_sends_the_predicted_bytes(seen, world):
    size = 840 * world * 8
    for algorithm in ALGORITHMS:
        sent = [seen[r]["traffic"][world, algorithm, 840 * world].sent for r in range(world)]
        assert max(sent) == pytest.approx(volume(algorithm, world) * size, abs=8 * world)


def test_a_buffer_shorter_than_the_ring_sends_no_empty_messages(seen):
    for rank in range(WORLD):
        assert seen[rank]["traffic"][WORLD, "ring", 0].messages == 0
        assert seen[rank]["traffic"][WORLD, "ring", 1].messages <= 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_gives_the_same_bits_on_all_ranks(seen, dtype):
    for algorithm in ALGORITHMS:
        for world in (7, 8):
            results = [seen[rank]["dtypes"][world, algorithm, dtype] for rank in range(world)]
            assert all(torch.equal(result, results[0]) for result in results)
            assert results[0].dtype == dtype
            expected = sum(integers(1001, rank) % 9 for rank in range(world))
            assert torch.equal(results[0].double(), expected)  # small integers: exact in all


def test_a_transposed_tensor_is_summed_in_place(seen):
    expected = sum(integers(12, rank) for rank in range(WORLD)).view(3, 4)
    assert all(torch.equal(one["transposed"], expected) for one in seen)


@pytest.mark.parametrize("per_server", [2, 4, 8])
def test_summing_within_servers_first_gives_the_same_sum(seen, per_server):
    expected = sum(integers(1001, rank) for rank in range(WORLD))
    for one in seen:
        assert torch.equal(one["servers"][per_server][0], expected)
    inside = seen[1]["servers"][per_server][1]
    assert (inside.messages, inside.sent) == (1, 1001 * 8)  # to its server's first rank, no more


def test_halving_doubling_of_six_ranks_advises_binary_blocks(seen):
    assert "power of two of ranks, not 6" in seen[0]["refused"]
    assert "binary_blocks" in seen[0]["refused"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("overlap", ["lanes=1", "lanes=3", "waiting", "servers"])
def test_ddp_with_the_hook_gives_the_gradients_of_ddp_without(seen, algorithm, overlap):
    for one in seen:
        ours, default = one["hook"][algorithm, overlap], one["hook"]["default"]
        assert len(ours) == len(default) == 4 * 3  # parameters, steps
        for mine, theirs in zip(ours, default, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)  # float64


def test_ddp_with_the_hook_ends_bit_equal_on_all_ranks(seen):
    for key in seen[0]["hook"]:
        for one in seen[1:]:
            assert all(map(torch.equal, one["hook"][key], seen[0]["hook"][key]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_of_two_ranks_the_hook_and_ddp_agree_to_the_bit(seen, algorithm):
    assert seen[0]["pair"][algorithm]
    assert seen[1]["pair"][algorithm]


def test_concurrent_sums_with_unlike_delays_do_not_mix_or_block(seen):
    assert all(one["concurrent"] for one in seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_one_gpu_the_hook_gives_the_gradients_of_ddp(tmp_path):
    torch.cuda.set_device(0)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        x = torch.randn(16, device="cuda")
        default = gradients(None, None, x)
        for overlap in (True, False):
            ours = gradients(hook("ring", overlap=overlap), None, x)
            assert all(map(torch.equal, ours, default))
    finally:
        dist.destroy_process_group()


def gradients(comm_hook, group, x: torch.Tensor) -> list[torch.Tensor]:
    """Of three steps of a small network in DDP, many buckets; `x` (16,) is this rank's data."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 31), nn.Tanh(), nn.Linear(31, 3)).to(x)
    ddp = nn.parallel.DistributedDataParallel(net, process_group=group, bucket_cap_mb=1e-4)
    if comm_hook is not None:
        ddp.register_comm_hook(None, comm_hook)
    found = []
    for _ in range(3):
        net.zero_grad()
        ddp(x).pow(2).sum().backward()
        for parameter in net.parameters():
            found.append(parameter.grad.clone())
            parameter.data -= 0.1 * parameter.grad
    return found


def sum_up(rank: int, groups: dict) -> dict:
    """Each algorithm on each group and length; every dtype; what is not a contiguous vector."""
    equal, traffic, dtypes = {}, {}, {}
    for world, group in groups.items():
        if rank >= world:
            continue
        for length in lengths(world):
            expected = integers(length, rank)
            dist.all_reduce(expected, group=group)
            for algorithm in ALGORITHMS:
                x = integers(length, rank)
                traffic[world, algorithm, length] = allreduce(x, algorithm, group=group)
                equal[world, algorithm, length] = torch.equal(x, expected)
        for dtype in DTYPES if world >= 7 else ():
            for algorithm in ALGORITHMS:
                x = (integers(1001, rank) % 9).to(dtype)
                allreduce(x, algorithm, group=group)
                dtypes[world, algorithm, dtype] = x
    transposed = integers(12, rank).view(3, 4).t().contiguous().t()
    allreduce(transposed)
    servers = {}
    for per_server in (2, 4, 8):
        x = integers(1001, rank)
        servers[per_server] = (x, allreduce(x, per_server=per_server))
    found = {"equal": equal, "traffic": traffic, "dtypes": dtypes, "servers": servers}
    return found | {"transposed": transposed}


def average(rank: int, groups: dict) -> dict:
    """The hook in DDP, on all ranks and on two."""
    x = integers(16, rank) / 1000
    hooks = {"default": gradients(None, None, x)}
    pair = {}
    single = gradients(None, groups[2], x.float()) if rank < 2 else None
    for name in ALGORITHMS:
        ways = {"lanes=1": hook(name, concurrent=1), "lanes=3": hook(name, concurrent=3)}
        ways |= {"waiting": hook(name, overlap=False), "servers": hook(name, per_server=4)}
        for way, comm_hook in ways.items():
            hooks[name, way] = gradients(comm_hook, None, x)
        if rank < 2:
            ours = gradients(hook(name, group=groups[2]), groups[2], x.float())
            pair[name] = all(map(torch.equal, ours, single))
    return {"hook": hooks, "pair": pair}


class Bucket:
    """Gradients as DDP hands them over."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def buffer(self) -> torch.Tensor:
        return self.values


def disturbed(rank: int) -> bool:
    """Twelve sums in three lanes, each rank being late at others; whether all are right."""
    clock = random.Random(rank)

    def late(gradient: torch.Tensor, lane: int) -> torch.Tensor:
        time.sleep(0.01 * clock.random())
        allreduce(gradient, ALGORITHMS[len(gradient) % 2], tag=lane)
        return gradient

    lanes = sums._Lanes(late, 3)
    futures = [lanes.comm_hook(None, Bucket(integers(100 + n, 10 * n + rank))) for n in range(12)]
    expected = [sum(integers(100 + n, 10 * n + r) for r in range(WORLD)) for n in range(12)]
    return all(torch.equal(f.wait(), total) for f, total in zip(futures, expected, strict=True))


def work(rank: int, folder: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    timeout = datetime.timedelta(seconds=90)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timeout)
    groups = {world: dist.new_group(range(world)) for world in range(2, WORLD + 1)}
    seen = sum_up(rank, groups) | average(rank, groups) | {"concurrent": disturbed(rank)}
    if rank < 6:
        try:
            sums.halving_doubling(torch.ones(3), Transport(groups[6]))
        except ValueError as error:
            seen["refused"] = str(error)
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    import torch._dynamo  # which DDP imports at its first use: here once instead of 8 times

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(rank, sys.argv[1])) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))
