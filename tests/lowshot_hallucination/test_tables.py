"""The tables' rows: every one composes, builds its networks, and has the paper's known figures."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from common.config import to_dataclass
from common.tables import Gap
from common.tables.plan import compose_rows
from lowshot_hallucination.config import Config
from lowshot_hallucination.hallucinate import build_generator
from lowshot_hallucination.model import build_learner
from lowshot_hallucination.tables import CONTROLS, TABLES, compare

CONF = Path(__file__).resolve().parents[2] / "lowshot_hallucination" / "conf"
BY_NAME = {table.name: table for table in TABLES}
SHOTS = ("1", "2", "5", "10", "20")
# Top-5 that others who cite the paper print: novel, all, all with a prior; n = 1, 2, 5, 10, 20.
TABLE1_R10 = {
    "LogReg": (
        (38.4, 51.1, 64.8, 71.6, 76.6),
        (40.8, 49.9, 64.2, 71.9, 76.9),
        (52.9, 60.4, 68.6, 72.9, 76.3),
    ),
    "LogReg with analogies": (
        (40.7, 50.8, 62.0, 69.3, 76.5),
        (52.2, 59.4, 67.6, 72.8, 76.9),
        (53.2, 59.1, 66.8, 71.7, 76.3),
    ),
    "PN": (
        (39.3, 54.4, 66.3, 71.2, 73.9),
        (49.5, 61.0, 69.7, 72.9, 74.6),
        (53.6, 61.4, 68.8, 72.0, 73.8),
    ),
    "MN": (
        (43.6, 54.0, 66.0, 72.5, 76.9),
        (54.4, 61.0, 69.0, 73.7, 76.5),
        (54.5, 60.7, 68.2, 72.6, 75.6),
    ),
    "PMN": (
        (43.3, 55.7, 68.4, 74.0, 77.0),
        (55.8, 63.1, 71.1, 75.0, 77.1),
        (54.7, 62.0, 70.2, 73.9, 75.9),
    ),
    "PMN with G": (
        (45.8, 57.8, 69.0, 74.3, 77.4),
        (57.6, 64.7, 71.9, 75.2, 77.5),
        (56.4, 63.3, 70.6, 74.0, 76.2),
    ),
}
RECALLED_R10 = {"PN with G": ((45.0, 55.9, 67.3, 73.0, 76.5), (56.9, 63.2, 70.6, 74.5, 76.5))}
# Of which n = 20, and all with a prior, were recalled.
TABLE1_R50 = {
    "PN": (
        (49.6, 64.0, 74.4, 78.1, 80.0),
        (61.4, 71.4, 78.0, 80.0, 81.1),
        (62.9, 70.5, 77.1, 79.5, 80.8),
    ),
    "MN": (
        (53.5, 63.5, 72.7, 77.4, 81.2),
        (64.9, 71.0, 77.0, 80.2, 82.7),
        (63.8, 69.9, 75.9, 79.3, 81.9),
    ),
    "PMN": (
        (53.3, 65.2, 75.9, 80.1, 82.6),
        (64.8, 72.1, 78.8, 81.7, 83.3),
        (63.4, 70.8, 77.9, 80.9, 82.7),
    ),
    "PMN with G": (
        (54.7, 66.8, 77.4, 81.4, 83.8),
        (65.7, 73.5, 80.2, 82.8, 84.5),
        (64.4, 71.8, 78.7, 81.5, 83.3),
    ),
}
RECALLED_R50 = {
    "PN with G": (
        (53.9, 65.2, 75.7, 80.2, 82.8),
        (65.2, 72.0, 78.9, 81.7, 83.1),
        (63.9, 70.5, 77.5, 80.6, 82.4),
    ),
}
OLDER = {
    "ResNet-10, LogReg": (
        (14.10, 33.34, 56.20, 66.15, 71.52),
        (43.02, 54.29, 67.17, 72.75, 75.86),
    ),
    "ResNet-10, LogReg with analogies": ((29.68, 42.15, 56.13, 64.52, 70.56),),
    "ResNet-10, MN": ((41.27, 51.25, 62.13, 67.82, 71.78), (54.97, 61.52, 69.27, 73.38, 76.22)),
}
FIGURES = {
    "table1_r10": TABLE1_R10 | RECALLED_R10,
    "table1_r50": TABLE1_R50 | RECALLED_R50,
    "hg": OLDER,
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
    rest = ["output_dir=unused", *(word for word in words if word not in chosen)]
    for each in OverridesParser.create().parse_overrides(rest):  # as `compose` does, only sooner
        OmegaConf.update(cfg, each.key_or_group, each.value())
    return to_dataclass(cfg)


@cache
def rows() -> dict[str, Config]:
    """The settings of every row at every scale that has it."""
    return {label: read(words) for label, words in compose_rows(TABLES)}


def test_every_row_of_every_table_composes_at_every_scale_and_builds_its_networks():
    expected = sum(len(table.at(scale).rows) for table in TABLES for scale in table.scales)
    assert len(rows()) == expected > 55
    for label, cfg in rows().items():
        assert not cfg.versus
        width = 2048 if "r50" in label else 64 if " mini: " in label else 512
        with torch.device("meta"):
            if cfg.learner.method != "logistic":
                build_learner(cfg.learner, width)
            if cfg.hallucination.kind != "analogies":
                generator = build_generator(cfg.hallucination, width)
                count = sum(value.numel() for value in generator.parameters())
                learned = cfg.hallucination.kind == "learned"
                assert count == (4 * width**2 + 3 * width if learned else 0), label


def test_the_papers_figures_stand_in_their_rows_and_no_others():
    for table in TABLES:
        wanted = {}
        for name, kinds in FIGURES.get(table.name, {}).items():
            wanted[name] = {
                f"{kind}_{n}": value
                for kind, values in zip(("novel", "all", "prior"), kinds, strict=False)
                for n, value in zip(SHOTS, values, strict=True)
            }
        assert {row.name: row.paper for row in table.rows if row.paper} == wanted, table.name
        for figures in wanted.values():
            assert set(figures) <= set(table.columns), table.name


def test_what_was_recalled_is_marked_and_nothing_else():
    recalled = {(table.name, row.name): set(row.memory) for table in TABLES for row in table.rows}
    prior = {f"prior_{n}" for n in SHOTS}
    wanted = {("table1_r50", name): {*prior, "novel_20", "all_20"} for name in TABLE1_R50}
    for name, figures in (("table1_r10", RECALLED_R10), ("table1_r50", RECALLED_R50)):
        kinds = ("novel", "all", "prior")[: len(figures["PN with G"])]
        wanted[name, "PN with G"] = {f"{kind}_{n}" for kind in kinds for n in SHOTS}
    assert {key: value for key, value in recalled.items() if value} == wanted


def test_claims_hold_the_gaps_of_the_papers_rows():
    found = {}
    for table in TABLES:
        paper = {row.name: row.paper for row in table.rows}
        for claim in table.claims:
            assert isinstance(claim, Gap)
            (than,) = claim.than
            found[table.name, claim.better, than] = claim.paper
            assert {claim.better, than} <= set(paper)
            if claim.paper is not None and paper[than]:
                gap = paper[claim.better][claim.column] - paper[than][claim.column]
                assert claim.paper == pytest.approx(gap)
            assert claim.column == "novel_1"
    assert found["table1_r10", "PN with G", "PN"] == 5.7  # the abstract's six points
    assert found["table1_r10", "PMN with G", "PMN"] == 2.5
    assert found["table1_r50", "PMN with G", "PMN"] == 1.4
    (mini,) = BY_NAME["mini"].claims
    assert (mini.better, mini.than, mini.at_least) == ("PN with G", ["PN"], 1.0)
    assert {key[2] for key in found if key[0] == "ablation"} == {
        f"PN with {name}" for name in ("Gaussian noise", "dropout", "averages")
    }


def test_every_table_in_the_new_protocol_has_the_two_controls():
    names = [row.name for row in CONTROLS]
    assert len(names) == 2
    for table in TABLES:
        if table.name != "hg":
            assert set(names) <= {row.name for row in table.rows}, table.name
            for scale in table.scales:
                shrunk, centred = (rows()[f"{table.name} {scale}: {n}, seed 0"] for n in names)
                assert (shrunk.learner.method, shrunk.learner.shrink) == ("pn", "cv")
                assert centred.learner.metric == "centred_cosine"
                assert {shrunk.hallucination.kind, centred.hallucination.kind} == {"none"}


def test_rows_differ_by_what_they_name():
    def at(label: str) -> Config:
        return rows()[f"{label}, seed 0"]

    methods = {
        label.partition(": ")[2].removesuffix(", seed 0"): cfg.learner.method
        for label, cfg in rows().items()
        if label.startswith("mini mini: ")
    }
    assert methods == {
        "nearest mean": "nearest",
        "cosine classifier": "logistic",
        "LogReg": "logistic",
        "LogReg with analogies": "logistic",
        "MN": "mn",
        "PMN": "pmn",
        "PMN with G": "pmn",
        "PN": "pn",
        "PN with G": "pn",
        "PN, prototypes shrunk": "pn",
        "centred cosine": "nearest",
    }
    assert at("mini mini: cosine classifier").logistic.cosine
    kinds = {
        "PN": "none",
        "PN with G": "learned",
        "PN with Gaussian noise": "gaussian",
        "PN with dropout": "dropout",
        "PN with averages": "weighted",
        "PN with analogies": "analogies",
    }
    assert {n: at(f"ablation paper: {n}").hallucination.kind for n in kinds} == kinds
    never = at("ablation mini: PN with G never trained").hallucination
    assert (never.kind, never.trained) == ("learned", "never")
    assert at("ablation mini: PN with G from Gaussian weights").hallucination.init == "gaussian"
    assert at("ablation mini: PN with G, no noise").hallucination.noise_in == "never"
    assert at("ablation mini: PN with G, no noise in tests").hallucination.noise_in == "training"
    deep = at("ablation mini: PN of five layers")
    assert (deep.learner.embed_layers, deep.hallucination.kind) == (5, "none")
    assert at("ablation mini: cosine PN with G").learner.metric == "cosine"
    assert all(cfg.test.protocol == "hg" for label, cfg in rows().items() if label[:3] == "hg ")
    assert at("hg paper: ResNet-10, MN").learner.mn_score == "hg"
    assert at("hg paper: ResNet-10, LogReg with analogies").logistic.weight_decay == 0.001
    assert at("table1_r50 paper: PN").trunk.name == "resnet50"


def test_five_layers_have_the_parameters_of_two_and_of_g_but_for_its_noise():
    """A control for capacity: G's first layer alone is wider, as it reads z too."""
    cfg = rows()["ablation mini: PN of five layers, seed 0"]
    plain = rows()["ablation mini: PN with G, seed 0"]
    sizes = [
        sum(value.numel() for value in module.parameters())
        for module in (
            build_learner(cfg.learner, 64),
            build_learner(plain.learner, 64),
            build_generator(plain.hallucination, 64),
        )
    ]
    assert sizes[0] == sizes[1] + sizes[2] - 64**2


def test_rows_of_a_table_share_everything_but_their_method():
    """Features, steps, episodes, test: also the rescaling of features, in every row alike."""
    for table in TABLES:
        for scale in table.scales:
            found = {
                repr((cfg.steps, cfg.lr, cfg.episodes, cfg.problem, cfg.test, cfg.trunk, cfg.seed))
                for label, cfg in rows().items()
                if label.startswith(f"{table.name} {scale}: ")
            }
            assert len(found) == 1, (table.name, scale)


def write_run(folder: Path, novel: np.ndarray) -> Path:
    """A finished run's draws.csv: accuracies (draws,) at n = 1."""
    folder.mkdir(parents=True)
    lines = [f"test,1,{d},{value:.4f},{value + 10:.4f}" for d, value in enumerate(novel)]
    text = "\n".join(["phase,n,draw,novel5,all5", "cv,1,0,1,1", *lines])
    (folder / "draws.csv").write_text(text)
    return folder


def test_compare_prints_the_paired_gains_of_what_has_ended(tmp_path):
    base = np.array([40.0, 50.0, 60.0, 45.0])
    runs = {
        "PN": [base, base + 1],
        "PN with G": [base + 3, base + 4],
        "PN, prototypes shrunk": [base + 2, base + 3],
        "MN": [],
    }
    folders = {
        name: [write_run(tmp_path / name / str(k), each) for k, each in enumerate(several)]
        for name, several in runs.items()
    }
    text = compare(BY_NAME["mini"], folders, tmp_path / "mini")
    assert "PN with G" in text
    assert "+3.0 ± 0.0" in text  # of every draw and seed, whatever the draws are
    assert "PN with G over the best control" in text
    assert "+1.0 ± 0.0" in text
    assert "MN" not in text.replace("PMN", "")
    assert (tmp_path / "mini.gains.png").is_file()


def test_compare_says_nothing_without_the_baseline_or_another_row(tmp_path):
    one = [write_run(tmp_path / "run", np.ones(3))]
    assert not compare(BY_NAME["mini"], {"PN with G": one, "MN": one, "PN": []}, tmp_path / "x")
    assert not compare(BY_NAME["mini"], {"PN": one}, tmp_path / "x")
