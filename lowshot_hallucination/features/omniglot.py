"""Omniglot: characters of many alphabets, 20 people's drawings of each; a character is a class.

Read from the zips as they are distributed. The classes of one zip are base, those of the other
novel. The drawings of the first 15 people are for training and support, those of the last 5 are
queries: writers that no example is from. So n goes up to 15 less the queries of an episode.
"""

import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from common.images import DAMAGE, MAX_PIXELS, UnreadableImage

from .pool import Pool, Source, as_names
from .splits import ClassSplit

ZIPS = (  # base, novel
    ("images_background.zip", "images_evaluation.zip"),
    ("images_background_small1.zip", "images_background_small2.zip"),
)
SUPPORT = 15  # of the 20 drawings

# RuntimeError: of a member that is encrypted, or packed in a way that Python lacks.
_DAMAGE: tuple[type[Exception], ...] = (*DAMAGE, zipfile.BadZipFile, RuntimeError)


def omniglot_source(root: str, size: int, seed: int) -> Source:
    """The problem of two zips in root, drawings (1, size, size); cv and test halves by seed."""
    base, novel = (read_zip(path) for path in _find_zips(Path(root)))
    again = [name for name in novel if name in base]
    notes = [f"{SUPPORT} drawings of each character are for support, the others are queries"]
    if again:  # Greek and Latin are in both small sets
        notes.append(
            f"{len(again)} characters of the novel classes' zip are base classes too, so they are "
            "no novel ones"
        )
    drawings = base | {name: novel[name] for name in novel if name not in base}
    ids = np.split(np.arange(len(drawings)), [len(base)])
    order = [np.random.default_rng((seed, i)).permutation(part) for i, part in enumerate(ids)]
    halves = [sorted(half.tolist()) for part in order for half in np.array_split(part, 2)]
    train = _pool([files[:SUPPORT] for files in drawings.values()], size)
    test = _pool([files[SUPPORT:] for files in drawings.values()], size)
    return Source(ClassSplit(list(drawings), *halves), train, test, tuple(notes))


Drawings = dict[str, list[tuple[str, Image.Image]]]  # of each character: names and images


def read_zip(path: Path) -> Drawings:
    """The drawings of each character, `alphabet/character`, sorted, by person; 8 bits of grey."""
    found: Drawings = defaultdict(list)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                parts = member.split("/")
                if len(parts) == 4 and member.endswith(".png"):
                    image = _read_member(archive, member)
                    found["/".join(parts[1:3])].append((member, image))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged ({error}): download it again.") from error
    few = [name for name, files in found.items() if len(files) <= SUPPORT]
    if few or not found:
        raise ValueError(
            f"{path} has {len(found[few[0]])} drawings of {few[0]}, no more than the {SUPPORT} for "
            "support: download it again."
            if few
            else f"{path} has no <set>/<alphabet>/<character>/<drawing>.png: download it again."
        )
    return dict(found)


def _read_member(archive: zipfile.ZipFile, member: str) -> Image.Image:
    """A drawing in 8 bits of grey; UnreadableImage names it."""
    try:
        with archive.open(member) as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            return image.convert("L")
    except _DAMAGE as error:
        raise UnreadableImage(
            f"{archive.filename}: {member} cannot be read as an image ({error}): download it again"
        ) from error


def _pool(drawings: list[list[tuple[str, Image.Image]]], size: int) -> Pool:
    """The drawings of each class as one pool: bright ink on black, (1, size, size)."""
    flat = [(label, *each) for label, files in enumerate(drawings) for each in files]
    pixels = [
        255 - np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        for _, _, image in flat
    ]
    labels = np.array([label for label, _, _ in flat], np.int64)
    return Pool(as_names([name for _, name, _ in flat]), labels, pixels=np.stack(pixels)[:, None])


def _find_zips(root: Path) -> tuple[Path, Path]:
    """The zips of base and novel classes: the large sets where both are there, else the small."""
    for base, novel in ZIPS:
        if (root / base).is_file() and (root / novel).is_file():
            return root / base, root / novel
    raise ValueError(
        f"{root} has neither {' and '.join(ZIPS[0])} nor {' and '.join(ZIPS[1])}: put Omniglot's "
        "zips there, as they are distributed."
    )
