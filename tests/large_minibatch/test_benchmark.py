"""The benchmark of large_minibatch, on tiny inputs: what it compares, counts and prints."""

import json

import numpy as np
import pytest
import torch

from large_minibatch import benchmark
from large_minibatch.benchmark import Options

TINY = ["size=32", "batch=8", "repeats=2", "threads=1", "keep=false"]


@pytest.fixture(autouse=True)
def _threads():
    """Keep the number of threads of the other tests."""
    before, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(before)
    torch.backends.cudnn.benchmark = tuned


@pytest.mark.parametrize("what", ["step", "ghost", "mini", "loader"])
def test_contestants_are_timed_and_printed(what, tmp_path, capsys):
    out = tmp_path / "out.json"
    benchmark.main([*TINY, f"what={what}", f"out={out}"])
    content = json.loads(out.read_text())
    assert content["conditions"]["threads"] == 1
    assert len(content["results"]) >= 2
    for row in content["results"]:
        low, median, high = row["quartiles"]
        assert 0 < min(row["seconds"]) <= low <= median <= high <= max(row["seconds"])
    printed = capsys.readouterr().out
    vectors = torch.backends.cpu.get_cpu_capability()
    assert f"vectors {vectors}, " in printed.splitlines()[0]
    assert f"numpy {np.__version__}, " in printed.splitlines()[0]
    assert printed.count(f"\n| {what} ") == len(content["results"])
    assert ("TFLOP/s" in printed) == (what == "step")


def test_our_network_trains_as_torchvisions():
    options = Options(size=64, batch=4, threads=1).with_defaults()
    losses = [call() for call in benchmark.step(options).values()]
    assert len(losses) == 3
    for loss in losses[1:]:
        torch.testing.assert_close(losses[0], loss, rtol=1e-5, atol=0)


def test_the_work_of_a_step_is_that_of_the_card():
    options = Options(size=224, batch=1).with_defaults()
    assert benchmark.work(options) == pytest.approx(24.5e9, rel=0.01)  # 3 x 2 x 4.089 GMAC


@pytest.mark.slow
def test_two_processes_are_set_beside_one(capsys):
    printed = benchmark.scaling(Options(repeats=2, threads=1))
    assert printed.count("\n| 2 ") == 3
    assert printed.splitlines()[2].endswith("100 % |")
