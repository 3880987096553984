"""The 90 question templates of CLEVR, file by file.

Skeletons and constraints are those of the public generator's nine template files (Johnson et al.,
CVPR 2017, Sec. 3 and the supplementary material); the sentences (phrases.py) are our own.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Final

from ..functions import ATTRIBUTES
from ..questions import TEMPLATE_FILES
from . import phrases
from .template import Step, Template

PROFILES: Final = ("fixed", "v1_0")


class _Draft:
    """A template in the making."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.empty: set[tuple[int, str]] = set()
        self.differ: list[tuple[int, int]] = []
        self.attributes: set[str] = set()

    def add(self, function: str, *inputs: int, noun: int = 0, relation: int = 0) -> int:
        """Append a step and return its position."""
        self.steps.append(Step(function, inputs, noun, relation))
        prefix, _, attribute = function.partition("_")
        if prefix in ("query", "same", "equal", "filter") and attribute in ATTRIBUTES:
            self.attributes.add(attribute)
        return len(self.steps) - 1

    def describe(self, noun: int, end: str = "_unique") -> int:
        """What noun phrase `noun` describes among all things."""
        return self.add(f"filter{end}", self.add("scene"), noun=noun)

    def chain(self, nouns: Sequence[int], end: str = "_unique") -> int:
        """The last of `nouns`, each found by its relation to the one before."""
        at = self.describe(nouns[0], "_unique" if len(nouns) > 1 else end)
        for i, (before, noun) in enumerate(pairwise(nouns)):
            last = i == len(nouns) - 2
            function = f"relate_filter{end if last else '_unique'}"
            at = self.add(function, at, noun=noun, relation=before)
        return at

    def ask(self, attribute: str, at: int) -> int:
        """Query an attribute, which the noun phrase of that object then must not mention."""
        self.empty.add((self.steps[at].noun, attribute))
        return self.add(f"query_{attribute}", at)

    def finish(self, file: str, index: int, texts: Sequence[str], **names: str) -> Template:
        """The template, with `names` put into its sentences."""
        sentences = []
        for text in texts:
            for name, value in names.items():
                text = text.replace("{" + name.replace("_", " ") + "}", value)
            sentences.append(text)
        return Template(
            file,
            index,
            steps=tuple(self.steps),
            texts=tuple(sentences),
            empty=frozenset(self.empty),
            differ=tuple(self.differ),
            attributes=frozenset(self.attributes),
        )


def _where(nouns: Sequence[int]) -> str:
    """In words: in relation to the last of `nouns`, which is so to the one before, and so on."""
    text = f"{{r{nouns[0]}}} the {{{nouns[0]}}}"
    for noun in nouns[1:]:
        text = f"{{r{noun}}} the {{{noun}}} [that is] {text}"
    return text


def _thing(nouns: Sequence[int]) -> str:
    """In words, without article: the last of `nouns`, in relation to the one before."""
    *before, last = nouns
    return f"{{{last}}} [that is] {_where(before)}" if before else f"{{{last}}}"


def _things(nouns: Sequence[int]) -> str:
    *before, last = nouns
    return f"{{{last}s}} {_where(before)}" if before else f"{{{last}s}}"


def _hops(file: str, hops: int, queried: Sequence[str]) -> list[Template]:
    """zero_hop, one_hop, two_hop and three_hop: count, exist, then queries of the last object."""
    nouns = range(1, hops + 2)
    count: Sequence[str] = phrases.ZERO_HOP_COUNT
    exist: Sequence[str] = phrases.ZERO_HOP_EXIST
    filled = {}
    if hops:
        count, exist = phrases.HOP_COUNT, phrases.HOP_EXIST
        where = _where(nouns[:-1])
        filled = {"n": f"{{{hops + 1}}}", "n_s": f"{{{hops + 1}s}}", "where": where}
    out = []
    for index, (end, texts) in enumerate((("_count", count), ("_exist", exist))):
        draft = _Draft()
        draft.chain(nouns, end)
        out.append(draft.finish(file, index, texts, **filled))
    for index, attribute in enumerate(queried, 2):
        draft = _Draft()
        draft.ask(attribute, draft.chain(nouns))
        out.append(_query(draft, file, index, attribute, _thing(nouns)))
    return out


def _query(draft: _Draft, file: str, index: int, attribute: str, thing: str) -> Template:
    filled = {"q": attribute, "A": f"the {thing}", "a_A": f"a {thing}"}
    return draft.finish(file, index, phrases.QUERY, **filled)


def _compare_integer(profile: str) -> list[Template]:
    """Two counts. 0-2: of described things; 3-5: the first of related things; 6-8: both."""
    out: list[Template] = []
    for sides in (([1], [2]), ([1, 2], [3]), ([1, 2], [3, 4])):
        for function in ("equal_integer", "less_than", "greater_than"):
            draft = _Draft()
            first, second = (draft.chain(nouns, "_count") for nouns in sides)
            draft.add(function, first, second)
            if len(sides[0]) == 1:
                # The original's rule that the counts differ leaves "no" as the only answer of 0.
                draft.differ.append((first, second))
            if len(sides[1]) == 2:
                anchors = [i for i, s in enumerate(draft.steps) if s.function == "filter_unique"]
                draft.differ.append((anchors[0], anchors[1]))
            filled = {"A": _things(sides[0]), "B": _things(sides[1])}
            texts = phrases.COMPARE_INTEGER[function]
            if profile == "fixed" and len(sides[0]) == 1:
                draft = _sets_differ(function)
            out.append(draft.finish("compare_integer", len(out), texts, **filled))
    return out


def _sets_differ(function: str) -> _Draft:
    """Compare_integer 0-2 where the sets must differ, not their sizes: equal counts can occur."""
    draft = _Draft()
    sets = [draft.describe(noun, "") for noun in (1, 2)]
    draft.differ.append((sets[0], sets[1]))
    draft.add(function, *(draft.add("count", at) for at in sets))
    return draft


def _comparison(profile: str) -> list[Template]:
    """Equal attributes of things. 0-3: described; then left, right or both by a relation."""
    plain = [(attribute, ([1], [2])) for attribute in ATTRIBUTES]
    sides = (([1, 2], [3]), ([1], [2, 3]), ([1, 2], [3, 4]))
    out: list[Template] = []
    for attribute, (left, right) in plain + [(a, pair) for a in ATTRIBUTES for pair in sides]:
        draft = _Draft()
        first, second = draft.chain(left), draft.chain(right)
        draft.differ.append((first, second))
        queries = draft.ask(attribute, first), draft.ask(attribute, second)
        draft.add(f"equal_{attribute}", *queries)
        if profile == "v1_0" and len(out) == 4:  # its rule names the first noun, not the third
            draft.empty = {(2, "size"), (1, "size")}
        filled = {"x": attribute, "A": f"the {_thing(left)}", "B": f"the {_thing(right)}"}
        out.append(draft.finish("comparison", len(out), phrases.COMPARISON, **filled))
    return out


def _same_relate() -> list[Template]:
    """What shares an attribute with an object: exist, count, both described, then queries."""
    texts = {
        "exist": phrases.SAME_EXIST,
        "count": phrases.SAME_COUNT,
        "filter_exist": phrases.SAME_FILTER_EXIST,
        "filter_count": phrases.SAME_FILTER_COUNT,
    }
    out: list[Template] = []
    for end, sentences in texts.items():
        for shared in ATTRIBUTES:
            draft = _same(shared)
            draft.add(end, len(draft.steps) - 1, noun=2 if end.startswith("filter") else 0)
            out.append(draft.finish("same_relate", len(out), sentences, x=shared))
    for shared in ATTRIBUTES:
        for attribute in ATTRIBUTES:
            if attribute != shared:
                draft = _same(shared)
                at = draft.add("filter_unique", len(draft.steps) - 1, noun=2)
                draft.ask(attribute, at)
                filled = {"x": shared, "q": attribute}
                out.append(draft.finish("same_relate", len(out), phrases.SAME_QUERY, **filled))
    return out


def _same(shared: str) -> _Draft:
    draft = _Draft()
    draft.add(f"same_{shared}", draft.describe(1))
    draft.empty = {(1, shared), (2, shared)}
    return draft


def _single_and() -> list[Template]:
    """What stands in one relation to one object and in another to a second."""
    out = []
    for attribute in (None, *ATTRIBUTES):
        draft = _Draft()
        sides = [draft.add("relate", draft.describe(noun), relation=noun) for noun in (1, 2)]
        both = draft.add("intersect", *sides)
        if attribute is None:
            draft.add("filter_count", both, noun=3)
            out.append(draft.finish("single_and", 0, phrases.SINGLE_AND_COUNT))
            continue
        draft.differ.append((sides[0], sides[1]))
        draft.ask(attribute, draft.add("filter_unique", both, noun=3))
        out.append(draft.finish("single_and", len(out), phrases.SINGLE_AND_QUERY, q=attribute))
    return out


def _single_or() -> list[Template]:
    """How many things are one or the other; 1, 2, 4 and 5 filter the union by an attribute."""
    outer = {1: "size", 2: "color", 4: "material", 5: "shape"}
    related = {3: ([1, 2], [3, 4]), 6: ([1, 2], [3]), 7: ([1], [2, 3])}
    out = []
    for index in range(8):
        draft = _Draft()
        left, right = related.get(index, ([1], [2]))
        sides = [draft.chain(left, ""), draft.chain(right, "")]
        if index not in related:
            draft.differ.append((sides[0], sides[1]))
        at = draft.add("union", *sides)
        texts: Sequence[str] = phrases.SINGLE_OR
        if index in outer:
            at = draft.add(f"filter_{outer[index]}", at, noun=3)
            draft.empty = {(1, outer[index]), (2, outer[index])}
            texts = phrases.SINGLE_OR_FILTER
        draft.add("count", at)
        out.append(draft.finish("single_or", index, texts, A=_things(left), B=_things(right)))
    return out


@cache
def templates(profile: str = "fixed") -> tuple[Template, ...]:
    """All 90 templates, by family.

    profile: "v1_0" keeps two errors of the released templates: the only answer of compare_integer 0
    is no (and 1 and 2 never compare equal numbers), and comparison 4 may mention a size that it
    compares.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
    hops = {
        "zero_hop": (0, ("shape", "material", "color", "size")),
        "one_hop": (1, ("size", "color", "material", "shape")),
        "two_hop": (2, ("size", "color", "material", "shape")),
        "three_hop": (3, ("size", "shape", "color", "material")),
    }
    files = {file: _hops(file, *about) for file, about in hops.items()}
    files |= {"compare_integer": _compare_integer(profile), "comparison": _comparison(profile)}
    files |= {"same_relate": _same_relate(), "single_and": _single_and()}
    files |= {"single_or": _single_or()}
    return tuple(template for file in TEMPLATE_FILES for template in files[file])


def select(
    families: Sequence[str | int] | None = None,
    *,
    attributes: Sequence[str] = tuple(ATTRIBUTES),
    profile: str = "fixed",
) -> tuple[Template, ...]:
    """The templates named by file ("one_hop"), by name ("one_hop/0") or by family number.

    families: None takes all. attributes: those that are asked about; templates that need
    another one are left out. Raises ValueError for an unknown name, or where nothing is left.
    """
    unknown = [attribute for attribute in attributes if attribute not in ATTRIBUTES]
    if unknown:
        raise ValueError(f"attribute {unknown[0]!r} is not one of {', '.join(ATTRIBUTES)}")
    chosen = list(templates(profile))
    if families is not None:
        for name in families:
            if not any(name in (t.file, t.name, t.family) for t in chosen):
                raise ValueError(
                    f"family {name!r} is unknown: give a file ({', '.join(TEMPLATE_FILES)}), a "
                    "template such as one_hop/0, or a number 0..89"
                )
        chosen = [t for t in chosen if {t.file, t.name, t.family} & set(families)]
    chosen = [t for t in chosen if t.attributes <= set(attributes)]
    if not chosen:
        raise ValueError(
            f"no template is left of families {list(families or TEMPLATE_FILES)} that speaks of "
            f"{', '.join(attributes) or 'no attribute'} alone: name more of either"
        )
    return tuple(chosen)
