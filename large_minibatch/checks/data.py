"""The doctor's checks of learning rates and of what is read: Sec. 2.1, 2.2, Remark 4, evaluation.

Each takes the loop and returns whether it has the pitfall, and a sentence with the numbers; it
raises NotExamined where it cannot tell.
"""

import math
import warnings
from collections import Counter

import torch

from ..recipe import Schedule, reference_lr
from .probe import require_optimizer
from .subject import Loop, LoopError, NotExamined, Subject, call

Verdict = tuple[bool, str]  # found, sentence
CLOSE = 1e-5  # relative, of two rates that are the same


def linear_rule(loop: Loop) -> Verdict:
    """Sec. 2.1: the rate after the warm-up follows the batch linearly."""
    subject = loop.fresh()
    if subject.batch_size is None:
        raise NotExamined("`batch_size` is not given.")
    sizes = [subject.batch_size]
    if loop.sized:
        sizes = [subject.batch_size * k for k in (1, 2, 8)]
    elif subject.batch_size == subject.base_batch:
        raise NotExamined("batch_size is base_batch: let build() take `batch_size`.")
    said, found = [], False
    for size in sizes:
        subject = loop.fresh(size)
        if subject.batch_size != size:
            raise LoopError(f"build(batch_size={size}) returned batch_size={subject.batch_size}.")
        peak = max(_rates(subject, _rise(subject)) or [_rate(subject)])
        expected = reference_lr(size, base=subject.base_lr, base_batch=subject.base_batch)
        found = found or not _close(peak, expected)
        said.append(f"{peak:.4g} at kn = {size} ({expected:.4g} expected)")
    return found, f"The rate reaches {', '.join(said)}."


def warmup(loop: Loop) -> Verdict:
    """Sec. 2.2: gradual, from the reference rate, by a constant every iteration."""
    subject = loop.fresh()
    rates = _require_rates(subject, _rise(subject))
    plan = _plan(subject, max(rates))
    T_w = plan.warmup_steps
    if not T_w:
        worst = max(rates, key=lambda rate: abs(rate - plan.peak))
        steady = _close(worst, plan.peak)
        if steady and (subject.batch_size or 0) > subject.base_batch and subject.warmup_epochs:
            raise NotExamined(f"the rate never leaves {worst:.4g}: see the linear scaling rule.")
        return (
            not steady,
            f"No warm-up is due: a rate is {worst:.4g}, {plan.peak:.4g} expected.",
        )
    ramp = rates[:T_w]
    if all(_close(rate, plan.peak) for rate in ramp):
        return True, f"No warm-up: the first rate is {ramp[0]:.4g}, {plan.start:.4g} expected."
    if all(_close(rate, ramp[0]) for rate in ramp):
        return True, (
            f"A constant warm-up: the rate is {ramp[0]:.4g} for {T_w} steps, then jumps; 1 step "
            "expected."
        )
    symptoms = _ramp_symptoms(subject, plan, rates)
    if symptoms:
        return True, "; ".join(symptoms) + "."
    return False, f"The rate rises from {ramp[0]:.4g} to {plan.peak:.4g} in {T_w} steps, as it is."


def _ramp_symptoms(subject: Subject, plan: Schedule, rates: list[float]) -> list[str]:
    """What is wrong with a rate that rises somehow."""
    T_w, ramp, n = plan.warmup_steps, rates[: plan.warmup_steps], plan.steps_per_epoch
    found = []
    epochs = [ramp[i : i + n] for i in range(0, T_w, n)]
    per_epoch = n > 1 and all(_close(min(e), max(e)) for e in epochs)
    if per_epoch:
        found.append(f"the rate changes {len(epochs)} times in the warm-up, {T_w} expected")
    if not _close(ramp[0], plan.start):
        one = subject.base_lr * subject.group / subject.base_batch
        note = f", that of one GPU with {subject.group} images" if _close(ramp[0], one) else ""
        found.append(f"the first rate is {ramp[0]:.4g}{note}, {plan.start:.4g} expected")
    reached = next(step for step, rate in enumerate(rates) if _close(rate, plan.peak))
    if reached != T_w:
        found.append(f"the rate reaches {plan.peak:.4g} at step {reached}, {T_w} expected")
    if not found:
        step = max(range(T_w), key=lambda t: abs(rates[t] / plan.lr(t) - 1))
        if not _close(rates[step], plan.lr(step)):
            found.append(f"step {step} has rate {rates[step]:.4g}, {plan.lr(step):.4g} expected")
    return found


def schedule(loop: Loop) -> Verdict:
    """Sec. 2.2, 5.1: after the warm-up the normal schedule, counted from the start."""
    subject = loop.fresh()
    rates = _require_rates(subject, subject.epochs)
    plan = _plan(subject, max(rates))
    if plan.kind == "step":
        return _drops(plan, rates)
    steps = range(math.ceil(plan.warmup_epochs * plan.steps_per_epoch) + 1, plan.steps)
    if not steps:
        raise NotExamined("the training ends with the warm-up.")
    worst = max(steps, key=lambda t: abs(rates[t] - plan.lr(t)))
    text = f"At epoch {worst / plan.steps_per_epoch:.2f} the rate is {rates[worst]:.4g}, "
    wrong = abs(rates[worst] - plan.lr(worst)) > 1e-3 * plan.peak
    return wrong, text + f"{plan.lr(worst):.4g} expected."


def _drops(plan: Schedule, rates: list[float]) -> Verdict:
    """Whether the rate falls where and by what it is meant to."""
    n = plan.steps_per_epoch
    top = next(step for step, rate in enumerate(rates) if _close(rate, plan.peak))
    falls = [t for t in range(top + 1, len(rates)) if rates[t] < rates[t - 1] * (1 - CLOSE)]
    planned = [step for step in (round(m * n) for m in plan.milestones) if step < plan.steps]
    due = ", ".join(f"{step / n:g}" for step in planned) or "none"
    if falls == planned:
        factors = [rates[t] / rates[t - 1] for t in falls]
        worst = max(factors, key=lambda f: abs(f - plan.factor), default=plan.factor)
        text = f"The rate falls at epochs {due}, as it is meant to, by {worst:.3g}, "
        return not math.isclose(worst, plan.factor, rel_tol=1e-3), text + f"{plan.factor} expected."
    shifted = [round(step + plan.warmup_epochs * n) for step in planned]
    note = ": counted from the end of the warm-up" if falls and falls == shifted else ""
    said = ", ".join(f"{step / n:.4g}" for step in falls[:5]) or "none"
    more = ", ..." if len(falls) > 5 else ""
    return True, f"The rate falls at epochs {said}{more}; {due} expected{note}."


def _rate(subject: Subject) -> float:
    """Rate that the next step would use."""
    return float(require_optimizer(subject).param_groups[0]["lr"])


def _rise(subject: Subject) -> float:
    """Epochs within which the rate must have reached its peak, however slowly it rises."""
    longest = 3 * subject.warmup_epochs + 2
    drops = subject.milestones if subject.kind == "step" else ()
    return max(subject.warmup_epochs + 1, min([longest, *drops]))


def _rates(subject: Subject, epochs: float) -> list[float]:
    """Rate of each step of the first `epochs`; empty where the schedule is not given."""
    if subject.before_step is subject.after_step is subject.after_epoch is None:
        return []
    n = subject.steps_per_epoch
    if n is None or n < 1:
        raise NotExamined("`steps_per_epoch` is not given.")
    found = []
    epochs = min(epochs, subject.epochs)
    with warnings.catch_warnings():
        # The schedule is walked through without steps of the optimizer.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for step in range(round(epochs * n)):
            epoch, iteration = divmod(step, n)
            if subject.before_step is not None:
                call(subject, "before_step", epoch, iteration)
            found.append(_rate(subject))
            if subject.after_step is not None:
                call(subject, "after_step")
            if subject.after_epoch is not None and iteration == n - 1:
                call(subject, "after_epoch")
    return found


def _require_rates(subject: Subject, epochs: float) -> list[float]:
    """The same; NotExamined where the schedule is not given."""
    rates = _rates(subject, epochs)
    if not rates:
        raise NotExamined("none of `before_step`, `after_step` and `after_epoch` is given.")
    if not all(math.isfinite(rate) for rate in rates) or max(rates) <= 0:
        raise NotExamined(f"the rates go up to {max(rates)}.")
    return rates


def _plan(subject: Subject, peak: float) -> Schedule:
    """The schedule that is meant, with the loop's own peak: the linear rule is another check."""
    assert subject.steps_per_epoch is not None
    needed = subject.warmup_epochs > 0 and not _close(peak, subject.base_lr)
    return Schedule(
        peak=peak,
        steps_per_epoch=subject.steps_per_epoch,
        epochs=subject.epochs,
        warmup="gradual" if needed else "none",
        warmup_epochs=subject.warmup_epochs,
        start=subject.base_lr,
        kind=subject.kind,
        milestones=subject.milestones,
        factor=subject.factor,
    )


def _close(first: float, second: float) -> bool:
    """Whether two rates are the same but for rounding."""
    return math.isclose(first, second, rel_tol=CLOSE, abs_tol=1e-12)


def new_order(loop: Loop) -> Verdict:
    """Remark 4: each epoch has an order of its own."""
    subject = loop.fresh()
    first, second = (_join(_epoch(subject, 4, epoch)) for epoch in (0, 1))
    same = sum(a == b for a, b in zip(first, second, strict=False)) / max(1, len(first))
    text = f"Epochs 0 and 1 agree in {100 * same:.3g} % of their positions, about "
    return same > 0.5, text + f"{100 / max(1, len(first)):.2g} % expected."


def one_shuffle(loop: Loop) -> Verdict:
    """Remark 4: the whole set is shuffled and then divided, not each shard by itself."""
    subject = loop.fresh()
    world = 4
    first, second = (_epoch(subject, world, epoch) for epoch in (0, 1))
    if first == second:
        raise NotExamined("all epochs have the same order.")
    kept = [len(set(a) & set(b)) / max(1, len(set(a))) for a, b in zip(first, second, strict=True)]
    share = sum(kept) / world
    text = f"{100 * share:.3g} % of a worker's images in epoch 0 are its own again in epoch 1, "
    # Halfway to fixed shards; images that all workers read are the next check's.
    distinct = len(set(_join(first))) / max(1, len(_join(first)))
    return share * distinct > (1 + 1 / world) / 2, text + f"about {100 / world:.0f} % expected."


def once(loop: Loop) -> Verdict:
    """Remark 4: an epoch has each image at most once, and only a last batch's worth is left out."""
    subject = loop.fresh()
    size = _size(subject, "examples")
    spare = max(subject.batch_size or 0, 8)
    text = ""
    for world in _worlds(size):
        twice, missing = _tally(_join(_epoch(subject, world, 0)), size)
        text = f"In an epoch of {world} workers {twice} of {size} reads are repeated, 0 expected"
        if twice:
            cause = "padding" if twice < world else "the workers draw by themselves"
            return True, f"{text}: {cause}."
        if missing >= spare:
            text = f"An epoch of {world} workers leaves out {missing} of {size} images"
            return True, f"{text}, less than {spare} expected."
        text += f"; {missing} images are left out, less than {spare} expected."
    return False, text


def evaluation_once(loop: Loop) -> Verdict:
    """Each image of the validation set counts exactly once, for any number of workers."""
    subject = loop.fresh()
    size = _size(subject, "eval_examples")
    text = ""
    for world in (1, *_worlds(size)):
        parts = [call(subject, "eval_indices", rank, world) for rank in range(world)]
        twice, missing = _tally([int(index) for part in parts for index in part], size)
        text = (
            f"With {world} workers {twice} of {size} validation images are counted again and "
            f"{missing} left out, 0 and 0 expected."
        )
        if twice or missing:
            return True, text
    return False, text


def evaluation_mean(loop: Loop) -> Verdict:
    """The score is a mean over images, not over batches of different sizes."""
    right = torch.eye(2)[[0, 0, 0, 0]], torch.zeros(4, dtype=torch.long)
    wrong = torch.eye(2)[[0]], torch.ones(1, dtype=torch.long)
    value = float(call(loop.fresh(), "score", [right, wrong]))
    share = value / 100 if value > 1 else value
    expected = 0.8 if abs(share - 0.8) <= abs(share - 0.2) else 0.2
    text = f"4 right images in a batch and 1 wrong in the next score {value:.4g}, "
    return abs(share - expected) > 1e-4, text + "80 % (error: 20 %) expected."


def _size(subject: Subject, part: str) -> int:
    size = getattr(subject, part)
    if size is None:
        raise NotExamined(f"`{part}` is not given.")
    return size


def _worlds(size: int) -> list[int]:
    """4 workers, and the fewest that do not divide the set."""
    return [4, next(world for world in range(2, size + 2) if size % world)]


def _epoch(subject: Subject, world: int, epoch: int) -> list[list[int]]:
    """Indices that each worker reads in an epoch."""
    found = [list(map(int, call(subject, "indices", rank, world, epoch))) for rank in range(world)]
    if not any(found):
        raise NotExamined("`indices` gives none.")
    return found


def _join(lists: list[list[int]]) -> list[int]:
    return [index for one in lists for index in one]


def _tally(indices: list[int], size: int) -> tuple[int, int]:
    """Reads beyond the first of an image, and images of 0..size-1 never read."""
    counts = Counter(indices)
    strange = [index for index in counts if not 0 <= index < size]
    if strange:
        raise LoopError(f"Index {strange[0]} is read, but the set has images 0 to {size - 1}.")
    return len(indices) - len(counts), size - len(counts)
