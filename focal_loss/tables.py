"""The tables of the paper, each row the overrides that give it.

    python tables.py                                     # the list
    python tables.py table1b scale=mini seeds=3 jobs=2   # run what is missing, print both figures
    python tables.py table1b scale=paper data.root=/data/coco
    python tables.py table1b run=false                   # only print what has been measured

At `scale=paper` a row differs from `experiment=paper data=coco` by what it names. At `scale=mini`
the same settings are trained on the built-in images (conf/experiment/mini.yaml); where the
paper's numbers are numbers of its images (pixels, iterations), the miniature has its own.
All figures are AP in percent; minival, R-50-FPN, 600 pixels unless the table says otherwise.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from pathlib import Path

from common.tables import Gap, Row, Table, main
from focal_loss import config  # noqa: F401 - tells Hydra the options

SCALES = {"mini": ["experiment=mini"], "paper": ["experiment=paper", "data=coco"]}
AP = ("AP", "AP50", "AP75")
BY_SIZE = (*AP, "AP_small", "AP_medium", "AP_large")
SCALED = "data.short_side=[640,672,704,736,768,800]"  # Unstated: the range; detectron2's


def row(
    name: str,
    overrides: list[str],
    figures: str,
    columns: tuple[str, ...] = AP,
    mini: list[str] | None = None,
) -> Row:
    """A row whose figures are written as in the paper, "31.1/49.4/33.0".

    mini: overrides of the miniature, where they are not the paper's.
    """
    values = dict(zip(columns, map(float, figures.split("/")), strict=True))
    instead = None if mini is None else {"mini": mini}
    return Row(name, overrides, instead=instead, **values)  # type: ignore[arg-type]


def alpha_ce(alpha: float, figures: str) -> Row:
    """A row of Table 1a."""
    return row(f"alpha = {alpha:g}", ["loss.gamma=0", f"loss.alpha={alpha:g}"], figures)


def focal(gamma: float, alpha: float, figures: str) -> Row:
    """A row of Table 1b."""
    overrides = [f"loss.gamma={gamma:g}", f"loss.alpha={alpha:g}"]
    return row(f"gamma = {gamma:g}, alpha = {alpha:g}", overrides, figures)


def anchors(scales: int, ratios: int, figures: str) -> Row:
    """A row of Table 1c; with one ratio it is 1."""
    values = {1: "[1.0]", 3: "[0.5,1.0,2.0]"}[ratios]
    overrides = [f"model.scales={scales}", f"model.ratios={values}"]
    return row(f"{scales} scales x {ratios} ratios", overrides, figures)


def ohem(batch: int, nms: float, ratio: int, figures: str) -> Row:
    """An OHEM row of Table 1d."""
    overrides = [f"loss.mining_batch={batch}", f"loss.mining_nms={nms:g}"]
    overrides += [f"loss.mining_ratio={ratio}", "loss.kind=ohem"]
    deep = ["model.backbone=resnet101", *overrides]
    return row(f"OHEM {'1:3 ' if ratio else ''}{batch}, NMS {nms:g}", deep, figures, mini=overrides)


def speed(depth: int, side: int, figures: str) -> Row:
    """A row of Table 1e, trained and tested at one size; mini: images of a sixth of it."""
    size = [f"data.short_side=[{side}]", f"data.test_short_side={side}"]
    size += [f"data.long_side={round(side * 5 / 3)}", f"model.backbone=resnet{depth}"]
    small = [f"data.scenes.{name}={side * 4 // 25}" for name in ("height", "width")]
    small += [f"model.width={16 if depth == 50 else 24}"]
    return row(f"ResNet-{depth}, {side}", size, figures, (*BY_SIZE, "milliseconds"), small)


def final(name: str, backbone: str, width: int, figures: str) -> Row:
    """A row of Table 2: 1.5 times the schedule and scale jitter at 800 pixels."""
    overrides = [f"model.backbone={backbone}", "steps=135000", SCALED, "data.long_side=1333"]
    overrides += ["data.test_short_side=800"]
    return row(name, overrides, figures, BY_SIZE, [f"model.width={width}", "steps=5250"])


TABLE1A = [
    alpha_ce(0.10, "0/0/0"),
    alpha_ce(0.25, "10.8/16.0/11.7"),
    alpha_ce(0.50, "30.2/46.7/32.8"),
    alpha_ce(0.75, "31.1/49.4/33.0"),
    alpha_ce(0.90, "30.8/49.7/32.3"),
    alpha_ce(0.99, "28.7/47.4/29.9"),
    alpha_ce(0.999, "25.1/41.7/26.1"),
]
TABLE1B = [
    focal(0, 0.25, "10.8/16.0/11.7"),  # of Table 1a: the miniature's best
    focal(0, 0.75, "31.1/49.4/33.0"),
    focal(0.1, 0.75, "31.4/49.9/33.1"),
    focal(0.2, 0.75, "31.9/50.7/33.4"),
    focal(0.5, 0.50, "32.9/51.7/35.2"),
    focal(1, 0.25, "33.7/52.0/36.2"),
    focal(2, 0.25, "34.0/52.5/36.5"),
    focal(5, 0.25, "32.2/49.6/34.8"),
]
PLAIN_HEADS = ["model.head_norm=none", "loss.normalizer=image", "lr=0.03"]  # as in the paper
PRIOR = [
    Row(
        "CE, every logit starts at 0",
        ["loss.gamma=0", "loss.alpha=0.5", "model.prior=0"],
        instead={"mini": ["loss.gamma=0", "loss.alpha=0.75", "model.prior=0", *PLAIN_HEADS]},
    ),
    Row(
        "CE, prior 0.01",
        ["loss.gamma=0", "loss.alpha=0.5"],
        instead={"mini": ["loss.gamma=0", "loss.alpha=0.75", *PLAIN_HEADS]},
        AP=30.2,
    ),
]
TABLE1C = [
    anchors(1, 1, "30.3/49.0/31.8"),
    anchors(2, 1, "31.9/50.0/34.0"),
    anchors(3, 1, "31.8/49.4/33.7"),
    anchors(1, 3, "32.4/52.3/33.9"),
    anchors(2, 3, "34.2/53.1/36.5"),
    anchors(3, 3, "34.0/52.5/36.5"),
    anchors(4, 3, "33.8/52.1/36.2"),
]
TABLE1D = [
    ohem(128, 0.7, 0, "31.1/47.2/33.2"),
    ohem(256, 0.7, 0, "31.8/48.8/33.9"),
    ohem(512, 0.7, 0, "30.6/47.0/32.6"),
    ohem(128, 0.5, 0, "32.8/50.3/35.1"),
    ohem(256, 0.5, 0, "31.0/47.4/33.0"),
    ohem(512, 0.5, 0, "27.6/42.0/29.2"),
    ohem(128, 0.5, 3, "31.1/47.2/33.2"),
    ohem(256, 0.5, 3, "28.3/42.4/30.3"),
    ohem(512, 0.5, 3, "24.0/35.5/25.8"),
    row("focal loss", ["model.backbone=resnet101"], "36.0/54.9/38.7", mini=[]),
]
TABLE1E = [
    speed(50, 400, "30.5/47.8/32.7/11.2/33.8/46.1/64"),
    speed(50, 500, "32.5/50.9/34.8/13.9/35.8/46.7/72"),
    speed(50, 600, "34.3/53.2/36.9/16.2/37.4/47.4/98"),
    speed(50, 700, "35.1/54.2/37.7/18.0/39.3/46.4/121"),
    speed(50, 800, "35.7/55.0/38.5/18.9/38.9/46.3/153"),
    speed(101, 400, "31.9/49.5/34.1/11.6/35.8/48.5/81"),
    speed(101, 500, "34.4/53.1/36.8/14.7/38.5/49.1/90"),
    speed(101, 600, "36.0/55.2/38.7/17.4/39.6/49.7/122"),
    speed(101, 700, "37.1/56.6/39.8/19.1/40.6/49.4/154"),
    speed(101, 800, "37.8/57.5/40.8/20.2/41.1/49.2/198"),
]
TABLE2 = [
    final("RetinaNet, ResNet-101-FPN", "resnet101", 16, "39.1/59.1/42.3/21.8/42.7/50.2"),
    final("RetinaNet, ResNeXt-101-FPN", "resnext101_32x8d", 24, "40.8/61.1/44.1/24.1/44.2/51.2"),
]
TABLE3 = [
    row("CE", ["loss.gamma=0", "loss.alpha=0.75"], "31.1/49.4/33.0"),
    row("FL, gamma = 2", ["loss.gamma=2", "loss.alpha=0.25"], "34.0/52.5/36.5"),
    row(
        "FL*, gamma = 2, beta = 1",
        ["loss.kind=focal_star", "loss.gamma=2", "loss.beta=1"],
        "33.8/52.7/36.3",
    ),
    row(
        "FL*, gamma = 4, beta = 0",
        ["loss.kind=focal_star", "loss.gamma=4", "loss.beta=0"],
        "33.9/51.8/36.4",
    ),
]

TABLES = [
    Table("table1a", "Varying alpha for cross entropy", rows=TABLE1A, columns=AP, scales=SCALES),
    Table(
        "table1b",
        "Varying gamma for the focal loss, each with its best alpha",
        rows=TABLE1B,
        columns=AP,
        scales=SCALES,
        claims=[
            Gap(
                better="gamma = 2, alpha = 0.25",
                than=["gamma = 0, alpha = 0.25"],
                column="AP",
                at_least=2.0,
                paper=2.9,
            )
        ],
    ),
    Table(
        "prior",
        "Cross entropy with and without the prior, Sec. 5.1 (paper: without it, it diverges)",
        rows=PRIOR,
        columns=AP,
        scales=SCALES,
    ),
    Table("table1c", "Anchors: scales and ratios", rows=TABLE1C, columns=AP, scales=SCALES),
    Table(
        "table1d",
        "Focal loss against hard example mining, ResNet-101",
        rows=TABLE1D,
        columns=AP,
        scales=SCALES,
        claims=[
            Gap(
                better="focal loss",
                than=[each.name for each in TABLE1D[:-1]],
                column="AP",
                paper=3.2,
            )
        ],
    ),
    Table(
        "table1e",
        "Accuracy against speed (paper: test-dev, milliseconds on an M40)",
        rows=TABLE1E,
        columns=(*BY_SIZE, "milliseconds"),
        scales=SCALES,
    ),
    Table(
        "table2",
        "Final models (paper: test-dev; here minival)",
        rows=TABLE2,
        columns=BY_SIZE,
        scales=SCALES,
    ),
    Table("table3", "FL and FL*, Appendix A", rows=TABLE3, columns=AP, scales=SCALES),
]

if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"))
