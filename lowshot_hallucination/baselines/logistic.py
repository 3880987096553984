"""The benchmark's classifier: softmax regression on base and novel examples, refitted per draw.

n examples of d features, C classes, K outputs (K = C, or all 1,000 of the data set). Every batch is
split between base and novel examples as the classes are, so that a novel class with one example
counts as much, on average, as a base class with hundreds (Hariharan & Girshick, 2017).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from tqdm import trange

from common.config import require_range

from ..hallucinate import Support


@dataclass
class Logistic:
    """How the classifier is fitted. Group `logistic`; the values are the benchmark's."""

    iterations: int = 10_000
    batch_size: int = 1000  # 0: all examples at every step, weighted as batches are on average
    lr: float = 0.1
    weight_decay: float = 0.01  # 0.001 with generated examples and for other trunk losses
    momentum: float = 0.9
    dampening: float = 0.9  # a step is then lr long in the long run, not lr / (1 - momentum)
    cosine: bool = False  # s cos(x, w) instead of w x + b (Gidaris & Komodakis, 2018)
    scale: float = 10.0  # first value of s

    def __post_init__(self) -> None:
        for name in ("batch_size", "weight_decay"):
            require_range(f"logistic.{name}", getattr(self, name), 0)
        require_range("logistic.iterations", self.iterations, 1)
        for name in ("momentum", "dampening"):
            require_range(f"logistic.{name}", getattr(self, name), 0, 1)
        for name in ("lr", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"logistic.{name}={getattr(self, name)} must be above 0.")


class Classifier(nn.Module):
    """Logits (Q, K) of features (Q, d)."""

    def __init__(
        self, width: int, outputs: int, *, scale: float, generator: torch.Generator
    ) -> None:
        """scale: of the cosine; 0 for the linear classifier with a bias."""
        super().__init__()
        limit = width**-0.5  # as nn.Linear
        device = generator.device
        self.weight = nn.Parameter(torch.empty(outputs, width, device=device))
        self.bias = None if scale else nn.Parameter(torch.empty(outputs, device=device))
        self.scale = nn.Parameter(torch.tensor(float(scale), device=device)) if scale else None
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -limit, limit, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Features of any floating-point type -> float32 logits."""
        x = x.to(self.weight.dtype)
        if self.scale is None:
            return F.linear(x, self.weight, self.bias)
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def fit_logistic(
    support: Support,
    novel: Tensor,
    options: Logistic,
    *,
    seed: int,
    class_ids: Tensor | None = None,
    outputs: int = 0,
    progress: bool = False,
) -> Classifier:
    """The classifier of a problem's support, whose novel classes may have imagined examples too.

    novel: (C,) bool. Its K outputs are the C classes; with `class_ids` (C,) and `outputs` they are
    all classes of the data set, as the older protocol has them.
    """
    mask = support.mask
    owner = torch.arange(len(novel), device=novel.device)[:, None].expand_as(mask)[mask]
    labels = owner if class_ids is None else class_ids[owner]
    return fit_rows(
        support.features[mask],
        labels,
        novel[owner],
        float(novel.float().mean()),
        outputs or len(novel),
        options,
        seed=seed,
        progress=progress,
    )


def fit_rows(
    values: Tensor,
    labels: Tensor,
    rare: Tensor,
    share: float,
    outputs: int,
    options: Logistic,
    *,
    seed: int,
    progress: bool = False,
) -> Classifier:
    """The classifier of values (n, d) and labels (n,), K outputs, on their device.

    rare: (n,) bool, the examples that are drawn for `share` of a batch, 0..1.
    # Differs: the base examples of a batch are drawn with replacement, the benchmark's without.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    classifier = Classifier(
        values.shape[1], outputs, scale=options.scale if options.cosine else 0, generator=generator
    )
    of_novel = options.batch_size - round((1 - share) * options.batch_size)
    parts = [
        ((~rare).nonzero()[:, 0], options.batch_size - of_novel),
        (rare.nonzero()[:, 0], of_novel),
    ]
    weights = torch.where(rare, share / rare.sum(), (1 - share) / (~rare).sum())  # (n,), sum 1
    decayed = [p for p in (classifier.weight, classifier.bias) if p is not None]
    groups: list[dict] = [{"params": decayed}]
    if classifier.scale is not None:
        groups.append({"params": [classifier.scale], "weight_decay": 0})
    optimizer = SGD(
        groups,
        options.lr,
        momentum=options.momentum,
        dampening=options.dampening,
        weight_decay=options.weight_decay,
    )
    for _ in trange(options.iterations, desc="classifier", disable=None if progress else True):
        if options.batch_size:
            rows = torch.cat([_draw(pool, size, generator) for pool, size in parts])
            loss = F.cross_entropy(classifier(values[rows]), labels[rows])
        else:
            each = F.cross_entropy(classifier(values), labels, reduction="none")
            loss = (weights * each).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if not loss.isfinite():
        raise FloatingPointError(
            f"the classifier's loss is {loss.item()} after {options.iterations} iterations: lower "
            "logistic.lr, or divide the features by their mean."
        )
    return classifier.requires_grad_(False)


def _draw(pool: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`size` rows of the pool with replacement."""
    high = max(1, len(pool))  # an empty pool has no share of the batch
    return pool[torch.randint(high, (size,), generator=generator, device=pool.device)]
