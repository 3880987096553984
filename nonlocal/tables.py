"""The tables of the paper, each row the overrides that give it.

    python tables.py                                     # the list
    python tables.py table2a scale=mini seeds=3 jobs=2   # run what is missing, print paper → ours
    python tables.py table2a scale=paper data.root=/data/kinetics
    python tables.py table2a run=false                   # only print what has been measured

At `scale=paper` a row differs by what it names from `experiment=paper data=kinetics`: C2D,
ResNet-50, 32 frames. At `scale=mini` the small network of conf/experiment/mini.yaml tells whether
two solids of a built-in clip have one colour; it has three stages, so that its blocks stand
elsewhere, and a ResNet-101 has no counterpart. Accuracy and AP are in percent.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from collections.abc import Sequence
from pathlib import Path

from common.tables import Gap, Row, Table, main
from nonlocal_ import config  # noqa: F401 - tells Hydra the options

MINI = {"mini": ["experiment=mini"]}
PAPER = {"paper": ["experiment=paper", "data=kinetics"]}
SCALES = MINI | PAPER
LONG = {
    "mini": ["experiment=mini", "data.builtin.frames=16", "data.builtin.gap=8"],
    "paper": ["experiment=long", "data=kinetics"],
}
TOP = ("top1", "top5")
COST = (*TOP, "kparams", "MMACs")
BOXES = ("box_AP", "box_AP50", "box_AP75", "mask_AP", "mask_AP50", "mask_AP75")
JOINTS = ("keypoint_AP", "keypoint_AP50", "keypoint_AP75")

I3D = ["network.inflate=3x1x1"]
R101 = ["network.depth=resnet101"]
ONE, FIVE, TEN = (["network.at=[1-block]"], ["network.at=[5-block]"], ["network.at=[10-block]"])
MINI_ONE = ["network.at=[res3.0]"]
MINI_MORE = ["network.at=[res3.0,res3.1]"]  # what stands for 5 blocks


def row(
    name: str,
    overrides: Sequence[str],
    figures: str = "",
    columns: Sequence[str] = TOP,
    mini: Sequence[str] | None = None,
    only: str = "",
) -> Row:
    """A row whose figures are written as in the paper, "71.8/89.7".

    mini: overrides of the miniature, where they are not the paper's.
    """
    values = dict(zip(columns, map(float, figures.split("/")), strict=False)) if figures else {}
    instead = None if mini is None else {"mini": list(mini)}
    return Row(name, overrides, instead=instead, only=only, **values)  # type: ignore[arg-type]


def mode(name: str, figures: str) -> Row:
    """A row of Table 2a."""
    word = f"block.mode={name.replace(' ', '_')}"
    return row(name, [*ONE, word], figures, mini=[*MINI_ONE, word])


def stage(place: str, figures: str, mini: str) -> Row:
    """A row of Table 2b: one block before the last residual block of a stage."""
    return row(
        place.split(".")[0],
        [f"network.at=[{place}]"],
        figures,
        mini=[f"network.at=[{mini}]"] if mini else None,
        only="" if mini else "paper",
    )


def over(depth: str, kind: str, figures: str) -> Row:
    """A row of Table 2d."""
    words: list[str] = [] if kind == "spacetime" else [f"block.over={kind}"]
    deep = R101 if depth == "R101" else []
    return row(
        f"{depth}, {kind}",
        [*deep, *FIVE, *words],
        figures,
        mini=[*MINI_MORE, *words],
        only="paper" if deep else "",
    )


def kinds(scale_101: bool, figures: Sequence[str]) -> list[Row]:
    """C2D, I3D and NL I3D of a depth, Tables 2f and 2g."""
    depth, deep = ("R101", R101) if scale_101 else ("R50", [])
    only = "paper" if scale_101 else ""
    words: tuple[list[str], ...] = ([], I3D, [*I3D, *FIVE])
    small: tuple[list[str], ...] = ([], I3D, [*I3D, *MINI_MORE])
    return [
        row(f"{depth} {name}", [*deep, *each], figure, mini=mini, only=only)
        for name, each, mini, figure in zip(
            ("C2D", "I3D", "NL I3D"), words, small, figures, strict=True
        )
    ]


def gains(better: str, than: str, paper: float | None = None, mini: float = 0.0) -> Gap:
    """One row ahead of another, as in the paper."""
    return Gap(better=better, than=[than], column="top1", at_least=mini, paper=paper)


def photos(backbone: str, baseline: str, block: str, words: Sequence[str] = ()) -> list[Row]:
    """Two rows of Table 5."""
    network = [*([] if backbone == "resnet50" else [f"detector.backbone={backbone}"]), *words]
    name = {"resnet50": "R50", "resnet101": "R101"}.get(backbone, "X152")
    return [
        row(f"{name} baseline", network, baseline, BOXES),
        row(f"{name} + 1 block", [*network, "detector.at=[1-block]"], block, BOXES),
    ]


HEAD = "head.2,head.4,head.6,head.8"
X152 = [
    "detector.short_sides=[640,672,704,736,768,800]",
    "steps=260000",
    "milestones=[0.76923077,0.92307693]",
    "batch_size=8",
    "per_gpu=1",
    "lr=0.01",
]

TABLES = [
    Table(
        "table2a",
        "Pairwise functions, one block in C2D",
        rows=[
            row("baseline", [], "71.8/89.7"),
            mode("gaussian", "72.5/90.2"),
            mode("embedded gaussian", "72.7/90.5"),
            mode("dot product", "72.9/90.3"),
            mode("concatenation", "72.8/90.5"),
        ],
        columns=TOP,
        scales=SCALES,
        claims=[
            gains("embedded gaussian", "baseline", 0.9),
            gains("gaussian", "baseline", 0.7),
            gains("dot product", "baseline", 1.1),
            gains("concatenation", "baseline", 1.0),
        ],
    ),
    Table(
        "table2b",
        "The stage of one block in C2D",
        rows=[
            row("baseline", [], "71.8/89.7"),
            stage("res2.1", "72.7/90.3", "res2.0"),
            stage("res3.2", "72.9/90.4", "res3.0"),
            stage("res4.4", "72.7/90.5", "res4.0"),
            stage("res5.1", "72.3/90.1", ""),
        ],
        columns=TOP,
        scales=SCALES,
        claims=[gains("res3", "baseline", 1.1), gains("res3", "res5", 0.6)],
        note="The paper: res5 gains least, as its 7x7 map is too small to say where. At scale=mini "
        "the last stage is res4.",
    ),
    Table(
        "table2c",
        "Number of blocks in C2D",
        rows=[
            row("R50, 0 blocks", [], "71.8/89.7"),
            row("R50, 1 block", ONE, "72.7/90.5", mini=MINI_ONE),
            row("2 blocks", [], mini=MINI_MORE, only="mini"),
            row("3 blocks", [], mini=["network.at=[res2.0,res3.0,res3.1]"], only="mini"),
            row("R50, 5 blocks", FIVE, "73.8/91.0", only="paper"),
            row("R50, 10 blocks", TEN, "74.3/91.2", only="paper"),
            row("R101, 0 blocks", R101, "73.1/91.0", only="paper"),
            row("R101, 1 block", [*R101, *ONE], "74.3/91.3", only="paper"),
            row("R101, 5 blocks", [*R101, *FIVE], "75.1/91.7", only="paper"),
            row("R101, 10 blocks", [*R101, *TEN], "75.1/91.6", only="paper"),
        ],
        columns=TOP,
        scales=SCALES,
        claims=[
            gains("R50, 1 block", "R50, 0 blocks", 0.9),
            gains("R50, 5 blocks", "R50, 1 block", 1.1),
            gains("R50, 5 blocks", "R101, 0 blocks", 0.7),
            gains("2 blocks", "R50, 1 block"),
        ],
        note="Unstated: where the ten blocks of a ResNet-101 are; GluonCV's places.",
    ),
    Table(
        "table2d",
        "Positions of the same frame, of the same place, or of all",
        rows=[
            row("R50, baseline", [], "71.8/89.7"),
            over("R50", "space", "72.9/90.8"),
            over("R50", "time", "73.1/90.5"),
            over("R50", "spacetime", "73.8/91.0"),
            row("R101, baseline", R101, "73.1/91.0", only="paper"),
            over("R101", "space", "74.4/91.3"),
            over("R101", "time", "74.4/90.5"),
            over("R101", "spacetime", "75.1/91.7"),
        ],
        columns=TOP,
        scales=SCALES,
        claims=[
            gains("R50, spacetime", "R50, space", 0.9),
            gains("R50, spacetime", "R50, time", 0.7),
            gains("R101, spacetime", "R101, space", 0.7),
            gains("R101, spacetime", "R101, time", 0.7),
        ],
    ),
    Table(
        "table2e",
        "Non-local blocks or 3-D convolutions, ResNet-101",
        rows=[
            row("C2D", R101, "73.1/91.0/43200/34200", COST, mini=[]),
            row(
                "I3D, 3x3x3",
                [*R101, "network.inflate=3x3x3"],
                "74.1/91.2",
                mini=["network.inflate=3x3x3"],
            ),
            row("I3D, 3x1x1", [*R101, *I3D], "74.4/91.1", mini=I3D),
            row("NL C2D, 5 blocks", [*R101, *FIVE], "75.1/91.7", mini=MINI_MORE),
        ],
        columns=COST,
        scales=SCALES,
        claims=[
            gains("NL C2D, 5 blocks", "I3D, 3x1x1", 0.7),
            gains("NL C2D, 5 blocks", "I3D, 3x3x3", 1.0),
        ],
        note="In multiples of C2D's the paper has 1.5 of the parameters and 1.8 of the "
        "multiply-adds for 3x3x3, 1.2 and 1.5 for 3x1x1, 1.2 and 1.2 for the blocks. At scale=mini "
        "the small network, with two blocks.",
    ),
    Table(
        "table2f",
        "Non-local blocks on top of 3-D convolutions",
        rows=[
            *kinds(False, ("71.8/89.7", "73.3/90.7", "74.9/91.6")),
            *kinds(True, ("73.1/91.0", "74.4/91.1", "76.0/92.1")),
        ],
        columns=TOP,
        scales=SCALES,
        claims=[gains("R50 NL I3D", "R50 I3D", 1.6), gains("R101 NL I3D", "R101 I3D", 1.6)],
    ),
    Table(
        "table2g",
        "Longer clips, 128 frames",
        rows=[
            *kinds(False, ("73.8/91.2", "74.9/91.7", "76.5/92.6")),
            *kinds(True, ("75.3/91.8", "76.4/92.7", "77.7/93.3")),
        ],
        columns=TOP,
        scales=LONG,
        claims=[gains("R50 NL I3D", "R50 I3D", 1.6), gains("R101 NL I3D", "R101 I3D", 1.3)],
        note="Each network starts from the one trained on 32 frames: name its run, row by row, as "
        "in rows='R50 NL I3D' init=RUN. At scale=mini 16 frames instead of 8, from the start.",
    ),
    Table(
        "table3",
        "Kinetics, validation",
        rows=[row("NL I3D, ResNet-101, 128 frames", [*R101, *I3D, *FIVE], "77.7/93.3")],
        columns=TOP,
        scales={"paper": LONG["paper"]},
        note="Others, as the paper quotes them: I3D Inception RGB 72.1/90.3, with flow 75.7/92.0; "
        "Inception-ResNet-v2 73.0/90.9; three streams 74.9/91.6, + LSTM 77.1/93.2, SATT 77.7/93.2. "
        "On the test split, whose labels are not public, NL I3D has 83.8, the mean of both.",
    ),
    Table(
        "table4",
        "Charades, mAP, training and validation split",
        rows=[
            row("I3D", ["network.at=[]"], "35.5", ["mAP"]),
            row("NL I3D", [], "37.5", ["mAP"]),
        ],
        columns=["mAP"],
        scales={"paper": ["experiment=charades", "data=charades"]},
        claims=[Gap(better="NL I3D", than=["I3D"], column="mAP", at_least=1, paper=2.0)],
        note="From the network trained on 128 frames of Kinetics: name its run, row by row, as in "
        "rows='NL I3D' init=RUN. With the validation split in training the paper has 37.2 and 39.5 "
        "on the test split, whose labels are not public. Others, as it quotes them: two streams "
        "18.6, + LSTM 17.8, asynchronous temporal fields 22.4, I3D 32.9 (34.4).",
    ),
    Table(
        "table5",
        "Mask R-CNN with one block in the backbone",
        rows=[
            *photos("resnet50", "38.0/59.6/41.0/34.6/56.4/36.5", "39.0/61.1/41.9/35.5/58.0/37.4"),
            *photos("resnet101", "39.5/61.4/42.9/36.0/58.1/38.3", "40.8/63.1/44.5/37.1/59.9/39.2"),
            *photos(
                "resnext152_32x8d",
                "44.1/66.4/48.4/39.7/63.2/42.2",
                "45.0/67.8/48.9/40.3/64.4/42.8",
                X152,
            ),
        ],
        columns=BOXES,
        scales={"paper": ["experiment=coco_masks", "data=coco"]},
        claims=[
            Gap(better=f"{n} + 1 block", than=[f"{n} baseline"], column="box_AP", paper=gap)
            for n, gap in (("R50", 1.0), ("R101", 1.3), ("X152", 0.9))
        ],
        note="The paper gives no schedule: Detectron's 1x, and for X152 its 1.44x from ImageNet-5k "
        "weights, which init=FILE names.",
    ),
    Table(
        "table6",
        "Keypoint R-CNN with blocks in the head, ResNet-101",
        rows=[
            row("baseline", [], "65.1/86.8/70.4", JOINTS),
            row("+ 4 in the head", [f"detector.at=[{HEAD}]"], "66.0/87.1/71.7", JOINTS),
            row(
                "+ 4 in the head, 1 in the backbone",
                [f"detector.at=[{HEAD},1-block]"],
                "66.5/87.3/72.8",
                JOINTS,
            ),
        ],
        columns=JOINTS,
        scales={"paper": ["experiment=coco_keypoints", "data=coco"]},
        claims=[
            Gap(better="+ 4 in the head", than=["baseline"], column="keypoint_AP", paper=0.9),
            Gap(
                better="+ 4 in the head, 1 in the backbone",
                than=["+ 4 in the head"],
                column="keypoint_AP",
                paper=0.5,
            ),
        ],
        note="The paper gives no schedule: Detectron's s1x, with which its baseline has 64.8.",
    ),
]

# Top-1 / top-5 of video-nonlocal-net's README, ResNet-50, which its public weights have.
KINDS = {"C2D": [], "NL C2D": FIVE, "I3D": I3D, "NL I3D": [*I3D, *FIVE]}
THIN = ["network.variant=fast", "clip.frames=32", "clip.stride=4"]
RELEASED = {  # frames x stride: the scale, the figures
    "32x2": (PAPER["paper"], ["72.0/90.0", "73.9/91.0", "73.6/90.8", "74.9/91.6"]),
    "8x8": (
        ["experiment=fast", "data=kinetics"],
        ["71.9/90.0", "74.4/91.4", "73.4/90.9", "74.7/91.6"],
    ),
    "128x1": (LONG["paper"], ["75.2/92.0", "76.5/92.7"]),  # I3D and NL I3D alone
    "32x4": ([*LONG["paper"], *THIN], ["75.5/92.0", "76.5/92.6"]),
}
TABLES += [
    Table(
        f"released{clip}",
        f"The official re-implementation, {clip} frames, ResNet-50",
        rows=[
            row(name, KINDS[name], figure)
            for name, figure in zip([*KINDS][-len(figures) :], figures, strict=True)
        ],
        columns=TOP,
        scales={"paper": scale},
        note="rows='NL I3D' init=FILE only_evaluate=true tests the weights that are published.",
    )
    for clip, (scale, figures) in RELEASED.items()
]

if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"))
