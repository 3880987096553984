"""The sentence of a template with its values, and the same sentence in other words.

The rules are those of the public question generator: a random sentence of the template, a random
synonym of each value; text in brackets appears half of the time.
"""

import random
import re

from ..functions import ATTRIBUTES
from .phrases import OTHER_PHRASES, OTHER_WORDS, SYNONYMS
from .template import NOTHING, Template, Values

_BRACKETS = re.compile(r"\[([^]]*)\]")
_SLOT = re.compile(r"\{(r?)(\d)(s?)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_SHAPE = list(ATTRIBUTES).index("shape")


def realise(template: Template, values: Values, generator: random.Random) -> str:
    """A sentence that asks `template` with `values`."""

    def fill(match: re.Match) -> str:
        relation, number, plural = match.groups()
        if relation:
            return _say(values.relations[int(number)], generator)
        words = list(values.nouns.get(int(number), NOTHING))
        words[_SHAPE] = words[_SHAPE] or "thing"
        return " ".join(_say(word, generator) for word in words if word) + plural

    text = generator.choice(template.texts)
    text = _BRACKETS.sub(lambda match: generator.choice((match[1], "")), text)
    if _apart(values):
        text = text.replace(" other ", " ").replace(" another ", " a ")
    text = re.sub(" +", " ", _SLOT.sub(fill, text))
    return _ARTICLE.sub(r"\1n ", text).replace(" ?", "?").strip()


def paraphrase(text: str, generator: random.Random, *, share: float = 0.6) -> str:
    """The sentence in other words, such as "crimson orb" for "red ball"; the answer stays.

    Every word that has another (`OTHER_WORDS`, `OTHER_PHRASES`) is replaced with probability
    `share`, and one of them for certain. It stands in for CLEVR-Humans: words that no training
    sentence has.
    """
    found = list(_KNOWN.finditer(text))
    if not found:
        return text
    certain = generator.randrange(len(found))
    out, end = [], 0
    for number, match in enumerate(found):
        keep = number != certain and generator.random() >= share
        out.append(text[end : match.start()])
        out.append(match[0] if keep else _other(match[0], generator))
        end = match.end()
    return re.sub(r"\b([Aa])n? (?=(\w))", _article, "".join(out) + text[end:])


def _say(value: str, generator: random.Random) -> str:
    return generator.choice(SYNONYMS.get(value, (value,)))


def _apart(values: Values) -> bool:
    """Whether the two nouns cannot be the same thing, so that none is "other"."""
    if values.relations or set(values.nouns) != {1, 2}:
        return False
    pairs = zip(values.nouns[1], values.nouns[2], strict=True)
    return any(a is not None and b is not None and a != b for a, b in pairs)


def _article(match: re.Match) -> str:
    return f"{match[1]}n " if match[2] in "aeiou" else f"{match[1]} "


def _forms() -> dict[str, tuple[str, ...]]:
    """Other words by word, with the plurals of the shapes."""
    forms = {**OTHER_PHRASES, **OTHER_WORDS}
    for value in ("thing", *ATTRIBUTES["shape"]):
        for word in SYNONYMS.get(value, (value,)):
            forms[f"{word}s"] = tuple(_plural(other) for other in OTHER_WORDS[word])
    return forms


def _plural(word: str) -> str:
    if word == "dice":
        return word
    return f"{word}es" if word.endswith("x") else f"{word}s"


def _other(words: str, generator: random.Random) -> str:
    """Another way to say `words`, with a capital where they have one."""
    other = generator.choice(_FORMS[words.lower()])
    return other.capitalize() if words[0].isupper() else other


_FORMS = _forms()
_KNOWN = re.compile(  # the longest first
    r"\b(?:" + "|".join(sorted(_FORMS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)
