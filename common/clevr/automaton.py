"""Reading of many programs at once: a finite automaton over the stacks of the type grammar.

It goes along the columns of the programs and finds every malformed one; see execute.py for the
faults and their order.

B programs of L tokens, F functions in all.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from .execute import Failure
from .functions import END, NULL, START, signature
from .rules import ROOT, TYPES

FAILURES: Final = {failure: code for code, failure in enumerate(Failure)}


class Reading(NamedTuple):
    """The F functions of the well-formed programs, and the failures of the others."""

    failures: np.ndarray  # int8 (B,): -1 none
    roots: np.ndarray  # int64 (B,): token of the root; anything where there is none
    rows: np.ndarray  # int64 (F,): program
    tokens: np.ndarray  # int64 (F,)
    distance: np.ndarray  # int64 (F,): functions after it in its program
    places: np.ndarray  # int64 (F,): place of its result in the stack


class Reader:
    """The automaton. Its states are the failures, in their order, then the stacks as they are met.

    Of stacks there are few, about a dozen for each token of the longest program: only sets pile up.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._functions = [function_name(text) for text in tokens]
        self._start, self._end, null = (
            tokens.index(text) if text in tokens else -1 for text in (START, END, NULL)
        )
        self._stops = [self._end, null]
        # (states, V + 1): the last column is what is no part of the program and changes nothing.
        self._next = np.repeat(np.arange(len(Failure))[:, None], len(tokens) + 1, axis=1)
        self._stacks: dict[int, tuple[str, ...]] = {}
        self._numbers: dict[tuple[str, ...], int] = {}
        self._depths = np.zeros(len(Failure), np.int64)  # (states,)
        self._root = self._number((ROOT,))
        self._complete = self._number(())

    def read(self, programs: np.ndarray, *, require_end: bool) -> Reading:
        """Read programs (B, L), L at least 1."""
        batch, length = programs.shape
        stops = np.isin(programs, self._stops)
        outside = np.logical_or.accumulate(stops, axis=1)
        skipped = programs[:, 0] == self._start
        outside[:, 0] |= skipped
        columns = np.where(outside, len(self._functions), programs).T  # (L, B)
        states = np.empty((length + 1, batch), np.int64)  # before each column, and at the end
        states[0] = self._root
        for step, column in enumerate(columns):
            states[step + 1] = self._step(states[step], column)
        last = states[-1]
        failures = np.where(last < len(Failure), last, FAILURES[Failure.UNDERFLOW])
        failures[last == self._complete] = -1
        if require_end:
            ended = programs[np.arange(batch), stops.argmax(1)] == self._end
            failures[(last >= len(Failure)) & ~ended] = FAILURES[Failure.NO_END]
        t, rows = np.nonzero(~outside.T & (failures < 0))
        sizes = np.bincount(rows, minlength=batch) + skipped
        return Reading(
            failures=failures.astype(np.int8),
            roots=programs[np.arange(batch), skipped.astype(int) % length],
            rows=rows,
            tokens=columns[t, rows],
            distance=sizes[rows] - 1 - t,
            places=self._depths[states[t, rows]] - 1,
        )

    def _step(self, states: np.ndarray, column: np.ndarray) -> np.ndarray:
        after = self._next[states, column]
        missing = after < 0
        if missing.any():
            for state in np.unique(states[missing]).tolist():
                self._expand(state)
            after = self._next[states, column]
        return after

    def _expand(self, state: int) -> None:
        """Fill in the row of a stack."""
        stack = self._stacks[state]
        for i, name in enumerate(self._functions):
            if not stack:
                self._next[state, i] = FAILURES[Failure.TRAILING]
            elif name is None:
                self._next[state, i] = FAILURES[Failure.UNKNOWN]
            elif name not in TYPES[stack[0]]:
                self._next[state, i] = FAILURES[Failure.TYPE_ERROR]
            else:
                after = self._number(TYPES[stack[0]][name] + stack[1:])
                self._next[state, i] = after  # the table may have grown meanwhile

    def _number(self, stack: tuple[str, ...]) -> int:
        """The state of a stack, the top first."""
        if stack not in self._numbers:
            number = self._numbers[stack] = len(self._next)
            self._stacks[number] = stack
            row = np.full((1, self._next.shape[1]), -1)
            row[0, -1] = number
            self._next = np.concatenate([self._next, row])
            self._depths = np.append(self._depths, len(stack))
        return self._numbers[stack]


def function_name(text: str) -> str | None:
    """The name of a token's function, if it has one."""
    try:
        return signature(text).name
    except ValueError:
        return None
