"""Which predicted segment is which true one, Sec. 4.1 and 4.3 of the paper, for one image.

K pairs of segments that overlap. All areas are whole numbers of pixels.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ..files.categories import whole
from .overlaps import LIMIT, Overlaps

Segments = Sequence[Mapping[str, Any]]  # dicts with COCO's keys: id, category_id, iscrowd, area


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
    bound: Fraction = field(init=False)
    _ratio: tuple[int, int] = field(init=False, repr=False)  # bound in whole numbers

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]]
        choices = {"void_crowd": ("sum", "separate"), "crowds": ("last", "all")}
        choices |= {"areas": ("counted", "json"), "unlisted": ("raise", "void", "official")}
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                words = " or ".join(map(repr, valid))
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {words}.")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: choose from 0 up to, not including, 1.")
        threshold = self.threshold
        exact = threshold if isinstance(threshold, Fraction) else Fraction(str(threshold))
        object.__setattr__(self, "bound", exact)
        object.__setattr__(self, "_ratio", exact.as_integer_ratio())

    def exceeds(self, part: int, union: int | float) -> bool:
        """Whether part / union is above the threshold, exactly."""
        exact = union if isinstance(union, int) else Fraction(union)
        over, under = self._ratio
        return part * under > exact * over


PAPER: dict[str, Any] = {
    "void_crowd": "separate",
    "crowds": "all",
}  # Sec. 4.3, for `PanopticQuality(**PAPER)`


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


class _Segment(NamedTuple):
    """An entry of a list of segments, checked."""

    category: int
    crowd: bool
    area: int | float


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
    json = rules.areas == "json"
    known = _Listing(categories, where, official=rules.unlisted == "official")
    predictions = known.read(prediction_segments, "prediction")
    truths = known.read(truth_segments, "truth", area=json)
    rows, prediction_area, truth_area = _reconcile(pairs, predictions, truths, rules, where)
    if json:
        truth_area |= {t: segment.area for t, segment in truths.items()}
    void: dict[int, int] = {}  # pixels by prediction
    in_crowds: dict[tuple[int, int], int] = {}  # pixels by truth and prediction
    overlapping = []
    for t, p, n in rows:  # void comes first
        if t == 0:
            void[p] = n
        truth, prediction = truths.get(t), predictions.get(p)
        if truth is None or prediction is None:
            continue
        category, crowd, _ = truth
        if crowd:
            in_crowds[t, p] = n
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
    fn = _missed(truths, truth_area, {pair.truth for pair in tp})
    matched = {pair.prediction for pair in tp}
    alone = {p: segment for p, segment in predictions.items() if p not in matched}
    fp, ignored = _invented(alone, prediction_area, void, in_crowds, _crowds(truths, rules), rules)
    return Matching(tp, fp, fn, ignored, overlapping)


def _missed(
    truths: Mapping[int, _Segment], areas: Mapping[int, int | float], found: Collection[int]
) -> list[Outcome]:
    """The true segments that are neither crowds nor `found`."""
    return [
        Outcome(segment.category, t, 0, areas.get(t, 0), 0, 0, areas.get(t, 0))
        for t, segment in truths.items()
        if not segment.crowd and t not in found
    ]


def _invented(
    alone: Mapping[int, _Segment],
    areas: Mapping[int, int],
    void: Mapping[int, int],
    in_crowds: Mapping[tuple[int, int], int],
    crowds: Mapping[int, list[int]],
    rules: Rules,
) -> tuple[list[Outcome], list[Outcome]]:
    """FP and ignored ones among the predictions without partner, Sec. 4.3."""
    fp: list[Outcome] = []
    ignored: list[Outcome] = []
    for p, (category, _, _) in alone.items():
        area = areas[p]
        crowd = sum(in_crowds.get((t, p), 0) for t in crowds.get(category, ()))
        excused = _excused(void.get(p, 0), crowd, area, rules)
        (ignored if excused else fp).append(Outcome(category, 0, p, 0, area, 0, area))
    return fp, ignored


def _excused(void: int, crowd: int, area: int, rules: Rules) -> bool:
    """Whether a prediction of `area` pixels, so many of them void or crowd, is not an FP."""
    if rules.void_crowd == "sum":
        return rules.exceeds(void + crowd, area)
    return rules.exceeds(void, area) or rules.exceeds(crowd, area)


def _crowds(truths: Mapping[int, _Segment], rules: Rules) -> dict[int, list[int]]:
    """Category -> ids of its crowds that count."""
    crowds: dict[int, list[int]] = {}
    for t, segment in truths.items():
        if segment.crowd:
            earlier = crowds.get(segment.category, []) if rules.crowds == "all" else []
            crowds[segment.category] = [*earlier, t]
    return crowds


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


class _Listing(NamedTuple):
    """Reads lists of segments, with what the messages need."""

    categories: Mapping[int, Any]
    where: str
    official: bool

    def read(self, segments: Segments, side: str, *, area: bool = False) -> dict[int, _Segment]:
        """Id -> segment, in the order of the list; `area`: the file's is needed."""
        found: dict[int, _Segment] = {}
        least = 0 if self.official else 1
        for number, entry in enumerate(segments):
            get = entry.get
            key, category, crowd = get("id"), get("category_id"), get("iscrowd", 0)
            if type(key) is not int or type(category) is not int:
                key = self._whole(entry, "id", number, side)
                category = self._whole(entry, "category_id", number, side)
            if (
                not least <= key < LIMIT
                or key in found
                or category not in self.categories
                or crowd not in (0, 1)
            ):
                fault = self._fault(key, category, crowd, repeated=key in found)
                raise ValueError(f"{self.where}segment {key} of the {side}{fault}")
            size = _area(entry, f"{self.where}segment {key} of the {side}") if area else 0
            found[key] = _Segment(category, crowd == 1, size)
        return found

    def _whole(self, entry: Mapping[str, Any], name: str, number: int, side: str) -> int:
        """A number of an entry; ValueError unless it is whole."""
        value = whole(entry.get(name))
        if value is None:
            given = f"{entry[name]!r:.40} as {name!r}" if name in entry else f"no {name!r}"
            raise ValueError(
                f"{self.where}segment number {number} of the {side} has {given}: give a whole "
                "number."
            )
        return value

    def _fault(self, key: int, category: int, crowd: Any, *, repeated: bool) -> str:
        """What is wrong with an entry."""
        if key == 0 and not self.official:
            return " has the id of void: number segments from 1."
        if not 0 <= key < LIMIT:
            return f": ids go from 1 to {LIMIT - 1}."
        if repeated:
            return " is listed twice: give every segment an id of its own."
        if category not in self.categories:
            return (
                f" has category {category}, which is not one of the {len(self.categories)} "
                "categories: add it there, or correct the segment."
            )
        return f" has iscrowd {crowd!r:.40}: give 0 or 1."


def _area(entry: Mapping[str, Any], name: str) -> int | float:
    """The area that a file states, which may have a fraction."""
    area = entry.get("area")
    number = whole(area)
    if number is None and isinstance(area, float) and math.isfinite(area):
        return area
    if number is None:
        found = "no area" if area is None else f"area {area!r:.40}"
        raise ValueError(f'{name} has {found}: give its pixels, or use areas="counted".')
    return number


Row = tuple[int, int, int]  # ids of truth and prediction, pixels that they share


def _reconcile(
    pairs: Overlaps,
    predictions: dict[int, _Segment],
    truths: dict[int, _Segment],
    rules: Rules,
    where: str,
) -> tuple[list[Row], dict[int, int], dict[int, int | float]]:
    """Pixels by pair of ids, and areas of the prediction's and the truth's ids, by `unlisted`.

    Under "void", entries without pixels are taken out of `predictions` and `truths`.
    """
    rows: list[Row] = list(zip(*(column.tolist() for column in pairs), strict=True))
    if rules.unlisted == "void":
        sums: dict[tuple[int, int], int] = defaultdict(int)
        for t, p, n in rows:
            sums[t if t in truths else 0, p if p in predictions else 0] += n
        rows = [(t, p, n) for (t, p), n in sorted(sums.items())]
    truth_area: dict[int, int | float] = defaultdict(int)
    prediction_area: dict[int, int] = defaultdict(int)
    for t, p, n in rows:
        truth_area[t] += n
        prediction_area[p] += n
    for segments, area, side in (
        (predictions, prediction_area, "prediction"),
        (truths, truth_area, "truth"),
    ):
        if rules.unlisted == "void":
            for key in segments.keys() - area.keys():
                del segments[key]
        elif rules.unlisted == "raise" or side == "prediction":
            _same_ids(segments.keys(), area.keys() - {0}, side, where)
    return rows, prediction_area, truth_area


def _same_ids(listed: Any, drawn: Any, side: str, where: str) -> None:
    """Complain about the first id that only one of list and map has."""
    if drawn - listed:
        raise ValueError(
            f"{where}the map of the {side} has id {min(drawn - listed)}, but its segments do not "
            'list it: add the segment, set the pixels to 0 (void), or use unlisted="void".'
        )
    if listed - drawn - {0}:
        raise ValueError(
            f"{where}segment {min(listed - drawn - {0})} of the {side} is listed, but has no pixel "
            'in its map: leave it out, or use unlisted="void".'
        )
