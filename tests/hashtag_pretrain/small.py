"""Tiny tagged images in shards, and vocabularies for them."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hashtag_pretrain.shards.writer import Sample, write_shards
from hashtag_pretrain.words.tags import normalise
from hashtag_pretrain.words.vocabulary import Vocabulary


def image_bytes(seed: int = 0, *, side: int = 32, form: str = "png", **options: Any) -> bytes:
    """A file of a smooth random image, `side` pixels square."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return encode(coarse.resize((side, side), Image.Resampling.BICUBIC), form, **options)


def encode(image: Image.Image, form: str = "png", **options: Any) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def samples(tags: Sequence[Sequence[str]], *, side: int = 32) -> list[Sample]:
    """An image for each list of raw tags, with the keys 000000, 000001, ..."""
    return [
        Sample(f"{i:06d}", image_bytes(i, side=side), "png", list(each))
        for i, each in enumerate(tags)
    ]


def make_shards(
    folder: Path, tags: Sequence[Sequence[str]], *, per_shard: int = 4, side: int = 32
) -> Path:
    """A folder of shards with an image for each list of raw tags."""
    write_shards(samples(tags, side=side), folder, per_shard=per_shard)
    return folder


def random_tags(names: Sequence[str], count: int, seed: int = 0) -> list[list[str]]:
    """One to three tags for each of `count` images, the first names most often."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(names) + 1)
    weights /= weights.sum()
    most = min(3, len(names))
    return [
        [names[i] for i in rng.choice(len(names), rng.integers(1, most + 1), False, weights)]
        for _ in range(count)
    ]


def make_vocabulary(*labels: str | Sequence[str]) -> Vocabulary:
    """A label for each argument: a tag, or several that are one; no synsets, no counts."""
    groups = [[label] if isinstance(label, str) else list(label) for label in labels]
    members = {normalise(tag): i for i, group in enumerate(groups) for tag in group}
    names = [normalise(group[0]) for group in groups]
    return Vocabulary(names, members, [[] for _ in names], [0 for _ in names])


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    """A tar of any files, sound or not, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
