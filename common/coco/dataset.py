"""COCO-format data: images with boxes, masks and keypoints; evaluation in `evaluate`.

M instances of an image, J keypoints. Boxes in the files are x, y, width, height; here they are
float32 x1, y1, x2, y2 in pixels. Category ids of a file may have gaps, any order and a 0; labels
are their ranks 0, 1, 2, ... (`label_of`). Joints in the files count pixel centres from 0; here they
are continuous, as boxes are: a pixel's centre is at + 0.5. Files are read whole, checked once, and
kept as arrays, so a set of 118k images is small in memory and cheap to hand to loader processes.
"""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.images import UnreadableImage, image_size, read_image

from .evaluate import sound_truth
from .fields import Categories, category_names, check_same_categories, read_annotations
from .files import without_collector
from .instances import find_instances
from .masks import decode_mask

Target = dict[str, Any]
Paths = str | Path | Sequence[str | Path]


class CocoDataset(Dataset):
    """Images and instances of one or several COCO-format files.

    Items are (image uint8 (3, H, W), target) after `transforms(image, target)`. The target holds
    boxes float32 (M, 4), labels int64 (M,), iscrowd bool (M,), area float32 (M,) in square pixels,
    image_id int, file str and size (H, W) as listed; by `kind` ("boxes", "masks", "keypoints") also
    masks bool (M, H, W) or keypoints float32 (M, J, 3): x, y, visibility 0, 1 or 2.

    root_images, annotation_file: a path each, or as many of both (`find_split` gives them).
    categories: those of the training set, where this set must follow it.
    keep_empty: False leaves out images without an instance that is not a crowd.
    strict: raise on bad instances, where else all are dropped or clipped with one warning.

    Attributes: ids (N,), files (N,), sizes (N, 2) height and width, label_of, category_ids and
    names by label, categories, problems (kind of bad instance -> count), annotation_files.
    """

    def __init__(
        self,
        root_images: Paths,
        annotation_file: Paths,
        *,
        kind: str = "boxes",
        transforms: Callable[[Tensor, Target], tuple[Any, Any]] | None = None,
        categories: Categories | None = None,
        keep_empty: bool = True,
        strict: bool = False,
    ) -> None:
        if kind not in ("boxes", "masks", "keypoints"):
            raise ValueError(f"kind is {kind!r}: choose 'boxes', 'masks' or 'keypoints'")
        self.kind, self.transforms = kind, transforms
        roots, self.annotation_files = _paths(root_images), _paths(annotation_file)
        if len(roots) != len(self.annotation_files):
            raise ValueError(f"{len(roots)} image folders, {len(self.annotation_files)} files")
        self.where = ", ".join(map(str, self.annotation_files))
        with without_collector():
            content = read_annotations(self.annotation_files, roots)
            self._label(content["categories"], categories)
            self._load(content, strict)
        self._serve(keep_empty)

    def _label(self, entries: list[dict], categories: Categories | None) -> None:
        """Number the categories: by rising id, or as in the training set."""
        names = category_names(entries)
        categories = categories or Categories(list(names), list(names.values()), self.where)
        check_same_categories(names, self.where, categories.by_id(), categories.where)
        names |= categories.by_id()
        self.category_ids = list(categories.ids)
        self.label_of = {category: label for label, category in enumerate(self.category_ids)}
        self.names = [names.get(category, str(category)) for category in self.category_ids]
        self.categories = Categories(self.category_ids, self.names, categories.where)

    def _load(self, content: dict[str, list[dict]], strict: bool) -> None:
        """Arrays over all images, and over all sound instances, sorted by image."""
        images, annotations = content["images"], content["annotations"]
        self.ids = np.array([i["id"] for i in images], np.int64)
        self.files = np.array([i["file_name"] for i in images], str)
        sizes = [(i["height"], i["width"]) for i in images]
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)
        unknown = next((a for a in annotations if a["category_id"] not in self.label_of), None)
        if unknown:
            raise ValueError(
                f"{self.where}: annotation {unknown.get('id')} of image {unknown['image_id']} is "
                f"of category {unknown['category_id']}, which is none of {sorted(self.label_of)} "
                f"in {self.categories.where}"
            )
        found = find_instances(content, self.where, kind=self.kind, strict=strict)
        self.problems, self._image, self._crowd = found.problems, found.image, found.crowd
        labels = [self.label_of[annotations[i]["category_id"]] for i in found.position.tolist()]
        self._labels = np.array(labels, np.int64)
        self._area = np.minimum(found.area, np.finfo(np.float32).max).astype(np.float32)
        limit = self.sizes[found.image][:, ::-1]  # width, height
        low, high = found.xywh[:, :2], found.xywh[:, :2] + found.xywh[:, 2:]
        boxes = np.concatenate([low.clip(0), np.minimum(high, limit)], 1)
        self._boxes = boxes.astype(np.float32)
        self._refuse_shares()
        if self.kind == "keypoints":
            seen = found.keypoints[..., 2:] > 0
            points = found.keypoints + np.where(seen, [0.5, 0.5, 0], 0)
            self._keypoints = points.astype(np.float32)
        elif self.kind == "masks":  # one buffer: Python lists would be copied into every worker
            pieces = [pickle.dumps(segmentation) for segmentation in found.segmentations]
            self._mask_stop = np.cumsum([len(p) for p in pieces], dtype=np.int64)
            self._masks = np.frombuffer(b"".join(pieces), np.uint8)

    def _refuse_shares(self) -> None:
        """Raise ValueError where the boxes are shares of the image, as in YOLO's files."""
        if len(self._boxes) and self._boxes.max() <= 1:
            raise ValueError(
                f"{self.where}: all {len(self._boxes)} boxes lie between 0 and 1, so they seem to "
                "be shares of the image: multiply them by its width and height"
            )

    def _serve(self, keep_empty: bool) -> None:
        """Where each image's instances start and stop; which images are served."""
        bounds = np.searchsorted(self._image, np.arange(len(self.ids) + 1))
        served = np.ones(len(self.ids), bool)
        if not keep_empty:
            served = np.bincount(self._image[~self._crowd], minlength=len(self.ids)) > 0
        self._served = served
        self._start, self._stop = bounds[:-1][served], bounds[1:][served]
        self.ids, self.files, self.sizes = self.ids[served], self.files[served], self.sizes[served]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        target = self.target(index)
        image = _read_as_listed(target["file"], target["size"])
        return self.transforms(image, target) if self.transforms else (image, target)

    def target(self, index: int) -> Target:
        """The target of one image as in the file, without reading the image."""
        part = slice(int(self._start[index]), int(self._stop[index]))
        height, width = self.sizes[index].tolist()
        target = {
            "boxes": torch.from_numpy(self._boxes[part].copy()),
            "labels": torch.from_numpy(self._labels[part].copy()),
            "iscrowd": torch.from_numpy(self._crowd[part].copy()),
            "area": torch.from_numpy(self._area[part].copy()),
            "image_id": int(self.ids[index]),
            "file": str(self.files[index]),
            "size": (height, width),
        }
        if self.kind == "keypoints":
            target["keypoints"] = torch.from_numpy(self._keypoints[part].copy())
        elif self.kind == "masks":
            target["masks"] = self._decode(part, height, width)
        return target

    def _decode(self, part: slice, height: int, width: int) -> Tensor:
        masks = np.zeros((part.stop - part.start, height, width), bool)
        for i, k in enumerate(range(part.start, part.stop)):
            start = self._mask_stop[k - 1] if k else 0
            segmentation = pickle.loads(self._masks[start : self._mask_stop[k]].data)
            masks[i] = decode_mask(segmentation, height, width)
        return torch.from_numpy(masks)

    def ground_truth(self) -> dict[str, Any]:
        """What `evaluate` compares with: the instances of the files that are served here.

        The files are read anew: their numbers have more digits than the arrays here.
        """
        content = read_annotations(self.annotation_files)
        truth = sound_truth(content, self.where, kind=self.kind, quiet=True)
        listed = {entry["id"] for entry in truth["categories"]}
        truth["categories"] += [
            {"id": category, "name": name}
            for category, name in zip(self.category_ids, self.names, strict=True)
            if category not in listed
        ]
        return truth

    def check_image(self, index: int) -> None:
        """Open the header of an image; UnreadableImage unless it has its listed size."""
        path, (height, width) = str(self.files[index]), self.sizes[index].tolist()
        stored = image_size(path)
        if stored != (height, width) and image_size(path, exif=True) != (height, width):
            raise _other_size(path, stored, (height, width))

    def sides(self) -> np.ndarray:
        """Width and height (M, 2) in pixels of all instances served that are not crowds."""
        kept = np.isin(self._image, np.flatnonzero(self._served)) & ~self._crowd
        return self._boxes[kept, 2:] - self._boxes[kept, :2]

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Instances per image (N,), and instances and crowds among them per label (K, 2)."""
        per_image = self._stop - self._start
        served = np.isin(self._image, np.flatnonzero(self._served))
        labels, K = self._labels[served], len(self.category_ids)
        crowds = np.bincount(labels[self._crowd[served]], minlength=K)
        return per_image, np.stack([np.bincount(labels, minlength=K), crowds], 1)

    def aspect_groups(self, *, minimum: int = 1) -> list[int]:
        """Per image 1 for portrait, else 0; all 0 where a group has fewer than `minimum`."""
        portrait = self.sizes[:, 0] > self.sizes[:, 1]
        if 0 < min(portrait.sum(), (~portrait).sum()) < minimum:
            return [0] * len(portrait)
        return portrait.astype(int).tolist()


def _paths(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _read_as_listed(path: str, size: tuple[int, int]) -> Tensor:
    """The image (3, H, W) in its listed size: turned by its EXIF tag or, where that fits, not."""
    image = read_image(path)
    if image.shape[1:] != size:
        image = read_image(path, exif=False)
    if image.shape[1:] != size:
        raise _other_size(path, image.shape[1:], size)
    return image


def _other_size(path: str, found: Sequence[int], listed: Sequence[int]) -> UnreadableImage:
    return UnreadableImage(
        f"{path} is {found[1]} x {found[0]} pixels, but listed as {listed[1]} x {listed[0]}: "
        "replace the file or correct its entry"
    )
