"""The data as the paper sees it: clips and their classes, or for Tables 5 and 6 photos.

A clip is uint8 (3, T, H, W), a batch of B (B, 3, T, H, W); labels are int64 (B,), or float (B, K)
of 0 and 1 where a clip has several of K.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import dist
from common.data import BadImages, eval_loader, train_loader
from common.sampling import SampleStream
from nonlocal_.clips.augment import Augment
from nonlocal_.clips.decoders import UnreadableVideo
from nonlocal_.clips.lists import find_classes, read_classes, read_list, take_part
from nonlocal_.clips.records import Record, find_contradictions
from nonlocal_.config import Config, count_pieces
from nonlocal_.inputs.builtin import MatchClips
from nonlocal_.inputs.photos import PhotoPiece, Photos
from nonlocal_.inputs.videos import Clips, Videos, Views, open_record

CHECKED = "python prepare.py check list=LIST out=GOOD writes a list without such videos"
ADVICE = {  # what a message about a bad training video ends with
    "raise": ", or set data.bad_videos=skip to count and replace such videos in training",
    "skip": f"; {CHECKED}",
}


@dataclass
class ClipPiece:
    """Some clips and their labels, as much as one of the paper's GPUs has in a step."""

    clips: Tensor
    labels: Tensor
    files: list[str]  # for messages

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the network and the loss take."""
        return (
            self.clips.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
        )


@dataclass
class Examples:
    """A split: what is drawn to train on, or what is looked at to evaluate."""

    dataset: Dataset
    names: list[str]  # of the classes, in the order of the labels
    records: list[Record]  # of videos; empty for others
    joint_count: int = 0  # of photos with keypoints

    def check(self) -> None:
        """Open each video or photo of this process's share; ValueError for one that is no good."""
        if isinstance(self.dataset, Photos):
            self.dataset.check_images()
        if isinstance(self.dataset, Videos | Views):
            for record in self.records[dist.rank() :: dist.world_size()]:
                try:
                    open_record(record, self.dataset.clips)
                except UnreadableVideo as error:
                    raise UnreadableVideo(f"{error}; {CHECKED}") from error


def build(cfg: Config, *, training: bool, like: Examples | None = None) -> Examples:
    """The split to train on, or the one to evaluate on.

    like: the training split, whose classes are those of the other too. Raises ValueError for a list
    that cannot be read or classes that differ.
    """
    options = cfg.data
    if options.name == "builtin":
        clips = MatchClips(options.builtin, "train" if training else "test")
        return Examples(clips, clips.names, [])
    if options.name == "coco":
        photos = Photos(
            options.root,
            options.train if training else options.val,
            cfg.detector.kind,
            training=training,
            flip=cfg.clip.flip,
            limit=options.limit,
            like=None if like is None else like.dataset,  # type: ignore[arg-type]
        )
        if photos.joint_count not in (0, 17):  # before training, not when it is scored
            raise ValueError(
                f"{photos.source.where} has {photos.joint_count} joints, and AP of keypoints is "
                "known for COCO's 17 alone: give person keypoints, or take detector.kind=masks."
            )
        return Examples(photos, photos.names, [], photos.joint_count)
    names = like.names if like else find_names(cfg)
    records = read_split(cfg, options.train if training else options.val, names)
    if not names:  # labels are numbers, and training shows how many there are
        names = [str(k) for k in range(1 + max(max(each.labels, default=0) for each in records))]
    records = take_part(records, options.train_part if training else options.val_part)
    if training:
        records = records[: options.limit or None]
        return Examples(Videos(records, clips_of(cfg, names)), names, records)
    return Examples(views_of(records, cfg, names), names, records)


def warn_of_repeats(cfg: Config, training: Examples, validation: Examples) -> None:
    """A line for videos with contradictory labels, and one for those in both splits."""
    if not dist.is_main():
        return
    for name, split in (("train", training), ("val", validation)):
        found = [] if cfg.task == "multi_label" else find_contradictions(split.records)
        if found:
            warn(f"{len(found)} videos of data.{name} have several labels, such as {found[0]}.")
    parts: dict[str, list[tuple[float, float]]] = {}
    for record in training.records:
        parts.setdefault(os.path.abspath(record.path), []).append(record.part)
    shared = {
        record.path
        for record in validation.records
        for start, end in parts.get(os.path.abspath(record.path), ())
        if start < record.part[1] and record.part[0] < end
    }
    if shared:
        warn(
            f"{len(shared)} videos of data.val are in data.train too, such as {min(shared)}: the "
            "figures are not those of unseen videos."
        )


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"WARNING: {text}", file=sys.stderr, flush=True)


def clips_of(cfg: Config, names: list[str]) -> Clips:
    """Which frames a clip has and what becomes of them in training."""
    clip, options = cfg.clip, cfg.data
    return Clips(
        frames=clip.frames,
        stride=clip.stride,
        reader=options.reader,
        damaged=options.damaged,
        classes=len(names),
        multi_label=cfg.task == "multi_label",
        clip_labels=options.clip_labels,
        augment=Augment((clip.jitter[0], clip.jitter[1]), clip.crop, clip.resample, clip.flip),
        advice=ADVICE[options.bad_videos],
    )


def views_of(records: list[Record], cfg: Config, names: list[str]) -> Views:
    """The views of an evaluation."""
    return Views(records, clips_of(cfg, names), cfg.test)


def locate(cfg: Config, name: str) -> Path:
    """A list, a folder or a file of `data.root`, or one of its own."""
    inside = Path(cfg.data.root, name)
    return inside if inside.exists() else Path(name)


def find_names(cfg: Config) -> list[str]:
    """The names of the classes: of `data.classes`, or as the training split shows them, if so."""
    if cfg.data.classes:
        return read_classes(locate(cfg, cfg.data.classes))
    return find_classes(locate(cfg, cfg.data.train), by=cfg.data.class_by)


def read_split(cfg: Config, name: str, names: list[str]) -> list[Record]:
    """The videos of a list or a folder; ValueError where there is none."""
    source = locate(cfg, name)
    if not source.exists():
        raise ValueError(
            f"{Path(cfg.data.root, name)} does not exist: data.root={cfg.data.root} needs the "
            f"lists or folders data.train={cfg.data.train} and data.val={cfg.data.val}."
        )
    records = read_list(source, cfg.data.root, names, by=cfg.data.class_by)
    if not records:
        raise ValueError(f"{source} lists no video.")
    return records


def batches(
    examples: Examples, cfg: Config, start: int, stop: int
) -> Iterator[list[ClipPiece] | list[PhotoPiece]]:
    """Its share, for this process, of the steps after `start` to `stop`, cut for its GPUs."""
    if start == stop:  # an evaluation takes any number of processes
        return
    if isinstance(examples.dataset, Photos):
        yield from examples.dataset.batches(cfg, start, stop)
        return
    loader = train_loader(
        Named(examples.dataset),
        SampleStream(len(examples.dataset), cfg.batch_size, seed=cfg.seed),  # type: ignore
        start,
        stop,
        workers=cfg.data.workers,
        collate=collate,
        accumulate=count_pieces(cfg, dist.world_size()),
        bad=BadImages("skip") if cfg.data.bad_videos == "skip" else None,
    )
    for clips, labels, files in loader:
        parts = [slice(i, i + cfg.per_gpu) for i in range(0, len(files), cfg.per_gpu)]
        yield [ClipPiece(clips[part], labels[part], files[part]) for part in parts]


@dataclass
class Named(Dataset):
    """Clips with the names of their files: (clip, label, file)."""

    dataset: Any

    def __post_init__(self) -> None:
        count = len(self.dataset)
        self.files = getattr(self.dataset, "files", None) or [f"clip {i}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, str]:
        clip, label = self.dataset[index]
        return clip, label, self.files[index]


def collate(examples: list[tuple[Tensor, Any, str]]) -> tuple[Tensor, Tensor, list[str]]:
    """Clips (B, 3, T, H, W), labels and names of files."""
    clips, labels, files = zip(*examples, strict=True)
    return torch.stack(clips), torch.stack([torch.as_tensor(each) for each in labels]), list(files)


def views(examples: Examples, cfg: Config) -> Iterator[tuple[Tensor, list[Tensor], list[int]]]:
    """The share, for this process, of an evaluation: views (N, 3, T, H, W), labels, indices.

    A video's views may come in several batches. Whole frames come one video at a time.
    """
    dataset, size = examples.dataset, cfg.test.batch_size
    if isinstance(dataset, Views):
        crops = cfg.test.crops * (1 + cfg.test.mirror)
        size = max(1, size // crops) if crops else 1
    else:
        dataset = Single(dataset)
    yield from eval_loader(dataset, size, workers=cfg.data.workers, collate=collate_views)


@dataclass
class Single(Dataset):
    """Clips that are their only view: (clip (1, 3, T, H, W), label, index)."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        clip, label = self.dataset[index]
        return clip[None], torch.as_tensor(label), index


def collate_views(
    examples: list[tuple[Tensor, Tensor, int]],
) -> tuple[Tensor, list[Tensor], list[int]]:
    """The views of several examples as one batch, each with its label and index."""
    every = [(label, k) for clips, label, k in examples for _ in range(len(clips))]
    clips = torch.cat([clips for clips, _, _ in examples])
    return clips, [label for label, _ in every], [k for _, k in every]
