"""The tables of the paper, each row the overrides that give it.

    python tables.py                                     # the list
    python tables.py table1a scale=mini seeds=3 jobs=2   # run what is missing, print paper → ours
    python tables.py table1b scale=paper data.root=/data/coco
    python tables.py table1a run=false                   # only print what has been measured

At `scale=paper` a row differs by what it names from `experiment=paper data=coco`: a ResNet-50 on
train2017, labels of unlabeled2017. At `scale=mini` the small network of conf/experiment/mini.yaml
learns the built-in scenes. Rows of a seed that ask for the same teacher share it. Every table of
students has the control that the paper's lack: the labelled images alone, for as many steps.

All figures are AP in percent. Those marked as recalled were not compared with the paper's text; the
others stand in another paper of the authors, Mask R-CNN, Table 9.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.tables import Beside, Gap, Row, Table, main
from data_distillation import config  # noqa: F401 - tells Hydra the options

SCALES = {"mini": ["experiment=mini"], "paper": ["experiment=paper", "data=coco"]}
PAPER = {"paper": SCALES["paper"]}
MINI = {"mini": SCALES["mini"]}
CO35 = ["data.train=valminusminival2014", "data.unlabelled=train2014", "data.truth=train2014"]
SMALL = {"mini": SCALES["mini"], "paper": [*SCALES["paper"], *CO35]}
BOXES = {scale: [*words, "task=boxes"] for scale, words in SCALES.items()}
SMALL_BOXES = {
    "mini": [*SCALES["mini"], "task=boxes", "data.builtin.classes=shape"],
    "paper": [*SMALL["paper"], "task=boxes"],
}

AP, BOX, LABELS = "keypoint_AP", "box_AP", "label_AP"
PARTS = (AP, f"{AP}50", f"{AP}75", f"{AP}_medium", f"{AP}_large")

TEACHER = ["only_evaluate=true", "init=teacher", "data.automatic=''"]
ALONE = ["data.automatic=''"]  # supervised
BASELINE = [
    *ALONE,
    "steps=130000",
    "milestones=[0.76923077,0.92307693]",
]  # drops at 100k and 120k, D1
ALL = {"mini": [*ALONE, "data.train=train+hidden"]}
SHIFTED = ["data.unlabelled=sports1m", "data.truth=''"]
MINI_SHIFTED = {"mini": ["data.unlabelled=shifted", "data.truth=hidden_shifted"]}
SINGLE = ["transforms.scales=[]", "transforms.flip=false"]


CONTROL, ONE_PASS = "control: labelled alone, as long", "student, labels of one pass"


def recalled(column: str, value: float | None) -> dict[str, Any]:
    """The arguments of a Row for a figure of the paper that was recalled."""
    return {} if value is None else {"memory": [column], column: value}


def compare(
    column: str,
    figures: Sequence[float | None] = (None, None),
    *,
    student: Sequence[str] = (),
    instead: dict[str, list[str]] | None = None,
) -> list[Row]:
    """Teacher, control and student, with the paper's figures of the outer two.

    student, instead: overrides of the students' rows.
    """
    one_pass = {scale: [*words, *SINGLE] for scale, words in (instead or {}).items()}
    return [
        Row("teacher", TEACHER, **recalled(column, figures[0])),
        Row(CONTROL, ALONE),
        Row(ONE_PASS, [*student, *SINGLE], instead=one_pass),
        Row("student", student, instead=instead, **recalled(column, figures[1])),
    ]


def gains(column: str, at_least: float, paper: float | None = None) -> list[Gap]:
    """What the paper says of the student: ahead of teacher, control and labels of one pass."""
    return [
        Gap(better="student", than=["teacher"], column=column, at_least=at_least, paper=paper),
        Gap(better="student", than=[CONTROL], column=column),
        Gap(better="student", than=[ONE_PASS], column=column),
        Gap(better="student", than=[ONE_PASS], column=LABELS),
    ]


UPPER = Gap(better="all labels", than=["student"], column=AP)
T1A = [
    *compare(AP, (54.9, 60.2)),
    Row("all labels", [*BASELINE, "data.train=train"], instead=ALL, keypoint_AP=65.1),
]
T1C = [
    Row("teacher", TEACHER, keypoint_AP=65.1),
    *compare(AP, (None, 66.6), student=SHIFTED, instead=MINI_SHIFTED)[1:],
    Row("student, images of the same kind", [], memory=[AP], keypoint_AP=67.1),
]
T1A_BOXES = [
    *compare(BOX, (30.5, 32.3)),
    Row("all labels", [*ALONE, "data.train=train"], memory=[BOX], instead=ALL, box_AP=37.1),
]

# Table 1b, R-50, R-101 and two ResNeXts: co-115, co-115 + un-120, co-115 + s1m-180. Only what Mask
# R-CNN's Table 9 repeats is confirmed: see CONFIRMED.
BACKBONES = {
    "R-50": ([], "65.1 86.6 70.9 59.9 73.6", "67.1 87.9 73.4 62.2 75.1", 66.6),
    "R-101": (["resnet101"], "66.1 87.7 71.7 60.5 75.0", "67.8 88.2 73.8 62.8 76.0", 67.5),
    "X-101-32x4d": (["resnext101_32x4d"], "66.8", "68.7", 68.0),
    "X-101-64x4d": (
        ["resnext101_64x4d"],
        "67.3 88.0 73.3 62.2 75.6",
        "69.1 88.9 75.3 64.1 77.1",
        68.5,
    ),
}
CONFIRMED = {"R-50, labelled", "R-101, labelled", "X-101-64x4d, labelled", "X-101-64x4d, + un-120"}


def large_scale() -> list[Row]:
    """The rows of Tables 1b and 1c, all backbones."""
    rows = []
    for name, (backbone, labelled, similar, shifted) in BACKBONES.items():
        network = [f"network.backbone={word}" for word in backbone]
        for kind, overrides, figures in (
            ("labelled", BASELINE, labelled),
            ("+ un-120", [], similar),
            ("+ s1m-180", SHIFTED, str(shifted)),
        ):
            paper = dict(zip(PARTS, map(float, figures.split()), strict=False))
            row = f"{name}, {kind}"
            memory = () if row in CONFIRMED else paper
            rows.append(Row(row, [*network, *overrides], memory=memory, **paper))  # type: ignore
    return [*rows, Row("R-50, labelled, as long as the students", ALONE)]


LENGTHS = {130_000: 225, 200_000: 300, 270_000: 450, 360_000: 600}  # steps: paper, mini
T2 = [
    Row(
        f"{name}, {steps // 1000}k",
        [*words, f"steps={steps}"],
        instead={"mini": [*words[:1], f"steps={mini}"]},
    )
    for steps, mini in LENGTHS.items()
    for name, words in (("labelled", BASELINE if steps == 130_000 else ALONE), ("student", []))
]
PERCENT = (25, 50, 100)
UNLABELLED = [
    Row("0 %, labelled alone", ALONE),
    *(Row(f"{p} %, ratio 3:2", [f"data.automatic_share={p / 100:g}"]) for p in PERCENT),
    *(
        Row(
            f"{p} %, ratio of the images",
            [f"data.automatic_share={p / 100:g}", f"data.ratio=[{100 // p},1]"],
            instead={"mini": [f"data.automatic_share={p / 100:g}", f"data.ratio=[{100 // p},15]"]},
        )
        for p in PERCENT
    ),
]
LABELLED = [
    Row(f"{count} labelled images, {name}", [*changes, *words])
    for count, changes in (
        (20, ["data.builtin.labelled=20"]),
        (40, []),  # as in mini.yaml
        (80, ["data.builtin.labelled=80"]),
    )
    for name, words in (("alone", ALONE), ("student", []))
]
TEACHERS = {40_000: 150, 80_000: 300, 130_000: 600}  # its steps: paper, mini
TEACHER_ROWS = [
    Row(CONTROL, ALONE),
    *(
        Row(
            f"{name} {steps // 1000}k steps",
            [*words, f"teacher=['steps={steps}','init=imagenet']"],
            instead={"mini": [*words, f"""teacher=['steps={mini}',"init=''"]"""]},
        )
        for steps, mini in TEACHERS.items()
        for name, words in (("teacher of", TEACHER), ("student of a teacher of", []))
    ),
]
LARGEST = ["network.backbone=resnext101_64x4d"]
TTA = ("keypoint_AP", "tta_keypoint_AP")

TABLES = [
    Table(
        "table1a",
        "Small scale: labels of 35k images, 80k without",
        rows=T1A,
        columns=(AP, LABELS),
        scales=SMALL,
        claims=[*gains(AP, 3, 5.3), UPPER],
        note="co-35 + co-80; at scale=mini 40 labelled images, 600 without.",
    ),
    Table(
        "table1b",
        "Large scale, with unlabelled images of COCO (1b) and of Sports-1M (1c)",
        rows=large_scale(),
        columns=PARTS,
        scales=PAPER,
        claims=[
            Gap(
                better=f"{name}, {kind}",
                than=[f"{name}, labelled"],
                column=AP,
                at_least=1,
                paper=round(float(str(figures).split()[0]) - float(labelled.split()[0]), 1),
            )
            for name, (_, labelled, similar, shifted) in BACKBONES.items()
            for kind, figures in (("+ un-120", similar), ("+ s1m-180", shifted))
        ],
        note="data.root/sports1m is a folder of images of your own: most of Sports-1M is gone.",
    ),
    Table(
        "table1c",
        "Unlabelled images of another kind",
        rows=T1C,
        columns=(AP, LABELS),
        scales=SCALES,
        claims=gains(AP, 1, 1.5),
        note="At scale=mini the images of another kind have other colours, sizes and floors.",
    ),
    Table(
        "table1a_boxes",
        "Small scale, object detection",
        rows=T1A_BOXES,
        columns=(BOX, LABELS),
        scales=SMALL_BOXES,
        claims=gains(BOX, 1, 1.8),
    ),
    Table(
        "table1b_boxes",
        "Large scale, object detection",
        rows=[
            Row(f"{name}, {kind}", [*network, *words], **recalled(BOX, figure))
            for name, network, figures in (
                ("R-50", [], (37.1, 37.9)),
                ("R-101", ["network.backbone=resnet101"], (39.2, 40.1)),
                ("X-101-32x4d", ["network.backbone=resnext101_32x4d"], (40.1, 41.0)),
            )
            for kind, words, figure in zip(
                ("labelled", "+ un-120"), (ALONE, []), figures, strict=True
            )
        ],
        columns=(BOX, f"{BOX}50", f"{BOX}75"),
        scales={"paper": BOXES["paper"]},
        claims=[
            Gap(better=f"{name}, + un-120", than=[f"{name}, labelled"], column=BOX, paper=gap)
            for name, gap in (("R-50", 0.8), ("R-101", 0.9), ("X-101-32x4d", 0.9))
        ],
        note="The length of the paper's training is unknown.",
    ),
    Table(
        "table2",
        "Length of training",
        rows=T2,
        columns=(AP,),
        scales=SCALES,
        claims=[
            Gap(better="student, 360k", than=["student, 130k"], column=AP),
            Gap(better="labelled, 130k", than=["labelled, 360k"], column=AP),
        ],
        note="At scale=mini 225, 300, 450 and 600 steps. The paper says that the supervised AP "
        "falls after 130k steps while the student's rises; its figures are unknown.",
    ),
    Table(
        "unlabelled",
        "Share of the unlabelled images, and the ratio of a step",
        rows=UNLABELLED,
        columns=(AP,),
        scales=SCALES,
        claims=[
            Gap(better="100 %, ratio 3:2", than=["0 %, labelled alone"], column=AP),
            Gap(better="100 %, ratio 3:2", than=["25 %, ratio 3:2"], column=AP),
        ],
    ),
    Table(
        "ratio",
        "Manual to automatic images of a step",
        rows=[
            Row(CONTROL, ALONE),
            Row("4:1", ["data.ratio=[4,1]"]),
            Row("3:2, the paper's", []),
            Row("2:3", ["data.ratio=[2,3]"]),
        ],
        columns=(AP,),
        scales=SCALES,
    ),
    Table(
        "labelled",
        "Number of labelled images",
        rows=LABELLED,
        columns=(AP, LABELS),
        scales=MINI,
        claims=[
            Gap(
                better=f"{n} labelled images, student",
                than=[f"{n} labelled images, alone"],
                column=AP,
            )
            for n in (20, 40, 80)
        ],
    ),
    Table(
        "teacher",
        "Teachers of rising AP",
        rows=TEACHER_ROWS,
        columns=(AP, LABELS),
        scales=SCALES,
        note="The paper shows a curve whose values cannot be read off: the better the teacher, the "
        "better its student. At scale=mini teachers of 150, 300 and 600 steps.",
    ),
    Table(
        "tta",
        "Transforms at test time",
        rows=[
            Row("teacher", TEACHER),
            Row(CONTROL, ALONE),
            Row("student", []),
            Row(
                "X-101-64x4d, student",
                LARGEST,
                only="paper",
                keypoint_AP=69.1,
                tta_keypoint_AP=70.4,
            ),
        ],
        columns=TTA,
        scales={scale: [*words, "test.tta=true"] for scale, words in SCALES.items()},
        claims=[
            Beside(row="teacher", column=TTA[1], other=TTA[0], low=0),
            Beside(row="student", column=TTA[1], other=TTA[0], low=0),
            Gap(better="student", than=["teacher"], column=TTA[1]),
        ],
    ),
    Table(
        "transforms",
        "Transforms of the teacher's images",
        rows=[
            Row(CONTROL, ALONE),
            Row("none", SINGLE),
            Row("flip", ["transforms.scales=[]"]),
            Row("scales", ["transforms.flip=false"]),
            Row("scales and flip", []),
            Row("scales and flip, averaged logits", ["merge.heatmaps=logit"]),
        ],
        columns=(AP, LABELS),
        scales=SCALES,
        claims=[
            Gap(better="scales and flip", than=["none"], column=AP),
            Gap(better="scales and flip", than=["none"], column=LABELS),
        ],
    ),
    Table(
        "init",
        "Where the student starts",
        rows=[
            Row(CONTROL, ALONE),
            Row("retrained", []),
            Row("fine-tuned from the teacher", ["init=teacher"]),
        ],
        columns=(AP,),
        scales=SCALES,
        claims=[Gap(better="retrained", than=["fine-tuned from the teacher"], column=AP)],
    ),
    Table(
        "threshold",
        "Labels an image, times those of the labelled ones",
        rows=[
            Row(CONTROL, ALONE),
            *(
                Row(f"x {factor:g}", [f"labels.factor={factor:g}"] if factor != 1 else [])
                for factor in (0.5, 1, 2)
            ),
        ],
        columns=(AP, LABELS),
        scales=SCALES,
    ),
    Table(
        "rounds",
        "Rounds of labelling and training",
        rows=[Row(CONTROL, ALONE), Row("1, the paper's", []), Row("2", ["rounds=2"])],
        columns=(AP, LABELS),
        scales=SCALES,
        note="Not in the paper.",
    ),
]

if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"))
