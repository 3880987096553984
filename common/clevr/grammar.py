"""Masks for constrained decoding: which tokens may come next in a program in prefix order.

The rules and their three levels are in rules.py. END may follow where the stack is empty, and
nothing else. A token is allowed only where the program can still be completed within the limit:
each symbol on the stack costs a number of functions at least (a set 1, an object or an integer 2, a
value 3).

B programs, V tokens in the vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from .functions import END, LONGEST_PROGRAM, NULL, SPECIAL, START, signature
from .rules import ROOT, TYPES, canonical_rules, costs, template_rules

Level = Literal["types", "canonical", "template"]
LEVELS: Final = {
    "types": lambda: TYPES,
    "canonical": canonical_rules,
    "template": template_rules,
}


class Grammar:
    """Which tokens may come next, for B programs at once; see rules.py for the levels.

    A state is a number that stands for the stack and the number of functions so far. The state
    after END allows NULL alone, so every row of a mask has an allowed token. States are numbered as
    they are met and their rows are kept, so one Grammar should serve a whole run.

        grammar = Grammar(vocabulary)
        state = grammar.start(B)
        logits = logits.masked_fill(~grammar.mask(state), -inf)           # (B, V)
        state = grammar.advance(state, chosen)                            # (B,)

    tokens: the vocabulary in its order, special tokens included (NULL and END must be among them).
    It may lack functions; programs then do without. limit: functions at most, END not counted, so
    a decoder needs room for `limit` + 1 tokens. Raises ValueError for a token that is no function
    of CLEVR, one that occurs twice, and a limit too small for any program.
    """

    START: Final = 0
    ENDED: Final = 1

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        limit: int = LONGEST_PROGRAM,
        level: Level = "types",
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"level must be types, canonical or template, not {level!r}")
        rules = LEVELS[level]()
        self.tokens = tuple(tokens)
        self.limit = limit
        self._index = {text: i for i, text in enumerate(self.tokens)}
        if len(self._index) < len(self.tokens) or not {NULL, END} <= self._index.keys():
            raise ValueError(
                f"the vocabulary must have {NULL} and {END} and every token once: "
                f"{', '.join(self.tokens)}"
            )
        self._ids: dict[str, list[int]] = {}  # function -> its tokens
        for text, i in self._index.items():
            if text not in SPECIAL:
                self._ids.setdefault(signature(text).name, []).append(i)
        self._rules = {
            symbol: {name: new for name, new in follow.items() if name in self._ids}
            for symbol, follow in rules.items()
        }
        self._cost = costs(self._rules)
        if self._cost[ROOT] > limit:
            raise ValueError(
                f"no program of up to {limit} functions can be made of these tokens: raise the "
                f"limit or complete the vocabulary ({', '.join(self.tokens)})"
            )
        # Functions used and the stack. That of ENDED is never looked at.
        self._states: list[tuple[int, tuple[str, ...]]] = [(0, (ROOT,)), (0, ())]
        self._numbers = {self._states[self.START]: self.START}
        self._known = [False, True]  # whether the row of a state is filled in
        # NumPy's, as tensors that grew under inference_mode could not be written to later.
        self._mask = np.zeros((64, len(self.tokens)), bool)
        self._next = np.full((64, len(self.tokens)), -1, np.int64)
        self._allow(self.ENDED, [self._index[NULL]], self.ENDED)
        self._copies: dict[torch.device, tuple[int, Tensor, Tensor]] = {}
        self._expand(self.START)

    def start(self, batch: int, *, device: torch.device | str | None = None) -> Tensor:
        """States (B,) of `batch` empty programs, int64."""
        return torch.full((batch,), self.START, device=device)

    def mask(self, state: Tensor) -> Tensor:
        """Whether each token may come next: bool (B, V), of states of any shape (B,)."""
        return self._tables(state.device)[0][state]

    def advance(self, state: Tensor, ids: Tensor) -> Tensor:
        """States (B,) after the tokens `ids` (B,); ValueError for a token that is not allowed."""
        after = self._tables(state.device)[1][state, ids.long()]
        met = after.unique().tolist()
        if met and met[0] < 0:
            row = int((after.flatten() < 0).nonzero()[0])
            text = self.tokens[int(ids.flatten()[row])]
            raise ValueError(
                f"program {row}: {text} may not come next here, only one of "
                f"{', '.join(self._names(int(state.flatten()[row])))}"
            )
        for number in met:
            if not self._known[number]:
                self._expand(number)
        return after

    def next_valid_tokens(self, prefix: Sequence[str]) -> set[str]:
        """Return the tokens that may follow `prefix`, which may begin with START.

        Raises ValueError naming the first token of `prefix` that should not be there.
        """
        return set(self._names(self._walk(prefix)))

    def accepts(self, tokens: Sequence[str]) -> bool:
        """Whether these tokens are a complete program of this level and limit.

        START in front is skipped; END may be left out, and what follows it or NULL is ignored.
        """
        stops = [i for i, text in enumerate(tokens) if text in (END, NULL)]
        try:
            state = self._walk(tokens[: stops[0]] if stops else tokens)
        except ValueError:
            return False
        return END in self._names(state)

    def _walk(self, prefix: Sequence[str]) -> int:
        state = self.START
        first = int(bool(prefix) and prefix[0] == START)
        for position, text in enumerate(prefix[first:], first):
            after = int(self._next[state, self._index[text]]) if text in self._index else -1
            if after < 0:
                raise ValueError(
                    f"token {position}, {text!r}, may not come here, only one of "
                    f"{', '.join(self._names(state))}"
                )
            state = after
            if not self._known[state]:
                self._expand(state)
        return state

    def _names(self, state: int) -> list[str]:
        return [self.tokens[i] for i in np.flatnonzero(self._mask[state])]

    def _expand(self, number: int) -> None:
        """Fill in the row of a state."""
        self._known[number] = True
        used, stack = self._states[number]
        if not stack:
            self._allow(number, [self._index[END]], self.ENDED)
            return
        for name, new in self._rules[stack[0]].items():
            after = (used + 1, new + stack[1:])
            if used + 1 + sum(self._cost[symbol] for symbol in after[1]) <= self.limit:
                self._allow(number, self._ids[name], self._number(after))

    def _allow(self, number: int, ids: Iterable[int], after: int) -> None:
        for i in ids:
            self._mask[number, i] = True
            self._next[number, i] = after

    def _number(self, state: tuple[int, tuple[str, ...]]) -> int:
        number = self._numbers.setdefault(state, len(self._states))
        if number == len(self._states):
            self._states.append(state)
            self._known.append(False)
            if number == len(self._mask):
                self._mask = np.concatenate([self._mask, np.zeros_like(self._mask)])
                self._next = np.concatenate([self._next, np.full_like(self._next, -1)])
        return number

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows so far on a device: masks (states, V), next states (states, V) or -1."""
        mask, following = torch.from_numpy(self._mask), torch.from_numpy(self._next)
        if device.type == "cpu":
            return mask, following
        known = sum(self._known)
        if device not in self._copies or self._copies[device][0] != known:
            self._copies[device] = known, mask.to(device), following.to(device)
        return self._copies[device][1:]
