"""Which tags are one label, Sec. 2.1: tags that name the same concept of WordNet.

The paper merges tags by their synsets and does not say what becomes of a tag with several, such as
#crane, a bird, a machine and three more. A tag gets a key, a set of synsets, and tags with equal
keys are one label. With the noun synsets S(t) of a tag t and the classes C of the vocabulary:

    strict       S(t): only tags with all their meanings in common merge
    vocabulary   S(t) & C: meanings outside of the classes are forgotten
    components   the synsets of all tags that t is linked to, one shared synset after the other;
                 of C alone where there are classes
    first_sense  WordNet's most frequent meaning of t alone: #crane becomes Crane, a writer
    none         t itself: WordNet is not asked, and nothing merges
"""

from collections.abc import Collection, Iterable

from .wordnet import WordNet

RULES = ("strict", "vocabulary", "components", "first_sense", "none")

Keys = dict[str, frozenset[str]]  # tag in normal form -> its key; what has none is left out


def find_senses(
    tags: Iterable[str], wordnet: WordNet, classes: Collection[str] | None = None
) -> dict[str, list[str]]:
    """The noun synsets of each tag, the most frequent first; in `classes` where those are given.

    tags: in normal form. Tags without a synset are left out.
    """
    found = {tag: wordnet.by_tag[tag] for tag in tags if tag in wordnet.by_tag}
    if classes is not None:
        within = frozenset(classes)
        found = {tag: [s for s in senses if s in within] for tag, senses in found.items()}
    return {tag: senses for tag, senses in found.items() if senses}


# Unstated: the rule for tags of several synsets.
def find_keys(
    tags: Iterable[str],
    wordnet: WordNet | None,
    *,
    rule: str = "strict",
    classes: Collection[str] | None = None,
) -> Keys:
    """The key of each tag that names a noun, and a class where `classes` (wnids) are given."""
    require_rule(rule, wordnet, classes)
    if wordnet is None or rule == "none":
        return {tag: frozenset([tag]) for tag in tags}
    within = find_senses(tags, wordnet, classes)
    if rule == "vocabulary":
        return {tag: frozenset(senses) for tag, senses in within.items()}
    if rule == "components":
        return _link(within)
    if rule == "first_sense":
        return {tag: frozenset(wordnet.by_tag[tag][:1]) for tag in within}
    return {tag: frozenset(wordnet.by_tag[tag]) for tag in within}


def find_ambiguous(
    tags: Iterable[str],
    wordnet: WordNet | None,
    *,
    rule: str = "strict",
    classes: Collection[str] | None = None,
) -> set[str]:
    """The tags of more than one noun synset; by the rule `vocabulary`, of more than one class."""
    if wordnet is None or rule == "none":
        return set()
    senses = find_senses(tags, wordnet, classes if rule == "vocabulary" else None)
    return {tag for tag in senses if len(senses[tag]) > 1}


def require_rule(rule: str, wordnet: WordNet | None, classes: Collection[str] | None) -> None:
    """Raise ValueError where a rule is unknown, or lacks what it asks."""
    if rule not in RULES:
        raise ValueError(f"rule={rule}: give one of {', '.join(RULES)}")
    if rule == "none" and classes is not None:
        raise ValueError("rule=none does not look into WordNet: leave out classes")
    if rule != "none" and wordnet is None:
        raise ValueError(f"rule={rule} needs WordNet: give its folder, or rule=none")
    if rule == "vocabulary" and classes is None:
        raise ValueError("rule=vocabulary needs classes; without them it would be rule=strict")


def _link(senses: dict[str, list[str]]) -> Keys:
    """The union of the synsets of each connected component of tags and synsets."""
    parents = {synset: synset for found in senses.values() for synset in found}

    def root(synset: str) -> str:
        while parents[synset] != synset:
            parents[synset] = parents[parents[synset]]  # halves the path
            synset = parents[synset]
        return synset

    for first, *others in senses.values():
        for synset in others:
            parents[root(synset)] = root(first)
    components: dict[str, set[str]] = {}
    for synset in parents:
        components.setdefault(root(synset), set()).add(synset)
    keys = {synset: frozenset(component) for synset, component in components.items()}
    return {tag: keys[root(found[0])] for tag, found in senses.items()}
