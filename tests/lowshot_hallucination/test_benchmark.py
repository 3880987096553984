"""The benchmark of lowshot_hallucination, on few classes: what it compares and prints."""

import json
from importlib.util import find_spec

import pytest
import torch

from lowshot_hallucination import benchmark
from lowshot_hallucination.hallucinate import Support

SMALL = benchmark.Options(classes=5, width=8, rows=30, repeats=2)


@pytest.fixture(autouse=True)
def _threads():
    """Keep the number of threads of the other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("what", list(benchmark.BENCHMARKS))
def test_all_contestants_are_timed_and_printed(what, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = [f"what={what}", "repeats=2", "threads=1", "classes=5", "width=8", "rows=30"]
    benchmark.main([*words, f"out={out}"])
    rows = json.loads(out.read_text())["results"]
    names = ["ours", "class by class"]
    if what in ("episode", "sampling") and find_spec("h5py"):
        names.append("class by class, HDF5")
    assert [row["name"] for row in rows] == names
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "| ours " in printed
    assert ("ours: " in printed) == (what == "episode")


def test_both_ways_imagine_as_many_examples_and_copies_of_single_ones():
    calls = benchmark.hallucination_calls(SMALL)
    ours, theirs = (call() for call in calls.values())
    assert ours.counts.tolist() == [len(each) for each in theirs] == [5, 5, 5, 10, 20]
    # G is at its start: the examples of a class with one real example are copies of it.
    torch.testing.assert_close(ours.features[0, :5], theirs[0])
    torch.testing.assert_close(ours.features[4], theirs[4])


def test_both_ways_score_the_same_where_nothing_is_left_to_chance():
    ours, theirs = (call() for call in benchmark.evaluation_calls(SMALL).values())
    assert len(ours) == len(theirs) == 25
    assert all(50 < among_all < 100 for _, among_all in ours)
    for n in (1, 5, 10, 20):  # of two examples, seeds are drawn at random
        first = 5 * benchmark.SHOTS.index(n)
        for mine, other in zip(ours[first : first + 5], theirs[first : first + 5], strict=True):
            assert mine == pytest.approx(other, abs=0.01)


def test_all_ways_draw_examples_and_queries_of_every_class():
    with benchmark.sampling_calls(SMALL) as calls:
        ours, *others = (call() for call in calls.values())
    support, queries, labels = ours
    assert support.features.shape == (5, 20, 8)
    for examples, their_queries, their_labels in others:
        assert len(examples) == 5
        assert {len(each) for each in examples} <= set(benchmark.SHOTS)
        assert their_queries.shape == queries.shape == (15, 8)
        assert torch.equal(their_labels, labels)


def test_both_ways_classify_an_episode_alike():
    learner, _ = benchmark.make_models(SMALL)
    features, queries = torch.rand(5, 4, 8), torch.rand(7, 8)
    counts = torch.tensor([1, 2, 3, 4, 4])
    examples = [x[:n] for x, n in zip(features, counts, strict=True)]
    expected = benchmark.classify_by_class(learner, examples, queries).log_softmax(1)
    found = learner(Support(features, counts), queries).log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fewer_than_five_classes_are_refused():
    with pytest.raises(ValueError, match="classes"):
        benchmark.Options(classes=4)
