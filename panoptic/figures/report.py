"""Scores as text: the official tool's table, a table of the classes, JSON and CSV; all percent."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from common.tables.markdown import markdown

from ..files.categories import Category
from ..metric.scores import Scores


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


def source_table(sources: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: PQ of the maps of each source, as in the paper's Table 5."""
    lines = [
        [source.replace("_", " "), *(cell(scores[name]) for name in ("PQ", "PQ_th", "PQ_st"))]
        for source, scores in sources.items()
    ]
    return markdown(["Table 5", "PQ", "PQ^Th", "PQ^St"], lines)


def cell(value: float) -> str:
    """A figure as a table shows it, a dash where it is nan."""
    return "–" if math.isnan(value) else f"{value:.1f}"


def class_table(scores: Scores, categories: Mapping[int, Category]) -> str:
    """A line per class, percent; classes that do not occur have dashes."""
    width = max([len(category.name) for category in categories.values()], default=0)
    head = f"{'id':>5s}  {'class':{width}s}  {'':6s}|    PQ     SQ     RQ     TP     FP     FN"
    lines = [head, "-" * len(head)]
    for number, score in scores.classes.items():
        category = categories[number]
        percent = [f"{cell(100 * value):>5s}" for value in (score.pq, score.sq, score.rq)]
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
    return without_nan({"PQ": 100 * score.pq, "SQ": 100 * score.sq, "RQ": 100 * score.rq})


def without_nan(value: Any) -> Any:
    """The same with null for nan, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def class_csv(scores: Scores, categories: Mapping[int, Category]) -> str:
    """What csv= writes: a line per class, percent; the sum of IoU as a fraction."""
    columns = ["id", "name", "kind", "PQ", "SQ", "RQ", "iou", "tp", "fp", "fn"]
    return csv_text(columns, content(scores, categories)["per_class"])


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A heading and one line a row."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
