"""Photographs with panoptic maps: COCO, Cityscapes, ADE20k and Mapillary Vistas.

H x W pixels. The last three are read from their COCO panoptic files where `convert.py` has written
them, else from the files that they are distributed in.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.coco.files import first_missing
from common.images import UnreadableImage, image_size, read_image

from ..files import ade20k, cityscapes, vistas
from ..files.categories import Category
from ..files.coco import PanopticFiles
from ..files.entries import complete
from ..files.raw import Annotation

LAYOUTS = {
    "coco": "ROOT/annotations/panoptic_{split}2017.json (or panoptic_{split}.json), the folder of "
    "PNGs of the same name beside it, and ROOT/{split}2017/*.jpg (or ROOT/{split}/)",
    "cityscapes": "ROOT/leftImg8bit/{split}/<city>/*_leftImg8bit.png and "
    "ROOT/gtFine/{split}/<city>/*_gtFine_instanceIds.png, or gtFine/cityscapes_panoptic_{split}",
    "ade20k": "ROOT/images/{split}/*.jpg, ROOT/annotations/{split}/*.png, "
    "ROOT/annotations_instance/{split}/*.png, objectInfo150.txt and categoryMapping.txt",
    "vistas": "ROOT/{split}/images/*.jpg, ROOT/{split}/instances/*.png and ROOT/config.json",
}
DISTRIBUTED = {"cityscapes": cityscapes, "ade20k": ade20k, "vistas": vistas}


class Photos:
    """One split: (image uint8 (3, H, W), ids int32 (H, W), segments).

    files: of the photographs. sizes: height and width of each. read: ids and segments of an image
    id. Raises ValueError where there is no image, or one that does not exist.
    """

    def __init__(
        self,
        files: Sequence[Path],
        image_ids: Sequence[int | str],
        sizes: Sequence[tuple[int, int]],
        categories: Mapping[int, Category],
        read: Callable[[int | str], Annotation],
        *,
        where: str,
    ) -> None:
        if not files:
            raise ValueError(f"{where} has no images: check the data set")
        self.files = [str(file) for file in files]
        missing = first_missing(self.files)
        if missing:
            raise ValueError(f"{missing} does not exist, but {where} has its panoptic map")
        self.image_ids, self.sizes = list(image_ids), list(sizes)
        self.categories, self.read = dict(categories), read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
        ids, segments = self.annotation(index)
        image = read_image(self.files[index])
        if image.shape[1:] != ids.shape:  # the map may be of the image as stored
            image = read_image(self.files[index], exif=False)
        if image.shape[1:] != ids.shape:
            (h, w), (height, width) = image.shape[1:], ids.shape
            raise UnreadableImage(
                f"{self.files[index]} is {w} x {h} pixels, but its panoptic map {width} x "
                f"{height}: replace the one or the other"
            )
        return image, ids, segments

    def annotation(self, index: int) -> tuple[Tensor, list[dict[str, Any]]]:
        """Ids and segments of one image."""
        ids, segments = self.read(self.image_ids[index])
        return torch.from_numpy(ids), segments


def open_photos(name: str, folder: str, split: str) -> Photos:
    """The split of the data set `name`; a ValueError tells the layout that is expected."""
    root = Path(folder)
    if not root.is_dir():
        layout = LAYOUTS[name].replace("{split}", split)
        raise ValueError(f"{root} is not a folder: data={name} expects {layout}")
    return _open_coco(root, split) if name == "coco" else _open_distributed(name, root, split)


def _open_coco(root: Path, split: str) -> Photos:
    """COCO itself, or a set of one's own in its format."""
    for name in (f"{split}2017", split):
        file = root / "annotations" / f"panoptic_{name}.json"
        if file.is_file():
            panoptic = PanopticFiles(file)
            names = [str(image.get("file_name")) for image in panoptic.images]
            return _open_files(panoptic, [root / name / one for one in names])
    layout = LAYOUTS["coco"].replace("{split}", split)
    raise ValueError(f"{root} has no panoptic annotations of {split!r}: data=coco expects {layout}")


def _open_distributed(name: str, root: Path, split: str) -> Photos:
    """A data set as it was downloaded, or its panoptic files where they have been written."""
    layout = DISTRIBUTED[name]
    converted = layout.converted(root, split)
    if converted.is_file():
        panoptic = PanopticFiles(converted)
        photos = [layout.photo(root, split, image["id"]) for image in panoptic.images]
        return _open_files(panoptic, photos)
    raw = layout.open_split(root, split)
    photos = [layout.photo(root, split, number) for number in raw.files]
    sizes = [image_size(file) for file in raw.files.values()]
    return Photos(photos, list(raw.files), sizes, raw.categories, raw.read, where=str(root))


def _open_files(panoptic: PanopticFiles, photos: Sequence[Path]) -> Photos:
    """Photographs in the order of a panoptic file's images."""
    numbers = [image["id"] for image in panoptic.images]
    panoptic.require_pngs()
    sizes = [
        (image["height"], image["width"])
        if "height" in image and "width" in image
        else image_size(panoptic.path(image["id"]))
        for image in panoptic.images
    ]
    read = partial(_read, panoptic)
    return Photos(photos, numbers, sizes, panoptic.categories, read, where=str(panoptic.file))


def _read(panoptic: PanopticFiles, number: int | str) -> Annotation:
    """Ids and segments; a module's function, so that a spawned loader process can be sent it."""
    ids, where = panoptic.ids(number), f"{panoptic.path(number)} (image {number})"
    segments = panoptic.segments(number)
    return ids, complete(ids, segments, where=where, categories=panoptic.categories, strict=False)
