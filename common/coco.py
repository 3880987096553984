"""COCO-format data: images with boxes, masks and keypoints; evaluation in `coco_eval`.

M instances of an image, J keypoints. Boxes in the files are x, y, width, height; here they are
float32 x1, y1, x2, y2 in pixels. Category ids of a file may have gaps, any order and a 0; labels
are their ranks 0, 1, 2, ... (`label_of`). Files are read whole, checked once, and kept as arrays,
so a set of 118k pictures is small in memory and cheap to hand to loader processes.
"""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Dataset

from common import coco_files
from common.coco_eval import evaluate, save_results, to_coco
from common.coco_files import find_split, has_split
from common.images import UnreadableImage, read_image

__all__ = [
    "CocoDataset",
    "decode_mask",
    "evaluate",
    "find_split",
    "has_split",
    "save_results",
    "to_coco",
]

Target = dict[str, Any]
Paths = str | Path | Sequence[str | Path]


class CocoDataset(Dataset):
    """Pictures and instances of one or several COCO-format files.

    Items are (image uint8 (3, H, W), target) after `transforms(image, target)`. The target holds
    boxes float32 (M, 4), labels int64 (M,), iscrowd bool (M,), area float32 (M,) in square pixels,
    image_id int, file str and size (H, W) as listed; by `kind` ("boxes", "masks", "keypoints") also
    masks bool (M, H, W) or keypoints float32 (M, J, 3): x, y, visibility 0, 1 or 2 as in the file.

    root_images, annotation_file: a path each, or as many of both (`find_split` gives them).
    label_of: category id -> label of the training set, where this set must follow it.
    keep_empty: False leaves out pictures without an instance that is not a crowd.
    strict: raise on bad instances, where else all are dropped or clipped with one warning.

    Attributes: ids (N,), files (N,), sizes (N, 2) height and width, label_of, category_ids and
    names by label, problems (kind of bad instance -> count), annotation_files.
    """

    def __init__(
        self,
        root_images: Paths,
        annotation_file: Paths,
        *,
        kind: str = "boxes",
        transforms: Callable[[Tensor, Target], tuple[Any, Any]] | None = None,
        label_of: dict[int, int] | None = None,
        keep_empty: bool = True,
        strict: bool = False,
    ) -> None:
        if kind not in ("boxes", "masks", "keypoints"):
            raise ValueError(f"kind is {kind!r}: choose 'boxes', 'masks' or 'keypoints'")
        self.kind, self.transforms = kind, transforms
        roots, self.annotation_files = _paths(root_images), _paths(annotation_file)
        if len(roots) != len(self.annotation_files):
            raise ValueError(f"{len(roots)} image folders, {len(self.annotation_files)} files")
        with coco_files.without_collector():
            self._load(roots, label_of, strict)
        self._serve(keep_empty)

    def _load(self, roots: list[Path], label_of: dict[int, int] | None, strict: bool) -> None:
        """Read the files; keep what is needed of them as arrays."""
        content = coco_files.read_annotations(self.annotation_files, roots)
        where = ", ".join(map(str, self.annotation_files))
        names = coco_files.category_names(content["categories"], where)
        self.label_of = label_of or {category: label for label, category in enumerate(names)}
        self.category_ids = sorted(self.label_of, key=self.label_of.__getitem__)
        self.names = [names.get(category, str(category)) for category in self.category_ids]
        images = content["images"]
        self.ids = np.array([i["id"] for i in images], np.int64)
        self.files = np.array([i["file_name"] for i in images], str)
        sizes = [(i["height"], i["width"]) for i in images]
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self._load_instances(content, where, strict)

    def _load_instances(self, content: dict[str, list[dict]], where: str, strict: bool) -> None:
        """Arrays over all sound instances, sorted by image."""
        annotations = content["annotations"]
        coco_files.check_references(annotations, self.ids.tolist(), self.label_of, where)
        position = {image: i for i, image in enumerate(self.ids.tolist())}
        image = np.array([position[a["image_id"]] for a in annotations], np.int64)
        xywh = coco_files.numbers(annotations, "bbox", 4)
        boxes, problems = coco_files.check_boxes(xywh, self.sizes[image])
        masks: list[bytes] = []
        if self.kind == "masks":
            masks, bad = coco_files.check_masks(annotations, self.sizes[image], where)
            problems |= bad
        keep = coco_files.report(problems, [a.get("id") for a in annotations], where, strict)
        self.problems = {name: int(bad.sum()) for name, bad in problems.items() if bad.any()}
        order = np.flatnonzero(keep)
        order = order[np.argsort(image[order], kind="stable")]
        self._image = image[order]
        self._boxes = boxes[order].astype(np.float32)
        labels = np.array([self.label_of[a["category_id"]] for a in annotations], np.int64)
        self._labels = labels[order]
        self._crowd = np.array([bool(a.get("iscrowd")) for a in annotations], bool)[order]
        area = coco_files.numbers(annotations, "area", 1)[order, 0].astype(np.float32)
        box_area = (self._boxes[:, 2:] - self._boxes[:, :2]).prod(1)
        self._area = np.where(np.isfinite(area), area, box_area)
        if self.kind == "keypoints":
            points = coco_files.check_keypoints(annotations, content["categories"], where)
            self._keypoints = points[order]
        elif self.kind == "masks":  # one buffer: Python lists would be copied into every worker
            pieces = [masks[i] for i in order]
            self._mask_stop = np.cumsum([len(p) for p in pieces], dtype=np.int64)
            self._masks = np.frombuffer(b"".join(pieces), np.uint8)

    def _serve(self, keep_empty: bool) -> None:
        """Where each picture's instances start and stop; which pictures are served."""
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
        """The target of one picture as in the file, without reading the picture."""
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

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Instances per picture (N,), and instances and crowds among them per label (K, 2)."""
        per_image = self._stop - self._start
        served = np.isin(self._image, np.flatnonzero(self._served))
        labels, K = self._labels[served], len(self.category_ids)
        crowds = np.bincount(labels[self._crowd[served]], minlength=K)
        return per_image, np.stack([np.bincount(labels, minlength=K), crowds], 1)

    def aspect_groups(self, *, minimum: int = 1) -> list[int]:
        """Per picture 1 for portrait, else 0; all 0 where a group has fewer than `minimum`."""
        portrait = self.sizes[:, 0] > self.sizes[:, 1]
        if 0 < min(portrait.sum(), (~portrait).sum()) < minimum:
            return [0] * len(portrait)
        return portrait.astype(int).tolist()


def _paths(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Mask bool (H, W) of polygons [[x1, y1, x2, y2, ...], ...] or of a run-length dict."""
    if isinstance(segmentation, list):
        code = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = rle.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return rle.decode(code).astype(bool)


def _read_as_listed(path: str, size: tuple[int, int]) -> Tensor:
    """The picture (3, H, W) in its listed size: turned by its EXIF tag or, where that fits, not."""
    image = read_image(path)
    if image.shape[1:] != size:
        image = read_image(path, exif=False)
    if image.shape[1:] != size:
        height, width = image.shape[1:]
        raise UnreadableImage(
            f"{path} is {width} x {height} pixels, but listed as {size[1]} x {size[0]}: replace "
            "the file or correct its entry"
        )
    return image
