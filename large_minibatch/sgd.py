"""Momentum SGD in its two forms, and what is decayed: Sec. 3 and 5.1.

With the gradient g of the mean loss over the minibatch, weight decay lambda and momentum m:

    form u    u <- m u + (g + lambda w)        w <- w - eta u        Eq. 9, torch.optim.SGD
    form v    v <- m v + eta (g + lambda w)    w <- w - v            Eq. 10, Caffe2 and others

Nesterov momentum steps along m u + (g + lambda w) instead of u, and likewise for v.

Remark 1: eta multiplies the decay too. Scaling the loss is therefore not scaling the rate.
Remark 2: v = eta u as long as eta is constant. When it changes, v still holds the old rate, and
form v must take over its history at the new one, v <- m (eta_new / eta_old) v + eta_new (...):
the momentum correction. Without it a rate that jumps up acts as if it rose only slowly.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.sgd import sgd

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # _NormBase: batch and instance norms
Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class MomentumSGD(Optimizer):
    """SGD with momentum, in form u, equal to torch.optim.SGD bit for bit, or in form v.

    Args:
        params: tensors, or groups of them; every option may differ from group to group.
        lr: learning rate eta, 0 or more; a scheduler may change it at any time.
        momentum: m, 0..1.
        weight_decay: lambda of the L2 penalty, 0 or more.
        nesterov: Nesterov's variant, the paper's; the standard one is as good (Sec. 5.1).
        form: "u" or "v", see the top of this file.
        correction: momentum correction of form v. The buffer is not corrected after a rate of 0,
            which has emptied it.
        fused: one kernel for the whole step where the tensors allow it; the same numbers on a CPU.

    A parameter without gradient is neither moved nor decayed. The last rate is part of the state,
    so a resumed run corrects its momentum exactly as an uninterrupted one.

    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = True,
        form: str = "u",
        correction: bool = True,
        fused: bool = True,
    ) -> None:
        options: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        options |= {"nesterov": nesterov, "form": form, "correction": correction, "fused": fused}
        super().__init__(params, options | {"last_lr": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; ValueError for options out of range."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name}={group[name]}: give 0 or more.")
        if not 0 <= group["momentum"] <= 1:
            raise ValueError(f"momentum={group['momentum']}: choose from 0 to 1.")
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("nesterov=True needs a momentum above 0: set nesterov=False.")
        if group["form"] not in ("u", "v"):
            raise ValueError(f'form="{group["form"]}" is unknown: choose u or v.')

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`, of this class in the same form or, in form u, torch's SGD."""
        saved = state_dict["param_groups"]
        for group, old in zip(self.param_groups, saved, strict=False):
            if group["form"] != old.get("form", "u"):
                raise ValueError(
                    f"The saved momentum is of form {old.get('form', 'u')} and this optimizer of "
                    f"form {group['form']}: set form={old.get('form', 'u')} to go on from it."
                )
            if old.get("dampening", 0) != 0 or old.get("maximize", False):
                raise ValueError(
                    "The saved optimizer used dampening or maximize, which the paper's SGD has "
                    "not: go on with torch.optim.SGD."
                )
        own = {"fused": self.defaults["fused"]}  # a matter of speed, not of state
        groups = [self.defaults | group | own for group in saved]
        super().load_state_dict(state_dict | {"param_groups": groups})
        for group in self.param_groups:
            for parameter in group["params"]:
                buffer = self.state[parameter].get("momentum_buffer")
                if buffer is not None:  # the file may hold another memory format
                    self.state[parameter]["momentum_buffer"] = _laid_out(buffer, parameter)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters; returns what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["form"] == "v" and group["correction"]:
                self._correct(group)
            group["last_lr"] = float(group["lr"])
            self._step(group)
        return loss

    def _correct(self, group: dict[str, Any]) -> None:
        """Remark 2: v <- (eta_new / eta_old) v, for all buffers of a group."""
        old, new = group["last_lr"], group["lr"]
        if not old or new == old:  # no rate yet, or one of 0
            return
        buffers = [self.state[p].get("momentum_buffer") for p in group["params"]]
        buffers = [buffer for buffer in buffers if buffer is not None]
        if buffers:
            torch._foreach_mul_(buffers, float(new / old))

    def _directions(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], float, float]:
        """What enters the buffer, and the decay and the rate to go on with.

        Form v is form u with eta g for g, eta lambda for lambda, and a rate of 1.
        """
        lr, decay = group["lr"], group["weight_decay"]
        if group["form"] == "v":
            return list(torch._foreach_mul(grads, lr)), lr * decay, 1.0
        return grads, decay, lr

    def _step(self, group: dict[str, Any]) -> None:
        """Update one group; parameters whose momentum begins are a call of their own."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        if any(p.grad.is_sparse for p in params):
            raise ValueError("A gradient is sparse: use torch.optim.SGD without weight decay.")
        fused = group["fused"] and all(_fusable(p) for p in params)
        grads = [_laid_out(p.grad, p) if fused else p.grad for p in params]
        directions, decay, lr = self._directions(group, params, grads)
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        for begun in (True, False):
            chosen = [i for i, buffer in enumerate(buffers) if (buffer is not None) == begun]
            if not chosen:
                continue
            kept = [buffers[i] for i in chosen]
            sgd(
                [params[i] for i in chosen],
                [directions[i] for i in chosen],
                kept,
                fused=True if fused else None,  # None: torch chooses between foreach and a loop
                weight_decay=decay,
                momentum=group["momentum"],
                lr=lr,
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
            )
            if group["momentum"] and not begun:
                for i, buffer in zip(chosen, kept, strict=True):
                    self.state[params[i]]["momentum_buffer"] = buffer


class LARS(MomentumSGD):
    """Form u with a rate for every tensor, for minibatches far above 8k. Not in the paper.

    You et al., arXiv 1708.03888: the step g + lambda w of a tensor is multiplied by

        trust |w| / (|g| + lambda |w|)

    or by 1 where |w| or |g| is 0. Biases and batch norm, tensors of one dimension, keep the global
    rate, as in the public 32k recipes. `lr` is therefore many times that of SGD, e.g. 10 to 30.

    # Differs: LARS was published in form v; form u needs no correction where the rate changes.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        nesterov: bool = False,
        trust: float = 0.001,
        fused: bool = True,
    ) -> None:
        if trust <= 0:
            raise ValueError(f"trust={trust}: give a number above 0, e.g. 0.001.")
        super().__init__(
            params,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            fused=fused,
        )
        self.defaults["trust"] = trust
        for group in self.param_groups:
            group.setdefault("trust", trust)

    def _directions(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], float, float]:
        decay = group["weight_decay"]
        directions = torch._foreach_add(grads, params, alpha=decay)
        wide = [i for i, p in enumerate(params) if p.dim() > 1]
        if wide:
            w = torch._foreach_norm([params[i] for i in wide])
            g = torch._foreach_norm([grads[i] for i in wide])
            trust = group["trust"]
            ratios = [_trust_ratio(*norms, trust, decay) for norms in zip(w, g, strict=True)]
            torch._foreach_mul_([directions[i] for i in wide], ratios)
        return list(directions), 0.0, group["lr"]


def _trust_ratio(w: Tensor, g: Tensor, trust: float, decay: float) -> Tensor:
    """Factor of LARS from the norms of a tensor and of its gradient, all scalars."""
    ratio = trust * w / (g + decay * w)
    return torch.where((w > 0) & (g > 0), ratio, 1.0)


def decay_split(
    model: nn.Module, weight_decay: float, *, decay_bn: bool = False, decay_bias: bool = True
) -> list[dict[str, Any]]:
    """Trainable parameters of `model` as two groups, decayed and not decayed; Sec. 5.1.

    gamma and beta of normalisation layers are not decayed, unless `decay_bn`.
    # Unstated: whether other biases are decayed; the paper excepts BN alone, so `decay_bias`.
    An empty group is left out; a parameter used twice appears once.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay}: give 0 or more.")
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if isinstance(module, NORMS):
                (decayed if decay_bn else plain).append(parameter)
            else:
                (decayed if decay_bias or name != "bias" else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _fusable(parameter: Tensor) -> bool:
    """Whether the fused kernel may run over the memory of a parameter from end to end."""
    return (
        parameter.is_floating_point()
        and parameter.device.type in ("cpu", "cuda")
        and (
            parameter.is_contiguous()
            or (parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last))
        )
    )


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, in the memory order of `like`, which has its shape.

    The fused kernel walks through memory: on tensors in different orders, say a channels-last
    weight and a buffer from a file, it computes nonsense without a word.
    """
    if tensor.stride() == like.stride():
        return tensor
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    if all(mine == theirs for size, mine, theirs in strides if size > 1):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
