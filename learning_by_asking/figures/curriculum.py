"""What a run asked when: by type, answer and length, with validity and accuracy beside it.

n replies. A time is the share of the replies that had been bought by then, 0 to 1.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from common import draw, files
from common.clevr.functions import ANSWERS, ATTRIBUTES, TYPES
from common.tables.markdown import markdown

from ..ask import PRIOR, Policy
from ..asking.history import Asked, read_history, times_of
from ..oracle.replies import possible_answers

PIECES = 100  # of the budget, in curriculum.csv
WIDE = 25  # pieces in the picture
RESAMPLES = 999  # of the bootstrap
CONFIDENCE = 0.95
# Answers as the picture stacks them: a number or an attribute is one group.
GROUPS = ("yes", "no", "number", *ATTRIBUTES)

Share = tuple[int, str, str, float]  # replies so far, what, name, value


def write_curriculum(
    folder: str | Path,
    *,
    losses: Mapping[str, float] | None = None,
    beside: Mapping[str, str | Path] | None = None,
    name: str = "asked",
    rate: float = Policy.rate,
) -> dict[str, float]:
    """Write curriculum.csv and curriculum.png of a run; what `summarise` says of it.

    losses: of the answerer before it asked anything, by type, see learn.losses_by_type. beside:
    folders of other runs that are drawn next to it, such as that of random choice, by name.
    """
    history = read_history(folder)
    if not history:
        return {}
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(("asked", "what", "name", "value"))
    table.writerows((*row[:3], f"{row[3]:.6g}") for row in measure_pieces(history, rate=rate))
    files.write_text(Path(folder, "curriculum.csv"), buffer.getvalue())
    others = {label: read_history(other) for label, other in (beside or {}).items()}
    draw_curriculum(Path(folder, "curriculum.png"), {name: history} | others)
    return summarise(history, losses)


def measure_pieces(
    history: Sequence[Asked], pieces: int = PIECES, *, rate: float = Policy.rate
) -> list[Share]:
    """Shares of each hundredth of the replies: (replies so far, what, name, value).

    what: `validity`; `type` and `length` (number of functions), shares of all replies; `answer`,
    shares of the valid ones; `H`, the answerer's running accuracy on an answer, here the mean
    probability of the right answer (as with policy.soft), from its first such question on. Shares
    of 0 are left out.
    """
    rows: list[Share] = []
    H: dict[str, float] = {}
    for first, last in _cut(history, pieces):
        piece = history[first:last]
        valid = [each for each in piece if each.valid]
        rows.append((last, "validity", "", len(valid) / len(piece)))
        rows += _shares(last, "type", [each.type or "none" for each in piece], (*TYPES, "none"))
        rows += _shares(last, "answer", [each.reply or "" for each in valid], ANSWERS)
        lengths = [str(len(each.program)) for each in piece]
        rows += _shares(last, "length", lengths, sorted(set(lengths), key=int))
        for each in valid:
            if each.reply and each.v_prob_answer is not None:
                before = H.get(each.reply, PRIOR)
                H[each.reply] = before + rate * (each.v_prob_answer - before)
        rows += [(last, "H", answer, H[answer]) for answer in ANSWERS if answer in H]
    return rows


def _shares(asked: int, what: str, names: Sequence[str], known: Sequence[str]) -> list[Share]:
    counts = Counter(names)
    return [(asked, what, k, counts[k] / len(names)) for k in known if counts[k]]


class Time(NamedTuple):
    """The mean time at which a type was asked, and a bootstrap interval for it."""

    mean: float
    low: float
    high: float
    number: int  # of questions


def find_times(history: Sequence[Asked], seed: int = 0) -> dict[str, Time]:
    """When each type that occurs was asked, with the 95 % percentile interval of its mean."""
    times, random = times_of(history), np.random.default_rng(seed)
    types = np.array([each.type or "" for each in history])
    found = {}
    for kind in TYPES:
        own = times[types == kind]
        if len(own):
            means = [random.choice(own, len(own)).mean() for _ in range(RESAMPLES)]
            tail = (1 - CONFIDENCE) / 2
            low, high = np.quantile(means, (tail, 1 - tail)).tolist()
            found[kind] = Time(float(own.mean()), low, high, len(own))
    return found


def summarise(
    history: Sequence[Asked], losses: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Figures of a run: `validity` in percent, `time_TYPE` and `order_by_WHAT`.

    time_TYPE: mean asking time in percent of the replies. order_by_WHAT: Spearman's correlation,
    over the types, of that time with the number of possible answers (`answers`), the mean number
    of functions (`length`) and `losses` (`loss`: what the answerer found hard before it asked);
    nan below three types.
    """
    times = find_times(history)
    metrics = {"validity": 100 * float(np.mean([each.valid for each in history]))}
    metrics |= {f"time_{kind}": 100 * time.mean for kind, time in times.items()}
    measures: dict[str, Mapping[str, float]] = {
        "answers": {kind: float(len(possible_answers(kind))) for kind in times},
        "length": {kind: _mean_length(history, kind) for kind in times},
    }
    if losses is not None:
        measures["loss"] = losses
    means = {kind: time.mean for kind, time in times.items()}
    return metrics | {f"order_by_{what}": correlate(means, of) for what, of in measures.items()}


def _mean_length(history: Sequence[Asked], kind: str) -> float:
    return float(np.mean([len(each.program) for each in history if each.type == kind]))


def correlate(times: Mapping[str, float], values: Mapping[str, float]) -> float:
    """Spearman's correlation over the types that have both; nan below three or if all tie."""
    kinds = [kind for kind in times if math.isfinite(values.get(kind, math.nan))]
    pairs = np.array([(times[kind], values[kind]) for kind in kinds]).reshape(-1, 2)
    if len(kinds) < 3 or not np.ptp(pairs, axis=0).all():
        return math.nan
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def format_times(runs: Mapping[str, Sequence[Asked]]) -> str:
    """Lines `type  mean [low, high]` in percent of the replies, a column for each run."""
    found = {name: find_times(history) for name, history in runs.items()}
    kinds = [kind for kind in TYPES if any(kind in times for times in found.values())]
    lines = [[kind, *(_cell(times.get(kind)) for times in found.values())] for kind in kinds]
    return markdown(["asked at, % of the replies", *found], lines)


def _cell(time: Time | None) -> str:
    if time is None:
        return "–"
    return f"{100 * time.mean:.0f} [{100 * time.low:.0f}, {100 * time.high:.0f}]"


def draw_curriculum(path: Path, runs: Mapping[str, Sequence[Asked]]) -> None:
    """Write a PNG: for each run, stacked over time, its types with validity, answers, lengths."""
    from matplotlib.figure import Figure  # takes half a second to import

    runs = {name: history for name, history in runs.items() if history}
    figure = Figure(figsize=(1.8 + 4.2 * len(runs), 8.4), dpi=120, layout="constrained")
    panels = figure.subplots(3, len(runs), sharey=True, squeeze=False)
    for column, (name, history) in enumerate(runs.items()):
        for row, (what, names) in enumerate(_stacks(runs)):
            axes = panels[row, column]
            _stack(axes, history, what, names)
            if what == "type":
                axes.set_title(name)
                cuts = _cut(history, WIDE)
                valid = [np.mean([each.valid for each in history[a:b]]) for a, b in cuts]
                middles = [(a + b) / 2 for a, b in cuts]
                axes.plot(middles, valid, color="black", linewidth=1.4, label="valid")
            if column == 0:
                axes.set_ylabel(f"share by {what}")
            if column == len(runs) - 1:
                axes.legend(
                    frameon=False, fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5),
                    reverse=True,
                )  # fmt: skip
        panels[-1, column].set_xlabel("replies bought")
    draw.save_figure(figure, path)


def _stacks(runs: Mapping[str, Sequence[Asked]]) -> list[tuple[str, list[str]]]:
    """What is stacked, and the names that occur in any run, so that colours agree."""
    found: list[tuple[str, list[str]]] = []
    for what in ("type", "answer", "length"):
        seen = {_name(each, what) for history in runs.values() for each in history}
        names = sorted(seen - {""}, key=int) if what == "length" else [*TYPES, *GROUPS]
        found.append((what, [name for name in names if name in seen]))
    return found


def _name(asked: Asked, what: str) -> str:
    """What a question is stacked by; empty: it is not."""
    if what == "type":
        return asked.type or ""
    if what == "length":
        return str(len(asked.program))
    reply = asked.reply or ""
    if reply.isdigit():
        return "number"
    return next((name for name, values in ATTRIBUTES.items() if reply in values), reply)


def _cut(history: Sequence[Asked], pieces: int) -> list[tuple[int, int]]:
    """First and last + 1 of pieces of equal length; fewer where there are fewer questions."""
    edges = np.unique(np.linspace(0, len(history), pieces + 1).round().astype(int)).tolist()
    return list(pairwise(edges))


def _stack(axes: Any, history: Sequence[Asked], what: str, names: Sequence[str]) -> None:
    """Shares of the names over time, one on the other."""
    cuts = _cut(history, WIDE)
    middles = [(a + b) / 2 for a, b in cuts]
    counts = [Counter(_name(each, what) for each in history[a:b]) for a, b in cuts]
    totals = [max(1, sum(count[name] for name in names)) for count in counts]
    shares = [[c[name] / n for c, n in zip(counts, totals, strict=True)] for name in names]
    colors = [[channel / 255 for channel in shade] for shade in draw.palette(len(names))]
    axes.stackplot(middles, shares, labels=names, colors=colors, alpha=0.85)
    axes.set(xlim=(middles[0], max(middles[-1], middles[0] + 1)), ylim=(0, 1))
