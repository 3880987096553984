"""The ledger: it sells replies for the budget and writes each into ask_log.jsonl.

A line is in the file before its reply is handed out, so that a kill loses none that was paid. Lines
beyond the checkpoint that a run resumes from are such replies: `rewind` keeps them, and the same
question in the same round gets its reply from them instead of from the oracle. A run that repeats
its rounds exactly therefore writes the file that it would have written without the kill.
"""

import errno
import json
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from common import dist
from common.clevr.accuracy import TYPES
from common.clevr.functions import SPECIAL
from common.clevr.vocabulary import Vocabulary

from .replies import NO_ANSWER, AnyOracle, Reply

LOG = "ask_log.jsonl"
FIRST = len(SPECIAL)  # id of the first answer
Key = tuple[int, int, tuple[str, ...]]  # round, image, program
T = TypeVar("T")


class BudgetExceeded(ValueError):
    """A request for more replies than the budget has left: none of them was asked."""

    def __init__(self, asked: int, left: int) -> None:
        super().__init__(asked, left)
        self.asked, self.left = asked, left

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"{self.asked} replies are asked for, but the budget has {self.left} left: ask fewer, "
            "or raise budget."
        )


@dataclass(frozen=True)
class Entry:
    """A question to buy the answer of, and why it was chosen."""

    image: int  # row of the features
    program: tuple[int, ...]  # token ids from START to END; NULL may follow
    type: int  # index in accuracy.TYPES
    probabilities: np.ndarray  # (28,) of the answers, by the answerer before it learns
    n_raw: int = 0  # proposals drawn
    n_kept: int = 0  # proposals that were scored
    relevance: float = math.nan
    score: float = math.nan
    rank_by_entropy: int = 0  # among the scored; 0: the most uncertain
    eps_random: bool = False  # picked at random, by epsilon
    seconds: float = 0.0  # for proposing and choosing it


class Line(NamedTuple):
    """A reply in the log."""

    round: int
    image: int
    program: tuple[str, ...]
    reply: Reply


class Ledger:
    """Sells `budget` replies of an oracle. Every rank makes one; rank 0's alone asks and writes.

    cost_invalid: what an invalid reply costs, 1 or 0; a valid one costs 1. Rounds count from 1.
    """

    def __init__(
        self,
        oracle: AnyOracle,
        folder: str | Path,
        *,
        budget: int,
        vocabulary: Vocabulary,
        cost_invalid: int = 1,
        relevance_free: bool = False,
    ) -> None:
        if budget < 0 or cost_invalid not in (0, 1):
            raise ValueError(f"budget={budget} must be 0 or more, cost_invalid={cost_invalid} 0|1.")
        self.path = Path(folder, LOG)
        self.budget, self.cost_invalid = budget, cost_invalid
        self.relevance_free = relevance_free
        self._oracle, self._vocabulary = oracle, vocabulary
        self.rewind(0)

    @property
    def left(self) -> int:
        """What may still be spent; replies that are paid, but not yet handed out again, count."""
        return self.budget - self.spent

    def rewind(self, round: int) -> None:
        """Go on behind `round`: what the log holds beyond it is paid and is handed out again.

        A damaged last line, which a kill leaves, is dropped with a warning. Raises ValueError
        naming the file and line of any other fault. Call it on all ranks.
        """
        self.round, self.spent, self.calls, self.valid = round, 0, 0, 0
        self._paid: dict[Key, deque[Reply]] = {}
        for line in read_log(self.path, self._vocabulary, mend=dist.is_main()):
            if line.round <= round:
                self._count(line.reply)
            else:
                key = (line.round, line.image, line.program)
                self._paid.setdefault(key, deque()).append(line.reply)
        dist.barrier()  # rank 0 writes only when all have read

    def buy(self, round: int, entries: Sequence[Entry]) -> list[Reply]:
        """The replies to the entries, in their order. Call it on all ranks with equal entries.

        Raises BudgetExceeded, having asked none, where the budget cannot pay for all of them.
        """
        paid = {key: deque(replies) for key, replies in self._paid.items()}
        known: list[Reply | None] = []
        for entry in entries:
            program = tuple(self._vocabulary.decode_program(entry.program))
            replies = paid.get((round, entry.image, program))
            known.append(replies.popleft() if replies else None)
        new = [i for i, reply in enumerate(known) if reply is None]
        room = self.left - sum(self._cost(reply) for each in self._paid.values() for reply in each)
        if len(new) > room:
            raise BudgetExceeded(len(new), room)
        bought = self._ask(round, [entries[i] for i in new]) if dist.is_main() and new else []
        bought = dist.gather(bought)[0]
        for i, reply in zip(new, bought, strict=True):
            known[i] = reply
        handed = [reply for reply in known if reply is not None]
        # A run that does not repeat itself exactly, as on a GPU, leaves some of what was paid.
        lost = [reply for key in paid if key[0] <= round for reply in paid[key]]
        for reply in (*handed, *lost):
            self._count(reply)
        self._paid = {key: replies for key, replies in paid.items() if key[0] > round}
        self.round = round
        return handed

    def peek(self, images: np.ndarray, programs: np.ndarray) -> list[Reply]:
        """Replies to questions (n,) at no cost and unlogged: for upper bounds alone."""
        if not self.relevance_free:
            raise ValueError("give oracle.relevance_free=true to look at replies at no cost.")
        return list(self._oracle.ask(images, programs))

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps: the log holds the rest."""
        return {"round": self.round, "calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Rewind to the checkpoint's round; ValueError where the log lacks its replies."""
        self.rewind(state["round"])
        if self.calls != state["calls"]:
            raise ValueError(
                f"{self.path} holds {self.calls} replies up to round {self.round}, but the "
                f"checkpoint knows of {state['calls']}: put back the log of this run, or start in "
                "a new folder."
            )

    def _cost(self, reply: Reply) -> int:
        return 1 if reply.valid else self.cost_invalid

    def _count(self, reply: Reply) -> None:
        self.calls += 1
        self.valid += reply.valid
        self.spent += self._cost(reply)

    def _ask(self, round: int, entries: Sequence[Entry]) -> list[Reply]:
        """Ask the oracle, and write each line as its reply comes: a person may take minutes."""
        programs = np.zeros((len(entries), max(len(entry.program) for entry in entries)), np.int64)
        for row, entry in zip(programs, entries, strict=True):
            row[: len(entry.program)] = entry.program
        images = np.array([entry.image for entry in entries], np.int64)
        replies = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab", buffering=0)  # closing it has nothing left to write
        except OSError as error:
            raise self._unwritable(error) from error
        with file:
            for entry, reply in zip(entries, self._oracle.ask(images, programs), strict=True):
                line = json.dumps(self._line(round, entry, reply)).encode() + b"\n"
                try:
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as error:
                    raise self._unwritable(error) from error
                replies.append(reply)
            os.fsync(file.fileno())
        return replies

    def _unwritable(self, error: OSError) -> OSError:
        return OSError(
            f"{self.path} could not be written ({error.strerror or error}): make room or choose "
            "another folder, then run the same command again; replies that it holds stay paid."
        )

    def _line(self, round: int, entry: Entry, reply: Reply) -> dict[str, Any]:
        chances = np.asarray(entry.probabilities, np.float64)
        entropy = -float((chances * np.log(np.maximum(chances, 1e-12))).sum())
        right = float(chances[reply.answer - FIRST]) if reply.answer >= FIRST else math.nan
        return {
            "round": round,
            "image_index": int(entry.image),
            "type": TYPES[entry.type] if 0 <= entry.type < len(TYPES) else None,
            "program": self._vocabulary.decode_program(entry.program),
            "n_raw": int(entry.n_raw),
            "n_kept": int(entry.n_kept),
            "relevance": _number(entry.relevance),
            "score": _number(entry.score),
            "rank_by_entropy": int(entry.rank_by_entropy),
            "eps_random": bool(entry.eps_random),
            "reply": self._vocabulary.decode_answer(reply.answer) if reply.valid else None,
            "valid": reply.valid,
            "reason": reply.reason,
            "v_prob_answer": _number(right),
            "v_entropy": _number(entropy),  # nats
            "seconds": _number(entry.seconds),
        }


def _number(value: float) -> float | None:
    """Six digits; None for what JSON cannot hold."""
    return round(float(value), 6) if math.isfinite(value) else None


def read_log(path: Path, vocabulary: Vocabulary, *, mend: bool = False) -> Iterator[Line]:
    """The lines of ask_log.jsonl, see `read_rows`; none where there is no file."""

    def parse(row: dict[str, Any]) -> Line:
        answer = vocabulary.encode_answer(row["reply"]) if row["valid"] else NO_ANSWER
        reply = Reply(answer, bool(row["valid"]), str(row["reason"]))
        return Line(int(row["round"]), int(row["image_index"]), tuple(row["program"]), reply)

    return read_rows(path, parse, mend=mend) if path.exists() else iter(())


def read_rows(
    path: Path, parse: Callable[[dict[str, Any]], T], *, mend: bool = False
) -> Iterator[T]:
    """`parse` of each line of ask_log.jsonl, in their order.

    A last line that a kill cut off is left out with a warning. mend: remove it from the file, so
    that lines may be appended. Raises ValueError naming the file and line of any other fault.
    """
    whole, newline, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        warnings.warn(f"{path}: its last line was cut off and is left out", stacklevel=2)
        if mend:
            os.truncate(path, len(whole) + len(newline))
    for number, text in enumerate(whole.split(b"\n") if newline else [], 1):
        try:
            found = parse(json.loads(text))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is no reply ({error}): repair or remove that line"
            ) from error
        yield found
