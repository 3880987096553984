"""The type grammar of programs in prefix order: a check, and masks for constrained decoding.

A stack holds what is still to come, the very next on top; it starts with the root. A token takes
the top away and puts the kinds of its inputs in its place, the first input on top:

    wanted      may follow                                  is replaced by
    root        count, exist                                set
                query_A                                     object
                equal_A                                     value of A, value of A
                equal_integer, less_than, greater_than      integer, integer
    set         scene                                       -
                filter_A[v]                                 set
                relate[r], same_A                           object
                union, intersect                            set, set
    object      unique                                      set
    integer     count                                       set
    value of A  query_A                                     object

END may follow where the stack is empty, and nothing else. A token is allowed only where the program
can still be completed within the limit: each symbol costs a number of functions at least (a set 1,
an object or an integer 2, a value 3).

`Grammar` has three levels, each within the one before:

- types: the table above. These are the programs that the symbolic executor accepts.
- canonical: and written as the data writes them. Successive filters ask for each attribute once at
  most, in the order shape, material, color, size (the size is filtered first, so it stands next to
  the scene); union and intersect appear as in the templates only.
- template: and with the skeleton of one of CLEVR's 90 templates (Johnson et al., CVPR 2017,
  Sec. 3). Which filters a run has, if any, is left open, as are the filters that a template leaves
  out so that its sentence does not give the answer away.

B programs, V tokens in the vocabulary.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from .execute import ANSWER_KINDS, Failure
from .functions import (
    ATTRIBUTES,
    END,
    FUNCTIONS,
    LONGEST_PROGRAM,
    NULL,
    SPECIAL,
    START,
    Kind,
    signature,
)

Level = Literal["types", "canonical", "template"]
# Symbol -> name of a function that may come -> the symbols in its place, the first on top.
Rules = Mapping[str, Mapping[str, tuple[str, ...]]]

ROOT: Final = "root"
_FILTERS: Final = tuple(f"filter_{name}" for name in reversed(ATTRIBUTES))  # as prefix shows them
_COMPARISONS: Final = ("equal_integer", "less_than", "greater_than")


def _typed() -> Rules:
    """Level `types`, read off the signatures."""
    rules: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in (ROOT, *Kind)}
    for function in FUNCTIONS.values():
        rules[function.output][function.name] = function.inputs
        if function.output in ANSWER_KINDS:
            rules[ROOT][function.name] = function.inputs
    return rules


TYPES: Final = _typed()


def _run(leaves: Mapping[str, tuple[str, ...]], name: str) -> Rules:
    """Rules of `name`: a run of filters in canonical order, then one of `leaves`."""
    rules = {}
    for used in range(len(_FILTERS) + 1):
        symbol = f"{name} {_FILTERS[used - 1]}" if used else name
        rest = {following: (f"{name} {following}",) for following in _FILTERS[used:]}
        rules[symbol] = {**leaves, **rest}
    return rules


def _counted(leaves: Mapping[str, tuple[str, ...]]) -> Rules:
    """Rules of `counted`, what a count at the root counts: as `_run`, or a union.

    The templates have a union right below the count, of sets that may be related to something, or
    below one filter, of plain sets.
    """
    rules = {symbol: dict(follow) for symbol, follow in _run(leaves, "counted").items()}
    rules["counted"]["union"] = ("either", "either")
    for name in _FILTERS:
        rules["counted"][name] = (f"counted only {name}",)
        rules[f"counted only {name}"] = {**rules[f"counted {name}"], "union": ("plain", "plain")}
    return rules


def _sentences(
    leaves: Mapping[str, tuple[str, ...]], compared: str, numbers: tuple[str, ...], *, same: bool
) -> Rules:
    """What the levels `canonical` and `template` share.

    leaves: what a set that is counted, asked about or looked for may consist of; compared: the
    objects whose values are compared; numbers: the symbols of two numbers; same: whether an
    attribute may be asked of the objects that share it.
    """
    both = {"intersect": ("beside", "beside")}
    rules: dict[str, Mapping[str, tuple[str, ...]]] = {
        ROOT: {
            "exist": ("set",),
            "count": ("counted",),
            **{f"query_{name}": (f"asked {name}",) for name in ATTRIBUTES},
            **{f"equal_{name}": (f"value {name}",) * 2 for name in ATTRIBUTES},
            **dict.fromkeys(_COMPARISONS, numbers),
        },
        "anchor": {"unique": ("plain",)},
        "beside": {"relate": ("anchor",)},
        **_run({"scene": ()}, "plain"),
        **_run({"scene": (), "relate": ("anchor",)}, "either"),
        **_run(leaves, "set"),
        **_counted({**leaves, **both}),
    }
    for name in ATTRIBUTES:
        asked = {k: v for k, v in leaves.items() if same or k != f"same_{name}"}
        rules[f"asked {name}"] = {"unique": (f"asked {name} set",)}
        rules |= _run({**asked, **both}, f"asked {name} set")
        rules[f"value {name}"] = {f"query_{name}": (compared,)}
    return rules


def _canonical() -> Rules:
    """Chains of any length; set operations as in the templates."""
    leaves = {"scene": (), "relate": ("object",)}
    leaves |= {f"same_{name}": ("object",) for name in ATTRIBUTES}
    return {
        **_sentences(leaves, "object", ("number", "number"), same=True),
        "object": {"unique": ("set",)},
        "number": {"count": ("set",)},
    }


def _templates() -> Rules:
    """The 90 templates: `object 2` may be reached by two more relations, `object 1` by one."""
    leaves = {"scene": (), "relate": ("object 2",)}  # zero to three hops in all
    leaves |= {f"same_{name}": ("anchor",) for name in ATTRIBUTES}
    return {
        **_sentences(leaves, "object 1", ("first",), same=False),
        "object 2": {"unique": ("set 2",)},
        **_run({"scene": (), "relate": ("object 1",)}, "set 2"),
        "object 1": {"unique": ("either",)},
        # Two numbers, of which the second counts related objects only if the first does.
        "first": {"count": ("first set",)},
        **_run({"scene": ("plain number",), "relate": ("anchor", "number")}, "first set"),
        "plain number": {"count": ("plain",)},
        "number": {"count": ("either",)},
    }


def check(tokens: Sequence[str]) -> tuple[int, Failure] | None:
    """Return None for a well-typed prefix program, else where it goes wrong first, and how.

    START in front is skipped, END and NULL end it, as in `execute`; the length is not limited.
    The failure is trailing, unknown, type_error or underflow; the position is that of the token
    among `tokens`, for an underflow where the next token should be.
    """
    stack = [ROOT]
    position = first = int(bool(tokens) and tokens[0] == START)
    for position, text in enumerate(tokens[first:], first):
        if text in (END, NULL):
            break
        if not stack:
            return position, Failure.TRAILING
        try:
            name = signature(text).name
        except ValueError:
            return position, Failure.UNKNOWN
        inputs = TYPES[stack.pop()].get(name)
        if inputs is None:
            return position, Failure.TYPE_ERROR
        stack += reversed(inputs)
    else:
        position = len(tokens)
    return (position, Failure.UNDERFLOW) if stack else None


class Grammar:
    """Which tokens may come next, for B programs at once; see the module for the levels.

    A state is a number that stands for the stack and the functions used so far. The state after END
    allows NULL alone, so every row of a mask has an allowed token. States are numbered as they
    are met and their rows kept, so one Grammar should serve a whole run.

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
        match level:
            case "types":
                rules = TYPES
            case "canonical":
                rules = _canonical()
            case "template":
                rules = _templates()
            case _:
                raise ValueError(f"level must be types, canonical or template, not {level!r}")
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
        self._cost = _costs(self._rules)
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
        """Whether each token may come next: bool (B, V), from states of any shape (B,)."""
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
        """Whether these tokens are a complete program of this level and limit; END may be left out.

        START in front is skipped; what follows END or NULL is ignored.
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


def _costs(rules: Rules) -> dict[str, float]:
    """The functions that each symbol needs at least; infinite where the vocabulary lacks one."""
    cost = dict.fromkeys(rules, math.inf)
    changed = True
    while changed:
        changed = False
        for symbol, follow in rules.items():
            least = min(
                (1 + sum(cost[new] for new in news) for news in follow.values()), default=math.inf
            )
            changed = changed or least < cost[symbol]
            cost[symbol] = least
    return cost
