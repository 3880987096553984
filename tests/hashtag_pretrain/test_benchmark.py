"""The benchmark of hashtag_pretrain, on few images and tags: what it compares and prints."""

import json

import pytest
import torch

from hashtag_pretrain import benchmark


@pytest.fixture(autouse=True)
def _threads():
    """Keep the number of threads of the other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


CASES = {
    "images": (
        ["count=8", "side=300", "batch=8"],
        ["ours, short=256", "ours, as they were", "ImageFolder"],
    ),
    "loss": (["batch=8"], ["ours", "dense targets"]),
    "ids": (["list=20000"], ["ours", "the expanded list"]),
    "step": (["batch=4"], ["ours", "torchvision"]),
}


@pytest.mark.parametrize(
    "what", ["images", *(pytest.param(each, marks=pytest.mark.slow) for each in list(CASES)[1:])]
)
def test_all_contestants_are_timed_and_printed(what, tmp_path, capsys):
    words, names = CASES[what]
    out = tmp_path / "out.json"
    benchmark.main([f"what={what}", "repeats=2", "threads=1", *words, f"out={out}"])
    rows = json.loads(out.read_text())["results"]
    assert [row["name"] for row in rows] == names
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in names)


def test_the_gradients_of_both_losses_are_the_same():
    ours, theirs = (call() for call in benchmark.loss_calls(4, "cpu").values())
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)
