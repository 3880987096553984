"""A problem on features: parted rows, counts, split files, and rows that are in both parts."""

import json

import numpy as np
import pytest

from lowshot_hallucination.features.formats import Features
from lowshot_hallucination.features.problem import (
    LowShot,
    from_folder,
    from_one_table,
    number_names,
    report_shared_rows,
)
from lowshot_hallucination.features.splits import ClassSplit
from tests.lowshot_hallucination.small import write_folder

SPLIT = ClassSplit(["ant", "bee", "cat", "dog"], [0], [1], [2], [3])


def table(counts, width=3, seed=0, source="file.npy"):
    """Rows in a random order; counts: of each class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return Features(rng.random((len(labels), width)).astype(np.float32), labels, source)


def rows(features):
    return {tuple(row) for row in features.values.tolist()}


def test_one_table_is_parted_into_disjoint_rows_of_every_class():
    features = table([8, 12, 2, 5, 4])  # the last class is not in the split
    split = ClassSplit([*SPLIT.names, "eel"], [0], [1], [2], [3])
    problem = from_one_table(features, split, 0.25, seed=1)
    assert np.bincount(problem.test.labels).tolist() == [2, 3, 1, 1]
    assert np.bincount(problem.train.labels).tolist() == [6, 9, 1, 4]
    assert not rows(problem.train) & rows(problem.test)
    label_of = dict(zip(map(tuple, features.values.tolist()), features.labels, strict=True))
    for part in (problem.train, problem.test):
        for row, label in zip(part.values.tolist(), part.labels, strict=True):
            assert label_of[tuple(row)] == label
    assert not report_shared_rows(problem)


def test_the_parts_depend_on_the_seed_alone_and_share_no_draw_between_classes():
    features = table([40, 40, 40, 40])
    first = from_one_table(features, SPLIT, 0.5, seed=0)
    assert rows(first.test) == rows(from_one_table(features, SPLIT, 0.5, seed=0).test)
    assert rows(first.test) != rows(from_one_table(features, SPLIT, 0.5, seed=1).test)
    ordered = Features(features.values, np.repeat(np.arange(4), 40))
    parted = from_one_table(ordered, SPLIT, 0.5)
    places = {tuple(row): i % 40 for i, row in enumerate(ordered.values.tolist())}
    chosen = [
        {places[tuple(row)] for row in parted.test.values[parted.test.labels == k].tolist()}
        for k in range(4)
    ]
    assert len(set(map(frozenset, chosen))) == 4


def test_most_of_a_class_as_queries_leaves_it_one_row():
    problem = from_one_table(table([2, 3, 2, 9]), SPLIT, 0.99)
    assert np.bincount(problem.train.labels).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"problem.queries_share=1.0: give a share between"):
        from_one_table(table([2, 3, 2, 9]), SPLIT, 1.0)


def test_a_class_with_one_row_stops_with_its_name_and_count():
    with pytest.raises(ValueError, match=r"class 'bee' \(number 1\) has 1 rows in file.npy"):
        from_one_table(table([5, 1, 5, 5]), SPLIT)


def test_a_class_without_rows_in_one_part_stops_with_both_counts():
    said = r"class 'cat' \(number 2, novel_1\) has 0 rows in a.npy and 4 in b.npy"
    with pytest.raises(ValueError, match=said):
        LowShot(table([4, 4, 0, 4], source="a.npy"), table([4] * 4, source="b.npy"), SPLIT)


def test_parts_of_two_widths_and_classes_beyond_the_split_stop():
    with pytest.raises(ValueError, match=r"file.npy has 3 features a row, other.npy 4"):
        LowShot(table([2] * 4), table([2] * 4, width=4, source="other.npy"), SPLIT)
    with pytest.raises(ValueError, match="has the class 4, but the split names 4 classes"):
        LowShot(table([2] * 5), table([2] * 4), SPLIT)


def test_a_novel_class_with_fewer_rows_than_shots_stops_but_not_a_base_class():
    problem = LowShot(table([1, 9, 9, 7]), table([1] * 4, seed=1), SPLIT)
    problem.require_rows(7)
    said = r"novel class 'dog' \(number 3\) has 7 rows in file.npy, fewer than the 8"
    with pytest.raises(ValueError, match=said):
        problem.require_rows(8)


def test_split_files_must_name_rows_of_their_classes():
    train = Features(np.eye(8, 2, dtype=np.float32), np.repeat(np.arange(4), 2), "train.hdf5")
    test = table([1] * 4, width=2)
    good = np.array([[1, 0], [2, 3], [5, 4], [6, 7]])
    assert LowShot(train, test, SPLIT, [good]).picks[0] is good
    for bad, said in (
        (
            good[[0, 2, 1, 3]],
            r"split file 2: row 5 should be of class 1 \(bee\), but is of class 2",
        ),
        (good + 1, r"split file 2 has row 8, but train.hdf5 has 8 rows"),
        (good[:3], "split file 2: 3 classes, the split 4"),
    ):
        with pytest.raises(ValueError, match=said):
            LowShot(train, test, SPLIT, [good, bad])


def test_rows_in_both_parts_are_found_whatever_their_order_and_precision():
    train, test = table([5] * 4, seed=0), table([3] * 4, seed=1)
    test.values[4] = [0.5, 0.0, 2.0]
    train.values[[7, 9]] = test.values[[4, 2]]
    half = test.values.astype(np.float16)
    half[4, 1] = -0.0
    said = report_shared_rows(LowShot(train, test, SPLIT))
    assert said.startswith("2 of 20 rows of the supports' pool are also queries (first: row 7 of")
    problem = LowShot(train, Features(half, test.labels, "half.npy"), SPLIT)
    said = report_shared_rows(problem)
    assert said.startswith("1 of 20 rows")
    assert f"class {train.labels[7]}, and row 4 of half.npy" in said


def test_a_folder_gives_its_own_split_or_the_one_handed_over(tmp_path):
    train, test = table([5] * 4), table([3] * 4, seed=1)
    trunk = {"folder": "run", "options": {"name": "small", "head": "linear"}}
    write_folder(tmp_path / "f", train, test, SPLIT, trunk, ["files in sorted order"])
    problem = from_folder(tmp_path / "f")
    assert (problem.split, problem.picks) == (SPLIT, None)
    assert problem.trunk == "name=small, head=linear"
    assert problem.notes == ("files in sorted order",)
    file = tmp_path / "split.json"
    lists = {"base_1": ["dog"], "base_2": ["cat"], "novel_1": ["bee"], "novel_2": ["ant"]}
    file.write_text(json.dumps(lists))
    other = ClassSplit(SPLIT.names, [3], [2], [1], [0])
    assert from_folder(tmp_path / "f", str(file)).split == other
    (tmp_path / "f" / "classes.json").write_text(json.dumps({"names": SPLIT.names}))
    assert from_folder(tmp_path / "f", str(file)).split == other
    with pytest.raises(ValueError, match="does not say which classes are base and novel"):
        from_folder(tmp_path / "f")


def test_a_folder_without_classes_json_has_numbered_classes_and_needs_a_split(tmp_path):
    write_folder(tmp_path / "f", table([5] * 4), table([3] * 4, seed=1), SPLIT, {})
    (tmp_path / "f" / "classes.json").unlink()
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"base": [3, 2], "novel": ["1", 0]}))
    split = from_folder(tmp_path / "f", str(file)).split
    assert (split.names, split.base, split.novel) == (["0", "1", "2", "3"], [2, 3], [0, 1])
    with pytest.raises(ValueError, match=r"give problem\.split=FILE"):
        from_folder(tmp_path / "f")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_1": ["0"]}, "base_1 must be a list of class numbers"),
        ({"names": [1, 2, 3, 4]}, "names must be a list of texts"),
        ({"notes": "sorted"}, "notes must be a list of texts"),
        ({"trunk": "resnet10"}, "trunk must be an object"),
        ({"trunk": {"options": [1]}}, "trunk must be an object"),
        ({"novel_1": []}, "does not say which classes are base and novel"),
        ({"novel_1": [9]}, "novel_1 has class 9"),
    ],
)
def test_a_classes_json_with_an_entry_of_another_kind_is_named(tmp_path, change, said):
    write_folder(tmp_path / "f", table([5] * 4), table([3] * 4, seed=1), SPLIT, {})
    path = tmp_path / "f" / "classes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"classes\.json:? .*{said}|classes\.json {said}"):
        from_folder(tmp_path / "f")


def test_split_files_with_fewer_rows_than_the_shots_stop():
    features = table([5] * 4)
    picks = np.stack([features.rows_of([k])[:2] for k in range(4)])
    problem = LowShot(features, table([3] * 4, seed=1), SPLIT, [picks])
    problem.require_rows(2)
    with pytest.raises(ValueError, match=r"split file 1 has 2 rows a class, fewer than the 3"):
        problem.require_rows(3)


def test_the_digest_tells_other_rows_labels_and_splits_and_not_other_precision_or_files():
    train, test = table([5] * 4), table([3] * 4, seed=1)
    digest = LowShot(train, test, SPLIT).digest()
    half = Features(train.values.astype(np.float16), train.labels)
    single = Features(half.values.astype(np.float32), train.labels, "another.npy")
    assert LowShot(half, test, SPLIT).digest() == LowShot(single, test, SPLIT).digest()
    for other in (
        LowShot(half, test, SPLIT),
        LowShot(Features(train.values, train.labels[::-1]), test, SPLIT),
        LowShot(train, test, ClassSplit(SPLIT.names, [1], [0], [2], [3])),
    ):
        assert other.digest() != digest


def test_numbered_classes_have_names_where_labels_have_gaps():
    assert number_names(np.array([3, 0, 3]), "x.npy") == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match=r"x\.npy: the labels go up to 10000000"):
        number_names(np.array([10_000_000]), "x.npy")
