"""What a labelled set has: instances, images and joints, which the labels of others follow."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.coco.fields import check_structure
from common.coco.files import read_json
from common.coco.instances import find_sound


@dataclass
class LabelledCounts:
    """Counts without crowds; of keypoints only instances with a visible joint.

    images: all of them; annotated: those with an instance. instances: by category id, of all
    categories. joints: the visible ones. categories: the entries of the file. digest: of
    `hash_images`, of the annotated ones, which are what a training sees. where: the file.
    """

    images: int
    annotated: int
    instances: dict[int, int]
    joints: int
    categories: list[dict[str, Any]]
    digest: str
    where: str

    @property
    def total(self) -> int:
        """Instances of all categories."""
        return sum(self.instances.values())


def read_content(file: str | Path) -> dict[str, Any]:
    """The content of a COCO-format file, whose annotations are numbered anew: ids do not matter.

    Raises ValueError naming what is wrong.
    """
    content = read_json(file)
    listed = content.get("annotations") if isinstance(content, dict) else None
    for number, annotation in enumerate(listed if isinstance(listed, list) else (), 1):
        if isinstance(annotation, dict):
            annotation["id"] = number  # those of minival are floats, and some occur twice
    check_structure(content, str(file))
    return content


def keep_sound(content: dict[str, Any], where: str, kind: str) -> dict[str, Any]:
    """The content with the instances only that a training of this kind would use.

    kind: "boxes", "masks" or "keypoints". where: the file, for messages.
    """
    return find_sound(content, where, kind=kind).to_content(content, kind)


def hash_images(ids: Sequence[int] | np.ndarray) -> str:
    """Which images these are, in their order: a hash of their ids."""
    return hashlib.sha256(np.asarray(ids, np.int64).tobytes()).hexdigest()[:16]


def count_labelled(content: dict[str, Any], where: str, digest: str = "") -> LabelledCounts:
    """The counts of what `keep_sound`, or `CocoDataset.ground_truth`, gave.

    digest: of the images of a training that also sees those without an instance.
    """
    single = [a for a in content["annotations"] if not a["iscrowd"]]
    single = [a for a in single if a.get("num_keypoints") != 0]
    instances = {entry["id"]: 0 for entry in content["categories"]}
    for annotation in single:
        instances[annotation["category_id"]] += 1
    annotated = {annotation["image_id"] for annotation in single}
    listed = [entry["id"] for entry in content["images"] if entry["id"] in annotated]
    return LabelledCounts(
        images=len(content["images"]),
        annotated=len(annotated),
        instances=instances,
        joints=sum(a.get("num_keypoints", 0) for a in single),
        categories=content["categories"],
        digest=digest or hash_images(listed),
        where=where,
    )
