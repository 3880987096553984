"""Symbolic execution of a program on a scene graph, one at a time: the reference.

The functions are those of the public question engine (Johnson et al., CVPR 2017, Sec. 3). Its
`unique` is strict: a set of any size but one ends the program without an answer. Other symbolic
executors take the first of several objects; `unique="first"` does so too.

A program from a decoder may be malformed in any way. `execute` therefore never raises but says what
stopped it. The program is first read from the left, as a decoder writes it, and the first fault in
that order counts:

1. START in front is skipped; END and NULL end the sequence.
2. A token after the complete program is `trailing`. Else, one that is no function of CLEVR is
   `unknown`, and one whose output is not of the kind that its place asks for is a `type_error`;
   the root's place asks for a number, yes / no or an attribute's value.
3. If the sequence ends without END where END is required, that is `no_end`.
4. If it ends before the program is complete, that is an `underflow`; the empty one is too.

Only a program without such a fault is executed, from its last token to its first. The first
`unique` that fails in that order decides between `unique_empty` and `unique_many`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from .functions import ATTRIBUTES, END, NULL, START, Kind, parse_token, signature
from .scene_graph import SceneGraph

Unique = Literal["strict", "first"]
Value = tuple[int, ...] | int | bool | str  # set (indices, ascending) | object, number | ...

ANSWER_KINDS: Final = (Kind.INTEGER, Kind.BOOL, *(Kind(name) for name in ATTRIBUTES))


class Failure(StrEnum):
    """Why a program has no answer."""

    UNDERFLOW = "underflow"  # an input is missing
    TRAILING = "trailing"  # tokens follow the complete program
    TYPE_ERROR = "type_error"  # an input, or the answer, is of the wrong kind
    UNIQUE_EMPTY = "unique_empty"  # the only object of an empty set
    UNIQUE_MANY = "unique_many"  # the only object of a set of several
    NO_END = "no_end"  # cut off before END
    UNKNOWN = "unknown"  # a token that is no function of CLEVR


@dataclass(frozen=True)
class Result:
    """An answer or the reason why there is none: exactly one of the two is set.

    In scenes of up to ten objects, every answer is one of `functions.ANSWERS`.
    """

    answer: str | None
    failure: Failure | None


def execute(
    tokens: Sequence[str],
    scene: SceneGraph,
    *,
    unique: Unique = "strict",
    require_end: bool = False,
) -> Result:
    """Answer a prefix program on a scene, or say why it has no answer, without raising.

    require_end: a program without END is `no_end`, even if it is complete without.
    """
    program = check_program(tokens, require_end=require_end)
    if isinstance(program, Failure):
        return Result(None, program)
    stack: list[Value] = []  # the leftmost finished subtree on top
    for text in reversed(program):
        inputs = [stack.pop() for _ in signature(text).inputs]
        value = apply(text, inputs, scene, unique=unique)
        if isinstance(value, Failure):
            return Result(None, value)
        stack.append(value)
    return Result(answer_text(stack[0]), None)


def check_program(tokens: Sequence[str], *, require_end: bool = False) -> list[str] | Failure:
    """Return the program proper of a prefix sequence, or its first fault in reading order."""
    program: list[str] = []
    places: list[tuple[Kind, ...]] = [ANSWER_KINDS]  # kinds wanted next, the very next on top
    ended = False
    for text in tokens[1:] if tokens and tokens[0] == START else tokens:
        if text in (END, NULL):
            ended = text == END
            break
        if not places:
            return Failure.TRAILING
        try:
            function = signature(text)
        except ValueError:
            return Failure.UNKNOWN
        if function.output not in places.pop():
            return Failure.TYPE_ERROR
        places += [(kind,) for kind in reversed(function.inputs)]
        program.append(text)
    if require_end and not ended:
        return Failure.NO_END
    return Failure.UNDERFLOW if places else program


def apply(
    text: str,
    inputs: Sequence[Value],
    scene: SceneGraph,
    *,
    unique: Unique = "strict",
) -> Value | Failure:
    """Apply the function of a token to inputs of the right number and kinds (not checked here).

    A set is a tuple of ascending indices, an object an index; the first input is the left operand.
    The outcome is a Failure only where `unique` has no single object to give.
    """
    name, values = parse_token(text)
    match name:
        case "scene":
            return tuple(range(len(scene.things)))
        case "unique":
            return _only(_set(inputs[0]), unique)
        case "relate":
            return tuple(sorted(scene.relations[values[0]][_number(inputs[0])]))
        case "union":
            return tuple(sorted({*_set(inputs[0]), *_set(inputs[1])}))
        case "intersect":
            return tuple(sorted({*_set(inputs[0])} & {*_set(inputs[1])}))
        case "count":
            return len(_set(inputs[0]))
        case "exist":
            return len(_set(inputs[0])) > 0
        case "less_than":
            return _number(inputs[0]) < _number(inputs[1])
        case "greater_than":
            return _number(inputs[0]) > _number(inputs[1])
    verb, _, attribute = name.partition("_")
    if verb == "equal":  # of two numbers, two objects or two values of an attribute
        return inputs[0] == inputs[1]
    looks = [getattr(thing, attribute) for thing in scene.things]
    if verb == "filter":
        return tuple(i for i in _set(inputs[0]) if looks[i] == values[0])
    one = _number(inputs[0])
    if verb == "query":
        return looks[one]
    assert verb == "same", text
    return tuple(i for i, look in enumerate(looks) if look == looks[one] and i != one)


def _only(members: tuple[int, ...], unique: Unique) -> int | Failure:
    if unique not in ("strict", "first"):
        raise ValueError(f'unique must be "strict" or "first", not {unique!r}')
    if not members:
        return Failure.UNIQUE_EMPTY
    if len(members) > 1 and unique == "strict":
        return Failure.UNIQUE_MANY
    return members[0]


def _set(value: Value) -> tuple[int, ...]:
    assert isinstance(value, tuple), value
    return value


def _number(value: Value) -> int:
    assert isinstance(value, int), value
    return value


def answer_text(value: Value) -> str:
    """Return a number, yes / no or an attribute's value as the answer that the files hold."""
    if isinstance(value, bool):  # before int: a bool is one
        return "yes" if value else "no"
    if isinstance(value, int | str):
        return str(value)
    raise ValueError(f"a set of objects, {value}, is no answer: count it or ask whether any exist")
