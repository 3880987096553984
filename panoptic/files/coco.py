"""COCO panoptic files: a JSON with what the segments are, and a PNG per image with where they are.

H, W height and width. The pixel of a PNG is red + 256 green + 65536 blue = the id of its segment,
0 = void. The JSON has `images`, `categories` and `annotations` of image_id, file_name (the PNG's)
and segments_info: dicts of id, category_id and, in ground truth, iscrowd, area in pixels and bbox
[x, y, width, height]. Predictions may leave out all but image_id, file_name, id and category_id.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Category, read_categories, to_entries, whole
from .entries import check_segments, complete, image_entries, is_image_id, refuse_unsafe
from .pixels import encode_png, png_size, read_bytes, read_ids, write_bytes, write_ids

Annotation = tuple[np.ndarray, list[dict[str, Any]]]  # ids (H, W) int32, segments
Result = tuple[int | str, np.ndarray, Sequence[Mapping[str, Any]]]  # image id, ids, segments


def read_json(path: str | Path) -> Any:
    """Content of a JSON file in UTF-8, 16 or 32; ValueError names the file and what is wrong."""
    data = read_bytes(path)
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON, or was cut off: {error.msg} at line {error.lineno}, column "
            f"{error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {error.encoding.upper()} text: {error.reason}, byte {error.start}"
        ) from error
    except ValueError as error:  # Python refuses whole numbers of more than 4300 digits
        raise ValueError(f"{path} holds a number that is too long: {error}") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file whole or not at all; NumPy's numbers are written as Python's."""
    write_bytes(path, (json.dumps(content, allow_nan=False, default=_plain) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be written as JSON")


def load_categories(path: str | Path) -> dict[int, Category]:
    """Categories of a JSON that is a list of them, or has one as `categories`."""
    content = read_json(path)
    entries = content.get("categories") if isinstance(content, dict) else content
    return read_categories(entries, str(path))


class PanopticFiles:
    """A COCO panoptic annotation file and its folder of PNGs, checked when opened.

    categories: by id, in file order. images: COCO's image entries, those that have an annotation,
    in the order of the annotations; of one that the JSON does not list only the id is known.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        folder: str | Path | None = None,
        *,
        categories: Mapping[int, Category] | None = None,
        zero: bool = False,
    ) -> None:
        """folder: of the PNGs; not given, X for X.json. categories: for a JSON that has none.

        zero: let segments have the id 0, as the official evaluator does for predictions. Raises
        ValueError, naming file and image, for what is missing, doubled, unknown or malformed in
        the JSON, and for a missing folder. PNGs are not opened.
        """
        self.file = Path(annotation_file)
        self.folder = panoptic_folder(self.file, folder)
        content = read_json(self.file)
        if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
            raise ValueError(f"{self.file} has no list `annotations`: it is not COCO panoptic")
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}, the folder of {self.file}'s PNGs, does not exist")
        if "categories" in content:
            self.categories = read_categories(content["categories"], str(self.file))
        elif categories is not None:
            self.categories = dict(categories)
        else:
            raise ValueError(f"{self.file} has no list `categories`")
        self._annotations: dict[int | str, dict[str, Any]] = {}
        for annotation in content["annotations"]:
            self._add(annotation, zero)
        entries = image_entries(content, str(self.file)) if "images" in content else {}
        unlisted = [i for i in self._annotations if "images" in content and i not in entries]
        if unlisted:
            raise ValueError(
                f"{self.file}: image {unlisted[0]!r} is annotated, but not in `images`"
            )
        self._entries = {n: entries.get(n, {"id": n}) for n in self._annotations}
        self.images = [*self._entries.values()]

    def _add(self, annotation: Any, zero: bool) -> None:
        """Check and keep one annotation."""
        image = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not is_image_id(image):
            raise ValueError(
                f"{self.file}: an annotation has no `image_id` that is text or a whole number "
                f"below 2^63: {annotation!r:.80}"
            )
        where = f"{self.file}: image {image!r}"
        if image in self._annotations:
            raise ValueError(f"{where} has two annotations")
        refuse_unsafe(annotation.get("file_name"), where)
        check_segments(annotation.get("segments_info"), self.categories.keys(), where, zero=zero)
        self._annotations[image] = annotation

    def __len__(self) -> int:
        return len(self._annotations)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._annotations

    def only(self, image_ids: Iterable[int | str]) -> "PanopticFiles":
        """The same files with some of the images, in the order given. Raises for unknown ids."""
        part = copy(self)
        part._annotations = {number: self._annotation(number) for number in image_ids}
        part._entries = {number: self._entries[number] for number in part._annotations}
        part.images = [*part._entries.values()]
        return part

    def _annotation(self, image_id: int | str) -> dict[str, Any]:
        if image_id not in self._annotations:
            raise ValueError(f"{self.file} has no annotation of image {image_id!r}")
        return self._annotations[image_id]

    @property
    def image_ids(self) -> list[int | str]:
        """The annotated images, in file order."""
        return list(self._annotations)

    def size(self, image_id: int | str) -> tuple[int, int]:
        """Height and width of an image, from the JSON or else the PNG."""
        entry = self._entries[image_id]
        known = "height" in entry and "width" in entry
        return (entry["height"], entry["width"]) if known else png_size(self.path(image_id))

    def read(self, image_id: int | str) -> Annotation:
        """Ids and segments of an image, with areas and boxes as counted; see `complete`."""
        ids, where = self.ids(image_id), f"{self.path(image_id)} (image {image_id!r})"
        return ids, complete(ids, self.segments(image_id), where=where, strict=False)

    def segments(self, image_id: int | str) -> list[dict[str, Any]]:
        """Copies of the `segments_info` of an image, each with `iscrowd`."""
        segments = self._annotation(image_id)["segments_info"]
        numbers = [{key: whole(s[key]) for key in ("id", "category_id")} for s in segments]
        return [{"iscrowd": 0, **s, **n} for s, n in zip(segments, numbers, strict=True)]

    def require_pngs(self) -> None:
        """Raise ValueError for the first PNG that does not exist; each folder is listed once."""
        listed: dict[Path, set[str]] = {}
        for path in map(self.path, self._annotations):
            folder = path.parent
            if folder not in listed:
                listed[folder] = {*os.listdir(folder)} if folder.is_dir() else set()
            if path.name not in listed[folder]:
                raise ValueError(f"{path} does not exist, but {self.file} lists it")

    def write_beside(self, image_id: int | str, folder: str | Path, pixels: np.ndarray) -> None:
        """Write pixels as a PNG of another folder, by the name of the image's PNG in this one."""
        name = self.path(image_id).relative_to(self.folder)
        write_bytes(Path(folder) / name, encode_png(pixels))

    def path(self, image_id: int | str) -> Path:
        """The PNG of an image."""
        return self.folder / self._annotation(image_id)["file_name"]

    def ids(self, image_id: int | str) -> np.ndarray:
        """Ids (H, W) int32 of an image; ValueError also where the JSON gives another size."""
        ids = read_ids(self.path(image_id))
        entry = self._entries[image_id]
        size = (entry.get("height", ids.shape[0]), entry.get("width", ids.shape[1]))
        if ids.shape != size:
            raise ValueError(
                f"{self.path(image_id)} is {ids.shape[1]} x {ids.shape[0]} pixels, but image "
                f"{image_id!r} is {size[1]} x {size[0]} in {self.file}"
            )
        return ids


def panoptic_folder(file: str | Path, folder: str | Path | None = None) -> Path:
    """Where the PNGs of a panoptic JSON are: `folder`, by default X for X.json."""
    return Path(folder) if folder is not None else Path(file).with_suffix("")


def require_apart(
    outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]
) -> None:
    """Raise ValueError where an output is one of the inputs; both by name, None or "" for none."""
    read = {Path(path).resolve(): name for name, path in inputs.items() if path}
    for name, path in outputs.items():
        if path and (other := read.get(Path(path).resolve())):
            raise ValueError(f"{name} would overwrite {other}, {path}: give another name")


def png_name(image: Mapping[str, Any]) -> str:
    """The name of an image's panoptic PNG: that of the image, with its suffix replaced."""
    return str(Path(image["file_name"]).with_suffix(".png"))


def write_panoptic(
    annotation_file: str | Path,
    folder: str | Path | None = None,
    *,
    categories: Mapping[int, Category],
    images: Iterable[Mapping[str, Any]],
    results: Iterable[Result],
    names: Mapping[Any, str] | None = None,
) -> int:
    """Write COCO panoptic files; returns the number of annotated images.

    folder: for the PNGs; not given, X for X.json. images: COCO's entries (id, file_name, ...).
    results: image id, ids (H, W) and segments, as they come; area and bbox are filled in. names:
    of the PNGs by image id, where they are not the image's with .png. Each file appears whole or
    not at all, the JSON last. Raises ValueError as `complete` does, naming the image.
    """
    annotation_file = Path(annotation_file)
    folder = panoptic_folder(annotation_file, folder)
    entries = image_entries({"images": list(images)}, str(annotation_file))
    names = names or {number: png_name(entry) for number, entry in entries.items()}
    annotations: list[dict[str, Any]] = []
    written: dict[str, int | str] = {}
    for image, ids, segments in results:
        where = f"image {image!r}"
        if image not in entries:
            raise ValueError(f"{where} has a result, but is not among the images")
        name = names[image]
        if name in written:
            raise ValueError(f"{where} and {written[name]!r} would both be written as {name}")
        written[name] = image
        info = complete(ids, segments, where=where, categories=categories)
        write_ids(folder / name, ids)
        number = entries[image]["id"]
        annotations.append({"image_id": number, "file_name": name, "segments_info": info})
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [dict(entry) for entry in entries.values()],
        "annotations": annotations,
        "categories": to_entries(categories),
    }
    write_json(annotation_file, content)
    return len(annotations)
