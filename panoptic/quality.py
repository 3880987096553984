"""Panoptic Quality: Sec. 4 of the paper in one file, with the matching itself in `matching.py`.

A panoptic map gives each pixel a segment; segments do not overlap. Per image and class, a predicted
segment p and a true segment g match where

    IoU(p, g) = |p ∩ g| / |p ∪ g| > 0.5                                              Sec. 4.1

Matched pairs are TP, predictions left over FP, true segments left over FN. Per class, over all
images together,

    PQ = Σ_TP IoU / (|TP| + ½|FP| + ½|FN|)                                           Sec. 4.2
       = Σ_TP IoU / |TP|  x  |TP| / (|TP| + ½|FP| + ½|FN|)  =  SQ x RQ

PQ, SQ and RQ of all classes, of things and of stuff are plain means over the classes that occur
(TP + FP + FN > 0), so the mean PQ is not mean SQ times mean RQ.

No search is needed for the matching. Let p1 and p2 be disjoint and g any segment. As |p ∪ g| is at
least |g|, IoU(p1, g) + IoU(p2, g) <= (|p1 ∩ g| + |p2 ∩ g|) / |g| <= 1: both cannot be above one
half. The same holds with the roles exchanged, so each segment has one partner at most. Below one
half, the pairs of the greatest total IoU are taken.

Void (id 0 in the truth) and crowds (`iscrowd`: several instances under one id), Sec. 4.3:
- pixels that are void in the truth are taken out of the prediction, so they leave the union;
- crowds are neither TP nor FN;
- a prediction without partner that lies mostly in void, or in a crowd of its class, is not counted.

Differs: the official evaluator adds void and crowd pixels before it asks for "mostly", and knows
one crowd per class and image, the last listed. That is the default here, so that figures can be
compared; `PanopticQuality(things, **matching.PAPER)` follows the paper.

Pixels are counted and compared in whole numbers, so an IoU of exactly 0.5 is never a match; IoUs
are summed in float64. Metrics are fractions, 0..1. C classes, B images of H x W pixels, K outcomes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files.categories import whole
from .metric.matching import Matching, Rules, match
from .metric.overlaps import IdMap, batch_overlaps, overlaps
from .metric.records import Records, rows_of
from .metric.scores import ClassScore, GroupScore, Scores
from .metric.segments import Segments


def class_score(iou: float, tp: int, fp: int, fn: int, *, alpha: float = 0.5) -> ClassScore:
    """PQ, SQ and RQ of a class; `alpha` weighs FP and FN, one half in the paper's Eq. 1."""
    if tp + fp + fn == 0:
        return ClassScore(math.nan, math.nan, math.nan, 0.0, 0, 0, 0)
    if tp == 0:
        return ClassScore(0.0, 0.0, 0.0, 0.0, 0, fp, fn)
    weight = tp + alpha * fp + alpha * fn
    return ClassScore(iou / weight, iou / tp, tp / weight, iou, tp, fp, fn)


def summarise(sums: Tensor, categories: Mapping[int, bool], *, alpha: float = 0.5) -> Scores:
    """Scores of `sums` (C, 4 or more): per class Σ IoU, TP, FP and FN; `categories` as below."""
    classes = {
        category: class_score(iou, int(tp), int(fp), int(fn), alpha=alpha)
        for category, (iou, tp, fp, fn, *_) in zip(categories, sums.tolist(), strict=True)
    }
    return group(classes, categories)


def group(classes: dict[int, ClassScore], categories: Mapping[int, bool]) -> Scores:
    """The scores of the classes and their means, which leave out classes whose pq is nan."""

    def mean(*kinds: bool) -> GroupScore:
        members = [
            score
            for category, score in classes.items()
            if categories[category] in kinds and not math.isnan(score.pq)
        ]
        n = len(members)
        pq, sq, rq = (
            sum(getattr(score, metric) for score in members) / n if n else math.nan
            for metric in ("pq", "sq", "rq")
        )
        return GroupScore(pq, sq, rq, n)

    return Scores(classes, mean(True, False), mean(True), mean(False))


class PanopticQuality:
    """PQ over many images.

        metric = PanopticQuality({1: True, 2: True, 10: False})
        for ...:
            metric.update(prediction, prediction_segments, truth, truth_segments, image=name)
        print(metric.compute().all.pq)

    Maps are (H, W) ids, 0 for void, NumPy or PyTorch, on a CPU or a GPU; segments are lists of
    dicts with COCO's keys `id`, `category_id` and `iscrowd` (0 where it is missing).

    Args:
        categories: category id -> whether it is a thing.
        threshold, void_crowd, crowds, areas, unlisted: see `matching.Rules`; the defaults follow
            the official evaluator but for wrong input, which it trusts (`areas`, `unlisted`).
        keep_images: remember the outcome of every segment (`records`), for what `analysis.py` does.

    Attributes:
        sums: float64 (C, 5): Σ IoU of matches, TP, FP, FN, and Σ IoU of all pairs of the class
            that share pixels (for PQ†). Counts stay exact up to 2**53.
        count: images so far. images: their names, if kept.

    """

    def __init__(
        self,
        categories: Mapping[int, bool],
        *,
        threshold: float | Fraction = 0.5,
        void_crowd: str = "sum",
        crowds: str = "last",
        areas: str = "counted",
        unlisted: str = "raise",
        keep_images: bool = False,
    ) -> None:
        if wrong := [category for category in categories if whole(category) is None]:
            raise ValueError(f"category {wrong[0]!r:.40}: ids are whole numbers.")
        self.categories = {int(category): bool(thing) for category, thing in categories.items()}
        self.rules = Rules(threshold, void_crowd, crowds, areas, unlisted)
        self.keep_images = keep_images
        self.reset()

    @property
    def sums(self) -> Tensor:
        """Float64 (C, 5), see above; a copy."""
        return torch.tensor([*self._rows.values()], dtype=torch.float64).reshape(-1, 5)

    @sums.setter
    def sums(self, sums: Tensor) -> None:
        self._rows = dict(zip(self.categories, sums.tolist(), strict=True))

    def reset(self) -> None:
        """Forget all images."""
        self._rows = {category: [0.0] * 5 for category in self.categories}  # of `sums`
        self.count = 0
        self.images: list[str | int] = []
        self._records: list[np.ndarray] = []

    def update(
        self,
        prediction: IdMap,
        prediction_segments: Segments,
        truth: IdMap,
        truth_segments: Segments,
        *,
        image: str | int = "",
    ) -> Matching:
        """Add an image; return what became of its segments.

        Raises ValueError, naming `image` and the id, for input that makes no sense; the image is
        then not counted.
        """
        where = "" if image == "" else f"image {image}: "
        pairs = overlaps(truth, prediction, where=where)
        matching = match(
            pairs, prediction_segments, truth_segments, self.categories, self.rules, where=where
        )
        self._add(matching, image)
        return matching

    def update_batch(
        self,
        predictions: IdMap,
        prediction_segments: Sequence[Segments],
        truths: IdMap,
        truth_segments: Sequence[Segments],
        *,
        images: Sequence[str | int] = (),
    ) -> list[Matching]:
        """Add B images of one size, maps (B, H, W); the same result as one by one.

        Raises as `update` does, and ValueError for lists of other lengths; no image is then added.
        """
        names = list(images) or [""] * len(truths)
        given = (predictions, truths, prediction_segments, truth_segments, names)
        if len({*map(len, given)}) > 1:
            text = "{} predicted and {} true maps, {} and {} lists of segments, {} names"
            raise ValueError(f"{text.format(*map(len, given))}: give as many of each.")
        shown = [f"{i} of the batch" if name == "" else name for i, name in enumerate(names)]
        where = [f"image {name}: " for name in shown]
        pairs = batch_overlaps(truths, predictions, where=where)
        examples = zip(pairs, prediction_segments, truth_segments, where, strict=True)
        matchings = [
            match(pair, predicted, true, self.categories, self.rules, where=start)
            for pair, predicted, true, start in examples
        ]
        for matching, name in zip(matchings, names, strict=True):
            self._add(matching, name)
        return matchings

    def _add(self, matching: Matching, image: str | int) -> None:
        rows = self._rows  # lists: single elements of a tensor are slow
        for column, outcomes in enumerate((matching.tp, matching.fp, matching.fn), 1):
            for outcome in outcomes:
                rows[outcome.category][column] += 1
        for column, outcomes in ((0, matching.tp), (4, matching.overlapping)):
            for outcome in outcomes:
                rows[outcome.category][column] += outcome.iou
        if self.keep_images:
            self._records.append(rows_of(matching, self.count))
            self.images.append(image)
        self.count += 1

    def compute(self, *, alpha: float = 0.5) -> Scores:
        """Scores of all images so far, FP and FN weighted by `alpha`; ValueError below 0.

        A lower weight raises RQ^α = TP / (TP + α FP + α FN) and PQ^α = SQ RQ^α, and leaves SQ.
        """
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha}: the weight of FP and FN is 0 or more.")
        return summarise(self.sums, self.categories, alpha=alpha)

    @property
    def records(self) -> Records:
        """Outcomes of all segments; ValueError unless made with `keep_images=True`."""
        if not self.keep_images:
            raise ValueError("The outcomes were not kept: use PanopticQuality(keep_images=True).")
        return Records.of_rows(self._records)

    def merge(self, other: "PanopticQuality") -> None:
        """Add the images of another metric, of another process say.

        Raises ValueError where categories, rules or `keep_images` differ.
        """
        self._require_same(other.categories, "categories")
        if other.rules != self.rules:
            raise ValueError(f"The metrics follow other rules: {other.rules} and {self.rules}.")
        if other.keep_images != self.keep_images:
            raise ValueError("One metric keeps its images, the other does not: choose the same.")
        self.sums += other.sums
        if self.keep_images:
            added = np.stack(other.records, 1)
            added[:, 0] += self.count
            self._records.append(added)
            self.images += other.images
        self.count += other.count

    def reduce(self, total: Callable[[Tensor], Tensor]) -> "PanopticQuality":
        """A metric over the images of all processes; this one stays as it is.

        total: adds up float64 tensors of one shape over the processes, as `common.dist.total` does;
            where it needs them on a device, pass `lambda x: total(x.to(device))`. Outcomes of
            single images are not exchanged: gather the metrics and `merge` them for that.
        """
        count = torch.full((1, 5), float(self.count), dtype=torch.float64)
        sums = total(torch.cat([self.sums, count])).cpu()
        every = copy(self)
        every.keep_images = False
        every.reset()
        every.sums, every.count = sums[:-1], int(sums[-1, 0])
        return every

    def state_dict(self) -> dict[str, Any]:
        """Tensors, and the names of the images if kept; `sums` and `count` add up over processes.

        categories int64 (C,), things bool (C,), sums float64 (C, 5), count int64 (); with
        keep_images also records int64 or float64 (K, 9), see `Records`, and images, a list.
        """
        state: dict[str, Any] = {
            "categories": torch.tensor(list(self.categories), dtype=torch.int64),
            "things": torch.tensor(list(self.categories.values()), dtype=torch.bool),
            "sums": self.sums,
            "count": torch.tensor(self.count),
        }
        if self.keep_images:
            state["records"] = torch.from_numpy(np.stack(self.records, 1))
            state["images"] = list(self.images)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; ValueError where it belongs to other categories."""
        saved = zip(state["categories"].tolist(), state["things"].tolist(), strict=True)
        self._require_same(dict(saved), "saved categories")
        if self.keep_images and "records" not in state:
            raise ValueError("The saved metric did not keep its images: use keep_images=False.")
        self.reset()
        self.sums = state["sums"]
        self.count = int(state["count"])
        if self.keep_images:
            self._records = [state["records"].cpu().numpy().copy()]
            self.images = list(state["images"])

    def _require_same(self, categories: Mapping[int, bool], name: str) -> None:
        if list(categories.items()) != list(self.categories.items()):
            raise ValueError(
                f"The {name} ({len(categories)}) are not those of this metric "
                f"({len(self.categories)}): ids, order and things must be the same."
            )
