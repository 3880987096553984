"""The official COCO evaluation behind one function, and detections in its format.

M detections of an image, J keypoints. Metrics are percent. In the results format joints count pixel
centres from 0; a model's are continuous, a pixel's centre at + 0.5 (see `dataset`).
"""

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from common.files import write_text

from .fields import ID, category_names, check_structure, excerpt, is_number, read_annotations
from .instances import find_sound
from .masks import check_segmentation, encode

SHAPES = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}  # kind -> of `CocoDataset`
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # kind -> key compared


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
    category_ids: label -> id of the file; masks: bool (M, H, W); keypoints: (M, J, 3)
    continuous x, y, and visibility or score.
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
            points = keypoints[i].double().cpu()
            seen = points[:, 2:] > 0  # a joint that is not given stays 0, 0, 0
            points[:, :2] -= torch.where(seen, 0.5, 0.0)
            detection["keypoints"] = points.flatten().tolist()
    return detections


def save_results(path: str | Path, detections: list[dict[str, Any]]) -> None:
    """Write detections in the results format of COCO; the file appears whole or not at all."""
    write_text(Path(path), json.dumps(detections, allow_nan=False))


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

    ground_truth: content of a COCO-format file, or its path. Its bad instances and exact copies do
    not count, with one warning (see `instances`).
    detections: dicts of image_id, category_id (the file's), score, and by `kind` "bbox" (x, y,
    width, height), "segm" (`segmentation`, run lengths) or "keypoints".
    max_detections: rising limits per image, default 1, 10, 100; AP uses the last.
    sigmas: fall-off of each keypoint, needed unless there are COCO's 17. image_ids: only these.
    backend: "pycocotools", or "faster" (faster-coco-eval: the same numbers sooner).
    """
    if kind not in SHAPES:
        raise ValueError(f"kind is {kind!r}: choose 'bbox', 'segm' or 'keypoints'")
    where = "the ground truth"
    if isinstance(ground_truth, str | Path):
        where, ground_truth = str(ground_truth), read_annotations([ground_truth])
    else:
        check_structure(ground_truth, where)
    found = find_sound(ground_truth, where, kind=SHAPES[kind])
    truth = found.to_content(ground_truth, SHAPES[kind])
    if kind == "keypoints":
        joints, given = _joints(truth), 17 if sigmas is None else len(sigmas)
        if joints != given:
            raise ValueError(f"{joints} keypoints need as many sigmas; there are {given}")
    results = _read_detections(detections, truth, kind)
    chosen = None if image_ids is None else sorted(set(image_ids))
    unknown = set(chosen or ()) - {image["id"] for image in truth["images"]}
    if unknown:
        raise ValueError(f"image_ids: the ground truth has no image {min(unknown)}")
    limits = list(max_detections or ([20] if kind == "keypoints" else [1, 10, 100]))
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries print
        evaluation = _compare(truth, results, kind, backend)
        evaluation.params.maxDets = limits
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, float)
        if chosen is not None:
            evaluation.params.imgIds = chosen
        evaluation.evaluate()
        evaluation.accumulate()
    return _summarize(evaluation, truth["categories"], kind, per_class)


def _joints(truth: dict[str, Any]) -> int:
    """J of the annotations; 17, as in COCO, without one."""
    annotations = truth["annotations"]
    return len(annotations[0]["keypoints"]) // 3 if annotations else 17


def _read_detections(detections: Any, truth: dict[str, Any], kind: str) -> list[dict]:
    """Copies with the one shape that `kind` compares, so that its area is that shape's.

    Raises ValueError for the first detection that cannot be compared.
    """
    if not isinstance(detections, list):
        raise ValueError(f"the detections are {excerpt(detections)}, not a list")
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    field, values = FIELDS[kind], 3 * _joints(truth) if kind == "keypoints" else 4
    results = []
    for i, d in enumerate(detections):
        if not isinstance(d, dict):
            raise ValueError(f"detection {i} is {excerpt(d)}, not an object {{...}}")
        given: list[Any] = [d.get(key) for key in ("image_id", "category_id", "score", field)]
        image, category, score, shape = given
        if not ID.fits(image) or image not in images:
            fault: str | None = "the ground truth has no such image"
        elif not ID.fits(category) or category not in categories:
            fault = f"the ground truth has no category {excerpt(category)}"
        elif not is_number(score):
            fault = f"its score is {excerpt(score)}, not a finite number"
        else:
            fault = _find_fault(shape, images[image], kind, values)
        if fault:
            raise ValueError(f"detection {i} (image {excerpt(image)}): {fault}")
        shape = encode(shape, *shape["size"]) if kind == "segm" else list(map(float, shape))
        found = {"image_id": image, "category_id": category, "score": float(score), field: shape}
        results.append(found)
    return results


def _find_fault(shape: Any, image: dict, kind: str, values: int) -> str | None:
    """What is wrong with the box, mask or joints of a detection, None if nothing is."""
    field = FIELDS[kind]
    if kind == "segm":
        if isinstance(shape, list) and shape:
            return "it has polygons, not run lengths"
        fault = check_segmentation(shape, image["height"], image["width"])
        return fault and f"it {fault}"
    if not isinstance(shape, list | tuple) or not shape:
        return f"it has no `{field}`, which kind={kind!r} compares"
    if not all(map(is_number, shape)):
        return f"its {field} is not finite: {excerpt(shape)}"
    if kind == "bbox" and (len(shape) != values or min(shape[2:]) < 0):
        return f"its bbox is no x, y, width, height: {excerpt(shape)}"
    if len(shape) != values:
        return f"it has {len(shape)} keypoint values, not {values}"
    return None


def _compare(truth: dict, results: list[dict], kind: str, backend: str) -> Any:
    """The official evaluation of these results, not yet run."""
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

    def index(content: dict) -> Any:
        file = file_type()
        file.dataset = content
        file.createIndex()
        return file

    expected = index(truth)
    # loadRes looks at the first result
    found = expected.loadRes(results) if results else index(truth | {"annotations": []})
    return evaluation_type(expected, found, kind)


def _summarize(evaluation: Any, categories: list[dict], kind: str, per_class: bool) -> dict:
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
        names = category_names(categories)
        for k, category in enumerate(p.catIds):
            metrics[f"AP/{names[category]}"] = score("precision", None, "all", k=k)
            metrics[f"AR/{names[category]}"] = score("recall", None, "all", k=k)
    return metrics
