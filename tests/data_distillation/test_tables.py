"""The tables' rows: every one composes, agrees with the paper, and shares its teacher."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from common.config import to_dataclass
from common.run import versus
from common.tables import Beside, Gap
from common.tables.plan import Request, compose_rows, plan
from data_distillation.config import Config
from data_distillation.optimizer import drops
from data_distillation.stages import find_teacher
from data_distillation.tables import ALONE, PARTS, TABLES

CONF = Path(__file__).resolve().parents[2] / "data_distillation" / "conf"
BY_NAME = {table.name: table for table in TABLES}
# Mask R-CNN, Table 9: what another paper of the authors says of this one's networks.
CONFIRMED = {
    "R-50, labelled": (65.1, 86.6, 70.9, 59.9, 73.6),
    "R-101, labelled": (66.1, 87.7, 71.7, 60.5, 75.0),
    "X-101-64x4d, labelled": (67.3, 88.0, 73.3, 62.2, 75.6),
    "X-101-64x4d, + un-120": (69.1, 88.9, 75.3, 64.1, 77.1),
}


def read(words: Sequence[str], seed: int = 0) -> DictConfig:
    """The configuration that these words give."""
    groups = tuple(word for word in words if word.startswith(("data=", "experiment=")))
    cfg = compose_groups(groups).copy()
    words = [word for word in words if word not in groups]
    words += [f"seed={seed}", "data.root=x", "output_dir=unused"]
    for each in OverridesParser.create().parse_overrides(words):  # as `compose` does, only sooner
        OmegaConf.update(cfg, each.key_or_group, each.value())
    return cfg


@cache
def compose_groups(words: tuple[str, ...]) -> DictConfig:
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(words))


def rows(table: str, scale: str) -> dict[str, DictConfig]:
    """What the rows of a table would train, by name."""
    made = BY_NAME[table]
    runs = plan(made, Request([made], scale))
    return {row.name: read(r[0].overrides) for row, r in zip(made.rows, runs, strict=True)}


def steps_of_teacher(cfg: DictConfig) -> int:
    return to_dataclass(find_teacher(cfg)).steps


def test_every_row_of_every_table_composes_in_every_scale_and_finds_its_teacher():
    found = list(compose_rows(TABLES))
    assert len(found) == sum(len(table.rows) * len(table.scales) for table in TABLES)
    once = {(tuple(words), "_boxes " in label): label for label, words in found}  # of many tables
    for (words, _), label in once.items():
        composed = read(words)
        cfg = to_dataclass(composed)
        assert cfg.data.name == ("builtin" if " mini: " in label else "coco"), label
        assert cfg.task == ("boxes" if "_boxes " in label else "keypoints"), label
        assert not cfg.versus, label
        teacher = "teacher" in (cfg.init, cfg.data.automatic)
        assert teacher != (cfg.data.automatic == "" and cfg.init != "teacher"), label
        if teacher and ("teacher" in "".join(words) or cfg.rounds > 1):
            before = to_dataclass(find_teacher(composed))
            start = "" if " mini: " in label else "imagenet"
            assert before.init == start, label
            assert (before.data.automatic == "") == (cfg.rounds == 1), label


def test_the_figures_that_another_paper_confirms_are_the_only_ones_not_recalled():
    table = BY_NAME["table1b"]
    own = {row.name: tuple(row.paper.values()) for row in table.rows if not row.memory}
    assert own == CONFIRMED
    assert all(tuple(row.paper) == PARTS for row in table.rows if row.name in CONFIRMED)
    for other in TABLES:
        for row in other.rows:
            if (other.name, row.name) == ("table1a", "all labels"):
                assert (row.paper, row.memory) == ({"keypoint_AP": 65.1}, frozenset())
            elif row.name not in CONFIRMED:
                assert set(row.paper) == row.memory, (other.name, row.name)


def test_the_papers_figures():
    def figures(table: str, column: str = "keypoint_AP") -> dict[str, float]:
        return {row.name: row.paper[column] for row in BY_NAME[table].rows if row.paper}

    assert figures("table1a") == {"teacher": 54.9, "student": 60.2, "all labels": 65.1}
    assert figures("table1c") == {
        "teacher": 65.1,
        "student": 66.6,
        "student, images of the same kind": 67.1,
    }
    assert figures("table1a_boxes", "box_AP") == {
        "teacher": 30.5,
        "student": 32.3,
        "all labels": 37.1,
    }
    assert list(figures("table1b").values()) == [
        *(65.1, 67.1, 66.6, 66.1, 67.8, 67.5, 66.8, 68.7, 68.0, 67.3, 69.1, 68.5)
    ]
    boxes = figures("table1b_boxes", "box_AP")
    assert list(boxes.values()) == [37.1, 37.9, 39.2, 40.1, 40.1, 41.0]


def test_claims_carry_the_gaps_of_the_paper():
    def gaps(table: str) -> dict[str, float | None]:
        claims = [claim for claim in BY_NAME[table].claims if isinstance(claim, Gap)]
        return {claim.better: claim.paper for claim in claims if claim.paper is not None}

    assert gaps("table1a") == {"student": 5.3}
    assert gaps("table1c") == {"student": 1.5}
    assert gaps("table1a_boxes") == {"student": 1.8}
    assert list(gaps("table1b").values()) == [2.0, 1.7, 1.9, 1.8]
    beside = [claim for claim in BY_NAME["tta"].claims if isinstance(claim, Beside)]
    assert {claim.row for claim in beside} == {"teacher", "student"}


def test_the_recipe_at_full_scale_is_the_papers():
    cfg = to_dataclass(read(["experiment=paper", "data=coco"]))
    teacher = to_dataclass(find_teacher(read(["experiment=paper", "data=coco"])))
    assert (cfg.steps, drops(cfg)) == (360_000, [252_000, 324_000])
    assert (teacher.steps, drops(teacher)) == (130_000, [100_000, 120_000])
    assert (cfg.data.automatic, teacher.data.automatic) == ("teacher", "")
    assert cfg.data.unlabelled == "unlabeled2017"
    for part in (cfg, teacher):
        assert (part.task, part.init, part.amp, part.rounds) == ("keypoints", "imagenet", False, 1)
        assert (part.batch_size, part.images_per_gpu, part.clip) == (16, 2, 0)
        assert (part.optimizer, part.schedule) == ("sgd", "multistep")
        assert (part.lr, part.momentum, part.weight_decay) == (0.02, 0.9, 1e-4)
        assert (part.bias_lr, part.bias_decay) == (2, False)
        assert (part.warmup, part.warmup_start) == (500, 1 / 3)
        assert part.automatic_weight == 1
        assert part.data.ratio == [3, 2]
        assert (part.data.train, part.data.val, part.data.flip) == ("train", "val", 0.5)
        assert part.data.skip_empty
        network = part.network
        assert (network.backbone, network.freeze_at, network.channels) == ("resnet50", 2, 256)
        assert network.short_sides == [640, 672, 704, 736, 768, 800]
        assert network.long_side == 1333
        assert (network.keypoint_convs, network.keypoint_channels) == (8, 512)
        assert (network.map_size, network.keypoint_rois) == (56, "detectron")
        assert (network.rois, network.positive, network.proposals) == (512, 0.25, [2000, 1000])
        assert (network.score, network.nms, network.detections) == (0.05, 0.5, 100)
        assert network.anchors == [32, 64, 128, 256, 512]
    assert cfg.transforms.scales == list(range(400, 1201, 100))
    assert (cfg.transforms.flip, cfg.transforms.max_size) == (True, 2000)
    assert not cfg.transforms.size_dependent
    merge, labels = cfg.merge, cfg.labels
    assert (merge.score, merge.nms, merge.vote, merge.scoring) == (0.05, 0.5, 0.9, "id")
    assert (merge.heatmaps, merge.limit) == ("prob", 100)
    assert (labels.match, labels.factor, labels.per_class) == ("count", 1, False)
    assert (labels.keypoint_match, labels.ignore, labels.cross_class_nms) == ("count", 0, 0)


@pytest.mark.parametrize("scale", ["mini", pytest.param("paper", marks=pytest.mark.slow)])
def test_rows_of_a_seed_that_ask_for_the_same_teacher_share_it(scale):
    def folders(*tables: str, last: int) -> set[str]:
        made = [cfg for table in tables for cfg in list(rows(table, scale).values())[-last:]]
        assert all("teacher" in (cfg.data.automatic, cfg.init) for cfg in made)
        return {find_teacher(cfg).output_dir for cfg in made}

    shared = ("tta", "transforms", "init", "threshold", "ratio", "table2", "unlabelled", "table1c")
    one = folders(*shared, last=1)
    assert len(one) == 1
    assert len(folders("teacher", last=6)) == 3
    assert len(one | folders("rounds", last=2)) == 2
    small = {find_teacher(cfg).output_dir for cfg in list(rows("table1a", scale).values())[2:4]}
    assert small == one if scale == "mini" else len(small - one) == 1
    (row, *_) = rows("init", scale).values()
    assert find_teacher(row).output_dir in one
    assert str(one).endswith("-seed0'}")
    row.seed = 1
    assert find_teacher(row).output_dir not in one


def test_a_teacher_of_coco_is_the_same_whatever_labels_its_students_want():
    words = ["experiment=paper", "data=coco"]
    changes = (
        ["labels.factor=2"],
        ["transforms.flip=false"],
        ["data.ratio=[4,1]"],
        ["data.automatic_share=0.5"],
        ["data.unlabelled=sports1m"],
        ["automatic_weight=0.5"],
        ["test.tta=true"],
        ["data.workers=1", "processes=4", "threads=2", "log_every=5"],
        ["evaluate_every=100"],
    )
    places = {find_teacher(read([*words, *more])).output_dir for more in ([], *changes)}
    assert len(places) == 1
    others = (["data.train=val2014"], ["network.channels=128"], ["task=boxes"], ["data.limit=9"])
    places |= {find_teacher(read([*words, *more])).output_dir for more in others}
    assert len(places) == 5


def test_students_and_controls_are_trained_as_long():
    for scale in ("mini", "paper"):
        for name in ("table1a", "table1c", "table1a_boxes"):
            found = rows(name, scale)
            control = next(cfg for row, cfg in found.items() if row.startswith("control"))
            assert control.steps == found["student"].steps
            assert scale == "mini" or control.steps == 360_000
            assert control.data.automatic == ""
            assert found["teacher"].only_evaluate
            one = found["student, labels of one pass"]
            assert (list(one.transforms.scales), one.transforms.flip) == ([], False)
            assert one.data.unlabelled == found["student"].data.unlabelled
        lengths = [cfg.steps for cfg in rows("table2", scale).values()]
        assert lengths[::2] == lengths[1::2]
        assert lengths == sorted(lengths)
    assert "data.automatic=''" in ALONE


def test_teachers_of_the_curve_are_trained_longer_and_longer():
    assert [steps_of_teacher(cfg) for cfg in rows("teacher", "mini").values()] == [
        *(150, 150, 300, 300, 600, 600)
    ]
    assert [steps_of_teacher(cfg) for cfg in rows("teacher", "paper").values()] == [
        *(40_000, 40_000, 80_000, 80_000, 130_000, 130_000)
    ]


def test_the_ratio_follows_the_images_where_the_table_says_so():
    mini = {
        n: (c.data.automatic_share, list(c.data.ratio))
        for n, c in rows("unlabelled", "mini").items()
    }
    for percent in (25, 50, 100):
        share, ratio = mini[f"{percent} %, ratio of the images"]
        assert share == percent / 100
        assert ratio[1] / ratio[0] == 600 * share / 40
        assert mini[f"{percent} %, ratio 3:2"] == (share, [3, 2])


@pytest.mark.parametrize("experiment", ["demo", "smoke", "mini", "paper"])
@pytest.mark.parametrize("task", ["keypoints", "boxes", "masks"])
def test_every_experiment_composes_for_every_task(experiment, task, tmp_path):
    data = ["data=coco"] if experiment == "paper" else []
    cfg = read([f"experiment={experiment}", *data, f"task={task}"])
    cfg.output_dir = str(tmp_path)
    settings = to_dataclass(cfg)
    assert settings.task == task
    assert to_dataclass(find_teacher(cfg)).task == task
    if experiment == "demo":
        found = versus.variants(cfg)
        assert list(found)[:3] == ["teacher", "student", "control"]
        for variant in found.values():
            if "teacher" in (variant.data.automatic, variant.init):
                assert find_teacher(variant).output_dir == find_teacher(cfg).output_dir
