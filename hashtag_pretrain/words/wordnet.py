"""The nouns of WordNet 3.0, whose offsets are ImageNet's class ids (wnids).

Read from `data.noun` and `index.noun`, which Debian's package wordnet-base holds. A line of the
first is a synset (offset, file, type, number of words in hex, then a word and its id in turn):

    02132136 05 n 03 brown_bear 0 bruin 0 Ursus_arctos 0 007 @ 02131653 n 0000 ...

a line of the second a lemma with the synsets of its senses, the most frequent first:

    bruin n 2 3 @ ~ #m 2 0 02132320 02132136
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .tags import normalise

FOLDER = "/usr/share/wordnet"  # where Debian's package puts it
REMEDY = "install Debian's package wordnet-base, or give the folder of WordNet 3.0's data.noun"


@dataclass(frozen=True)
class WordNet:
    """Noun synsets by wnid, such as n02132136."""

    lemmas: dict[str, list[str]]  # wnid -> its words as WordNet spells them, brown_bear
    senses: dict[str, list[str]]  # lemma in lower case -> wnids, the most frequent sense first

    @cached_property
    def by_tag(self) -> dict[str, list[str]]:
        """The wnids of each tag in normal form, the most frequent senses first.

        Where several lemmas are one tag (egg_cup, eggcup) the first senses of all come before the
        second ones.
        """
        ranked: dict[str, dict[str, int]] = {}
        for lemma, wnids in self.senses.items():
            ranks = ranked.setdefault(normalise(lemma), {})
            for rank, wnid in enumerate(wnids):
                ranks[wnid] = min(rank, ranks.get(wnid, rank))
        ranked.pop("", None)
        return {tag: sorted(ranks, key=ranks.__getitem__) for tag, ranks in ranked.items()}

    def tags(self, wnid: str) -> list[str]:
        """The tags in normal form that name a synset: n02132136 has brownbear, bruin, ..."""
        if wnid not in self.lemmas:
            raise ValueError(f"{wnid} is no noun synset of WordNet 3.0: a class id is n02132136")
        return list(dict.fromkeys(filter(None, map(normalise, self.lemmas[wnid]))))


def read_wordnet(folder: str | Path = FOLDER) -> WordNet:
    """The nouns of WordNet 3.0; ValueError where the files are absent or of another version."""
    data, index = Path(folder) / "data.noun", Path(folder) / "index.noun"
    lemmas = dict(_read(data, _parse_synset))
    if "brown_bear" not in lemmas.get("n02132136", []):
        raise ValueError(
            f"{data} is not of WordNet 3.0, whose synset 02132136 is brown_bear: ImageNet's class "
            f"ids fit that version alone; {REMEDY}"
        )
    senses = dict(_read(index, _parse_lemma))
    for lemma, wnids in senses.items():
        if any(wnid not in lemmas for wnid in wnids):
            raise ValueError(f"{index} gives {lemma} synsets that {data.name} lacks; {REMEDY}")
    return WordNet(lemmas, senses)


def _read(
    path: Path, parse: Callable[[list[str]], tuple[str, list[str]]]
) -> Iterator[tuple[str, list[str]]]:
    """What `parse` makes of each line's fields, without the licence, which is indented by two."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {REMEDY}") from None
    for number, line in enumerate(lines, 1):
        if not line.startswith("  "):
            try:
                yield parse(line.split(" | ")[0].split())
            except ValueError:
                raise ValueError(
                    f"{path}, line {number} is none of WordNet's, or is cut off: {REMEDY}"
                ) from None


def _parse_synset(fields: list[str]) -> tuple[str, list[str]]:
    """The wnid and words of a line of data.noun."""
    offset, _, _, count, *rest = fields
    words = rest[: 2 * int(count, 16) : 2]
    if len(words) < int(count, 16):
        raise ValueError(f"{len(words)} words of {int(count, 16)}")
    return f"n{offset}", words


def _parse_lemma(fields: list[str]) -> tuple[str, list[str]]:
    """The lemma and wnids of a line of index.noun, whose last fields are the offsets."""
    lemma, _, count, *rest = fields
    offsets = rest[-int(count) :]
    if len(offsets) < int(count) or not all(len(o) == 8 and o.isdigit() for o in offsets):
        raise ValueError(f"no {count} offsets")
    return lemma, [f"n{offset}" for offset in offsets]
