"""A video of a list, its labels, and how lists name them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .readers import ARRAY_SUFFIXES, FRAME_SUFFIXES, VIDEO_SUFFIXES

_NUMBERS = re.compile(r"\d+(,\d+)*")


@dataclass(frozen=True)
class Record:
    """A video of a list.

    labels: classes from 0. count: frames that a folder must have, 0: any. part: of its frames, as
    (0, 0.5) for the first half. spans: (class, start, end) in seconds, where the list has times.
    """

    path: str
    labels: tuple[int, ...]
    count: int = 0
    part: tuple[float, float] = (0.0, 1.0)
    spans: tuple[tuple[int, float, float], ...] = ()

    def labels_between(self, start: float, end: float) -> tuple[int, ...]:
        """The classes of the spans that meet these seconds; without spans all labels."""
        if not self.spans:
            return self.labels
        return tuple(sorted({c for c, a, b in self.spans if a <= end and b >= start}))


def find_videos(root: str | Path) -> Iterator[str]:
    """Video files, arrays and folders of frames anywhere below a folder, in order.

    Links to folders are followed, but no folder is searched twice.
    """
    searched: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in searched:
            folders.clear()
            continue
        searched.add((status.st_dev, status.st_ino))
        folders.sort()
        if parent != str(root) and is_video(parent):
            folders.clear()
            yield parent
        else:
            paths = (os.path.join(parent, name) for name in sorted(files))
            yield from (path for path in paths if is_video(path))


def is_video(path: str) -> bool:
    """Whether this is a video file, an array, or a folder of frames, by its name."""
    if not os.path.isdir(path):
        return has_suffix(path) and os.path.basename(path)[0] != "."
    with os.scandir(path) as entries:
        return any(entry.name.lower().endswith(FRAME_SUFFIXES) for entry in entries)


def has_suffix(path: str) -> bool:
    """Whether the name is that of a video file or an array."""
    return path.lower().endswith(VIDEO_SUFFIXES + ARRAY_SUFFIXES)


def number_classes(classes: Sequence[str]) -> dict[str, int]:
    """Label by name as `plain` gives it."""
    return {plain(name): number for number, name in enumerate(classes)}


def plain(name: str) -> str:
    """The name of a class without what files change in it: "riding_a_bike" is "Riding a bike"."""
    return name.strip().replace("_", " ").lower()


def is_label(text: str, labels: Mapping[str, int]) -> bool:
    """Whether this is a number, several with commas, or the name of a class."""
    return bool(_NUMBERS.fullmatch(text)) or plain(text) in labels


def read_labels(
    text: str, labels: Mapping[str, int], where: str, classes: int = 0
) -> tuple[int, ...]:
    """`3`, `3,17`, or the name of a class.

    classes: how many there are; 0: unknown. where: file and line, for messages.
    """
    if plain(text) in labels:
        return (labels[plain(text)],)
    if not _NUMBERS.fullmatch(text):
        known = f"one of the {classes} classes"
        if not classes:
            known = "a number: for names give data.classes=FILE, of prepare.py names=FILE"
        if re.fullmatch(r"-\d+", text):
            known = "0 or above: labels count from 0"
        raise ValueError(f"{where}: the label {text!r} is not {known}")
    numbers = tuple(sorted({int(number) for number in text.split(",")}))
    if classes and numbers[-1] >= classes:
        raise ValueError(
            f"{where}: label {numbers[-1]}, and there are {classes} classes, those of data.classes "
            "or else of data.train; labels count from 0"
        )
    return numbers


def require_plausible(records: Sequence[Record], places: Sequence[str], classes: int = 0) -> None:
    """Raise ValueError for a label that would make far more classes than there are videos.

    places: file and line of each, for messages. classes: how many there are; 0: unknown.
    """
    most = 1000 + 10 * len(records)
    for record, where in zip(records, places, strict=True):
        label = max(record.labels, default=0)
        if not classes and label >= most:
            raise ValueError(
                f"{where}: label {label} makes {label + 1} classes of {len(records)} videos: "
                "correct it, or name the classes in data.classes=FILE, of prepare.py names=FILE"
            )


def find_contradictions(records: Sequence[Record]) -> list[str]:
    """The paths that stand in several lines with different labels."""
    first: dict[str, tuple[int, ...]] = {}
    found = (r.path for r in records if first.setdefault(r.path, r.labels) != r.labels)
    return list(dict.fromkeys(found))


def read_text(source: Path) -> str:
    """The text of a list."""
    try:
        return source.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no text in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ValueError(f"{source} cannot be read ({error.strerror})") from error
