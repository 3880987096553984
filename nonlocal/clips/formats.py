"""The lists of Kinetics and Charades as they are published."""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .readers import natural
from .records import Record, find_videos, number_classes, plain, read_labels, read_text

CHARADES_FPS = 24.0  # of its extracted frames
Rows = list[tuple[int, dict[str, str]]]  # line, and value by column
Span = tuple[int, float, float]


def read_header(source: Path) -> list[str]:
    """The first line's words between commas; those between blanks for a list of frames."""
    line = read_text(source).split("\n", 1)[0]
    words = [word.strip().strip('"') for word in line.split(",")]
    return words if len(words) > 1 else line.split()


def read_rows(source: Path) -> Rows:
    """The rows of a csv; ValueError for one with too few columns or too many."""
    reader = csv.DictReader(io.StringIO(read_text(source)), skipinitialspace=True)
    rows, header = [], reader.fieldnames or []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{source}, line {reader.line_num}: expected {len(header)} columns")
        rows.append((reader.line_num, row))
    return rows


def read_kinetics(source: Path, root: str, classes: Sequence[str]) -> list[Record]:
    """The csv of Kinetics; a video that is not there is listed where it should be.

    Its name is `<id>_<start>_<end>` with six digits each, or `<id>`, in any folder below `root`.
    """
    labels, records = number_classes(classes), []
    there = {Path(path).stem: path for path in find_videos(root)}
    for line, row in read_rows(source):
        where = f"{source}, line {line}"
        if "label" not in row:
            raise ValueError(f"{where}: there is no column `label`, as in the test set's file")
        if plain(row["label"]) not in labels:
            raise ValueError(
                f"{where}: {row['label']!r} is none of the {len(labels)} classes, those of "
                "data.classes or else of data.train"
            )
        times = [_seconds(row.get(name), where) for name in ("time_start", "time_end")]
        stem = "_".join([row["youtube_id"], *(f"{int(time):06d}" for time in times)])
        path = there.get(stem) or there.get(row["youtube_id"])
        path = path or os.path.join(root, row["label"].replace(" ", "_"), f"{stem}.mp4")
        records.append(Record(path, (labels[plain(row["label"])],)))
    return records


def read_charades(source: Path, root: str, classes: Sequence[str]) -> list[Record]:
    """The csv of Charades: actions as `c092 11.90 21.20;c147 0.00 12.60`, videos as <id>.mp4.

    A folder of frames by the name of the id will do as well.
    """
    records = []
    there = {Path(path).stem: path for path in find_videos(root)}
    for line, row in read_rows(source):
        spans = read_actions(row["actions"], f"{source}, line {line}", len(classes))
        path = there.get(row["id"]) or os.path.join(root, f"{row['id']}.mp4")
        records.append(Record(path, labels_of(spans), spans=spans))
    return records


def read_actions(text: str, where: str, classes: int = 0) -> tuple[Span, ...]:
    """The spans of `c092 11.90 21.20;c147 0.00 12.60`; classes: how many there are, 0: unknown."""
    spans = []
    for action in filter(None, text.split(";")):
        words = action.split()
        if len(words) != 3 or not re.fullmatch(r"c\d+", words[0]):
            raise ValueError(f"{where}: {action!r} is no action like 'c092 11.90 21.20'")
        label = int(words[0][1:])
        if classes and label >= classes:
            raise ValueError(f"{where}: action {words[0]}, and there are {classes}")
        spans.append((label, _seconds(words[1], where), _seconds(words[2], where)))
    return tuple(spans)


def format_actions(spans: Sequence[Span]) -> str:
    """Actions that `read_actions` reads, to the digit, with a `;` after the last; of none `;`."""
    return "".join(f"c{label:03d} {start} {end};" for label, start, end in spans) or ";"


def read_frame_list(source: Path, root: str, classes: Sequence[str]) -> list[Record]:
    """SlowFast's list of the frames of Charades, each with the classes that it shows."""
    videos: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for number, line in enumerate(read_text(source).split("\n")[1:], 2):
        words, where = line.split(), f"{source}, line {number}"
        if not words:
            continue
        if len(words) not in (4, 5):
            raise ValueError(f"{where}: expected 5 columns, original_vido_id ... path labels")
        text = words[4].replace('"', "") if len(words) == 5 else ""
        shown = read_labels(text, {}, where, len(classes)) if text else ()
        videos.setdefault(words[0], []).append((words[3], shown))
    records = []
    for name, frames in videos.items():
        folders = {os.path.dirname(path) for path, _ in frames}
        paths = [path for path, _ in frames]
        if len(folders) > 1 or paths != sorted(paths, key=natural):
            raise ValueError(f"{source}: the frames of {name} are not those of one folder in order")
        spans = _join(frames)
        path = os.path.join(root, folders.pop())
        records.append(Record(path, labels_of(spans), len(frames), spans=spans))
    return records


def _join(frames: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[Span, ...]:
    """The spans of seconds in which successive frames show a class."""
    joined: dict[int, list[Span]] = {}
    for i, (_, shown) in enumerate(frames):
        for label in shown:
            own = joined.setdefault(label, [])
            start = i / CHARADES_FPS
            if own and own[-1][2] == (i - 1) / CHARADES_FPS:
                start = own.pop()[1]
            own.append((label, start, i / CHARADES_FPS))
    return tuple(span for own in joined.values() for span in own)


def labels_of(spans: Sequence[Span]) -> tuple[int, ...]:
    """The classes of these spans, each once."""
    return tuple(sorted({label for label, _, _ in spans}))


def _seconds(text: str | None, where: str) -> float:
    """A number of seconds."""
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no number of seconds") from None
