"""Symbolic execution of many programs at once: the same answers and failures as `execute`.

Nothing is done program by program. Reading: an automaton goes along the columns of the programs
and finds every malformed one, see automaton.py. Running: the functions of all programs are sorted
by their distance from the program's end and by operation, and each such group is computed in one
go.

Running needs a stack of values per program, but no pointer into it. Before a token is read, d
results are still wanted; the tokens from it on provide exactly these. Going backwards, the result
of that token is therefore on place d - 1 of the stack. So are its only input and the second of
two, while the first of two is on place d.

A value is one int64: sets and values of attributes as in arrays/scenes.py, an object is its index,
yes is 1.

B programs of L tokens, F functions in all; S scenes of n objects at most.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from torch import Tensor

from .arrays.scenes import FIRST, MOST_BITS, VALUES, Bits, PackedScenes
from .automaton import FAILURES, Reader, Reading, function_name
from .execute import Failure, Unique
from .functions import ATTRIBUTES, FUNCTIONS, RELATIONS, UNK, Kind, parse_token, signature


def _operation(name: str) -> str:
    """What the functions that are computed in the same way have in common, such as `filter`."""
    verb = name.partition("_")[0]
    return name if verb in ("less", "greater") else verb


_OPERATIONS: Final = tuple(dict.fromkeys(map(_operation, FUNCTIONS)))


def _compile(text: str) -> tuple[int, int, Kind]:
    """Operation (its number) and output of a token, between them its argument.

    That is the value of a filter, the relation, or the attribute of `same` and `query`; else 0.
    """
    function = signature(text)
    _, values = parse_token(text)
    operation, attribute = _operation(function.name), function.name.partition("_")[2]
    argument = 0
    if operation == "filter":
        start = FIRST[list(ATTRIBUTES).index(attribute)]
        argument = int(start) + ATTRIBUTES[attribute].index(values[0])
    elif operation == "relate":
        argument = RELATIONS.index(values[0])
    elif operation in ("same", "query"):
        argument = list(ATTRIBUTES).index(attribute)
    return _OPERATIONS.index(operation), argument, function.output


class BatchExecutor:
    """Answers of B programs on their scenes, in vocabulary indices.

    program_tokens, answer_tokens: the vocabularies in their order, special tokens included. A token
    that is no function of CLEVR makes a program `unknown`; an answer that the vocabulary lacks
    becomes UNK.
    """

    def __init__(self, program_tokens: Sequence[str], answer_tokens: Sequence[str]) -> None:
        self.program_tokens = tuple(program_tokens)
        self.answer_tokens = tuple(answer_tokens)
        self._reader = Reader(self.program_tokens)
        self._operations = np.zeros(len(self.program_tokens), np.int64)
        self._arguments = np.zeros(len(self.program_tokens), np.int64)
        self._offsets = np.zeros(len(self.program_tokens), np.int64)  # of a root's answers, below
        offsets = {Kind.INTEGER: 0, Kind.BOOL: MOST_BITS + 1}
        for i, text in enumerate(self.program_tokens):
            if function_name(text) is not None:
                operation, argument, output = _compile(text)
                self._operations[i], self._arguments[i] = operation, argument
                self._offsets[i] = offsets.get(output, MOST_BITS + 3)
        indices = {text: i for i, text in enumerate(self.answer_tokens)}
        if UNK not in indices:
            raise ValueError(f"the vocabulary of answers lacks {UNK}: {', '.join(answer_tokens)}")
        answers = [*(str(i) for i in range(MOST_BITS + 1)), "no", "yes", *VALUES]
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
            return answers, np.full(len(rows), FAILURES[failure], np.int8)
        reading = self._reader.read(rows, require_end=require_end)
        values, failures = self._run(reading, scenes.bits, scene, unique)
        good = failures < 0
        answers[good] = self._answers[self._offsets[reading.roots[good]] + values[good]]
        return answers, failures

    def _run(
        self, reading: Reading, bits: Bits, scene_of: np.ndarray, unique: Unique
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
    bits: Bits,
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
    codes = np.where(many, FAILURES[Failure.UNIQUE_MANY], FAILURES[Failure.UNIQUE_EMPTY])
    failures[rows[wrong]] = codes


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
