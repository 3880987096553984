"""The tables of the paper, each row the overrides that give it.

    python tables.py                              # the list
    python tables.py table1b scale=mini seeds=3   # run what is missing, print paper beside ours
    python tables.py table1b scale=paper data.root=/data/coco processes=8
    python tables.py table1b run=false            # only print what has been measured

`paper` rows differ from `experiment=paper data=coco` only by what they name. `mini` rows are the
same settings on the built-in pictures (conf/experiment/mini.yaml), each with the same two rates.
All figures are AP in percent on minival for R-50-FPN at 600 pixels unless the table says otherwise.
"""

from pathlib import Path

from common.tables import Gap, Row, Table, main

CE = "loss.gamma=0"
MINI_RATES = {"mini": {"lr": [0.01, 0.02]}}
SCALES = {"mini": ["experiment=mini"], "paper": ["experiment=paper", "data=coco"]}
COLUMNS = ("AP", "AP50", "AP75")


def row(name: str, overrides: list[str], figures: str, **more: float) -> Row:
    """A row whose figures are written as in the paper, "31.1/49.4/33.0"."""
    values = dict(zip(COLUMNS, map(float, figures.split("/")), strict=True))
    return Row(name, overrides, **values, **more)


def alpha_ce(alpha: float, figures: str) -> Row:
    """A row of Table 1a."""
    return row(f"alpha = {alpha:g}", [CE, f"loss.alpha={alpha}"], figures)


def focal(gamma: float, alpha: float, figures: str) -> Row:
    """A row of Table 1b."""
    overrides = [f"loss.gamma={gamma}", f"loss.alpha={alpha}"]
    return row(f"gamma = {gamma:g}, alpha = {alpha:g}", overrides, figures)


def anchors(scales: int, ratios: int, figures: str) -> Row:
    """A row of Table 1c."""
    values = {1: "[1.0]", 3: "[0.5,1.0,2.0]"}[ratios]
    overrides = [f"model.scales={scales}", f"model.ratios={values}"]
    return row(f"{scales} scales, {ratios} ratios", overrides, figures)


def mined(batch: int, nms: float, ratio: int, figures: str) -> Row:
    """An OHEM row of Table 1d."""
    overrides = [
        "loss.kind=ohem",
        f"loss.mining_batch={batch}",
        f"loss.mining_nms={nms}",
        f"loss.mining_ratio={ratio}",
    ]
    return row(f"OHEM {'1:3 ' if ratio else ''}{batch}, nms {nms:g}", overrides, figures)


ALPHAS = [
    alpha_ce(0.10, "0/0/0"),
    alpha_ce(0.25, "10.8/16.0/11.7"),
    alpha_ce(0.50, "30.2/46.7/32.8"),
    alpha_ce(0.75, "31.1/49.4/33.0"),
    alpha_ce(0.90, "30.8/49.7/32.3"),
    alpha_ce(0.99, "28.7/47.4/29.9"),
    alpha_ce(0.999, "25.1/41.7/26.1"),
]

GAMMAS = [
    focal(0, 0.75, "31.1/49.4/33.0"),
    focal(0.1, 0.75, "31.4/49.9/33.1"),
    focal(0.2, 0.75, "31.9/50.7/33.4"),
    focal(0.5, 0.50, "32.9/51.7/35.2"),
    focal(1, 0.25, "33.7/52.0/36.2"),
    focal(2, 0.25, "34.0/52.5/36.5"),
    focal(5, 0.25, "32.2/49.6/34.8"),
]

TABLES = [
    Table(
        "table1a",
        "Varying alpha for cross entropy (gamma = 0)",
        rows=ALPHAS,
        columns=COLUMNS,
        scales=SCALES,
        grid=MINI_RATES,
    ),
    Table(
        "table1b",
        "Varying gamma for the focal loss, each with its best alpha",
        rows=GAMMAS,
        columns=COLUMNS,
        scales=SCALES,
        grid=MINI_RATES,
    ),
]

if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"))
