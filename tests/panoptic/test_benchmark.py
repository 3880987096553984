"""The benchmark of panoptic, on tiny inputs: what it compares and prints."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch

from panoptic import benchmark
from panoptic.benchmark import Options
from panoptic.files.coco import PanopticFiles
from panoptic.metric import peers
from panoptic.metric.examples import make_pair, renumber

TINY = ["pairs=2", "width=64", "height=48", "segments=6", "instances=12", "repeats=2"]


@pytest.fixture(autouse=True)
def _threads():
    """Keep the number of threads of the other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_contestants_are_timed_and_printed(tmp_path, capsys):
    out = tmp_path / "out.json"
    benchmark.main([*TINY, f"out={out}"])
    results = json.loads(out.read_text())["results"]
    printed = capsys.readouterr().out
    installed = importlib.util.find_spec("torchmetrics") is not None
    assert ("torchmetrics is not installed" in printed) != installed
    names = [row["benchmark"] for row in results]
    expected = ["ids", "ids", "compact", "compact", "files", "files", "merge", "merge", "merge"]
    assert names == expected + ["torchmetrics"] * 2 * installed
    for row in results:
        low, median, high = row["quartiles"]
        assert 0 < min(row["seconds"]) <= low <= median <= high <= max(row["seconds"])
        name = rf"\| {row['benchmark']} +\| {re.escape(row['name'])} +\| "
        assert re.search(name, printed)


def test_real_files_can_be_timed(shared_data):
    file = next((shared_data / "coco_panoptic").rglob("panoptic_*.json"))
    content = PanopticFiles(file)
    rows, _ = benchmark.measure("ids", Options(data=str(file), pairs=3, repeats=2))
    assert [row.name for row in rows] == ["ours", "two `unique` an image"]
    path = content.path(content.images[0]["id"])
    np.testing.assert_array_equal(peers.read(path), content.ids(content.images[0]["id"]))


def test_make_up_maps_have_what_real_ones_have():
    prediction, predicted, truth, true = make_pair(0, (480, 640), 30)
    assert truth.shape == prediction.shape == (480, 640)
    assert 25 <= len(true) <= 30
    assert 25 <= len(predicted) <= 30
    assert 0 in truth
    assert max(segment["id"] for segment in true) > 2**20
    compact = renumber((prediction, predicted, truth, true))
    assert {segment["id"] for segment in compact[3]} == set(range(1, len(true) + 1))


def test_a_wrong_option_is_one_sentence():
    with pytest.raises(ValueError, match="what"):
        Options(what="everything")
    with pytest.raises(ValueError, match="width"):
        Options(width=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device=cuda, but PyTorch sees no GPU"):
            Options(device="cuda")
