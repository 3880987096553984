"""The benchmark of focal_loss, on tiny inputs: what it compares, counts and prints."""

import json

import pytest
import torch

from common.timing import Row, by_turns, in_new_process, table
from focal_loss import benchmark

TINY = ["size=64", "batch=1", "repeats=2", "anchors=200", "pairs=300", "images=4"]


@pytest.fixture(autouse=True)
def _threads():
    """Keep the number of threads of the other tests."""
    before, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(before)
    torch.backends.cudnn.benchmark = tuned


@pytest.mark.parametrize("what", ["step", "inference", "assign", "coco"])
def test_contestants_with_equal_results_are_timed_and_printed(what, tmp_path, capsys):
    if what == "coco":
        pytest.importorskip("faster_coco_eval", reason="coco needs the extra `fast`")
    out = tmp_path / "out.json"
    benchmark.main([*TINY, "threads=1", f"what={what}", f"out={out}"])
    content = json.loads(out.read_text())
    assert content["conditions"]["threads"] == content["options"]["threads"] == 1
    assert len(content["results"]) >= 2
    for row in content["results"]:
        assert row["benchmark"] == what
        assert len(row["seconds"]) == 2
        low, median, high = row["quartiles"]
        assert 0 < min(row["seconds"]) <= low <= median <= high <= max(row["seconds"])
    printed = capsys.readouterr().out
    assert printed.count(f"\n| {what} ") == len(content["results"])
    assert "load average" in printed


def test_all_losses_are_the_same_with_their_gradients():
    calls = benchmark.loss(benchmark.Options(anchors=1000, batch=1))
    results = [call() for call in calls.values()]
    assert len(results) >= 2
    assert results[0][0] > 0
    benchmark.require_same("loss", results)


def test_our_loss_takes_little_more_memory_than_its_gradient():
    options = benchmark.Options(anchors=100_000, batch=1, threads=1)
    extra = in_new_process(benchmark.loss_memory, "ours", options)
    if extra is None:
        pytest.skip("this system does not tell the peak of a process's memory")
    assert 0.9 < extra / (4 * 80 * 100_000) < 1.5  # of the logits' bytes


def test_different_results_stop_the_benchmark():
    with pytest.raises(AssertionError):
        benchmark.require_same("loss", [torch.tensor(1.0), torch.tensor(1.01)])
    with pytest.raises(AssertionError, match="anchors agree"):
        benchmark.require_same("assign", [torch.zeros(100), torch.ones(100)])


def test_every_round_is_led_by_another_contestant():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = by_turns(calls, 3, "cpu")
    assert "".join(order) == "abcbcacababc"
    assert all(len(each) == 3 for each in seconds.values())


def test_the_ratio_is_that_of_the_medians():
    rows = [Row("loss", "ours", [1.0, 2.0, 9.0], 2**20), Row("loss", "theirs", [3.0, 5.0, 6.0])]
    lines = [line.strip("|").split("|") for line in table(rows).splitlines()[2:]]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["loss", "ours", "2,000.0 ms", "1,500.0 – 5,500.0 ms", "", "1 MiB"],
        ["loss", "theirs", "5,000.0 ms", "4,000.0 – 5,500.0 ms", "2.50", ""],
    ]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("what=los", "Did you mean 'what=loss'"),
        ("size=100", "multiple of 32"),
        ("repeats=1", "out of range"),
    ],
)
def test_wrong_values_are_answered_with_a_sentence(word, sentence):
    with pytest.raises(SystemExit, match=sentence):
        benchmark.main([word])


def test_the_command_ends_with_one_sentence_and_code_2(commands):
    done = commands.run("focal_loss", "repeat=3", script="benchmark.py")
    assert done.returncode == 2
    assert "Did you mean 'repeats'" in done.stderr
    assert "Traceback" not in done.stderr
