"""Summing gradients over processes by point-to-point messages: Sec. 4 of the paper.

Before an allreduce every rank has its own buffer, afterwards every rank has the sum of all. With p
ranks and b bytes, each rank sends and receives 2 (p - 1) / p b bytes under both algorithms of
Sec. 4.1, but in a different number of steps:

    ring (bucket algorithm)          2 (p - 1)           chunks travel around a circle
    recursive halving and doubling   2 log2 p            pairs exchange halves, p a power of two
    binary blocks                    2 floor(log2 p) + 2 the same for any other p

All of them first scatter the sum (afterwards each rank owns a part of it), then gather the parts.
Every element is summed at one place and then copied, so the ranks end bit-equal in any dtype.

    ddp.register_comm_hook(None, hook("halving_doubling"))      # averages gradients as DDP does
    traffic = allreduce(tensor, "ring")                         # in place; what this rank sent

Deadlock rule, Sec. 4.2. Ranks whose allreduces run concurrently have to run *the same* ones, or
each waits for a message that the other has not come to. The paper lets the completion of the n-th
allreduce unblock the (n + c)-th, c being the number that may run at once. Here `hook` has c lanes:
the n-th gradient goes to lane n mod c, a lane works off its gradients one after another, and its
messages carry the lane's tag, so they are never taken for those of another lane. As DDP hands over
its buckets in one order on all ranks, each rank does the same work in the same lane. Within one
allreduce all messages of a step are posted before any is waited for, so no order can block. With
NCCL, which pairs messages by their order, everything runs in one lane, a CUDA stream.

The caller's part: on all ranks equal sizes and dtypes, and the same order of calls with one `tag`.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

ALGORITHMS = ("auto", "ring", "halving_doubling")
FEW_ELEMENTS = 1_000_000  # up to here halving-doubling is "much better" than the ring, Sec. 4.1
FIRST_TAG = 1706  # of the hook's messages; a caller's own messages use other tags
Kept = list[tuple[Tensor, Tensor, int]]  # of each halving: the part kept, the part given, to whom


@dataclass
class Traffic:
    """What one rank did; a message without content is a step, but is not sent."""

    steps: int = 0
    messages: int = 0  # sent
    sent: int = 0  # bytes
    received: int = 0  # bytes


class Transport:
    """Messages between the ranks of a group, counted. Without a group: this process alone."""

    def __init__(self, group: dist.ProcessGroup | None = None, *, tag: int = 0) -> None:
        self.group = group
        self.tag = tag
        world = dist.get_world_size(group) if dist.is_initialized() else 1
        self._me = dist.get_rank(group) if dist.is_initialized() else 0
        if self._me < 0:
            raise ValueError("this process is not in the group: call allreduce on its ranks only.")
        self.ranks: Sequence[int] = range(world)
        self.traffic = Traffic()

    @property
    def world(self) -> int:
        """Number of ranks, p."""
        return len(self.ranks)

    @property
    def rank(self) -> int:
        """Number of this process, 0..p-1."""
        return self.ranks.index(self._me)

    def among(self, ranks: Sequence[int]) -> "Transport":
        """The same transport between some of its ranks alone, numbered 0, 1, ... in that order."""
        part = copy.copy(self)  # which counts in the same `traffic`
        part.ranks = [self.ranks[rank] for rank in ranks]
        return part

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """One step: send each of `outgoing` to its rank and fill `incoming` from theirs.

        All tensors are contiguous; both sides know the lengths, so empty ones are not sent. They
        travel as bytes, because the back ends do not know every dtype.
        """
        self.traffic.steps += 1
        operations = []
        for operation, tensors in ((dist.isend, outgoing), (dist.irecv, incoming)):
            for peer, tensor in tensors.items():
                if tensor.numel():
                    data, number = tensor.view(torch.uint8), self.ranks[peer]
                    operations.append(
                        dist.P2POp(
                            operation, data, group=self.group, group_peer=number, tag=self.tag
                        )
                    )
        self.traffic.messages += sum(tensor.numel() > 0 for tensor in outgoing.values())
        self.traffic.sent += sum(tensor.nbytes for tensor in outgoing.values())
        self.traffic.received += sum(tensor.nbytes for tensor in incoming.values())
        if operations:
            for request in dist.batch_isend_irecv(operations):
                request.wait()


def ring(x: Tensor, transport: Transport) -> None:
    """Sum `x` (L,) in place over the ranks of a circle: the bucket algorithm, 2 (p - 1) steps.

    Chunk c starts its way at rank c, is added to at every rank it comes through, and is complete
    at rank c - 1; then it goes around once more to be copied. Sizes of the p chunks differ by at
    most one element.
    """
    p, rank = transport.world, transport.rank
    chunks = x.tensor_split(p)
    right, left = (rank + 1) % p, (rank - 1) % p
    for hop in range(p - 1):
        give, take = chunks[(rank - hop) % p], chunks[(rank - hop - 1) % p]
        received = torch.empty_like(take)
        transport.exchange({right: give}, {left: received})
        take += received
    for hop in range(p - 1):
        give, take = chunks[(rank + 1 - hop) % p], chunks[(rank - hop) % p]
        transport.exchange({right: give}, {left: take})


def halving_doubling(x: Tensor, transport: Transport) -> None:
    """Sum `x` (L,) in place in 2 log2 p steps; p is a power of two, else `binary_blocks`."""
    if transport.world & (transport.world - 1):
        raise ValueError(
            f"halving_doubling needs a power of two of ranks, not {transport.world}: "
            "binary_blocks takes any number."
        )
    kept = _reduce_scatter(x, transport)
    _allgather(kept, transport)


def _reduce_scatter(x: Tensor, transport: Transport) -> Kept:
    """First half: distances double, data halves; this rank ends with its part of the sum.

    Rank 0 starts by sending the second half of its buffer to rank 1 and receives the first half of
    rank 1's. Of an odd length the first half is longer by one, on all ranks alike.
    """
    kept, segment, distance = [], x, 1
    while distance < transport.world:
        peer = transport.rank ^ distance
        first, second = segment.tensor_split(2)
        keep, give = (second, first) if transport.rank & distance else (first, second)
        received = torch.empty_like(keep)
        transport.exchange({peer: give}, {peer: received})
        keep += received
        kept.append((keep, give, peer))
        segment, distance = keep, 2 * distance
    return kept


def _allgather(kept: Kept, transport: Transport) -> None:
    """Second half, in reverse: what was sent is received, what was received is sent."""
    for keep, give, peer in reversed(kept):
        transport.exchange({peer: keep}, {peer: give})


def binary_blocks(x: Tensor, transport: Transport) -> None:
    """Sum `x` (L,) in place over any number of ranks.

    The ranks fall into blocks of different powers of two, the largest first (7 = 4 + 2 + 1). After
    the reduce-scatter of a block, each of its ranks adds what the next smaller block has of its
    part and passes the result on to the next larger one, where several ranks share that part. The
    largest block has the sum; it comes back the same way before the blocks' allgathers. Smaller
    blocks are ready earlier, so the last rank is done 2 steps after an intact power of two.
    """
    sizes = _powers_of_two(transport.world)
    starts = list(itertools.accumulate(sizes, initial=0))
    block = next(i for i, start in enumerate(starts[1:]) if transport.rank < start)
    size, rank = sizes[block], transport.rank - starts[block]
    inside = transport.among(range(starts[block], starts[block] + size))
    kept = _reduce_scatter(x, inside)
    part = kept[-1][0] if kept else x

    below, above = {}, {}  # rank in the next smaller, next larger block: its part of mine
    if block + 1 < len(sizes):
        below = {starts[block + 1] + rank % sizes[block + 1]: part}
    if block > 0:
        shares = range(sizes[block - 1] // size)
        above = {starts[block - 1] + rank + size * i: _subpart(part, i, shares) for i in shares}
    if below:
        received = {peer: torch.empty_like(part) for peer in below}
        transport.exchange({}, received)
        for values in received.values():
            part += values
    if above:
        transport.exchange(above, {})
        transport.exchange({}, above)
    if below:
        transport.exchange(below, {})
    _allgather(kept, inside)


def _powers_of_two(number: int) -> list[int]:
    """The blocks of `number` ranks, largest first: 7 gives 4, 2, 1."""
    return [1 << bit for bit in reversed(range(number.bit_length())) if number >> bit & 1]


def _subpart(part: Tensor, index: int, shares: range) -> Tensor:
    """What is left of `part` at rank `index` of `shares`, halving as `_reduce_scatter` does."""
    distance = 1
    while distance < len(shares):
        part = part.tensor_split(2)[bool(index & distance)]
        distance *= 2
    return part


def three_phases(x: Tensor, transport: Transport, *, per_server: int, algorithm: str) -> None:
    """Sum `x` (L,) in place as in Sec. 4.1, ranks 0..per_server-1 being one server, and so on.

    (1) The buffers of a server are summed at its first rank, (2) the first ranks run `algorithm`
    between them, (3) they hand the result to their servers.
    """
    if per_server < 1 or transport.world % per_server:
        raise ValueError(
            f"{transport.world} processes are not servers of {per_server}: give per_server a "
            f"divisor of {transport.world}."
        )
    first = transport.rank - transport.rank % per_server
    others = range(first + 1, first + per_server)
    if transport.rank != first:
        transport.exchange({first: x}, {})
        transport.exchange({}, {first: x})
        return
    received = torch.empty_like(x)
    for other in others:
        transport.exchange({}, {other: received})
        x += received
    servers = transport.among(range(0, transport.world, per_server))
    choose(algorithm, x.numel(), servers.world)(x, servers)
    if others:
        transport.exchange(dict.fromkeys(others, x), {})


def choose(algorithm: str, elements: int, world: int) -> Callable[[Tensor, Transport], None]:
    """The function that sums `elements` over `world` ranks.

    `auto` is halving-doubling up to a million elements, "and even higher on large server counts".
    # Unstated: where else the ring is better; here it takes over beyond a million.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm {algorithm!r} is none of {', '.join(ALGORITHMS)}.")
    if algorithm == "ring" or (algorithm == "auto" and elements > FEW_ELEMENTS):
        return ring
    return binary_blocks if world & (world - 1) else halving_doubling


def steps(algorithm: str, world: int) -> int:
    """Steps of the slowest rank under "ring" or "halving_doubling" (binary blocks), Sec. 4.1."""
    if choose(algorithm, 0, world) is ring:
        return 2 * (world - 1)
    doublings = world.bit_length() - 1
    return 2 * doublings + (2 if world & (world - 1) else 0)


def volume(algorithm: str, world: int) -> float:
    """Bytes that the busiest rank sends, per byte of the buffer: 2 (p - 1) / p, Sec. 4.1.

    Binary blocks are out of balance: a block of s ranks also passes 1 / s up and 1 / s down.
    """
    if choose(algorithm, 0, world) is ring:
        return 2 * (world - 1) / world
    blocks = list(enumerate(_powers_of_two(world), start=1))
    return max((2 * (s - 1) + (i > 1) + (i < len(blocks))) / s for i, s in blocks)


def allreduce(
    tensor: Tensor,
    algorithm: str = "auto",
    *,
    per_server: int = 1,
    group: dist.ProcessGroup | None = None,
    tag: int = 0,
) -> Traffic:
    """Sum `tensor` of any shape in place over the ranks of `group`; what this rank sent.

    Any integer or float dtype that torch can add, on a device of the group's back end.
    `per_server` > 1 sums within servers first (Sec. 4.1). `tag` tells the messages of concurrent
    calls in several threads apart (gloo only).
    """
    _require_summable(tensor)
    transport = Transport(group, tag=tag)
    value = tensor.detach()
    flat = value.contiguous().view(-1)
    three_phases(flat, transport, per_server=per_server, algorithm=algorithm)
    if flat.data_ptr() != value.data_ptr():
        value.copy_(flat.view(value.shape))
    return transport.traffic


def _require_summable(tensor: Tensor) -> None:
    """Raise ValueError for what has no sum in place."""
    if tensor.dtype == torch.bool or tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(
            f"allreduce sums dense numbers, not a {tensor.layout} tensor of {tensor.dtype}: "
            "convert it before, e.g. with .to_dense() or .int()."
        )


def hook(
    algorithm: str = "auto",
    *,
    overlap: bool = True,
    concurrent: int = 2,
    per_server: int = 1,
    group: dist.ProcessGroup | None = None,
) -> Callable[[object, dist.GradBucket], torch.futures.Future[torch.Tensor]]:
    """Communication hook that averages gradients over `group`, that of DDP, like DDP's own.

    With `overlap` sums are formed while backprop goes on (Sec. 4.1), else backprop waits for each.
    `concurrent` is c, the sums that run at a time on CPUs; on GPUs they follow one another.
    # Unstated: c.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent={concurrent}: at least one allreduce has to run at a time.")
    choose(algorithm, 0, 1)

    def average(gradient: Tensor, lane: int) -> Tensor:
        gradient /= dist.get_world_size(group)  # before the sum, as in DDP: float16 stays in range
        tag = FIRST_TAG + lane
        allreduce(gradient, algorithm, per_server=per_server, group=group, tag=tag)
        return gradient

    return _Lanes(average, concurrent if overlap else 0).comm_hook


class _Lanes:
    """Order of concurrent sums: the n-th gradient waits for the (n - c)-th, Sec. 4.2."""

    def __init__(self, average: Callable[[Tensor, int], Tensor], lanes: int) -> None:
        """`average(gradient, lane)` works in place; 0 lanes: at once, in the caller's thread."""
        self.average = average
        self.lanes = [ThreadPoolExecutor(1, f"allreduce-{lane}") for lane in range(lanes)]
        self.numbers = itertools.count()
        self.streams: dict[torch.device, torch.cuda.Stream] = {}

    def comm_hook(
        self, state: object, bucket: dist.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        """What DDP calls when the gradients of a bucket are there; `state` is not used."""
        gradient = bucket.buffer()
        if gradient.is_cuda:
            return self._on_stream(gradient)
        future: Future[Tensor] = Future()
        if self.lanes:
            lane = next(self.numbers) % len(self.lanes)
            self.lanes[lane].submit(self._on_lane, gradient, lane, future)
        else:
            future.set_result(self.average(gradient, 0))
        return future

    def _on_lane(self, gradient: Tensor, lane: int, future: Future[Tensor]) -> None:
        try:
            future.set_result(self.average(gradient, lane))
        except Exception as error:
            # Where DDP waits for the gradient it quotes this; torch's stub asks for a tensor.
            future.set_exception(error)  # type: ignore[arg-type]

    def _on_stream(self, gradient: Tensor) -> Future[Tensor]:
        now = stream = torch.cuda.current_stream(gradient.device)
        if self.lanes:
            if gradient.device not in self.streams:
                self.streams[gradient.device] = torch.cuda.Stream(gradient.device)
            stream = self.streams[gradient.device]
            stream.wait_stream(now)
        future: Future[Tensor] = Future(devices=[gradient.device])
        with torch.cuda.stream(stream):
            future.set_result(self.average(gradient, 0))  # complete when the stream comes here
        return future


def summing(network: nn.Module, *, last: bool) -> AbstractContextManager:
    """Where gradients are accumulated, DDP's processes exchange them after the last piece only."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()
