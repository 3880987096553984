"""A program in its three forms - list, tree, prefix - and the check of a program list.

- list: `Node`s that name their inputs by position, sorted so that inputs come first; the last one
  is the root. This is how CLEVR's files store a program.
- tree: `Tree`s of tokens.
- prefix: tokens, a node before its children, which follow from left to right. This is what
  sequence models read and write.

A list can share a node between two parents and can hold nodes that the root never reaches; a tree
repeats the former and loses the latter, as in the public code. Two programs are therefore the same
where their trees are: their lists may differ in order, and some of CLEVR's do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Final, Literal

from .functions import ATTRIBUTES, END, FUNCTIONS, NULL, START, parse_token, signature, token

# A list that shares nodes stands for a tree that can be exponentially larger, so lists are
# measured before they are spelt out. CLEVR's longest program has 25 functions.
MOST_FUNCTIONS: Final = 100

Reason = Literal["underflow", "trailing", "unknown", "arity", "cycle", "deep", "empty"]


class ProgramError(ValueError):
    """A program that cannot be read; `reason` says in one word what is wrong with it.

    underflow: an input is missing; trailing: something follows the complete program; unknown: no
    such function or value; arity: a wrong number of inputs or values; cycle: a node depends on
    itself or on a later one; deep: too many functions; empty: no function.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ProgramError"], tuple[str, Reason]]:
        """Keep the reason when the error travels between processes."""
        return type(self), (str(self), self.reason)


@dataclass(frozen=True)
class Node:
    """One step of a program list: a function, the positions of its inputs, and its values."""

    function: str
    inputs: tuple[int, ...] = ()
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tree:
    """A program as a tree of tokens; children in the order of the function's inputs."""

    token: str
    children: tuple["Tree", ...] = ()


def check_nodes(nodes: Sequence[Node], where: str) -> None:
    """Raise ProgramError, its sentence starting with `where`, unless `nodes` is a CLEVR program.

    Checked are the functions and their values, the number of inputs, that each input comes before
    its node, and that the tree of the root has at most MOST_FUNCTIONS functions. Whether the kinds
    of the inputs fit is for `execute.check_program` to say.
    """
    for position, node in enumerate(nodes):
        name = f"{where}: node {position} ({node.function})"
        function = FUNCTIONS.get(node.function)
        if function is None:
            raise ProgramError(f"{name} is no function of CLEVR", "unknown")
        if len(node.values) != bool(function.values):
            raise ProgramError(
                f"{name} has {_several(len(node.values), 'value')}, but this function takes "
                f"{_several(int(bool(function.values)), 'value')}",
                "arity",
            )
        if node.values and node.values[0] not in function.values:
            raise ProgramError(
                f"{name} has the value {node.values[0]!r}, which is none of "
                f"{', '.join(function.values)}",
                "unknown",
            )
        if len(node.inputs) != len(function.inputs):
            raise ProgramError(
                f"{name} has {_several(len(node.inputs), 'input')}, but this function takes "
                f"{_several(len(function.inputs), 'input')}",
                "arity",
            )
    _check_shape(nodes, f"{where}: ")


def to_tree(nodes: Sequence[Node]) -> Tree:
    """Return the tree under the last node.

    Any set of functions will do: only the inputs are looked at. Raises ProgramError for an empty
    list, an input outside the list or not before its node, and a tree of more than MOST_FUNCTIONS
    functions.
    """
    _check_shape(nodes, "")
    trees: list[Tree] = []
    for node in nodes:
        children = tuple(trees[source] for source in node.inputs)
        trees.append(Tree(token(node.function, node.values), children))
    return trees[-1]


def _check_shape(nodes: Sequence[Node], where: str) -> None:
    if not nodes:
        raise ProgramError(f"{where}the program has no functions", "empty")
    sizes: list[int] = []  # functions in the tree of each node, up to MOST_FUNCTIONS + 1
    for position, node in enumerate(nodes):
        name = f"{where}node {position} ({node.function})"
        size = 1
        for source in node.inputs:
            if not 0 <= source < len(nodes):
                raise ProgramError(
                    f"{name} takes node {source} as its input, but the nodes are 0 to "
                    f"{len(nodes) - 1}",
                    "underflow",
                )
            if source >= position:
                raise ProgramError(
                    f"{name} takes node {source} as its input, which does not come before it: the "
                    "program has a cycle or is out of order",
                    "cycle",
                )
            size += sizes[source]
        sizes.append(min(size, MOST_FUNCTIONS + 1))
    if sizes[-1] > MOST_FUNCTIONS:
        raise ProgramError(
            f"{where}the program has more than {MOST_FUNCTIONS} functions when it is written out "
            "as a tree",
            "deep",
        )


def _several(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def to_list(tree: Tree) -> list[Node]:
    """Return the nodes of a tree: left subtree, right subtree, root; the inverse of `to_tree`.

    Together with `from_prefix` it turns what a sequence model wrote into a file's program.
    """
    parts = []
    stack = [tree]
    while stack:
        parts.append(stack.pop())
        stack += parts[-1].children
    nodes: list[Node] = []
    open_inputs: list[int] = []  # nodes that wait for their parent
    for part in reversed(parts):  # node, right, left backwards is left, right, node
        first = len(open_inputs) - len(part.children)
        inputs = tuple(open_inputs[first:])
        open_inputs[first:] = [len(nodes)]
        function, values = parse_token(part.token)
        nodes.append(Node(function, inputs, values))
    return nodes


def to_prefix(tree: Tree) -> list[str]:
    """Return the tokens of a tree, each node before its children."""
    tokens = []
    stack = [tree]
    while stack:
        part = stack.pop()
        tokens.append(part.token)
        stack += reversed(part.children)
    return tokens


def _strip(tokens: Iterable[str]) -> list[str]:
    """Return the program proper: without START in front, up to the first END or NULL."""
    program = []
    for position, text in enumerate(tokens):
        if text in (END, NULL):
            break
        if position or text != START:
            program.append(text)
    return program


def from_prefix(tokens: Sequence[str]) -> Tree:
    """Return the tree of a prefix sequence.

    START in front is skipped; END or NULL end the sequence. Raises ProgramError: unknown, empty,
    underflow (the sequence ends before the tree does) or trailing (tokens after the complete tree).
    """
    program = _strip(tokens)
    counts = [_count_inputs(text, position) for position, text in enumerate(program)]
    if not program:
        raise ProgramError("the program has no functions", "empty")
    missing = 1  # subtrees still to come
    for position, count in enumerate(counts):
        if missing == 0:
            raise ProgramError(
                f"the program is complete before token {position} ({program[position]}), but has "
                f"{len(program)} tokens",
                "trailing",
            )
        missing += count - 1
    if missing:
        raise ProgramError(
            f"the program lacks {_several(missing, 'subtree')} at {program[-1]}, its last token",
            "underflow",
        )
    stack: list[Tree] = []  # finished subtrees, the leftmost on top
    for text, count in zip(reversed(program), reversed(counts), strict=True):
        children = tuple(stack.pop() for _ in range(count))
        stack.append(Tree(text, children))
    return stack[0]


def _count_inputs(text: str, position: int) -> int:
    try:
        return len(signature(text).inputs)
    except ValueError as error:
        raise ProgramError(f"token {position}: {error}", "unknown") from None


def canonical(tokens: Sequence[str]) -> tuple[str, ...]:
    """The one spelling of the prefix sequences that differ in nothing but order or repetition.

    Successive filters stand as in the data (shape, material, color, size in prefix order), each
    once. The operands of union, intersect and equal_* are sorted; those of less_than and
    greater_than stay. START, END and what follows END or NULL are left out. A malformed program
    keeps its tokens as they are.
    """
    program = _strip(tokens)
    try:
        from_prefix(tokens)
    except ProgramError:
        return tuple(program)
    stack: list[tuple[str, ...]] = []  # finished subtrees, the leftmost on top
    for text in reversed(program):
        name = signature(text).name
        children = [stack.pop() for _ in signature(text).inputs]
        if name in ("union", "intersect") or name.startswith("equal_"):
            children.sort()
        below = tuple(chain.from_iterable(children))
        filters = list(takewhile(_is_filter, below)) if _is_filter(text) else []
        run = sorted({text, *filters}, key=_place_in_run) if filters else [text]
        stack.append((*run, *below[len(filters) :]))
    return stack[0]


def _is_filter(text: str) -> bool:
    return text.startswith("filter_")


def _place_in_run(text: str) -> tuple[int, str]:
    """Key that sorts filters as the data has them in prefix order."""
    attribute = parse_token(text)[0].removeprefix("filter_")
    return -list(ATTRIBUTES).index(attribute), text
