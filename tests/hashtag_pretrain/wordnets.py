"""Eleven noun synsets in files as WordNet 3.0 has them; WordNet itself where it is installed."""

import os
from functools import cache
from pathlib import Path

import pytest

from hashtag_pretrain.words.wordnet import FOLDER, WordNet, read_wordnet

WNIDS = (Path(__file__).parent / "imagenet_wnids.txt").read_text().split()  # of ImageNet-1k

LICENCE = "  1 Lines of the licence begin with two spaces.  \n"
SYNSETS = {
    "02132136": ("brown_bear", "bruin", "Ursus_arctos"),
    "02132320": ("bruin",),
    "02012849": ("crane",),  # the bird
    "03126707": ("crane",),  # the machine
    "09295455": ("Crane", "Grus"),  # the stars
    "10914331": ("Crane", "Hart_Crane"),
    "10914447": ("Crane", "Stephen_Crane"),
    "03710637": ("maillot",),
    "03710721": ("maillot", "tank_suit"),
    "02084071": ("dog", "domestic_dog", "Canis_familiaris"),
    "02121620": ("cat", "true_cat"),
}
ORDER = {  # of the senses, where it is not the synsets' above
    "bruin": ("02132320", "02132136"),
    "crane": ("10914447", "10914331", "09295455", "03126707", "02012849"),
    "maillot": ("03710721", "03710637"),
}


def write_excerpt(folder: Path, *, version: str = "3.0") -> Path:
    """Write data.noun and index.noun; in WordNet 3.1 the offsets are others."""
    folder.mkdir(parents=True, exist_ok=True)
    shift = 0 if version == "3.0" else 1722
    senses: dict[str, list[str]] = {}
    lines = [LICENCE]
    for offset, words in SYNSETS.items():
        fields = " ".join(f"{word} 0" for word in words)
        number = f"{int(offset) + shift:08}"
        lines.append(f"{number} 05 n {len(words):02x} {fields} 001 @ {number} n 0000 | a | b  \n")
        for word in words:
            senses.setdefault(word.lower(), []).append(offset)
    (folder / "data.noun").write_text("".join(lines))
    lines = [LICENCE]
    for lemma, offsets in sorted(senses.items()):
        numbers = [f"{int(o) + shift:08}" for o in ORDER.get(lemma, offsets)]
        count = len(numbers)
        lines.append(f"{lemma} n {count} 2 @ ~ {count} 0 {' '.join(numbers)}  \n")
    (folder / "index.noun").write_text("".join(lines))
    return folder


def find_whole() -> Path:
    """The folder of WordNet 3.0 itself; skips where it is absent."""
    folder = Path(os.environ.get("WORDNET", FOLDER))
    if not (folder / "data.noun").is_file():
        pytest.skip(f"WordNet 3.0 is not at {folder}: apt install wordnet-base, or set WORDNET")
    return folder


@cache
def read_whole() -> WordNet:
    """WordNet 3.0 itself."""
    return read_wordnet(find_whole())
