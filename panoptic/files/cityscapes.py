"""Cityscapes: from gtFine's instance PNGs to COCO panoptic files.

H, W height and width. A pixel of `*_gtFine_instanceIds.png` is a label id (below 1000) or 1000
times a label id plus a number of the instance. A thing's label id alone marks a group that nobody
divided: a crowd. The files that are written are those of Cityscapes' own createPanopticImgs: the
segment id is the value of the pixel, the image id is city_sequence_frame, categories have label
ids (24 is a person), not train ids, and labels that the evaluation ignores are void.
"""

from pathlib import Path
from typing import Any

from .categories import Category
from .coco import Annotation
from .ids import present, relabel
from .pixels import read_labels
from .raw import RawSplit

LABELS = 34  # label ids are 0..33; those that are not below are ignored in the evaluation

_LISTED = (  # humans and vehicles are annotated one by one
    Category(7, "road", False, (128, 64, 128), "flat"),
    Category(8, "sidewalk", False, (244, 35, 232), "flat"),
    Category(11, "building", False, (70, 70, 70), "construction"),
    Category(12, "wall", False, (102, 102, 156), "construction"),
    Category(13, "fence", False, (190, 153, 153), "construction"),
    Category(17, "pole", False, (153, 153, 153), "object"),
    Category(19, "traffic light", False, (250, 170, 30), "object"),
    Category(20, "traffic sign", False, (220, 220, 0), "object"),
    Category(21, "vegetation", False, (107, 142, 35), "nature"),
    Category(22, "terrain", False, (152, 251, 152), "nature"),
    Category(23, "sky", False, (70, 130, 180), "sky"),
    Category(24, "person", True, (220, 20, 60), "human"),
    Category(25, "rider", True, (255, 0, 0), "human"),
    Category(26, "car", True, (0, 0, 142), "vehicle"),
    Category(27, "truck", True, (0, 0, 70), "vehicle"),
    Category(28, "bus", True, (0, 60, 100), "vehicle"),
    Category(31, "train", True, (0, 80, 100), "vehicle"),
    Category(32, "motorcycle", True, (0, 0, 230), "vehicle"),
    Category(33, "bicycle", True, (119, 11, 32), "vehicle"),
)
CATEGORIES = {category.id: category for category in _LISTED}


def open_split(root: str | Path, split: str) -> RawSplit:
    """The instance PNGs of a split by image id (city_sequence_frame), sorted.

    root: the folder with gtFine in it, or gtFine. Raises ValueError where there are none.
    """
    folder = _gt_folder(root) / split
    files = sorted(folder.glob("*/*_instanceIds.png"))
    if not files:
        raise ValueError(
            f"{folder} has no */*_instanceIds.png: expected "
            "ROOT/gtFine/{train,val,test}/<city>/<id>_gtFine_instanceIds.png"
        )
    return RawSplit(
        CATEGORIES,
        {file.name.replace("_gtFine_instanceIds.png", ""): file for file in files},
        decode,
        image_name="{}_gtFine_leftImg8bit.png",  # as in Cityscapes' own JSON
        png_name="{}_gtFine_panoptic.png",
    )


def decode(file: Path) -> Annotation:
    """Ids (H, W) int32 and segments of an instance PNG.

    Raises ValueError, naming the file, for a value that is no label's.
    """
    values = read_labels(file)
    numbers: dict[int, int] = {}
    segments: list[dict[str, Any]] = []
    for value in present(values):
        label = value if value < 1000 else value // 1000
        if label >= LABELS:
            raise ValueError(f"{file}: value {value} is of label {label}, and labels end at 33")
        if label in CATEGORIES:
            crowd = int(value < 1000 and CATEGORIES[label].isthing)
            numbers[value] = value
            segments.append({"id": value, "category_id": label, "iscrowd": crowd})
    return relabel(values, numbers), segments


def panoptic_json(root: str | Path, split: str) -> Path:
    """Where createPanopticImgs writes the JSON."""
    return _gt_folder(root) / f"cityscapes_panoptic_{split}.json"


def _gt_folder(root: str | Path) -> Path:
    """The folder gtFine, given it or the folder that it is in."""
    root = Path(root)
    return root / "gtFine" if (root / "gtFine").is_dir() else root
