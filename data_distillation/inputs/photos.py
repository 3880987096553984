"""Images to label: a folder of them, or the `images` of a COCO-format file.

A file needs no annotations and no categories, as image_info_unlabeled2017.json has none.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.coco.fields import FIELDS, check_structure
from common.coco.files import first_missing, read_json, short_path
from common.images import UnreadableImage, find_images, image_size, read_image

SKIP = "bad_images=skip to leave such images out"
NARROW = 100  # the longer side in shorter ones, from which an image is refused


@dataclass
class Photos:
    """N images that are labelled in this order.

    root: the folder, below which `files` lie. ids: of the generated file. sizes: height and width
    as listed, None of a folder. bad_images: "raise" stops at an image that cannot be read, "skip"
    leaves it out. where: the folder or file, for messages.
    """

    root: Path
    files: list[str]
    ids: list[int]
    sizes: list[tuple[int, int] | None]
    where: str
    bad_images: str = "raise"
    skipped: dict[int, str] = field(default_factory=dict)  # index -> what is wrong with it

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """What the list is: SHA-256 of files, ids and listed sizes."""
        rows = [self.files, self.ids, self.sizes]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def read(self, index: int) -> Tensor | None:
        """An image float32 (3, H, W) in 0..1, upright or as it is listed; None of a bad one."""
        path, size = self.root / self.files[index], self.sizes[index]
        try:
            image = read_image(path)
            if size and image.shape[1:] != size:
                image = read_image(path, exif=False)
            self._compare(index, tuple(image.shape[1:]))
            require_wide(path, tuple(image.shape[1:]))
            return image / torch.tensor(255.0)
        except UnreadableImage as error:
            self._skip(index, error)
            return None

    def check(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        """Open the headers of these images; height and width of each that can be read.

        ValueError names the first file that is missing or, unless bad_images is "skip", unreadable.
        """
        indices = list(indices)
        missing = first_missing(str(self.root / self.files[index]) for index in indices)
        if missing:
            raise ValueError(
                f"{short_path(missing)} is listed in {self.where}, but does not exist: give "
                "the folder of the images by root=."
            )
        sizes = []
        for index in tqdm(indices, "looking at the images", unit="image", disable=None):
            path = self.root / self.files[index]
            try:
                size = image_size(path, exif=True)
                if self.sizes[index] and size != self.sizes[index]:
                    size = image_size(path)
                self._compare(index, size)
                require_wide(path, size)
                sizes.append(size)
            except UnreadableImage as error:
                self._skip(index, error)
        return sizes

    def _compare(self, index: int, size: tuple[int, ...]) -> None:
        """Raise UnreadableImage unless an image has the size that is listed."""
        listed = self.sizes[index]
        if listed and size != listed:
            raise UnreadableImage(
                f"{self.root / self.files[index]} is {size[1]} x {size[0]} pixels, but listed as "
                f"{listed[1]} x {listed[0]} in {self.where}"
            )

    def _skip(self, index: int, error: UnreadableImage) -> None:
        if self.bad_images != "skip":
            raise UnreadableImage(f"{error}, or {SKIP}.") from error
        self.skipped[index] = str(error)


def require_wide(path: Path, size: tuple[int, ...]) -> None:
    """Raise UnreadableImage for a strip of which a resized view would have no pixel left."""
    if min(size) * NARROW < max(size):
        raise UnreadableImage(f"{path} is {size[1]} x {size[0]} pixels, too narrow for a detector")


def find_photos(images: str | Path, root: str | Path = "", bad_images: str = "raise") -> Photos:
    """The images of a folder, recursively and sorted, or those that a COCO-format file lists.

    root: the folder of the images of a file; by default the one beside the file in which its first
    image lies. Raises ValueError where there are none.
    """
    images = Path(images)
    if images.is_dir():
        if root:
            raise ValueError(f"root={root} is of a file of images: images={images} is a folder.")
        ((_, paths),) = find_images(images, ["."])
        files = [Path(path).relative_to(images).as_posix() for path in paths]
        if not files:
            raise ValueError(f"{images} has no images: give a folder of JPEG, PNG or other images.")
        ids = list(range(1, len(files) + 1))
        return Photos(images, files, ids, [None] * len(files), str(images), bad_images)
    entries = _read_entries(images)
    files = [entry["file_name"] for entry in entries]
    ids = [entry["id"] for entry in entries]
    sizes = [(entry["height"], entry["width"]) for entry in entries]
    place = Path(root) if root else _find_root(images, files[0])
    if not place.is_dir():
        raise ValueError(f"root={root} is no folder: give the one of the images of {images}.")
    return Photos(place, files, ids, list(sizes), str(images), bad_images)


def _read_entries(file: Path) -> list[dict]:
    """The `images` of a COCO-format file, which may lack everything else."""
    content = read_json(file)
    images = content.get("images") if isinstance(content, dict) else None
    if images is None:
        raise ValueError(f"{file} has no list `images`: give a folder, or a COCO-format file.")
    nothing: dict[str, list] = {key: [] for key in FIELDS} | {
        "categories": [{"id": 1, "name": "any"}]
    }
    check_structure(nothing | {"images": images}, str(file))
    seen: set[str] = set()
    for entry in images:
        name = entry.get("file_name")
        inside = isinstance(name, str) and name and not Path(name).is_absolute()
        if not inside or ".." in Path(name).parts or name in seen:
            raise ValueError(
                f"{file}: image {entry['id']} has {name!r} as its `file_name`, which must be a "
                "path of its own below the image folder"
            )
        seen.add(name)
    return images


def _find_root(file: Path, first: str) -> Path:
    """The folder in which the first image lies, looked for where COCO has it."""
    folder, above = file.resolve().parent, file.resolve().parent.parent
    split = file.stem.rpartition("_")[2]  # image_info_unlabeled2017
    for place in (folder, folder / split, above / split, folder / "images", above / "images"):
        if (place / first).is_file():
            return place
    raise ValueError(
        f"{first}, the first image of {file}, lies neither beside it nor in {above / split}: give "
        "the folder of the images by root=."
    )
