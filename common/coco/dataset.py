"""COCO-format data: images with boxes, masks and keypoints; evaluation in `evaluate`.

M instances of an image, J keypoints. Boxes in the files are x, y, width, height; here they are
float32 x1, y1, x2, y2 in pixels. Category ids of a file may have gaps, any order and a 0; labels
are their ranks 0, 1, 2, ... (`label_of`). Joints in the files count pixel centres from 0; here they
are continuous, as boxes are: a pixel's centre is at + 0.5. Files are read whole, checked once, and
kept as arrays, so a set of 118k images is small in memory and cheap to hand to loader processes.
"""

import pickle
from collections.abc import Callable, Sequence
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.images import UnreadableImage, image_size, read_image

from .fields import Categories, category_names, check_same_categories, read_annotations
from .files import without_collector
from .instances import find_sound
from .masks import decode_mask

Target = dict[str, Any]
Paths = str | Path | Sequence[str | Path]


class CocoDataset(Dataset):
    """Images and instances of one or several COCO-format files.

    Items are (image uint8 (3, H, W), target) after `transforms(image, target)`. The target holds
    boxes float32 (M, 4), labels int64 (M,), iscrowd bool (M,), area float32 (M,) in square pixels,
    image_id int, file str and size (H, W) as listed; by `kind` ("boxes", "masks", "keypoints") also
    masks bool (M, H, W) or keypoints float32 (M, J, 3): x, y, visibility 0, 1 or 2.

    partial: of kind "masks", instances without a mask stay, with their box: has_mask bool (M,)
    tells which have one, masks bool (m, H, W) are those of these m. Without a mask is an instance
    whose `segmentation` is missing, null, [], of polygons of fewer than 3 points only, or of run
    lengths that set no pixel; one that is damaged is a bad instance as ever.

    root_images, annotation_file: a path each, or as many of both (`find_split` gives them).
    categories: those of the training set, where this set must follow it.
    keep_empty: False leaves out images without an instance that is not a crowd.
    strict: raise on bad instances, where else all are dropped or clipped with one warning.

    Attributes: ids (N,), files (N,), sizes (N, 2) height and width, label_of, category_ids and
    names by label, categories, joints (names of the keypoints, where a category gives some),
    problems (kind of bad instance -> count), annotation_files.
    """

    def __init__(
        self,
        root_images: Paths,
        annotation_file: Paths,
        *,
        kind: str = "boxes",
        partial: bool = False,
        transforms: Callable[[Tensor, Target], tuple[Any, Any]] | None = None,
        categories: Categories | None = None,
        keep_empty: bool = True,
        strict: bool = False,
    ) -> None:
        if kind not in ("boxes", "masks", "keypoints"):
            raise ValueError(f"kind is {kind!r}: choose 'boxes', 'masks' or 'keypoints'")
        if partial and kind != "masks":
            raise ValueError(f"partial=True is of kind='masks', not {kind!r}")
        self.kind, self.partial, self.transforms = kind, partial, transforms
        roots, self.annotation_files = _paths(root_images), _paths(annotation_file)
        if len(roots) != len(self.annotation_files):
            raise ValueError(f"{len(roots)} image folders, {len(self.annotation_files)} files")
        self.where = ", ".join(map(str, self.annotation_files))
        with without_collector():
            content = read_annotations(self.annotation_files, roots)
            self._label(content["categories"], categories)
            self.joints = joint_names(content["categories"])
            self._load(content, strict=strict, keep_empty=keep_empty)

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

    def _load(self, content: dict[str, list[dict]], *, strict: bool, keep_empty: bool) -> None:
        """Arrays over the images served, and over their sound instances, sorted by image."""
        labels = self.label_of
        unknown = next((a for a in content["annotations"] if a["category_id"] not in labels), None)
        if unknown:
            raise ValueError(
                f"{self.where}: annotation {unknown.get('id')} of image {unknown['image_id']} is "
                f"of category {unknown['category_id']}, which is none of {sorted(labels)} in "
                f"{self.categories.where}"
            )
        images = content["images"]
        found = find_sound(content, self.where, kind=self.kind, partial=self.partial, strict=strict)
        self.problems = found.problems
        served = np.ones(len(images), bool)
        if not keep_empty:
            served = np.bincount(found.image[~found.crowd], minlength=len(images)) > 0
        kept = served[found.image]
        image = found.image[kept]
        self.ids = np.array([i["id"] for i in images], np.int64)[served]
        self.files = np.array([i["file_name"] for i in images], str)[served]
        sizes = np.array([(i["height"], i["width"]) for i in images], np.int64).reshape(-1, 2)
        self.sizes = sizes[served]
        self._bounds = np.searchsorted(image, [*np.flatnonzero(served), len(images)])
        xywh = found.xywh[kept]
        high = np.minimum(xywh[:, :2] + xywh[:, 2:], sizes[image][:, ::-1])
        area = np.minimum(found.area[kept], np.finfo(np.float32).max)
        self._arrays: dict[str, np.ndarray] = {
            "boxes": np.concatenate([xywh[:, :2].clip(0), high], 1).astype(np.float32),
            "labels": np.array([labels[c] for c in found.category[kept].tolist()], np.int64),
            "iscrowd": found.crowd[kept],
            "area": area.astype(np.float32),
        }
        if len(image) and self._arrays["boxes"].max() <= 1:
            raise ValueError(
                f"{self.where}: all {len(image)} boxes lie between 0 and 1, so they seem to be "
                "shares of the image: multiply them by its width and height"
            )
        if self.kind == "keypoints":
            points = found.keypoints[kept]
            points += np.where(points[..., 2:] > 0, [0.5, 0.5, 0], 0)
            self._arrays["keypoints"] = points.astype(np.float32)
        elif self.kind == "masks":  # one buffer: Python lists would be copied into every worker
            shapes = list(compress(found.segmentations, kept))
            if self.partial:
                self._arrays["has_mask"] = np.array([s is not None for s in shapes], bool)
            parts = (shapes[i:j] for i, j in pairwise(self._bounds))
            pieces = [pickle.dumps([s for s in part if s is not None]) for part in parts]
            self._piece_bounds = np.cumsum([0, *map(len, pieces)])
            self._pieces = np.frombuffer(b"".join(pieces), np.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        target = self.target(index)
        image = _read_as_listed(target["file"], target["size"])
        return self.transforms(image, target) if self.transforms else (image, target)

    def target(self, index: int, *, decode: bool = True) -> Target:
        """The target of one image as in the file, without reading the image.

        decode: False leaves out the masks, which take the most time.
        """
        index = range(len(self))[index]
        part = slice(*self._bounds[index : index + 2])
        target: Target = {k: torch.from_numpy(v[part].copy()) for k, v in self._arrays.items()}
        height, width = self.sizes[index].tolist()
        if self.kind == "masks" and decode:
            shapes = pickle.loads(self._pieces[slice(*self._piece_bounds[index : index + 2])].data)
            masks = np.array([decode_mask(shape, height, width) for shape in shapes], bool)
            target["masks"] = torch.from_numpy(masks.reshape(-1, height, width))
        file = str(self.files[index])
        return target | {"image_id": int(self.ids[index]), "file": file, "size": (height, width)}

    def ground_truth(self, *, boxes: bool = False) -> dict[str, Any]:
        """What `evaluate` compares with: the instances of the files that are served here.

        Those of a partial set that have no mask are left out; with `boxes` they are there, and the
        masks are not. The files are read anew: their numbers have more digits than the arrays here.
        """
        content = read_annotations(self.annotation_files)
        found = find_sound(content, self.where, kind=self.kind, partial=self.partial, quiet=True)
        truth = found.to_content(content, "boxes" if boxes else self.kind)
        if self.partial and not boxes:
            truth["annotations"] = [a for a in truth["annotations"] if a["segmentation"]]
        listed = {entry["id"] for entry in truth["categories"]}
        truth["categories"] += [
            {"id": category, "name": name}
            for category, name in zip(self.category_ids, self.names, strict=True)
            if category not in listed
        ]
        return truth

    def check_image(self, index: int) -> None:
        """Open the header of an image; UnreadableImage unless it has its listed size."""
        path, size = str(self.files[index]), tuple(self.sizes[index].tolist())
        if not any(image_size(path, exif=exif) == size for exif in (False, True)):
            raise _other_size(path, image_size(path), size)

    def sides(self) -> np.ndarray:
        """Width and height (M, 2) in pixels of all instances that are not crowds."""
        boxes = self._arrays["boxes"][~self._arrays["iscrowd"]]
        return boxes[:, 2:] - boxes[:, :2]

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Instances per image (N,), and instances and crowds among them per label (K, 2)."""
        labels, K = self._arrays["labels"], len(self.category_ids)
        crowds = np.bincount(labels[self._arrays["iscrowd"]], minlength=K)
        per_class = np.stack([np.bincount(labels, minlength=K), crowds], 1)
        return np.diff(self._bounds), per_class

    def aspect_groups(self) -> list[int]:
        """Per image 1 for portrait, else 0."""
        return (self.sizes[:, 0] > self.sizes[:, 1]).astype(int).tolist()


def joint_names(categories: Sequence[dict]) -> list[str]:
    """The names of the keypoints, of the first category that has some."""
    named = (c["keypoints"] for c in categories if isinstance(c.get("keypoints"), list))
    return [str(name) for name in next(named, [])]


def _paths(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _read_as_listed(path: str, size: tuple[int, int]) -> Tensor:
    """The image (3, H, W) in its listed size: turned by its EXIF tag or, where that fits, not."""
    for exif in (True, False):
        image = read_image(path, exif=exif)
        if image.shape[1:] == size:
            return image
    raise _other_size(path, image.shape[1:], size)


def _other_size(path: str, found: Sequence[int], listed: Sequence[int]) -> UnreadableImage:
    return UnreadableImage(
        f"{path} is {found[1]} x {found[0]} pixels, but listed as {listed[1]} x {listed[0]}: "
        "replace the file or correct its entry"
    )
