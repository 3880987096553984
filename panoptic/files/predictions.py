"""Predictions as COCO panoptic files, written by several processes, each its share of the PNGs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import dist

from .categories import Category, to_entries
from .coco import panoptic_folder, write_json
from .entries import complete, refuse_unsafe
from .pixels import write_ids

KEYS = ("id", "category_id", "iscrowd", "area", "bbox", "score")  # of a segment, as they are saved


class Files:
    """A JSON file, whose PNGs stand in the folder of the same name."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.annotations: list[dict[str, Any]] = []

    def add(self, image: int | str, ids: np.ndarray, segments: Sequence[Mapping[str, Any]]) -> None:
        """Write the map (H, W) of an image as a PNG.

        Raises ValueError for an image id that makes no file name, and as `complete` does.
        """
        name = f"{image:012d}.png" if isinstance(image, int) else f"{image}.png"
        refuse_unsafe(name, f"the prediction of image {image!r}")
        write_ids(panoptic_folder(self.file) / name, ids)
        segments = complete(ids, segments, where=f"image {image}")
        info = [{key: segment[key] for key in KEYS if key in segment} for segment in segments]
        self.annotations.append({"image_id": image, "file_name": name, "segments_info": info})

    def close(
        self, images: Sequence[Mapping[str, Any]], categories: Mapping[int, Category]
    ) -> None:
        """Write the JSON of all processes' images, in the order of COCO's entries `images`."""
        shares = dist.gather(self.annotations)
        if dist.is_main():
            annotations = {entry["image_id"]: entry for share in shares for entry in share}
            content = {
                "images": images,
                "annotations": [annotations[image["id"]] for image in images],
                "categories": to_entries(categories),
            }
            write_json(self.file, content)
