"""Get videos ready: make a list, look for faults, store them smaller.

    python prepare.py list root=/data/hmdb out=hmdb.txt                # one folder for each class
    python prepare.py list root=/data/cats out=cats.txt classes=file   # each video its own class
    python prepare.py check list=hmdb.txt [out=good.txt] [decode=true]
    python prepare.py encode list=hmdb.txt out=/data/hmdb256 [short=256] [gop=16]
    python prepare.py frames list=hmdb.txt out=/data/hmdb_frames [short=256]

`check` counts frames, names what cannot be read, and writes a list without it; it decodes the first
frame of each alone, with decode=true all, which finds files that are broken in the middle. `encode`
writes MP4 with the shorter side at `short` pixels and a key frame every `gop` frames, which is
quick to seek; `frames` writes JPEG files. Both write OUT/list.txt, leave out and name what cannot
be read, and go on where they were stopped. A list may have any format that data.train takes; root=
and names= (a file of class names) go with it. processes=0 uses this one alone, by default one a
core.
Exit code 0: good, 2: bad data.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import dist, files
from common.config import read_options
from common.config import run as run_command
from common.errors import UserError
from common.pool import in_order
from nonlocal_.clips.formats import CHARADES_FPS
from nonlocal_.clips.lists import find_classes, format_list, read_classes, read_list
from nonlocal_.clips.readers import Reader, UnreadableVideo, all_frames, open_video
from nonlocal_.clips.records import Record, find_contradictions
from nonlocal_.clips.sampling import scaled_size

SHOWN = 20  # faults that are named
COMMANDS = ("list", "check", "encode", "frames")
_MARK = ".made.json"  # how a folder was made


@dataclass
class Options:
    """What the commands take."""

    root: str = ""
    list: str = ""
    out: str = ""
    names: str = ""  # file with the names of the classes
    classes: str = "folder"  # of `list`: folder, or file
    short: int = 256  # pixels of the shorter side, which is not enlarged
    gop: int = 16  # frames from a key frame to the next
    crf: int = 18  # of H.264: lower is better
    quality: int = 95  # of JPEG
    clip: int = 64  # frames that a clip spans, to count shorter videos
    reader: str = "auto"
    damaged: str = "raise"  # play: take of a damaged video what can be read
    decode: bool = False  # check: every frame
    processes: int = -1

    def __post_init__(self) -> None:
        if self.short < 2 or self.gop < 1 or not 1 <= self.quality <= 100:
            raise ValueError(
                f"short={self.short}, gop={self.gop}, quality={self.quality}: choose short >= 2, "
                "gop >= 1, quality 1 to 100."
            )


def main(words: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0] not in (*COMMANDS, "-h", "--help"):
        raise ValueError(f"{words[0]} is unknown: choose {', '.join(COMMANDS)}.")
    options = read_options(Options, words[1:], usage=__doc__, least=1)
    needed = {"list": ("root", "out"), "check": ("list",)}.get(words[0], ("list", "out"))
    missing = [name for name in needed if not getattr(options, name)]
    if missing:
        raise ValueError(f"{missing[0]}= is missing: python prepare.py {words[0]} {missing[0]}=...")
    match words[0]:
        case "list":
            make_list(options)
        case "check":
            check(options)
        case "encode":
            convert(options, "encode")
        case "frames":
            convert(options, "frames")


def make_list(options: Options) -> list[Record]:
    """Write the list of the videos in a folder, and beside it the names of the classes."""
    root, out = Path(options.root), Path(options.out)
    if not root.is_dir():
        raise ValueError(f"root={root} is not a folder")
    records = read_list(root, by=options.classes)
    names = find_classes(root, by=options.classes)
    absolute = [replace(record, path=os.path.abspath(record.path)) for record in records]
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, format_list(absolute, os.path.abspath(out.parent)))
    classes = out.with_name(f"{out.stem}_classes.txt")
    files.write_text(classes, "".join(f"{name}\n" for name in names))
    print(f"{out}: {len(records)} videos of {len(names)} classes, whose names are in {classes}")
    return records


def check(options: Options) -> dict[str, Any]:
    """Print what is in a list; UserError if a video cannot be read. Returns the counts."""
    records = load(options)
    counts, faults, good = [], [], []
    for record, (count, fault) in zip(
        records, work(partial(look, options=options), records, options), strict=True
    ):
        if fault:
            faults.append(fault)
        if count:
            counts.append(count)
            good.append(record)
    labels = {label for record in records for label in record.labels}
    found = {
        "videos": len(records),
        "classes": len(labels),
        "readable": len(good),
        "short": sum(count < options.clip for count in counts),
        "frames": [int(f(counts)) for f in (min, np.median, max)] if counts else [],
    }
    print(f"{options.list}: {len(records)} videos of {len(labels)} classes, {len(good)} readable")
    gaps = sorted(set(range(max(labels, default=0) + 1)) - labels)
    if gaps:
        print(f"no video has label {', '.join(map(str, gaps[:SHOWN]))}; labels count from 0")
    if counts:
        least, middle, most = found["frames"]
        print(f"{least} to {most} frames, half of the videos at most {middle}")
        print(f"{found['short']} are shorter than {options.clip} frames: a clip of that wraps")
    if twice := find_contradictions(records):
        print(f"{len(twice)} videos stand there again with other labels, such as {twice[0]}")
    if options.out:
        files.write_text(Path(options.out), format_list(good, Path(options.out).parent))
        print(f"{options.out}: the {len(good)} readable ones")
    if not options.decode:
        print("only first frames were decoded: decode=true finds files broken in the middle, too")
    report(faults)
    return found


def convert(options: Options, kind: str) -> list[Record]:
    """Write all videos of a list anew, and their list; UserError names those left out."""
    out, records = Path(options.out), load(options)
    made = {"kind": kind, "short": options.short}
    own = ("gop", "crf") if kind == "encode" else ("quality",)
    mark(out, made | {name: getattr(options, name) for name in own})
    names = [name_of(record, options) for record in records]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"two videos of {options.list} would both become {twice}")
    doing = partial(convert_one, options=options, kind=kind)
    faults, done = [], []
    pairs = list(zip(records, names, strict=True))
    for record, fault in work(doing, pairs, options):
        if fault:
            faults.append(fault)
        if record:
            done.append(record)
    files.write_text(out / "list.txt", format_list(done, os.path.abspath(out)))
    print(f"{out / 'list.txt'}: {len(done)} videos")
    report(faults)
    return done


def load(options: Options) -> list[Record]:
    """The records of the list."""
    classes = read_classes(options.names) if options.names else []
    return read_list(options.list, options.root, classes, by=options.classes)


def work(each: Any, items: Sequence[Any], options: Options) -> Iterator[Any]:
    """The results of `each` item in order, by several processes, with a bar."""
    count = dist.cores() if options.processes < 0 else options.processes
    results = in_order(each, items, count) if count > 1 else map(each, items)
    return iter(tqdm(results, "videos", total=len(items), leave=False, disable=None))


def look(record: Record, *, options: Options) -> tuple[int, str]:
    """The frames of a video, 0 if it is to be left out, and what is wrong with it."""
    try:
        video = open_video(record.path, options.reader, damaged=options.damaged, count=record.count)
        count = sum(1 for _ in all_frames(video)) if options.decode else video.count
        if not options.decode:
            video.read([0])
    except UnreadableVideo as error:
        return 0, str(error)
    if count < video.count:
        return 0, f"{record.path}: {count} of its {video.count} frames can be decoded"
    return count, f"{record.path}: {video.damage}" if video.damage else ""


def report(faults: Sequence[str]) -> None:
    """Name the faults and end with exit code 2, if there are any."""
    if faults:
        print(*faults[:SHOWN], sep="\n", file=sys.stderr)
        raise UserError(f"{len(faults)} videos have faults")
    print("no fault found")


def mark(out: Path, made: dict[str, Any]) -> None:
    """Note in a folder how it is made; ValueError where it was made otherwise."""
    out.mkdir(parents=True, exist_ok=True)
    before = files.read_json(out / _MARK)
    if before and before != made:
        raise ValueError(f"{out} was made with {before}, not {made}: give another folder")
    if not before:
        if any(out.iterdir()):
            raise ValueError(f"{out} holds other files: give an empty or new folder")
        files.write_text(out / _MARK, json.dumps(made))


def name_of(record: Record, options: Options) -> str:
    """Where a video goes: its path from the root of the list, without its ending."""
    root = options.root or (
        options.list if Path(options.list).is_dir() else Path(options.list).parent
    )
    name = os.path.relpath(record.path, root)
    name = os.path.basename(name) if name.startswith("..") else name
    return name if Path(record.path).is_dir() else os.path.splitext(name)[0]


def convert_one(
    item: tuple[Record, str], *, options: Options, kind: str
) -> tuple[Record | None, str]:
    """Write one video, unless it is there; its record, None if left out, and what is wrong."""
    record, name = item
    path = Path(options.out) / (f"{name}.mp4" if kind == "encode" else name)
    new, spans, fault = not path.exists(), record.spans, ""
    try:
        if new or (kind == "frames" and spans):  # whose rate is needed
            video = open_video(
                record.path, options.reader, damaged=options.damaged, count=record.count
            )
            if kind == "frames" and video.fps:  # a folder has no rate: its times are Charades'
                rate = video.fps / CHARADES_FPS
                spans = tuple((label, a * rate, b * rate) for label, a, b in spans)
        if new:
            fault = f"{record.path}: {video.damage}" if video.damage else ""
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "encode":
                files.write(path, partial(encode, video=video, options=options))
            else:
                write_frames(path, video, options)
        count = open_video(path).count if kind == "frames" else 0
    except UnreadableVideo as error:
        return None, str(error)
    return replace(record, path=os.path.abspath(path), count=count, spans=spans), fault


def encode(file: IO[bytes], *, video: Reader, options: Options) -> None:
    """Write a video as H.264 in MP4, its frames at equal distances."""
    import av

    with av.open(file, "w", format="mp4") as container:
        stream: Any = None
        for image in images(video, options.short, even=True):
            if stream is None:
                rate = Fraction(video.fps or 24).limit_denominator(1001)  # 30000/1001 is one
                settings = {"crf": str(options.crf), "g": str(options.gop)}
                stream = container.add_stream("libx264", rate, options=settings)
                stream.width, stream.height, stream.pix_fmt = *image.size, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def write_frames(path: Path, video: Reader, options: Options) -> None:
    """Write a folder of JPEG files, which appears whole or not at all."""
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        for number, image in enumerate(images(video, options.short), 1):
            image.save(part / f"img_{number:05d}.jpg", quality=options.quality)
        part.chmod(0o755)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def images(video: Reader, short: int, *, even: bool = False) -> Iterator[Image.Image]:
    """The frames of a video, the shorter side at `short` pixels at most.

    even: sides are multiples of 2, as H.264 wants them.
    """
    for frame in all_frames(video):
        image = Image.fromarray(frame.permute(1, 2, 0).numpy())
        height, width = image.height, image.width
        if min(height, width) > short:
            height, width = scaled_size(height, width, short)
        if even:
            height, width = max(height // 2 * 2, 2), max(width // 2 * 2, 2)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        yield image


if __name__ == "__main__":
    run_command(main)
