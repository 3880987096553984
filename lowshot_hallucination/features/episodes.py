"""Episodes of meta-training: classes, their support and other rows of them as queries, Sec. 3.1.

m classes of an episode, N slots of a class, q queries of a class, d features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..hallucinate import Support

# So that the numbers are not those which imagined examples are drawn from under the same seed.
_STREAM = 0x5DEECE66


@dataclass
class Episodes:
    """What an episode of meta-training is. Unstated, all of it: the paper gives no values."""

    classes: int = 0  # m; 0: all base classes
    shots: list[int] = field(default_factory=lambda: [1, 2, 5, 10, 20])  # n_k is one of these
    mixed: bool = True  # each class draws its n_k; False: one n for the episode
    queries: int = 3  # of each class
    per_step: int = 1  # episodes whose losses are averaged in a step

    def __post_init__(self) -> None:
        if self.classes < 0 or self.classes == 1:
            raise ValueError(f"episodes.classes={self.classes}: give two or more, or 0 for all.")
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f"episodes.shots={self.shots}: give numbers of 1 or more.")
        for name in ("queries", "per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"episodes.{name}={getattr(self, name)} must be 1 or more.")


class Sampler:
    """Draws episodes from rows that stay on the device.

    values: (n, d), labels: (n,) of all rows there are; those of `classes`, distinct ids, are kept.
    names: of the classes by id, for messages.

    Raises ValueError where a class has too few rows for the largest of `options.shots` and the
    queries, or where there are fewer classes than an episode needs.
    """

    def __init__(
        self,
        values: np.ndarray | Tensor,
        labels: np.ndarray | Tensor,
        classes: Sequence[int],
        options: Episodes,
        device: torch.device | str = "cpu",
        names: Sequence[str] | None = None,
    ) -> None:
        ids = np.unique(np.asarray(classes, np.int64))
        labels = np.asarray(labels)
        if len(ids) < max(options.classes, 2):
            raise ValueError(
                f"episodes.classes={options.classes}, but there are {len(ids)} base classes: an "
                "episode needs two or more, each once."
            )
        rows = np.flatnonzero(np.isin(labels, ids))
        rows = rows[np.argsort(labels[rows], kind="stable")]  # class after class
        sizes = np.bincount(np.searchsorted(ids, labels[rows]), minlength=len(ids))
        self.options, self.most = options, max(options.shots)
        for k, size in zip(ids.tolist(), sizes.tolist(), strict=True):
            if size < self.most + options.queries:
                raise ValueError(
                    f"base class {names[k] if names else k} has {size} rows, but an episode takes "
                    f"{self.most} (episodes.shots) and {options.queries} (episodes.queries) of it: "
                    "lower one of them, or leave the class out of the split."
                )
        kept = values[torch.from_numpy(rows)] if isinstance(values, Tensor) else values[rows]
        self.values = torch.as_tensor(kept, device=device)
        self.sizes = torch.from_numpy(sizes).to(device)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.shots = torch.tensor(options.shots, device=device)
        self.places = torch.arange(int(sizes.max()), device=device)
        self.generator = torch.Generator(device)

    def draw(self, seed: int) -> tuple[Support, Tensor, Tensor]:
        """Episode number `seed`: support (m, N, d), queries (m q, d), their labels (m q,) int64.

        A function of `seed`, the options and the device's kind. Labels are 0..m-1 in the order of
        class ids; queries come class by class, none of them in its support. Rows are float32, and
        N is the largest of the shots, or the episode's n; slots beyond n_k repeat slot 0.
        """
        self.generator.manual_seed(seed ^ _STREAM)
        options, device = self.options, self.values.device
        classes = torch.arange(len(self.sizes), device=device)
        if options.classes:
            order = torch.rand(len(classes), device=device, generator=self.generator)
            classes = order.argsort()[: options.classes].sort().values
        m = len(classes)

        if options.mixed:
            which = torch.randint(len(self.shots), (m,), device=device, generator=self.generator)
            counts, slots = self.shots[which], self.most
        else:  # known to the host, so that the support has no slot too many
            slots = int(np.random.default_rng(seed).choice(options.shots))
            counts = torch.full((m,), slots, device=device)

        # The largest of a class's random numbers are as many of its rows, without replacement.
        draws = torch.rand(m, len(self.places), device=device, generator=self.generator)
        draws.masked_fill_(self.places >= self.sizes[classes, None], -1)
        rows = draws.topk(slots + options.queries).indices + self.starts[classes, None]
        support, queries = rows[:, :slots], rows[:, slots:]
        unused = torch.arange(slots, device=device) >= counts[:, None]
        support = torch.where(unused, support[:, :1], support)
        labels = torch.arange(m, device=device).repeat_interleave(options.queries)
        features = Support(self.values[support].float(), counts)
        return features, self.values[queries.flatten()].float(), labels
