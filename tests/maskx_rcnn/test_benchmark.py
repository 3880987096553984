"""The benchmark of maskx_rcnn, on tiny inputs: what it compares, counts and prints."""

import json
from functools import partial

import pytest
import torch

from common.timing import in_new_process
from maskx_rcnn import benchmark
from maskx_rcnn.benchmark import Options
from maskx_rcnn.model import Network

TINY = ["size=64", "batch=1", "repeats=2", "threads=1", "classes=7", "regions=3"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Keep the number of threads of the other tests, and the networks small."""
    before, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    small = partial(Network, backbone="resnet18", proposals=[30, 30], rois=8)
    monkeypatch.setattr(benchmark, "Network", small)
    yield
    torch.set_num_threads(before)
    torch.backends.cudnn.benchmark = tuned


def test_our_network_has_torchvisions_losses_but_that_of_the_masks():
    options = Options(size=64, batch=1, threads=1).with_defaults()
    results = [call() for call in benchmark.step(options).values()]
    assert len(results) == 3
    benchmark.require_same("step", results)
    names = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "loss_mask"}
    assert all(each.keys() == names for each in results)


def test_contestants_with_equal_losses_are_timed_and_printed(tmp_path, capsys):
    out = tmp_path / "out.json"
    benchmark.main([*TINY, "what=stages", f"out={out}"])
    content = json.loads(out.read_text())
    assert content["conditions"]["threads"] == content["options"]["threads"] == 1
    assert len(content["results"]) == 3
    for row in content["results"]:
        low, median, high = row["quartiles"]
        assert 0 < min(row["seconds"]) <= low <= median <= high <= max(row["seconds"])
    printed = capsys.readouterr().out
    assert printed.count("\n| stages ") == 3
    assert "load average" in printed


@pytest.mark.parametrize("what", ["logits", "head"])
def test_gathered_masks_are_those_of_the_dense_convolution(what):
    options = Options(classes=7, regions=3).with_defaults()
    results = [call() for call in benchmark.BENCHMARKS[what](options).values()]
    assert len(results) == 2
    assert results[0].shape == (3, 28, 28)
    benchmark.require_same(what, results)
    with pytest.raises(AssertionError):
        benchmark.require_same(what, [results[0], results[0] + 0.1])


@pytest.mark.slow  # a process of its own, while test_transfer.py sees that no such tensor is built
def test_the_logits_of_3002_classes_take_a_twentieth_of_the_dense_convolutions_memory():
    options = Options(regions=8, threads=1).with_defaults()
    extra = in_new_process(benchmark.extra_memory, "logits", "gathered", options)
    if extra is None:
        pytest.skip("this system does not tell the peak of a process's memory")
    assert extra < 4 * options.classes * options.regions * 28 * 28 / 20


def test_other_losses_stop_the_benchmark():
    one, two = (
        {"loss_mask": torch.tensor(1.0), "loss_box_reg": torch.tensor(x)} for x in (2.0, 3.0)
    )
    benchmark.require_same("stages", [one, two])
    with pytest.raises(AssertionError):
        benchmark.require_same("step", [one, two])


@pytest.mark.parametrize(("word", "sentence"), [("what=stp", "what=step"), ("repeats=1", "range")])
def test_wrong_values_are_answered_with_a_sentence(word, sentence):
    with pytest.raises(SystemExit, match=sentence):
        benchmark.main([word])


def test_help_prints_the_usage(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    assert "python benchmark.py what=step" in capsys.readouterr().out
