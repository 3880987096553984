"""Any program as an English question; parser.py reads it back.

The templates of common/clevr cannot say what an agent composes, so a sentence follows the program's
tree. `things` stands for any noun, `the thing` for one that a definite phrase names:

    count           How many things are there? How many things are left of the thing?
    exist           Is there a thing? Are there any things?
    query_color     What color is the thing? What is the color of the thing?
    equal_color     Does the thing have the same color as the thing?
    equal_integer   Are there as many things as things? Is the number of things the same as the
                    number of things?
    less_than       Are there fewer things than things?   greater_than: more
    filter          small red metal cubes
    relate          things that are left of the thing
    same_color      other things of the same color as the thing
    union           things that are either red cubes or left of the thing
    intersect       things that are both left of the thing and behind the thing

What follows a noun belongs to that noun, and each noun has one such clause at most, so a sentence
has one reading, nested unions included. Filters are said in the data's order and once each. All
words are words of CLEVR's training questions.
"""

import random
from collections.abc import Sequence

import numpy as np

from common.clevr.execute import Failure, check_program
from common.clevr.functions import ATTRIBUTES, parse_token
from common.clevr.generation.phrases import SYNONYMS
from common.clevr.programs import Tree, from_prefix
from common.clevr.questions import Question
from common.clevr.vocabulary import Vocabulary, expand

COMPARISONS = {
    "equal_integer": ("as many", "as", "the same as"),
    "less_than": ("fewer", "than", "less than"),
    "greater_than": ("more", "than", "greater than"),
}
_WORDS = """
How What Is Are Does many number of are is there visible a an another any the other that has have
same as either or both and color size material shape fewer more less greater than
"""


def sentence(tokens: Sequence[str], seed: int = 0) -> str:
    """The question that a program in prefix order asks; seed chooses among synonyms and forms.

    Raises ValueError where the program has no answer in any scene, saying why (`execute.Failure`).
    """
    program = check_program(tokens)
    if isinstance(program, Failure):
        raise ValueError(f"the program {' '.join(tokens)!r} has no sentence: {program.value}")
    if "equal_object" in program:
        raise ValueError("equal_object is not asked in CLEVR, so it has no sentence")
    return f"{_Speaker(seed).question(from_prefix(program))}?"


class _Speaker:
    """Says the parts of a program; every choice among synonyms is drawn from its generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def question(self, tree: Tree) -> str:
        """The sentence without its question mark."""
        name = tree.token
        if name == "count":
            start = self.random.choice(("How many", "What number of"))
            return f"{start} {self.counted(tree.children[0])}"
        if name == "exist":
            if self.random.random() < 0.5:
                return f"Is there {self.things(tree.children[0], plural=False)}"
            return f"Are there any {self.things(tree.children[0], plural=True)}"
        if name in COMPARISONS:
            left, right = (self.things(count.children[0], plural=True) for count in tree.children)
            quantity, link, relation = COMPARISONS[name]
            if self.random.random() < 0.5:
                return f"Are there {quantity} {left} {link} {right}"
            return f"Is the number of {left} {relation} the number of {right}"
        verb, _, attribute = name.partition("_")
        if verb == "query":
            one = self.the(tree.children[0])
            forms = (f"What {attribute} is {one}", f"What is the {attribute} of {one}")
            return self.random.choice(forms)
        assert verb == "equal", name
        left, right = (self.the(query.children[0]) for query in tree.children)
        forms = (
            f"Does {left} have the same {attribute} as {right}",
            f"Is the {attribute} of {left} the same as that of {right}",
        )
        return self.random.choice(forms)

    def counted(self, tree: Tree) -> str:
        """What is counted, as the subject of a sentence."""
        noun, leaf = self.noun(tree, plural=True)
        if leaf.token == "scene":
            return f"{noun} are {self.random.choice(('there', 'visible'))}"
        if leaf.token.startswith("same_") and self.random.random() < 0.5:
            return f"{noun} have {self.same(leaf)}"
        return f"{noun} are {self.predicate(leaf, plural=True)}"

    def the(self, tree: Tree) -> str:
        """The phrase of `unique`, which names one thing."""
        return f"the {self.clause(tree.children[0], plural=False)}"

    def things(self, tree: Tree, *, plural: bool) -> str:
        """The phrase of a set, with its article where it is singular."""
        phrase = self.clause(tree, plural=plural)
        if plural:
            return phrase
        if phrase.startswith("other "):
            return f"an{phrase}"
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

    def clause(self, tree: Tree, *, plural: bool) -> str:
        """A noun and what is said of it: "small cubes that are left of the sphere"."""
        noun, leaf = self.noun(tree, plural=plural)
        if leaf.token == "scene":
            return noun
        if leaf.token.startswith("same_"):
            form = self.random.choice(("of", "that have" if plural else "that has"))
            return f"{noun} {form} {self.same(leaf)}"
        return f"{noun} that {'are' if plural else 'is'} {self.predicate(leaf, plural=plural)}"

    def noun(self, tree: Tree, *, plural: bool) -> tuple[str, Tree]:
        """The noun with the filters at the top of a set, and what they filter."""
        chosen: dict[str, list[str]] = {name: [] for name in ATTRIBUTES}
        while tree.token.startswith("filter_"):
            name, (value,) = parse_token(tree.token)
            chosen[name.removeprefix("filter_")].insert(0, value)
            tree = tree.children[0]
        values = [value for name in ATTRIBUTES for value in dict.fromkeys(chosen[name])]
        if not chosen["shape"]:
            values.append("thing")
        words = [self.random.choice(SYNONYMS.get(value, (value,))) for value in values]
        if tree.token.startswith("same_"):
            words.insert(0, "other")
        return " ".join(words) + ("s" if plural else ""), tree

    def predicate(self, leaf: Tree, *, plural: bool) -> str:
        """What things are: left of the cube, either cubes or spheres."""
        name, values = parse_token(leaf.token)
        if name == "relate":
            where = self.random.choice(SYNONYMS[values[0]])
            return f"{where} {self.the(leaf.children[0])}"
        if name.startswith("same_"):
            return f"of {self.same(leaf)}"
        first, second = (self.operand(child, plural=plural) for child in leaf.children)
        return f"either {first} or {second}" if name == "union" else f"both {first} and {second}"

    def operand(self, tree: Tree, *, plural: bool) -> str:
        """One side of a union or an intersection."""
        if tree.token.startswith("relate"):
            return self.predicate(tree, plural=plural)
        return self.things(tree, plural=plural)

    def same(self, leaf: Tree) -> str:
        attribute = leaf.token.removeprefix("same_")
        return f"the same {attribute} as {self.the(leaf.children[0])}"


def add_words(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with the words of sentences that it lacks, which come last."""
    values = [value for name, values in ATTRIBUTES.items() for value in values if name != "shape"]
    nouns = ("thing", *ATTRIBUTES["shape"])
    words = [*_WORDS.split(), *values]
    words += [word for texts in SYNONYMS.values() for text in texts for word in text.split()]
    for noun in nouns:
        words += [f"{word}{end}" for word in SYNONYMS.get(noun, (noun,)) for end in ("", "s")]
    return expand(vocabulary, [Question(" ".join(words), 0, "", "", 0)])


def encode_sentences(programs: np.ndarray, vocabulary: Vocabulary, seeds: np.ndarray) -> np.ndarray:
    """The sentences of programs (N, Lp) as rows of words int64 (N, Lq): START, words, END, NULL.

    seeds: int (N,), one for each sentence. A program that has no sentence becomes START, END.
    Raises ValueError for a word that the vocabulary lacks: `add_words` adds them.
    """
    rows = []
    for program, seed in zip(np.asarray(programs).tolist(), seeds.tolist(), strict=True):
        tokens = vocabulary.decode_program(program)
        if isinstance(check_program(tokens), Failure):
            rows.append([1, 2])
        else:
            rows.append(vocabulary.encode_question(sentence(tokens, seed), unknown="error"))
    out = np.zeros((len(rows), max(map(len, rows), default=2)), np.int64)
    for row, numbers in zip(out, rows, strict=True):
        row[: len(numbers)] = numbers
    return out
