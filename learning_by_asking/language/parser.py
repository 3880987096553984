"""The program of a sentence of sentences.py: by recursive descent, one word ahead.

It reads the language of that file alone, in all its forms and synonyms; other English is a
ValueError. Filters come out in the order of CLEVR's data.
"""

from collections.abc import Sequence
from typing import Final, NoReturn

from common.clevr.functions import ATTRIBUTES, token
from common.clevr.generation.phrases import SYNONYMS
from common.clevr.vocabulary import tokenize

from .sentences import COMPARISONS

Program = list[str]  # tokens in prefix order
MOST = 400  # words of a question: clauses within clauses are read by recursion

_THINGS: Final = SYNONYMS["thing"]
# Word -> token of the filter that it says.
_FILTERS: Final = {
    word: token(f"filter_{name}", (value,))
    for name, values in ATTRIBUTES.items()
    for value in values
    for word in SYNONYMS.get(value, (value,))
}
_SHAPES: Final = [word for word, text in _FILTERS.items() if text.startswith("filter_shape")]
# Words of a phrase -> the relation that it says.
_RELATIONS: Final = {
    tuple(phrase.split()): token("relate", (value,))
    for value in ("left", "right", "behind", "front")
    for phrase in SYNONYMS[value]
}


def parse(text: str) -> Program:
    """The program, in prefix order, of a question; ValueError names the word that does not fit."""
    reader = _Reader(text)
    if len(reader.words) > MOST:
        raise ValueError(f"the question has {len(reader.words)} words: give {MOST} at most")
    program = reader.question()
    if reader.place < len(reader.words):
        reader.refuse()
    return program


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.words = tokenize(text.strip())
        self.place = 0

    def refuse(self) -> NoReturn:
        rest = self.words[self.place :]
        where = (
            f"word {self.place + 1}, {rest[0]!r}, does not fit" if rest else "its end is missing"
        )
        raise ValueError(f"the question {self.text!r} is not understood: {where}")

    def sees(self, words: Sequence[str]) -> bool:
        return self.words[self.place : self.place + len(words)] == list(words)

    def takes(self, phrase: str) -> bool:
        """Whether these words come next, which are then read."""
        words = phrase.split()
        found = self.sees(words)
        self.place += len(words) * found
        return found

    def require(self, phrase: str) -> None:
        if not self.takes(phrase):
            self.refuse()

    def attribute(self) -> str:
        for name in ATTRIBUTES:
            if self.takes(name):
                return name
        self.refuse()

    def question(self) -> Program:
        if self.takes("How many") or self.takes("What number of"):
            return ["count", *self.counted()]
        if self.takes("What is the"):
            name = self.attribute()
            self.require("of")
            return [f"query_{name}", *self.the()]
        if self.takes("What"):
            name = self.attribute()
            self.require("is")
            return [f"query_{name}", *self.the()]
        if self.takes("Does"):
            first = self.the()
            self.require("have the same")
            name = self.attribute()
            self.require("as")
            return _equal(name, first, self.the())
        if self.takes("Is there"):
            return ["exist", *self.things(plural=False)]
        if self.takes("Are there any"):
            return ["exist", *self.things(plural=True)]
        if self.takes("Are there"):
            return self.compare()
        if self.takes("Is the number of"):
            return self.compare_numbers()
        self.require("Is the")
        name = self.attribute()
        self.require("of")
        first = self.the()
        self.require("the same as that of")
        return _equal(name, first, self.the())

    def compare(self) -> Program:
        """As many things as things; fewer, more things than things."""
        for name, (quantity, link, _) in COMPARISONS.items():
            if self.takes(quantity):
                left = self.things(plural=True)
                self.require(link)
                return [name, "count", *left, "count", *self.things(plural=True)]
        self.refuse()

    def compare_numbers(self) -> Program:
        left = self.things(plural=True)
        for name, (_, _, relation) in COMPARISONS.items():
            if self.takes(f"{relation} the number of"):
                return [name, "count", *left, "count", *self.things(plural=True)]
        self.refuse()

    def counted(self) -> Program:
        filters = self.noun(plural=True)
        if self.takes("are there") or self.takes("are visible"):
            return [*filters, "scene"]
        if self.takes("have"):
            return [*filters, *self.same()]
        self.require("are")
        return [*filters, *self.predicate(plural=True)]

    def the(self) -> Program:
        self.require("the")
        return ["unique", *self.clause(plural=False)]

    def things(self, *, plural: bool) -> Program:
        if not plural and not any(self.takes(word) for word in ("a", "an", "another")):
            self.refuse()
        return self.clause(plural=plural)

    def clause(self, *, plural: bool) -> Program:
        """A noun and what is said of it."""
        filters = self.noun(plural=plural)
        if self.takes("of"):
            return [*filters, *self.same()]
        if not self.takes("that"):
            return [*filters, "scene"]
        if self.takes("have" if plural else "has"):
            return [*filters, *self.same()]
        self.require("are" if plural else "is")
        return [*filters, *self.predicate(plural=plural)]

    def noun(self, *, plural: bool) -> Program:
        """The filters that a noun and its adjectives say; several shapes may come in a row."""
        self.takes("other")
        end = "s" if plural else ""
        filters: Program = []
        while self.place < len(self.words):
            word = self.words[self.place]
            following = self.words[self.place + 1 : self.place + 2]
            self.place += 1
            if word in [f"{noun}{end}" for noun in _THINGS]:
                return filters
            if word in [f"{noun}{end}" for noun in _SHAPES] and following not in _NOUNS:
                return [_FILTERS[word.removesuffix(end)], *filters]
            if word not in _FILTERS:
                self.place -= 1
                self.refuse()
            filters.insert(0, _FILTERS[word])
        self.refuse()

    def predicate(self, *, plural: bool) -> Program:
        """What things are."""
        if self.takes("of"):
            return self.same()
        for start, link, name in (("either", "or", "union"), ("both", "and", "intersect")):
            if self.takes(start):
                first = self.operand(plural=plural)
                self.require(link)
                return [name, *first, *self.operand(plural=plural)]
        return self.relation() or self.refuse()

    def operand(self, *, plural: bool) -> Program:
        return self.relation() or self.things(plural=plural)

    def relation(self) -> Program:
        """Left of the thing; empty where no relation comes next."""
        for words, name in _RELATIONS.items():
            if self.sees(words):
                self.place += len(words)
                return [name, *self.the()]
        return []

    def same(self) -> Program:
        self.require("the same")
        name = self.attribute()
        self.require("as")
        return [f"same_{name}", *self.the()]


_NOUNS: Final = [[word] for word in _SHAPES]  # a shape before another one is an adjective


def _equal(name: str, first: Program, second: Program) -> Program:
    query = f"query_{name}"
    return [f"equal_{name}", query, *first, query, *second]
