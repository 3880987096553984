"""The older generator: a seed moves as examples of a base class do (Hariharan & Girshick, 2017).

    cluster    the examples of every base class into centroids
    mine       A : B :: C : D, where A, B are centroids of a class and C - D, of another class, has
               the highest cosine with A - B
    train      B' = MLP([A; C; D]) to minimise CE(classifier(B'), class of B) + 10 MSE(B', B)
    generate   MLP([seed; C; D]) with two random centroids C, D of a random base class

k centroids of a class, K of all, d features, R generated rows. It takes the place of the learned G.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from tqdm import tqdm, trange

from common.config import require_range

from ..hallucinate import Support
from .logistic import Logistic, fit_rows


@dataclass
class Analogies:
    """How the older generator is trained. Group `analogies`; the values are the benchmark's."""

    centroids: int = 100  # of a base class; its examples where they are fewer
    cluster_iterations: int = 20  # of k-means
    hidden: int = 512
    iterations: int = 120_000
    batch_size: int = 128
    lr: float = 0.1  # 1 for trunks trained with SGM
    drop_every: int = 40_000  # iterations, by 10
    momentum: float = 0.9  # and dampening
    weight_decay: float = 1e-4
    mse_weight: float = 10
    classifier_iterations: int = 10_000  # of the base classes' classifier, where none is at hand

    def __post_init__(self) -> None:
        for name in ("cluster_iterations", "hidden", "iterations", "batch_size", "drop_every"):
            require_range(f"analogies.{name}", getattr(self, name), 1)
        require_range("analogies.classifier_iterations", self.classifier_iterations, 1)
        require_range("analogies.centroids", self.centroids, 2)
        require_range("analogies.momentum", self.momentum, 0, 1)
        for name in ("weight_decay", "mse_weight"):
            require_range(f"analogies.{name}", getattr(self, name), 0)
        if self.lr <= 0:
            raise ValueError(f"analogies.lr={self.lr} must be above 0.")


class AnalogyGenerator(nn.Module):
    """The MLP and the centroids of its base classes: a `Generate` of hallucinate.py."""

    def __init__(self, centroids: list[Tensor], hidden: int) -> None:
        """centroids: (k, d) of each base class."""
        super().__init__()
        width = centroids[0].shape[1]
        self.fc1 = nn.Linear(3 * width, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, width)
        counts = torch.tensor([len(each) for each in centroids])
        self.centroids: Tensor
        self.counts: Tensor
        self.starts: Tensor
        self.register_buffer("centroids", torch.cat(centroids).to("cpu"))  # (K, d)
        self.register_buffer("counts", counts)
        self.register_buffer("starts", counts.cumsum(0) - counts)

    def complete(self, a: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """B of A : B :: C : D; all (R, d)."""
        x = F.relu(self.fc1(torch.cat([a, c, d], dim=1)))
        return F.relu(self.fc3(F.relu(self.fc2(x))))

    def forward(self, seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        """Examples (R, d) from seeds (R, d); `real` and `owner` are of no use to it.

        Random numbers come from the global generator of the device: R classes, then (2, R) uniform.
        """
        R, device = len(seeds), seeds.device
        chosen = torch.randint(len(self.counts), (R,), device=device)
        places = (torch.rand(2, R, device=device) * self.counts[chosen]).long()
        c, d = self.centroids[self.starts[chosen] + places].unbind(0)
        return self.complete(seeds, c.to(seeds.dtype), d.to(seeds.dtype))


def train_analogies(
    values: Tensor,
    labels: Tensor,
    options: Analogies,
    *,
    classifier: Callable[[Tensor], Tensor] | None = None,
    seed: int,
    progress: bool = False,
) -> AnalogyGenerator:
    """The generator trained on base examples values (n, d), labels (n,), frozen, on their device.

    classifier: logits of features (B, d) over the distinct labels in ascending order; without one
    a linear classifier is fitted to the same examples.
    """
    classes, places = labels.unique(return_inverse=True)
    if classifier is None:
        base = Logistic(
            iterations=options.classifier_iterations, weight_decay=1e-4, dampening=0
        )  # the benchmark's values
        rare = torch.zeros_like(places, dtype=torch.bool)
        classifier = fit_rows(
            values, places, rare, 0.0, len(classes), base, seed=seed, progress=progress
        )
    random = torch.Generator(values.device).manual_seed(seed)
    centroids = [
        cluster(values[places == i].float(), options.centroids, options.cluster_iterations, random)
        for i in range(len(classes))
    ]
    quadruplets = mine(centroids, progress=progress)
    order = torch.randperm(len(quadruplets), generator=random, device=values.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = AnalogyGenerator(centroids, options.hidden)
    generator.to(values.device)
    _train(generator, quadruplets[order], classifier, options, progress)
    return generator.requires_grad_(False).eval()


def _train(
    generator: AnalogyGenerator,
    quadruplets: Tensor,
    classifier: Callable[[Tensor], Tensor],
    options: Analogies,
    progress: bool,
) -> None:
    """Minimise both losses over the quadruplets (n, 4), in their order, again and again."""
    owner = torch.repeat_interleave(generator.counts)  # (K,) class of each centroid
    optimizer = SGD(
        generator.parameters(),
        options.lr,
        momentum=options.momentum,
        dampening=options.momentum,
        weight_decay=options.weight_decay,
    )
    schedule = StepLR(optimizer, options.drop_every, 0.1)
    batch = torch.arange(options.batch_size, device=quadruplets.device)
    for step in trange(options.iterations, desc="analogies", disable=None if progress else True):
        rows = quadruplets[(step * options.batch_size + batch) % len(quadruplets)]
        a, b, c, d = generator.centroids[rows].unbind(1)  # (B, d) each
        found = generator.complete(a, c, d)
        loss = F.cross_entropy(classifier(found), owner[rows[:, 1]])
        loss = loss + options.mse_weight * F.mse_loss(found, b)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    if not loss.isfinite() or not found.any():
        raise FloatingPointError(
            f"the analogies' loss is {loss.item():g} and every generated example is 0 or nan: "
            "lower analogies.lr, or divide the features by their mean."
        )


def cluster(values: Tensor, k: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Centroids (min(k, n), d) of values (n, d) by k-means from random examples.

    A centroid without examples stays where it is.
    """
    start = torch.randperm(len(values), generator=generator, device=values.device)[:k]
    return improve(values, values[start], iterations)


def improve(values: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Centroids (k, d) after some iterations of k-means on values (n, d)."""
    for _ in range(iterations):
        nearest = torch.cdist(values, centroids).argmin(1)
        members = F.one_hot(nearest, len(centroids)).to(values)  # (n, k)
        counts = members.sum(0)[:, None]
        centroids = torch.where(counts > 0, members.T @ values / counts.clamp(min=1), centroids)
    return centroids


def mine(centroids: list[Tensor], *, progress: bool = False) -> Tensor:
    """Quadruplets A : B :: C : D, int64 (n, 4), rows of the concatenated centroids.

    For each ordered pair of centroids of a class, that pair of any other class whose difference
    has the highest cosine with its own; left out where no cosine is above 0. The pairs (A, B) and
    (B, A) mirror each other, so one of them is compared with one order of each other pair.
    """
    pairs = [torch.triu_indices(len(c), len(c), 1, device=c.device) for c in centroids]
    starts = torch.tensor([0, *(len(c) for c in centroids)]).cumsum(0).tolist()
    found = []
    for i in tqdm(range(len(centroids)), desc="quadruplets", disable=None if progress else True):
        own = _differences(centroids[i], pairs[i])
        best = own.new_zeros(len(own))
        match = torch.zeros_like(pairs[i])  # (2, P), rows of C and D
        for j in range(len(centroids)):
            if j == i or not pairs[j].shape[1]:
                continue
            cosines = own @ _differences(centroids[j], pairs[j]).T  # (P, P')
            high, where = cosines.abs().max(1)
            mirrored = cosines.gather(1, where[:, None])[:, 0] < 0
            pair = pairs[j][:, where] + starts[j]
            pair = torch.where(mirrored, pair.flip(0), pair)
            match = torch.where(high > best, pair, match)
            best = torch.maximum(high, best)
        kept = torch.cat([pairs[i] + starts[i], match])[:, best > 0]  # (4, P)
        found += [kept.T, kept[[1, 0, 3, 2]].T]
    quadruplets = torch.cat(found)
    if not len(quadruplets):
        raise ValueError(
            f"{len(centroids)} base classes have no analogies: two of them need two different "
            "examples each. Give more base classes, or another hallucination.kind."
        )
    return quadruplets


def _differences(centroids: Tensor, pairs: Tensor) -> Tensor:
    """Differences A - B of unit length, (P, d), of centroids (k, d) and pairs (2, P)."""
    return F.normalize(centroids[pairs[0]] - centroids[pairs[1]], dim=1, eps=1e-5)
