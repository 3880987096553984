"""Accuracy by question type, and the exact match of programs.

A question's type is the function at the root of its true program: 13 of them, in the columns of
Table 1 of "Inferring and Executing Programs for Visual Reasoning" (Johnson et al., ICCV 2017).
The CLEVR paper pools them in 5 groups. All means are over questions: neither the overall
accuracy nor that of a group is a mean over types.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from .. import dist
from .functions import END, GROUPS, NULL, SPECIAL, START, TYPES

_TYPE_OF: Final = {kind: index for index, kind in enumerate(TYPES)}
_NULL, _START, _END = (SPECIAL.index(name) for name in (NULL, START, END))


def type_of(function: str) -> int:
    """Return the index in `TYPES` of the function at a program's root; -1 for any other function.

    The root's token will do as well, for functions that can be a root have no values.
    """
    return _TYPE_OF.get(function, -1)


class TypeAccuracy:
    """Answer accuracy in percent: overall, of each type and of each group."""

    def __init__(self) -> None:
        # Row per type, and a last one for questions of no known type; correct ones, questions.
        self.counts = torch.zeros(len(TYPES) + 1, 2, dtype=torch.int64)

    def update(self, correct: Tensor | np.ndarray, types: Tensor | np.ndarray) -> None:
        """Count N questions: correct (N,) bool; types (N,) int in 0..12, or -1 for unknown."""
        correct = torch.as_tensor(correct).cpu()
        types = torch.as_tensor(types).cpu().long()
        if correct.dtype != torch.bool or correct.ndim != 1 or correct.shape != types.shape:
            raise ValueError(
                f"expected a bool and a type for each question, not {correct.dtype} "
                f"{tuple(correct.shape)} and types {tuple(types.shape)}"
            )
        outside = (types < -1) | (types >= len(TYPES))
        if outside.any():
            first = int(outside.nonzero()[0])
            raise ValueError(f"question {first} has the type {int(types[first])}, not -1 to 12")
        rows = types.where(types >= 0, len(TYPES))
        self.counts[:, 0] += torch.bincount(rows[correct], minlength=len(TYPES) + 1)
        self.counts[:, 1] += torch.bincount(rows, minlength=len(TYPES) + 1)

    def compute(self) -> dict[str, float]:
        """Percent under "overall", the names of `TYPES` and of `GROUPS`; nan without questions.

        "exist" and "count" are a type and a group at once, so there are 17 figures. Questions of
        no known type count in "overall" only. Call it in every process: it sums over them.
        """
        counts = dist.total(self.counts.to(dist.device())).cpu()
        rows = {"overall": list(range(len(TYPES) + 1))}
        rows |= {kind: [index] for kind, index in _TYPE_OF.items()}
        rows |= {group: [_TYPE_OF[kind] for kind in kinds] for group, kinds in GROUPS.items()}
        return {name: _percent(counts[chosen].sum(0)) for name, chosen in rows.items()}


def _percent(counts: Tensor) -> float:
    correct, questions = counts.tolist()
    return 100 * correct / questions if questions else float("nan")


def exact_match(predicted: Tensor | np.ndarray, true: Tensor | np.ndarray) -> Tensor:
    """Whether each predicted program equals the true one token by token, bool (N,).

    predicted: (N, L) and true: (N, M), vocabulary indices. START in front is skipped, and END or
    NULL ends a program, so it does not matter whether these are there and how far rows are padded.
    """
    left, right = _bodies(torch.as_tensor(predicted)), _bodies(torch.as_tensor(true))
    if len(left) != len(right):
        raise ValueError(f"{len(left)} predicted programs, but {len(right)} true ones")
    width = max(left.shape[1], right.shape[1])
    left, right = (
        torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in (left, right)
    )
    return (left == right.to(left.device)).all(1)


def _bodies(programs: Tensor) -> Tensor:
    """Return programs (N, L) without START in front, END and what follows it: (N, L), 0-padded."""
    if programs.ndim != 2:
        raise ValueError(f"expected programs as a matrix of indices, not {tuple(programs.shape)}")
    programs = torch.nn.functional.pad(programs.long(), (0, 1))  # (N, L + 1)
    starts = (programs[:, :1] == _START).expand(-1, programs.shape[1] - 1)
    programs = programs[:, 1:].where(starts, programs[:, :-1])  # (N, L)
    ends = (programs == _END) | (programs == _NULL)
    return programs.masked_fill(ends.cumsum(1) > 0, _NULL)
