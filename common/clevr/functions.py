"""The functions of CLEVR's programs: signatures, values, program tokens, answers.

Johnson et al., "CLEVR: A Diagnostic Dataset for Compositional Language and Elementary Visual
Reasoning", CVPR 2017 (Sec. 3 and Fig. 2), in the spelling of the public question generator's
`metadata.json`. Only this file says which functions there are and what they take; vocabularies,
executors and grammars read it.

A *token* is a function with its value, `filter_color[red]`: 40 of them occur in the data.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Final

SIZES: Final = ("small", "large")
COLORS: Final = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
MATERIALS: Final = ("rubber", "metal")
SHAPES: Final = ("cube", "sphere", "cylinder")
RELATIONS: Final = ("left", "right", "behind", "front")

# In the order in which the templates filter.
ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "size": SIZES,
    "color": COLORS,
    "material": MATERIALS,
    "shape": SHAPES,
}

MOST_OBJECTS: Final = 10  # in a scene of the data, so counts are 0..10
LONGEST_PROGRAM: Final = 25  # functions: the longest of the 90 templates

SPECIAL: Final = ("<NULL>", "<START>", "<END>", "<UNK>")  # indices 0..3 of every vocabulary
NULL, START, END, UNK = SPECIAL


class Kind(StrEnum):
    """The kind of a value that flows between functions."""

    OBJECT = "object"
    OBJECTS = "objects"  # a set
    INTEGER = "integer"
    BOOL = "bool"
    SIZE = "size"
    COLOR = "color"
    MATERIAL = "material"
    SHAPE = "shape"


@dataclass(frozen=True)
class Function:
    """One function: the kinds it takes, the kind it returns, and the choices for its value."""

    name: str
    inputs: tuple[Kind, ...]
    output: Kind
    values: tuple[str, ...] = ()  # the choices for its one value; empty: it takes none


def _catalogue() -> dict[str, Function]:
    one, many = Kind.OBJECT, Kind.OBJECTS
    functions = [
        Function("scene", (), many),
        Function("unique", (many,), one),
        Function("relate", (one,), many, RELATIONS),
        Function("union", (many, many), many),
        Function("intersect", (many, many), many),
        Function("count", (many,), Kind.INTEGER),
        Function("exist", (many,), Kind.BOOL),
        Function("equal_integer", (Kind.INTEGER, Kind.INTEGER), Kind.BOOL),
        Function("less_than", (Kind.INTEGER, Kind.INTEGER), Kind.BOOL),
        Function("greater_than", (Kind.INTEGER, Kind.INTEGER), Kind.BOOL),
        Function("equal_object", (one, one), Kind.BOOL),  # in the catalogue, never in the data
    ]
    for attribute, values in ATTRIBUTES.items():
        kind = Kind(attribute)
        functions += [
            Function(f"filter_{attribute}", (many,), many, values),
            Function(f"same_{attribute}", (one,), many),
            Function(f"query_{attribute}", (one,), kind),
            Function(f"equal_{attribute}", (kind, kind), Kind.BOOL),
        ]
    return {function.name: function for function in functions}


FUNCTIONS: Final[dict[str, Function]] = _catalogue()


def token(function: str, values: tuple[str, ...] = ()) -> str:
    """Return a function's program token: its name, with `[value]` where it has a value."""
    return f"{function}[{','.join(values)}]" if values else function


def parse_token(text: str) -> tuple[str, tuple[str, ...]]:
    """Split a token into function name and values; the inverse of `token`, for any string."""
    name, bracket, rest = text.partition("[")
    if not bracket or not rest.endswith("]"):
        return text, ()
    return name, tuple(rest[:-1].split(","))


@cache
def signature(text: str) -> Function:
    """Return the function of a token; ValueError where CLEVR has no such token."""
    name, values = parse_token(text)
    function = FUNCTIONS.get(name)
    if function is None:
        raise ValueError(f"{text!r} is no program token of CLEVR: there is no function {name!r}")
    if bool(function.values) != bool(values) or len(values) > 1:
        takes = f"one value of {', '.join(function.values)}" if function.values else "no value"
        raise ValueError(f"{text!r} is no program token of CLEVR: {name} takes {takes}")
    if values and values[0] not in function.values:
        choices = ", ".join(function.values)
        raise ValueError(f"{text!r} is no program token of CLEVR: {name} takes one of {choices}")
    return function


def _tokens() -> tuple[str, ...]:
    tokens = []
    for function in FUNCTIONS.values():
        if function.values:
            tokens += [token(function.name, (value,)) for value in function.values]
        elif function.name != "equal_object":  # used by no template
            tokens.append(function.name)
    return tuple(sorted(tokens))


# The 40 program tokens and the 28 answers of the data, as in the released vocabularies' order.
TOKENS: Final[tuple[str, ...]] = _tokens()
ANSWERS: Final[tuple[str, ...]] = tuple(
    sorted(
        [
            "yes",
            "no",
            *(str(number) for number in range(MOST_OBJECTS + 1)),
            *(value for values in ATTRIBUTES.values() for value in values),
        ]
    )
)

# Questions by the function at the root of their program: 13 types in 5 groups, Table 1's order.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "exist": ("exist",),
    "count": ("count",),
    "compare_integer": ("equal_integer", "less_than", "greater_than"),
    "query": tuple(f"query_{attribute}" for attribute in ATTRIBUTES),
    "compare_attribute": tuple(f"equal_{attribute}" for attribute in ATTRIBUTES),
}
TYPES: Final[tuple[str, ...]] = tuple(kind for kinds in GROUPS.values() for kind in kinds)
