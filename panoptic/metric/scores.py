"""The scores of classes and of groups of classes; fractions, 0..1."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassScore:
    """Of one class; pq, sq and rq are nan where nothing of it occurs, sq is 0 without a match."""

    pq: float
    sq: float
    rq: float
    iou: float  # sum over the matches
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class GroupScore:
    """Means over the n classes of a group that occur; nan where none does."""

    pq: float
    sq: float
    rq: float
    n: int


@dataclass(frozen=True)
class Scores:
    """By category id in the order given, and the means."""

    classes: dict[int, ClassScore]
    all: GroupScore
    things: GroupScore
    stuff: GroupScore

    def percent(self) -> dict[str, float]:
        """PQ, SQ and RQ, then the same with _th for things and _st for stuff, times 100."""
        groups = {"": self.all, "_th": self.things, "_st": self.stuff}
        return {
            f"{metric.upper()}{suffix}": 100 * getattr(group, metric)
            for suffix, group in groups.items()
            for metric in ("pq", "sq", "rq")
        }
