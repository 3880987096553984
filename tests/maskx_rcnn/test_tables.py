"""The tables' rows: every one composes, agrees with the paper, and shares its detector."""

import json
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn

from common import files
from common.config import to_dataclass
from common.run import checkpoint
from common.tables import Gap
from common.tables.plan import Request, compose_rows, plan
from maskx_rcnn import grabcut, stages
from maskx_rcnn.config import Config
from maskx_rcnn.data import PartialMasks, collate, to_device
from maskx_rcnn.inputs.embeddings import read_embeddings
from maskx_rcnn.model import MaskBranch, Network, predictor
from maskx_rcnn.stages import detector_settings, share_detector
from maskx_rcnn.tables import SHARES, TABLES
from maskx_rcnn.train import build, run, train
from tests.maskx_rcnn.small import settings as small_settings

CONF = Path(__file__).resolve().parents[2] / "maskx_rcnn" / "conf"
BY_NAME = {table.name: table for table in TABLES}
FIRST = [name for name in BY_NAME if "_nonvoc" not in name]  # one direction of each table
SHARED = ("class-agnostic", "transfer", "cls+box", "2 layers, LeakyReLU")  # rows of several tables
SMALL = ["experiment=smoke", "stage=masks"]
OURS = ("true_boxes", "few_masks", "fig3")  # tables without a figure of the paper


@pytest.fixture(autouse=True)
def opencv(monkeypatch):
    monkeypatch.setattr(grabcut, "is_installed", lambda: True)  # a row asks for it


def read(words: Sequence[str], seed: int = 0) -> DictConfig:
    """The configuration that these words give."""
    return compose_once(tuple(words), seed).copy()


@cache
def compose_once(words: tuple[str, ...], seed: int) -> DictConfig:
    groups = [word for word in words if word.startswith(("data=", "experiment="))]
    cfg = compose_groups(tuple(groups)).copy()
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


def settings(table: str, scale: str) -> dict[str, DictConfig]:
    """What the rows of a table would train, by name."""
    rows = BY_NAME[table].rows
    runs = plan(BY_NAME[table], Request([BY_NAME[table]], scale))
    return {row.name: read(r[0].overrides) for row, r in zip(rows, runs, strict=True)}


def test_every_row_of_every_table_composes_in_every_scale():
    rows = [row for row in compose_rows(TABLES) if row[0].split()[0] in FIRST]
    assert len(rows) == sum(len(BY_NAME[n].rows) * len(BY_NAME[n].scales) for n in FIRST)
    for label, words in rows:
        cfg = to_dataclass(read(words))
        assert cfg.data.name == ("paintings" if " mini: " in label else "coco"), label
        oracle = "oracle" in label or "class-specific" in label
        assert (cfg.branch.kind == "specific") == oracle, label
        assert (cfg.branch.kind == "agnostic") == ("class-agnostic" in label), label
        assert (cfg.branch.train_boxes == "gt") == ("true boxes," in label), label
        assert not cfg.branch.standardise or " mini: " in label, label
    assert "data.masks=voc" in dict(rows)["table2 paper: Mask^X R-CNN, seed 0"]


def test_the_other_direction_has_the_same_rows_with_the_other_masks():
    rows = dict(compose_rows(TABLES))
    swapped = {"data.masks=even": "data.masks=odd", "data.masks=voc": "data.masks=nonvoc"}
    others = [label for label in rows if "_nonvoc " in label]
    assert len(others) > 50
    for label in others:
        first = rows[label.replace("_nonvoc ", " ")]
        assert rows[label] == [swapped.get(word, word) for word in first], label
        assert set(first) & set(swapped), label


def test_every_figure_of_the_paper_is_marked_as_recalled():
    assert sum(len(row.paper) for table in TABLES for row in table.rows) > 150
    for table in TABLES:
        assert all(set(row.paper) == row.memory for row in table.rows)
        assert any(row.paper for row in table.rows) != table.name.startswith(OURS), table.name


PAPER = [n for n in FIRST if n.startswith(("table", "fig3")) and "paper" in BY_NAME[n].scales]


@pytest.mark.parametrize("name", PAPER)
def test_at_full_scale_the_recipe_is_the_official_code_s(name):
    for row, composed in settings(name, "paper").items():
        cfg = to_dataclass(composed)
        detector = detector_settings(composed) if cfg.stage == "masks" else cfg
        for part in (cfg, detector):
            assert (part.steps, part.batch_size, part.images_per_gpu) == (90_000, 16, 2), row
            assert (part.optimizer, part.lr, part.momentum, part.weight_decay) == (
                "sgd",
                0.02,
                0.9,
                1e-4,
            )
            assert (part.schedule, part.warmup, part.warmup_start) == ("multistep", 500, 1 / 3)
            assert [round(part.steps * m) for m in part.milestones] == [60_000, 80_000]
            assert (part.bias_lr, part.bias_decay, part.clip, part.amp) == (2, False, 0, False)
            assert (part.data.flip, part.data.train, part.data.val) == (0.5, "train", "val")
            assert part.init == ("imagenet" if part.stage != "masks" else "")
            network = part.network
            assert (network.short_side, network.long_side) == (800, 1333)
            assert (network.rois, network.positive, network.proposals) == (512, 0.25, [2000, 1000])
            assert (network.score, network.nms, network.detections) == (0.05, 0.5, 100)
            assert (network.channels, network.hidden, network.mask_size) == (256, 1024, 28)
            assert network.anchors == [32, 64, 128, 256, 512]
            assert network.backbone == ("resnet101" if "r101" in name else "resnet50")
            assert network.freeze_at == 2
        assert detector.stage == ("detector" if cfg.stage == "masks" else "e2e")
        assert cfg.cached_rois == 0
        branch = cfg.branch
        assert (branch.init, branch.init_scale, branch.match) == ("fan_out", 1, "assigned")
        assert branch.mlp == (1 if "MLP" in row or "Mask^X" in row else 0), row
        if "table1a" not in name:
            assert branch.source == "cls+box"
        if "table1b" not in name:
            assert (branch.layers, branch.activation) == (2, "leaky_relu")
        assert branch.stop_gradient == (row != "transfer, end to end")
        stagewise = name.startswith(("table1a", "table1b", "table1c", "fig3")) or "stage-" in row
        assert (cfg.stage == "masks") == stagewise, row


def test_the_rows_of_table_1c_have_gradients_in_all_of_their_branch(tmp_path):
    cfg = small_settings(tmp_path)
    dataset = PartialMasks(cfg.data, True)
    for row, composed in settings("table1c", "mini").items():
        cfg.branch = to_dataclass(composed).branch
        model = build(cfg, dataset).train()
        inputs = collate([dataset[index] for index in range(2)])
        model(*to_device(inputs, torch.device("cpu")))["loss_mask"].backward()
        branch = model.roi_heads.mask_predictor
        assert (branch.mlp is not None) == row.endswith("MLP")
        assert all(value.grad.any() for value in branch.parameters()), row


def test_claims_carry_the_gaps_of_the_paper():
    def gap(table: str, better: str, than: str) -> float:
        claims = [claim for claim in BY_NAME[table].claims if isinstance(claim, Gap)]
        of = [c for c in claims if (c.better, c.than) == (better, [than]) and "AP_B" in c.column]
        assert len(of) == 1
        return of[0].paper

    stop = "transfer, end to end, stop-gradient"
    for ending, final, stopped, mlp in (("", 4.5, 2.0, 2.9), ("_nonvoc", 5.0, 2.8, 1.3)):
        assert gap(f"table2{ending}", "Mask^X R-CNN", "class-agnostic") == final
        assert gap(f"table1d{ending}", stop, "transfer, end to end") == stopped
        assert gap(f"table1c{ending}", "class-agnostic + MLP", "class-agnostic") == mlp
    assert gap("table1a", "cls+box", "class-agnostic") == 6.0


def test_a_row_of_two_tables_has_the_same_figures_and_is_trained_once():
    ConfigStore.instance().store("schema", Config)
    for scale in ("mini", "paper"):
        found: dict[tuple[float, ...], set[Path]] = {}
        for table in (BY_NAME[f"table1{part}"] for part in "abcd"):
            rows = [row for row in table.rows if row.name.startswith(SHARED)]
            runs = plan(replace(table, rows=rows, claims=()), Request([table], scale), conf=CONF)
            for row, seeds in zip(rows, runs, strict=True):
                found.setdefault(tuple(row.paper.values()), set()).add(seeds[0].folder)
        assert all(len(folders) == 1 for folders in found.values()), scale
        assert len(found) == 2 + 2 + 3  # alone, with the MLP, end to end


def test_stage_wise_rows_of_a_seed_share_one_detector():
    for scale in ("mini", "paper"):
        rows = [*settings("table1a", scale).values(), *settings("fig3", scale).values()]
        rows += settings("table1c_nonvoc", scale).values()
        assert {cfg.stage for cfg in rows} == {"masks"}
        assert len({detector_settings(cfg).output_dir for cfg in rows}) == 1
    row = plan(BY_NAME["fig3"], Request([BY_NAME["fig3"]], "paper"))[0][0].overrides
    first, fourth = (detector_settings(read(row, seed)) for seed in (0, 3))
    assert first.output_dir == fourth.output_dir  # the paper has one for all of its splits
    row = plan(BY_NAME["table1a"], Request([BY_NAME["table1a"]], "mini"))[0][0].overrides
    first, fourth = (detector_settings(read(row, seed)) for seed in (0, 3))
    assert first.output_dir != fourth.output_dir


def test_a_detector_of_coco_is_the_same_whatever_the_paintings():
    words = ["experiment=stagewise", "data=coco"]
    one, two = (
        detector_settings(read([*words, *more])) for more in ([], ["data.paintings.stretch=0.4"])
    )
    assert one.output_dir == two.output_dir
    mini = [["experiment=mini", *more] for more in ([], ["data.paintings.stretch=0.3"])]
    assert len({detector_settings(read(words)).output_dir for words in mini}) == 2


def test_each_seed_draws_classes_of_its_own():
    for scale, column in (("mini", 0), ("paper", 1)):
        runs = plan(BY_NAME["fig3"], Request([BY_NAME["fig3"]], scale))[1::2]
        for sizes, (first, *_) in zip(SHARES.values(), runs, strict=True):
            masks = [to_dataclass(read(first.overrides, seed)).data.masks for seed in (0, 4)]
            assert masks == [f"random{sizes[column]}_1", f"random{sizes[column]}_5"]


@pytest.fixture
def detectors(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(stages, "DETECTORS", tmp_path)
    return tmp_path


def test_rows_at_the_same_time_wait_for_one_detector(detectors, capsys):
    trained: list[str] = []

    def slowly(cfg: Config, processes: int) -> None:
        trained.append(cfg.output_dir)
        Path(cfg.output_dir).mkdir()
        time.sleep(0.5)
        result = {"metrics": {}, "steps": cfg.steps}
        files.write_text(Path(cfg.output_dir, "result.json"), json.dumps(result))

    rows = [
        read(["experiment=smoke", "stage=masks", f"branch.source={source}"])
        for source in ("cls", "box")
    ]
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda cfg=cfg: found.append(share_detector(cfg, slowly).init))
        for cfg in rows
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert found == trained * 2
    printed = capsys.readouterr().out
    assert "Waiting for the detector in" in printed
    assert share_detector(rows[0], slowly).init == trained[0]
    assert len(trained) == 1


def test_a_detector_that_was_cut_off_goes_on_for_the_next_row(detectors):
    cfg = read(SMALL)

    def cut_off(settings: Config, processes: int) -> None:
        train(settings)
        folder = Path(settings.output_dir)
        shutil.copytree(folder, detectors / "whole")
        for name in ("result.json", f"checkpoint-{settings.steps:08d}.pt"):
            (folder / name).unlink()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share_detector(cfg, cut_off)
    folder = Path(share_detector(cfg, lambda settings, processes: run(settings)).init)
    whole, again = (
        checkpoint.load(each / "checkpoint-00000004.pt")["parts"]["model"]
        for each in (detectors / "whole", folder)
    )
    assert all(torch.equal(whole[name], value) for name, value in again.items())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_mask"] for line in lines if "loss_mask" in line]
    assert losses == [0, 0, 0, 0]  # stage 1 sees no mask


def test_embeddings_by_name(tmp_path):
    names = ["hue 000", "hue 090"]
    torch.testing.assert_close(
        read_embeddings("hues", names), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    )
    first = read_embeddings("random", names)
    assert first.shape == (2, 300)
    assert first.std().item() == pytest.approx(0.0548, rel=0.1)  # official code
    assert torch.equal(first, read_embeddings("random", names))
    assert read_embeddings("", names) is None
    file = tmp_path / "glove.txt"
    file.write_text("the 9 9\npotted 1 2\nplant 3 4\ntv 5 6\n")
    values = read_embeddings(str(file), ["Potted plant", "tv"])
    assert values.tolist() == [[2, 3], [5, 6]]
    for name, classes, words in (
        (str(file), ["zebra"], "no vector of zebra"),
        ("hues", ["tv"], "paintings alone"),
        (str(tmp_path / "no.npy"), names, "no.npy cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            read_embeddings(name, classes)


def test_embeddings_are_standardised_as_the_detector_s_weights_are():
    values = read_embeddings("random", [f"class {number}" for number in range(9)])
    branch = MaskBranch(source="embedding", standardise=True)
    read_by_t = predictor(9, Network(channels=4, mask_convs=1), branch, values).w_det(nn.Identity())
    own = read_by_t[1:]  # the background is a row of zeros before
    torch.testing.assert_close(own.mean(0), torch.zeros(300), atol=1e-6, rtol=0)
    assert own.square().mean().item() == pytest.approx(1)
    centred = values - values.mean(0)
    torch.testing.assert_close(own * centred.square().mean().sqrt(), centred)
