"""What a teacher found in each image, in JSON lines: written by shards, taken up after a kill.

A folder holds shard-I-of-N.jsonl. Its first line is {"info": ...}: what the findings follow from.
Then each image has a line, in the order of the list; shard i has images i, i + n, i + 2 n, ...

    {"file", "id", "width", "height", "boxes": [[x1, y1, x2, y2]], "scores", "labels": category
     ids, "keypoints": [[[x, y, confidence]]] or "masks": [run lengths]}, or
    {"file", "id", "skipped": why it could not be read}

Boxes and joints are continuous pixels of the image (a pixel's centre is at + 0.5). Everything above
`merge.score` is there, so thresholds are chosen afterwards, as often as one likes.

M detections of an image, J joints.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from tqdm import tqdm

from common import dist
from common.coco.files import json_faults

from ..distill import Merge, Transforms, distill
from ..inputs.photos import Photos
from ..weights.teacher import NO_CLASS, Teacher
from .shards import (
    claim,
    count_done,
    parse_shard,
    read_info,
    require_same,
    shard_file,
    write_line,
)
from .transforms import joint_shift


@dataclass
class Record:
    """What was found in one image.

    boxes: (M, 4) float32 xyxy in pixels. scores: (M,) float32. categories: (M,) int64 ids of the
    labelled file. keypoints: (M, J, 3) float32 continuous x, y, confidence; masks: M run lengths.
    """

    file: str
    id: int
    width: int
    height: int
    boxes: np.ndarray
    scores: np.ndarray
    categories: np.ndarray
    keypoints: np.ndarray | None = None
    masks: list[dict[str, Any]] | None = None


@dataclass
class Records:
    """The images of all shards in the order of the list; `skipped`: those that were unreadable."""

    info: dict[str, Any]
    images: list[Record]
    skipped: list[str]

    def shift_joints(self, joint_offset: float) -> None:
        """Make the joints continuous that a network found which learned with this offset."""
        shift = joint_shift(joint_offset, Transforms(**self.info["transforms"]))
        for image in self.images:
            if image.keypoints is not None:
                image.keypoints[..., :2] += shift


@torch.no_grad()
def annotate(
    teacher: Teacher,
    photos: Photos,
    transforms: Transforms,
    merge: Merge,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
    amp: bool = False,
) -> None:
    """Write what the teacher finds in the images of one shard, Sec. 3; go on where it stopped.

    device: of the teacher, by default the CPU. amp: bfloat16 in the network. Raises ValueError
    where the folder holds records of other settings, or another process is writing this shard.
    """
    info = describe(teacher, photos, transforms, merge, shard, amp=amp)
    mine = range(shard[0], len(photos), shard[1])
    teacher.model.to(device or torch.device("cpu"))
    with claim(folder, shard):
        require_same(folder, info)
        path = shard_file(folder, shard)
        done = count_done(path, [photos.files[index] for index in mine])
        with path.open("ab") as file:
            if done < 0:
                write_line(file, {"info": info})
            done = max(done, 0)
            bar = tqdm(
                mine[done:],
                "labelling",
                total=len(mine),
                initial=done,
                unit="image",
                disable=None if dist.is_main() else True,
            )
            for index in bar:
                write_line(file, label_image(teacher, photos, index, transforms, merge, amp))


def label_image(
    teacher: Teacher,
    photos: Photos,
    index: int,
    transforms: Transforms,
    merge: Merge,
    amp: bool,
) -> dict[str, Any]:
    """The line of one image."""
    line: dict[str, Any] = {"file": photos.files[index], "id": photos.ids[index]}
    image = photos.read(index)
    if image is None:
        return line | {"skipped": photos.skipped[index]}
    device = next(teacher.model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        (found,) = distill(teacher.model, [image], transforms, merge, teacher.mirrored)
    ids = np.array([NO_CLASS, *teacher.category_ids], np.int64)[found["labels"].numpy()]
    kept = torch.from_numpy(ids != NO_CLASS)
    line |= {"width": image.shape[2], "height": image.shape[1]}
    line |= {name: to_list(found[name][kept]) for name in ("boxes", "scores")}
    line["labels"] = ids[kept.numpy()].tolist()
    if "keypoints" in found:
        line["keypoints"] = to_list(found["keypoints"][kept])
    elif "masks" in found:
        line["masks"] = [encode(mask) for mask in found["masks"][kept]]
    return line


def to_list(values: Tensor) -> list:
    """Float values in as few digits as give the same float32 again."""
    exact = values.detach().cpu().float().numpy()
    short = exact.astype(str).astype(np.float64)
    return np.where(short.astype(np.float32) == exact, short, exact).tolist()


def encode(mask: Tensor) -> dict[str, Any]:
    """Run lengths of a mask bool (H, W), as COCO has them."""
    code = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return code | {"counts": code["counts"].decode()}


def describe(
    teacher: Teacher,
    photos: Photos,
    transforms: Transforms,
    merge: Merge,
    shard: tuple[int, int],
    *,
    amp: bool,
) -> dict[str, Any]:
    """The first line of a shard: all that its findings follow from."""
    return {
        "teacher": teacher.where,
        "digest": teacher.digest,
        "kind": teacher.kind,
        "category_ids": list(teacher.category_ids),
        "mirrored": None if teacher.mirrored is None else list(teacher.mirrored),
        "transforms": asdict(transforms),
        "merge": asdict(merge),
        "candidates": "before NMS" if isinstance(teacher.model, GeneralizedRCNN) else "after NMS",
        "amp": amp,
        "shard": f"{shard[0]}/{shard[1]}",
        "images": len(photos),
        "list": photos.digest(),
        "folder": str(photos.root.resolve()),
    }


def read_records(folder: Path) -> Records:
    """The records of all shards, in the order of the list; ValueError where one is missing."""
    info = read_info(folder)
    _, count = parse_shard(info["shard"])
    shards = [read_shard(shard_file(folder, (number, count))) for number in range(count)]
    lines = [next(shards[index % count]) for index in range(info["images"])]
    images = [line for line in lines if isinstance(line, Record)]
    return Records(info, images, [line for line in lines if isinstance(line, str)])


def read_shard(path: Path) -> Iterator[Record | str]:
    """Each image of a shard; of an unreadable one, why it was skipped."""
    with path.open("rb") as file:
        file.readline()
        for line in file:
            with json_faults(path):
                content = json.loads(line)
            yield content["skipped"] if "skipped" in content else to_record(content)


def to_record(content: dict[str, Any]) -> Record:
    """A line as arrays."""
    count = len(content["scores"])
    keypoints = content.get("keypoints")
    return Record(
        content["file"],
        content["id"],
        content["width"],
        content["height"],
        boxes=np.array(content["boxes"], np.float32).reshape(count, 4),
        scores=np.array(content["scores"], np.float32),
        categories=np.array(content["labels"], np.int64),
        keypoints=None if keypoints is None else to_points(keypoints),
        masks=content.get("masks"),
    )


def to_points(points: list) -> np.ndarray:
    """(M, J, 3) float32; (0, 0, 3) where nothing was found."""
    return np.array(points, np.float32) if points else np.zeros((0, 0, 3), np.float32)
