"""What an oracle says to a question about an image.

n questions of L tokens. Programs are rows of program tokens, START in front, END behind; images are
rows of the features. An oracle answers a question in one way however often it is asked.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

import numpy as np

from common.clevr.functions import ANSWERS, ATTRIBUTES, TYPES

NO_ANSWER: Final = -1


class Reply(NamedTuple):
    """An answer, or why there is none."""

    answer: int  # id in the vocabulary, -1 where invalid
    valid: bool
    reason: (
        str  # of an invalid one: a `common.clevr.execute.Failure`, or `unanswerable`; else empty
    )


class AnyOracle(Protocol):
    """What can be asked."""

    def ask(self, images: np.ndarray, programs: np.ndarray) -> Iterable[Reply]:
        """The replies to questions about images int (n,), programs int (n, L), in their order."""


def possible_answers(root: str) -> tuple[str, ...]:
    """The answers that the type of a question, the function at its root, allows."""
    if root not in TYPES:
        raise ValueError(f"{root!r} is no type of question: {', '.join(TYPES)}")
    verb, _, attribute = root.partition("_")
    if verb == "query":
        return ATTRIBUTES[attribute]
    if root == "count":
        return tuple(sorted((text for text in ANSWERS if text.isdigit()), key=int))
    return ("yes", "no")
