"""Scores as text: the official tool's table, a table of the classes, JSON and CSV; all percent."""

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from ..files.categories import Category
from ..quality import Scores


def summary(scores: Scores) -> str:
    """The official tool's table, percent."""
    lines = [f"{'':10s}| {'PQ':>5s}  {'SQ':>5s}  {'RQ':>5s} {'N':>5s}", "-" * 38]
    for name, group in groups(scores).items():
        percent = [100 * value for value in (group.pq, group.sq, group.rq)]
        lines.append("{:10s}| {:5.1f}  {:5.1f}  {:5.1f} {:5d}".format(name, *percent, group.n))
    return "\n".join(lines)


def groups(scores: Scores) -> dict[str, Any]:
    """The means by the official tool's names."""
    return {"All": scores.all, "Things": scores.things, "Stuff": scores.stuff}


def class_table(scores: Scores, categories: Mapping[int, Category]) -> str:
    """A line per class, percent; classes that do not occur have dashes."""
    width = max([len(category.name) for category in categories.values()], default=0)
    head = f"{'id':>5s}  {'class':{width}s}  {'':6s}|    PQ     SQ     RQ     TP     FP     FN"
    lines = [head, "-" * len(head)]
    for number, score in scores.classes.items():
        category = categories[number]
        percent = [
            f"{'–':>5s}" if math.isnan(value) else f"{100 * value:5.1f}"
            for value in (score.pq, score.sq, score.rq)
        ]
        lines.append(
            f"{number:5d}  {category.name:{width}s}  {kind(category):6s}| {'  '.join(percent)} "
            f"{score.tp:6d} {score.fp:6d} {score.fn:6d}"
        )
    return "\n".join(lines)


def kind(category: Category) -> str:
    """What a class is, in a word."""
    return "thing" if category.isthing else "stuff"


def content(scores: Scores, categories: Mapping[int, Category]) -> dict[str, Any]:
    """What json= writes: percent, null where nothing occurs."""
    written: dict[str, Any] = {
        name: {**_percent(group), "N": group.n} for name, group in groups(scores).items()
    }
    written["per_class"] = [
        {
            "id": number,
            "name": categories[number].name,
            "kind": kind(categories[number]),
            **_percent(score),
            **{"iou": score.iou, "tp": score.tp, "fp": score.fp, "fn": score.fn},
        }
        for number, score in scores.classes.items()
    ]
    return written


def _percent(score: Any) -> dict[str, float | None]:
    values = {"PQ": score.pq, "SQ": score.sq, "RQ": score.rq}
    return {key: None if math.isnan(value) else 100 * value for key, value in values.items()}


def class_csv(scores: Scores, categories: Mapping[int, Category]) -> str:
    """What csv= writes: a line per class, percent; the sum of IoU as a fraction."""
    columns = ["id", "name", "kind", "PQ", "SQ", "RQ", "iou", "tp", "fp", "fn"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(content(scores, categories)["per_class"])
    return stream.getvalue()
