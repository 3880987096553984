"""A loop without pitfalls, shown to the doctor: `python doctor.py example`."""

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from large_minibatch.checks.subject import Subject
from large_minibatch.model import resnet
from large_minibatch.recipe import Schedule, reference_lr
from large_minibatch.sgd import MomentumSGD, decay_split

EXAMPLES, VALIDATION = 50_021, 1_003
PER_FORWARD = 64
Batch = tuple[Tensor, Tensor]


def build(batch_size: int = 1024) -> Subject:
    """A new loop with a global batch of `batch_size`; every call makes new weights."""
    network = resnet("mini", num_classes=10, group=32)
    model = DistributedDataParallel(network) if distributed.is_initialized() else network
    optimizer = MomentumSGD(decay_split(network, 1e-4), lr=0.1, momentum=0.9, nesterov=True)
    steps = EXAMPLES // batch_size
    schedule = Schedule(peak=reference_lr(batch_size), steps_per_epoch=steps)

    def accumulate(batches: list[Batch]) -> None:
        """One optimizer step on several micro-batches of equal size."""
        optimizer.zero_grad()
        for images, labels in batches:
            (F.cross_entropy(model(images), labels) / len(batches)).backward()
        optimizer.step()

    def share(batch: Batch) -> None:
        """One optimizer step on all images of a process."""
        images, labels = (part.split(PER_FORWARD) for part in batch)
        accumulate(list(zip(images, labels, strict=True)))

    def set_rate(epoch: int, iteration: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(epoch * steps + iteration)

    def indices(rank: int, world: int, epoch: int) -> list[int]:
        """What worker `rank` reads: a part of one permutation of the whole set."""
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))
        return order[: EXAMPLES // world * world][rank::world].tolist()

    def score(batches: list[Batch]) -> float:
        """Top-1 error in percent."""
        wrong = sum(int((logits.argmax(1) != labels).sum()) for logits, labels in batches)
        return 100 * wrong / sum(len(labels) for _, labels in batches)

    return Subject(
        model=model,
        optimizer=optimizer,
        step=lambda batch: accumulate([batch]),
        accumulate=accumulate,
        share=share,
        per_process=4 * PER_FORWARD,
        distributed=True,
        per_forward=PER_FORWARD,
        shape=(3, 16, 16),
        batch_size=batch_size,
        steps_per_epoch=steps,
        before_step=set_rate,
        indices=indices,
        examples=EXAMPLES,
        eval_indices=lambda rank, world: range(rank, VALIDATION, world),
        eval_examples=VALIDATION,
        score=score,
    )
