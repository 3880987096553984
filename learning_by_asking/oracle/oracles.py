"""Who answers: the symbolic executor, the same with errors, replies of a file, or a person.

Scene graphs are held by `Symbolic` alone. The agent sees a `Ledger` and its replies.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from common import dist, draw
from common.clevr.arrays.features import Features
from common.clevr.arrays.scenes import pack
from common.clevr.execute import Failure
from common.clevr.execute_batch import BatchExecutor
from common.clevr.programs import canonical
from common.clevr.scene_graph import SceneGraph
from common.clevr.vocabulary import Vocabulary
from common.config import require_choice, require_range

from .human import Human
from .ledger import Ledger, read_log
from .replies import NO_ANSWER, AnyOracle, Reply, possible_answers

KINDS: Final = ("symbolic", "noisy", "cached", "human")
FAILURES: Final = tuple(Failure)


@dataclass
class Oracle:
    """Who answers, and what it costs."""

    kind: str = "symbolic"  # on the scene graph | noisy | cached | human
    flip: float = 0.1  # noisy: share of the valid replies that are another possible answer
    file: str = ""  # cached: an ask_log.jsonl whose replies are given again
    images: str = ""  # human: path of an image, such as CLEVR_train_{:06d}.png; empty: written
    cost_invalid: int = 1  # Unstated: what an invalid reply costs, 1 or 0
    relevance_free: bool = False  # replies at no cost, for upper bounds: relevance.kind=oracle ...
    seed: int = 0  # of the errors of noisy

    def __post_init__(self) -> None:
        require_choice("oracle.kind", self.kind, KINDS)
        require_range("oracle.flip", self.flip, 0, 1)
        require_range("oracle.cost_invalid", self.cost_invalid, 0, 1)
        require_range("oracle.seed", self.seed, 0)
        if (self.kind == "cached") != bool(self.file):
            raise ValueError("oracle.kind=cached goes with oracle.file=<ask_log.jsonl>, no other.")
        if self.images and self.kind != "human":
            raise ValueError("oracle.images is for oracle.kind=human.")
        try:
            self.images.format(0)
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(
                f"oracle.images={self.images} does not say where the number of the image goes: "
                "write it as in CLEVR_train_{:06d}.png"
            ) from error
        if self.relevance_free and self.kind not in ("symbolic", "noisy"):
            raise ValueError("oracle.relevance_free is for oracle.kind=symbolic and noisy.")


class Symbolic:
    """Executes programs on the scene graphs of the images; `unique` is strict.

    scenes: one for each row of the features, in their order.
    """

    def __init__(self, scenes: Sequence[SceneGraph], vocabulary: Vocabulary) -> None:
        self._scenes = pack(scenes)
        self._execute = BatchExecutor(vocabulary.tokens, vocabulary.answers)

    def ask(self, images: np.ndarray, programs: np.ndarray) -> list[Reply]:
        """The replies; ValueError for an image or a token that does not exist."""
        answers, failures = self._execute(programs, self._scenes, images, require_end=True)
        return [
            Reply(answer, True, "") if failure < 0 else Reply(NO_ANSWER, False, FAILURES[failure])
            for answer, failure in zip(answers.tolist(), failures.tolist(), strict=True)
        ]


class Noisy:
    """Gives a share of the valid replies wrongly: another answer that the question's type allows.

    Whether and how depends on (seed, image, program) alone, so asking again does not help.
    """

    def __init__(self, oracle: AnyOracle, vocabulary: Vocabulary, *, flip: float, seed: int = 0):
        self._oracle, self._vocabulary = oracle, vocabulary
        self._flip, self._seed = flip, seed

    def ask(self, images: np.ndarray, programs: np.ndarray) -> list[Reply]:
        """The replies of the oracle behind it, some of them wrong."""
        replies = self._oracle.ask(images, programs)
        return [
            self._pass_on(reply, int(image), self._vocabulary.decode_program(program))
            for reply, image, program in zip(replies, images, programs, strict=True)
        ]

    def _pass_on(self, reply: Reply, image: int, program: list[str]) -> Reply:
        if not reply.valid:
            return reply
        text = f"{self._seed} {image} {' '.join(program)}".encode()
        digest = hashlib.blake2b(text, digest_size=16).digest()
        if int.from_bytes(digest[:8], "big") >= self._flip * 2**64:
            return reply
        ids = [self._vocabulary.encode_answer(text) for text in possible_answers(program[0])]
        others = [answer for answer in ids if answer != reply.answer]
        return Reply(others[int.from_bytes(digest[8:], "big") % len(others)], True, "")


class Cached:
    """Gives the replies of an ask_log.jsonl again, to the same questions about the same images.

    Programs that differ only in the order of filters or operands are the same question.
    """

    def __init__(self, path: str | Path, vocabulary: Vocabulary) -> None:
        self.path, self._vocabulary = Path(path), vocabulary
        if not self.path.is_file():
            raise ValueError(f"{path} does not exist (oracle.file): name an ask_log.jsonl.")
        lines = read_log(self.path, vocabulary)
        self._replies = {(line.image, canonical(line.program)): line.reply for line in lines}

    def ask(self, images: np.ndarray, programs: np.ndarray) -> list[Reply]:
        """The replies; ValueError naming the first question that the file does not have."""
        replies = []
        for image, row in zip(images.tolist(), programs.tolist(), strict=True):
            program = canonical(self._vocabulary.decode_program(row))
            if (image, program) not in self._replies:
                raise ValueError(
                    f"{self.path} has no reply to {' '.join(program)!r} about image {image}: add "
                    "it, or ask another oracle (oracle.kind)."
                )
            replies.append(self._replies[image, program])
        return replies


def open_ledger(
    options: Oracle,
    budget: int,
    folder: str | Path,
    *,
    vocabulary: Vocabulary,
    features: Features,
    find_scenes: Callable[[], Sequence[SceneGraph]],
) -> Ledger:
    """The ledger of a run in `folder`; find_scenes is called where scene graphs answer."""
    oracle: AnyOracle
    if options.kind == "human":
        if dist.world_size() > 1:
            raise ValueError("oracle.kind=human asks in one terminal: give processes=1.")
        oracle = Human(vocabulary, _image_of(options.images, Path(folder), features))
    elif options.kind == "cached":
        oracle = Cached(options.file, vocabulary)
    else:
        scenes = find_scenes()
        if len(scenes) < len(features):
            raise ValueError(
                f"there are scenes of {len(scenes)} images, but features of {len(features)}: "
                "data.scenes names the scenes of the split data.train."
            )
        oracle = Symbolic(scenes, vocabulary)
    if options.kind == "noisy":
        oracle = Noisy(oracle, vocabulary, flip=options.flip, seed=options.seed)
    return Ledger(
        oracle,
        folder,
        budget=budget,
        vocabulary=vocabulary,
        cost_invalid=options.cost_invalid,
        relevance_free=options.relevance_free,
    )


def _image_of(pattern: str, folder: Path, features: Features) -> Callable[[int], str]:
    """Where a person finds an image: its path, or a PNG that is written for each question."""
    if pattern:
        if pattern.format(0) == pattern.format(1):
            raise ValueError(f"oracle.images={pattern} names one image: put {{:06d}} into it.")
        first = pattern.format(0)
        if not Path(first).is_file():
            raise ValueError(f"{first} does not exist (oracle.images): name where the images are.")
        return pattern.format
    if features.dtype != np.uint8 or features.shape[1] != 3:
        raise ValueError(
            "oracle.kind=human needs images to look at: give oracle.images=<path with {:06d}>, or "
            "data.builtin.features=pixels."
        )

    def write(image: int) -> str:
        path = folder / "question.png"
        pixels = (features[[image]][0] * 255).round().byte()
        scale = max(1, 480 // pixels.shape[2])
        draw.save_png(pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2), path)
        return str(path)

    return write
