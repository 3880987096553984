"""Questions as a dataset: one split in memory, and the batches of a step or of an evaluation.

B questions about I images. A row of `questions` (B, Lq) or `programs` (B, Lp) is START, its words
or tokens, END, and NULL up to the end. Programs are in prefix order, the root first.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import dist
from ..sampling import SampleStream
from .arrays.encode import QuestionArrays
from .arrays.features import ByImage, Features
from .arrays.scenes import PackedScenes, pack
from .functions import SPECIAL
from .scene_graph import SceneGraph
from .vocabulary import Vocabulary

UNK = SPECIAL.index("<UNK>")


@dataclass
class Batch:
    """B questions about I images, and where each is found."""

    questions: Tensor  # int64 (B, Lq)
    programs: Tensor | None  # int64 (B, Lp)
    answers: Tensor  # int64 (B,), 0 where unknown
    types: Tensor  # int64 (B,), index in accuracy.TYPES, -1 where unknown
    features: Tensor | None  # float32 (I, C, H, W)
    image_of: Tensor  # int64 (B,), image of each question
    rows: np.ndarray  # (B,) number of each question in its split
    split: str

    @property
    def names(self) -> list[str]:
        """The questions, for messages."""
        return [f"{self.split} question {row}" for row in self.rows.tolist()]

    def to(self, device: torch.device) -> "Batch":
        """The tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in self._tensors().items()
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The tensors in page-locked memory; the loader calls it where there is a GPU."""
        pinned: dict[str, Any] = {n: value.pin_memory() for n, value in self._tensors().items()}
        return replace(self, **pinned)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


class Questions(Dataset):
    """One split: question rows, what is known of them, and the features of their images.

    programs: int (N, Lp), the known ones; what an engine learns from may be put in their place.
    kind: of the features: `files`, or `grid` and `pixels` of the built-in data. scenes: the graphs
    of the images, in the order of the features, where there are any.
    """

    def __init__(
        self,
        split: str,
        rows: QuestionArrays,
        words: Vocabulary,
        features: Features | None,
        *,
        kind: str = "files",
        scenes: Sequence[SceneGraph] | None = None,
    ) -> None:
        self.split, self.rows, self.words, self.features = split, rows, words, features
        self.kind, self.scenes = kind, scenes
        self.programs: np.ndarray | None = rows.programs

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: np.ndarray) -> Batch:
        """The questions at these places, and the features of their images, each once."""
        rows, count = self.rows, len(places)
        questions = rows.questions[places].astype(np.int64)
        # A word that came after the model's vocabulary is an unknown one to it.
        questions[questions >= len(self.words.question)] = UNK
        images, image_of = np.unique(rows.image_idxs[places], return_inverse=True)
        programs = None
        if self.programs is not None:
            programs = torch.from_numpy(trim(self.programs[places]).astype(np.int64))
        return Batch(
            questions=torch.from_numpy(trim(questions)),
            programs=programs,
            answers=_numbers(rows.answers, places, 0, count),
            types=_numbers(rows.types, places, -1, count),
            features=None if self.features is None else self.features[images],
            image_of=torch.from_numpy(image_of.reshape(-1)),
            rows=np.asarray(places),
            split=self.split,
        )

    def subset(self, places: np.ndarray) -> "Questions":
        """Some of the questions, in this order."""
        less = copy(self)
        less.rows = self.rows.select(places)
        less.programs = None if self.programs is None else self.programs[places]
        return less

    def without_features(self) -> "Questions":
        """The same questions, whose features are not read."""
        blind = copy(self)
        blind.features = None
        return blind

    @cached_property
    def scene_arrays(self) -> PackedScenes | None:
        """The scene graphs as arrays, in the order of the features' rows."""
        return None if self.scenes is None else pack(self.scenes)


def trim(rows: np.ndarray) -> np.ndarray:
    """Rows (B, L) without the columns at their end that are NULL in all, at least one left."""
    used = np.flatnonzero((rows != 0).any(0))
    return rows[:, : used[-1] + 1 if len(used) else 1]


def _numbers(values: np.ndarray | None, places: np.ndarray, unknown: int, count: int) -> Tensor:
    if values is None:
        return torch.full((count,), unknown, dtype=torch.int64)
    return torch.from_numpy(values[places].astype(np.int64))


class StepSampler:
    """Places of the questions of this process in the steps after `start`, up to `stop`."""

    def __init__(
        self,
        dataset: Questions,
        *,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        by_image: bool = False,
    ) -> None:
        self.steps = range(start, stop)
        self.by_image: ByImage | None = None
        if by_image:
            self.by_image = ByImage(dataset.rows.image_idxs, batch_size, seed=seed)
        else:
            self.stream = SampleStream(len(dataset), batch_size, seed=seed)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[np.ndarray]:
        rank, world = dist.rank(), dist.world_size()
        for step in self.steps:
            if self.by_image is not None:
                yield self.by_image.share(step, rank, world)
            else:
                yield np.array([place for _, place in self.stream.share(step, rank, world)])


def training_batches(
    dataset: Questions,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    by_image: bool = False,
    workers: int = 0,
) -> Iterable[Batch]:
    """The batches of this process, a function of (seed, step) alone.

    batch_size: questions a step over all processes. by_image: all questions about an image are in
    one batch. workers: loader processes.
    """
    steps = StepSampler(
        dataset, batch_size=batch_size, seed=seed, start=start, stop=stop, by_image=by_image
    )
    return _load(dataset, steps, workers)


def in_order(dataset: Questions, size: int, workers: int = 0) -> Iterable[Batch]:
    """The share of this process in all questions, each once, `size` at a time."""
    mine = np.arange(dist.rank(), len(dataset), dist.world_size())
    pieces = [mine[i : i + size] for i in range(0, len(mine), size)]
    return _load(dataset, pieces, workers)


def _load(dataset: Questions, pieces: Iterable[np.ndarray], workers: int) -> Iterable[Batch]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=pieces,  # type: ignore[arg-type]  # places of whole batches
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it would draw from the global one
    )


def _as_is(item: Any) -> Any:
    return item
