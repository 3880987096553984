"""Writing shards: tar files with each image beside a JSON file of its tags.

    000000.tar    KEY.jpg  KEY.json  KEY.jpg  KEY.json  ...    {"tags": ["Brown Bear", ...]}
    000001.tar    ...

A key is the path of a member up to the first dot of its base name, an extension all behind it in
small letters: `dir.v1/000.v2.jpg` has the key `dir.v1/000` and the extension `v2.jpg`. The same
layout is webdataset's.
"""

import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

IMAGES = ("jpg", "jpeg", "png", "bmp", "webp", "ppm", "pgm", "tif", "tiff")  # last part of an ext


@dataclass(frozen=True)
class Sample:
    """An image as it is stored: the bytes of a file, its extension (jpg), and its raw tags."""

    key: str
    image: bytes
    ext: str
    tags: list[str]


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member; both empty for names that start with a dot or have none."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ext = base.partition(".")
    if not stem or not dot or not ext:
        return "", ""
    return folder + slash + stem, ext.lower()


def is_outside(name: str) -> bool:
    """Whether a member's path leads out of the folder where the tar would be unpacked."""
    return name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")


def write_shards(
    samples: Iterable[Sample],
    folder: str | Path,
    *,
    per_shard: int = 10_000,
    most_bytes: int = 2**30,
) -> list[Path]:
    """Write `samples` in their order to folder/000000.tar, 000001.tar, ...; returns these paths.

    A shard ends at `per_shard` samples or before its images exceed `most_bytes`. The folder, which
    must be new or empty, appears whole or not at all. Equal samples give equal files.
    """
    folder = Path(os.path.abspath(folder))
    if per_shard < 1 or most_bytes < 1:
        raise ValueError(f"per_shard={per_shard}, most_bytes={most_bytes}: choose 1 or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: give a new or an empty folder for the shards")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        count = _write_all(samples, part, per_shard, most_bytes)
        if not count:
            raise ValueError(f"there is no image to write to {folder}")
        part.chmod(0o755)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [folder / f"{number:06d}.tar" for number in range(count)]


def _write_all(samples: Iterable[Sample], folder: Path, per_shard: int, most_bytes: int) -> int:
    """Write the shards into `folder`; returns how many there are."""
    tar: tarfile.TarFile | None = None
    shards, size = 0, 0
    keys: set[str] = set()  # of the open shard
    try:
        for sample in samples:
            full = len(keys) == per_shard or size + len(sample.image) > most_bytes
            if tar is None or (full and keys):
                if tar is not None:
                    tar.close()
                tar = tarfile.open(folder / f"{shards:06d}.tar", "w")  # noqa: SIM115
                shards, size, keys = shards + 1, 0, set()
            _check(sample, keys)
            keys.add(sample.key)
            size += len(sample.image)
            _add(tar, f"{sample.key}.{sample.ext}", sample.image)
            text = json.dumps({"tags": sample.tags}, ensure_ascii=False)
            _add(tar, f"{sample.key}.json", text.encode("utf-8", "replace"))
    finally:
        if tar is not None:
            tar.close()
    return shards


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file; TarInfo has no time and no owner, so equal data give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    content: IO[bytes] = BytesIO(data)
    tar.addfile(member, content)


def _check(sample: Sample, keys: set[str]) -> None:
    """ValueError for a sample that a reader would not find under its key, or not as an image."""
    if split_name(f"{sample.key}.{sample.ext}") != (sample.key, sample.ext):
        raise ValueError(
            f"key {sample.key!r} with extension {sample.ext!r} would be read otherwise: a key's "
            "last part has no dot and is not empty, an extension has small letters"
        )
    if is_outside(sample.key) or "\0" in sample.key or sample.key.startswith("./"):
        raise ValueError(f"key {sample.key!r} is no path inside a folder: give another")
    if sample.ext.rpartition(".")[2] not in IMAGES:
        raise ValueError(
            f"{sample.key}.{sample.ext} is no image by its name: choose one of {', '.join(IMAGES)}"
        )
    if sample.key in keys:
        raise ValueError(f"key {sample.key!r} comes twice: keys must differ")
