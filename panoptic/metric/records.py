"""What became of every segment of many images, as columns: what `annotators/analysis.py` reads."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .matching import Matching


class Records(NamedTuple):
    """All matches, FP and FN, one after another; each (K,).

    int64; truth_area and union are float64 where `areas="json"` found fractions of pixels.
    """

    image: np.ndarray  # 0, 1, 2, ...: place in `PanopticQuality.images`
    kind: np.ndarray  # 0 TP, 1 FP, 2 FN
    category: np.ndarray  # id
    truth: np.ndarray  # id
    prediction: np.ndarray  # id
    truth_area: np.ndarray  # pixels
    prediction_area: np.ndarray
    intersection: np.ndarray
    union: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Float64 (K,), 0 of FP and FN."""
        return self.intersection / np.maximum(self.union, 1)

    @classmethod
    def of_rows(cls, parts: Iterable[np.ndarray]) -> "Records":
        """From rows (K, 9), int64 or float64, of several images."""
        none = np.zeros((0, len(cls._fields)), np.int64)
        rows = np.concatenate([none, *(part for part in parts if len(part))])
        sizes = cls._fields.index("truth_area"), cls._fields.index("union")
        columns = enumerate(rows.T)
        return cls(*(c if i in sizes else c.astype(np.int64, copy=False) for i, c in columns))


def rows_of(matching: Matching, place: int) -> np.ndarray:
    """Rows (K, 9) of the image in this place."""
    return np.array(
        [
            (place, kind, *outcome)
            for kind, outcomes in enumerate((matching.tp, matching.fp, matching.fn))
            for outcome in outcomes
        ]
    ).reshape(-1, len(Records._fields))
