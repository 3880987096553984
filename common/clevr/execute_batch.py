"""Symbolic execution of many programs at once: the same answers and failures as `execute`.

Nothing is done program by program. Reading: a finite automaton over the stacks of the type grammar
goes along the columns of the programs and finds every malformed one; see `execute` for the faults
and their order. Running: the functions of all programs are sorted by their distance from the
program's end and by operation, and each such group is computed in one go.

Running needs a stack of values per program, but no pointer into it. Before a token is read, d
results are still wanted; the tokens from it on provide exactly these. Going backwards, the result
of that token is therefore on place d - 1 of the stack. So are its only input and the second of
two, while the first of two is on place d.

A value is one int64: a set has bit i set for object i, an object is its index, yes is 1, and the
values of the attributes are numbered through: size 0-1, color 2-9, material 10-11, shape 12-14.

B programs of L tokens, F functions in all; S scenes of n objects at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from torch import Tensor

from .execute import Failure, Unique
from .functions import ATTRIBUTES, END, NULL, RELATIONS, START, UNK, Kind, parse_token, signature
from .rules import ROOT, TYPES
from .scene_graph import SceneGraph

MOST_BITS: Final = 62  # objects of a scene: an int64 with the sign left alone

_FAILURES: Final = {failure: code for code, failure in enumerate(Failure)}
_VALUES: Final = tuple(value for values in ATTRIBUTES.values() for value in values)
_FIRST: Final = np.cumsum([0, *(len(values) for values in ATTRIBUTES.values())])[:-1]  # (4,)


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class PackedScenes:
    """S scenes as arrays, filled up to the n objects of the largest."""

    attributes: np.ndarray  # int8 (S, n, 4): place in the tuples of ATTRIBUTES, in their order
    mask: np.ndarray  # bool (S, n): whether there is such an object
    relations: np.ndarray  # bool (S, 4, n, n): [s, r, i, j] says that j is r of i

    def __len__(self) -> int:
        return len(self.mask)

    @cached_property
    def bits(self) -> "_Bits":
        """The sets of each scene as bits, made once."""
        scenes, n = self.mask.shape
        if n > MOST_BITS:
            raise ValueError(f"a scene may have up to {MOST_BITS} objects here, not {n}")
        weights = 1 << np.arange(n)
        looks = self.attributes + _FIRST  # (S, n, 4)
        own = np.where(self.mask, weights, 0)  # (S, n)
        members = np.zeros((scenes, len(_VALUES)), np.int64)
        for i in range(n):
            for a in range(len(ATTRIBUTES)):
                members[np.arange(scenes), looks[:, i, a]] |= own[:, i]
        # A scene without objects must still have an object 0 to point at where `unique` fails.
        room = ((0, 0), (0, int(n == 0)))
        return _Bits(
            everything=own.sum(1),
            members=members,
            related=np.pad(self.relations @ weights, ((0, 0), *room)),
            looks=np.pad(looks, (*room, (0, 0))),
        )


class _Bits(NamedTuple):
    everything: np.ndarray  # int64 (S,)
    members: np.ndarray  # int64 (S, 15): the objects with each value
    related: np.ndarray  # int64 (S, 4, n): the objects that are r of i
    looks: np.ndarray  # int64 (S, n, 4): values, numbered through


def pack(scenes: Sequence[SceneGraph]) -> PackedScenes:
    """Scene graphs as arrays; ValueError naming the picture that has too many objects."""
    n = max((len(scene.things) for scene in scenes), default=0)
    packed = PackedScenes(
        np.zeros((len(scenes), n, len(ATTRIBUTES)), np.int8),
        np.zeros((len(scenes), n), bool),
        np.zeros((len(scenes), len(RELATIONS), n, n), bool),
    )
    codes = {name: {v: i for i, v in enumerate(values)} for name, values in ATTRIBUTES.items()}
    for s, scene in enumerate(scenes):
        if len(scene.things) > MOST_BITS:
            raise ValueError(
                f"scene {s} ({scene.image_filename}) has {len(scene.things)} objects; batched "
                f"execution takes up to {MOST_BITS}"
            )
        packed.mask[s, : len(scene.things)] = True
        for i, thing in enumerate(scene.things):
            packed.attributes[s, i] = [codes[name][getattr(thing, name)] for name in ATTRIBUTES]
            for r, name in enumerate(RELATIONS):
                packed.relations[s, r, i, list(scene.relations[name][i])] = True
    return packed


# Functions that are computed in the same way.
_OPERATIONS: Final = (
    *("scene", "filter", "relate", "same", "unique", "union", "intersect"),
    *("count", "exist", "query", "equal", "less_than", "greater_than"),
)


def _compile(text: str) -> tuple[int, int, Kind]:
    """Operation (its number) and output of a token, between them its argument.

    That is the value of a filter, the relation, or the attribute of `same` and `query`; else 0.
    """
    function = signature(text)
    _, values = parse_token(text)
    verb, _, attribute = function.name.partition("_")
    argument = 0
    match verb:
        case "filter":
            start = _FIRST[list(ATTRIBUTES).index(attribute)]
            argument = int(start) + ATTRIBUTES[attribute].index(values[0])
        case "relate":
            argument = RELATIONS.index(values[0])
        case "same" | "query":
            argument = list(ATTRIBUTES).index(attribute)
        case "less" | "greater":
            verb = function.name
    return _OPERATIONS.index(verb), argument, function.output


class _Reading(NamedTuple):
    """The F functions of the well-formed programs, and the failures of the others."""

    failures: np.ndarray  # int8 (B,): -1 none
    roots: np.ndarray  # int64 (B,): token of the root; anything where there is none
    rows: np.ndarray  # int64 (F,): program
    tokens: np.ndarray  # int64 (F,)
    distance: np.ndarray  # int64 (F,): functions after it in its program
    places: np.ndarray  # int64 (F,): place of its result in the stack


class _Reader:
    """The automaton. Its states are the failures, in their order, then the stacks as they are met.

    Of stacks there are few, about a dozen for each token of the longest program: only sets pile up.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._functions = [_function(text) for text in tokens]
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

    def read(self, programs: np.ndarray, *, require_end: bool) -> _Reading:
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
        failures = np.where(last < len(Failure), last, _FAILURES[Failure.UNDERFLOW])
        failures[last == self._complete] = -1
        if require_end:
            ended = programs[np.arange(batch), stops.argmax(1)] == self._end
            failures[(last >= len(Failure)) & ~ended] = _FAILURES[Failure.NO_END]
        t, rows = np.nonzero(~outside.T & (failures < 0))
        sizes = np.bincount(rows, minlength=batch) + skipped
        return _Reading(
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
                self._next[state, i] = _FAILURES[Failure.TRAILING]
            elif name is None:
                self._next[state, i] = _FAILURES[Failure.UNKNOWN]
            elif name not in TYPES[stack[0]]:
                self._next[state, i] = _FAILURES[Failure.TYPE_ERROR]
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


class BatchExecutor:
    """Answers of B programs on their scenes, in vocabulary indices.

    program_tokens, answer_tokens: the vocabularies in their order, special tokens included. A
    token that is no function of CLEVR is `unknown` where a program holds it; an answer that is
    missing from the vocabulary becomes UNK.
    """

    def __init__(self, program_tokens: Sequence[str], answer_tokens: Sequence[str]) -> None:
        self.program_tokens = tuple(program_tokens)
        self.answer_tokens = tuple(answer_tokens)
        self._reader = _Reader(self.program_tokens)
        self._operations = np.zeros(len(self.program_tokens), np.int64)
        self._arguments = np.zeros(len(self.program_tokens), np.int64)
        self._offsets = np.zeros(len(self.program_tokens), np.int64)  # of a root's answers, below
        offsets = {Kind.INTEGER: 0, Kind.BOOL: MOST_BITS + 1}
        for i, text in enumerate(self.program_tokens):
            if _function(text) is not None:
                operation, argument, output = _compile(text)
                self._operations[i], self._arguments[i] = operation, argument
                self._offsets[i] = offsets.get(output, MOST_BITS + 3)
        indices = {text: i for i, text in enumerate(self.answer_tokens)}
        if UNK not in indices:
            raise ValueError(f"the vocabulary of answers lacks {UNK}: {', '.join(answer_tokens)}")
        answers = [*(str(i) for i in range(MOST_BITS + 1)), "no", "yes", *_VALUES]
        self._answers = np.array([indices.get(text, indices[UNK]) for text in answers], np.int64)

    def __call__(
        self,
        programs: np.ndarray | Tensor,
        scenes: PackedScenes,
        scene_of: np.ndarray | Tensor,
        *,
        unique: Unique = "strict",
        require_end: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return answers int64 (B,), 0 where there is none, and failures int8 (B,), else -1.

        A failure is its place in `execute.Failure`.

        programs: whole numbers (B, L), prefix order; START in front, END and NULL as in `execute`.
        scene_of: whole numbers (B,), the scene of each program.

        Raises ValueError naming the program for an index outside the vocabulary or the scenes.
        """
        rows, scene = _whole(programs, 2, "programs"), _whole(scene_of, 1, "scene_of")
        if len(rows) != len(scene):
            raise ValueError(
                f"{len(rows)} programs need as many entries in scene_of, not {len(scene)}"
            )
        _check_range(rows, len(self.program_tokens), "token")
        _check_range(scene, len(scenes), "scene")
        answers = np.zeros(len(rows), np.int64)
        if rows.size == 0:  # no programs, or of no tokens
            failure = Failure.NO_END if require_end else Failure.UNDERFLOW
            return answers, np.full(len(rows), _FAILURES[failure], np.int8)
        reading = self._reader.read(rows, require_end=require_end)
        values, failures = self._run(reading, scenes.bits, scene, unique)
        good = failures < 0
        answers[good] = self._answers[self._offsets[reading.roots[good]] + values[good]]
        return answers, failures

    def _run(
        self, reading: _Reading, bits: _Bits, scene_of: np.ndarray, unique: Unique
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each program gives (B,), and all failures (B,)."""
        keys = reading.distance * len(_OPERATIONS) + self._operations[reading.tokens]
        # NumPy sorts numbers of 16 bits in linear time.
        order = np.argsort(keys.astype(np.min_scalar_type(keys.max(initial=0))), kind="stable")
        keys, rows = keys[order], reading.rows[order]
        arguments, scenes = self._arguments[reading.tokens[order]], scene_of[rows]
        width = int(reading.places.max(initial=0)) + 2
        stack = np.zeros(len(scene_of) * width, np.int64)
        places = rows * width + reading.places[order]
        failures = reading.failures.copy()
        ends = np.flatnonzero(np.diff(keys, append=-1)) + 1
        low = 0
        for high in ends.tolist():
            at, operation = places[low:high], _OPERATIONS[keys[low] % len(_OPERATIONS)]
            if operation == "unique":
                _note(failures, rows[low:high], np.bitwise_count(stack[at]), unique)
            stack[at] = _apply(operation, stack, at, bits, scenes[low:high], arguments[low:high])
            low = high
        return stack[::width], failures


def _apply(
    operation: str,
    stack: np.ndarray,
    at: np.ndarray,
    bits: _Bits,
    scene: np.ndarray,
    argument: np.ndarray,
) -> np.ndarray:
    """One operation on k inputs; all arrays but the flat stack and `bits` are (k,)."""
    match operation:
        case "scene":
            return bits.everything[scene]
        case "filter":
            return stack[at] & bits.members[scene, argument]
        case "relate":
            return bits.related[scene, argument, stack[at]]
        case "same":
            one = stack[at]
            return bits.members[scene, bits.looks[scene, one, argument]] & ~(1 << one)
        case "unique":
            lowest = stack[at] & -stack[at]
            return np.bitwise_count(lowest - (lowest != 0))
        case "query":
            return bits.looks[scene, stack[at], argument]
        case "count":
            return np.bitwise_count(stack[at])
        case "exist":
            return stack[at] != 0
        case "union":
            return stack[at + 1] | stack[at]
        case "intersect":
            return stack[at + 1] & stack[at]
        case "equal":
            return stack[at + 1] == stack[at]
        case "less_than":
            return stack[at + 1] < stack[at]
        case "greater_than":
            return stack[at + 1] > stack[at]
    raise AssertionError(operation)


def _note(failures: np.ndarray, rows: np.ndarray, sizes: np.ndarray, unique: Unique) -> None:
    """Write down the first failure of `unique` in these programs, by the sizes of its sets."""
    wrong = sizes == 0 if unique == "first" else sizes != 1
    wrong &= failures[rows] < 0
    many = sizes[wrong] > 0
    codes = np.where(many, _FAILURES[Failure.UNIQUE_MANY], _FAILURES[Failure.UNIQUE_EMPTY])
    failures[rows[wrong]] = codes


def _function(text: str) -> str | None:
    """The name of a token's function, if it has one."""
    try:
        return signature(text).name
    except ValueError:
        return None


def _whole(values: np.ndarray | Tensor, dimensions: int, name: str) -> np.ndarray:
    """`values` as int64 on the CPU; ValueError unless whole numbers of that many dimensions."""
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        raise ValueError(
            f"{name} must be whole numbers in {dimensions} dimensions, not {array.dtype} of shape "
            f"{array.shape}"
        )
    return array.astype(np.int64)


def _check_range(values: np.ndarray, limit: int, what: str) -> None:
    """ValueError naming the first program (row) with an index outside 0..limit - 1."""
    outside = (values < 0) | (values >= limit)
    if outside.any():
        where = tuple(np.argwhere(outside)[0].tolist())
        raise ValueError(
            f"program {where[0]} names {what} {values[where]}, but there are {limit} {what}s, "
            "counted from 0"
        )
