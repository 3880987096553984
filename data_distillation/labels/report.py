"""How labels were chosen, in words: mu, k, thresholds, what is kept, what to look at."""

import math
from dataclasses import dataclass, field

from .counts import LabelledCounts

FEW = 10  # labels of a class below which its threshold rests on next to nothing
TIED = 1.1  # times k: more labels than these are no longer as many as the labelled set has
Class = int | None  # a category id; None: all of them together


@dataclass
class Report:
    """Counts of one choice of labels. k, thresholds and kept: by category id, or under None.

    denominator: labelled images that count in mu, `counted` says which. empty: images without a
    label. pairs: labels of two classes in one place. joints: those kept of all kept instances.
    """

    kind: str
    labelled: LabelledCounts
    denominator: int
    counted: str
    factor: float
    images: int
    skipped: int
    found: int
    k: dict[Class, int] = field(default_factory=dict)
    thresholds: dict[Class, float] = field(default_factory=dict)
    available: dict[Class, int] = field(default_factory=dict)  # detections
    kept: dict[Class, int] = field(default_factory=dict)
    crowds: int = 0
    empty: int = 0
    keep_empty: bool = True
    pairs: int = 0
    joints: int = 0
    joint_k: int | None = None  # None: by a fixed threshold, or all
    joint_threshold: float = -math.inf
    without_joints: int = 0

    @property
    def mu(self) -> float:
        """Instances of a labelled image."""
        return self.labelled.total / max(1, self.denominator)

    @property
    def total(self) -> int:
        """Labels."""
        return sum(self.kept.values())

    @property
    def joints_labelled(self) -> float:
        """Visible joints of a labelled instance."""
        return self.labelled.joints / max(1, self.labelled.total)

    @property
    def joints_kept(self) -> float:
        """Joints of an automatic label."""
        return self.joints / max(1, self.total)

    def __str__(self) -> str:
        """What a command prints."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The report, warnings last."""
        names = {entry["id"]: str(entry["name"]) for entry in self.labelled.categories}
        times = "" if self.factor == 1 else f", times labels.factor={self.factor:g}"
        joints = " with joints" if self.kind == "keypoints" else ""
        lines = [
            f"labelled: {say_count(self.labelled.total, 'instance')}{joints} in "
            f"{say_count(self.labelled.images, 'image')}, "
            f"denominator {self.denominator} ({self.counted}), mu = {self.mu:.4f}{times}",
            f"labels: {self.total} of {say_count(self.found, 'detection')} in "
            f"{say_count(self.images, 'image')}, "
            f"{self.total / max(1, self.images):.4f} an image",
        ]
        lines += [f"  {self._describe(key, names)}" for key in self.thresholds]
        if self.kind == "keypoints":
            k = "" if self.joint_k is None else f"k = {self.joint_k}, "
            lines.append(
                f"joints: {self.joints_kept:.3f} an instance, labelled {self.joints_labelled:.3f} "
                f"({k}threshold {say(self.joint_threshold)}); instances without a joint, which "
                f"stay as boxes: {self.without_joints}"
            )
        if self.crowds:
            crowds = say_count(self.crowds, "detection")
            lines.append(f"ignored: {crowds} below the threshold, as crowds")
        fate = "they stay as negatives" if self.keep_empty else "they are left out"
        lines.append(f"images without a label: {self.empty}" + (f", {fate}" if self.empty else ""))
        pairs = say_count(self.pairs, "pair")
        lines.append(f"labels of two classes in one place (IoU >= 0.9): {pairs}")
        if self.skipped:
            lines.append(f"images that could not be read: {self.skipped}, left out")
        return lines + [f"warning: {text}" for text in self._warnings(names)]

    def _describe(self, key: Class, names: dict[int, str]) -> str:
        """k, threshold and what is kept of one class, or of all."""
        name = "all classes" if key is None else names[key]
        parts = [f"threshold {say(self.thresholds[key])}", f"kept {self.kept[key]}"]
        if key in self.k:
            over = self.kept[key] - self.k[key]
            parts = [f"k = {self.k[key]}", *parts, *([f"{over} more by ties"] if over > 0 else [])]
        return f"{name}: {', '.join(parts)}"

    def _warnings(self, names: dict[int, str]) -> list[str]:
        few = []
        remedy = "lower merge.score to find more"
        if self.kind == "keypoints":  # whose persons are found in one pass, without a merge
            remedy = "a teacher of a lower network.score, or trained for longer, finds more"
        for key, k in self.k.items():
            what = "" if key is None else f" of {names[key]}"
            if self.available[key] < k:
                detections = say_count(self.available[key], "detection")
                few.append(f"{detections}{what}, fewer than k = {k}: all are kept; {remedy}")
        tied = {key: self.kept[key] - k for key, k in self.k.items() if self.kept[key] > TIED * k}
        if tied:
            what = ", ".join(names[key] for key in tied if key is not None)
            labels = say_count(sum(tied.values()), "label")
            few.append(f"{labels}{what and f' of {what}'} more than k by equal scores")
        scarce = [names[key] for key, k in self.k.items() if key is not None and 0 < k < FEW]
        if scarce:
            few.append(f"k is below {FEW} for {', '.join(scarce)}: their thresholds say little")
        never = [key for key, k in self.k.items() if key is not None and k == 0]
        if lacking := [names[key] for key in never if not self.labelled.instances[key]]:
            few.append(f"no label of {', '.join(lacking)}, which the labelled set lacks")
        if rare := [names[key] for key in never if self.labelled.instances[key]]:
            few.append(f"no label of {', '.join(rare)}: k is rounded to 0 in so few images")
        if self.k and not self.labelled.total:
            few.append(f"{self.labelled.where} has no instance, so that nothing is kept")
        if self.joint_k is not None and self.joints < self.joint_k:
            few.append(
                f"{say_count(self.joints, 'joint')}, fewer than k = {self.joint_k}: all are kept"
            )
        if self.joint_k is not None and self.joints > 1.01 * self.joint_k:
            more = say_count(self.joints - self.joint_k, "joint")
            few.append(f"{more} more than k by equal confidences")
        if self.pairs and self.pairs * 100 > self.total:
            few.append("many objects have two labels: try labels.cross_class_nms=0.9")
        return few


def say_count(number: int, noun: str) -> str:
    """A number of things: 1 image, 40 images."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def say(threshold: float) -> str:
    """A threshold in words."""
    if math.isinf(threshold):
        return "none, all are kept" if threshold < 0 else "none, nothing is kept"
    return f"{threshold:.4g}"
