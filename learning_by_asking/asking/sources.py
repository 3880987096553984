"""Where the questions of a run come from: the agent composes them, or one of the baselines.

N questions of a data set, I images of a round, P proposals of an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.clevr import builtin
from common.clevr.arrays.encode import QuestionArrays, encode
from common.clevr.generation.generate import generate
from common.clevr.generation.tiny import generate_tiny
from common.clevr.scene_graph import SceneGraph
from common.clevr.vocabulary import Vocabulary

from .propose import Asked, Proposals

# lba: composed by the agent | passive: questions of the data set, drawn over all images |
# passive_images: all questions of few images | passive_active: the agent chooses among the data
# set's questions about an image | generator_passive: fresh ones of the template generator
SOURCES = ("lba", "passive", "passive_images", "passive_active", "generator_passive")


def passive_order(rows: QuestionArrays, budget: int, *, by: str, seed: int) -> np.ndarray:
    """Places (budget,) int64 of the questions that a passive learner gets, in their order.

    by: `pairs`, drawn over all images, or `images`, one image after the other with all its
    questions. No question comes twice. ValueError where there are fewer than `budget`.
    """
    if by not in ("pairs", "images"):
        raise ValueError(f"by is {by!r}: choose pairs or images")
    if budget > len(rows):
        raise ValueError(
            f"budget={budget}, but there are only {len(rows)} questions besides those of the "
            "beginning: lower it."
        )
    order = np.random.default_rng((seed, 12)).permutation(len(rows))
    if by == "images":
        _, first, image = np.unique(rows.image_idxs[order], return_index=True, return_inverse=True)
        order = order[np.argsort(first[image.reshape(-1)], kind="stable")]
    return order[:budget]


def passive(rows: QuestionArrays, places: np.ndarray) -> Proposals:
    """These questions as the only proposals, one each; the images are theirs."""
    images = torch.from_numpy(rows.image_idxs[places].astype(np.int64))
    return _fill(rows, images, [np.array([place]) for place in places])


class OwnQuestions:
    """The data set's questions about each image, as proposals: `passive_active`."""

    def __init__(self, rows: QuestionArrays, asked: Asked) -> None:
        """asked: what is proposed no more."""
        self.rows, self.asked = rows, asked
        self._order = np.argsort(rows.image_idxs, kind="stable")
        self._images = rows.image_idxs[self._order]

    def propose(self, images: Tensor) -> Proposals:
        """The questions about images (I,) that were not asked before, P of each at most."""
        assert self.rows.programs is not None
        places, taken = [], {image: set[bytes]() for image in images.tolist()}
        for image in images.tolist():
            first, last = np.searchsorted(self._images, [image, image + 1])
            own = self._order[first:last]
            new = self.asked.select(image, self.rows.programs[own], taken[image], len(own))
            places.append(own[new])
        return _fill(self.rows, images, places)


def generate_passive(
    scenes: Sequence[SceneGraph],
    words: Vocabulary,
    budget: int,
    *,
    options: builtin.Options | None = None,
    profile: str = "full",
    seed: int,
) -> QuestionArrays:
    """`budget` questions or somewhat more about these images, by the rules of the data set's maker.

    All templates are used equally often. Images are numbered as `scenes` are. options: what may be
    asked about; None: everything. profile: full | tiny, see common.clevr.builtin.
    """
    options = options or builtin.Options()
    per_image = -(-budget // len(scenes)) + 1  # some images offer fewer
    topics, kinds, families = options.topics(), options.kinds(), options.families
    if profile == "tiny":
        questions = generate_tiny(
            scenes, per_image=per_image, seed=seed, families=families, attributes=topics,
            filters=options.filters, kinds=kinds, progress=True,
        )  # fmt: skip
    else:
        questions = generate(
            scenes, per_image=per_image, seed=seed, families=families, attributes=topics,
            kinds=kinds, progress=True,
        )  # fmt: skip
    return encode(questions, words)


def _fill(rows: QuestionArrays, images: Tensor, places: Sequence[np.ndarray]) -> Proposals:
    """Proposals on the CPU: for each image the questions at its places."""
    assert rows.programs is not None
    assert rows.types is not None
    most = max((len(own) for own in places), default=0)
    out = Proposals.empty(images, max(1, most), rows.programs.shape[1], torch.device("cpu"))
    for row, own in enumerate(places):
        n = len(own)
        out.tokens[row, :n] = torch.from_numpy(rows.programs[own].astype(np.int64))
        out.types[row, :n] = torch.from_numpy(rows.types[own].astype(np.int64))
        out.allowed[row, :n] = True
        out.raw[row] = n
    return out
