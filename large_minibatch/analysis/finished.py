"""Finished runs as groups of equal settings, the groups that differ in one thing, their curves.

A curve maps the epochs done to an error in percent. The paper judges a large minibatch by eye: its
training curve "closely matches" the small one's once the warm-up is over (Sec. 5.2, Figs. 2-4),
while curves that differ may still end alike (Fig. 5). `distance` is a number for it.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from common.run import log
from common.tables.runs import read_result

from .. import recipe

Curve = dict[float, float]  # epochs done -> percent
KEEPING = {  # settings that change how a run is computed, not what it is
    "seed",
    "output_dir",
    "processes",
    "threads",
    "log_every",
    "save_every",
    "per_forward",
    "allreduce",
    "overlap",
    "compile",
    "only_evaluate",
    "versus",
    "data.root",
    "data.workers",
    "data.in_memory",
    "data.bad_images",
}


@dataclass
class Group:
    """Runs that differ in their seed alone."""

    settings: dict[str, Any]  # by dotted name
    runs: list[list[dict[str, Any]]]  # lines of each one's metrics.jsonl

    @property
    def kn(self) -> int:
        """The minibatch."""
        return self.settings["batch_size"]

    @property
    def reference(self) -> bool:
        """Whether this is the minibatch that the rate is scaled from."""
        return self.kn == self.settings["rate.base_batch"]

    def mean(self, key: str) -> tuple[Curve, Curve]:
        """Mean and standard deviation over the seeds of a curve."""
        return mean_curve([curve(lines, key) for lines in self.runs])

    def errors(self) -> list[float]:
        """Each run's error: the median of its last validation errors, Sec. 5.1."""
        last = self.settings["median_of"]
        found = [list(curve(lines, "val_error").values()) for lines in self.runs]
        return [recipe.median_of_last(values, last) for values in found]

    def distance(self, other: "Group") -> float:
        """Distance of the mean training curves after the longer warm-up, in points."""
        after = max(group.settings["rate.warmup_epochs"] for group in (self, other))
        return distance(self.mean("train_error")[0], other.mean("train_error")[0], after=after)


def collect(folders: Iterable[Path]) -> list[Group]:
    """The finished runs in and below `folders`, by their settings; says which are left out."""
    found: dict[str, Group] = {}
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give runs=outputs/... of train.py.")
        for file in sorted(folder.rglob("metrics.jsonl")):
            place, settings = file.parent.resolve(), file.parent / ".hydra" / "config.yaml"
            if place in seen or not settings.is_file():
                continue
            seen.add(place)
            values = _flat(OmegaConf.to_container(OmegaConf.load(settings)))
            if "rate.base_batch" not in values:  # of transfer.py
                continue
            result = read_result(place)
            if result is None or result.get("diverged"):
                print(f"left out, {'diverged' if result else 'not finished'}: {file.parent}")
                continue
            values = {key: value for key, value in values.items() if key not in KEEPING}
            key = json.dumps(values, sort_keys=True)
            found.setdefault(key, Group(values, [])).runs.append(log.read(place))
    return list(found.values())


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Values of nested dicts by their dotted names."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {k: v for key in node for k, v in _flat(node[key], f"{prefix}{key}.").items()}


def family(groups: Sequence[Group], varying: set[str], figure: str) -> list[Group]:
    """The groups that differ in `varying` alone, by rising minibatch.

    Of several such sets the largest, then the one with the fewest differences to all groups.
    """
    sets: dict[str, list[Group]] = {}
    for group in groups:
        fixed = {key: value for key, value in group.settings.items() if key not in varying}
        sets.setdefault(json.dumps(fixed, sort_keys=True), []).append(group)

    def merit(members: list[Group]) -> tuple[int, float]:
        apart = [len(_differing(a, b)) for a in members for b in groups]
        return len(members), -sum(apart) / len(members)

    ranked = sorted(sets.values(), key=merit, reverse=True)
    if not ranked or len(ranked[0]) < 2:
        raise ValueError(
            f"{figure} needs finished runs that differ in {' and '.join(sorted(varying))} alone; "
            f"no two of the {len(groups)} found do: name more folders in runs=."
        )
    if len(ranked) > 1 and merit(ranked[0]) == merit(ranked[1]):
        keys = _differing(ranked[0][0], ranked[1][0]) - varying
        raise ValueError(
            f"{figure}: two sets of runs fit alike, which differ in {', '.join(sorted(keys))}: "
            "name the folders of one of them in runs=."
        )
    return sorted(ranked[0], key=lambda group: group.kn)


def _differing(a: Group, b: Group) -> set[str]:
    """Names of the settings in which two groups differ."""
    names = a.settings.keys() | b.settings.keys()
    return {name for name in names if a.settings.get(name) != b.settings.get(name)}


def reference(groups: Iterable[Group], figure: str) -> Group:
    """The group at the reference minibatch, with the gradual warm-up where there are several."""
    found = [group for group in groups if group.reference]
    if not found:
        raise ValueError(f"{figure} needs a run at the reference minibatch, rate.base_batch.")
    return next((g for g in found if g.settings["rate.warmup"] == "gradual"), found[0])


def curve(lines: Iterable[Mapping[str, Any]], key: str) -> Curve:
    """The curve of `key` ("train_error", "val_error") in the lines of a metrics.jsonl.

    Lines without it are passed over; of two lines of one epoch the later counts.
    """
    found = {
        float(line["epoch"]): float(line[key])
        for line in lines
        if line.get("epoch") is not None and line.get(key) is not None
    }
    return dict(sorted(found.items()))


def mean_curve(curves: Sequence[Curve]) -> tuple[Curve, Curve]:
    """Mean and standard deviation (n - 1; 0 for a single run) at the epochs that all runs have."""
    if not curves:
        raise ValueError("a mean needs one curve or more")
    epochs = sorted(set(curves[0]).intersection(*curves[1:]))
    values = {epoch: [run[epoch] for run in curves] for epoch in epochs}
    means = {epoch: statistics.fmean(v) for epoch, v in values.items()}
    stds = {epoch: statistics.stdev(v) if len(v) > 1 else 0.0 for epoch, v in values.items()}
    return means, stds


def distance(a: Curve, b: Curve, *, after: float) -> float:
    """Mean absolute difference of two curves in points, over the epochs > `after` that both have.

    `after`: epochs of the warm-up, where the curves differ by design. Raises ValueError where no
    epoch is left.
    """
    epochs = [epoch for epoch in a if epoch in b and epoch > after]
    if not epochs:
        raise ValueError(
            f"the curves, of {len(a)} and {len(b)} epochs, have none in common after epoch "
            f"{after:g}: compare runs that were evaluated in the same epochs"
        )
    return statistics.fmean(abs(a[epoch] - b[epoch]) for epoch in epochs)
