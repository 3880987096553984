"""Which detections become labels, Sec. 3: as many an image as people have labelled.

    mu = instances / labelled images;  k = mu * images, rounded;  the k surest detections are kept

Joints are chosen in the same way: as many an instance as in the labelled set. The result is a file
in COCO's format, whose annotations the loss cannot tell from manual ones (Sec. 3).

M detections of an image, J joints.
"""

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torchvision.ops import box_iou

from common.coco.evaluate import to_coco
from common.config import require_choice, require_range

from ..distill import count_to_keep, kth_largest
from .counts import LabelledCounts
from .records import Record, Records
from .report import Class, Report

SAME_PLACE = 0.9  # IoU from which on two boxes of two classes are one object with two labels


@dataclass
class Labels:
    """How detections become labels."""

    match: str = "count"  # count: as many an image as labelled, Sec. 3 | fixed: by score
    factor: float = 1.0  # times mu
    score: float = 0.5  # the threshold of match=fixed
    keypoint_match: str = "count"  # count: as many joints an instance as labelled | fixed | all
    keypoint_score: float = 0.0  # the threshold of keypoint_match=fixed, a confidence
    # Unstated: one threshold for all classes or one for each; the paper's keypoints have one class.
    per_class: bool = False
    # Unstated: the labelled images that count in mu, which halves or doubles the labels of COCO.
    denominator: str = "all"  # all | annotated: those with an instance, as Detectron trains on
    ignore: float = 0.0  # detections from this score up to the threshold become crowds; 0: none
    cross_class_nms: float = 0.0  # IoU above which the less sure of two classes goes; 0: off
    keep_empty: str = "auto"  # images without a label: true | false | auto: all but of keypoints

    def __post_init__(self) -> None:
        self.keep_empty = self.keep_empty.lower()  # `true` of a command line is True
        require_choice("labels.match", self.match, ("count", "fixed"))
        require_choice("labels.keypoint_match", self.keypoint_match, ("count", "fixed", "all"))
        require_choice("labels.denominator", self.denominator, ("all", "annotated"))
        require_choice("labels.keep_empty", self.keep_empty, ("auto", "true", "false"))
        require_range("labels.factor", self.factor, 0, 1000)
        if not self.factor:
            raise ValueError("labels.factor=0 would keep no label: it must be above 0.")
        if not math.isfinite(self.keypoint_score):
            raise ValueError(f"labels.keypoint_score={self.keypoint_score}: give a finite number.")
        for name in ("score", "ignore", "cross_class_nms"):
            require_range(f"labels.{name}", getattr(self, name), 0, 1)
        for name, option, choice in (
            ("score", "match", "fixed"),
            ("factor", "match", "count"),
            ("keypoint_score", "keypoint_match", "fixed"),
        ):
            value, chosen = getattr(self, name), getattr(self, option)
            if chosen != choice and value != getattr(Labels, name):
                raise ValueError(
                    f"labels.{name}={value:g} has no effect with labels.{option}={chosen}: leave "
                    f"it out, or give labels.{option}={choice}."
                )


def choose(
    records: Records, labelled: LabelledCounts, labels: Labels, kind: str
) -> tuple[dict[str, Any], Report]:
    """Labels of all images that were read, in COCO's format, and how they were chosen.

    kind: "boxes", "masks" or "keypoints".
    """
    images = records.images
    report = Report(
        kind,
        labelled,
        labelled.images if labels.denominator == "all" else labelled.annotated,
        "all images" if labels.denominator == "all" else "images with such an instance",
        labels.factor,
        images=len(images),
        skipped=len(records.skipped),
        found=sum(len(image.scores) for image in images),
        keep_empty=labels.keep_empty == "true"
        or (labels.keep_empty == "auto" and kind != "keypoints"),
    )
    candidates = [suppress_classes(image, labels.cross_class_nms) for image in images]
    find_thresholds(images, candidates, labels, report)
    kept = [
        index[image.scores[index] >= thresholds_of(image.categories[index], report.thresholds)]
        for image, index in zip(images, candidates, strict=True)
    ]
    if kind == "keypoints":
        find_joint_threshold(images, kept, labels, report)
    content = {
        "info": provenance(records, labels, report),
        "images": [],
        "annotations": [],
        "categories": labelled.categories,
    }
    for image, index, possible in zip(images, kept, candidates, strict=True):
        fill(content, image, index, possible, labels, report)
    return content, report


def suppress_classes(image: Record, limit: float) -> np.ndarray:
    """Indices of the detections that no surer one of another class overlaps by an IoU > limit."""
    kept = np.ones(len(image.scores), bool)
    if limit:
        rivals = overlaps(image) > limit
        rivals &= image.categories[:, None] != image.categories
        for i in np.argsort(-image.scores, kind="stable"):
            if kept[i]:
                kept[rivals[i]] = False  # rivals that are surer are gone: i is here
    return np.flatnonzero(kept)


def overlaps(image: Record) -> np.ndarray:
    """IoU of each pair of boxes, (M, M)."""
    boxes = torch.from_numpy(image.boxes)
    return box_iou(boxes, boxes).numpy()


def find_thresholds(
    images: list[Record], candidates: list[np.ndarray], labels: Labels, report: Report
) -> None:
    """Fill in the report's k, thresholds and kept, of all classes together or one by one."""
    parts = list(zip(images, candidates, strict=True))
    scores = join([image.scores[index] for image, index in parts], np.float32)
    categories = join([image.categories[index] for image, index in parts], np.int64)
    classes: list[Class] = [*report.labelled.instances] if labels.per_class else [None]
    factor = Fraction(str(labels.factor))  # in whole numbers: half is rounded up everywhere
    for key in classes:
        mine = scores if key is None else scores[categories == key]
        threshold = float(np.float32(labels.score))
        if labels.match == "count":
            labelled = report.labelled.total if key is None else report.labelled.instances[key]
            k = count_to_keep(
                labelled * factor.numerator,
                max(1, report.denominator) * factor.denominator,
                report.images,
            )
            report.k[key] = k
            threshold = kth_largest(torch.from_numpy(mine), k)
        report.available[key] = len(mine)
        report.thresholds[key] = threshold
        report.kept[key] = int((mine >= threshold).sum())


def thresholds_of(categories: np.ndarray, thresholds: dict[Class, float]) -> np.ndarray:
    """The threshold of each of M detections, float32 (M,)."""
    if None in thresholds:
        return np.full(len(categories), thresholds[None], np.float32)
    return np.array([thresholds[category] for category in categories.tolist()], np.float32)


def find_joint_threshold(
    images: list[Record], kept: list[np.ndarray], labels: Labels, report: Report
) -> None:
    """Fill in the report's threshold of joints: as many an instance as in the labelled set."""
    found = [image.keypoints for image in images]
    sure = join(
        [p[index, :, 2].ravel() for p, index in zip(found, kept, strict=True) if p is not None],
        np.float32,
    )
    if labels.keypoint_match == "fixed":
        report.joint_threshold = float(np.float32(labels.keypoint_score))
    elif labels.keypoint_match == "count":
        labelled = report.labelled
        report.joint_k = count_to_keep(labelled.joints, max(1, labelled.total), report.total)
        report.joint_threshold = kth_largest(torch.from_numpy(sure), report.joint_k)


def join(parts: list[np.ndarray], kind: type) -> np.ndarray:
    """One array (n,) of many, or of none."""
    return np.concatenate([np.zeros(0, kind), *parts])


def fill(
    content: dict[str, Any],
    image: Record,
    kept: np.ndarray,
    possible: np.ndarray,
    labels: Labels,
    report: Report,
) -> None:
    """Add one image with its labels, and count it.

    kept, possible: indices of the detections that are labels, and of those that might have been.
    """
    rest = np.setdiff1d(possible, kept) if labels.ignore else kept[:0]
    rest = rest[image.scores[rest] >= np.float32(labels.ignore)]
    annotations = to_annotations(image, kept, report.joint_threshold)
    report.empty += not annotations
    report.pairs += count_pairs(image, kept)
    report.joints += sum(a.get("num_keypoints", 0) for a in annotations)
    report.without_joints += sum(a.get("num_keypoints") == 0 for a in annotations)
    if not annotations and not report.keep_empty:
        return
    report.crowds += len(rest)
    # A joint of a crowd means nothing.
    annotations += [a | {"iscrowd": 1} for a in to_annotations(image, rest, math.inf)]
    size = {"width": image.width, "height": image.height}
    content["images"].append({"id": image.id, "file_name": image.file, **size})
    before = len(content["annotations"])
    content["annotations"] += [{"id": before + n} | a for n, a in enumerate(annotations, 1)]


def to_annotations(
    image: Record, index: np.ndarray, joint_threshold: float
) -> list[dict[str, Any]]:
    """Annotations in COCO's format; joints below the threshold are 0, 0, 0, the others visible."""
    points = None
    if image.keypoints is not None:
        points = image.keypoints[index]
        seen = points[..., 2:] >= joint_threshold
        points = torch.from_numpy(np.where(seen, points, 0))
        points[..., 2] = torch.from_numpy(seen[..., 0]) * 2
    categories, labels = np.unique(image.categories[index], return_inverse=True)
    annotations = to_coco(
        image.id,
        torch.from_numpy(image.boxes[index]),
        torch.from_numpy(image.scores[index]),
        torch.from_numpy(labels),
        categories.tolist(),
        keypoints=points,
    )
    for number, annotation in zip(index.tolist(), annotations, strict=True):
        _, _, width, height = annotation["bbox"]
        annotation |= {"area": width * height, "iscrowd": 0, "source": "auto"}
        if points is not None:
            visible = [int(v) for v in annotation["keypoints"][2::3]]
            annotation["keypoints"][2::3] = visible
            annotation["num_keypoints"] = sum(v > 0 for v in visible)
        if image.masks is not None:
            annotation["segmentation"] = image.masks[number]
            annotation["area"] = float(rle.area(image.masks[number]))
    return annotations


def count_pairs(image: Record, kept: np.ndarray) -> int:
    """Pairs of labels of two classes in one place."""
    if len(set(image.categories[kept].tolist())) < 2:
        return 0
    same = (overlaps(image) >= SAME_PLACE) & (image.categories[:, None] != image.categories)
    return int(np.triu(same[np.ix_(kept, kept)]).sum())


def provenance(records: Records, labels: Labels, report: Report) -> dict[str, Any]:
    """The `info` of the file: where its labels are from. An infinite threshold is null."""
    thresholds = {
        "all" if key is None else str(key): finite(value)
        for key, value in report.thresholds.items()
    }
    names = ("teacher", "digest", "kind", "transforms", "merge", "candidates", "amp", "folder")
    return {name: records.info.get(name) for name in names} | {
        "labels": asdict(labels),
        "labelled": report.labelled.where,
        "labelled_list": report.labelled.digest,
        "mu": report.mu,
        "denominator": report.denominator,
        "k": {"all" if key is None else str(key): k for key, k in report.k.items()},
        "thresholds": thresholds,
        "keypoint_threshold": finite(report.joint_threshold),
        "images": report.images,
        "skipped": records.skipped,
    }


def finite(threshold: float) -> float | None:
    """What JSON can hold."""
    return threshold if math.isfinite(threshold) else None
