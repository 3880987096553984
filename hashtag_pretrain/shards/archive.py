"""Shards as one list of images: bytes, tags and names by a global number.

S shards, N images of all of them, n of one. Nothing is held that grows with N but the bytes of the
last shards that were used: their indexes are read when they are needed.
"""

import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from .index import Index, Summary, Tags, find_shards, load_index, load_summary


class Vocabulary(Protocol):
    """What is asked of a vocabulary: the label of a tag in normal form."""

    @property
    def members(self) -> Mapping[str, int]:
        """The label of each tag."""


@dataclass
class _Shard:
    """An index, and its tags as labels of a vocabulary."""

    index: Index
    vocabulary: Vocabulary | None

    @cached_property
    def tags(self) -> Tags:
        if self.vocabulary is None:
            raise ValueError("tags have numbers in a vocabulary only: give one")
        members, raw = self.vocabulary.members, self.index.raw
        labels = np.array([members.get(tag, -1) for tag in self.index.table], np.int32)
        return relabel(raw, labels)


class Shards:
    """The images of all shards in a folder, in the order of their names.

    counts: int64 (S,), images of each shard; starts: int64 (S + 1,), the number of its first image.
    keep: indexes and open files that stay in memory. It may be sent to other processes, where each
    opens the files for itself. ValueError where the folder has no shards.
    """

    def __init__(
        self, folder: str | Path, vocabulary: Vocabulary | None = None, *, keep: int = 32
    ) -> None:
        self.folder, self.vocabulary, self.keep = Path(folder), vocabulary, keep
        self.paths = find_shards(folder)
        self.summaries: list[Summary] = [load_summary(path) for path in self.paths]
        self.counts = np.array([each.count for each in self.summaries], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._forget()

    def _forget(self) -> None:
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": OrderedDict(), "_files": OrderedDict()}

    @property
    def faults(self) -> list[str]:
        """What is wrong with the shards, in sentences; of a kind not all are named."""
        return [sentence for each in self.summaries for sentence in each.named]

    @property
    def dropped(self) -> dict[str, int]:
        """How many faults of each kind there are."""
        return dict(sum((Counter(each.faults) for each in self.summaries), Counter()))

    def check(self, limit: float) -> None:
        """ValueError where more than the share `limit` of the files, at least one, is damaged."""
        damaged = sum(each.damaged for each in self.summaries)
        most = max(1, int(limit * len(self)))
        if damaged > most:
            raise ValueError(
                f"{self.folder}: {damaged} damaged files beside {len(self)} images, more than the "
                f"{most} that may be left out; the first: {self.faults[0]}"
            )

    def locate(self, index: int) -> tuple[int, int]:
        """Shard of an image, and its number in there."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = int(np.searchsorted(self.starts, index, "right")) - 1
        return shard, index - int(self.starts[shard])

    def tags(self, shard: int) -> Tags:
        """The labels of each image of a shard; images without one have an empty row."""
        return self._shard(shard).tags

    def hashes(self, shard: int) -> np.ndarray:
        """64 bits of each image's key, uint64 (n,)."""
        return self._shard(shard).index.hashes

    def keys(self, shard: int) -> list[str]:
        """The key of each image of a shard."""
        return self._shard(shard).index.keys

    def name(self, index: int) -> str:
        """Shard and key of an image, for messages."""
        shard, i = self.locate(index)
        return f"{self.paths[shard].name}: {self.keys(shard)[i]}"

    def read(self, index: int) -> bytes:
        """The bytes of an image's file."""
        shard, i = self.locate(index)
        entry = self._shard(shard).index
        place, size = int(entry.places[i]), int(entry.sizes[i])
        file = self._file(shard)
        file.seek(place)
        data = file.read(size)
        if len(data) < size:
            raise self._change(shard)
        return data

    def count_tags(self) -> Counter[str]:
        """How many images have each tag, in normal form, whether in the vocabulary or not."""
        counts: Counter[str] = Counter()
        for path in self.paths:
            index = load_index(path)
            uses = np.bincount(index.raw.ids, minlength=len(index.table)).tolist()
            counts.update(dict(zip(index.table, uses, strict=True)))
        return counts

    def _shard(self, shard: int) -> _Shard:
        """The index of a shard, from memory or from its file."""
        if shard not in self._shards:
            index = load_index(self.paths[shard])
            if index.summary.sha256 != self.summaries[shard].sha256:
                raise self._change(shard)
            self._shards[shard] = _Shard(index, self.vocabulary)
            if len(self._shards) > self.keep:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return self._shards[shard]

    def _change(self, shard: int) -> ValueError:
        return ValueError(
            f"{self.paths[shard]} has changed since the run began to read it: put the old one back"
        )

    def _file(self, shard: int) -> IO[bytes]:
        """The open tar of a shard."""
        if self._process != os.getpid():  # a fork shares the place in its parent's open files
            self._files, self._process = OrderedDict(), os.getpid()
        if shard not in self._files:
            self._files[shard] = self.paths[shard].open("rb")
            if len(self._files) > self.keep:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]


def relabel(tags: Tags, labels: np.ndarray) -> Tags:
    """Tags t replaced by labels[t]: sets again, in which -1 is left out."""
    rows = np.repeat(np.arange(len(tags.offsets) - 1), np.diff(tags.offsets))
    if not len(labels):
        return tags
    ids = labels[tags.ids]
    span = int(labels.max(initial=0)) + 1
    pairs = np.unique(rows[ids >= 0] * span + ids[ids >= 0])  # one number for (row, label)
    counts = np.bincount(pairs // span, minlength=len(tags.offsets) - 1)
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return Tags((pairs % span).astype(np.int32), offsets)
