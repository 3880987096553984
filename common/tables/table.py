"""A paper's table as data: its rows, the runs that give them, and what it is said to show."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from .claims import Beside, Gap, Near


class Row:
    """One row: its name, the overrides that give it, and the figures that the paper prints for it.

    A figure is named like its column; one that is absent or None is not in the paper. `memory`
    names the figures that were recalled and not confirmed. `instead` gives a scale overrides of its
    own, where the paper's would make no sense there: {"mini": ["data.test_short_side=64"]}. `only`
    is the one scale that has the row, where the others have nothing like it.
    """

    def __init__(
        self,
        name: str,
        overrides: Sequence[str],
        *,
        memory: Iterable[str] = (),
        instead: Mapping[str, Sequence[str]] | None = None,
        only: str = "",
        **paper: float | None,  # the columns differ from table to table
    ) -> None:
        self.name = name
        self.overrides, self.only = list(overrides), only
        self.instead = {scale: list(words) for scale, words in (instead or {}).items()}
        self.memory = frozenset(memory)
        self.paper = {column: value for column, value in paper.items() if value is not None}

    def at(self, scale: str) -> list[str]:
        """The overrides of this row at a scale."""
        return self.instead.get(scale, self.overrides)


@dataclass(frozen=True)
class Table:
    """A table of the paper, and the scales at which its rows can be run."""

    name: str
    title: str
    _: KW_ONLY
    rows: Sequence[Row]
    columns: Sequence[str]  # names in result.json's metrics
    scales: dict[str, list[str]]  # overrides by scale; the first scale is the default
    claims: Sequence[Gap | Near | Beside] = ()
    note: str = ""
    digits: int = 1
    smaller_is_better: bool = False
    diverged: float = 0.0  # what a diverged run counts as, in every column
    script: str = "train.py"  # another one's Hydra configuration has its name: conf/<name>.yaml

    def __post_init__(self) -> None:
        """Find slips in the declaration before hours are spent on it."""
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names) or not names or not self.scales:
            raise ValueError(f"{self.name}: rows need different names, and a table rows and scales")
        wanted = [(column, self.columns) for row in self.rows for column in row.paper]
        wanted += [(column, self.columns) for row in self.rows for column in row.memory]
        wanted += [(claim.column, self.columns) for claim in self.claims]
        wanted += [(name, names) for claim in self.claims for name in claim.names]
        beside = [claim for claim in self.claims if isinstance(claim, Beside)]
        wanted += [(claim.other, self.columns) for claim in beside]
        wanted += [(row.only, list(self.scales)) for row in self.rows if row.only]
        if not all(len(claim.names) > 1 for claim in self.claims if claim not in beside):
            raise ValueError(f"{self.name}: a claim needs rows to compare with")
        for word, choices in wanted:
            if word not in choices:
                raise ValueError(f"{self.name}: {unknown(word, choices)}")

    def at(self, scale: str) -> "Table":
        """The table of a scale: the rows that it has, and the claims about these."""
        rows = [row for row in self.rows if row.only in ("", scale)]
        names = {row.name for row in rows}
        claims = [claim for claim in self.claims if names.issuperset(claim.names)]
        return replace(self, rows=rows, claims=claims)

    @property
    def config(self) -> str:
        """Name of the script's Hydra configuration."""
        return "config" if self.script == "train.py" else Path(self.script).stem


def unknown(word: str, choices: Sequence[str]) -> str:
    """`word` is none of the `choices`, in words, with the nearest of them."""
    near = difflib.get_close_matches(word, choices, 1, 0.5)
    advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}."
    return f"{word!r} is unknown; {advice}"


def key_of(word: str) -> str:
    """The option that an override sets."""
    return word.split("=", 1)[0].lstrip("+~")
