"""The index beside each shard: where its images lie and which tags they have.

    000000.tar  000000.index.npz

One sequential scan of a tar makes it. It depends on no vocabulary: an image's tags are numbers of
the shard's own table of tags in normal form. n images, T tags of all of them.

What can be left out of a shard is left out, counted and named in its index (see scan.py).
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .scan import DAMAGE, read_tar

VERSION = 1  # of the index; one of another version is made anew


class Tags(NamedTuple):
    """The tags of n images: image i has ids[offsets[i] : offsets[i + 1]], a set in rising order.

    ids: int32 (T,). offsets: int64 (n + 1,).
    """

    ids: np.ndarray
    offsets: np.ndarray

    def row(self, i: int) -> np.ndarray:
        """The ids of image i, int32 (k,)."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


@dataclass(frozen=True)
class Summary:
    """What an index says of its shard as a whole.

    faults: how many of each kind; named: sentences, not all of a kind.
    """

    count: int  # images
    size: int  # bytes of the tar
    mtime: int  # nanoseconds, when the tar was changed
    sha256: str
    faults: dict[str, int]
    named: list[str]
    version: int = VERSION

    @property
    def damaged(self) -> int:
        """Files that are not what they were."""
        return sum(self.faults.get(kind, 0) for kind in DAMAGE)


@dataclass(frozen=True)
class Index:
    """The index of a shard of n images; `places` and `sizes` int64 (n,), `hashes` uint64 (n,).

    places: byte of the tar at which an image starts. hashes: of the keys. raw: the tags as numbers
    of the `table`, which are in normal form and in alphabetical order.
    """

    summary: Summary
    places: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    raw: Tags
    key_bytes: np.ndarray
    table_bytes: np.ndarray

    @cached_property
    def keys(self) -> list[str]:
        """The key of each image."""
        return _split(self.key_bytes)

    @cached_property
    def table(self) -> list[str]:
        """The distinct tags of the shard."""
        return _split(self.table_bytes)


def hash_key(key: str) -> int:
    """64 bits of a key, the same on every machine and in any shard."""
    return int.from_bytes(hashlib.blake2b(_encode(key), digest_size=8).digest(), "little")


def load_index(shard: Path) -> Index:
    """The index of a shard, which is made where there is none or an old one."""
    for path in _index_paths(shard):
        if _read_summary(path, shard) is not None:
            index = _read(path)
            if index is not None:
                return index
    index = scan(shard)
    _save(shard, index)
    return index


def load_summary(shard: Path) -> Summary:
    """What the index says of the shard as a whole; the index is made where there is none."""
    for path in _index_paths(shard):
        summary = _read_summary(path, shard)
        if summary is not None:
            return summary
    return load_index(shard).summary


def hash_file(shard: Path) -> str:
    """SHA-256 of a file."""
    with shard.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scan(shard: Path) -> Index:
    """The index of a shard, which is read once, from its start to its end."""
    found = read_tar(shard)
    summary = Summary(
        count=len(found.keys),
        size=found.size,
        mtime=found.mtime,
        sha256=found.sha256,
        faults=dict(found.faults),
        named=found.named,
    )
    table = sorted({tag for tags in found.tags for tag in tags})
    numbers = {tag: number for number, tag in enumerate(table)}
    lengths = [len(tags) for tags in found.tags]
    ids = [numbers[tag] for tags in found.tags for tag in sorted(tags)]
    return Index(
        summary,
        np.array(found.places, np.int64),
        np.array(found.sizes, np.int64),
        np.array([hash_key(key) for key in found.keys], np.uint64),
        Tags(np.array(ids, np.int32), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])),
        _join(found.keys),
        _join(table),
    )


def _index_paths(shard: Path) -> Iterator[Path]:
    """Where the index of a shard may be: beside it, or in the cache folder."""
    name = f"{shard.name.removesuffix('.tar')}.index.npz"
    yield shard.with_name(name)
    # FAIR_VISION_CACHE as everywhere in the repository.
    cache = os.environ.get("FAIR_VISION_CACHE") or Path.home() / ".cache" / "fair_vision"
    folder = hashlib.sha256(_encode(os.path.abspath(shard.parent))).hexdigest()[:16]
    yield Path(cache) / "shard_indexes" / folder / name


def _read_summary(path: Path, shard: Path) -> Summary | None:
    """The summary of an index, if it is one of the shard as that is now."""
    try:
        with np.load(path, allow_pickle=False) as content:
            summary = Summary(**json.loads(content["summary"].tobytes()))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # there is none, or a damaged one, or one of another version
    state = shard.stat()
    found = (summary.version, summary.size, summary.mtime)
    return summary if found == (VERSION, state.st_size, state.st_mtime_ns) else None


def _read(path: Path) -> Index | None:
    """The index of a file; None if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as content:
            index = Index(
                Summary(**json.loads(content["summary"].tobytes())),
                content["places"],
                content["sizes"],
                content["hashes"],
                Tags(content["tag_ids"], content["tag_offsets"]),
                content["keys"],
                content["table"],
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return index if len(index.places) == index.summary.count else None


def _save(shard: Path, index: Index) -> None:
    """Write the index beside the shard, or where that cannot be in the cache folder.

    Of several processes the last one's stays; each file appears whole.
    """
    columns: dict[str, Any] = {
        "summary": np.frombuffer(json.dumps(vars(index.summary)).encode(), np.uint8),
        "places": index.places,
        "sizes": index.sizes,
        "hashes": index.hashes,
        "tag_ids": index.raw.ids,
        "tag_offsets": index.raw.offsets,
        "keys": index.key_bytes,
        "table": index.table_bytes,
    }
    beside, cache = _index_paths(shard)
    try:
        _write(beside, columns)
    except OSError:  # a folder that only others may write
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            _write(cache, columns)
        except OSError as error:
            raise OSError(
                f"the index of {shard} can be written neither beside it nor to {cache.parent} "
                f"({error.strerror}): set FAIR_VISION_CACHE to a folder with room"
            ) from error


def _write(path: Path, columns: dict[str, Any]) -> None:
    """Write arrays to a file of their own and rename it to `path`."""
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **columns)
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # names in a tar need not be UTF-8


def _join(names: Sequence[str]) -> np.ndarray:
    """Strings as bytes uint8: each ends with a zero, which no name in a tar contains."""
    return np.frombuffer(b"".join(_encode(name) + b"\0" for name in names), np.uint8)


def _split(data: np.ndarray) -> list[str]:
    return [part.decode("utf-8", "surrogateescape") for part in data.tobytes().split(b"\0")[:-1]]


def find_shards(folder: str | Path) -> list[Path]:
    """The tar files of a folder in the order of their names; ValueError where there is none."""
    paths = sorted(path for path in Path(folder).glob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise ValueError(
            f"{folder} has no shards (*.tar): `python prepare.py shards out={folder}` writes them"
        )
    return paths
