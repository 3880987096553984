"""Lists of videos and their labels, in the formats of others.

    cat/0a1.mp4 3                  a path, which may hold blanks, and a label; also , or a tab
    frames/0a1 120 3                a folder of frames, their number, a label (mmaction2)
    cat/0a1.mp4 3,17                several labels
    cat/0a1.mp4 riding a bike       the name of a class, with a file of the names
    cat/0a1.mp4 c003 0.0 2.5;       after a tab, classes and their seconds; of none `;`
    label,youtube_id,time_start,time_end,split                the csv of Kinetics
    id,subject,scene,...,actions,length                       the csv of Charades
    original_vido_id video_id frame_id path labels            frames of Charades (SlowFast)

A folder is a list, too: of one folder for each class, or of single videos, each its own class.
Labels count from 0. Without names of the classes the largest one tells how many there are.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .formats import (
    format_actions,
    labels_of,
    read_actions,
    read_charades,
    read_frame_list,
    read_header,
    read_kinetics,
    read_rows,
)
from .records import (
    Record,
    find_videos,
    has_suffix,
    is_label,
    is_video,
    number_classes,
    plain,
    read_labels,
    read_text,
    require_plausible,
)


def read_list(
    source: str | Path, root: str | Path = "", classes: Sequence[str] = (), *, by: str = "folder"
) -> list[Record]:
    """The videos of a list file or folder.

    root: folder that relative paths start from; by default that of the list. classes: names in the
    order of the labels; by default labels are numbers, or those of `find_classes`. by: which class
    a video in a folder has, "folder" or "file" (each its own).
    Raises ValueError, naming file and line.
    """
    source = Path(source)
    classes = classes or find_classes(source, by=by)
    root = str(root or source.parent)
    if source.is_dir():
        records = list(_read_folder(source, classes, by))
    elif not source.is_file():
        raise ValueError(f"{source} does not exist: give a list of videos, or a folder of them")
    else:
        records = _read_file(source, root, classes)
    if not records:
        if source.is_dir() and (deep := next(find_videos(source), "")):
            raise ValueError(
                f"{source} itself holds no video, and only there they are looked for where each is "
                f"a class of its own: give the folder of {deep}; of a folder for each class set "
                "data.class_by=folder (of prepare.py: classes=folder)"
            )
        raise ValueError(f"{source} lists no video")
    return records


def find_classes(source: str | Path, *, by: str = "folder") -> list[str]:
    """The names of the classes that a folder or a csv of Kinetics shows, in order; else none."""
    source = Path(source)
    if source.is_dir():
        names = sorted(name for name in os.listdir(source) if name[0] != ".")
        videos = {name for name in names if is_video(os.path.join(source, name))}
        if by == "file":
            return [Path(name).stem for name in names if name in videos]
        return [name for name in names if name not in videos and (source / name).is_dir()]
    if not source.is_file() or not {"youtube_id", "label"} <= set(read_header(source)):
        return []
    return sorted({row["label"] for _, row in read_rows(source)})


def read_classes(file: str | Path) -> list[str]:
    """The names of classes from a file: one a line, in the order of the labels.

    A number or a code before each, as in "c000 Holding some clothes" or "1 Apply Eye Makeup", is
    left out where it counts the lines.
    """
    lines = [line.strip() for line in read_text(Path(file)).split("\n") if line.strip()]
    found = [re.match(r"c?(\d+)[\s,:]+(\S.*)", line) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    if numbers and numbers == list(range(numbers[0], numbers[0] + len(lines))):
        lines = [match[2] for match in found if match]
    if not lines:
        raise ValueError(f"{file} names no class: expected one name a line")
    if len(set(lines)) < len(lines):
        twice = next(name for i, name in enumerate(lines) if name in lines[:i])
        raise ValueError(f"{file} names the class {twice!r} twice")
    return lines


def take_part(records: Sequence[Record], part: Sequence[float]) -> list[Record]:
    """The same videos, of each only the frames from share part[0] to share part[1]."""
    if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
        raise ValueError(f"the part {list(part)} is none: choose [first, last] in 0..1.")
    return [replace(record, part=(part[0], part[1])) for record in records]


def format_list(records: Sequence[Record], root: str | Path = "") -> str:
    """The text of a list that `read_list` reads, with paths relative to `root` if they are in it.

    A tab separates, so that names may hold anything else; parts are left out.
    """
    lines = []
    for record in records:
        path = os.path.relpath(record.path, root) if root else record.path
        path = os.path.abspath(record.path) if path.startswith("..") else path
        count = [str(record.count)] if record.count else []
        timed = record.spans or not record.labels
        label = format_actions(record.spans) if timed else ",".join(map(str, record.labels))
        lines.append("\t".join([path, *count, label]))
    return "".join(f"{line}\n" for line in lines)


def _read_folder(source: Path, classes: Sequence[str], by: str) -> Iterator[Record]:
    """The videos in the folders of the classes, or with by="file" in the folder itself."""
    if by == "file":
        names = sorted(name for name in os.listdir(source) if name[0] != ".")
        paths = [path for name in names if is_video(path := os.path.join(source, name))]
        yield from (Record(path, (label,)) for label, path in enumerate(paths))
        return
    if by != "folder":
        raise ValueError(f"data.class_by={by} is not known: choose folder or file.")
    labels, there = number_classes(classes), find_classes(source)
    if not there:
        raise ValueError(
            f"{source} has no folder for each class: expected {source}/<class>/<video>; where "
            "each video is a class of its own, set data.class_by=file (of prepare.py: classes=file)"
        )
    for name in there:
        if plain(name) not in labels:
            raise ValueError(
                f"{source / name} is none of the {len(classes)} classes, which are those of "
                "data.classes or else the folders of data.train: rename it or leave it out"
            )
        yield from (Record(path, (labels[plain(name)],)) for path in find_videos(source / name))


def _read_file(source: Path, root: str, classes: Sequence[str]) -> list[Record]:
    """The videos of a list file of any format."""
    header = set(read_header(source))
    if "youtube_id" in header:
        return read_kinetics(source, root, classes)
    known = {"video_id", "frame_id", "path"} <= header, {"id", "actions"} <= header
    if any(known):
        records = (read_frame_list if known[0] else read_charades)(source, root, classes)
        require_plausible(records, [f"{source}, {record.path}" for record in records], len(classes))
        return records
    labels, records, places = number_classes(classes), [], []
    for number, line in enumerate(read_text(source).split("\n"), 1):
        if line.strip():
            where = f"{source}, line {number}"
            name, count, label = _split(line.strip(), labels, where)
            timed = label.endswith(";")
            spans = read_actions(label, where, len(labels)) if timed else ()
            own = labels_of(spans) if timed else read_labels(label, labels, where, len(labels))
            records.append(Record(os.path.join(root, name), own, count, spans=spans))
            places.append(where)
    require_plausible(records, places, len(classes))
    return records


def _split(line: str, labels: Mapping[str, int], where: str) -> tuple[str, int, str]:
    """Path, number of frames (0: not given) and label of a line."""
    words = line.split(" ")
    splits = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    if "\t" in line:
        separator, splits = "\t", [(line.rpartition("\t")[0], line.rpartition("\t")[2])]
    elif any(is_label(tail, labels) for _, tail in splits) or "," not in line:
        separator = " "
    else:
        separator, splits = ",", [(line.rpartition(",")[0], line.rpartition(",")[2])]
    # Names of classes may have blanks: the longest end of the line that is one.
    known = (each for each in splits if is_label(each[1].strip(), labels))
    head, label = next(known, splits[-1] if splits else ("", line))
    folder = os.path.basename(os.path.dirname(line))
    if has_suffix(line) and plain(folder) in labels:
        return line, 0, folder  # a path alone, as in the test lists of UCF-101
    if not head:
        raise ValueError(
            f"{where}: {line!r} has no label: expected a path and a label, with a blank, a comma "
            "or a tab between them"
        )
    head = head.strip()
    if separator == " " and head.endswith(","):  # "path, label"
        separator, head = ",", head[:-1].strip()
    path, _, count = head.rpartition(separator)
    if path and count.strip().isdecimal() and not has_suffix(head):
        return path.strip(), int(count), label.strip()
    return head, 0, label.strip()
