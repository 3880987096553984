"""Measuring a training step from outside: weights before and after against its gradients.

A first step of momentum SGD changes the weights by -(a g + b w): g gradient of the mean loss, w the
weights. Least squares gives a and b, and one such number for each batch of a step on several.
Tensors of a model are dicts from the parameter's name; the fits run in float64.
"""

import copy
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .subject import Batch, Loop, NotExamined, Subject, call, guard, seed

Tensors = dict[str, Tensor]
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
RESIDUAL = 0.02  # share of a step that its gradients may leave unexplained


def bare(model: nn.Module) -> nn.Module:
    """The user's model without DistributedDataParallel, DataParallel or torch.compile around."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Normalisations with batch statistics, by name: what keeps a `running_mean`."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "running_mean") and not isinstance(module, INSTANCE_NORMS)
    }


def require_model(subject: Subject) -> nn.Module:
    """The model without wrappers; NotExamined where there is none."""
    if subject.model is None:
        raise NotExamined("`model` is not given.")
    return bare(subject.model)


def require_optimizer(subject: Subject) -> Optimizer:
    """The optimizer; NotExamined where there is none."""
    if subject.optimizer is None:
        raise NotExamined("`optimizer` is not given.")
    return subject.optimizer


def prepare(loop: Loop) -> Subject:
    """A fresh subject in training mode, gamma and beta of its BN away from 0, 1 and one another."""
    subject = loop.fresh()
    require_optimizer(subject)
    model = require_model(subject)
    seed(1)
    with torch.no_grad():
        for norm in batch_norms(model).values():
            if isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor):
                norm.weight.copy_(0.5 + torch.rand(norm.weight.shape))
                norm.bias.copy_(0.2 * torch.randn(norm.bias.shape))
    assert subject.model is not None
    subject.model.train()
    return subject


def batch_of(subject: Subject, count: int, number: int = 0) -> Batch:
    """The `number`-th synthetic batch of `count` images, on the model's device."""
    seed(100 + number)
    if subject.batch is not None:
        return call(subject, "batch", count)
    first = next(require_model(subject).parameters(), torch.zeros(0))
    images = torch.randn(count, *subject.shape, dtype=first.dtype)
    labels = torch.randint(subject.classes, (count,))
    return images.to(first.device), labels.to(first.device)


def weights(subject: Subject) -> Tensors:
    """Copy of the trained parameters."""
    named = require_model(subject).named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def gradient(subject: Subject, batch: Batch) -> Tensors:
    """Gradient of the mean loss of `batch`; nothing of the subject changes."""
    model = guard("Copying the model", copy.deepcopy, require_model(subject))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    seed(2)
    with torch.enable_grad():
        loss = call(subject, "loss", model, batch)
        backward = partial(torch.autograd.grad, loss, list(named.values()), allow_unused=True)
        found = guard("The backward of loss()", backward)
    return {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def set_rate(subject: Subject, rate: float) -> None:
    """Let the next step use learning rate `rate`; groups keep their proportions."""
    if subject.set_lr is not None:
        call(subject, "set_lr", rate)
        return
    groups = require_optimizer(subject).param_groups
    first = float(groups[0]["lr"])
    for group in groups:
        value = rate * float(group["lr"]) / first if first else rate
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def change(subject: Subject, part: str, argument: Batch, *, rate: float = 1.0) -> Tensors:
    """Weights before minus weights after one call of `step`, `accumulate` or `workers`."""
    set_rate(subject, rate)
    before = weights(subject)
    seed(2)
    call(subject, part, argument)
    after = weights(subject)
    return {name: before[name] - after[name] for name in before}


def fit(moved: Tensors, causes: list[Tensors], names: Iterable[str]) -> list[float]:
    """Numbers a_i with `moved` = sum_i a_i causes_i over the parameters `names`, least squares.

    NotExamined where the causes do not explain the movement.
    """
    columns = [*causes, moved]
    gram = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    for name in names:
        values = torch.stack([column[name].detach().flatten().cpu() for column in columns])
        gram += values.double() @ values.double().T
    scale = gram.diagonal().sqrt()
    if scale[-1] == 0:
        raise NotExamined("the step does not change these weights.")
    if not torch.isfinite(scale).all():
        raise NotExamined("the weights are not finite after the step.")
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    gram = gram / scale / scale[:, None]
    found = torch.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1:], driver="gelsd").solution[:, 0]
    left = (1 - found @ gram[:-1, -1]).clamp(min=0).sqrt()
    if left > RESIDUAL:
        raise NotExamined(
            f"{100 * left:.0f} % of the step is not explained by the gradient of `loss`: pass the "
            "loss of your loop, and its step with SGD in float32, without clipping."
        )
    return (found * scale[-1] / scale[:-1]).tolist()


def matrices(tensors: Tensors) -> list[str]:
    """Names of convolution and linear weights, which everybody decays."""
    return [name for name, value in tensors.items() if value.dim() >= 2]


def decay_of(subject: Subject, names: Iterable[str]) -> float:
    """Weight decay that is meant for `names`: the subject's own or that of the optimizer's groups.

    NotExamined where there is none, or several.
    """
    if subject.weight_decay is not None:
        found = {subject.weight_decay}
    else:
        named = dict(require_model(subject).named_parameters())
        ids = {id(named[name]) for name in names}
        found = {
            float(group.get("weight_decay", 0.0))
            for group in require_optimizer(subject).param_groups
            if any(id(parameter) in ids for parameter in group["params"])
        }
    if len(found) != 1 or found == {0.0}:
        raise NotExamined(f"the weight decay of the weights is {sorted(found)}: `weight_decay`?")
    return found.pop()
