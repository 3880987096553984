"""`Scenes`: rendered scenes as a data set with boxes, masks, keypoints and scene graphs."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from .annotate import KEYPOINTS, SKELETON, keypoints, visible_boxes
from .cache import cache_folder, fill, read_shard
from .place import place, place_all
from .render import RENDERER, render
from .scene import Scene
from .world import ATTRIBUTES, World

_SHARD_BYTES = 4 << 20
_BATCH = 64  # scenes placed and rendered at a time


class Scenes(Dataset):
    """`count` scenes of a `World`, from index `start` of the stream `seed`, rendered once.

    Images are cached on disk (see `cache`) and memory-mapped. Items are

        image uint8 (3, H, W), {"boxes": float32 (M, 4) xyxy around the visible pixels,
        "labels": int64 (M,), "iscrowd": bool (M,), "area": float32 (M,) visible pixels,
        "image_id": int, "file": "scenes/<seed>/<index>", "size": (H, W),
        "masks": bool (M, H, W), "keypoints": float32 (M, 9, 3)}

    the last two where asked for; a pixel's centre is at + 0.5. Distractors and clutter are not in
    the target, nor is a solid without a visible pixel (possible with `min_visible=0` only).
    """

    def __init__(
        self,
        world: World,
        *,
        count: int,
        seed: int = 0,
        start: int = 0,
        classes_by: tuple[str, ...] = ("shape",),
        cache: Path | None = None,
        masks: bool = False,
        keypoints: bool = False,
    ) -> None:
        if count < 1 or start < 0 or seed < 0:
            raise ValueError(
                f"Scenes needs count >= 1, start >= 0 and seed >= 0, not {count}, {start}, {seed}"
            )
        self.world, self.count, self.seed, self.start = world, count, seed, start
        self.classes_by = tuple(classes_by)
        self.names = world.classes(self.classes_by)
        self.category_ids = [k + 1 for k in range(len(self.names))]  # of `coco`, by label
        self.files = [f"scenes/{seed}/{start + i}" for i in range(count)]
        self.masks, self.keypoints = masks, keypoints
        self._strides = _strides(world, self.classes_by)
        self._dtype = record_type(world)
        room = _SHARD_BYTES // self._dtype.itemsize
        self._length = max(64, 1 << max(0, room.bit_length() - 1))  # records per shard
        key = hashlib.sha256(repr((RENDERER, world)).encode()).hexdigest()[:16]
        self.folder = (cache or cache_folder()) / "scenes" / key
        self._open: dict[int, np.ndarray] = {}
        shards = {self._path(n): self._span(n) for n, _, _ in self._spans()}
        fill(shards, self._dtype, self._make)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        record = self._record(i)
        image = torch.from_numpy(record["image"].copy())
        solids = record["solids"]
        solids = solids[solids["area"] > 0]
        target = {
            "boxes": torch.from_numpy(solids["box"].astype(np.float32)),
            "labels": torch.from_numpy(self._labels(solids)),
            "iscrowd": torch.zeros(len(solids), dtype=torch.bool),
            "area": torch.from_numpy(solids["area"].astype(np.float32)),
            "image_id": self.index(i),
            "file": f"scenes/{self.seed}/{self.index(i)}",
            "size": (self.world.height, self.world.width),
        }
        if self.masks:
            masks = record["ids"][None] == solids["id"][:, None, None]
            target["masks"] = torch.from_numpy(masks)
        if self.keypoints:
            target["keypoints"] = torch.from_numpy(solids["keypoints"].copy())
        return image, target

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # workers map the shards themselves

    def index(self, i: int) -> int:
        """Index in the stream, and image id, of item i."""
        if not -self.count <= i < self.count:
            raise IndexError(f"scene {i} of {self.count}")
        return self.start + i % self.count

    def scene(self, i: int) -> Scene:
        """What item i shows."""
        return place(self.world, self.seed, self.index(i))

    def regions(self, i: int) -> Tensor:
        """Stuff (H, W) uint8: index in `world.REGIONS` of the ground, also behind solids."""
        return torch.from_numpy(self._record(i)["regions"].copy())

    def ids(self, i: int) -> Tensor:
        """Instances (H, W) uint8: 0 no solid, j + 1 is object j of `scene(i)`."""
        return torch.from_numpy(self._record(i)["ids"].copy())

    def images(self) -> Tensor:
        """All images (N, 3, H, W) uint8 in memory."""
        out = np.empty((self.count, 3, self.world.height, self.world.width), np.uint8)
        for n, first, last in self._spans():
            out[first:last] = self._shard(n)["image"]
        return torch.from_numpy(out)

    def labels(self) -> Tensor:
        """Class (N,) int64 of the solid with most visible pixels; -1 where there is none."""
        out = np.empty(self.count, np.int64)
        for n, first, last in self._spans():
            solids = self._shard(n)["solids"]
            biggest = solids["area"].argmax(1)
            solids = solids[np.arange(len(solids)), biggest]
            out[first:last] = np.where(solids["area"] > 0, self._labels(solids), -1)
        return torch.from_numpy(out)

    def coco(self, kind: str = "boxes") -> dict:
        """Ground truth in COCO's JSON format; kind is "boxes", "masks" or "keypoints".

        Category k + 1 is class k of `names`. A keypoint's x, y count pixel centres from 0, as in
        COCO's files; those of the items are continuous, a pixel's centre at + 0.5.
        """
        if kind not in ("boxes", "masks", "keypoints"):
            raise ValueError(f"kind {kind!r} is not one of boxes, masks, keypoints")
        size = {"height": self.world.height, "width": self.world.width}
        names = {"keypoints": list(KEYPOINTS), "skeleton": [list(edge) for edge in SKELETON]}
        extra = names if kind == "keypoints" else {}
        images: list[dict] = []
        annotations: list[dict] = []
        for i in range(self.count):
            index = self.index(i)
            images.append({"id": index, "file_name": f"scenes/{self.seed}/{index}", **size})
            record = self._record(i)
            solids = record["solids"][record["solids"]["area"] > 0]
            for solid, label in zip(solids, self._labels(solids).tolist(), strict=True):
                row = {"id": len(annotations) + 1, "image_id": index, "category_id": label + 1}
                annotations.append(row | _annotation(record["ids"], solid, kind))
        return {
            "info": {"description": f"rendered scenes, seed {self.seed}"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k + 1, "name": n, **extra} for k, n in enumerate(self.names)],
        }

    def _labels(self, solids: np.ndarray) -> np.ndarray:
        """Classes (M,) int64 of stored solids (M,)."""
        return (solids["attributes"] * self._strides).sum(-1)

    def _spans(self) -> list[tuple[int, int, int]]:
        """Shard number, first item and end of every shard."""
        step = self._length
        return [(i // step, i, min(i + step, self.count)) for i in range(0, self.count, step)]

    def _path(self, n: int) -> Path:
        first, last = self._span(n)
        return self.folder / f"{self.seed}-{first}-{last}.npy"

    def _span(self, n: int) -> tuple[int, int]:
        first = self.start + n * self._length
        return first, min(first + self._length, self.start + self.count)

    def _shard(self, n: int) -> np.ndarray:
        if n not in self._open:
            first, last = self._span(n)
            self._open[n] = read_shard(self._path(n), self._dtype, last - first)
        return self._open[n]

    def _record(self, i: int) -> np.void:
        place = self.index(i) - self.start
        return self._shard(place // self._length)[place % self._length]

    def _make(self, first: int, last: int) -> np.ndarray:
        """Records of scenes first..last - 1."""
        parts = []
        for begin in range(first, last, _BATCH):
            indices = range(begin, min(begin + _BATCH, last))
            parts.append(records(self.world, place_all(self.world, self.seed, indices)))
        return np.concatenate(parts)


def _strides(world: World, by: tuple[str, ...]) -> np.ndarray:
    """Weights (4,) int64 of a solid's attribute numbers in its class, see `World.classes`."""
    strides = np.zeros(len(ATTRIBUTES), np.int64)
    step = 1
    for name in reversed(by):
        strides[ATTRIBUTES.index(name)] = step
        step *= len(world.values(name))
    return strides


def _annotation(ids: np.ndarray, solid: np.void, kind: str) -> dict:
    """What COCO's format says of one solid, without its numbers."""
    x1, y1, x2, y2 = (float(v) for v in solid["box"])
    area = float(solid["area"])
    annotation = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0}
    if kind == "masks":
        rle = coco_mask.encode(np.asfortranarray(ids == solid["id"]).astype(np.uint8))
        size = [int(v) for v in rle["size"]]
        annotation["segmentation"] = {"size": size, "counts": rle["counts"].decode("ascii")}
    if kind == "keypoints":
        points = solid["keypoints"].astype(np.float64)
        points[:, :2] -= np.where(points[:, 2:] > 0, 0.5, 0)
        annotation["keypoints"] = [float(v) for v in points.reshape(-1)]
        annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
    return annotation


def record_type(world: World) -> np.dtype:
    """One scene as the cache stores it, with room for the largest number of labelled solids."""
    size = (world.height, world.width)
    solid = [
        ("id", "u1"),
        ("attributes", "u1", (len(ATTRIBUTES),)),
        ("box", "<i2", (4,)),
        ("area", "<i4"),
        ("keypoints", "<f4", (len(KEYPOINTS), 3)),
    ]
    return np.dtype(
        [
            ("image", "u1", (3, *size)),
            ("ids", "u1", size),
            ("regions", "u1", size),
            ("solids", solid, (max(1, world.objects[1]),)),
        ]
    )


def records(world: World, scenes: list[Scene]) -> np.ndarray:
    """Render scenes into an array (N,) of `record_type`."""
    out = np.zeros(len(scenes), record_type(world))
    rendered = render(world, scenes)
    out["image"] = rendered.images.numpy()
    out["ids"] = rendered.ids.numpy()
    out["regions"] = rendered.regions.numpy()
    solids = out["solids"]
    boxes, areas = visible_boxes(out["ids"], solids.shape[1])
    points = keypoints(scenes)
    for i, scene in enumerate(scenes):
        for j, solid in enumerate(scene.objects):
            if not solid.labelled:
                break
            values = [world.values(name).index(getattr(solid, name)) for name in ATTRIBUTES]
            solids[i, j] = (j + 1, values, boxes[i, j], areas[i, j], points[i][j])
    return out
