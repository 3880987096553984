"""The tables' rows: every one composes, agrees with the paper, and shares its teacher."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from common.config import to_dataclass
from common.run import versus
from common.tables import Beside, Gap
from common.tables.plan import Request, compose_rows, plan
from data_distillation import data
from data_distillation.config import Config
from data_distillation.model import build_detector
from data_distillation.optimizer import drops
from data_distillation.stages import find_teacher
from data_distillation.tables import PARTS, TABLES
from tests.data_distillation.small import thing

CONF = Path(__file__).resolve().parents[2] / "data_distillation" / "conf"
BY_NAME = {table.name: table for table in TABLES}
# What another paper of the authors, Mask R-CNN, says of this one's networks in its Table 9.
CONFIRMED = {
    "R-50, labelled": (65.1, 86.6, 70.9, 59.9, 73.6),
    "R-101, labelled": (66.1, 87.7, 71.7, 60.5, 75.0),
    "X-101-64x4d, labelled": (67.3, 88.0, 73.3, 62.2, 75.6),
    "X-101-64x4d, + un-120": (69.1, 88.9, 75.3, 64.1, 77.1),
}
RECALLED = {
    "R-50, + un-120": (67.1, 87.9, 73.4, 62.2, 75.1),
    "R-101, + un-120": (67.8, 88.2, 73.8, 62.8, 76.0),
    "X-101-32x4d, labelled": (66.8,),
    "X-101-32x4d, + un-120": (68.7,),
    "R-50, + s1m-180": (66.6,),
    "R-101, + s1m-180": (67.5,),
    "X-101-32x4d, + s1m-180": (68.0,),
    "X-101-64x4d, + s1m-180": (68.5,),
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
    made = BY_NAME[table].at(scale)
    runs = plan(made, Request([made], scale))
    return {row.name: read(r[0].overrides) for row, r in zip(made.rows, runs, strict=True)}


def words(table: str, scale: str) -> dict[str, dict[str, str]]:
    """The overrides of the rows of a table, by name."""
    made = BY_NAME[table].at(scale)
    runs = plan(made, Request([made], scale))
    return {
        row.name: dict(word.split("=", 1) for word in seeds[0].overrides)
        for row, seeds in zip(made.rows, runs, strict=True)
    }


def steps_of_teacher(cfg: DictConfig) -> int:
    return to_dataclass(find_teacher(cfg)).steps


def test_every_row_of_every_table_composes_in_every_scale_and_finds_its_teacher():
    found = list(compose_rows(TABLES))
    assert len(found) == sum(len(table.at(s).rows) for table in TABLES for s in table.scales)
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


def figures(table: str, column: str = "keypoint_AP") -> dict[str, float]:
    return {row.name: row.paper[column] for row in BY_NAME[table].rows if column in row.paper}


def test_the_papers_figures():
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
    assert figures("tta", "tta_keypoint_AP") == {"X-101-64x4d, student": 70.4}
    boxes = figures("table1b_boxes", "box_AP")
    assert list(boxes.values()) == [37.1, 37.9, 39.2, 40.1, 40.1, 41.0]
    large = [row for row in BY_NAME["table1b"].rows if row.paper]
    assert {row.name: tuple(row.paper.values()) for row in large} == CONFIRMED | RECALLED
    assert all(tuple(row.paper) == PARTS[: len(row.paper)] for row in large)


def test_the_figures_that_another_paper_confirms_are_the_only_ones_not_recalled():
    large = {row.name for row in BY_NAME["table1b"].rows if row.paper and not row.memory}
    assert large == CONFIRMED.keys()
    others = [
        (table.name, row.name, value)
        for table in TABLES
        for row in table.rows
        for column, value in row.paper.items()
        if column not in row.memory and table.name != "table1b"
    ]
    supervised = [("table1a", "all labels", 65.1), ("table1c", "teacher", 65.1)]
    assert [each for each in others if each[0] != "tta"] == supervised
    assert ("tta", "X-101-64x4d, student", 70.4) in others
    assert {value for name, _, value in others if name == "tta"} <= {69.1, 70.4}
    for table in TABLES:
        for row in table.rows:
            assert row.memory in (frozenset(), frozenset(row.paper)), (table.name, row.name)


def test_claims_carry_the_gaps_of_the_paper():
    def gaps(table: str) -> dict[str, float]:
        claims = [claim for claim in BY_NAME[table].claims if isinstance(claim, Gap)]
        return {claim.better: claim.paper for claim in claims if claim.paper is not None}

    assert gaps("table1a") == {"student": 5.3}
    assert gaps("table1c") == {"student": 1.5}
    assert gaps("table1a_boxes") == {"student": 1.8}
    assert list(gaps("table1b_boxes").values()) == [0.8, 0.9, 0.9]
    large = gaps("table1b")
    assert [gap for name, gap in large.items() if name.endswith("un-120")] == [2.0, 1.7, 1.9, 1.8]
    assert [gap for name, gap in large.items() if name.endswith("s1m-180")] == [1.5, 1.4, 1.2, 1.2]
    length = {(c.better, *c.than) for c in BY_NAME["table2"].claims if isinstance(c, Gap)}
    assert length == {("student, 360k", "student, 130k"), ("labelled, 130k", "labelled, 360k")}
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
        found = [[c for n, c in rows(t, scale).items() if "X-101" not in n] for t in tables]
        made = [cfg for each in found for cfg in each[-last:]]
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


def test_every_table_has_a_control_that_is_trained_as_long_as_each_student():
    """The labelled images alone."""
    for table in TABLES:
        for scale in table.scales:
            trained = [w for w in words(table.name, scale).values() if "only_evaluate" not in w]
            students = {row.get("steps") for row in trained if "data.automatic" not in row}
            controls = {row.get("steps") for row in trained if "data.automatic" in row}
            assert students
            assert students <= controls, (table.name, scale)
            assert table.name == "table2" or students == {None}  # those of the experiment


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_the_rows_of_a_comparison_differ_by_what_they_name(scale):
    for name in ("table1a", "table1c", "table1a_boxes"):
        found = rows(name, scale)
        assert found["teacher"].only_evaluate
        one, student = found["student, labels of one pass"], found["student"]
        assert (list(one.transforms.scales), one.transforms.flip) == ([], False)
        images = [(cfg.data.unlabelled, cfg.data.truth) for cfg in (one, student)]
        shifted = ("shifted", "hidden_shifted") if scale == "mini" else ("sports1m", "")
        assert images == [images[0]] * 2
        assert (images[0] == shifted) == (name == "table1c")
    same = rows("table1c", scale)["student, images of the same kind"].data
    usual = ("unlabelled", "hidden") if scale == "mini" else ("unlabeled2017", "")
    assert (same.unlabelled, same.truth) == usual


def test_lengths_of_training_are_those_of_the_paper_and_the_baseline_drops_as_its_recipe():
    paper, mini = rows("table2", "paper"), words("table2", "mini").values()
    assert [int(row["steps"]) for row in mini] == [225, 225, 300, 300, 450, 450, 600, 600]
    for steps in (130_000, 200_000, 270_000, 360_000):
        for name in ("labelled", "student"):
            cfg = to_dataclass(paper[f"{name}, {steps // 1000}k"])
            baseline = (name, steps) == ("labelled", 130_000)
            late = [100_000, 120_000] if baseline else [7 * steps // 10, 9 * steps // 10]
            assert (cfg.steps, drops(cfg)) == (steps, late)
    baseline = words("table2", "paper")["labelled, 130k"].items()
    assert baseline <= words("table1b", "paper")["R-50, labelled"].items()


@pytest.mark.parametrize(
    ("scale", "lengths"), [("mini", (150, 300, 600)), ("paper", (40_000, 80_000, 130_000))]
)
def test_teachers_of_the_curve_are_trained_longer_and_longer(scale, lengths):
    made = [steps_of_teacher(cfg) for n, cfg in rows("teacher", scale).items() if "teacher" in n]
    assert made == [steps for steps in lengths for _ in range(2)]


def test_the_network_of_the_miniature_has_0_24_m_parameters():
    model = build_detector("keypoints", 1, 9, to_dataclass(read(["experiment=mini"])).network)
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 2) == 0.24


def write_2014(root: Path) -> Path:
    """COCO of 2014 with 3 images in valminusminival2014, 4 in train2014 and 2 in minival2014."""
    (root / "annotations").mkdir(parents=True)
    number = 0
    for part, folder, count in (
        ("valminusminival2014", "val2014", 3),
        ("train2014", "train2014", 4),
        ("minival2014", "val2014", 2),
    ):
        (root / folder).mkdir(exist_ok=True)
        category = {"id": 1, "name": "person", "keypoints": ["nose", "left_hand", "right_hand"]}
        content: dict = {"images": [], "annotations": [], "categories": [category]}
        for _ in range(count):
            number += 1
            name = f"COCO_{folder}_{number:012d}.jpg"
            Image.fromarray(np.full((40, 48, 3), number, np.uint8)).save(root / folder / name)
            size = {"width": 48, "height": 40}
            content["images"].append({"id": number, "file_name": name} | size)
            content["annotations"].append({"id": number, "image_id": number} | thing())
        for stem in ("person_keypoints", "instances"):
            file = root / "annotations" / f"{stem}_{part}.json"
            file.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("table", ["table1a", "table1a_boxes"])
def test_the_small_scale_finds_co_35_co_80_and_their_union_in_the_layout_of_2014(table, tmp_path):
    root = write_2014(tmp_path / "coco")
    found = {}
    for name, cfg in rows(table, "paper").items():
        cfg.data.root, cfg.data.automatic = str(root), ""
        settings = to_dataclass(cfg)
        training = data.build_training(settings.data, settings.task)
        photos = data.find_unlabelled(settings.data, settings.task) if name != "all labels" else ()
        assert len(data.build_validation(settings.data, settings.task)) == 2  # minival
        found[name] = (len(training), len(photos))
    truth, _ = data.locate(settings.data, "train2014", settings.task)
    assert truth == [root / "train2014"]
    assert found.pop("all labels") == (7, 0)  # co-115
    assert set(found.values()) == {(3, 4)}


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
