"""Gradient noise scale: how large a minibatch still pays. Not in the paper; it explains Fig. 1.

McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162. With the true
gradient G and the covariance Sigma of one example's gradient, a minibatch of B examples has

    E |G_B|^2 = |G|^2 + tr(Sigma) / B        their Appendix A.1

so two batch sizes give both unknowns, and the noise scale B_noise = tr(Sigma) / |G|^2 (their
B_simple). Against the best possible, with a learning rate tuned for B, a minibatch of B needs

    1 + B_noise / B   times the steps    and    1 + B / B_noise   times the examples.

The scale grows during training, so measure it late too. With momentum, decay and batch norm it is
a guide to the order of magnitude, no more.
"""

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def squared_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Squared length of a gradient given in parts, a scalar in float32 or wider."""
    parts = [part.detach() for part in gradients if part is not None]
    if not parts:
        raise ValueError("No gradient has been computed: call backward() first.")
    types = [torch.promote_types(part.dtype, torch.float32) for part in parts]
    norms = [torch.linalg.vector_norm(p, dtype=t) for p, t in zip(parts, types, strict=True)]
    return torch.stack(norms).square().sum()


class NoiseScale:
    """Running estimate of the noise scale from the gradient norms at two batch sizes.

    In a training loop the small gradient is that of one forward or process before they are
    averaged, the big one that of the optimizer step. |G|^2 and tr(Sigma) are averaged over the
    steps apart from each other, because their ratio at one step is biased.

    Args:
        small: examples in the small batch; whole groups of batch norm.
        big: examples in the big batch, more than `small`.
        decay: of the running averages, 0..1 (1 excluded); 0 keeps the last step alone.

    """

    def __init__(self, *, small: int, big: int, decay: float = 0.99) -> None:
        if not 1 <= small < big:
            raise ValueError(
                f"small={small}, big={big}: the noise scale needs two batch sizes, the first the "
                "smaller; accumulate more forwards or use more processes."
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: choose from 0 up to, not including, 1.")
        self.small, self.big, self.decay = small, big, decay
        self._signal = self._noise = self._weight = 0.0

    def update(self, small_squared: Tensor | float, big_squared: Tensor | float) -> None:
        """Take in |G_small|^2, best the mean of several small batches, and |G_big|^2 of a step.

        Raises ValueError where one is not finite.
        """
        small, big = float(small_squared), float(big_squared)
        if not (math.isfinite(small) and math.isfinite(big)):
            raise ValueError(f"Squared gradient norms {small} and {big} are not finite.")
        b, B = self.small, self.big
        signal = (B * big - b * small) / (B - b)  # |G|^2
        noise = (small - big) / (1 / b - 1 / B)  # tr(Sigma)
        self._signal = self.decay * self._signal + (1 - self.decay) * signal
        self._noise = self.decay * self._noise + (1 - self.decay) * noise
        self._weight = self.decay * self._weight + (1 - self.decay)

    @property
    def signal(self) -> float:
        """Estimate of |G|^2; NaN before the first update. It may be negative by chance."""
        return self._signal / self._weight if self._weight else math.nan

    @property
    def noise(self) -> float:
        """Estimate of tr(Sigma), of one example; NaN before the first update."""
        return self._noise / self._weight if self._weight else math.nan

    @property
    def value(self) -> float:
        """B_noise in examples: NaN before the first update, infinite where no signal is seen."""
        if math.isnan(self.signal):
            return math.nan
        return max(0.0, self.noise) / self.signal if self.signal > 0 else math.inf

    def state_dict(self) -> dict[str, float]:
        """All that a resumed run needs."""
        return {"signal": self._signal, "noise": self._noise, "weight": self._weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict()`."""
        self._signal, self._noise = state["signal"], state["noise"]
        self._weight = state["weight"]


def measure(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> NoiseScale:
    """Noise scale of `model` as it stands, from the gradients of two or more equal batches.

    `loss` takes the model's outputs and the labels and returns a mean over the batch; `batches`
    are pairs of inputs (n, ...) and labels on the model's device. Works on a copy of the model,
    in the mode that it is in: weights, gradients and running statistics are left alone.
    """
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    total: list[Tensor] = []
    squares: list[Tensor] = []
    size = 0
    for inputs, labels in batches:
        if size and len(inputs) != size:
            raise ValueError(f"Batches of {size} and {len(inputs)} examples: drop the last.")
        size = len(inputs)
        gradients = torch.autograd.grad(
            loss(model(inputs), labels), parameters, materialize_grads=True
        )
        squares.append(squared_norm(gradients))
        if total:
            torch._foreach_add_(total, gradients)
        else:
            total = [gradient.clone() for gradient in gradients]
    if len(squares) < 2:
        raise ValueError(f"{len(squares)} batches: the noise scale needs two or more.")
    count = len(squares)
    scale = NoiseScale(small=size, big=size * count, decay=0.0)
    scale.update(torch.stack(squares).mean(), squared_norm(total) / count**2)
    return scale


def steps_factor(batch_size: float, noise_scale: float) -> float:
    """Steps to a given loss, as a multiple of what an endless minibatch needs."""
    return 1 + noise_scale / batch_size


def examples_factor(batch_size: float, noise_scale: float) -> float:
    """Examples to a given loss, as a multiple of what minibatches of one need."""
    return 1 + batch_size / noise_scale if noise_scale > 0 else math.inf


def largest_batch(noise_scale: float, *, group: int = 32, waste: float = 1.0) -> int:
    """Largest whole number of groups, one at least, that costs up to `waste` more examples.

    `waste` = 1 gives the critical batch size, B = B_noise: twice the fewest steps, twice the fewest
    examples.
    """
    if not math.isfinite(noise_scale) or noise_scale < 0 or waste <= 0 or group < 1:
        raise ValueError(
            f"noise_scale={noise_scale}, waste={waste}, group={group}: no batch size follows. "
            "Measure with more batches until the noise scale is finite; waste and group must be "
            "above 0."
        )
    return max(1, int(noise_scale * waste) // group) * group
