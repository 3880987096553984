"""Files of COCO format: where they lie, and reading them; what they hold is in `fields`."""

import gc
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

EXPECTED = """expected one of
  COCO 2017    ROOT/annotations/instances_{train,val}2017.json and ROOT/{train,val}2017/*.jpg
  COCO 2014    ROOT/annotations/instances_{train,valminusminival,minival}2014.json and
               ROOT/{train,val}2014/*.jpg
  COCO format  ROOT/annotations/{train,val,test}.json or instances_{train,val,test}.json, images
               in ROOT, ROOT/images, ROOT/{train,val,test} or ROOT/images/{train,val,test}
  Roboflow     ROOT/{train,valid,test}/_annotations.coco.json beside the images
(keypoints: person_keypoints_ in place of instances_)"""

# The names under which Detectron knows the two halves of COCO 2014; as 2017 they hold the same.
PARTS_2014 = {
    "train": ["train2014", "valminusminival2014"],
    "trainval35k": ["train2014", "valminusminival2014"],
    "val": ["minival2014"],
    "minival": ["minival2014"],
}
FOLDERS = {
    "valminusminival2014": "val2014",
    "minival2014": "val2014",
    "test-dev2017": "test2017",
}


def find_split(
    root: str | Path, split: str, *, kind: str = "boxes"
) -> tuple[list[Path], list[Path]]:
    """Image folders and annotation files of "train", "val", ... or an exact name ("val2014").

    They are the first two arguments of CocoDataset: lists of one entry, or of two where the split
    lies in two files (2014 trainval35k). Raises ValueError with the expected layout and the first
    missing path.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; {EXPECTED}")
    for parts in _candidates(root, split, kind):
        if all(file.is_file() for file, _ in parts):
            folders = [_image_folder(root, file, name) for file, name in parts]
            return folders, [file for file, _ in parts]
    wanted = next(_candidates(root, split, kind))[0][0]
    fault = "is not a regular file" if wanted.exists() else "does not exist"
    raise ValueError(f"no annotations of {split!r}: {wanted} {fault}; {EXPECTED}")


def has_split(root: Path, split: str, *, kind: str) -> bool:
    """Whether `find_split` would find annotations."""
    return any(all(f.is_file() for f, _ in parts) for parts in _candidates(root, split, kind))


def _candidates(root: Path, split: str, kind: str) -> Iterator[list[tuple[Path, str]]]:
    """Where the parts of a split may be, best first: (annotation file, name of image folder)."""
    folder = root / "annotations"
    stem = "person_keypoints" if kind == "keypoints" else "instances"
    named = {"train": "train2017", "val": "val2017"}.get(split, split)
    for parts in ([named], PARTS_2014.get(split, [])):
        if parts:
            yield [(folder / f"{stem}_{part}.json", FOLDERS.get(part, part)) for part in parts]
    yield [(folder / f"image_info_{split}.json", FOLDERS.get(split, split))]
    for file in (folder / f"{split}.json", folder / f"{stem}_{split}.json", root / f"{split}.json"):
        yield [(file, split)]
    for name in (split, "valid") if split == "val" else (split,):
        yield [(root / name / "_annotations.coco.json", name)]


def _image_folder(root: Path, file: Path, name: str) -> Path:
    """The folder in which the first image of an annotation file lies."""
    folders = [root / name, root / "images" / name, root / "images", root]
    first = _first_file_name(file)
    if first is None:  # no images, or no COCO format: `read_annotations` tells
        return root
    for folder in folders:
        if os.path.isfile(folder / first):  # False, too, for a name that no file can have
            return folder
    missing = short_path(folders[0] / first)
    raise ValueError(f"{missing}, the first image of {file}, is missing; {EXPECTED}")


def short_path(path: str | Path) -> str:
    """A path for a message, without the middle of one that is longer than any file's may be."""
    text = str(path)
    return text if len(text) < 4096 else f"{text[:200]}...{text[-50:]} ({len(text)} characters)"


def _first_file_name(file: Path) -> str | None:
    """The first `file_name` of a JSON file, without reading all of it."""
    text = ""
    with open(file, "rb") as start:
        encoding = json.detect_encoding(start.read(4))
    with open(file, encoding=encoding, errors="replace") as stream:
        while block := stream.read(1 << 20):
            text = text[-4096:] + block
            found = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', text)
            if found:
                with suppress(json.JSONDecodeError):
                    return str(json.loads(found[1]))
    return None


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the garbage collector, which else visits millions of small lists again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def read_bytes(path: str | Path) -> bytes:
    """Content of a regular file; ValueError where there is none, or it cannot be read."""
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        fault = "is not a regular file" if os.path.exists(path) else "does not exist"
        raise ValueError(f"{path} {fault}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: str | Path) -> Any:
    """Content of a JSON file in UTF-8, 16 or 32; ValueError names the file and the position."""
    data = read_bytes(path)
    with without_collector(), json_faults(path):
        return json.loads(data)


@contextmanager
def json_faults(path: str | Path) -> Iterator[None]:
    """Turn what reading JSON text raises into a ValueError that names the file."""
    try:
        yield
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON, or was cut off: {error.msg} at line {error.lineno}, "
            f"column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {error.encoding.upper()} text: {error.reason}, byte {error.start}"
        ) from error
    except ValueError as error:  # Python refuses whole numbers of more than 4300 digits
        raise ValueError(f"{path} holds a number that is too long: {error}") from error


def whole(value: Any) -> bool:
    """Whether a value is a whole number from 0 to 2^63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def refuse_repeated(values: Iterable[Any], what: str) -> None:
    """Raise ValueError naming the first value that appears twice."""
    seen: set = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what}: {value!r} appears twice")
        seen.add(value)


def first_missing(paths: Iterable[str]) -> str | None:
    """The first path that does not exist; each folder is listed only once."""
    listed: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            return path
    return None
