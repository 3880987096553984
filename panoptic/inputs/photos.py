"""Photographs with panoptic maps: COCO, Cityscapes, ADE20k and Mapillary Vistas.

H x W pixels. The last three are read from the COCO panoptic files that `convert.py` writes, or, if
there are none, from the files as distributed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.coco.files import first_missing
from common.images import UnreadableImage, read_image

from ..files import ade20k, cityscapes, vistas
from ..files.coco import PanopticFiles
from ..files.raw import RawSplit

LAYOUTS = {
    "coco": "ROOT/annotations/panoptic_{split}2017.json (or panoptic_{split}.json), the folder of "
    "PNGs of the same name beside it, and ROOT/{split}2017/*.jpg (or ROOT/{split}/)",
    "cityscapes": "ROOT/leftImg8bit/{split}/<city>/*_leftImg8bit.png and "
    "ROOT/gtFine/{split}/<city>/*_gtFine_instanceIds.png, or gtFine/cityscapes_panoptic_{split}",
    "ade20k": "ROOT/images/{split}/*.jpg, ROOT/annotations/{split}/*.png, "
    "ROOT/annotations_instance/{split}/*.png, objectInfo150.txt and categoryMapping.txt",
    "vistas": "ROOT/{split}/images/*.jpg, ROOT/{split}/instances/*.png and ROOT/config.json",
}
PHOTOS = {
    "cityscapes": "leftImg8bit/{split}/{city}/{number}_leftImg8bit.png",
    "ade20k": "images/{split}/{number}.jpg",
    "vistas": "{split}/images/{number}.jpg",
}
DISTRIBUTED = {"cityscapes": cityscapes, "ade20k": ade20k, "vistas": vistas}


class Photos:
    """One split: (image uint8 (3, H, W), ids int32 (H, W), segments).

    photos: the photograph of each image id that `source` has a map of. Raises ValueError, beginning
    with `where`, where there is no image, and for one that does not exist.
    """

    def __init__(
        self, source: PanopticFiles | RawSplit, photos: Mapping[int | str, Path], *, where: str
    ) -> None:
        if not photos:
            raise ValueError(f"{where} has no images: check the data set")
        self.sizes = [source.size(number) for number in photos]
        self.files = [str(file) for file in photos.values()]
        missing = first_missing(self.files)
        if missing:
            raise ValueError(f"{missing} does not exist, but {where} has its panoptic map")
        self.source, self.image_ids, self.categories = source, list(photos), source.categories

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
        ids, segments = self.source.read(self.image_ids[index])
        image = read_image(self.files[index])
        if image.shape[1:] != ids.shape:  # the map may be of the image as stored
            image = read_image(self.files[index], exif=False)
        if image.shape[1:] != ids.shape:
            (h, w), (height, width) = image.shape[1:], ids.shape
            raise UnreadableImage(
                f"{self.files[index]} is {w} x {h} pixels, but its panoptic map {width} x "
                f"{height}: replace the one or the other"
            )
        return image, torch.from_numpy(ids), segments


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
            panoptic.require_pngs()
            photos = {i["id"]: root / name / str(i.get("file_name")) for i in panoptic.images}
            return Photos(panoptic, photos, where=str(file))
    layout = LAYOUTS["coco"].replace("{split}", split)
    raise ValueError(f"{root} has no panoptic annotations of {split!r}: data=coco expects {layout}")


def _open_distributed(name: str, root: Path, split: str) -> Photos:
    """A data set as it was downloaded, or its panoptic files where they have been written."""
    file, where = DISTRIBUTED[name].panoptic_json(root, split), str(root)
    source: PanopticFiles | RawSplit
    if file.is_file():
        source, where = PanopticFiles(file), str(file)
        source.require_pngs()
    else:
        source = DISTRIBUTED[name].open_split(root, split)
    photos = {}
    for number in source.image_ids:
        city = str(number).split("_")[0]
        photos[number] = root / PHOTOS[name].format(split=split, city=city, number=number)
    return Photos(source, photos, where=where)
