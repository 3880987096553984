"""Reading a tar once, from its start to its end: which images and tags it has, and what is wrong.

A file that can be left out is left out, counted and named. What would put tags to the wrong image,
or lead out of the folder where a tar is unpacked, is a ValueError.
"""

import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from ..words.tags import normalise
from ..words.vocabulary import refuse_repeats
from .writer import IMAGES, is_outside, split_name

SHOWN = 20  # faults of a kind that are named
MOST_JSON = 2**24  # bytes of a JSON file
DAMAGE = ("cut off", "empty image", "bad JSON", "no image", "end")  # kinds that say: fetch it again


@dataclass
class _Sample:
    """The files of the key at hand."""

    key: str
    exts: set[str] = field(default_factory=set)
    image: tuple[str, int, int] | None = None  # extension, place, size
    noted: bool = False  # that a file of it is damaged
    tags: set[str] | None = None


@dataclass
class Found:
    """What was found in the shard `name` of `size` bytes, changed at `mtime` nanoseconds.

    keys, places, sizes, tags: of each image, the last in normal form. faults: how many of each
    kind; named: sentences, SHOWN of a kind at most.
    """

    name: str
    size: int
    mtime: int
    sha256: str = ""
    keys: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tags: list[set[str]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    members: int = 0
    seen: set[str] = field(default_factory=set)
    sample: _Sample | None = None

    def note(self, kind: str, sentence: str) -> None:
        """Count a fault, and name it unless there are many of its kind."""
        self.faults[kind] += 1
        if self.faults[kind] <= SHOWN:
            self.named.append(f"{self.name}: {sentence}")

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile | None) -> None:
        """Take a member; `tar` is None where its end lies beyond that of the shard."""
        self.members += 1
        name = member.name.removeprefix("./")
        if is_outside(name):
            raise ValueError(
                f"{self.name}: {member.name!r} leads out of the folder: write the shard anew"
            )
        if not member.isreg() or member.issparse():
            raise ValueError(
                f"{self.name}: {member.name!r} is a link or another special file: write the shard "
                "anew, with the images themselves"
            )
        key, ext = split_name(name)
        if not key:
            return
        if self.sample is None or key != self.sample.key:
            self._begin(key)
        assert self.sample is not None
        if ext in self.sample.exts:
            raise ValueError(f"{self.name}: {key}.{ext} stands twice: write the shard anew")
        self.sample.exts.add(ext)
        if tar is None:
            self.note("cut off", f"{name} is cut off at the end of the shard")
            self.sample.noted = True
        elif ext == "json":
            self._read_tags(tar, member)
        elif ext.rpartition(".")[2] in IMAGES:
            self._add_image(member, ext)

    def _begin(self, key: str) -> None:
        """Close the sample at hand and begin the next; ValueError where its key is an old one."""
        self.close()
        if key in self.seen:
            raise ValueError(
                f"{self.name}: the files of {key} do not stand together, so their tags would get "
                "lost: sort the tar by name, as `tar --sort=name` does"
            )
        self.seen.add(key)
        self.sample = _Sample(key)

    def _add_image(self, member: tarfile.TarInfo, ext: str) -> None:
        assert self.sample is not None
        if self.sample.image is not None:
            raise ValueError(
                f"{self.name}: {self.sample.key} has two images, {self.sample.image[0]} and {ext}: "
                "leave one of them in the shard"
            )
        if member.size:
            self.sample.image = (ext, member.offset_data, member.size)
        else:
            self.note("empty image", f"{member.name} has no bytes")
            self.sample.noted = True

    def _read_tags(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Take the tags of a JSON file; those without a letter or digit are counted."""
        assert self.sample is not None
        file = tar.extractfile(member) if member.size <= MOST_JSON else None
        tags = None if file is None else _parse_tags(file.read())
        if tags is None:
            self.note("bad JSON", f'{member.name} is not {{"tags": ["...", ...]}}, each key once')
            self.sample.noted = True
            return
        names = [normalise(tag) for tag in tags]
        if "" in names:
            self.faults["tags without a letter or digit"] += names.count("")
        self.sample.tags = set(names) - {""}

    def close(self) -> None:
        """Note the sample at hand, if it has an image; without tags its set is empty."""
        sample, self.sample = self.sample, None
        if sample is None:
            return
        if sample.image is None:
            if not sample.noted:
                self.note("no image", f"{sample.key} has no image")
            return
        if sample.tags is None and not sample.noted:
            self.note("no tags", f"{sample.key} has no JSON file of its tags")
        elif sample.tags == set():
            self.faults["image without tags"] += 1
        self.keys.append(sample.key)
        self.places.append(sample.image[1])
        self.sizes.append(sample.image[2])
        self.tags.append(sample.tags or set())

    def check_end(self, file: IO[bytes], end: int) -> None:
        """Note what follows the last file: a tar ends with 1024 zeros, then zeros alone."""
        if end >= self.size:
            if not self.faults["cut off"]:
                self.note("end", "there is no end mark: files may be missing")
            return
        file.seek(end)
        while data := file.read(2**20):
            rest = data.lstrip(b"\0")
            if rest:
                at = file.tell() - len(rest)
                self.note("end", f"what follows byte {at} of {self.size} is damaged and not read")
                return


def read_tar(shard: Path) -> Found:
    """Read a shard; ValueError where it is no tar or could be read in two ways."""
    state = shard.stat()
    found = Found(shard.name, state.st_size, state.st_mtime_ns)
    with shard.open("rb") as file:
        reader = _Hashing(file)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r|") as tar:
                end = _scan_members(tar, found)
        except tarfile.TarError as error:
            raise ValueError(f"{shard} is no tar file ({error}): fetch it again") from error
        while reader.read(2**20):
            pass
        found.check_end(file, end)
    found.close()
    found.sha256 = reader.digest.hexdigest()
    return found


class _Hashing:
    """A file that is read from its start to its end, and the hash of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, count: int) -> bytes:
        data = self.file.read(count)
        self.digest.update(data)
        return data


def _scan_members(tar: tarfile.TarFile, found: Found) -> int:
    """Note all files of a tar; returns where the last of them ends."""
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:
            if not found.members:
                raise
            return tar.offset
        if member is None:
            return tar.offset
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
        if member.isdir():
            continue
        whole = member.offset_data + member.size <= found.size
        found.add(member, tar if whole else None)


def _parse_tags(data: bytes) -> list[str] | None:
    """The strings in "tags"; None where there is no list of strings, or a key stands twice."""
    try:
        content = json.loads(data, object_pairs_hook=refuse_repeats)
    except (ValueError, RecursionError):
        return None
    tags = content.get("tags") if isinstance(content, dict) else None
    sound = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
    return tags if sound else None
