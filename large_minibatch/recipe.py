"""The paper in one file: which learning rate, and how a minibatch is computed. Read this first.

Notation: k workers with n images each, so kn images a minibatch; eta the learning rate.

k steps of minibatch SGD with n images each (Eq. 3) and one step with all kn of them (Eq. 4),

    w - eta      1/n  sum_j sum_x grad l(x, w_j)        j < k, x in minibatch j
    w - eta_hat 1/(kn) sum_j sum_x grad l(x, w)

agree if the gradient changes little in between *and* eta_hat = k eta. Hence the

    linear scaling rule: a minibatch k times as large takes k times the learning rate

with everything else as it was: epochs, weight decay, momentum, and n. It fails where the gradient
does change. Early in training it changes fast, and the remedy is the warm-up: start at the rate of
the small minibatch and raise it a little at *every iteration* (Sec. 2.2). Later it fails only for
very large minibatches, above about 8k images on ImageNet (Fig. 1), and for this there is no remedy.

What a change of kn must leave alone: n, the images that share their batch-norm statistics, because
it belongs to the loss (Sec. 2.3); the weight decay, so scale the rate and not the loss (Remark 1,
`sgd.py`); the mean over all kn images, so divide a forward's mean by `Plan.accumulation` and let
the processes average (Remark 3); one shuffle of the whole set per epoch (Remark 4).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import Optimizer


def reference_lr(
    batch_size: int, *, base: float = 0.1, base_batch: int = 256, rule: str = "linear"
) -> float:
    """Learning rate eta_ref of a minibatch of kn = `batch_size` images, Sec. 2.1 and 5.1.

    `base` is the rate of a minibatch of `base_batch`. `rule`: "linear", the paper's; "sqrt" and
    "fixed" are the ones that fail in Table 2a.
    """
    if batch_size < 1 or base_batch < 1:
        raise ValueError(f"batch_size={batch_size}, base_batch={base_batch}: give 1 or more each.")
    if base <= 0:
        raise ValueError(f"base={base} is no learning rate: give a number above 0.")
    k = batch_size / base_batch
    match rule:
        case "linear":
            return base * k
        case "sqrt":
            return base * math.sqrt(k)
        case "fixed":
            return base
    raise ValueError(f'rule="{rule}" is unknown: choose linear, sqrt or fixed.')


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate of every optimizer step, in closed form: nothing to save, nothing to resume.

    All times are in epochs from the start of training, warm-up included (Sec. 5.1); they may be
    fractions and are rounded to whole steps. Where the peak is no higher than `start` (kn <= 256
    in the paper) there is no warm-up. Milestones after the last epoch are never reached.
    """

    peak: float  # eta_ref, the rate after the warm-up
    steps_per_epoch: int
    epochs: float = 90.0
    warmup: str = "gradual"  # gradual: rises by a constant per step | constant | none; Table 1
    warmup_epochs: float = 5.0
    start: float = 0.1  # rate of the first step: eta_ref of kn = 256, not of one GPU
    kind: str = "step"  # step | cosine | linear: the last two fall to 0 at the end
    milestones: Sequence[float] = (30, 60, 80)  # epochs, of "step"
    factor: float = 0.1  # on the rate at each milestone

    def __post_init__(self) -> None:
        _choose("warmup", self.warmup, ("gradual", "constant", "none"))
        _choose("kind", self.kind, ("step", "cosine", "linear"))
        if self.peak <= 0 or self.start < 0:
            raise ValueError(
                f"peak={self.peak}, start={self.start}: give a peak above 0, a start of 0 or more."
            )
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"steps_per_epoch={self.steps_per_epoch}: an epoch needs one step or more; take a "
                "smaller batch or more data."
            )
        if self.epochs < 0 or self.warmup_epochs < 0:
            raise ValueError(
                f"epochs={self.epochs}, warmup_epochs={self.warmup_epochs}: give 0 or more each."
            )
        drops = list(self.milestones)
        if drops != sorted(set(drops)) or any(drop <= 0 for drop in drops):
            raise ValueError(f"milestones={drops} must be ascending epochs above 0.")
        if self.kind == "step" and drops and self.warmup_steps > self._at(drops[0]):
            raise ValueError(
                f"The rate drops at epoch {drops[0]:g}, within the warm-up of "
                f"{self.warmup_epochs:g} epochs: move the milestone or shorten the warm-up."
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self._at(self.epochs)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps T_w of the warm-up; 0 where there is none."""
        needed = self.warmup != "none" and self.peak > self.start
        return self._at(self.warmup_epochs) if needed else 0

    def lr(self, step: int) -> float:
        """Rate of the optimizer step number `step` = 0, 1, 2, ...

        Gradual warm-up, Sec. 2.2: start + (peak - start) step / T_w. Steps after the last one keep
        the rate that "step" ended with, or 0.
        """
        if step < 0:
            raise ValueError(f"step={step}: steps count from 0.")
        T_w = self.warmup_steps
        if step < T_w:
            rise = step / T_w if self.warmup == "gradual" else 0.0
            return self.start + (self.peak - self.start) * rise
        if self.kind == "step":
            drops = sum(step >= self._at(epoch) for epoch in self.milestones)
            return self.peak * self.factor**drops
        # Others' schedules, for comparison; both count from the end of the warm-up.
        done = min(1.0, (step - T_w) / max(1, self.steps - T_w))
        if self.kind == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * (1 - done)

    def _at(self, epoch: float) -> int:
        """First step of an epoch."""
        return round(epoch * self.steps_per_epoch)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of every parameter group to `lr` times its "lr_scale" (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an optimizer step of `batch_size` images is computed; made by `plan`.

    Each process takes `per_process` images, in `accumulation` forwards of `per_forward`, each of
    one or more whole groups of `group` images. The paper had one group a GPU, and simulated more
    GPUs than it had by accumulation (Sec. 5.1, kn >= 12k); the gradient is the same.
    """

    batch_size: int  # kn
    processes: int
    group: int  # n, images that share their batch-norm statistics
    workers: int  # k = batch_size / group
    per_process: int
    per_forward: int
    accumulation: int
    steps_per_epoch: int  # rounded down: the tail of an epoch is dropped


def plan(
    *, examples: int, batch_size: int, processes: int = 1, group: int = 32, per_forward: int = 256
) -> Plan:
    """Share out a minibatch of `batch_size` images, kn, of a training set of `examples`.

    `group` is n of Sec. 2.3; a minibatch smaller than it is one group by itself. `per_forward`
    is the most images that a process computes at a time; the plan takes the largest whole number
    of groups up to it that divides the share of a process.

    Raises ValueError, naming batch sizes that do work, where the shares do not come out even.
    """
    sizes = {"examples": examples, "batch_size": batch_size, "processes": processes}
    for name, value in (sizes | {"group": group, "per_forward": per_forward}).items():
        if value < 1:
            raise ValueError(f"{name}={value}: give 1 or more.")
    n = min(group, batch_size)
    advice = _that_work(batch_size, processes, group, examples)
    if batch_size > examples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the training set of {examples}: {advice}."
        )
    if batch_size % processes:
        raise ValueError(
            f"batch_size={batch_size} cannot be shared equally by {processes} processes: {advice}."
        )
    per_process = batch_size // processes
    if per_process % n:
        raise ValueError(
            f"group={n} does not divide the {per_process} images of a process "
            f"(batch_size={batch_size} over {processes}): {advice}, or choose another group."
        )
    if per_forward < n:
        raise ValueError(
            f"per_forward={per_forward} is less than a group of {n}, whose images share their "
            f"batch-norm statistics: set per_forward={n} or more."
        )
    groups = per_process // n
    together = max(d for d in range(1, min(groups, per_forward // n) + 1) if groups % d == 0)
    return Plan(
        batch_size=batch_size,
        processes=processes,
        group=n,
        workers=batch_size // n,
        per_process=per_process,
        per_forward=together * n,
        accumulation=groups // together,
        steps_per_epoch=examples // batch_size,
    )


def median_of_last(values: Sequence[float], n: int = 5) -> float:
    """Median of the last `n` values, or of all if there are fewer: the error of a run, Sec. 5.1.

    `values` are one per epoch. NaN where one of those counted is NaN.
    """
    if not values or n < 1:
        raise ValueError(f"No median of the last {n} of {len(values)} values: give 1 or more.")
    last = list(values)[-n:]
    return math.nan if any(math.isnan(value) for value in last) else statistics.median(last)


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (N - 1 in the denominator) over runs, as in the tables.

    The deviation of a single run is NaN.
    """
    if not values:
        raise ValueError("No mean of no runs: give one value or more.")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Stop where `value` is not among the `choices`."""
    if value not in choices:
        raise ValueError(f'{name}="{value}" is unknown: choose {", ".join(choices)}.')


def _that_work(batch_size: int, processes: int, group: int, examples: int) -> str:
    """Advice: the batch sizes around `batch_size` that these processes and the data set allow."""
    unit = processes * group
    below = min(batch_size, examples) // unit * unit
    sizes = [size for size in (below, below + unit) if 0 < size <= examples]
    if batch_size > examples and sizes:
        return f"the largest that works is {sizes[-1]}"
    if sizes:
        return f"the nearest that works is {' or '.join(map(str, sizes))}"
    if processes == 1:  # fewer images than a group: they are one group
        return f"the largest that works is {examples}"
    fewer = max(1, examples // group)
    fit = fewer * group if group <= examples else examples
    return (
        f"{processes} processes with groups of {group} need {unit} images or more; the largest "
        f"that works is {fit} with processes={fewer}"
    )
