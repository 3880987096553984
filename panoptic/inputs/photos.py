"""Photographs with panoptic maps: COCO, Cityscapes, ADE20k and Mapillary Vistas.

H x W pixels. The last three are read from their COCO panoptic files where `convert.py` has written
them, else from the files that they are distributed in.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.coco.files import first_missing
from common.images import UnreadableImage, image_size, read_image
from panoptic.files import ade20k, cityscapes, vistas
from panoptic.files.categories import Category
from panoptic.files.coco import PanopticFiles, checked
from panoptic.files.pixels import read_labels

Annotation = tuple[np.ndarray, list[dict[str, Any]]]  # ids (H, W), segments

LAYOUTS = {
    "coco": "ROOT/annotations/panoptic_{split}2017.json (or panoptic_{split}.json), the folder of "
    "PNGs of the same name beside it, and ROOT/{split}2017/*.jpg (or ROOT/{split}/)",
    "cityscapes": "ROOT/leftImg8bit/{split}/<city>/*_leftImg8bit.png and "
    "ROOT/gtFine/{split}/<city>/*_gtFine_instanceIds.png, or gtFine/cityscapes_panoptic_{split}",
    "ade20k": "ROOT/images/{split}/*.jpg, ROOT/annotations/{split}/*.png, "
    "ROOT/annotations_instance/{split}/*.png, objectInfo150.txt and categoryMapping.txt",
    "vistas": "ROOT/{split}/images/*.jpg, ROOT/{split}/instances/*.png and ROOT/config.json",
}
VERSIONS = ("", "v1.2", "v2.0")  # of Vistas, in the order in which they are looked for


class Photos:
    """One split: (image uint8 (3, H, W), ids int32 (H, W), segments).

    files: of the photographs. sizes: height and width of each. read: ids and segments of an image
    id. Raises ValueError where there is no picture, or one that does not exist.
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
        if image.shape[1:] != ids.shape:  # the map may be of the picture as stored
            image = read_image(self.files[index], exif=False)
        if image.shape[1:] != ids.shape:
            (h, w), (height, width) = image.shape[1:], ids.shape
            raise UnreadableImage(
                f"{self.files[index]} is {w} x {h} pixels, but its panoptic map {width} x "
                f"{height}: replace the one or the other"
            )
        return image, ids, segments

    def annotation(self, index: int) -> tuple[Tensor, list[dict[str, Any]]]:
        """Ids and segments of one picture."""
        ids, segments = self.read(self.image_ids[index])
        return torch.from_numpy(ids), segments


def open_photos(name: str, folder: str, split: str) -> Photos:
    """The split of the data set `name`; a ValueError tells the layout that is expected."""
    root = Path(folder)
    if not root.is_dir():
        layout = LAYOUTS[name].replace("{split}", split)
        raise ValueError(f"{root} is not a folder: data={name} expects {layout}")
    opened = {"coco": _coco, "cityscapes": _cityscapes, "ade20k": _ade20k, "vistas": _vistas}
    return opened[name](root, split)


def _coco(root: Path, split: str) -> Photos:
    """COCO itself, or a set of one's own in its format."""
    for name in (f"{split}2017", split):
        file = root / "annotations" / f"panoptic_{name}.json"
        if file.is_file():
            panoptic = PanopticFiles(file)
            names = [str(image.get("file_name")) for image in panoptic.images]
            return _from_files(panoptic, [root / name / one for one in names])
    layout = LAYOUTS["coco"].replace("{split}", split)
    raise ValueError(f"{root} has no panoptic annotations of {split!r}: data=coco expects {layout}")


def _cityscapes(root: Path, split: str) -> Photos:
    folder = root / "leftImg8bit" / split
    converted = cityscapes.gt_folder(root) / f"cityscapes_panoptic_{split}.json"
    if converted.is_file():
        panoptic = PanopticFiles(converted)
        numbers = [image["id"] for image in panoptic.images]
    else:
        maps = cityscapes.instance_files(root, split)
        numbers = list(maps)
    photos = [folder / str(i).split("_")[0] / f"{i}_leftImg8bit.png" for i in numbers]
    if converted.is_file():
        return _from_files(panoptic, photos)
    read = partial(_read_cityscapes, maps)
    sizes = [image_size(file) for file in maps.values()]
    return Photos(photos, numbers, sizes, cityscapes.CATEGORIES, read, where=str(root))


def _ade20k(root: Path, split: str) -> Photos:
    folder, converted = root / "images" / split, root / f"ade20k_panoptic_{split}.json"
    if converted.is_file():
        panoptic = PanopticFiles(converted)
        return _from_files(panoptic, [folder / f"{image['id']}.jpg" for image in panoptic.images])
    maps = ade20k.maps(root, split)
    categories, things = ade20k.read_categories(root)
    sizes = [image_size(semantic) for semantic, _ in maps.values()]
    read = partial(_read_ade20k, maps, categories, things)
    photos = [folder / f"{number}.jpg" for number in maps]
    return Photos(photos, list(maps), sizes, categories, read, where=str(root))


def _vistas(root: Path, split: str) -> Photos:
    folder, converted = root / split / "images", root / f"vistas_panoptic_{split}.json"
    if converted.is_file():
        panoptic = PanopticFiles(converted)
        return _from_files(panoptic, [folder / f"{image['id']}.jpg" for image in panoptic.images])
    known = [v for v in VERSIONS if (root / (f"config_{v}.json" if v else "config.json")).is_file()]
    config, maps = vistas.instance_files(root, split, known[0] if known else "")
    labels, evaluated = vistas.read_labels_file(config)
    categories = {c.id: c for c, used in zip(labels, evaluated, strict=True) if used}
    sizes = [image_size(file) for file in maps.values()]
    read = partial(_read_vistas, maps, labels, evaluated)
    photos = [folder / f"{number}.jpg" for number in maps]
    return Photos(photos, list(maps), sizes, categories, read, where=str(root))


def _from_files(panoptic: PanopticFiles, photos: Sequence[Path]) -> Photos:
    """Photographs in the order of a panoptic file's images."""
    numbers = [image["id"] for image in panoptic.images]
    missing = panoptic.missing()
    if missing:
        raise ValueError(f"{missing} does not exist, but {panoptic.file} lists it")
    sizes = [
        (image["height"], image["width"])
        if "height" in image and "width" in image
        else image_size(panoptic.path(image["id"]))
        for image in panoptic.images
    ]
    read = partial(_read_files, panoptic)
    return Photos(photos, numbers, sizes, panoptic.categories, read, where=str(panoptic.file))


# Functions of a module, so that a reader can be sent to a spawned loader process.


def _read_files(panoptic: PanopticFiles, number: int | str) -> Annotation:
    ids, where = panoptic.ids(number), f"{panoptic.path(number)} (image {number})"
    segments = panoptic.segments(number)
    return ids, checked(ids, segments, where=where, categories=panoptic.categories, strict=False)


def _read_cityscapes(maps: Mapping[str, Path], number: int | str) -> Annotation:
    file = maps[str(number)]
    return cityscapes.from_instance_ids(read_labels(file), where=str(file))


def _read_ade20k(
    maps: Mapping[str, tuple[Path, Path]],
    categories: dict[int, Category],
    things: dict[int, int],
    number: int | str,
) -> Annotation:
    return ade20k.read_maps(maps[str(number)], categories, things)


def _read_vistas(
    maps: Mapping[str, Path], labels: list[Category], evaluated: list[bool], number: int | str
) -> Annotation:
    file = maps[str(number)]
    return vistas.from_instances(read_labels(file), labels, evaluated, where=str(file))
