"""One question template of CLEVR: its skeleton, its constraints, and how it becomes a program.

A template's *step* is a function of the catalogue, or several at once: `filter`, which keeps what
a noun phrase describes, and `relate_filter`, which does so among what stands in some relation to
an object; each may end in `unique`, `count` or `exist`. Noun phrases and relations have numbers:
relation k starts at noun phrase k.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from ..functions import ANSWERS, ATTRIBUTES, MOST_OBJECTS
from ..programs import Node
from ..questions import family_number

# A noun phrase's size, color, material and shape; None: not mentioned.
Combo = tuple[str | None, str | None, str | None, str | None]
NOTHING: Final[Combo] = (None, None, None, None)
ENDS: Final = ("_unique", "_count", "_exist")  # of a step that is several functions


@dataclass(frozen=True)
class Step:
    """One node of a skeleton; `noun` and `relation` number its parameters, 0: it has none."""

    function: str
    inputs: tuple[int, ...] = ()
    noun: int = 0
    relation: int = 0


@dataclass(frozen=True)
class Values:
    """What a template's parameters became."""

    nouns: dict[int, Combo] = field(default_factory=dict)
    relations: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Template:
    """A skeleton of steps, root last, with the sentences that ask it."""

    file: str
    index: int  # inside its file
    steps: tuple[Step, ...]
    texts: tuple[str, ...]
    empty: frozenset[tuple[int, str]]  # attributes that a noun phrase must not mention
    differ: tuple[tuple[int, int], ...]  # steps whose outputs must not be equal
    attributes: frozenset[str]  # those that it asks for, compares or shares

    @cached_property
    def family(self) -> int:
        """Number 0..89 over all files, see `questions.family_number`."""
        return family_number(self.file, self.index)

    @cached_property
    def name(self) -> str:
        """Such as `one_hop/0`."""
        return f"{self.file}/{self.index}"

    @cached_property
    def root(self) -> str:
        """The function that gives the answer."""
        function = self.steps[-1].function
        return next((end[1:] for end in ENDS if function.endswith(end)), function)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """All answers that there can be."""
        if self.root == "count":
            return tuple(str(number) for number in range(MOST_OBJECTS + 1))
        if self.root.startswith("query_"):
            return ATTRIBUTES[self.root.removeprefix("query_")]
        return tuple(answer for answer in ANSWERS if answer in ("yes", "no"))

    def exclusions(self, noun: int) -> frozenset[str]:
        """Attributes that noun phrase `noun` must not mention."""
        return self._exclusions.get(noun, frozenset())

    @cached_property
    def _exclusions(self) -> dict[int, frozenset[str]]:
        nouns = {noun for noun, _ in self.empty}
        return {noun: frozenset(a for n, a in self.empty if n == noun) for noun in nouns}


def program(template: Template, values: Values) -> tuple[Node, ...]:
    """The template's program in functions of the catalogue, root last."""
    nodes: list[Node] = []
    last: list[int] = []  # of each step, the node that holds its output
    for step in template.steps:
        inputs = tuple(last[i] for i in step.inputs)
        for function, value in functions(step, values):
            nodes.append(Node(function, inputs, () if value is None else (value,)))
            inputs = (len(nodes) - 1,)
        # A filter that says nothing is no node: its output is its input.
        last.append(inputs[0])
    return tuple(nodes)


def functions(step: Step, values: Values) -> list[tuple[str, str | None]]:
    """The functions that a step stands for, first to last, each with its value."""
    name = step.function
    if not step.noun and not step.relation:
        return [(name, None)]
    out: list[tuple[str, str | None]] = []
    if step.relation:
        out.append(("relate", values.relations[step.relation]))
    for attribute, value in zip(ATTRIBUTES, values.nouns.get(step.noun, NOTHING), strict=True):
        if value is not None:
            out.append((f"filter_{attribute}", value))
    return out + [(end[1:], None) for end in ENDS if name.endswith(end)]
