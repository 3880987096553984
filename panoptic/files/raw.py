"""One split of a data set as it is distributed, and its way into COCO panoptic files.

`cityscapes.py`, `ade20k.py` and `vistas.py` each know one layout and offer the same functions,
given the data set's folder and a split:

    open_split(root, split)     a `RawSplit`; ValueError, with the layout expected, for no files
    panoptic_json(root, split)  where the converted split has its JSON
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .categories import Category
from .coco import Annotation, write_panoptic
from .pixels import png_size


@dataclass(frozen=True)
class RawSplit:
    """Panoptic maps in a data set's own PNGs.

    files: the PNG of each image by image id. decode: ids and segments of such a file. image_name,
    png_name: what the converted files say of an image id.
    """

    categories: dict[int, Category]
    files: dict[str, Path]
    decode: Callable[[Path], Annotation]
    image_name: str = "{}.jpg"
    png_name: str = "{}.png"

    @property
    def image_ids(self) -> list[str]:
        """The images, in the order of their files."""
        return list(self.files)

    def size(self, image_id: int | str) -> tuple[int, int]:
        """Height and width of an image."""
        return png_size(self.files[str(image_id)])

    def read(self, image_id: int | str) -> Annotation:
        """Ids and segments of an image."""
        return self.decode(self.files[str(image_id)])


def write_split(raw: RawSplit, out: str | Path) -> None:
    """Write the split as COCO panoptic files: the JSON `out`, PNGs in the folder of that name."""
    images = []
    for number in raw.image_ids:
        height, width = raw.size(number)
        name = raw.image_name.format(number)
        images.append({"id": number, "width": width, "height": height, "file_name": name})
    write_panoptic(
        out,
        categories=raw.categories,
        images=images,
        results=((number, *raw.read(number)) for number in raw.image_ids),
        names={number: raw.png_name.format(number) for number in raw.image_ids},
    )
