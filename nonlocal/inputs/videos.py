"""Clips of a list of videos: random ones to learn from, and the views of a test.

T frames of S x S pixels, K classes. What is drawn comes from torch's global generator, which the
train loader seeds for each example.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.images import UnreadableImage

from ..clips.augment import Augment, evaluation_crops
from ..clips.decoders import UnreadableVideo
from ..clips.formats import CHARADES_FPS
from ..clips.readers import Reader, open_video
from ..clips.records import Record
from ..clips.sampling import evaluation_indices, part_of, training_indices
from ..config import Test


@dataclass(frozen=True)
class Clips:
    """Which frames a clip has and how they are read.

    reader, damaged: as in `open_video`. multi_label: targets are float (K,) of 0 and 1.
    clip_labels: in training, the classes that the clip itself shows, where the list has times.
    advice: what a message about a bad video ends with.
    """

    frames: int = 32
    stride: int = 2
    reader: str = "auto"
    damaged: str = "raise"
    classes: int = 0  # K, for targets of several labels
    multi_label: bool = False
    clip_labels: bool = True  # Unstated: as SlowFast trains on Charades
    augment: Augment = field(default_factory=Augment)
    advice: str = ""


class Videos(Dataset):
    """A random clip of each video: (uint8 (3, T, S, S), label int64 or float (K,))."""

    def __init__(self, records: Sequence[Record], clips: Clips) -> None:
        check_labels(records, clips)
        self.records, self.clips = records, clips
        self.files = [record.path for record in records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clips, record = self.clips, self.records[index]
        try:
            video = open_record(record, clips)
            part = part_of(video.count, record.part)
            places = part.start + training_indices(len(part), clips.frames, clips.stride)
            frames = video.read(places.tolist())
        except UnreadableVideo as error:  # which the loader may replace, as it does images
            raise UnreadableImage(f"{error}{clips.advice}") from error
        labels = record.labels
        if clips.clip_labels and record.spans:
            fps = video.fps or CHARADES_FPS
            labels = record.labels_between(int(places.min()) / fps, int(places.max()) / fps)
        return clips.augment(frames).movedim(0, 1).contiguous(), _target(labels, clips)


class Views(Dataset):
    """The clips of a test of each video, all crops of one at once, so that none is decoded twice.

    Items are (uint8 (V, 3, T, H, W), label int64 or float (K,), index of the video): V crops, and
    `test.clips` items for a video. Whole frames are of the video's shape.
    """

    def __init__(self, records: Sequence[Record], clips: Clips, test: Test) -> None:
        check_labels(records, clips)
        self.records, self.clips, self.test = records, clips, test

    def __len__(self) -> int:
        return len(self.records) * self.test.clips

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        number, k = divmod(index, self.test.clips)
        clips, test, record = self.clips, self.test, self.records[number]
        video = open_record(record, clips)
        part = part_of(video.count, record.part)
        places = evaluation_indices(
            len(part), clips.frames, clips.stride, clips=test.clips, sampler=test.sampler
        )
        frames = video.read((part.start + places[k]).tolist())
        views = evaluation_crops(frames, test.size, crops=test.crops, mirror=test.mirror)
        return views.movedim(1, 2).contiguous(), _target(record.labels, clips), number


def check_labels(records: Sequence[Record], clips: Clips) -> None:
    """Raise ValueError for a video without the labels that its task needs."""
    for record in records:
        if not clips.multi_label and len(record.labels) != 1:
            raise ValueError(
                f"{record.path} has {len(record.labels)} labels: set task=multi_label, or give "
                "each video one"
            )
        if clips.classes and any(label >= clips.classes for label in record.labels):
            raise ValueError(
                f"{record.path} has label {max(record.labels)}, and there are {clips.classes} "
                "classes; labels count from 0"
            )


def open_record(record: Record, clips: Clips) -> Reader:
    """The reader of a video."""
    return open_video(record.path, clips.reader, damaged=clips.damaged, count=record.count)


def _target(labels: Sequence[int], clips: Clips) -> Tensor:
    """A label int64 (), or of several float (K,) of 0 and 1."""
    if not clips.multi_label:
        return torch.tensor(labels[0])
    target = torch.zeros(clips.classes)
    target[list(labels)] = 1
    return target
