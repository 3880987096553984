"""A model of the time of an iteration on 8 to 352 GPUs: Sec. 4, Figs. 7 and 8 of the paper.

Nothing here is measured on many GPUs. The model takes the computation of one server as given,
lets gradients come out of backprop one by one, sends each through the three phases of Sec. 4.1
and adds what is still on its way when backprop ends:

    iteration = rest + backprop + exposed aggregation + waiting for the slowest worker

Phase 1 sums in the server, 2 between servers, 3 hands the result back; they are pipelined
(Sec. 4.2), gradients in their order. A phase costs latency + bytes / bandwidth; between p servers
it is a latency for each of the steps, and 2 (p - 1) / p bytes for each byte (`allreduce.steps`,
`allreduce.volume`). The n-th allreduce lets the (n + c)-th start; the card carries one at a time.

What the paper does not print is marked `# Assumption:`. The most important ones: a layer's share
of backprop is its share of the multiplications; summation itself is free; workers' times are
independent and normal.

    layers = by_work(torchvision.models.resnet50(), 224)
    predict(256, layers).images_per_second

Times are seconds, sizes bytes, rates bytes per second.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..allreduce import steps, volume


@dataclass(frozen=True)
class Gradient:
    """What backprop hands over: `ready` is the share of backprop after which it is there."""

    size: int  # bytes
    ready: float  # 0..1


@dataclass(frozen=True, kw_only=True)
class Work:
    """Computation of a worker; the defaults are ResNet-50 with 32 images on a P100.

    29 h of training on one server, 90 epochs of 5004 iterations, are 0.232 s for each of them.
    """

    backprop: float = 0.120  # Sec. 4.3
    rest: float = 29 * 3600 / (90 * 5004) - 0.120  # forward, update, input: the difference
    images: int = 32  # n, Sec. 2.3
    workers: int = 8  # on which these times were taken
    # Assumption: no scatter of a worker's time; `jitter_for` gives the one that explains Fig. 7.
    jitter: float = 0.0  # standard deviation of a worker's iteration


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Servers and what connects them; the defaults are the paper's."""

    per_server: int = 8  # GPUs of a Big Basin, Sec. 4.3
    network: float = 50e9 / 8  # a server's card, 50 Gbit/s Ethernet, Sec. 4.3
    overhead: float = 15 / 12.8  # bytes on the wire for each of ours: the smudge factor, Sec. 4.3
    # Assumption: the ring is 3 times slower on 32 servers (Sec. 4.1) with the tensors of ResNet-50
    # summed one after another, which holds for this latency.
    latency: float = 14.4e-6  # of a step between servers
    # Assumption: NCCL moves what one NVLink of a P100 does, 20 GB/s in a direction.
    nvlink: float = 20e9
    nvlink_latency: float = 20e-6  # Assumption: launch of one NCCL collective
    small: int = 256 * 1024  # below it servers sum on their CPU, Sec. 4.1
    pcie: float = 12e9  # Assumption: PCIe 3.0 x16, which all GPUs of a server share for that
    pcie_latency: float = 20e-6  # Assumption: the copies of one gradient
    concurrent: int = 1  # c of Sec. 4.2. Assumption: the paper does not print it


@dataclass(frozen=True)
class Prediction:
    """One point of Figs. 7 and 8."""

    workers: int
    images: int  # kn
    seconds: float  # of an iteration
    aggregation: float  # from the first gradient to the last sum
    exposed: float  # of that, after backprop
    waiting: float  # for the slowest, beyond what the measured workers waited

    @property
    def images_per_second(self) -> float:
        """Of all workers together, Fig. 8."""
        return self.images / self.seconds

    def efficiency(self, base: "Prediction") -> float:
        """Images per second and worker relative to `base`: Fig. 8's curve over its dotted line."""
        return self.images_per_second / self.workers / (base.images_per_second / base.workers)

    def epoch(self, examples: int = 1_281_167) -> float:
        """Seconds of a pass over `examples`, by default the training set of ImageNet."""
        return examples / self.images_per_second


def predict(
    workers: int,
    gradients: Sequence[Gradient],
    *,
    work: Work | None = None,
    cluster: Cluster | None = None,
    algorithm: str = "halving_doubling",
    overlap: bool = True,
) -> Prediction:
    """Time of an iteration on `workers` GPUs, all servers full, or on a part of one server.

    `gradients` in the order of backprop; `algorithm` "halving_doubling" or "ring".
    """
    work, cluster = work or Work(), cluster or Cluster()
    if workers < 1 or (workers > cluster.per_server and workers % cluster.per_server):
        low = max(1, workers // cluster.per_server) * cluster.per_server
        raise ValueError(
            f"{workers} workers do not fill servers of {cluster.per_server}: take {low} or "
            f"{low + cluster.per_server}."
        )
    end = _aggregate(workers, gradients, work, cluster, algorithm=algorithm, overlap=overlap)
    exposed = max(0.0, end - work.backprop)
    slowest = mean_of_slowest(workers) - mean_of_slowest(work.workers)
    waiting = work.jitter * slowest
    start = (min((g.ready for g in gradients), default=1.0) if overlap else 1.0) * work.backprop
    return Prediction(
        workers=workers,
        images=workers * work.images,
        seconds=work.rest + work.backprop + exposed + waiting,
        aggregation=max(0.0, end - start),
        exposed=exposed,
        waiting=waiting,
    )


def _aggregate(
    workers: int,
    gradients: Sequence[Gradient],
    work: Work,
    cluster: Cluster,
    *,
    algorithm: str,
    overlap: bool,
) -> float:
    """When the last sum is on all GPUs, counted from the start of backprop."""
    servers = max(1, workers // cluster.per_server)
    inside = min(workers, cluster.per_server)
    reduce_free = card_free = broadcast_free = 0.0
    summed: list[float] = []  # ends of phase 2
    for number, gradient in enumerate(gradients):
        local = inside_server(gradient.size, inside, cluster)
        delay, wire = between_servers(gradient.size, servers, cluster, algorithm)
        ready = (gradient.ready if overlap else 1.0) * work.backprop
        reduce_free = max(ready, reduce_free) + local  # (1)
        turn = summed[number - cluster.concurrent] if number >= cluster.concurrent else 0.0
        card_free = max(reduce_free, turn, card_free) + wire  # (2)
        summed.append(card_free + delay)
        broadcast_free = max(summed[-1], broadcast_free) + local  # (3)
    return broadcast_free


def inside_server(size: int, gpus: int, cluster: Cluster) -> float:
    """Seconds of phase 1 or 3 for one gradient: NCCL, or copies to the CPU for small ones."""
    if gpus == 1:
        return 0.0
    if size >= cluster.small:
        return cluster.nvlink_latency + size / cluster.nvlink
    return cluster.pcie_latency + gpus * size / cluster.pcie


def between_servers(
    size: int, servers: int, cluster: Cluster, algorithm: str
) -> tuple[float, float]:
    """Phase 2 of one gradient: seconds of delay, seconds for which the card is taken."""
    if algorithm not in ("ring", "halving_doubling"):
        raise ValueError(f"algorithm {algorithm!r} is none of ring, halving_doubling.")
    delay = steps(algorithm, servers) * cluster.latency
    wire = volume(algorithm, servers) * size * cluster.overhead / cluster.network
    return delay, wire


def mean_of_slowest(workers: int) -> float:
    """Mean of the largest of `workers` standard normal numbers: 0, 0.564, 0.846, ..."""
    x = torch.linspace(-9, 9, 3601, dtype=torch.float64)
    below = torch.special.ndtr(x) ** workers  # probability that all of them are below x
    return 9 - torch.trapezoid(below, x).item()


def jitter_for(
    gradients: Sequence[Gradient],
    *,
    increase: float = 0.12,
    workers: int = 352,
    work: Work | None = None,
    cluster: Cluster | None = None,
) -> float:
    """Scatter of a worker's time with which `workers` take `increase` longer than one server.

    Fig. 7: 12 % from 256 to 11,264 images. That waiting explains what communication does not is
    our guess; the paper gives no reason.
    """
    work, cluster = replace(work or Work(), jitter=0.0), cluster or Cluster()
    first = predict(cluster.per_server, gradients, work=work, cluster=cluster)
    last = predict(workers, gradients, work=work, cluster=cluster)
    missing = (1 + increase) * first.seconds - last.seconds
    rise = mean_of_slowest(workers) - mean_of_slowest(cluster.per_server)
    if missing < 0 or rise <= 0:
        raise ValueError(
            f"{workers} workers take {last.seconds / first.seconds - 1:.1%} longer without any "
            f"waiting, more than {increase:.1%}: nothing is left to explain."
        )
    return missing / rise


def by_work(model: nn.Module, size: int) -> list[Gradient]:
    """Gradients of `model` in the order of backprop, timed by their layers' multiplications.

    `size` is the side of the square input in pixels. Shapes alone are computed.
    """
    model = copy.deepcopy(model).to("meta")
    calls: list[tuple[nn.Module, int]] = []  # layer, multiplications for one image

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count = 0  # Assumption: beside convolutions and linear layers nothing takes time
        if isinstance(module, nn.Conv2d | nn.Linear):
            count = output.numel() // module.weight.shape[0] * module.weight.numel()
        calls.append((module, count))

    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    for module in owners:
        module.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    done = 0
    ready: dict[nn.Module, int] = {}
    for module, count in reversed(calls):
        done += count
        ready.pop(module, None)  # a layer used twice is complete with its first use
        ready[module] = done
    if len(ready) < len(owners) or not done:
        raise ValueError(
            f"{len(owners) - len(ready) or len(owners)} layers of {type(model).__name__} cannot be "
            "timed by their calls: build the list of `Gradient` from a measured backprop."
        )
    return [
        Gradient(parameter.nbytes, share / done)
        for module, share in ready.items()
        for parameter in reversed(list(module.parameters(recurse=False)))
        if parameter.requires_grad
    ]
