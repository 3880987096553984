"""The benchmark of program_execution, on tiny inputs: what it compares and prints."""

import json

import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore

from common.clevr import builtin
from common.clevr.programs import to_prefix, to_tree
from program_execution import benchmark
from program_execution.benchmark import Options
from program_execution.config import Config

FEW = "settings=[data.builtin.train_images=20,data.builtin.val_images=10]"
CONTESTANTS = ["ours, grouped", "per-sample reference", "ours, nothing shared", "ours, bmm"]


@pytest.fixture(autouse=True)
def _as_before():
    """Keep the number of threads of the other tests, and give Hydra this folder's options."""
    before = torch.get_num_threads()
    ConfigStore.instance().store("schema", Config)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("what", ["demo", "small"])
def test_executions_are_timed_and_printed(what, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = [f"what={what}", "batch=12", "per_image=4", "channels=8", "threads=1", "repeats=2"]
    benchmark.main([*words, FEW, f"out={out}"])
    results, printed = json.loads(out.read_text())["results"], capsys.readouterr().out
    assert [row["name"] for row in results] == CONTESTANTS
    for row in results:
        low, median, high = row["quartiles"]
        assert 0 < min(row["seconds"]) <= low <= median <= high <= max(row["seconds"])
        assert f"- {what}, {row['name']}: {12 / median:,.0f} questions a second" in printed


def test_the_demo_takes_the_batch_of_the_default_run():
    settings = ["data.builtin.train_images=20", "data.builtin.val_images=10", "ee.batch_size=7"]
    _, notes = benchmark.measure("demo", Options(repeats=2, settings=settings))
    assert len(notes) == len(CONTESTANTS)
    assert all(note.endswith("questions a second, 7 a step") for note in notes)


def test_a_contestant_that_computes_something_else_is_found(monkeypatch):
    def wrong(options: Options) -> benchmark.Calls:
        return {"ours": lambda: torch.tensor(1.0), "theirs": lambda: torch.tensor(2.0)}

    monkeypatch.setitem(benchmark.BENCHMARKS, "small", wrong)
    with pytest.raises(AssertionError, match="not close"):
        benchmark.measure("small", Options(repeats=2))


def test_programs_are_encoded_as_the_engine_reads_them():
    questions = builtin.build(split="train", images=3, per_image=3).questions
    for row, question in zip(benchmark.encode(questions), questions, strict=True):
        assert question.program is not None
        words = [benchmark.PROGRAM_TOKENS[i] for i in row[: np.flatnonzero(row)[-1] + 1]]
        assert words == ["<START>", *to_prefix(to_tree(question.program)), "<END>"]


def test_a_benchmark_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="Did you mean 'what=demo'"):
        Options(what="dmo")
