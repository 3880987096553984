"""What the agent knows: the questions of the beginning, and every reply that it has bought.

Questions with answers stand in one growing table, those of the beginning (D_init) first and what
was bought (D_ask) behind; questions that the oracle called invalid stand in another.

n questions are added at once; L tokens of a program, Lq words of a question.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.clevr.arrays.encode import QuestionArrays
from common.clevr.arrays.features import Features
from common.clevr.dataset import Questions
from common.clevr.vocabulary import Vocabulary
from common.data import seed_of

COLUMNS = {  # of a table; the first two are filled up with NULL (0) to the longest
    "programs": np.int16,
    "questions": np.int16,
    "images": np.int64,  # rows of the features
    "answers": np.int64,  # vocabulary ids, -1 invalid
    "types": np.int8,
    "rounds": np.int64,  # in which it was bought, from 1; 0: of the beginning
    "places": np.int64,  # among all that was bought, from 0; of the beginning: in its split
}


class Growing:
    """Columns of equal length whose arrays double when they are full."""

    def __init__(self) -> None:
        self.count = 0
        self.arrays = {
            name: np.zeros((0, 1) if name in ("programs", "questions") else 0, dtype)
            for name, dtype in COLUMNS.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, (count,) or (count, width); a view that later rows do not change."""
        return self.arrays[name][: self.count]

    def append(self, columns: dict[str, np.ndarray]) -> None:
        """Add rows; narrow programs and questions are filled up."""
        more = len(columns["images"])
        for name, values in columns.items():
            array = self.arrays[name]
            shape = [len(array), *np.maximum(array.shape[1:], values.shape[1:])]
            if self.count + more > len(array):
                shape[0] = max(self.count + more, 2 * len(array))
            if tuple(shape) != array.shape:
                old, array = array, np.zeros(shape, array.dtype)
                array[tuple(slice(size) for size in old.shape)] = old
                self.arrays[name] = array
            rows = array[self.count : self.count + more]
            rows[:] = 0
            rows[tuple(slice(size) for size in values.shape)] = values
        self.count += more


class Memory:
    """D_init, D_ask and the invalid questions; checkpoint.py saves what was bought."""

    def __init__(self, initial: QuestionArrays, *, free_invalid: bool = False) -> None:
        """initial: questions with programs, answers and types. free_invalid: those cost nothing."""
        if initial.programs is None or initial.answers is None or initial.types is None:
            raise ValueError("the questions to begin with need programs and answers (data.train).")
        self.initial, self.free_invalid = len(initial), free_invalid
        self.known, self.invalid = Growing(), Growing()
        self.known.append(
            {
                "programs": initial.programs,
                "questions": initial.questions,
                "images": initial.image_idxs,
                "answers": initial.answers,
                "types": initial.types,
                "rounds": np.zeros(self.initial, np.int64),
                "places": initial.orig_idxs,
            }
        )

    @property
    def bought(self) -> int:
        """Replies so far, invalid ones included."""
        return self.known.count - self.initial + self.invalid.count

    def add(
        self,
        round_: int,
        *,
        images: np.ndarray,
        programs: np.ndarray,
        answers: np.ndarray,
        types: np.ndarray,
        questions: np.ndarray | None = None,
    ) -> None:
        """Note the replies of a round, counted from 1.

        images int (n,); programs int (n, L); answers int (n,), -1 invalid; types int (n,);
        questions int (n, Lq), the words where the answerer reads them.
        """
        latest = max(int(table["rounds"].max(initial=1)) for table in (self.known, self.invalid))
        if round_ < latest:
            raise ValueError(f"round {round_} comes behind round {latest}: rounds go up from 1.")
        count = len(images)
        columns = {
            "programs": np.asarray(programs),
            "questions": np.zeros((count, 1), np.int16) if questions is None else questions,
            "images": np.asarray(images),
            "answers": np.asarray(answers),
            "types": np.asarray(types),
            "rounds": np.full(count, round_),
            "places": np.arange(self.bought, self.bought + count),
        }
        for name, values in columns.items():
            if len(values) != count:
                raise ValueError(f"{len(values)} {name} were given for {count} images.")
        valid = columns["answers"] >= 0
        self.known.append({name: values[valid] for name, values in columns.items()})
        self.invalid.append({name: values[~valid] for name, values in columns.items()})

    def rows(self) -> QuestionArrays:
        """D_init and D_ask, the valid ones, in the order in which they came."""
        return _arrays(self.known, slice(0, None))

    def asked(self) -> QuestionArrays:
        """D_ask, the valid ones; orig_idxs: their places among all replies."""
        return _arrays(self.known, slice(self.initial, None))

    def refused(self) -> QuestionArrays:
        """The invalid ones; their answers are -1."""
        return _arrays(self.invalid, slice(0, None))

    def dataset(
        self, words: Vocabulary, features: Features, budget: int | None = None
    ) -> Questions:
        """D_init and D_ask, or what a smaller budget had bought of it, as questions to learn."""
        end = self.known.count
        if budget is not None and self.free_invalid:
            end = min(end, self.initial + budget)
        elif budget is not None:
            end = self.initial + int((self.known["places"][self.initial :] < budget).sum())
        return Questions("asked", _arrays(self.known, slice(0, end)), words, features)

    def draw(self, round_: int, update: int, size: int, *, replay: float, seed: int) -> np.ndarray:
        """Places in `rows()` of the batch of an update after a round, int64 (size,).

        A share `replay` comes from all that is known, at random, the rest from the valid replies
        of the round, in an order of the round that the updates go through again and again. A
        function of (seed, round_, update) and of what was bought up to that round.
        """
        rounds = self.known["rounds"][self.initial :]
        end = self.initial + int(np.searchsorted(rounds, round_, "right"))
        start = self.initial + int(np.searchsorted(rounds, round_, "left"))
        fresh = size - round(replay * size) if end > start else 0
        order = start + np.random.default_rng(seed_of(seed, round_, 3)).permutation(end - start)
        turn = np.arange(update * fresh, (update + 1) * fresh)
        new = order[turn % len(order)] if fresh else order[:0]
        random = np.random.default_rng((seed_of(seed, round_, 4), update))
        return np.concatenate([new, random.integers(end, size=size - fresh)])

    def state_dict(self) -> dict[str, Any]:
        """What was bought, as tensors, and the number of questions to begin with."""
        tables = {"known": (self.known, self.initial), "invalid": (self.invalid, 0)}
        return {"initial": self.initial} | {
            part: {name: torch.from_numpy(table[name][first:].copy()) for name in COLUMNS}
            for part, (table, first) in tables.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what was bought from `state_dict`; a memory that has bought something loses it."""
        if state["initial"] != self.initial:
            raise ValueError(
                f"the checkpoint began with {state['initial']} questions, this run with "
                f"{self.initial}: give the same data.init."
            )
        self.known.count, self.invalid = self.initial, Growing()
        for table, part in ((self.known, "known"), (self.invalid, "invalid")):
            columns: dict[str, Tensor] = state[part]
            table.append({name: columns[name].numpy() for name in COLUMNS})


def _arrays(table: Growing, part: slice) -> QuestionArrays:
    """Some rows of a table, without a copy."""
    return QuestionArrays(
        questions=table["questions"][part],
        programs=table["programs"][part],
        answers=table["answers"][part],
        image_idxs=table["images"][part],
        orig_idxs=table["places"][part],
        types=table["types"][part],
    )
