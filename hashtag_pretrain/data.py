"""Tagged images as the paper sees them: which are trained on, how often, in which order.

Tags of a batch are int64 (B, k), each row an image's set of labels, padded with -1; images are
uint8 (B, 3, H, W). The tags of a shard are `Tags`, see shards/index.py.
"""

import hashlib
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from common import dist
from common.data import BadImages, eval_loader, train_loader
from hashtag_pretrain.config import Config, Data
from hashtag_pretrain.hashtags import find_threshold, image_factors, tag_factors
from hashtag_pretrain.inputs.augment import test_image, training_image
from hashtag_pretrain.inputs.builtin import write_builtin
from hashtag_pretrain.shards.archive import Shards
from hashtag_pretrain.shards.index import Tags
from hashtag_pretrain.shards.order import ReplicationStream
from hashtag_pretrain.shards.subsets import excluded, held_out, nested, noisy
from hashtag_pretrain.targets.finetune import require_enough
from hashtag_pretrain.targets.holdout import split
from hashtag_pretrain.targets.sets import Target, read_target
from hashtag_pretrain.words.vocabulary import Vocabulary

UNUSED, TRAINED, HELD_OUT = 0, 1, 2
_KEPT = 64  # shards whose tags are kept at hand


@dataclass
class Piece:
    """Some images and their tags, as much as one of the paper's GPUs has in a step."""

    images: Tensor
    tags: Tensor
    files: list[str]  # for messages

    def pin_memory(self) -> "Piece":
        """The same in pinned memory: the loader asks for it, else `to` would wait for the copy."""
        return replace(self, images=self.images.pin_memory(), tags=self.tags.pin_memory())

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the network and the loss take."""
        return (
            self.images.to(device, non_blocking=True),
            self.tags.to(device, non_blocking=True),
        )


class Tagged:
    """The images of the shards: their part in training, and their tags, some of them replaced.

    counts (V,): trained images with each tag. images: trained ones in all. dropped: images without
    a tag of the vocabulary. listed: how many images have each key of data.exclude. Reading all
    shards' tags takes one pass, two with noise.
    """

    def __init__(self, shards: Shards, vocabulary: Vocabulary, options: Data) -> None:
        self.shards, self.vocabulary, self.options = shards, vocabulary, options
        self.excluded = read_keys(options.exclude, options.root)
        self._at_hand: OrderedDict[int, tuple[Tags, np.ndarray]] = OrderedDict()
        self.marginal: np.ndarray | None = None
        self.counts, self.images, self.dropped, self.listed = self._count()
        if options.noise:
            self.marginal = self.counts / max(1, self.counts.sum())
            self._at_hand.clear()
            self.counts, self.images, *_ = self._count()
        if not self.images:
            raise ValueError(
                f"{shards.folder}: none of the {len(shards)} images has a tag of the vocabulary "
                "and is left to train on: check data.vocabulary, data.share and data.exclude."
            )

    def frequencies(self) -> np.ndarray:
        """The share (V,) of the trained images that has each tag."""
        return self.counts / self.images

    def tags(self, shard: int) -> Tags:
        """Labels of a shard's images."""
        return self._read(shard)[0]

    def roles(self, shard: int) -> np.ndarray:
        """UNUSED, TRAINED or HELD_OUT, (n,), of a shard's images; all have a tag but the unused."""
        return self._read(shard)[1]

    def labels(self, index: int) -> np.ndarray:
        """An image's labels."""
        shard, place = self.shards.locate(index)
        return self.tags(shard).row(place)

    def all_with(self, role: int) -> np.ndarray:
        """Indices of all images in a role."""
        found = [
            start + np.flatnonzero(self.roles(shard) == role)
            for shard, start in enumerate(self.shards.starts[:-1])
        ]
        return np.concatenate(found)

    def _read(self, shard: int) -> tuple[Tags, np.ndarray]:
        if shard not in self._at_hand:
            self._at_hand[shard] = self._make(shard)
            if len(self._at_hand) > _KEPT:
                self._at_hand.popitem(last=False)
        self._at_hand.move_to_end(shard)
        return self._at_hand[shard]

    def _make(self, shard: int) -> tuple[Tags, np.ndarray]:
        tags, hashes = self.shards.tags(shard), self.shards.hashes(shard)
        roles = np.full(len(hashes), UNUSED, np.int8)
        tested = held_out(hashes, self.options.held_out)
        roles[nested(hashes, self.options.share) & ~tested] = TRAINED
        roles[tested] = HELD_OUT
        if self.marginal is not None:
            noise, seed = self.options.noise, self.options.noise_seed
            share = np.where(tested, 0.0, noise)  # the held-out ones keep their tags
            tags = noisy(tags, hashes, share, self.marginal, seed=seed)
        roles[np.diff(tags.offsets) == 0] = UNUSED
        if self.excluded:
            roles[excluded(self.shards.keys(shard), self.excluded)] = UNUSED
        return tags, roles

    def _count(self) -> tuple[np.ndarray, int, int, Counter[str]]:
        counts, listed = np.zeros(len(self.vocabulary.names), np.int64), Counter[str]()
        images = dropped = 0
        for shard in self.each_shard("tags counted"):
            tags, roles = self._read(shard)
            trained = np.repeat(roles == TRAINED, np.diff(tags.offsets))
            counts += np.bincount(tags.ids[trained], minlength=len(counts))
            images += int((roles == TRAINED).sum())
            dropped += int((np.diff(tags.offsets) == 0).sum())
            if self.excluded:
                listed.update(key for key in self.shards.keys(shard) if key in self.excluded)
        return counts, images, dropped, listed

    def each_shard(self, what: str) -> Iterator[int]:
        """Every shard, with a progress bar where there are many."""
        numbers = range(len(self.shards.counts))
        return iter(tqdm(numbers, what, disable=len(numbers) < 100 or not dist.is_main()))


@dataclass
class TaggedImages(Dataset):
    """Images by their index in the shards: (uint8 (3, S, S), labels, name)."""

    tagged: Tagged
    transform: Callable[..., Tensor]
    order: np.ndarray | None = None  # indices, where not all are meant

    @property
    def files(self) -> "Names":
        """What an image is called in messages."""
        return Names(self)

    def __len__(self) -> int:
        return len(self.tagged.shards) if self.order is None else len(self.order)

    def __getitem__(self, i: int) -> tuple[Tensor, np.ndarray, str]:
        index = i if self.order is None else int(self.order[i])
        name = self.tagged.shards.name(index)
        image = self.transform(self.tagged.shards.read(index), name=name)
        return image, self.tagged.labels(index), name


@dataclass
class Names:
    """The names of the images, looked up one at a time."""

    images: TaggedImages

    def __getitem__(self, i: int) -> str:
        order = self.images.order
        return self.images.tagged.shards.name(i if order is None else int(order[i]))


@dataclass
class Hashtags:
    """What is trained on and scored."""

    tagged: Tagged
    factors: np.ndarray  # (V,) of the tags
    totals: np.ndarray  # (S,) length of each shard in the list
    training: TaggedImages
    held_out: TaggedImages
    target: Target | None

    @property
    def length(self) -> float:
        """Images of an epoch, copies counted."""
        return float(self.totals.sum())

    def digest(self) -> str:
        """What a checkpoint keeps, to tell other data: the images of each shard, their factors."""
        shards = self.tagged.shards
        content = [self.tagged.vocabulary.digest, shards.counts, self.totals.round(3)]
        content += [[each.sha256 for each in shards.summaries], sorted(self.tagged.excluded)]
        text = " ".join(str(np.asarray(each).tolist()) for each in content)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self, cfg: Config, images: int) -> str:
        """What a run says before its first step."""
        tagged = self.tagged
        lines = [
            f"{tagged.images} images to train on, {len(self.held_out)} held out, {tagged.dropped} "
            f"without a tag of the vocabulary's {len(tagged.vocabulary.names)}"
            + (f", {tagged.listed.total()} in {cfg.data.exclude}" if tagged.excluded else ""),
            f"{cfg.sampling.rule} sampling: an epoch has {self.length:.0f} images, the largest "
            f"factor is {self.factors.max():.1f}; {images} images are processed, "
            f"{images / self.length:.2f} epochs",
        ]
        unknown = sorted(tagged.excluded - tagged.listed.keys())
        if unknown:
            lines.append(
                f"{cfg.data.exclude}: no image has {len(unknown)} of its keys, such as {unknown[0]}"
            )
        several = [key for key, count in tagged.listed.items() if count > 1]
        if several:
            lines.append(
                f"{cfg.data.exclude}: {len(several)} of its keys, such as {several[0]}, are of "
                "several images, which are all left out"
            )
        return "\n".join([*tagged.shards.faults[:5], *lines])


def build(cfg: Config) -> Hashtags:
    """The data of a run; ValueError for what is missing or does not fit."""
    options, root = cfg.data, Path(cfg.data.root)
    if options.name == "builtin":
        root = write_builtin(options.builtin)
    elif not root.is_dir():
        raise ValueError(
            f"data.root={options.root} does not exist: it needs the folder {options.shards} of tar "
            f"files and {options.vocabulary}, which prepare.py writes."
        )
    vocabulary = Vocabulary.read(locate(root, options.vocabulary))
    if len(vocabulary) == 1 and cfg.loss.kind == "softmax":
        raise ValueError(
            f"data.vocabulary={options.vocabulary} has one label, of which a softmax is always "
            "sure: give two or more, or loss.kind=sigmoid."
        )
    shards = Shards(root / options.shards, vocabulary)
    require_sound(shards, options)
    tagged = Tagged(shards, vocabulary, options)
    if tagged.excluded and not tagged.listed:
        raise ValueError(
            f"data.exclude={options.exclude}: none of its {len(tagged.excluded)} keys, such as "
            f"{min(tagged.excluded)}, is in {shards.folder}: give the list of these shards, which "
            "prepare.py duplicates writes, or leave it out."
        )
    factors = find_factors(tagged, cfg)
    per_shard = partial(shard_factors, tagged, factors)
    totals = np.array([per_shard(shard).sum() for shard in tagged.each_shard("images weighed")])
    tested = tagged.all_with(HELD_OUT)[: cfg.test.images]
    return Hashtags(
        tagged,
        factors,
        totals,
        TaggedImages(tagged, partial(training_image, options=cfg.augment)),
        TaggedImages(tagged, partial(test_image, options=cfg.augment), tested),
        find_target(cfg, root),
    )


def require_sound(shards: Shards, options: Data) -> None:
    """ValueError where more files of the shards are damaged than the options let pass."""
    damaged = sum(each.damaged for each in shards.summaries)
    if damaged and options.bad_images == "raise":
        raise ValueError(
            f"{shards.folder}: {damaged} damaged files, the first: {shards.faults[0]}; mend them, "
            "or set data.bad_images=skip to leave them out."
        )
    shards.check(options.bad_share)


def find_factors(tagged: Tagged, cfg: Config) -> np.ndarray:
    """r(h) (V,) by the options of `sampling`."""
    frequencies, sampling = tagged.frequencies(), cfg.sampling
    if sampling.length:
        rarest = count_rarest(tagged)
        threshold = find_threshold(
            sampling.length * tagged.images,
            lambda t: float(
                rarest @ tag_factors(frequencies, t, sampling.rule, most=sampling.most)
            ),
            frequencies,
        )
    elif sampling.threshold == "max":
        threshold = float(frequencies.max())
    else:
        threshold = float(sampling.threshold)
    return tag_factors(frequencies, threshold, sampling.rule, most=sampling.most)


def count_rarest(tagged: Tagged) -> np.ndarray:
    """Trained images by their rarest tag, whose factor is the image's by any rule; int64 (V,)."""
    found = np.zeros(len(tagged.counts), np.int64)
    for shard in tagged.each_shard("rarest tags"):
        tags, trained = tagged.tags(shard), tagged.roles(shard) == TRAINED
        order = np.argsort(tagged.counts[tags.ids], kind="stable")
        rows = np.repeat(np.arange(len(trained)), np.diff(tags.offsets))[order]
        images, first = np.unique(rows, return_index=True)
        rarest = tags.ids[order][first]
        found += np.bincount(rarest[trained[images]], minlength=len(found))
    return found


def shard_factors(tagged: Tagged, factors: np.ndarray, shard: int) -> np.ndarray:
    """r(I) (n,) of a shard's images: 0 for those that are not trained on."""
    found = image_factors(factors, tagged.tags(shard))
    return np.where(tagged.roles(shard) == TRAINED, found, 0.0)


def find_target(cfg: Config, root: Path) -> Target | None:
    """The target data set of the options; ValueError where a protocol could not use it."""
    if not cfg.target.name:
        return None
    if cfg.target.name == "builtin":
        target = read_target("folder", root / "target")
    else:
        target = read_target(cfg.target.name, Path(cfg.target.root), classes=cfg.target.classes)
    if "probe" in cfg.protocols and len(cfg.probe.decays) > 1:
        split(target.train.labels, cfg.probe.held_out, cfg.seed)
    if "finetune" in cfg.protocols:
        require_enough(target.train, cfg.finetune)
    return target


def locate(root: Path, name: str) -> Path:
    """A file in `root`, or one of its own; where there is neither, the one in `root`."""
    own = Path(name)
    return own if own.exists() and not (root / name).exists() else root / name


def read_keys(name: str, root: str) -> frozenset[str]:
    """Keys, one a line, of a file in `root` or one of its own; none where no name is given."""
    if not name:
        return frozenset()
    path = locate(Path(root), name)
    if not path.is_file():
        raise ValueError(f"data.exclude={name}: there is no such file.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.exclude={name} is no UTF-8 text: {error}.") from None
    return frozenset(line.rstrip("\r") for line in lines) - {""}


def stream_of(data: Hashtags, cfg: Config) -> ReplicationStream:
    """The order of training, a function of the seed alone."""
    length, processes = int(data.length), dist.world_size()
    if processes <= length < cfg.batch_size:
        most = min(cfg.per_gpu, length // processes)
        share = most * processes
        raise ValueError(
            f"an epoch draws {length} images, fewer than batch_size={cfg.batch_size}: give at most "
            f"batch_size={length // share * share} per_gpu={most}."
        )
    return ReplicationStream(
        data.tagged.shards.counts,
        data.totals,
        partial(shard_factors, data.tagged, data.factors),
        cfg.batch_size,
        seed=cfg.seed,
        window=cfg.data.window,
    )


def pieces_of(cfg: Config) -> int:
    """Pieces of `per_gpu` images that each process computes in a step."""
    batch, processes = cfg.batch_size, dist.world_size()
    share = cfg.per_gpu * processes
    if batch % share:
        ways = [f"batch_size={(batch // share + 1) * share}"]
        if batch % processes == 0:
            ways.insert(0, f"per_gpu={math.gcd(cfg.per_gpu, batch // processes)}")
        raise ValueError(
            f"batch_size={batch} is no multiple of {share}, per_gpu={cfg.per_gpu} times "
            f"{processes} processes: give {' or '.join(ways)}."
        )
    return batch // share


def batches(data: Hashtags, cfg: Config, start: int, stop: int) -> Iterator[Iterator[Piece]]:
    """Its share, for this process, of the steps after `start` to `stop`, piece by piece."""
    if start >= stop:  # only an evaluation
        return
    count = pieces_of(cfg)
    loader = train_loader(
        data.training,
        stream_of(data, cfg),
        start,
        stop,
        workers=cfg.data.workers,
        collate=collate,
        accumulate=count,
        cut=True,
        bad=BadImages(cfg.data.bad_images, cfg.data.bad_share),
    )
    pieces = iter(loader)
    for _ in range(start, stop):
        yield islice(pieces, count)


def held_out_batches(data: Hashtags, cfg: Config) -> Iterator[Piece]:
    """Its share, for this process, of the held-out images."""
    yield from eval_loader(
        data.held_out,
        cfg.test.batch_size,
        workers=cfg.data.workers,
        collate=collate,
        bad=BadImages(cfg.data.bad_images, cfg.data.bad_share),
    )


def collate(examples: list[tuple[Tensor, np.ndarray, str]]) -> Piece:
    """A batch, its tags padded with -1."""
    images, labels, files = zip(*examples, strict=True)
    tags = torch.full((len(labels), max(map(len, labels))), -1)
    for row, each in zip(tags, labels, strict=True):
        row[: len(each)] = torch.from_numpy(each.astype(np.int64))
    return Piece(torch.stack(images), tags, list(files))
