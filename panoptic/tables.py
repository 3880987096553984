"""The tables of the paper, each row the overrides that give it.

    python tables.py                                     # the list
    python tables.py table3 scale=mini seeds=3 jobs=2    # run what is missing, print both figures
    python tables.py table3 table4 scale=paper data.root=/data/cityscapes
    python tables.py table5 scale=paper data.root=/data/cityscapes    # after those two
    python tables.py panoptic_fpn data.root=/data/coco
    python tables.py table5 run=false                    # only print what has been measured

Tables 1 and 2, and Table 6's annotators, are not of networks: `python study.py` prints them.

At `scale=paper` the rows are the networks that the paper names for Cityscapes; those of ADE20k and
Vistas were others' results, which cannot be trained again, so their figures are in the notes. At
`scale=mini` the same pair of networks is small and learns the built-in images
(conf/experiment/mini.yaml), where figures are not comparable with the paper's in size. All figures
are percent, and the paper's were recalled, not compared with its text.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.tables import Beside, Gap, Row, Table, main
from panoptic import config  # noqa: F401 - config tells Hydra the options
from panoptic.annotators import paper

SCALES = {"mini": ["experiment=mini"], "paper": ["data=cityscapes"]}  # a row names its experiment
MINI = {"mini": SCALES["mini"]}
FINISHED = "outputs/tables/paper/data=cityscapes"  # begins the folders of the rows at scale=paper

INSTANCE = ["model.part=instance", "predict.source=separate", "predict.ap=true"]
SEMANTIC = ["model.part=semantic", "predict.source=separate", "predict.miou=true"]
SEMANTIC += ["merge.stuff_area=0"]
COCO = ["init=maskrcnn_resnet50_fpn_coco.pth", "model.aligned=false"]
SCALED = ["predict.scales=[0.5,0.75,1,1.25,1.5,1.75]", "predict.flip=true"]
ONE_NETWORK = ["separate", "unfiltered", "oracle_semantic", "oracle_instances", "human"]
PAIR = [*ONE_NETWORK, "components"]  # the sources beside the merge, all of one training


def from_memory(
    name: str,
    overrides: Sequence[str],
    figures: Mapping[str, float],
    *,
    mini: Sequence[str] | None = None,
) -> Row:
    """A row whose figures of the paper are all from memory.

    mini: overrides of the miniature; without them the row's own.
    """
    instead = None if mini is None else {"mini": mini}
    return Row(name, overrides, memory=figures, instead=instead, **figures)  # type: ignore[arg-type]


def columns(names: Sequence[str], figures: str) -> dict[str, float]:
    """Figures written as in the paper, "36.4/33.1/54.0", by column."""
    return dict(zip(names, map(float, figures.split("/")), strict=True))


def also(sources: Sequence[str]) -> str:
    """The override that scores these sources as well."""
    return f"predict.also=[{','.join(sources)}]"


def run_like(folder: str) -> str:
    """The run of the same seed whose folder begins like this, quoted for Hydra."""
    return f'"{FINISHED},{folder}-*/seed${{seed}}"'


T3 = ("AP", "AP_no", "PQ_th", "SQ_th", "RQ_th")
TABLE3 = [
    from_memory(
        "Mask R-CNN, COCO pre-training",
        ["experiment=cityscapes_instance", "model.part=instance", *COCO, "steps=4000"],
        columns(T3, "36.4/33.1/54.0/79.4/67.8"),
        mini=INSTANCE,
    ),
    from_memory(
        "Mask R-CNN",
        ["experiment=cityscapes_instance", "model.part=instance"],
        columns(T3, "31.5/28.0/49.6/78.7/63.0"),
        mini=[*INSTANCE, "steps=800"],
    ),
]
T4 = ("mIoU", "PQ_st", "SQ_st", "RQ_st")
TABLE4 = [
    from_memory(
        "PSPNet, single-scale",
        ["experiment=cityscapes_semantic", "model.part=semantic"],
        columns(T4, "79.6/65.2/81.6/78.0"),
        mini=SEMANTIC,
    ),
    from_memory(
        "PSPNet, multi-scale",
        [
            "experiment=cityscapes_semantic",
            "only_evaluate=true",
            *SCALED,
            f"init={run_like('model.part=semantic')}",
        ],
        columns(T4, "80.6/66.6/82.2/79.3"),
        mini=[*SEMANTIC, *SCALED],
    ),
]
MERGED = [
    "experiment=cityscapes_pair",
    "model.aligned=false",
    *SCALED,
    also(PAIR),
    f"init={run_like('model.part=semantic')}",
    f"init_also={run_like(f'{COCO[0]},{COCO[1]},model.part=instance,steps=4000')}",
]
PAIR_NAME = "PSPNet and Mask R-CNN, merged"
T5 = ("PQ", "PQ_st", "PQ_th", "separate_PQ_st", "separate_PQ_th")
TABLE5 = [
    from_memory(
        PAIR_NAME,
        MERGED,
        columns(T5, "61.2/66.4/54.0/66.6/54.0"),
        mini=[also(PAIR)],
    )
]
SOURCES = [
    Row("the pair: PSPNet and Mask R-CNN", [also(PAIR)]),
    Row("one network: Panoptic FPN", ["model.name=panoptic_fpn", also(ONE_NETWORK)]),
]
T6 = ("PQ", "SQ", "RQ", "PQ_st", "PQ_th")
HUMAN = tuple(f"human_{name}" for name in T6)
TABLE6 = [
    from_memory(
        PAIR_NAME,
        MERGED,
        dict(zip(T6, paper.TABLE_6_MACHINE["Cityscapes"], strict=True))
        | {
            name: middle
            for name, (middle, *_) in zip(HUMAN, paper.TABLE_6_HUMAN["Cityscapes"], strict=True)
        },
        mini=[also(PAIR)],
    )
]
PANOPTIC_FPN = [
    Row("ResNet-50, 1x", ["experiment=paper"], PQ=39.4, AP=34.7),
    Row("ResNet-50, 3x", ["experiment=paper_3x"], PQ=41.5, AP=36.5),
    Row("ResNet-101, 3x", ["experiment=paper_3x", "model.backbone=resnet101"], PQ=43.0, AP=38.5),
]


def table_6_note() -> str:
    """The paper's claim and its figures of the other data sets."""
    lines = []
    for place in paper.THREE[1:]:
        human = [f"{middle:.1f}" for middle, *_ in paper.TABLE_6_HUMAN[place]]
        machine = [f"{figure:.1f}" for figure in paper.TABLE_6_MACHINE[place]]
        lines.append(f"{place} human {' '.join(human)}, machine {' '.join(machine)}")
    return (
        "Claim: human and machine are close in SQ and far apart in RQ. The human is simulated "
        "(annotators/simulate.py), on the same images as the machine, and errs by pixels, so these "
        "columns only mean something in the miniature. Paper†, "
        f"PQ SQ RQ PQ^St PQ^Th: {'; '.join(lines)}. Two people and percentiles: `python study.py`."
    )


TABLES = [
    Table(
        "table3",
        "Instances alone",
        rows=TABLE3,
        columns=T3,
        scales=SCALES,
        claims=[
            Gap(better=TABLE3[0].name, than=[TABLE3[1].name], column=column, paper=gap)
            for column, gap in (("AP", 4.9), ("PQ_th", 4.4))
        ],
        note="At scale=mini both networks start at random, and the second, the weaker one, has "
        "half the steps. At scale=paper maskrcnn_resnet50_fpn_coco.pth is torchvision's file, to "
        "be put into the current folder. Others' results, AP, AP_no, PQ^Th, SQ^Th, RQ^Th†: "
        "ADE20k Megvii 30.1 24.8 41.1 81.6 49.6; ADE20k G-RMI 24.6 20.6 35.3 79.3 43.2.",
    ),
    Table(
        "table4",
        "Semantics alone",
        rows=TABLE4,
        columns=T4,
        scales=SCALES,
        claims=[Gap(better=TABLE4[1].name, than=[TABLE4[0].name], column="PQ_st", paper=1.4)],
        note="At scale=paper the second row only evaluates the first one's network, so let that "
        "finish first (jobs=1). Others' results, mIoU, PQ^St, SQ^St, RQ^St†: ADE20k "
        "CASIA_IVA_JD 32.3 27.4 61.9 33.7; ADE20k G-RMI 30.6 19.3 58.7 24.3.",
    ),
    Table(
        "table5",
        "The merge, beside each part alone (separate) and without the least area of stuff "
        "(unfiltered)",
        rows=TABLE5,
        columns=(*T5, "unfiltered_PQ", "unfiltered_PQ_st"),
        scales=SCALES,
        claims=[
            # The thing wins where both collide, so merging leaves PQ^Th as it is ...
            Beside(row=PAIR_NAME, column="PQ_th", other="separate_PQ_th", low=0, high=0),
            # ... and costs stuff a little.
            Beside(
                row=PAIR_NAME, column="PQ_st", other="separate_PQ_st", low=-3, high=0, paper=-0.2
            ),
        ],
        note="All but unfiltered drop small stuff, which the paper does not. At "
        "scale=paper the networks are those of Table 3's first row and "
        "Table 4's second, which must have finished. Others' results, PQ, PQ^St, PQ^Th†: "
        "ADE20k separate – 27.4 41.1, merged 35.6 24.5 41.1; Vistas separate – 43.7 35.7, merged "
        "38.3 41.8 35.7.",
    ),
    Table(
        "table5_sources",
        "The merge, beside maps with one part left out or known",
        rows=SOURCES,
        columns=(*T5, "components_PQ_th", "oracle_semantic_PQ", "oracle_instances_PQ"),
        scales=MINI,
        claims=[
            Beside(row=SOURCES[0].name, column="PQ_th", other="components_PQ_th", low=10),
            Beside(row=SOURCES[1].name, column="PQ_th", other="separate_PQ_th", low=0, high=0),
        ],
        note="Not in the paper. components: connected pixels of a thing's class are one thing, "
        "which a semantic map without things' classes, Panoptic FPN's, cannot give.",
    ),
    Table(
        "table6",
        "Machine and human on the same images",
        rows=TABLE6,
        columns=(*T6, *HUMAN),
        scales=SCALES,
        claims=[
            Beside(row=PAIR_NAME, column="human_SQ", other="SQ", low=-5, high=5, paper=3.2),
            Beside(row=PAIR_NAME, column="human_RQ", other="RQ", low=5, paper=7.6),
        ],
        note=table_6_note(),
    ),
    Table(
        "panoptic_fpn",
        "Panoptic FPN on COCO val2017, figures of detectron2's model zoo",
        rows=PANOPTIC_FPN,
        columns=("PQ", "PQ_th", "PQ_st", "AP"),
        scales={"paper": ["data=coco", "predict.ap=true"]},
        claims=[
            Gap(better="ResNet-50, 3x", than=["ResNet-50, 1x"], column="PQ", paper=2.1),
            Gap(better="ResNet-101, 3x", than=["ResNet-50, 3x"], column="PQ", paper=1.5),
        ],
        note="Not in the paper. AP is of masks, against the instances of the panoptic maps, which "
        "lack the few pixels that others hide; detectron2's is against the instance files. It "
        "also states the AP of boxes, which is not measured here: 37.6, 40.0 and 42.4.",
    ),
]

if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"))
