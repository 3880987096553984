"""The tables' rows, what they find of one another, and the sources that only they ask for."""

from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from common.config import to_dataclass
from common.tables import main
from common.tables.plan import Request, compose_rows, plan
from panoptic.annotators import paper as study_paper
from panoptic.annotators.analysis import by_size
from panoptic.annotators.simulate import CATEGORIES, scene
from panoptic.config import NEEDS, Config
from panoptic.files.categories import kinds
from panoptic.files.entries import complete
from panoptic.merging.sources import Output, Thresholds, panoptic_map
from panoptic.quality import PanopticQuality
from panoptic.tables import HUMAN, T6, TABLES
from panoptic.weights.initialise import weights_file

CONF = Path(__file__).resolve().parents[2] / "panoptic" / "conf"
BY_NAME = {table.name: table for table in TABLES}
TABLE5, TABLE6 = BY_NAME["table5"], BY_NAME["table6"]


def settings(overrides: list[str]) -> Config:
    """What a row would train."""
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    root = [] if "experiment=mini" in overrides else ["data.root=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_dataclass(compose("config", [*overrides, *root, "output_dir=unused"]))


def folders(name: str, scale: str) -> dict[str, Path]:
    """The folder of each row's first run."""
    ConfigStore.instance().store("schema", Config)
    table = BY_NAME[name]
    rows = plan(table, Request([table], scale), conf=CONF)
    return {row.name: runs[0].folder for row, runs in zip(table.rows, rows, strict=True)}


def test_every_row_of_every_table_composes_in_every_scale():
    rows = list(compose_rows(TABLES))
    assert len(rows) == sum(len(table.rows) * len(table.scales) for table in TABLES)
    for label, overrides in rows:
        cfg = settings(overrides)
        columns = BY_NAME[label.split()[0]].columns
        sources = {source for source in NEEDS for name in columns if name.startswith(f"{source}_")}
        lacking = {"components"} if cfg.model.name == "panoptic_fpn" else set()
        assert sources - lacking <= {*cfg.predict.also}, label
        assert cfg.predict.ap == ("AP" in columns), label
        assert cfg.predict.miou == ("mIoU" in columns), label


def test_every_figure_of_the_paper_is_marked_as_recalled():
    paper = [row for table in TABLES if table.name != "panoptic_fpn" for row in table.rows]
    assert sum(len(row.paper) for row in paper) > 30
    assert all(set(row.paper) == row.memory for row in paper)
    for table in TABLES:
        if "table" in table.name and "sources" not in table.name:
            assert "†" in table.note  # other data sets
    assert not any(row.memory for row in BY_NAME["panoptic_fpn"].rows)  # published as such


def test_the_figures_of_tables_5_and_6_agree():
    (merged,), (both,) = TABLE5.rows, TABLE6.rows
    for name in {"PQ", "PQ_st", "PQ_th"}:
        assert merged.paper[name] == both.paper[name]
    place = study_paper.TABLE_6_HUMAN["Cityscapes"]
    assert [both.paper[name] for name in HUMAN] == [middle for middle, *_ in place]
    assert tuple(both.paper[name] for name in T6) == study_paper.TABLE_6_MACHINE["Cityscapes"]
    # SQ x RQ is PQ of each class; of the means it is near.
    for group in ("", "human_"):
        product = both.paper[f"{group}SQ"] * both.paper[f"{group}RQ"] / 100
        assert product == pytest.approx(both.paper[f"{group}PQ"], abs=1.5)


def test_the_pair_is_trained_once_for_all_of_its_tables():
    small = [folders(name, "mini") for name in ("table5", "table5_sources", "table6")]
    pair = {next(iter(found.values())) for found in small}
    assert len(pair) == 1
    assert folders("table5", "paper") == folders("table6", "paper")
    miniatures = [table.name for table in TABLES if "mini" in table.scales]
    every = {folder for name in miniatures for folder in folders(name, "mini").values()}
    assert len(every) == 2 + 2 + 1 + 1  # instances, semantics, the pair, one network


def test_rows_at_full_scale_find_the_networks_that_they_evaluate():
    instances, semantics = folders("table3", "paper"), folders("table4", "paper")
    every = [*instances.values(), *semantics.values(), *folders("table5", "paper").values()]
    merged = settings(plan(TABLE5, Request([TABLE5], "paper"))[0][0].overrides)
    for pattern, wanted in (
        (merged.init, semantics["PSPNet, single-scale"]),
        (merged.init_also, instances["Mask R-CNN, COCO pre-training"]),
    ):
        matching = [f for f in every if fnmatch(str(f), f"*/{pattern}")]
        assert matching == [wanted]
    assert merged.only_evaluate
    assert merged.model.aligned is False  # as the half that began with torchvision's weights


def test_a_folder_stands_for_its_newest_checkpoint(tmp_path):
    run = tmp_path / "a-1234" / "seed0"
    run.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"seed0 has no checkpoint: train that run first"):
        weights_file(run)
    for step in (20, 100):
        (run / f"checkpoint-{step:08d}.pt").touch()
    newest = run / "checkpoint-00000100.pt"
    assert weights_file(run) == weights_file(f"{tmp_path}/a-*/seed0") == newest
    assert weights_file(newest) == newest
    with pytest.raises(ValueError, match=r"b-\*: no folder matches"):
        weights_file(tmp_path / "b-*")
    (tmp_path / "a-5678" / "seed0").mkdir(parents=True)
    with pytest.raises(ValueError, match="2 folders match"):
        weights_file(f"{tmp_path}/a-*/seed0")


def drawn(number: int, image: int | str):
    """A scene, and what the human makes of it, whom the networks tell nothing."""
    ids, segments = scene(np.random.default_rng([3, number]))
    truth = torch.from_numpy(ids)
    none = torch.zeros(0, *truth.shape, dtype=torch.bool)
    nothing = Output(none, torch.zeros(0), [], torch.full(truth.shape, -1))
    found = panoptic_map(
        "human", nothing, truth, segments, CATEGORIES, thresholds=Thresholds(), image=image
    )
    return truth, segments, *found


def test_the_human_is_the_same_for_an_image_id_and_another_for_another():
    first, again, other = drawn(0, "aachen_1"), drawn(0, "aachen_1"), drawn(0, "aachen_2")
    assert torch.equal(first[2], again[2])
    assert first[3] == again[3]
    assert not torch.equal(first[2], other[2])
    complete(first[2].numpy(), first[3], where="human")
    assert first[2].dtype == torch.int32


def test_human_and_truth_may_be_swapped_and_small_things_are_the_hardest():
    as_prediction = PanopticQuality(kinds(CATEGORIES), keep_images=True)
    as_truth = PanopticQuality(kinds(CATEGORIES))
    for number in range(25):
        truth, segments, ids, found = drawn(number, number)
        as_prediction.update(ids, found, truth, segments)
        as_truth.update(truth, segments, ids, found)
    forth, back = as_prediction.compute().percent(), as_truth.compute().percent()
    assert forth == pytest.approx(back, abs=1e-9)
    sizes = by_size(as_prediction, (60, 320))
    small, medium, large = (sizes[size].things.pq for size in "SML")
    assert small + 0.1 < medium < large
    assert 50 < forth["PQ"] < 90


def test_the_human_needs_no_network():
    assert NEEDS["human"] == set()
    assert len(drawn(0, 7)[3]) > 8


def test_without_the_filter_every_stuff_segment_stays():
    semantic = torch.full((20, 30), 7)
    semantic[:2, :3] = 8  # six pixels
    output = Output(torch.zeros(0, 20, 30, dtype=torch.bool), torch.zeros(0), [], semantic)
    truth = torch.zeros(20, 30, dtype=torch.int32)
    areas = {
        source: [
            segment["area"]
            for segment in panoptic_map(
                source, output, truth, [], CATEGORIES, thresholds=Thresholds(stuff_area=10)
            )[1]
        ]
        for source in ("merged", "unfiltered")
    }
    assert areas == {"merged": [594], "unfiltered": [594, 6]}


def test_the_list_and_the_figures_of_the_paper_are_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ConfigStore.instance().store("schema", Config)
    script = CONF.parent / "train.py"
    main(TABLES, script=script, words=[])
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in BY_NAME)
    main(TABLES, script=script, words=["table6", "run=false"])
    printed = capsys.readouterr().out
    assert "61.2† →" in printed
    assert "69.6† →" in printed
    assert "Vistas human 57.7 79.7 71.6 62.7 53.6, machine 38.3 73.6 47.7 41.8 35.7" in printed
