"""What a run asked, read back from its ask_log.jsonl: for figures, export and statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..oracle.ledger import LOG, read_rows


@dataclass(frozen=True)
class Asked:
    """A question that was asked, and what came of it; None is what a number had no value for."""

    round: int
    image_index: int  # row of the features
    type: str | None  # the function at the program's root, one of accuracy.TYPES
    program: tuple[str, ...]  # tokens in prefix order
    reply: str | None  # None: invalid
    valid: bool
    reason: str  # of an invalid one
    n_raw: int  # proposals drawn
    n_kept: int  # proposals that were scored
    relevance: float | None
    score: float | None
    rank_by_entropy: int
    eps_random: bool
    v_prob_answer: float | None  # of the right answer, by the answerer before it learned
    v_entropy: float | None  # nats
    seconds: float | None


def read_history(folder: str | Path) -> list[Asked]:
    """Everything that the run in `folder` asked, in its order.

    A last line that a kill cut off is left out with a warning. ValueError names the file that is
    missing, or the line that is no reply.
    """
    path = Path(folder, LOG)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name the folder of a run that asks questions.")
    return list(read_rows(path, _parse))


def _parse(row: dict[str, Any]) -> Asked:
    values = {field.name: row[field.name] for field in fields(Asked)}
    return Asked(**values | {"program": tuple(map(str, values["program"]))})


def times_of(history: Sequence[Asked]) -> np.ndarray:
    """When each was asked, (n,): share of all replies that came before it, 0 to 1, the middle."""
    return (np.arange(len(history)) + 0.5) / max(1, len(history))
