"""Which predicted segment is which true one, Sec. 4.1 and 4.3 of the paper, for one image.

K pairs of segments that overlap. All areas are whole numbers of pixels.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .overlaps import Overlaps
from .segments import Segment, Segments, read, reconcile

CHOICES = {
    "void_crowd": ("sum", "separate"),
    "crowds": ("last", "all"),
    "areas": ("counted", "json"),
    "unlisted": ("raise", "void", "official"),
}


@dataclass(frozen=True)
class Rules:
    """What counts as a match; the defaults are the official evaluator's, `PAPER` the paper's.

    threshold: a match has a higher IoU than this, 0 <= threshold < 1; a float is taken as it is
        written (0.3 is three tenths), a Fraction as it is. It also is the share of void or crowd
        pixels above which a prediction without partner is ignored. From 0.5 on matches are unique;
        below, those of the greatest total IoU are taken (per class and image).
    void_crowd: a prediction without partner is ignored for its void and crowd pixels together
        ("sum", official) or where one kind alone suffices ("separate", Sec. 4.3).
    crowds: per class of an image only the crowd that is listed last counts ("last", official), or
        "all" do.
    areas: of true segments, "counted" in the map or, as the official evaluator does, those of the
        file ("json"): wrong numbers there change the IoU.
    unlisted: ids that are in a map or in its list of segments, but not in both: "raise"; "void":
        such pixels are void, such list entries are left out; "official": as "raise" for
        predictions; pixels of the truth belong to no segment and are not void either; a true
        segment without pixels is an FN; a listed id 0 is a segment.
    """

    threshold: float | Fraction = 0.5
    void_crowd: str = "sum"
    crowds: str = "last"
    areas: str = "counted"
    unlisted: str = "raise"

    def __post_init__(self) -> None:
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                words = " or ".join(map(repr, valid))
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {words}.")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: choose from 0 up to, not including, 1.")

    @cached_property
    def bound(self) -> Fraction:
        """The threshold, exactly."""
        given = self.threshold
        return given if isinstance(given, Fraction) else Fraction(str(given))

    def exceeds(self, part: int, union: int | float) -> bool:
        """Whether part / union is above the threshold, exactly."""
        exact = union if isinstance(union, int) else Fraction(union)
        return part * self.bound.denominator > exact * self.bound.numerator

    def excuses(self, void: int, crowd: int, area: int) -> bool:
        """Whether a prediction of `area` pixels, of which these are void or crowd, is ignored."""
        if self.void_crowd == "sum":
            return self.exceeds(void + crowd, area)
        return self.exceeds(void, area) or self.exceeds(crowd, area)


PAPER: dict[str, Any] = {"void_crowd": "separate", "crowds": "all"}  # Sec. 4.3
RULES: dict[str, dict[str, Any]] = {"official": {}, "paper": PAPER}  # of `PanopticQuality(**...)`


class Outcome(NamedTuple):
    """A pair of segments of one class, or a segment alone; ids and areas of no segment are 0."""

    category: int
    truth: int  # id
    prediction: int  # id
    truth_area: int | float  # whole unless `Rules.areas` is "json"
    prediction_area: int
    intersection: int
    union: int | float  # less the void pixels of the prediction; of a segment alone, its area

    @property
    def iou(self) -> float:
        """Intersection over union."""
        return self.intersection / self.union


class Matching(NamedTuple):
    """What became of the segments of an image; crowds appear nowhere."""

    tp: list[Outcome]
    fp: list[Outcome]
    fn: list[Outcome]
    ignored: list[Outcome]  # predictions without partner that lie mostly in void or crowds
    overlapping: list[Outcome]  # all pairs of one class that share pixels, matched or not


def match(
    pairs: Overlaps,
    prediction_segments: Segments,
    truth_segments: Segments,
    categories: Mapping[int, Any],
    rules: Rules,
    *,
    where: str = "",
) -> Matching:
    """Outcome of every segment of one image, given the pixels that they share.

    `where` starts the messages. Raises ValueError where ids of map and list differ (`Rules`), an id
    is listed twice or is 0 or out of range, or a category is not among `categories`.
    """
    json, zero = rules.areas == "json", rules.unlisted == "official"
    predictions = read(prediction_segments, "prediction", categories, where=where, zero=zero)
    truths = read(truth_segments, "truth", categories, where=where, zero=zero, area=json)
    rows, prediction_area, truth_area = reconcile(pairs, predictions, truths, rules.unlisted, where)
    if json:
        truth_area |= {t: segment.area for t, segment in truths.items()}
    crowds = _counting_crowds(truths, rules)
    void: dict[int, int] = {}  # pixels by prediction
    in_crowds: dict[tuple[int, int], int] = defaultdict(int)  # pixels by category and prediction
    overlapping = []
    for t, p, n in rows:  # void comes first
        if t == 0:
            void[p] = n
        truth, prediction = truths.get(t), predictions.get(p)
        if truth is None or prediction is None:
            continue
        category, crowd, _ = truth
        if t in crowds:
            in_crowds[category, p] += n
        if crowd or prediction.category != category:
            continue
        area = truth_area[t]
        union = prediction_area[p] + area - n - void.get(p, 0)
        if union <= 0:
            raise ValueError(
                f"{where}segment {t} of the truth has area {area} in its list, but shares "
                f'{n} pixels with segment {p} of the prediction: use areas="counted".'
            )
        overlapping.append(Outcome(category, t, p, area, prediction_area[p], n, union))
    tp = [pair for pair in overlapping if rules.exceeds(pair.intersection, pair.union)]
    if 2 * rules.bound < 1:
        tp = _assign(tp)
    found, matched = {pair.truth for pair in tp}, {pair.prediction for pair in tp}
    fn = [
        Outcome(segment.category, t, 0, truth_area.get(t, 0), 0, 0, truth_area.get(t, 0))
        for t, segment in truths.items()
        if not segment.crowd and t not in found
    ]
    fp: list[Outcome] = []
    ignored: list[Outcome] = []
    for p, (category, *_) in predictions.items():
        if p not in matched:  # Sec. 4.3
            area = prediction_area[p]
            excused = rules.excuses(void.get(p, 0), in_crowds[category, p], area)
            (ignored if excused else fp).append(Outcome(category, 0, p, 0, area, 0, area))
    return Matching(tp, fp, fn, ignored, overlapping)


def _counting_crowds(truths: Mapping[int, Segment], rules: Rules) -> set[int]:
    """Ids of the crowds whose pixels excuse predictions of their class."""
    crowds = {t: segment.category for t, segment in truths.items() if segment.crowd}
    if rules.crowds == "all":
        return set(crowds)
    return {*{category: t for t, category in crowds.items()}.values()}  # the last of each class


def _assign(pairs: list[Outcome]) -> list[Outcome]:
    """The pairs of the greatest total IoU in which no segment occurs twice, class by class."""
    # Needed for thresholds below 0.5 only, so that all else works without SciPy.
    from scipy.optimize import linear_sum_assignment

    chosen = []
    for category in dict.fromkeys(pair.category for pair in pairs):
        members = [pair for pair in pairs if pair.category == category]
        rows = {t: i for i, t in enumerate(dict.fromkeys(pair.truth for pair in members))}
        columns = {p: i for i, p in enumerate(dict.fromkeys(pair.prediction for pair in members))}
        gain = np.zeros((len(rows), len(columns)))
        for pair in members:
            gain[rows[pair.truth], columns[pair.prediction]] = pair.iou
        best = set(zip(*(side.tolist() for side in linear_sum_assignment(gain, True)), strict=True))
        chosen += [pair for pair in members if (rows[pair.truth], columns[pair.prediction]) in best]
    return chosen
