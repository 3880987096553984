"""Which modules run when: programs of a batch -> groups of nodes that run in one call.

B programs of L tokens, N nodes (one run of one module), I images.

Programs are token ids in prefix order. Each is read to the end of its first complete tree; what
follows is ignored, and what is missing is completed with `scene` leaves (the public code's
reading). A node is its token and its children; nodes of equal token and children are the same node
and run once, as are the leaves of questions about one image: the ten questions of a CLEVR image
have much in common.

Two plans run the same nodes. `levels` groups them by height. `agenda` groups them by token: a token
waits until as many of its nodes as possible have their inputs, whatever their heights, which takes
about half as many calls as a call for every height and token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NULL, START, END, UNK = "<NULL>", "<START>", "<END>", "<UNK>"
SPECIAL = (NULL, START, END, UNK)
PLANS = ("agenda", "levels")


def arity(token: str) -> int:
    """Number of inputs the public code reads off a token's name; special tokens have one."""
    name = token.partition("[")[0]
    if name == "scene":
        return 0
    binary = ("union", "intersect", "less_than", "greater_than")
    return 2 if "equal" in name or name in binary else 1


class Language:
    """The program tokens of a vocabulary in its order, and how many inputs each has.

    arities: 0, 1 or 2 for every token; None reads them off the names as the public code does. A
        token without inputs looks at the image. ValueError where tokens and arities do not make a
        language.
    """

    def __init__(self, tokens: Sequence[str], arities: Sequence[int] | None = None) -> None:
        self.tokens = tuple(tokens)
        self.arities = tuple(map(arity, tokens)) if arities is None else tuple(arities)
        if len(set(self.tokens)) != len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if t in self.tokens[:i])
            raise ValueError(f"the program vocabulary has {twice!r} twice.")
        if len(self.arities) != len(self.tokens):
            raise ValueError(
                f"{len(self.arities)} arities were given for {len(self.tokens)} program tokens: "
                "give one for each, in the same order."
            )
        for token, inputs in zip(self.tokens, self.arities, strict=True):
            if inputs not in (0, 1, 2):
                raise ValueError(f"program token {token!r} has arity {inputs}: 0, 1 and 2 exist.")
        if not self.tokens or self.tokens[0] != NULL:
            raise ValueError(f"the first program token has to be {NULL}, it pads short programs.")
        leaves = [t for t, n in enumerate(self.arities) if n == 0 and t]
        if not leaves:
            raise ValueError("no program token has arity 0: one (`scene`) has to see the image.")
        self.scene = self.tokens.index("scene") if "scene" in self.tokens else leaves[0]
        self.special = {t for t, token in enumerate(self.tokens) if token in SPECIAL}
        self.start = self.tokens.index(START) if START in self.tokens else -1
        self.end = self.tokens.index(END) if END in self.tokens else -1

    def rows(self, programs: Tensor) -> list[list[int]]:
        """Token ids (B, L) as lists; ValueError naming the question if one is no id."""
        if programs.dim() != 2 or programs.is_floating_point() or programs.is_complex():
            raise ValueError(
                f"programs have to be token ids (questions, length), not {programs.dtype} of "
                f"shape {tuple(programs.shape)}."
            )
        rows: list[list[int]] = programs.tolist()
        size = len(self.tokens)
        for question, row in enumerate(rows):
            if row and not 0 <= min(row) <= max(row) < size:
                wrong = next(token for token in row if not 0 <= token < size)
                raise ValueError(
                    f"the program of question {question} of the batch holds id {wrong}, the "
                    f"vocabulary has 0..{size - 1}: was it encoded with another vocabulary?"
                )
        return rows


@dataclass
class Nodes:
    """Every node of a batch, children before parents."""

    tokens: list[int] = field(default_factory=list)
    children: list[tuple[int, ...]] = field(default_factory=list)  # of a leaf: (-1 - image,)
    roots: list[int] = field(default_factory=list)  # of each program; -1: malformed, not run


@dataclass(frozen=True)
class Group:
    """Nodes that run in one call; their outputs are rows `start` to `stop` of the pool.

    inputs: for each argument the rows it comes from: of the pool, for a leaf of the images.
    tokens: of the nodes; all the same in plan "agenda".
    """

    start: int
    stop: int
    arity: int
    inputs: tuple[Tensor, ...]  # int64 (stop - start,) each
    tokens: list[int]


@dataclass(frozen=True)
class Schedule:
    """Groups in the order they run.

    roots: row of each executed program's root, int64 (executed,).
    executed: which programs these are, int64 (executed,); all but the malformed of "invalid".
    """

    groups: list[Group]
    roots: Tensor
    executed: Tensor
    size: int  # nodes


def well_formed(row: Sequence[int], language: Language) -> bool:
    """Whether a program is one complete tree of function tokens, alone between START and END."""
    tokens = list(row[1:]) if row and row[0] == language.start else list(row)
    need, used = 1, 0
    while need and used < len(tokens):
        if tokens[used] in language.special:
            return False
        need += language.arities[tokens[used]] - 1
        used += 1
    rest = tokens[used:]
    if rest and rest[0] == language.end:
        rest = rest[1:]
    return not need and not any(rest)


def parse(
    rows: Sequence[Sequence[int]],
    language: Language,
    image_of: Sequence[int],
    *,
    share: bool = True,
    malformed: str = "complete",
) -> Nodes:
    """Nodes of a batch of prefix programs.

    rows: token ids of each program. image_of: the image of each program.
    share: nodes of equal token and children (of leaves: equal image) are one node.
    malformed: "complete" runs every sequence; "invalid" leaves those out that are not well formed.
    """
    nodes = Nodes()
    tokens, children = nodes.tokens, nodes.children
    arities = (0, *language.arities[1:])  # NULL inside a program is read as a scene
    scene, start = language.scene, language.start
    known: dict[tuple[int, ...], int] = {}
    for row, image in zip(rows, image_of, strict=True):
        if malformed == "invalid" and not well_formed(row, language):
            nodes.roots.append(-1)
            continue
        tree, need = [], 1
        for token in row:
            if token == start:
                continue
            tree.append(token or scene)
            need += arities[token] - 1
            if not need:
                break
        tree += [scene] * need
        stack: list[int] = []
        for token in reversed(tree):  # so the left operand is on top
            inputs = arities[token]
            if inputs == 1:
                key: tuple[int, ...] = (token, stack.pop())
            elif inputs:
                key = (token, stack.pop(), stack.pop())
            else:
                key = (token, -1 - image)
            node = known.get(key, -1)
            if node < 0:
                node = len(tokens)
                tokens.append(token)
                children.append(key[1:])
                if share:
                    known[key] = node
            stack.append(node)
        nodes.roots.append(stack[-1])
    return nodes


def agenda(nodes: Nodes) -> list[list[int]]:
    """Nodes in groups of one token, few and large.

    Runs the token of which the largest share of the nodes left to run has its inputs, and all of
    those at once; among equals that with the most (a heuristic: the least number of groups is a
    shortest common supersequence, which is NP-hard).
    """
    tokens = nodes.tokens
    parents: list[list[int]] = [[] for _ in tokens]
    waiting = [0] * len(tokens)  # inputs that have not run
    left: dict[int, int] = {}  # nodes to run, by token
    ready: dict[int, list[int]] = {}
    for node, inputs in enumerate(nodes.children):
        token = tokens[node]
        left[token] = left.get(token, 0) + 1
        if inputs[0] < 0:
            ready.setdefault(token, []).append(node)
            continue
        waiting[node] = len(inputs)
        for child in inputs:
            parents[child].append(node)
    groups = []
    while ready:
        best, most = -1, (0.0, 0)
        for token, group in ready.items():
            count = len(group)
            worth = (count / left[token], count)
            if worth > most:
                best, most = token, worth
        group = ready.pop(best)
        left[best] -= len(group)
        groups.append(group)
        for node in group:
            for parent in parents[node]:
                waiting[parent] -= 1
                if not waiting[parent]:
                    ready.setdefault(tokens[parent], []).append(parent)
    return groups


def levels(nodes: Nodes) -> list[list[int]]:
    """Nodes in groups of one height and one number of inputs, whatever their tokens."""
    heights: list[int] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for node, inputs in enumerate(nodes.children):
        leaf = inputs[0] < 0
        heights.append(0 if leaf else 1 + max(heights[child] for child in inputs))
        groups.setdefault((heights[node], 0 if leaf else len(inputs)), []).append(node)
    return [groups[key] for key in sorted(groups)]


def schedule(nodes: Nodes, plan: str, device: torch.device) -> Schedule:
    """The groups of a plan with the rows of their inputs, on the device of the maps."""
    order = agenda(nodes) if plan == "agenda" else levels(nodes)
    row = [0] * len(nodes.tokens)
    for place, node in enumerate(node for group in order for node in group):
        row[node] = place
    flat: list[int] = []
    for group in order:
        for column in zip(*(nodes.children[node] for node in group), strict=True):
            flat += [row[child] if child >= 0 else -1 - child for child in column]
    executed = [b for b, root in enumerate(nodes.roots) if root >= 0]
    roots = [row[nodes.roots[b]] for b in executed]
    # One transfer for all of them: a copy to a GPU costs more than what it carries here.
    every = torch.tensor(flat + roots + executed, dtype=torch.int64).to(device)
    groups, taken, start = [], 0, 0
    for group in order:
        size, first = len(group), nodes.children[group[0]]
        stop = taken + size * len(first)
        inputs = every[taken:stop].split(size)
        tokens = [nodes.tokens[node] for node in group]
        groups.append(
            Group(start, start + size, len(first) if first[0] >= 0 else 0, tuple(inputs), tokens)
        )
        taken, start = stop, start + size
    ends = every[taken:].split([len(roots), len(executed)])
    return Schedule(groups, ends[0], ends[1], start)
