"""Pairs of image and question that a relevance model learns from.

Questions with the images that they were asked about are relevant, the same questions with other
images are taken as irrelevant, although about one in five makes sense there too. Invalid replies
of the oracle are true negatives, and cost nothing more.

N pairs, L tokens of a program. Types are 0..12 as in common.clevr.accuracy.TYPES, -1 where a
program has none of these roots.
"""

from dataclasses import dataclass, fields

import numpy as np

from common.clevr.arrays.encode import QuestionArrays
from common.data import seed_of

DRAWS = 20  # tries for an irrelevant image


@dataclass(frozen=True)
class Pairs:
    """N questions, each with an image and whether it makes sense there."""

    programs: np.ndarray  # int (N, L), START, tokens in prefix order, END, NULL
    images: np.ndarray  # int64 (N,), rows of the features
    types: np.ndarray  # int64 (N,)
    labels: np.ndarray  # float32 (N,), 1 relevant, 0 not
    replies: np.ndarray  # bool (N,): a reply of the oracle about a proposal says so

    def __len__(self) -> int:
        return len(self.images)

    def select(self, places: np.ndarray) -> "Pairs":
        """Some of the pairs: int or bool (M,)."""
        return Pairs(*(getattr(self, field.name)[places] for field in fields(self)))


def pairs_of(rows: QuestionArrays, label: float, *, replies: bool) -> Pairs:
    """Questions with the images that they were asked about, all with one label."""
    if rows.programs is None or rows.types is None:
        raise ValueError(
            "the relevance model learns from questions whose programs are known: give such."
        )
    count = len(rows)
    return Pairs(
        np.asarray(rows.programs),
        np.asarray(rows.image_idxs),
        rows.types.astype(np.int64),
        np.full(count, label, np.float32),
        np.full(count, replies),
    )


def join(parts: list[Pairs]) -> Pairs:
    """Pairs one part after the other, programs filled up to the longest."""
    width = max(part.programs.shape[1] for part in parts)
    programs = [
        np.pad(part.programs, ((0, 0), (0, width - part.programs.shape[1]))) for part in parts
    ]
    rest = [
        np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Pairs)[1:]
    ]
    return Pairs(np.concatenate(programs), *rest)


def shuffle(positives: Pairs, *, ratio: int, by_type: bool, seed: int) -> Pairs:
    """Each question with `ratio` other images, as negatives.

    by_type: the image is one of a question of the same type. No pair is made that is among
    `positives`; a question for which 20 draws find no other image is left out.
    """
    random, count = np.random.default_rng(seed), len(positives)
    known = set(_keys(positives.programs, positives.images))
    groups = positives.types if by_type else np.zeros(count, np.int64)
    rows = np.tile(np.arange(count), ratio)
    partners, wanting = np.empty(len(rows), np.int64), np.ones(len(rows), bool)
    members = {int(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
    for _ in range(DRAWS):
        for group, places in members.items():
            here = np.flatnonzero(wanting & (groups[rows] == group))
            partners[here] = places[random.integers(len(places), size=len(here))]
        tried = np.flatnonzero(wanting)
        keys = _keys(positives.programs[rows[tried]], positives.images[partners[tried]])
        wanting[tried] = [key in known for key in keys]
        if not wanting.any():
            break
    rows, partners = rows[~wanting], partners[~wanting]
    return Pairs(
        positives.programs[rows],
        positives.images[partners],
        positives.types[rows],
        np.zeros(len(rows), np.float32),
        np.zeros(len(rows), bool),
    )


def _keys(programs: np.ndarray, images: np.ndarray) -> list[tuple[int, bytes]]:
    return [(image, row.tobytes()) for image, row in zip(images.tolist(), programs, strict=True)]


def collect_pairs(
    initial: QuestionArrays,
    *,
    seed: int,
    ratio: int,
    by_type: bool,
    held_out: float,
    valid: QuestionArrays | None = None,
    invalid: QuestionArrays | None = None,
) -> tuple[Pairs, Pairs]:
    """Pairs to learn from and held-out pairs.

    ratio: negatives of a type for each positive of it, invalid replies first, then questions with
    shuffled images, see `shuffle`. held_out: share of the questions, which are held out with all
    their pairs. The seed and a question's place say which ones: a reply stays on its side.
    valid, invalid: replies in the order in which they were bought.
    """
    replies = [(valid, 1.0), (invalid, 0.0)]
    parts = [pairs_of(initial, 1, replies=False)]
    parts += [pairs_of(rows, label, replies=True) for rows, label in replies if rows is not None]
    held = [
        np.random.default_rng(seed_of(seed, 0, piece)).random(len(part)) < held_out
        for piece, part in enumerate(parts)
    ]
    sides = []
    for side in (False, True):
        chosen = [part.select(out == side) for part, out in zip(parts, held, strict=True)]
        shuffled = shuffle(
            chosen[0],
            ratio=ratio,
            by_type=by_type,
            seed=seed_of(seed, 1, int(side)),
        )
        sides.append(_balance(join(chosen), shuffled, ratio))
    return sides[0], sides[1]


def _balance(given: Pairs, shuffled: Pairs, ratio: int) -> Pairs:
    """The pairs, and of each type as many shuffled ones as its negatives are too few."""
    kept = []
    for kind in np.unique(shuffled.types):
        of_type = given.labels[given.types == kind]
        missing = int(ratio * of_type.sum() - (of_type == 0).sum())
        kept.append(np.flatnonzero(shuffled.types == kind)[: max(0, missing)])
    return join([given, shuffled.select(np.concatenate([*kept, np.zeros(0, np.int64)]))])
