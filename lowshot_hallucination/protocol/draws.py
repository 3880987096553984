"""The low-shot problems of the test: n examples of every novel class, many of every base class.

m classes, base and novel in the order of their ids; N slots of support, d width of a feature, Q
queries. Phase "cv" is base_1 and novel_1, on which everything is chosen, "test" base_2 and novel_2.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.config import require_choice, require_range

from ..features.problem import LowShot
from ..hallucinate import Generate, Support


@dataclass
class Test:
    """How a learner is tested, Sec. 5. Group `test`."""

    __test__ = False  # not a class of tests

    shots: list[int] = field(default_factory=lambda: [1, 2, 5, 10, 20])  # n of a novel class
    draws: int = 5  # the benchmark's five split files, or as many draws at random
    base_support: int = 100  # examples of a base class at most, as the benchmark's; 0: all
    z_seeds: int = 1  # draws of the noise; log-probabilities are averaged
    n_augs: list[int] = field(default_factory=list)  # to choose from on cv; none: as trained
    # a of prototypes M + a (p - M), to choose from on cv where learner.shrink=cv
    shrinks: list[float] = field(default_factory=lambda: [round(1 - i / 10, 1) for i in range(10)])
    priors: list[float] = field(default_factory=lambda: [round(i / 20, 2) for i in range(21)])  # mu
    top: int = 5  # of the figures that are shown and chosen by: top-5, or 1 where classes are few
    protocol: str = "new"  # | hg: all 1,000 classes compete, novel ones with the base ones

    def __post_init__(self) -> None:
        require_choice("test.protocol", self.protocol, ("new", "hg"))
        require_choice("test.top", str(self.top), ("1", "5"))
        least = {"draws": 1, "base_support": 0, "z_seeds": 1}
        for name, low in least.items():
            require_range(f"test.{name}", getattr(self, name), low)
        for name in ("shots", "shrinks", "priors"):
            if not getattr(self, name):
                raise ValueError(f"test.{name} is empty: give at least one value.")
        for name, whole in (("shots", 1), ("n_augs", 2)):
            for value in getattr(self, name):
                require_range(f"test.{name}", value, whole)
        for name, lowest in (("shrinks", 0.01), ("priors", 0.0)):
            for value in getattr(self, name):
                require_range(f"test.{name}", value, lowest, 1)


class Problem(NamedTuple):
    """A draw of the support and all queries of the phase's classes, on one device."""

    support: Support  # float32; a base class has min(base_support, what there is), a novel one n
    queries: Tensor  # (Q, d) float32
    labels: Tensor  # (Q,) int64, 0..m-1
    novel: Tensor  # (m,) bool
    class_ids: Tensor  # (m,) int64, ascending
    rows: Tensor  # (m, N) int64 on the CPU, rows of the training features; -1 in padding


class Draws:
    """The problems of one phase, with the queries in the device's memory once for all.

    The rows depend on the features, the phase's classes, `draw` and `seed` alone, so that every
    method and every training seed is tested on the same; those of n are the first n of a novel
    class's candidates: the split file's, or a permutation of its own.
    """

    def __init__(
        self,
        lowshot: LowShot,
        phase: str,
        options: Test,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if lowshot.picks is not None and options.draws > len(lowshot.picks):
            raise ValueError(
                f"test.draws={options.draws}, but there are {len(lowshot.picks)} split files: "
                "lower test.draws, or leave the split files out for draws at random."
            )
        self.lowshot, self.options, self.seed, self.device = lowshot, options, seed, device
        self.class_ids, self.novel = lowshot.split.classes_of(phase)
        self.pools = _rows_by_class(lowshot.train.labels, self.class_ids)
        by_class = _rows_by_class(lowshot.test.labels, self.class_ids)
        places = np.repeat(np.arange(len(by_class)), [len(rows) for rows in by_class])
        queries = np.asarray(lowshot.test.values[np.concatenate(by_class)], dtype=np.float32)
        self.queries = torch.from_numpy(queries).to(device)
        self.labels = torch.from_numpy(places).to(device)

    def problem(self, n: int, draw: int) -> Problem:
        """The problem of n examples a novel class; draw: 0..draws-1."""
        chosen = [self._choose(place, n, draw) for place in range(len(self.class_ids))]
        counts = np.array([len(rows) for rows in chosen])
        rows = np.full((len(chosen), counts.max()), -1)
        mask = np.arange(counts.max()) < counts[:, None]
        rows[mask] = np.concatenate(chosen)
        values = self.lowshot.train.values
        features = np.zeros((*rows.shape, values.shape[1]), np.float32)
        features[mask] = values[rows[mask]]
        support = Support(
            torch.from_numpy(features).to(self.device), torch.from_numpy(counts).to(self.device)
        )
        novel = torch.from_numpy(self.novel).to(self.device)
        class_ids = torch.from_numpy(self.class_ids).to(self.device)
        return Problem(support, self.queries, self.labels, novel, class_ids, torch.from_numpy(rows))

    def _choose(self, place: int, n: int, draw: int) -> np.ndarray:
        """Rows of the training features that are the support of the class at `place`."""
        class_id = int(self.class_ids[place])
        picks = self.lowshot.picks
        if self.novel[place] and picks is not None:
            candidates = picks[draw][class_id]
        else:
            random = np.random.default_rng([self.seed, draw, class_id])
            candidates = random.permutation(self.pools[place])
        if not self.novel[place]:
            return candidates[: self.options.base_support or None]
        if len(candidates) < n:
            raise ValueError(
                f"class {self.lowshot.split.names[class_id]!r} has {len(candidates)} examples to "
                f"draw from, fewer than n={n} of test.shots: leave that n out, or give more."
            )
        return candidates[:n]


def generate_views(rows: Tensor, views: np.ndarray) -> Generate:
    """Views of the class's own images in the place of imagined examples, for `augment_support`.

    rows: (m, N) int64 of a `Problem`. views: (n, V, d), those of the training features. A class
    gets each view of its images once, in random order, before one comes again; randomness is that
    of the CPU's global generator.
    """

    def generate(seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        examples = torch.empty_like(seeds)
        for k, missing in zip(*owner.cpu().unique(return_counts=True), strict=True):
            images = rows[k, : int(real.counts[k])]
            order = torch.randperm(len(images) * views.shape[1])
            order = order.repeat(-(-int(missing) // len(order)))[: int(missing)]
            found = views[images[order % len(images)].numpy(), (order // len(images)).numpy()]
            examples[owner == k] = torch.from_numpy(found).to(examples)
        return examples

    return generate


def _rows_by_class(labels: np.ndarray, class_ids: np.ndarray) -> list[np.ndarray]:
    """The rows of each class in the order of the file; empty for a class without any."""
    order = np.argsort(labels, kind="stable")
    ascending = labels[order]
    first = np.searchsorted(ascending, class_ids, side="left")
    last = np.searchsorted(ascending, class_ids, side="right")
    return [order[a:b] for a, b in zip(first, last, strict=True)]
