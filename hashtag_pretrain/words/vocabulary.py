"""The labels of a data set, Sec. 2.1: canonical hashtags, in a file and in memory.

V labels. A label stands for a set of tags in normal form (`tags.normalise`), its members, and for
the noun synsets of WordNet that they name. The file is JSON:

    {"brownbear": {"id": 0, "members": ["brownbear", "ursusarctos"],
                   "synsets": ["n02132136"], "count": 1210}, ...}
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .canonical import Keys, find_ambiguous, find_keys, require_rule
from .tags import normalise
from .wordnet import WordNet


@dataclass(frozen=True)
class Vocabulary:
    """V labels by their ids 0..V-1."""

    names: list[str]  # the canonical tag of each, that people read
    members: dict[str, int]  # tag in normal form -> id
    synsets: list[list[str]]  # wnids such as n02132136 of each
    counts: list[int]  # how often its members were used where it was built

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """SHA-256 of the names and members: equal where tags get the same ids."""
        content = json.dumps([self.names, sorted(self.members.items())])
        return hashlib.sha256(content.encode()).hexdigest()

    def look_up(self, tags: Sequence[str]) -> list[int]:
        """The ids of an image's tags in any spelling: a set, sorted, unknown tags left out."""
        found = (self.members.get(normalise(tag)) for tag in tags)
        return sorted({label for label in found if label is not None})

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """The vocabulary of a file; ValueError names the file and what is wrong with it."""
        path = Path(path)
        entries = _read_entries(path)
        ids = [entry["id"] for entry in entries.values()]
        if sorted(ids) != list(range(len(ids))):
            raise ValueError(
                f"{path}: {_describe_ids(entries)}; number the labels 0..{len(ids) - 1}"
            )
        order = sorted(entries, key=lambda name: entries[name]["id"])
        members: dict[str, int] = {}
        for label, name in enumerate(order):
            for member in entries[name]["members"]:
                key = normalise(member)
                if key and members.setdefault(key, label) != label:
                    other = order[members[key]]
                    raise ValueError(
                        f"{path}: the tag {key!r} is a member of {other!r} and of {name!r}; leave "
                        "it to one of them"
                    )
        synsets = [entries[name].get("synsets", []) for name in order]
        return cls(order, members, synsets, [entries[name].get("count", 0) for name in order])

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        members: list[list[str]] = [[] for _ in self.names]
        for tag, label in self.members.items():
            members[label].append(tag)
        columns = zip(self.names, members, self.synsets, self.counts, strict=True)
        content = {
            name: {"id": label, "members": tags, "synsets": synsets, "count": count}
            for label, (name, tags, synsets, count) in enumerate(columns)
        }
        lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in content.items())
        write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


@dataclass(frozen=True)
class Report:
    """What a vocabulary was built from, and what was left out; `uses` count tags of images."""

    uses: int  # of all tags
    kept: int  # of the vocabulary's tags
    unknown: dict[str, int]  # tags that name no noun, or no class: uses, most frequent first
    stopped: dict[str, int]  # tags that were to be left out: uses
    ambiguous: dict[str, int]  # tags of several synsets: uses; with ambiguous=drop left out
    rare: int  # labels with fewer uses than `least`
    cut: int  # labels beyond the `most` frequent ones
    missing: list[str]  # classes that no label's key contains

    def lines(self, examples: int = 8) -> list[str]:
        """The report for people."""
        share = 100 * self.kept / self.uses if self.uses else 0.0
        lines = [f"{self.kept:,} of {self.uses:,} uses of tags ({share:.1f} %) are labels"]
        for name in ("unknown", "stopped", "ambiguous"):
            tags = getattr(self, name)
            if tags:
                first = ", ".join(
                    f"#{tag or '?'} {n:,}" for tag, n in list(tags.items())[:examples]
                )
                more = ", ..." if len(tags) > examples else ""
                lines.append(f"{name}: {len(tags):,} tags, {first}{more}")
        if self.rare or self.cut:
            lines.append(f"labels left out: {self.rare:,} rare, {self.cut:,} beyond the most")
        if self.missing:
            first = ", ".join(self.missing[:examples])
            more = ", ..." if len(self.missing) > examples else ""
            lines.append(f"classes without a label: {len(self.missing):,}, {first}{more}")
        return lines


def build(
    counts: Mapping[str, int],
    wordnet: WordNet | None,
    *,
    rule: str = "strict",
    ambiguous: str = "keep",
    classes: Sequence[str] | None = None,
    most: int | None = None,
    least: int = 1,
    stop: Collection[str] = (),
) -> tuple[Vocabulary, Report]:
    """The labels of a data set, the most frequent first, and what was left out.

    counts: uses of each tag in any spelling. rule: of canonical.RULES. ambiguous: keep, or drop the
    tags of several synsets. classes: wnids whose synonyms alone are taken, as the paper's 1.5k;
    without them all nouns are. most: labels, counted after merging, as the paper's 8.5k and 17k.
    least: uses of a label. stop: tags to leave out.

    A label's count is the sum over its members: an image with two of them counts twice. Members
    are also the synonyms that `counts` lacks, for images to come.
    """
    require_rule(rule, wordnet, classes)
    if ambiguous not in ("keep", "drop"):
        raise ValueError(f"ambiguous={ambiguous}: give keep or drop")
    if least < 1 or (most is not None and most < 1):
        raise ValueError(f"least={least}, most={most}: give whole numbers from 1 on")
    uses = _count(counts)
    known = _find_known(uses, wordnet, rule, classes)
    stopped = {normalise(tag) for tag in stop} & known
    double = find_ambiguous(known - stopped, wordnet, rule=rule, classes=classes)
    taken = known - stopped - (double if ambiguous == "drop" else set())
    labels = _merge(find_keys(taken, wordnet, rule=rule, classes=classes), uses)
    frequent = [label for label in labels if label.uses >= least]
    chosen = frequent[:most]
    if not chosen:
        raise ValueError(
            f"none of {len(uses):,} tags becomes a label (rule={rule}, ambiguous={ambiguous}, "
            f"least={least}): are they English nouns, and are the classes right?"
        )
    vocabulary = Vocabulary(
        names=[label.tags[0] for label in chosen],
        members={tag: number for number, label in enumerate(chosen) for tag in label.tags},
        synsets=[[] if rule == "none" else sorted(label.key) for label in chosen],
        counts=[label.uses for label in chosen],
    )
    found = class_tags(vocabulary, classes or ())
    return vocabulary, Report(
        uses=uses.total(),
        kept=sum(vocabulary.counts),
        unknown=_most_common(uses, uses.keys() - known),
        stopped=_most_common(uses, stopped),
        ambiguous=_most_common(uses, double),
        rare=len(labels) - len(frequent),
        cut=len(frequent) - len(chosen),
        missing=[wnid for wnid, tags in zip(classes or (), found, strict=True) if not tags],
    )


class _Label(NamedTuple):
    """Tags that merge."""

    uses: int
    tags: list[str]  # the most frequent first, which gives the name
    key: frozenset[str]


def _count(counts: Mapping[str, int]) -> Counter[str]:
    """The uses of each tag in normal form; the empty one stands for tags of other alphabets."""
    uses: Counter[str] = Counter()
    for tag, count in counts.items():
        uses[normalise(tag)] += count
    return uses


def _find_known(
    uses: Mapping[str, int], wordnet: WordNet | None, rule: str, classes: Sequence[str] | None
) -> set[str]:
    """The tags that may become labels: nouns, or synonyms of the classes, used or not."""
    if wordnet is None or rule == "none":
        return uses.keys() - {""}
    if classes is None:
        known = set(wordnet.by_tag)
    else:
        known = {tag for wnid in classes for tag in wordnet.tags(wnid)}
    # A word that nobody uses links no other two.
    return known & uses.keys() if rule == "components" else known


def _merge(keys: Keys, uses: Counter[str]) -> list[_Label]:
    """The labels that are used, the most frequent first; equal counts in alphabetical order."""
    groups: dict[frozenset[str], list[str]] = {}
    for tag, key in keys.items():
        groups.setdefault(key, []).append(tag)
    labels = [
        _Label(sum(uses[tag] for tag in tags), sorted(tags, key=lambda tag: (-uses[tag], tag)), key)
        for key, tags in groups.items()
    ]
    labels.sort(key=lambda label: (-label.uses, label.tags[0]))
    return [label for label in labels if label.uses]


def _most_common(uses: Counter[str], tags: Collection[str]) -> dict[str, int]:
    """The uses of those of `tags` that are used, the most frequent first."""
    found = [(tag, uses[tag]) for tag in tags if uses[tag]]
    return dict(sorted(found, key=lambda pair: (-pair[1], pair[0])))


def class_tags(vocabulary: Vocabulary, wnids: Sequence[str]) -> list[list[int]]:
    """The labels whose key contains each class: its zero-shot score is the sum of their p.

    Empty for a class that no label names, whose probability is 0.
    """
    labels: dict[str, list[int]] = {}
    for label, synsets in enumerate(vocabulary.synsets):
        for synset in synsets:
            labels.setdefault(synset, []).append(label)
    return [labels.get(wnid, []) for wnid in wnids]


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file beside its place and rename it there, so that no part of one is left."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """The file's labels, whose fields have the right types."""
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=refuse_repeats)
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: it is to be a vocabulary, which `prepare.py vocabulary` makes"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no vocabulary: {error}") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f'{path} is no vocabulary: expected {{"tag": {{"id": 0, ...}}, ...}}')
    for name, entry in content.items():
        fault = _find_fault(entry)
        if fault:
            raise ValueError(f"{path}: the label {name!r} {fault}")
    return content


def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; of two equal keys `json` would keep the second in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return content


def _find_fault(entry: Any) -> str:
    """What is wrong with the fields of a label; empty where nothing is."""
    if not isinstance(entry, dict):
        return 'is no object with "id" and "members"'
    if type(entry.get("id")) is not int:
        return 'has no whole number as "id"'
    for field, required in (("members", True), ("synsets", False)):
        strings = entry.get(field, None if required else [])
        if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
            return f'has no list of strings as "{field}"'
    count = entry.get("count", 0)
    return "" if type(count) is int and count >= 0 else 'has no count of uses as "count"'


def _describe_ids(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The first id that is used twice or missing."""
    owners: dict[int, str] = {}
    for name, entry in entries.items():
        other = owners.setdefault(entry["id"], name)
        if other != name:
            return f"{other!r} and {name!r} both have the id {entry['id']}"
    return f"no label has the id {next(i for i in range(len(owners)) if i not in owners)}"
