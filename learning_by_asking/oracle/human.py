"""A person as the oracle: questions and answers in the terminal.

The run waits for each answer, and the ledger writes it down before the next question. So nothing is
lost with `quit`, Ctrl-C or a closed terminal; the same command goes on behind the last answer.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Final, TextIO

import numpy as np

from common.clevr.execute import Failure, check_program
from common.clevr.vocabulary import Vocabulary
from common.errors import PREEMPTED, UserError

from ..language.sentences import sentence
from .replies import NO_ANSWER, Reply, possible_answers

UNANSWERABLE: Final = "unanswerable"  # the reason of what a person called invalid
_SHORT: Final = {"y": "yes", "n": "no", "i": "invalid", "q": "quit"}


class Human:
    """Asks whoever sits at the terminal.

    image_of: text that says where to see the image with this number, such as its path. Malformed
    programs, which have no sentence, are invalid without being shown.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        image_of: Callable[[int], str],
        *,
        source: TextIO | None = None,
        sink: TextIO | None = None,
    ) -> None:
        self.vocabulary, self.image_of = vocabulary, image_of
        self.source, self.sink = source or sys.stdin, sink or sys.stdout

    def ask(self, images: np.ndarray, programs: np.ndarray) -> Iterator[Reply]:
        """Replies one by one, each when it is given; UserError where the person stops."""
        rows = zip(images.tolist(), programs.tolist(), strict=True)
        for number, (image, program) in enumerate(rows, 1):
            yield self._ask_one(image, program, f"{number} of {len(images)}")

    def _ask_one(self, image: int, program: list[int], place: str) -> Reply:
        tokens = [self.vocabulary.tokens[i] for i in program]
        checked = check_program(tokens, require_end=True)
        if isinstance(checked, Failure):
            return Reply(NO_ANSWER, False, checked.value)
        choices = [*possible_answers(checked[0]), "invalid"]
        self._say(f"\nQuestion {place}: {sentence(checked)}\nImage: {self.image_of(image)}\n")
        while True:
            self._say(f"Answer ({', '.join(choices)}; quit): ")
            text = self.source.readline()
            word = text.strip().lower()
            word = _SHORT.get(word, word)
            if not text or word == "quit":
                raise UserError(
                    "Stopped at a question. All answers given are kept: run the same command again "
                    "in a terminal to go on.",
                    PREEMPTED,
                )
            if word == "invalid":
                return Reply(NO_ANSWER, False, UNANSWERABLE)
            if word in choices:
                return Reply(self.vocabulary.encode_answer(word), True, "")
            self._say(f"{word!r} is no answer to this question.\n")

    def _say(self, text: str) -> None:
        print(text, end="", file=self.sink, flush=True)
