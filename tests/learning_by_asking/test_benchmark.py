"""The benchmark of learning_by_asking, on few images: what it compares and prints."""

import json

import pytest
import torch

from learning_by_asking import benchmark
from learning_by_asking.benchmark import Options


@pytest.fixture(autouse=True)
def _threads():
    """Keep the number of threads of the other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_contestants_are_timed_and_printed(tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["images=4", "plain=1", "raw=6", "kept=3", "programs=40", "repeats=2", f"out={out}"]
    benchmark.main(words)
    rows = json.loads(out.read_text())["results"]
    assert [row["name"] for row in rows] == ["ours", "plain loop"] * 2
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "asking, ours" in printed
    assert "programs a second" in printed


def test_a_round_gets_one_reply_for_each_image_in_both_ways():
    agent = benchmark.build_agent(Options(images=3, raw=4, kept=2))
    for ask in (benchmark.ask_all, benchmark.ask_each):
        replies = ask(agent, 3)
        assert len(replies) == 3
        assert ask(agent, 3) == replies


def test_the_oracle_replies_the_same_in_both_ways_also_where_there_is_no_answer():
    ours, theirs = (call() for call in benchmark.oracle_calls(300).values())
    assert ours == theirs
    assert 0.2 < sum(reply.valid for reply in ours) / 300 < 1


@pytest.mark.parametrize("word", ["what=learning", "plain=9", "kept=99", "sizes=huge"])
def test_a_bad_word_stops_before_anything_is_measured(word):
    with pytest.raises(SystemExit, match=word.partition("=")[0]):
        benchmark.main(["images=8", "raw=8", "kept=4", word])
