"""AP^NO of the paper's Table 3: what AP is left once the instances no longer overlap.

    python disjoint_ap.py gt=instances_val2017.json pred=segm_results.json
    python disjoint_ap.py gt=... pred=... confidence=0.5 overlap=0.5 out=ap.json

`gt` is a COCO instances file, `pred` a list of detections with run-length masks. The overlaps are
resolved as in the merge (`merge.remove_overlaps`); scores stay, and COCO's own evaluation follows.

Unstated: the thresholds of the paper's AP^NO. The overlap is the merge's 0.5; no detection is
dropped for its score, as AP ranks by it.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING, OmegaConf
from pycocotools import mask as rle

from common.coco import evaluate, files
from common.config import require_range, typed
from common.config import run as run_command
from panoptic.files.categories import whole
from panoptic.files.coco import require_apart
from panoptic.files.detection import decode
from panoptic.files.entries import is_image_id
from panoptic.files.pixels import MAX_PIXELS
from panoptic.merge import OVERLAP, remove_overlaps

Detections = list[dict[str, Any]]  # image_id, category_id, score and segmentation, a code


@dataclass
class Options:
    """Words of the command line."""

    gt: str = MISSING  # COCO instances file
    pred: str = MISSING  # detections with masks, in COCO's results format
    confidence: float = 0.0  # detections of a lower score are dropped
    overlap: float = OVERLAP  # and those with a larger share hidden by better ones
    backend: str = "pycocotools"  # or "faster" (faster-coco-eval)
    out: str = ""  # a JSON file for the figures

    def __post_init__(self) -> None:
        require_range("confidence", self.confidence, 0, 1)
        require_range("overlap", self.overlap, 0, 1)


def without_overlap(
    detections: Detections, *, confidence: float = 0.0, overlap: float = OVERLAP
) -> Detections:
    """Copies of the detections that survive, image by image, each with the pixels left to it.

    Raises ValueError, naming the image, for masks of different sizes or without `counts` and
    `size`, and for what `remove_overlaps` refuses.
    """
    by_image: dict[Any, Detections] = {}
    for place, detection in enumerate(detections):
        if not isinstance(detection, dict) or not is_image_id(detection.get("image_id")):
            raise ValueError(f"detection {place} has no `image_id`: {detection!r:.80}")
        by_image.setdefault(detection["image_id"], []).append(detection)
    kept: Detections = []
    for image, members in by_image.items():
        masks = _masks(members, image)
        try:
            scores = np.array([detection.get("score") for detection in members], np.float64)
            found = remove_overlaps(masks, scores, confidence=confidence, overlap=overlap)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"image {image}: {error}") from error
        for number, i in enumerate(found.kept, 1):
            code = rle.encode(np.asfortranarray(found.owner == number, np.uint8))
            segmentation = {"size": list(code["size"]), "counts": code["counts"].decode()}
            kept.append({**members[i], "segmentation": segmentation})
    return kept


def ap_without_overlap(
    ground_truth: dict[str, Any] | str | Path,
    detections: Detections,
    *,
    confidence: float = 0.0,
    overlap: float = OVERLAP,
    backend: str = "pycocotools",
) -> dict[str, float]:
    """COCO's mask metrics of the disjoint detections in percent, AP^NO under "AP".

    Raises ValueError as `without_overlap` and `common.coco.evaluate.evaluate` do.
    """
    disjoint = without_overlap(detections, confidence=confidence, overlap=overlap)
    return evaluate.evaluate(ground_truth, disjoint, kind="segm", backend=backend)


def _masks(detections: Detections, image: Any) -> np.ndarray:
    """Masks bool (N, H, W) of one image."""
    size: list[int] = []
    masks = []
    for detection in detections:
        code = detection.get("segmentation")
        given = code.get("size") if isinstance(code, dict) else None
        sides = [whole(side) or 0 for side in given] if isinstance(given, list | tuple) else []
        if len(sides) != 2 or min(sides) < 1 or math.prod(sides) > MAX_PIXELS:
            raise ValueError(f"image {image}: a detection has no run-length mask of known size.")
        size = size or sides
        masks.append(decode(code, *size, where=f"image {image}: a detection"))
    return np.stack(masks)


def main(words: list[str] | None = None) -> None:
    """Print AP and AP^NO, and write what `out` names."""
    cfg = OmegaConf.structured(Options)
    cfg.merge_with_dotlist(sys.argv[1:] if words is None else words)
    options: Options = typed(cfg)
    require_apart({"out": options.out}, {"gt": options.gt, "pred": options.pred})
    torch.set_num_threads(1)  # the masks are small
    truth = files.read_json(options.gt)
    detections = files.read_json(options.pred)
    if not isinstance(detections, list):
        raise ValueError(f"{options.pred} is not a list of detections.")
    figures = {
        "AP": evaluate.evaluate(truth, detections, kind="segm", backend=options.backend),
        "AP^NO": ap_without_overlap(
            truth,
            detections,
            confidence=options.confidence,
            overlap=options.overlap,
            backend=options.backend,
        ),
    }
    columns = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    print(" " * 6 + "".join(f"{column:>10}" for column in columns))
    for name, values in figures.items():
        print(f"{name:6}" + "".join(f"{values[column]:10.1f}" for column in columns))
    if options.out:
        sound = {
            name: {key: value if value == value else None for key, value in values.items()}
            for name, values in figures.items()
        }
        Path(options.out).write_text(json.dumps(sound, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
