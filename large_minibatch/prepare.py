"""Get ImageNet, or any images in one folder per class, ready for training.

    python prepare.py check /data/imagenet                    # counts, layout, first bad file
    python prepare.py sort_val /data/imagenet/val MAPPING     # ILSVRC's 50,000 into class folders
    python prepare.py resize /data/imagenet /data/imagenet256 --size 256

MAPPING says which class each validation image has: a text file of two columns, image and class
(LOC_val_solution.csv of Kaggle is one), or the devkit's ILSVRC2012_validation_ground_truth.txt,
whose line k is the class number of image k; numbers need --wnids FILE, the WordNet ids in the
order of the numbers. Exit code 0: good, 2: bad data.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from common import dist, files, spawn
from common.images import (
    IMAGE_SUFFIXES,
    UnreadableImage,
    find_images,
    image_size,
    open_image,
    read_image,
)
from common.pool import in_order
from large_minibatch import data
from large_minibatch.config import Data
from large_minibatch.inputs.folders import read_names

SHOWN = 20  # unreadable images that are named
_MARK = ".resized.json"  # how a resized tree was made
_NUMBERED = re.compile(r"_(\d+)\.\w+$")  # ILSVRC2012_val_00000001.JPEG


def check(root: str | Path, *, decode: bool = False, **options: Any) -> None:
    """Print what is in a data set; ValueError for what its layout lacks or the first bad file.

    decode: read every pixel instead of every header. options: as in data.*.
    """
    cfg = Data(root=str(root), **options)
    print(f"expected: {root}/{{{cfg.train},{cfg.val}}}/<class>/<image>")
    for split in ("train", "val"):
        paths, labels, names = data.find_files(cfg, training=split == "train")
        counts = labels.bincount(minlength=len(names))
        counts = counts[counts > 0]
        print(
            f"{getattr(cfg, split)}: {len(paths)} images of {len(counts)} classes, "
            f"{int(counts.min())} to {int(counts.max())} a class"
        )
        look = partial(read_image, exif=False) if decode else image_size
        doing = "decoding" if decode else "opening"
        for file in tqdm(paths, doing, unit="file", leave=False, disable=None):
            look(file)
    print("no fault found" + ("" if decode else "; damaged pixels show with --decode only"))


def sort_val(folder: str | Path, mapping: str | Path, *, wnids: str | Path | None = None) -> int:
    """Move the images that lie in `folder` into a folder per class; returns how many.

    Nothing is moved unless every image has a class. Images already sorted are left alone, so
    that an interrupted call may be repeated. mapping, wnids: see the module.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one with the validation images")
    loose = sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(IMAGE_SUFFIXES))
    classes = _mapping(Path(mapping), read_names(wnids) if wnids else [])
    moves = []
    for name in loose:
        wnid = _class_of(name, classes)
        if wnid is None:
            raise ValueError(
                f"{folder / name} has no class in {mapping}: is it the mapping of these images?"
            )
        if "/" in wnid or wnid.startswith("."):
            raise ValueError(f"{mapping} gives {name} the class {wnid!r}, which is no folder name")
        moves.append((name, wnid))
    for name, wnid in tqdm(moves, "sorting", unit="file", leave=False, disable=None):
        (folder / wnid).mkdir(exist_ok=True)
        os.rename(folder / name, folder / wnid / name)
    return len(moves)


def _mapping(path: Path, wnids: list[str]) -> dict[str, str] | list[str]:
    """Class by image name without suffix, or of image 1, 2, ... where that is all there is."""
    try:
        rows = [re.split(r"[\s,]+", line.strip()) for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a mapping ({error})") from error
    rows = [row for row in rows if row[0] and row[0].lower() != "imageid"]
    if not rows:
        raise ValueError(f"{path} is empty: expected an image and its class on each line")
    if all(len(row) == 1 for row in rows):  # the devkit counts classes from 1
        return [_class_meant(row[0], 1, wnids, path) for row in rows]
    short = next((row[0] for row in rows if len(row) == 1), None)
    if short is not None:
        raise ValueError(f"{path} gives {short!r} no class: expected two columns")
    # Lists such as Caffe's val.txt count classes from 0.
    return {Path(row[0]).stem: _class_meant(row[1], 0, wnids, path) for row in rows}


def _class_meant(word: str, first: int, wnids: list[str], path: Path) -> str:
    """The class that a mapping means: itself, or the WordNet id of its number."""
    if not word.isdigit():
        return word
    if not wnids:
        raise ValueError(
            f"{path} has class numbers: give --wnids FILE, the WordNet ids in the order of the "
            f"numbers, from {first}"
        )
    if not first <= int(word) < first + len(wnids):
        raise ValueError(
            f"{path} has class number {word}, but the {len(wnids)} WordNet ids are numbers "
            f"{first} to {first + len(wnids) - 1}"
        )
    return wnids[int(word) - first]


def _class_of(name: str, mapping: dict[str, str] | list[str]) -> str | None:
    """The class of an image file, None where the mapping has none."""
    if isinstance(mapping, dict):
        return mapping.get(Path(name).stem)
    number = _NUMBERED.search(name)
    k = int(number[1]) if number else 0
    return mapping[k - 1] if 1 <= k <= len(mapping) else None


def resize(
    source: str | Path,
    target: str | Path,
    *,
    size: int = 256,
    quality: int = 95,
    processes: int | None = None,
) -> list[str]:
    """Copy a tree of images with their shorter sides at `size` pixels; returns the unreadable.

    Images become JPEG of `quality`, resized by an antialiased bicubic filter; JPEG that is not
    larger than that is copied as it stands. Each file appears at once and whole, and those that
    are there already are left alone, so that an interrupted call may be repeated.
    processes: 0 for none besides this one, None for one a core.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder: give the one with the images")
    if size < 1 or not 1 <= quality <= 100:
        raise ValueError(f"size={size}, quality={quality}: give size >= 1, quality 1 to 100")
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} is inside {source}: give a folder outside of it")
    _mark(target, {"size": size, "quality": quality})
    work = partial(_resize_one, source=source, target=target, size=size, quality=quality)
    names = [os.path.relpath(f, source) for _, found in find_images(source, [""]) for f in found]
    shown = partial(tqdm, total=len(names), desc="resizing", unit="file", disable=None)
    if processes == 0:
        return [bad for bad in shown(map(work, names)) if bad]
    done = in_order(work, names, processes or dist.cores())
    return [bad for bad in shown(done) if bad]


def _mark(target: Path, made: dict[str, int]) -> None:
    """Note in a resized tree how it is made; ValueError where it was made otherwise."""
    target.mkdir(parents=True, exist_ok=True)
    mark = target / _MARK
    if mark.exists():
        before = json.loads(mark.read_text())
        if before != made:
            raise ValueError(
                f"{target} was resized with {before}, not {made}: give another folder, or the same "
                "numbers"
            )
        return
    if any(target.iterdir()):
        raise ValueError(f"{target} holds other files: give an empty or new folder")
    mark.write_text(json.dumps(made))


def _resize_one(name: str, *, source: Path, target: Path, size: int, quality: int) -> str:
    """Write one image; returns what is wrong with it, or nothing."""
    jpeg = name.lower().endswith((".jpg", ".jpeg"))
    out = target / (name if jpeg else f"{name}.jpg")
    if out.exists():
        return ""
    try:
        image = _shrink(source / name, size)
    except UnreadableImage as error:
        return str(error)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if image is None:
            content = (source / name).read_bytes()
            files.write(out, lambda file: file.write(content))
        else:
            exif = image.info.get("exif", b"")  # it may say how the image is turned
            save = partial(image.save, format="JPEG", quality=quality, exif=exif)
            files.write(out, save)
    except OSError as error:
        raise OSError(f"cannot write {out} ({error}): make room and start again") from error
    return ""


def _shrink(path: Path, size: int) -> Image.Image | None:
    """The RGB image with shorter side `size` at most; None: the file is such a JPEG already."""
    try:
        with open_image(path) as source:
            source.load()
            if source.format == "JPEG" and min(source.size) <= size:
                return None
            image, info = source.copy(), source.info
    except UnreadableImage:
        image, info = Image.new("L", (1, 1)), {}  # `read_image` may know how, or says why not
    if image.mode != "RGB":
        image = Image.fromarray(read_image(path, exif=False).permute(1, 2, 0).numpy())
    short = min(image.size)
    if short > size:
        width, height = (side * size // short for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    image.info = {"exif": info["exif"]} if "exif" in info else {}
    return image


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python prepare.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    c = commands.add_parser("check", help="count the images and open each")
    c.add_argument("root", type=Path)
    c.add_argument("--name", choices=("imagenet", "folder"), default="imagenet")
    c.add_argument("--train", default="train", help="sub-folder of the training images")
    c.add_argument("--val", default="val", help="sub-folder of the validation images")
    c.add_argument("--classes", default="", help="file with the classes to use, one a line")
    c.add_argument("--evaluated", default="", help="file with the classes of the validation")
    c.add_argument("--decode", action="store_true", help="read all pixels, not the headers")
    c = commands.add_parser("sort_val", help="move validation images into class folders")
    c.add_argument("folder", type=Path)
    c.add_argument("mapping", type=Path)
    c.add_argument("--wnids", type=Path, help="file with the WordNet ids by class number")
    c = commands.add_parser("resize", help="write a smaller copy of a tree of images")
    c.add_argument("source", type=Path)
    c.add_argument("target", type=Path)
    c.add_argument("--size", type=int, default=256, help="shorter side in pixels")
    c.add_argument("--quality", type=int, default=95, help="of the JPEG files")
    c.add_argument("--processes", type=int, help="0: this one alone; by default one a core")
    options = vars(parser.parse_args(arguments))
    try:
        match options.pop("command"):
            case "check":
                check(**options)
            case "sort_val":
                print(f"{sort_val(**options)} images moved")
            case "resize":
                if bad := resize(**options):
                    print(*bad[:SHOWN], sep="\n", file=sys.stderr)
                    raise ValueError(f"{len(bad)} images cannot be read and were left out")
    except (ValueError, OSError) as error:
        print(f"bad data: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    with spawn.ending_at_once():
        sys.exit(main())
