"""COCO's masks: whether polygons and run lengths are sound, and the pixels that they mean.

pycocotools trusts its input: run lengths that do not fill the image give pixels that nobody wrote,
polygon points far outside it end the process. Whatever is handed to it is checked here first.

H, W: height and width of the image. The checks return what is wrong, None where nothing is; the
answer goes on after a subject: f"annotation {id} {fault}".
"""

from typing import Any

import numpy as np
from pycocotools import mask as rle

_MOST_DIGITS = 6  # of a compressed run; six hold 2^29 pixels, and more overflow in pycocotools


def check_segmentation(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with a `segmentation` of an image of H x W pixels, None if nothing is.

    It is a list of polygons, or a dict of `size` [H, W] and `counts` (see `check_rle`).
    """
    if isinstance(segmentation, list) and segmentation:
        faults = (check_polygon(polygon, height, width) for polygon in segmentation)
        return next((fault for fault in faults if fault), None)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        return "has no polygon and no run lengths"
    size = segmentation.get("size")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        return f"has run lengths of size {size!s:.40}, not of the image's {[height, width]}"
    return check_rle(segmentation["counts"], height, width)


def check_polygon(points: Any, height: int, width: int) -> str | None:
    """What is wrong with the polygon [x1, y1, x2, y2, ...] in H x W pixels, None if nothing is.

    Its points may lie outside the image, but not further away than the longer side.
    """
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return "has a polygon that is no x1, y1, x2, y2, ... of three points or more"
    kinds = set(map(type, points))
    if not kinds <= {int, float} and not all(issubclass(k, np.number) for k in kinds):
        return "has a polygon that holds something else than numbers"
    reach = max(height, width)
    if not (min(points) >= -reach and max(points) <= 2 * reach and sum(points) == sum(points)):
        return "has a polygon with a point that is far outside the image or not finite"
    return None


def is_outside(points: list, height: int, width: int) -> bool:
    """Whether all of a sound polygon lies on one side of the image of H x W pixels."""
    if 0 < points[0] < width and 0 < points[1] < height:  # which is quick
        return False
    xs, ys = points[::2], points[1::2]
    return max(xs) <= 0 or min(xs) >= width or max(ys) <= 0 or min(ys) >= height


def check_rle(counts: Any, height: int, width: int) -> str | None:
    """What is wrong with the run lengths of a mask of H x W pixels, None if nothing is.

    counts: the runs of 0 and 1 in turn, column by column: whole numbers in a list, or their
    compressed form (str or bytes). They may set no pixel, but must fill the image.
    """
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int}:
            return "has run lengths that are no whole numbers"
        least, total = min(counts, default=0), sum(counts)
    elif isinstance(counts, str | bytes):
        runs = _decompress(counts)
        if runs is None:
            return "has compressed run lengths that cannot be decoded"
        least, total = int(runs.min()), int(runs.sum())
    else:
        return "has run lengths that are neither a list nor text"
    if least < 0:
        return "has a negative run length"
    if total != height * width:
        return f"has run lengths of {total} pixels, where the image has {height * width}"
    return None


def _decompress(text: str | bytes) -> np.ndarray | None:
    """Run lengths int64 of COCO's compressed form; None where it is damaged.

    A run has up to six digits of 5 bits, lowest first, each with a bit for "more follow" and 48
    added to make it a letter. From the fourth run on they are differences to the run before last.
    """
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    final = digits & 32 == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not final[-1]:
        return None
    ends = np.flatnonzero(final)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MOST_DIGITS:
        return None
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts)
    runs -= (digits[ends] >> 4 & 1) << 5 * lengths  # the highest bit is the sign
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def run_lengths(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Run lengths int64 of 0 and 1 in turn, column by column, of a sound segmentation."""
    runs = _decompress(encode(segmentation, height, width)["counts"])
    assert runs is not None, "the segmentation was not checked"
    return runs


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Mask bool (H, W) of polygons or of run lengths; ValueError where they are not sound."""
    fault = check_segmentation(segmentation, height, width)
    if fault:
        raise ValueError(f"a mask of {width} x {height} pixels {fault}")
    runs = run_lengths(segmentation, height, width)
    ones = np.arange(len(runs)) % 2 == 1
    return np.repeat(ones, runs).reshape(width, height).T  # column by column


def encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of a sound segmentation, as pycocotools takes them."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)
    return segmentation
