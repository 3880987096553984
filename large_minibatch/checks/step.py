"""The doctor's checks of the training step and the model: Remarks 1-3, Sec. 2.3 and 5.1.

Each takes the loop and returns whether it has the pitfall, and a sentence with the numbers; it
raises NotExamined where it cannot tell.
"""

import copy

import torch
from torch import Tensor, nn

from . import workers
from .probe import (
    batch_norms,
    batch_of,
    change,
    decay_of,
    fit,
    gradient,
    matrices,
    prepare,
    require_model,
    require_optimizer,
    weights,
)
from .subject import Loop, NotExamined, Subject, guard

Verdict = tuple[bool, str]  # found, sentence
TOLERANCE = 0.02  # relative, of what is measured with weights in float32
MICRO_BATCHES = 4


def decay_scale(loop: Loop) -> Verdict:
    """Remark 1: weight decay and gradient must stand in the proportion lambda."""
    subject = prepare(loop)
    before = weights(subject)
    names = matrices(before)
    decay = decay_of(subject, names)
    batch = batch_of(subject, subject.group)
    slope = gradient(subject, batch)
    a, b = fit(change(subject, "step", batch), [slope, before], names)
    if a <= 0:
        return True, f"The step goes along the gradient times {-a:.3g}, it must go against it."
    scale = decay * a / b if b > 0 else float("inf")
    text = (
        f"Per unit of gradient the step decays the weights by {b / a:.3g}, {decay:.3g} expected: "
        f"the gradient is {scale:.3g} times that of the mean loss, 1 expected."
    )
    return abs(b / a / decay - 1) > TOLERANCE, text


def norm_decay(loop: Loop) -> Verdict:
    """Sec. 5.1: gamma and beta of BN are not decayed."""
    subject = prepare(loop)
    before = weights(subject)
    decay = decay_of(subject, matrices(before))
    norms = batch_norms(require_model(subject))
    names = [f"{n}.{p}".lstrip(".") for n in norms for p in ("weight", "bias")]
    names = [name for name in names if name in before]
    if not names:
        raise NotExamined("the model trains no gamma or beta of batch normalisation.")
    batch = batch_of(subject, subject.group)
    slope = gradient(subject, batch)
    moved = change(subject, "step", batch)
    a, _ = fit(moved, [slope, before], matrices(before))
    _, b = fit(moved, [slope, before], names)
    text = f"Gamma and beta of {len(norms)} BN are decayed by {abs(b / a):.2g}, 0 expected."
    if abs(b / a) < 0.1 * decay:
        return False, f"Gamma and beta of {len(norms)} BN are not decayed, the weights by {decay}."
    return True, text


def momentum_correction(loop: Loop) -> Verdict:
    """Remark 2: after a change of the rate, momentum counts at the new rate."""
    low, high = 0.1, 1.0
    optimizer = require_optimizer(prepare(loop))
    if getattr(optimizer, "defaults", {}).get("momentum", 1) == 0:
        raise NotExamined("the optimizer has no momentum.")
    constant, new = _second_step(loop, low, low), _second_step(loop, low, high)
    if abs(constant[0]) < 0.05 * abs(constant[1]):
        raise NotExamined("the optimizer has no momentum.")
    if abs(new[1] / constant[1] / (high / low) - 1) > TOLERANCE:
        raise NotExamined("a change of the rate does not change the step: give `set_lr`.")
    ratio = new[0] / constant[0]
    text = (
        f"As the rate grows {high / low:g} times, what momentum adds grows {ratio:.3g} times, "
        f"{high / low:g} expected."
    )
    return abs(ratio / (high / low) - 1) > 0.05, text


def _second_step(loop: Loop, first: float, second: float) -> tuple[float, float]:
    """How much the gradients of the first and of the second step count in the second."""
    subject = prepare(loop)
    batches = [batch_of(subject, subject.group, number) for number in range(2)]
    old = gradient(subject, batches[0])
    change(subject, "step", batches[0], rate=first)
    before = weights(subject)
    new = gradient(subject, batches[1])
    moved = change(subject, "step", batches[1], rate=second)
    history, now, _ = fit(moved, [old, new, before], matrices(before))
    return history, now


def accumulation(loop: Loop) -> Verdict:
    """Remark 3: a step on several micro-batches takes the mean of their gradients."""
    return _several(loop, "accumulate", MICRO_BATCHES, "micro-batches")


def aggregation(loop: Loop) -> Verdict:
    """Remark 3: a step of several workers takes the mean of their gradients."""
    subject = loop.fresh()
    if not subject.distributed:
        return _several(loop, "workers", workers.WORKERS, "workers")
    outcome = workers.outcome(loop)
    if outcome.sync:
        raise NotExamined(
            "two processes are examined on a CPU, where SyncBatchNorm does not run: show the loop "
            "with BatchNorm2d for this check."
        )
    if outcome.apart > 1e-6:
        text = f"After a step the weights of two processes differ by {outcome.apart:.2g}, 0"
        return True, f"{text} expected: their gradients are not exchanged."
    if outcome.missing:
        raise NotExamined(outcome.missing)
    return _shares(list(outcome.shares), alone(loop), "workers")


def _several(loop: Loop, part: str, count: int, name: str) -> Verdict:
    """The check of the two above for a part that takes a list of batches."""
    subject = prepare(loop)
    batches = [batch_of(subject, subject.group, number) for number in range(count)]
    slopes = [gradient(subject, batch) for batch in batches]
    before = weights(subject)
    moved = change(subject, part, batches)
    *shares, _ = fit(moved, [*slopes, before], matrices(before))
    return _shares(shares, alone(loop), name)


def alone(loop: Loop) -> float:
    """How much the gradient counts in a step on one batch."""
    subject = prepare(loop)
    before = weights(subject)
    batch = batch_of(subject, subject.group)
    slope = gradient(subject, batch)
    return fit(change(subject, "step", batch), [slope, before], matrices(before))[0]


def _shares(counts: list[float], alone: float, name: str) -> Verdict:
    """Compare how much each of several batches counts with 1/k of a batch by itself."""
    shares = [count / alone for count in counts]
    expected = 1 / len(shares)
    even = max(shares) - min(shares) < TOLERANCE * expected
    measured = f"{shares[0]:.3g}" if even else ", ".join(f"{share:.2f}" for share in shares)
    cause = ""
    if even and abs(shares[0] - 1) < TOLERANCE:
        cause = ": a sum without 1/k"
    elif even and abs(shares[0] / expected**2 - 1) < TOLERANCE:
        cause = ": divided by k twice"
    elif not even:
        cause = ": they do not count alike"
    return (
        any(abs(share / expected - 1) > TOLERANCE for share in shares),
        f"In a step of {len(shares)} {name} each gradient counts {measured} of what it counts "
        f"alone, {expected:.3g} expected{cause}.",
    )


def norm_group(loop: Loop) -> Verdict:
    """Sec. 2.3: how many images share their BN statistics in one call of the model."""
    subject = loop.fresh()
    if subject.per_forward is None:
        raise NotExamined("`per_forward` is not given.")
    model = require_model(subject)
    norms = batch_norms(model)
    if not norms:
        raise NotExamined("the model has no batch normalisation.")
    model.train()
    expected = min(subject.group, subject.per_forward)
    images = batch_of(subject, subject.per_forward)[0]
    influence = _influence(model, images)
    measured = int((influence > 1e-9 * influence.max()).sum())
    text = (
        f"In a call on {subject.per_forward} images the first one's output depends on {measured}, "
        f"n = {expected} expected."
    )
    return measured != expected, text


def _influence(model: nn.Module, images: Tensor) -> Tensor:
    """Size of the derivative of the first image's output by each image (N)."""
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        outputs = guard("model()", model, images)
        if not isinstance(outputs, Tensor):
            raise NotExamined("the model does not return one tensor.")
        first = outputs[0].flatten()
        target = (first * torch.randn(first.shape).to(first)).sum()
        (found,) = guard("The model's backward", torch.autograd.grad, target, images)
    return found.detach().flatten(1).abs().amax(1)


def norm_workers(loop: Loop) -> Verdict:
    """Sec. 2.3: BN statistics are not shared over workers."""
    subject = loop.fresh()
    norms = batch_norms(require_model(subject)).values()
    if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        return True, _SYNC
    if not subject.distributed:
        raise NotExamined("`distributed` is not set.")
    outcome = workers.outcome(loop)
    if outcome.sync:
        return True, _SYNC
    if outcome.missing and not outcome.norms:
        raise NotExamined(outcome.missing)
    if not outcome.norms:
        raise NotExamined("the model has no batch normalisation.")
    text = f"Other images on worker 1 change worker 0's loss by {outcome.leak:.2g}, 0 expected."
    return outcome.leak > 1e-6, text


_SYNC = "The model has SyncBatchNorm: n is all images of all workers, not those of one."


def last_gamma(loop: Loop) -> Verdict:
    """Sec. 5.1, Table 2b: gamma of the last BN of each residual block starts at 0."""
    subject = loop.fresh()
    model = require_model(subject)
    last = [name for name in _last_norms(model) if _dispensable(subject, model, name)]
    if not last:
        raise NotExamined("the model has no residual blocks with batch normalisation.")
    norms = batch_norms(model)
    zero = sum(not torch.as_tensor(norms[name].weight).any() for name in last)
    text = f"Gamma of the last BN starts at 0 in {zero} of {len(last)} residual blocks, all "
    return zero < len(last), text + "expected."


def _last_norms(model: nn.Module) -> list[str]:
    """Names of the last BN in each module that has two or more as its own parts."""
    norms, found = batch_norms(model), []
    for name, _ in model.named_modules():
        prefix = f"{name}." if name else ""
        own = [n for n in norms if n.startswith(prefix) and "." not in n[len(prefix) :]]
        own = [n for n in own if isinstance(getattr(norms[n], "weight", None), Tensor)]
        if len(own) > 1:
            found.append(own[-1])
    return found


def _dispensable(subject: Subject, model: nn.Module, name: str) -> bool:
    """Whether the output depends on the images also where BN `name` gives 0: a shortcut."""
    model = guard("Copying the model", copy.deepcopy, model).eval()
    norm = batch_norms(model)[name]
    assert isinstance(norm.weight, Tensor)
    with torch.no_grad():
        norm.weight.zero_()
        if isinstance(norm.bias, Tensor):
            norm.bias.zero_()
    return bool(_influence(model, batch_of(subject, 2)[0])[0] > 0)


def last_layer(loop: Loop) -> Verdict:
    """Sec. 5.1: the last fully connected layer starts at N(0, 0.01)."""
    model = require_model(loop.fresh())
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise NotExamined("the model has no fully connected layer.")
    weight, bias = linear[-1].weight.detach().float(), linear[-1].bias
    std = float(weight.square().mean().sqrt())
    offset = 0.0 if bias is None else float(bias.detach().abs().max())
    text = f"Weights of the last layer start at {std:.3g} around 0, 0.01 expected; its bias at "
    noise = 5 / (2 * weight.numel()) ** 0.5  # five standard deviations of the estimate
    wrong = abs(std / 0.01 - 1) > max(TOLERANCE, noise) or offset > 0
    return wrong, text + f"{offset:.2g} at most, 0 expected."
