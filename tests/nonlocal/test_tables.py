"""The tables' rows: every one composes, builds its network, and agrees with the paper."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from common.config import to_dataclass
from common.tables import Gap
from common.tables.plan import compose_rows
from nonlocal_.config import Config
from nonlocal_.model import build_network
from nonlocal_.net.detectors import build_detector
from nonlocal_.tables import TABLES

CONF = Path(__file__).resolve().parents[2] / "nonlocal" / "conf"
BY_NAME = {table.name: table for table in TABLES}
# What the paper prints, top-1 / top-5, mAP, or AP / AP50 / AP75, row by row.
FIGURES = {
    "table2a": ["71.8/89.7", "72.5/90.2", "72.7/90.5", "72.9/90.3", "72.8/90.5"],
    "table2b": ["71.8/89.7", "72.7/90.3", "72.9/90.4", "72.7/90.5", "72.3/90.1"],
    "table2c": [
        *["71.8/89.7", "72.7/90.5", "73.8/91.0", "74.3/91.2"],
        *["73.1/91.0", "74.3/91.3", "75.1/91.7", "75.1/91.6"],
    ],
    "table2d": [
        *["71.8/89.7", "72.9/90.8", "73.1/90.5", "73.8/91.0"],
        *["73.1/91.0", "74.4/91.3", "74.4/90.5", "75.1/91.7"],
    ],
    "table2e": ["73.1/91.0/43200/34200", "74.1/91.2", "74.4/91.1", "75.1/91.7"],
    "table2f": ["71.8/89.7", "73.3/90.7", "74.9/91.6", "73.1/91.0", "74.4/91.1", "76.0/92.1"],
    "table2g": ["73.8/91.2", "74.9/91.7", "76.5/92.6", "75.3/91.8", "76.4/92.7", "77.7/93.3"],
    "table3": ["77.7/93.3"],
    "table4": ["35.5", "37.5"],
    "table5": [
        *["38.0/59.6/41.0/34.6/56.4/36.5", "39.0/61.1/41.9/35.5/58.0/37.4"],
        *["39.5/61.4/42.9/36.0/58.1/38.3", "40.8/63.1/44.5/37.1/59.9/39.2"],
        *["44.1/66.4/48.4/39.7/63.2/42.2", "45.0/67.8/48.9/40.3/64.4/42.8"],
    ],
    "table6": ["65.1/86.8/70.4", "66.0/87.1/71.7", "66.5/87.3/72.8"],
}
COLUMNS = {
    "table2e": ["top1", "top5", "kparams", "MMACs"],
    "table4": ["mAP"],
    "table5": [f"{kind}_AP{end}" for kind in ("box", "mask") for end in ("", "50", "75")],
    "table6": ["keypoint_AP", "keypoint_AP50", "keypoint_AP75"],
}
# Gaps that the text and the tables show: better row, row behind it, points.
GAPS = {
    "table2a": {("embedded gaussian", "baseline"): 0.9, ("dot product", "baseline"): 1.1},
    "table2b": {("res3", "baseline"): 1.1, ("res3", "res5"): 0.6},
    "table2c": {
        ("R50, 1 block", "R50, 0 blocks"): 0.9,
        ("R50, 5 blocks", "R50, 1 block"): 1.1,
        ("R50, 5 blocks", "R101, 0 blocks"): 0.7,
    },
    "table2d": {("R50, spacetime", "R50, space"): 0.9, ("R50, spacetime", "R50, time"): 0.7},
    "table2e": {("NL C2D, 5 blocks", "I3D, 3x1x1"): 0.7},
    "table2f": {("R50 NL I3D", "R50 I3D"): 1.6, ("R101 NL I3D", "R101 I3D"): 1.6},
    "table2g": {("R50 NL I3D", "R50 I3D"): 1.6, ("R101 NL I3D", "R101 I3D"): 1.3},
    "table4": {("NL I3D", "I3D"): 2.0},
    "table6": {("+ 4 in the head", "baseline"): 0.9},
}
# Parameters of the paper's networks, card 2.6 (R101 C2D: 43.2 M in the paper).
PARAMETERS = {
    "C2D": 43_319_760,
    "I3D, 3x3x3": 63_042_768,
    "I3D, 3x1x1": 51_754_192,
    "NL C2D, 5 blocks": 50_678_224,
}


@cache
def groups(words: tuple[str, ...]) -> DictConfig:
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(words))


def read(words: Sequence[str]) -> Config:
    """The settings that these words give."""
    chosen = tuple(word for word in words if word.startswith(("data=", "experiment=")))
    cfg = groups(chosen).copy()
    rest = ["data.root=x", "init=y", "output_dir=unused", *(w for w in words if w not in chosen)]
    for each in OverridesParser.create().parse_overrides(rest):  # as `compose` does, only sooner
        OmegaConf.update(cfg, each.key_or_group, each.value())
    return to_dataclass(cfg)


@cache
def rows() -> dict[str, Config]:
    """The settings of every row at every scale that has it."""
    return {label: read(words) for label, words in compose_rows(TABLES)}


SIZES: dict[str, int] = {}  # parameters by the network's options: equal ones are built once


def size(label: str) -> int:
    """Parameters of the network of a row."""
    cfg = rows()[label]
    detects = cfg.task == "detection"
    key = repr((cfg.detector if detects else cfg.network, cfg.block))
    if key not in SIZES:
        with torch.device("meta"):
            model: torch.nn.Module = (
                build_detector(cfg.detector, cfg.block, 80, 17)
                if detects
                else build_network(cfg.network, cfg.block, 400)
            )
        SIZES[key] = sum(value.numel() for value in model.parameters())
    return SIZES[key]


def test_every_row_of_every_table_composes_at_every_scale_and_builds_its_network():
    expected = sum(len(table.at(scale).rows) for table in TABLES for scale in table.scales)
    assert len(rows()) == expected > 75
    for label, cfg in rows().items():
        mini = " mini: " in label
        assert cfg.data.name == (
            "builtin" if mini else "coco" if "table5" in label or "table6" in label else "videos"
        )
        assert not cfg.versus
        assert mini == (size(label) < 1_000_000), label
        assert cfg.batch_size % cfg.per_gpu == 0


def test_the_papers_figures_stand_in_their_rows():
    assert set(BY_NAME) >= set(FIGURES)
    for name, figures in FIGURES.items():
        columns = COLUMNS.get(name, ["top1", "top5"])
        found = [row for row in BY_NAME[name].rows if row.paper]
        expected = [dict(zip(columns, map(float, f.split("/")), strict=False)) for f in figures]
        assert [row.paper for row in found] == expected, name
        assert not any(row.memory for row in found)


def test_claims_hold_the_gaps_of_the_paper():
    for name, wanted in GAPS.items():
        paper = {row.name: row.paper for row in BY_NAME[name].rows}
        found = {}
        for claim in BY_NAME[name].claims:
            assert isinstance(claim, Gap)
            (than,) = claim.than
            found[claim.better, than] = claim.paper
            if paper[claim.better] and paper[than]:  # else of the miniature alone
                gap = paper[claim.better][claim.column] - paper[than][claim.column]
                assert claim.paper == pytest.approx(gap), (name, claim.better)
        assert wanted.items() <= found.items(), name


def test_networks_of_table_2e_have_the_papers_sizes():
    counts = {name: size(f"table2e paper: {name}, seed 0") for name in PARAMETERS}
    assert counts == PARAMETERS
    ratios = [round(count / counts["C2D"], 2) for count in counts.values()]
    assert ratios == [1.0, 1.46, 1.19, 1.17]
    shallow = size("table2c paper: R50, 5 blocks, seed 0")
    assert shallow / counts["C2D"] == pytest.approx(0.73, abs=0.005)  # "about 70 %"


def test_rows_of_one_scale_are_in_no_other():
    for table in TABLES:
        for row in table.rows:
            for scale in table.scales:
                there = f"{table.name} {scale}: {row.name}, seed 0" in rows()
                assert there == (row.only in ("", scale)), (table.name, row.name)
    deep = [label for label, cfg in rows().items() if cfg.network.depth == "resnet101"]
    assert not any(" mini: " in label for label in deep)
    assert not [label for label in rows() if " mini: " in label and "R101" in label]


def at(label: str) -> list[str]:
    return list(rows()[f"{label}, seed 0"].network.at)


def test_rows_differ_by_what_they_name():
    modes = [
        rows()[f"table2a paper: {n}, seed 0"].block.mode
        for n in ("gaussian", "embedded gaussian", "dot product", "concatenation")
    ]
    assert modes == ["gaussian", "embedded_gaussian", "dot_product", "concatenation"]
    assert at("table2a paper: baseline") == []
    assert at("table2b paper: res5") == ["res5.1"]
    assert at("table2c paper: R101, 10 blocks") == ["10-block"]
    kinds = {n: rows()[f"table2d paper: R50, {n}, seed 0"] for n in ("space", "time", "spacetime")}
    assert all(cfg.block.over == n and cfg.network.at == ["5-block"] for n, cfg in kinds.items())
    long = rows()["table2g paper: R101 NL I3D, seed 0"]
    assert (long.clip.frames, long.clip.stride, long.network.inflate) == (128, 1, "3x1x1")
    assert (long.network.norm, long.network.at) == ("frozen", ["5-block"])
    photo = rows()["table5 paper: X152 + 1 block, seed 0"]
    assert (photo.detector.backbone, photo.detector.at) == ("resnext152_32x8d", ["1-block"])
    assert (photo.steps, photo.batch_size, photo.lr) == (260_000, 8, 0.01)
    joints = rows()["table6 paper: + 4 in the head, 1 in the backbone, seed 0"].detector
    assert joints.at == ["head.2", "head.4", "head.6", "head.8", "1-block"]
    assert (joints.keypoint_convs, joints.backbone) == (8, "resnet101")
    assert rows()["table4 paper: I3D, seed 0"].network.at == []


def test_rows_of_a_table_share_everything_but_their_network():
    """Steps, data, learning rate, test: a difference is that of the network and its blocks."""
    for table in TABLES:
        for scale in table.scales:
            found = {
                repr(
                    (cfg.steps, cfg.lr, cfg.batch_size, cfg.optimizer, cfg.clip, cfg.data, cfg.test)
                )
                for label, cfg in rows().items()
                if label.startswith(f"{table.name} {scale}: ") and "X152" not in label
            }
            assert len(found) == 1, (table.name, scale)
