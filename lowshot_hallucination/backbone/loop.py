"""Training a trunk on the base classes with the benchmark's recipe, 1606.02819, Sec. 4.1."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from common import dist
from common.config import require_choice, require_range
from common.data import eval_loader, seed_everything, seed_of, train_loader
from common.metrics import Accuracy
from common.optim import follow, one_cycle
from common.run import checkpoint
from common.run.log import Log, require_finite
from common.run.options import Options
from common.sampling import SampleStream

from ..features.images import Images, ImageSet
from ..net.trunks import Network, Trunk
from ..weights.initialise import open_trunk
from .losses import AUX_WEIGHTS, auxiliary


@dataclass
class Backbone:
    """How the trunk is trained, Hydra group `backbone`; the defaults are those of ResNet-10."""

    epochs: int = 90
    batch_size: int = 256  # over all processes; 100 of ResNet-50
    # Images that a batch norm sees at a time; 0: a process's share of the batch, with which the
    # number of processes changes the result
    per_gpu: int = 0
    lr: float = 0.1
    schedule: str = "step"  # step: `gamma` every `drop_every` epochs | one_cycle
    drop_every: int = 30
    gamma: float = 0.1
    warmup_epochs: int = 0  # at `warmup_lr`; 1 of ResNet-50
    warmup_lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    aux: str = "none"  # none | sgm | batch_sgm | l2; the authors' code has l2 where none is named
    aux_weight: float = 0.0  # 0: that of `AUX_WEIGHTS`
    test_batch: int = 256  # images that are evaluated at a time, on each process

    def __post_init__(self) -> None:
        """ValueError where an option has no such value."""
        require_choice("backbone.schedule", self.schedule, ("step", "one_cycle"))
        require_choice("backbone.aux", self.aux, ("none", *AUX_WEIGHTS))
        for name in ("epochs", "batch_size", "drop_every", "test_batch"):
            require_range(f"backbone.{name}", getattr(self, name), 1)
        for name in ("per_gpu", "warmup_epochs", "weight_decay", "aux_weight", "gamma"):
            require_range(f"backbone.{name}", getattr(self, name), 0)
        require_range("backbone.momentum", self.momentum, 0, 0.99999)
        if min(self.lr, self.warmup_lr) <= 0:
            raise ValueError("backbone.lr and backbone.warmup_lr need values above 0.")
        if self.nesterov and not self.momentum:
            raise ValueError("backbone.nesterov=true needs backbone.momentum above 0.")


class Objective(nn.Module):
    """The losses of a batch by name, in one forward pass, as several processes want it."""

    def __init__(self, network: Network, options: Backbone, *, amp: bool = False) -> None:
        super().__init__()
        self.network, self.options, self.amp = network, options, amp

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Images uint8 (B, 3, S, S), labels int64 (B,) -> scalars."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            read = self.network.read(images)  # (B, d)
            logits = self.network.head(read)  # (B, K)
        losses = {"classification": F.cross_entropy(logits.float(), labels)}
        kind = self.options.aux
        if kind != "none":
            weight = self.options.aux_weight or AUX_WEIGHTS[kind]
            losses[kind] = weight * auxiliary(kind, logits, labels, read)
        return losses


def train_backbone(
    images: Images,
    trunk: Trunk,
    options: Backbone,
    *,
    seed: int,
    folder: str | Path,
    workers: int = 0,
    amp: bool = False,
    log_every: int = 20,
    save_every: int = 1000,
    config: Options | None = None,
) -> dict[str, float]:
    """Train on the base classes, resuming from `folder`: {"base_top1", "base_top5"} in percent.

    The head has an output for each class of the data set, as the benchmark's has 1,000 of which 389
    occur. The checkpoint describes its trunk: `weights.initialise.restore(folder)` gives it.
    amp: bfloat16 in the network. save_every: steps. config: the run's options, which may not all
    change when it is resumed.
    """
    if trunk.head == "cosine" and options.aux in ("sgm", "batch_sgm"):
        raise ValueError(f"backbone.aux={options.aux} is of a linear head: set trunk.head=linear.")
    pieces = pieces_of(options)
    seed_everything(seed)
    device = dist.device()
    base = sorted([*images.split.base_1, *images.split.base_2])
    dataset = images.load("train", base, training=True)
    network, report = open_trunk(trunk, len(images.split.names))
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    network.to(device).to(memory_format=layout).train()
    per_epoch = max(1, len(dataset) // options.batch_size)
    steps = options.epochs * per_epoch
    optimizer, schedule = build_optimizer(network, options, per_epoch)
    parts: dict[str, Any] = {"model": network, "optimizer": optimizer, "schedule": schedule}
    parts |= {"trunk": asdict(trunk), "classes": list(images.split.names), "seed": seed}
    parts |= {"images": len(dataset), "batch_size": options.batch_size, "aux": options.aux}
    if not options.per_gpu:
        parts["number of processes"] = dist.world_size()
    if config is not None:
        parts["options"] = config
    start = checkpoint.resume(folder, steps=steps, **parts)
    follow(schedule)
    if dist.is_main():
        print(describe(images, trunk, options, len(dataset), steps, start))
        if report is not None and not start:
            print(report)

    log = Log(folder, steps, every=log_every, start=start)
    objective = dist.wrap(Objective(network, options, amp=amp))
    stream = SampleStream(len(dataset), options.batch_size, seed=seed)
    loader = train_loader(
        dataset,
        stream,
        start,
        steps,
        workers=workers,
        accumulate=pieces,
        cut=True,
    )
    for step, batch in enumerate(steps_of(loader, pieces), start + 1):
        optimizer.zero_grad(set_to_none=True)
        losses = backward(objective, batch, layout, seed, step, name_images(dataset, stream, step))
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        log(step, force=False, **losses, lr=rate)
        stopping = dist.stop_requested()
        if stopping or step % save_every == 0 or step == steps:
            checkpoint.save(folder, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)

    share_buffers(network)
    metrics = evaluate(
        network, images.load("test", base), batch=options.test_batch, workers=workers, amp=amp
    )
    log(steps, force=True, **metrics)
    log.close()
    return metrics


def pieces_of(options: Backbone) -> int:
    """Pieces that a process computes its share of a batch in; ValueError where it does not fit."""
    world, batch = dist.world_size(), options.batch_size
    if not options.per_gpu:
        return 1
    pieces, rest = divmod(batch, world * options.per_gpu)
    if rest:
        raise ValueError(
            f"backbone.batch_size={batch} is no multiple of backbone.per_gpu={options.per_gpu} "
            f"times the {world} processes: give such a one."
        )
    return pieces


def steps_of(loader: Any, pieces: int) -> Iterator[tuple[tuple[Tensor, Tensor], ...]]:
    """The loader's pieces, those of a step together."""
    found = iter(loader)
    while batch := tuple(itertools.islice(found, pieces)):
        yield batch


def backward(
    objective: nn.Module,
    batch: Sequence[tuple[Tensor, Tensor]],
    layout: torch.memory_format,
    seed: int,
    step: int,
    names: list[str],
) -> dict[str, Tensor]:
    """Sum up the gradients of the pieces of a step; their mean losses, without gradient."""
    device, pieces = dist.device(), len(batch)
    totals: dict[str, Tensor] = {}
    for number, (images, labels) in enumerate(batch):
        seed_everything(seed_of(seed, step, dist.rank() * pieces + number))  # for dropout
        images = images.to(device, non_blocking=True, memory_format=layout)
        with summing(objective, last=number == pieces - 1):
            losses = objective(images, labels.to(device, non_blocking=True))
            require_finite(losses, step, names)
            (torch.stack(list(losses.values())).sum() / pieces).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach() / pieces
    return totals


def build_optimizer(network: nn.Module, options: Backbone, per_epoch: int) -> tuple[SGD, LambdaLR]:
    """SGD, all parameters decayed as in the authors' code, and its schedule."""
    optimizer = SGD(
        network.parameters(),
        options.lr,
        options.momentum,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
    )
    if options.schedule == "one_cycle":
        return optimizer, one_cycle(optimizer, options.epochs * per_epoch)
    return optimizer, LambdaLR(optimizer, partial(_factor, options=options, per_epoch=per_epoch))


def _factor(done: int, *, options: Backbone, per_epoch: int) -> float:
    """Factor on the rate after `done` steps: the warm-up's is constant."""
    epoch = done // per_epoch
    if epoch < options.warmup_epochs:
        return options.warmup_lr / options.lr
    return options.gamma ** (epoch // options.drop_every)


def summing(objective: nn.Module, *, last: bool) -> AbstractContextManager:
    """Gradients stay on this process until those of its last piece are there."""
    if last or not isinstance(objective, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return objective.no_sync()


def name_images(dataset: ImageSet, stream: SampleStream, step: int) -> list[str]:
    """Files of this process's share of a step, from 1: for a loss that is not finite."""
    share = stream.share(step - 1, dist.rank(), dist.world_size())
    return [str(dataset.files[index]) for _, index in share]


def share_buffers(network: nn.Module) -> None:
    """Give all processes the running statistics of the first, which are those that are saved."""
    for buffer in network.buffers():
        buffer.copy_(dist.total(buffer * dist.is_main()))


@torch.no_grad()
def evaluate(
    network: Network, dataset: ImageSet, *, batch: int, workers: int = 0, amp: bool = False
) -> dict[str, float]:
    """Top-1 and top-5 of the head, over all its outputs, in percent."""
    network.eval()
    accuracy, device = Accuracy(), dist.device()
    for pixels, labels in eval_loader(dataset, batch, workers=workers):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = network(pixels.to(device, non_blocking=True))
        accuracy.add(logits.float(), labels.to(device))
    return {f"base_{name}": value for name, value in accuracy.compute().items()}


def describe(
    images: Images, trunk: Trunk, options: Backbone, count: int, steps: int, start: int
) -> str:
    """The header of the run."""
    base = len(images.split.base_1) + len(images.split.base_2)
    aux = options.aux
    if aux != "none":
        aux += f" x {options.aux_weight or AUX_WEIGHTS[aux]:g}"
    return (
        f"{trunk.name}, {trunk.head} head of {len(images.split.names)} outputs, on {count} images "
        f"of the {base} base classes of {images.name}; auxiliary loss: {aux}; {steps} steps"
        + (f", from {start} on." if start else ".")
    )
