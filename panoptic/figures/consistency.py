"""The consistency study as text: Tables 1, 2 and 6, with the paper's figures below ours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.tables.markdown import markdown

from ..annotators import paper
from ..annotators.analysis import SIZES
from .report import cell

GROUPS = [f"{measure}{group}" for measure in ("PQ", "SQ", "RQ") for group in ("", "_st", "_th")]
TABLE_6 = ("PQ", "SQ", "RQ", "PQ_st", "PQ_th")
Lines = list[list[str]]


def tables(found: Mapping[str, Any]) -> str:
    """Markdown: Tables 1, 2 and 6, then PQ by threshold and by weight, of what `study.py` found."""
    name = found["name"]
    table_1 = [
        [name, *_cells(found["consistency"], GROUPS)],
        [f"{name}, swapped", *_cells(found["swapped"], GROUPS)],
        *_paper(paper.TABLE_1),
    ]
    sizes = [f"{measure} {size}" for measure in ("PQ", "SQ", "RQ") for size in SIZES]
    table_2 = [[*line, "–"] for line in _paper(paper.TABLE_2)]
    for group, values in reversed(found["sizes"].items()):
        figures = [cell(values[size][measure]) for measure in range(3) for size in SIZES]
        low, high = values["edges"]
        table_2.insert(0, [f"{name}, {group}", *figures, f"{low:.0f}, {high:.0f} px"])
    thresholds = found["thresholds"].items()
    weights = found["alphas"].items()
    return "\n\n".join(
        [
            _table("Table 1: human consistency", GROUPS, table_1),
            _table("Table 2: human consistency by size", [*sizes, "S up to, L above"], table_2),
            _table("Table 6: human and machine", TABLE_6, _table_6(found)),
            _table(
                "PQ by threshold",
                GROUPS,
                [
                    [f"IoU > {threshold}", *_cells(values, GROUPS)]
                    for threshold, values in thresholds
                ],
            ),
            f"Of {found['matched']} pairs of an optimal matching without threshold, "
            f"{cell(found['matched below 0.5'])} % have an IoU below 0.5 (paper: below "
            f"{paper.BELOW_HALF:g} %†).",
            _table(
                "RQ by the weight of FP and FN",
                ["SQ", "RQ", "PQ"],
                [
                    [f"α = {alpha}", *_cells(values, ("SQ", "RQ", "PQ"))]
                    for alpha, values in weights
                ],
            ),
        ]
    )


def _table_6(found: Mapping[str, Any]) -> Lines:
    """Ours with the way to the 95th and the 5th percentile, and the paper's."""

    def ours(scores: Mapping[str, float], ends: Mapping[str, Sequence[float]]) -> list[str]:
        return [_spread(scores[m], ends[m][1] - scores[m], scores[m] - ends[m][0]) for m in TABLE_6]

    name = found["name"]
    lines = [[f"{name}, human", *ours(found["consistency"], found["intervals"])]]
    if "machine" in found:
        lines.append([f"{name}, machine", *ours(found["machine"], found["machine intervals"])])
    for place in paper.THREE:
        human = [_spread(*figures) for figures in paper.TABLE_6_HUMAN[place]]
        lines.append([f"paper, {place}, human†", *human])
        lines += _paper({f"{place}, machine": paper.TABLE_6_MACHINE[place]})
    return lines


def _spread(value: float, up: float, down: float) -> str:
    if math.isnan(value + up + down):
        return cell(value)
    return f"{value:.1f} (+{up:.1f}/-{down:.1f})"


def _paper(rows: Mapping[str, Sequence[float]]) -> Lines:
    return [[f"paper, {name}†", *map(cell, values)] for name, values in rows.items()]


def _cells(scores: Mapping[str, float], names: Iterable[str]) -> list[str]:
    return [cell(scores[name]) for name in names]


def _table(title: str, names: Sequence[str], lines: Lines) -> str:
    head = ["", *(name.replace("_st", "^St").replace("_th", "^Th") for name in names)]
    return f"{title}\n\n{markdown(head, lines)}"
