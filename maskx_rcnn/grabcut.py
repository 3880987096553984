"""Masks inside boxes by GrabCut (Rother et al. 2004), the paper's baseline that learns no masks.

It needs OpenCV: `pip install -e '.[grabcut]'`.
"""

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

# Unstated: how long GrabCut runs and what it sees.
ITERATIONS = 5  # as in OpenCV's example
MARGIN = 0.5  # of a box's sides, around it: with a whole photo each box would take seconds
INSTALL = "OpenCV, which GrabCut needs, is not installed: run pip install -e '.[grabcut]'."


def is_installed() -> bool:
    """Whether OpenCV is there."""
    return find_spec("cv2") is not None


def segment_boxes(image: Tensor, boxes: Tensor) -> Tensor:
    """Masks bool (N, H, W) of boxes.

    image: uint8 (3, H, W); boxes: (N, 4) xyxy in its pixels. Raises ValueError without OpenCV.
    """
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    masks = np.zeros((len(boxes), *pixels.shape[:2]), dtype=bool)
    for mask, corners in zip(masks, boxes.tolist(), strict=True):
        segment_box(pixels, corners, mask)
    return torch.from_numpy(masks)


def segment_box(pixels: np.ndarray, corners: list[float], mask: np.ndarray) -> None:
    """Fill the mask (H, W) of one box, all of it where nothing around it shows the background."""
    try:
        import cv2
    except ImportError:
        raise ValueError(INSTALL) from None
    height, width = mask.shape
    x1, y1 = (max(0, int(low)) for low in corners[:2])
    x2, y2 = (int(np.ceil(high)) for high in corners[2:])
    x2, y2 = min(width, max(x2, x1 + 1)), min(height, max(y2, y1 + 1))
    right, down = int(MARGIN * (x2 - x1)) + 1, int(MARGIN * (y2 - y1)) + 1
    left, top = max(0, x1 - right), max(0, y1 - down)
    crop = np.ascontiguousarray(pixels[top : y2 + down, left : x2 + right])
    states = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
    inside = states[y1 - top : y2 - top, x1 - left : x2 - left]
    inside[:] = cv2.GC_PR_FGD
    if (states == cv2.GC_BGD).any() and inside.any():
        cv2.setRNGSeed(0)  # of the clusters it starts from
        models = np.zeros((2, 1, 65))  # of the background's and the foreground's colours
        cv2.grabCut(crop, states, None, models[0], models[1], ITERATIONS, cv2.GC_INIT_WITH_MASK)
    mask[y1:y2, x1:x2] = (inside == cv2.GC_FGD) | (inside == cv2.GC_PR_FGD)
