"""The tables and curves of the paper, each row the overrides that give it.

    python tables.py                                     # the list
    python tables.py table1 scale=mini seeds=3 jobs=2    # run what is missing, print both figures
    python tables.py table1 data=cifar10 data.root=DIR   # the same on other images
    python tables.py table1 scale=paper data.root=/data/imagenet
    python tables.py table1 run=false                    # only print what has been measured

At `scale=paper` a row differs from `experiment=paper data=imagenet` by what it names. At
`scale=mini` (conf/experiment/mini.yaml) the reference minibatch is 32, one worker, and 512 stands
for the paper's 8k: the room between a reference that trains and the largest minibatch is smaller.
`error` is the median top-1 validation error of the last five epochs in percent.

Table 3 runs transfer.py with data.root=/data/coco: 3a on the networks that `fig1 scale=paper` left,
seed by seed, 3b on `init=imagenet`, torchvision's, or another file. figures.py draws Figs. 2-5 and
7-8.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from pathlib import Path

from common.tables import Gap, Near, Row, Table, main
from large_minibatch import (
    config,  # noqa: F401
    transfer,  # noqa: F401 - tells Hydra the options, as does config
)

SCALES = {"mini": ["experiment=mini"], "paper": ["experiment=paper", "data=imagenet"]}
COLUMNS = ("error", "train_error")
SMALL, LARGE = 256, 8192  # minibatches of the paper
MINI = {SMALL: 32, LARGE: 512}  # and of the miniature


def row(
    name: str,
    batch_size: int,
    overrides: list[str],
    error: float | None = None,
    mini: list[str] | None = None,
) -> Row:
    """A row at a minibatch of the paper. mini: overrides of the miniature where they are others."""
    small = [f"batch_size={MINI[batch_size]}", *(overrides if mini is None else mini)]
    return Row(name, [f"batch_size={batch_size}", *overrides], instead={"mini": small}, error=error)


def other_rate(name: str, batch_size: int, rate: float, error: float) -> Row:
    """A row of Table 2a with another reference rate than 0.1."""
    return row(name, batch_size, [f"rate.base={rate:g}", f"rate.start={rate:g}"], error)


GRADUAL, LINEAR = "kn = 8k, gradual warm-up", "kn = 8k, eta = 0.10 x 32"
TABLE1 = [
    row("kn = 256", SMALL, [], 23.60),
    row("kn = 8k, no warm-up", LARGE, ["rate.warmup=none"], 24.84),
    row("kn = 8k, constant warm-up", LARGE, ["rate.warmup=constant"], 25.88),
    row(GRADUAL, LARGE, [], 23.74),
]
TABLE2A = [
    other_rate("kn = 256, eta = 0.05", SMALL, 0.05, 23.92),
    row("kn = 256, eta = 0.10", SMALL, [], 23.60),
    other_rate("kn = 256, eta = 0.20", SMALL, 0.2, 23.68),
    other_rate("kn = 8k, eta = 0.05 x 32", LARGE, 0.05, 24.27),
    row(LINEAR, LARGE, [], 23.74),
    other_rate("kn = 8k, eta = 0.20 x 32", LARGE, 0.2, 24.05),
    row("kn = 8k, eta = 0.10", LARGE, ["rate.rule=fixed"], 41.67),
    row("kn = 8k, eta = 0.10 x sqrt(32)", LARGE, ["rate.rule=sqrt"], 26.22),
]
ONE = ["model.zero_gamma=false"]
TABLE2B = [
    row("kn = 256, gamma = 1", SMALL, ONE, 23.84),
    row("kn = 256, gamma = 0", SMALL, [], 23.60),
    row("kn = 8k, gamma = 1", LARGE, ONE, 24.11),
    row("kn = 8k, gamma = 0", LARGE, [], 23.74),
]
TABLE2C = [
    row(f"ResNet-101, kn = {n}", n, ["model.name=resnet101"], error, mini=["model.width=16"])
    for n, error in ((SMALL, 22.08), (LARGE, 22.36))
]
ERRORS = {  # Fig. 1
    64: None,
    128: 23.49,
    256: 23.60,
    512: 23.48,
    1024: 23.53,
    2048: 23.49,
    4096: 23.56,
    8192: 23.74,
    16384: 24.79,
    32768: 27.55,
    65536: 33.96,
}
FIG1 = [Row(f"kn = {n}", [f"batch_size={n}"], error=error) for n, error in ERRORS.items()]
FIG1_MINI = [Row(f"kn = {n}", [f"batch_size={n}"]) for n in (32, 64, 128, 256, 512, 1024, 2048)]
FIG6 = [
    Row("kn = 256", ["batch_size=256"], error=25.83),
    Row("kn = 8k", ["batch_size=8192"], error=26.09),
]
GROUPS = [
    row("groups of 32", LARGE, [], 23.74),
    row("all of a process, no groups", LARGE, ["norm.kind=worker"]),
]
TRANSFERRED = {  # Table 3a: box AP and mask AP by minibatch of the pre-training
    **{256: (35.9, 33.9), 512: (35.8, 33.8), 1024: (35.9, 33.9), 2048: (35.9, 33.9)},
    **{4096: (35.8, 33.8), 8192: (35.8, 33.9), 16384: (35.1, 33.2)},
}
FINE_TUNED = {1: (35.7, 33.6), 2: (35.7, 33.7), 4: (35.7, 33.5), 8: (35.6, 33.6)}  # 3b, by GPUs


def transfer_row(batch_size: int, box_ap: float, mask_ap: float) -> Row:
    """A row of Table 3a: the network of Fig. 1's row with the same seed, fine-tuned on 8 GPUs."""
    run = f"outputs/tables/paper/batch_size={batch_size},data=imagenet-*"
    init = f'init="{run}/seed${{seed}}"'
    return Row(f"kn = {batch_size}", ["gpus=8", init], box_AP=box_ap, mask_AP=mask_ap)


TABLE3A = [transfer_row(n, *figures) for n, figures in TRANSFERRED.items()]
TABLE3B = [
    Row(
        f"{gpus} GPU{'s' if gpus > 1 else ''}, minibatch {2 * gpus}",
        [f"gpus={gpus}"],
        box_AP=box_ap,
        mask_AP=mask_ap,
    )
    for gpus, (box_ap, mask_ap) in FINE_TUNED.items()
]


def ahead(better: str, *than: str, at_least: float = 0.0, paper: float | None = None) -> Gap:
    """The claim that a row has a lower error than each of the others."""
    return Gap(better=better, than=than, column="error", at_least=at_least, paper=paper)


def as_good(row: str, to: str, paper: float | None = None) -> Near:
    """The claim that a row ends at the error of another, within the limit that we set ourselves."""
    return Near(row=row, to=to, column="error", within=0.5, paper=paper)


def table(
    name: str,
    title: str,
    rows: list[Row],
    *claims: Gap | Near,
    scales: dict[str, list[str]] = SCALES,
) -> Table:
    """A table of errors, at both scales if none are named."""
    return Table(
        name,
        title,
        rows=rows,
        columns=COLUMNS,
        scales=scales,
        claims=claims,
        digits=2,
        smaller_is_better=True,
        diverged=100.0,
    )


TABLES = [
    table(
        "table1",
        "Warm-up, ResNet-50",
        TABLE1,
        as_good(GRADUAL, "kn = 256", paper=0.14),
        ahead(GRADUAL, "kn = 8k, no warm-up", "kn = 8k, constant warm-up"),
    ),
    table(
        "table2a",
        "Learning rate scaling",
        TABLE2A,
        as_good(LINEAR, "kn = 256, eta = 0.10", paper=0.14),
        ahead(LINEAR, "kn = 8k, eta = 0.10", at_least=5.0, paper=17.93),
        ahead(LINEAR, "kn = 8k, eta = 0.10 x sqrt(32)", paper=2.48),
    ),
    table(
        "table2b",
        "Initial gamma of the last BN of a block",
        TABLE2B,
        ahead("kn = 256, gamma = 0", "kn = 256, gamma = 1", paper=0.24),
        ahead("kn = 8k, gamma = 0", "kn = 8k, gamma = 1", paper=0.37),
    ),
    table("table2c", "ResNet-101 (mini: twice the width)", TABLE2C),
    table("groups", "Images that share BN statistics, Sec. 2.3", GROUPS),
    table("fig1", "Error against minibatch", FIG1, scales={"paper": SCALES["paper"]}),
    table(
        "fig1_mini",
        "Error against minibatch, the miniature of Fig. 1",
        FIG1_MINI,
        as_good("kn = 512", "kn = 32"),
        ahead("kn = 512", "kn = 2048"),
        scales={"mini": SCALES["mini"]},
    ),
    table(
        "fig6",
        "ImageNet-5k, evaluated on the 1,000 classes",
        FIG6,
        scales={"paper": ["experiment=paper", "data=imagenet5k"]},
    ),
    Table(
        "table3a",
        "Mask R-CNN on backbones pre-trained with different minibatches",
        rows=TABLE3A,
        columns=("box_AP", "mask_AP"),
        scales={"paper": ["transfer=paper"]},
        script="transfer.py",
    ),
    Table(
        "table3b",
        "The linear scaling rule for Mask R-CNN",
        rows=TABLE3B,
        columns=("box_AP", "mask_AP"),
        scales={"paper": ["transfer=paper", "init=imagenet"]},
        script="transfer.py",
    ),
]

if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"))
