"""Instance and semantic results in files, as the official script reads them, image by image.

H x W pixels; segmentations are run lengths or polygons.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..files.categories import whole
from ..files.coco import Result, load_categories, read_json
from ..files.detection import decode, run_lengths
from ..files.entries import image_entries, is_image_id
from ..files.ids import SegmentIds
from .runs import merge_runs
from .search import Prediction

Entry = Mapping[str, Any]


class Results:
    """Instance and semantic results by image."""

    def __init__(self, *, instances: str, semantic: str, images: str, categories: str) -> None:
        """Read the four files; ValueError, naming file and entry, for what makes no sense."""
        self.images = image_entries(read_json(images), images)
        for number, image in self.images.items():
            if not {"height", "width"} <= image.keys():
                raise ValueError(f"{images}: image {number!r} has no height and width")
        self.categories = load_categories(categories)
        self.unlisted: dict[str, int] = {}  # results of images that are not listed, by file
        self.instances = self._read(instances, things=True)
        self.semantic = self._read(semantic, things=False)

    def _read(self, file: str, *, things: bool) -> dict[int | str, list[Entry]]:
        """Checked entries by image, in the order of the file; of instances, or of stuff."""
        content = read_json(file)
        entries = content.get("annotations") if isinstance(content, dict) else content
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"{file} is no list of results {{image_id, category_id, ...}}")
        found: dict[int | str, list[Entry]] = {number: [] for number in self.images}
        for place, entry in enumerate(entries):
            image, number = entry.get("image_id"), whole(entry.get("category_id"))
            where = f"{file}: result {place} (of image {image!r:.40})"
            category = None if number is None else self.categories.get(number)
            if not is_image_id(image):
                raise ValueError(f"{where} has no `image_id` that is text or a whole number")
            if category is None:
                raise ValueError(
                    f"{where} is of category {entry.get('category_id')!r:.40}, which is not one of "
                    f"the {len(self.categories)} categories"
                )
            if things and not category.isthing:
                raise ValueError(f"{where} is of {category.name}, which is stuff, not a thing")
            if things and not _is_finite(entry.get("score")):
                raise ValueError(f"{where} has no `score`: these must be detection results")
            if image not in found:
                self.unlisted[file] = self.unlisted.get(file, 0) + 1
            elif things or not category.isthing:
                found[image].append({**entry, "category_id": number, "where": where})
        return found

    def size(self, number: int | str) -> tuple[int, int]:
        """Height and width of an image."""
        return self.images[number]["height"], self.images[number]["width"]

    def prediction(self, number: int | str, *, confidence: float = 0.0) -> Prediction:
        """Of one image, turned on its side, without instances below `confidence`.

        Run-length codes go down the columns, so that the masks come out as (N, W, H) at no cost.
        """
        things, scores, labels, stuff = self._masks(number, confidence, decode)
        height, width = self.size(number)
        return Prediction(
            np.stack([mask.T for mask in things]) if things else np.zeros((0, width, height), bool),
            np.array(scores, np.float64),
            labels,
            [(category, mask.T) for category, mask in stuff],
            image=number,
        )

    def merge(
        self, number: int | str, *, confidence: float, overlap: float, stuff_area: float
    ) -> Result:
        """Image id, map (H, W) int32 with ids of the categories' colours, and segments.

        The thresholds are those of `merge.merge`.
        """
        masks, size = self._masks(number, confidence, run_lengths), self.size(number)
        try:
            drawn, segments = merge_runs(
                *masks, size, confidence=confidence, overlap=overlap, stuff_area=stuff_area
            )
        except ValueError as error:
            raise ValueError(f"image {number!r}: {error}") from error
        ids = SegmentIds(self.categories)
        table = np.zeros(len(segments) + 1, np.int32)
        for segment in segments:
            segment.pop("instance", None)
            table[segment["id"]] = ids.new(segment["category_id"])
            segment["id"] = int(table[segment["id"]])
        return number, table[drawn], segments

    def _masks(
        self, number: int | str, confidence: float, read: Callable[..., np.ndarray]
    ) -> tuple[list[np.ndarray], list[float], list[int], list[tuple[int, np.ndarray]]]:
        """Masks, scores and category ids of instances, and stuff as pairs of category and mask."""
        # The others would be dropped anyway: that saves reading their masks.
        instances = [e for e in self.instances[number] if e["score"] >= confidence]

        def mask(entry: Entry) -> np.ndarray:
            return read(entry.get("segmentation"), *self.size(number), where=entry["where"])

        return (
            [mask(entry) for entry in instances],
            [entry["score"] for entry in instances],
            [entry["category_id"] for entry in instances],
            [(entry["category_id"], mask(entry)) for entry in self.semantic[number]],
        )


def _is_finite(score: Any) -> bool:
    """Whether it is a number that a float can hold."""
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return number and abs(score) <= sys.float_info.max
