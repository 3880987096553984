"""The official COCO evaluation behind one function, and detections in its format.

M detections of an image, J keypoints. Metrics are percent.
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from common import coco_files


def to_coco(
    image_id: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    category_ids: Sequence[int],
    *,
    masks: Tensor | None = None,
    keypoints: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Detections of one image in the results format of COCO.

    boxes: (M, 4) x1, y1, x2, y2 in pixels of the original image; scores, labels: (M,);
    category_ids: label -> id of the file; masks: bool (M, H, W); keypoints: (M, J, 3).
    """
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().tolist()
    detections: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(xywh, scores.tolist(), labels.tolist(), strict=True)
    ]
    for i, detection in enumerate(detections):
        if masks is not None:
            code = rle.encode(np.asfortranarray(masks[i].cpu().numpy().astype(np.uint8)))
            detection["segmentation"] = code | {"counts": code["counts"].decode()}
        if keypoints is not None:
            detection["keypoints"] = keypoints[i].flatten().tolist()
    return detections


def save_results(path: str | Path, detections: list[dict[str, Any]]) -> None:
    """Write detections in the results format of COCO; the file appears whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(detections, allow_nan=False))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


PARTS = {  # suffix -> IoU threshold or mean over all, area
    "": (None, "all"),
    "50": (0.5, "all"),
    "75": (0.75, "all"),
    "_small": (None, "small"),
    "_medium": (None, "medium"),
    "_large": (None, "large"),
}


def evaluate(
    ground_truth: dict[str, Any] | str | Path,
    detections: list[dict[str, Any]],
    *,
    kind: str = "bbox",
    backend: str = "pycocotools",
    per_class: bool = False,
    max_detections: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    image_ids: Iterable[int] | None = None,
) -> dict[str, float]:
    """The official COCO metrics in percent; nan where the ground truth leaves one undefined.

    AP (IoU .50:.95), AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100, AR_small,
    AR_medium, AR_large; `per_class` adds AP/<name> and AR/<name>. Keypoints: no small area, AR
    (20 detections), AR50 and AR75 in place of AR_1, ...

    detections: dicts of image_id, category_id (the file's), score, and by `kind` "bbox" (x, y,
    width, height), "segm" (`segmentation`, compressed run lengths) or "keypoints".
    max_detections: rising limits per image, default 1, 10, 100; AP uses the last.
    sigmas: fall-off of each keypoint, needed unless there are COCO's 17. image_ids: only these.
    backend: "pycocotools", or "faster" (faster-coco-eval: the same numbers sooner).
    """
    if kind not in ("bbox", "segm", "keypoints"):
        raise ValueError(f"kind is {kind!r}: choose 'bbox', 'segm' or 'keypoints'")
    if isinstance(ground_truth, str | Path):
        ground_truth = coco_files.read_json(ground_truth)
    truth = _sound_truth(ground_truth, kind)
    _check_detections(detections, truth, kind)
    if kind == "keypoints":
        sigmas = _sigmas(truth, sigmas)
    chosen = None if image_ids is None else sorted(set(image_ids))
    unknown = set(chosen or ()) - {image["id"] for image in truth["images"]}
    if unknown:
        raise ValueError(f"image_ids: the ground truth has no image {min(unknown)}")
    limits = list(max_detections or ([20] if kind == "keypoints" else [1, 10, 100]))
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries print
        evaluation = _evaluation(truth, _results(detections, kind), kind, backend)
        evaluation.params.maxDets = limits
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, float)
        if chosen is not None:
            evaluation.params.imgIds = chosen
        evaluation.evaluate()
        evaluation.accumulate()
    return _summary(evaluation, truth["categories"], kind, per_class)


def _sound_truth(content: Any, kind: str) -> dict[str, Any]:
    """A copy that pycocotools can evaluate: ids from 1 (0 means "unmatched" to it), no gaps."""
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(f"the ground truth has no list `{key}`: it is not in COCO format")
    annotations = content["annotations"]
    categories = coco_files.category_names(content["categories"], "the ground truth")
    images = [image["id"] for image in content["images"]]
    coco_files.refuse_repeated(images, "image id of the ground truth")
    coco_files.check_references(annotations, images, categories, "the ground truth")
    needed = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    for a in annotations:
        if not a.get(needed) and not (kind == "keypoints" and a.get("iscrowd")):
            raise ValueError(f"annotation {a.get('id')} of the ground truth has no `{needed}`")
        if kind == "bbox" and len(a["bbox"]) != 4:
            raise ValueError(f"annotation {a.get('id')} of the ground truth: bbox {a['bbox']}")
    joints = _joints(annotations)
    return {
        "info": {},
        "images": content["images"],
        "categories": [
            {**entry, "name": categories[entry["id"]]} for entry in content["categories"]
        ],
        "annotations": [_sound_annotation(a, i, joints) for i, a in enumerate(annotations, 1)],
    }


def _sound_annotation(annotation: dict[str, Any], number: int, joints: int) -> dict[str, Any]:
    box = annotation.get("bbox", [0, 0, 0, 0])
    absent = {"iscrowd": 0, "area": box[2] * box[3], "keypoints": [0] * 3 * joints}
    sound = absent | annotation | {"id": number}
    sound.setdefault("num_keypoints", sum(v > 0 for v in sound["keypoints"][2::3]))
    return sound


def _joints(annotations: list[dict]) -> int:
    """J of the first annotation with keypoints; 17, as in COCO, without one."""
    return next((len(a["keypoints"]) // 3 for a in annotations if a.get("keypoints")), 17)


def _check_detections(detections: list[dict], truth: dict[str, Any], kind: str) -> None:
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    field = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    for i, d in enumerate(detections):
        where = f"detection {i} (image {d.get('image_id')})"
        if d.get("image_id") not in images:
            raise ValueError(f"{where}: the ground truth has no such image")
        if d.get("category_id") not in categories:
            raise ValueError(f"{where}: the ground truth has no category {d.get('category_id')}")
        if not _finite([d.get("score")]):
            raise ValueError(f"{where}: its score is {d.get('score')}, not a finite number")
        if d.get(field) is None or not len(d[field]):
            raise ValueError(f"{where} has no `{field}`, which kind={kind!r} compares")
        if kind != "segm" and not _finite(d[field]):
            raise ValueError(f"{where}: its {field} is not finite: {d[field]}")
        if kind == "segm" and not _fits(d[field], images[d["image_id"]]):
            raise ValueError(f"{where}: its segmentation is no run lengths of the image's size")
        if kind == "bbox" and (len(d[field]) != 4 or min(d[field][2:]) < 0):
            raise ValueError(f"{where}: its bbox is no x, y, width, height: {d[field]}")


def _finite(values: Iterable[Any]) -> bool:
    return all(isinstance(v, int | float | np.number) and math.isfinite(v) for v in values)


def _fits(segmentation: Any, image: dict[str, Any]) -> bool:
    """Whether a mask is compressed run lengths of the image's size."""
    if not isinstance(segmentation, dict) or type(segmentation.get("counts")) not in (str, bytes):
        return False
    return list(segmentation.get("size", ())) == [image["height"], image["width"]]


def _sigmas(truth: dict[str, Any], sigmas: Sequence[float] | None) -> Sequence[float] | None:
    """`sigmas`, checked against the number of joints."""
    joints, given = _joints(truth["annotations"]), 17 if sigmas is None else len(sigmas)
    if joints != given:
        raise ValueError(f"{joints} keypoints need as many sigmas; there are {given}")
    return sigmas


def _results(detections: list[dict], kind: str) -> list[dict]:
    """Copies with the one shape that `kind` compares, so that its area is that shape's."""
    shape = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    return [{k: d[k] for k in ("image_id", "category_id", "score", shape)} for d in detections]


def _evaluation(truth: dict, results: list[dict], kind: str, backend: str) -> Any:
    file_type: Any
    if backend == "pycocotools":
        file_type, evaluation_type = COCO, COCOeval
    elif backend == "faster":
        try:
            import faster_coco_eval as faster
        except ImportError as error:
            raise ValueError("backend='faster' needs: pip install -e '.[fast]'") from error
        file_type, evaluation_type = faster.COCO, faster.COCOeval_faster
    else:
        raise ValueError(f"backend is {backend!r}: choose 'pycocotools' or 'faster'")
    expected = file_type()
    expected.dataset = truth
    expected.createIndex()
    if results:
        found = expected.loadRes(results)
    else:  # loadRes looks at the first one
        found = file_type()
        found.dataset = truth | {"annotations": []}
        found.createIndex()
    return evaluation_type(expected, found, kind)


def _summary(evaluation: Any, categories: list[dict], kind: str, per_class: bool) -> dict:
    """Means over what is defined: precision (T, R, K, A, D), recall (T, K, A, D), -1 undefined.

    T thresholds, R recalls, K classes, A areas, D limits of detections.
    """
    p = evaluation.params
    areas, thresholds = list(p.areaRngLbl), np.asarray(p.iouThrs)

    def score(
        table: str, iou: float | None, area: str, limit: int = -1, k: Any = slice(None)
    ) -> float:
        if area not in areas:  # keypoints know no small ones
            return float("nan")
        values = evaluation.eval[table][..., areas.index(area), limit]  # (T, [R,] K)
        if iou is not None:
            values = values[np.isclose(thresholds, iou)]
        values = values[..., k]
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else float("nan")

    metrics = {f"AP{name}": score("precision", *what) for name, what in PARTS.items()}
    if kind == "keypoints":
        metrics |= {f"AR{name}": score("recall", *what) for name, what in PARTS.items()}
        metrics = {name: value for name, value in metrics.items() if not name.endswith("_small")}
    else:
        for i, limit in enumerate(p.maxDets):
            metrics[f"AR_{limit}"] = score("recall", None, "all", i)
        for area in ("small", "medium", "large"):
            metrics[f"AR_{area}"] = score("recall", None, area)
    if per_class:
        names = {category["id"]: category["name"] for category in categories}
        for k, category in enumerate(p.catIds):
            metrics[f"AP/{names[category]}"] = score("precision", None, "all", k=k)
            metrics[f"AR/{names[category]}"] = score("recall", None, "all", k=k)
    return metrics
