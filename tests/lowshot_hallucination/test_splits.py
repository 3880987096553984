"""Class splits: the benchmark's files, a user's own, and random ones."""

import json

import numpy as np
import pytest

from lowshot_hallucination.features.splits import (
    ClassSplit,
    read_class_split,
    read_label_idx,
    read_split_file,
    split_at_random,
)

NAMES = [f"n{number:08d}" for number in (30, 10, 50, 20, 60, 40)]  # not sorted, as the real ones
LISTS = {"base_1": [0, 3], "base_2": [1], "novel_1": [2], "novel_2": [4, 5]}


def label_idx(path, names=NAMES, lists=LISTS, first=0, **more):
    content = {"label_names": names, **more}
    for part, classes in lists.items():
        content[part.replace("_", "_classes_")] = [k + first for k in classes]
    path.write_text(json.dumps(content))
    return path


def wnids(split):
    return {part: {split.names[k] for k in getattr(split, part)} for part in LISTS}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_class_ids_of_label_idx_count_label_names_which_are_not_sorted(tmp_path):
    split = read_label_idx(label_idx(tmp_path / "a.json", base_classes=[0, 1, 3]))
    assert split.names == NAMES
    assert split.lists() == {"names": NAMES, **LISTS}
    assert wnids(split)["base_1"] == {"n00000030", "n00000020"}
    assert (split.base, split.novel) == ([0, 1, 3], [2, 4, 5])


def test_a_release_that_counts_classes_from_1_gives_the_same_split(tmp_path):
    one = read_label_idx(label_idx(tmp_path / "a.json", first=1, base_classes=[1, 2, 4]))
    assert one == read_label_idx(label_idx(tmp_path / "b.json"))


def test_the_imagefolder_order_counts_sorted_names_and_is_another_split(tmp_path):
    split = read_label_idx(label_idx(tmp_path / "a.json"), "imagefolder")
    sorted_names = sorted(NAMES)
    assert split.names == NAMES
    assert wnids(split) == {part: {sorted_names[k] for k in LISTS[part]} for part in LISTS}
    assert wnids(split) != wnids(read_label_idx(tmp_path / "a.json"))
    with pytest.raises(ValueError, match=r"data.label_order=torch must be one of"):
        read_label_idx(tmp_path / "a.json", "torch")


def test_the_sizes_of_the_benchmark_are_required_of_1000_classes(tmp_path):
    names = [f"n{number:08d}" for number in range(1000)]
    order = np.random.default_rng(0).permutation(1000).tolist()
    ends = np.cumsum([0, 193, 196, 300, 311])
    lists = {part: order[a:b] for part, a, b in zip(LISTS, ends, ends[1:], strict=False)}
    split = read_label_idx(label_idx(tmp_path / "a.json", names, lists))
    sizes = [len(getattr(split, part)) for part in LISTS]
    assert sizes == [193, 196, 300, 311]
    assert (len(split.base), len(set(split.base + split.novel))) == (389, 1000)
    lists["novel_2"].append(lists["novel_1"].pop())
    with pytest.raises(ValueError, match=r"into \(193, 196, 299, 312\), the benchmark into"):
        read_label_idx(label_idx(tmp_path / "b.json", names, lists))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_2": []}, "must have each of the 6 classes"),
        ({"base_2": [1, 0]}, "must have each of the 6 classes"),
        ({"base_2": [7]}, "must have each of the 6 classes"),
    ],
)
def test_a_label_idx_that_is_not_a_partition_stops(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        read_label_idx(label_idx(tmp_path / "a.json", lists=LISTS | change))


def test_a_label_idx_that_contradicts_itself_or_is_none_stops(tmp_path):
    with pytest.raises(ValueError, match="base_classes differ"):
        read_label_idx(label_idx(tmp_path / "a.json", base_classes=[0, 1]))
    with pytest.raises(ValueError, match="base_classes differ"):
        read_label_idx(label_idx(tmp_path / "a.json", base_classes=None))
    with pytest.raises(ValueError, match="must be distinct names"):
        read_label_idx(label_idx(tmp_path / "a.json", names=[*NAMES[:5], NAMES[0]]))
    with pytest.raises(ValueError, match="must hold class numbers"):
        read_label_idx(write(tmp_path / "a.json", {
            "label_names": NAMES, "base_classes_1": [True], "base_classes_2": [],
            "novel_classes_1": [], "novel_classes_2": [],
        }))  # fmt: skip
    with pytest.raises(ValueError, match=r"is no label_idx.json"):
        read_label_idx(write(tmp_path / "a.json", {"label_names": NAMES}))
    with pytest.raises(ValueError, match=r"c.json cannot be read as JSON"):
        read_label_idx(tmp_path / "c.json")


def test_a_split_file_gives_the_first_rows_of_each_class_as_its_support(tmp_path):
    rows = [[831, 227, 787], [1400, 1304, 2000]]
    picks = read_split_file(write(tmp_path / "s.json", rows))
    assert picks.dtype == np.int64
    assert picks[0, :2].tolist() == [831, 227]
    assert picks.tolist() == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([[1, 2], [2, 3]], "names a row twice"),
        ([[1, 2], [3]], "1 to 2 rows a class"),
        ([[1, -2]], "is no split file"),
        ([[1, 2.5]], "is no split file"),
        ([[]], "is no split file"),
        ([], "is no split file"),
        ({"0": [1]}, "is no split file"),
    ],
)
def test_what_is_no_split_file_stops(tmp_path, content, said):
    with pytest.raises(ValueError, match=said):
        read_split_file(write(tmp_path / "s.json", content))


def test_a_random_split_is_halved_disjoint_whole_and_of_its_seed():
    names = [f"class {k}" for k in range(41)]
    split = split_at_random(names, seed=3, base_share=0.25)
    assert [len(getattr(split, part)) for part in LISTS] == [5, 5, 15, 16]
    assert sorted(split.base + split.novel) == list(range(41))
    assert split == split_at_random(names, seed=3, base_share=0.25)
    assert split != split_at_random(names, seed=4, base_share=0.25)
    some = split_at_random(names, seed=3, among=[5, 7, 9, 30])
    assert sorted(some.base + some.novel) == [5, 7, 9, 30]
    assert all(len(getattr(some, part)) == 1 for part in LISTS)


def test_three_classes_or_a_share_of_all_cannot_be_split():
    for count, share in ((3, 0.5), (8, 0.0), (8, 1.0)):
        with pytest.raises(ValueError, match=f"{count} classes cannot be split"):
            split_at_random([str(k) for k in range(count)], 0, share)


def test_phases_mix_base_and_novel_in_the_order_of_class_ids():
    split = ClassSplit(NAMES, **LISTS)
    ids, novel = split.classes_of("cv")
    assert (ids.tolist(), novel.tolist()) == ([0, 2, 3], [False, True, False])
    ids, novel = split.classes_of("test")
    assert (ids.tolist(), novel.tolist()) == ([1, 4, 5], [False, True, True])


def test_a_split_of_ones_own_takes_names_and_numbers_and_draws_the_halves(tmp_path):
    names = ["ant", "bee", "cat", "dog", "eel"]
    path = write(tmp_path / "s.json", {"base": ["bee", 0], "novel": ["dog", "eel", 2]})
    split = read_class_split(path, names)
    assert (split.base, split.novel) == ([0, 1], [2, 3, 4])
    assert [len(getattr(split, part)) for part in LISTS] == [1, 1, 1, 2]
    assert split == read_class_split(path, names)
    four = {"base_1": ["eel"], "base_2": [0], "novel_1": ["dog"], "novel_2": [2]}
    assert read_class_split(write(path, four), names) == ClassSplit(names, [4], [0], [3], [2])


def test_a_number_is_looked_up_as_a_name_where_all_names_are_numbers(tmp_path):
    names = ["0", "1", "10", "2"]  # as sorted folders
    content = {"base_1": [10], "base_2": ["2"], "novel_1": [0], "novel_2": [1]}
    split = read_class_split(write(tmp_path / "s.json", content), names)
    assert split == ClassSplit(names, [2], [3], [0], [1])


def test_a_label_idx_serves_as_a_split_by_name_and_for_numbered_features(tmp_path):
    path = label_idx(tmp_path / "label_idx.json")
    folders = sorted([*NAMES, "n99999999"])
    assert wnids(read_class_split(path, folders)) == wnids(read_label_idx(path))
    assert read_class_split(path, folders).names == folders
    assert read_class_split(path, ["0", "1", "2"]) == read_label_idx(path)
    with pytest.raises(ValueError, match=r"has the class 'n00000030', which is not among the 5"):
        read_class_split(path, sorted(NAMES[1:]))
    with pytest.raises(ValueError, match="has 6 classes, the data 7"):
        read_class_split(path, list("0123456"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"base": ["ant", "bee"], "novel": ["cat", "dug"]}, "novel has the class 'dug'"),
        ({"base": ["ant", "bee"], "novel": ["cat", 4]}, "novel has the class 4"),
        ({"base": ["ant", "bee"], "novel": ["cat", True]}, "novel has the class True"),
        ({"base": ["ant", "bee"], "novel": ["cat", "ant"]}, r"class 0 \(ant\) is in base_"),
        ({"base": ["ant", "bee"], "novel": ["cat"]}, "leaves novel_1 without a class"),
        ({"base": ["ant", "bee"]}, "needs the lists base and novel"),
        (["ant"], "needs the lists base and novel"),
    ],
)
def test_what_is_wrong_with_a_split_is_said_with_its_file(tmp_path, content, said):
    with pytest.raises(ValueError, match=rf"s.json.*{said}"):
        read_class_split(write(tmp_path / "s.json", content), ["ant", "bee", "cat", "dog"])


def test_a_split_refuses_unknown_classes_and_two_of_one_name():
    with pytest.raises(ValueError, match="novel_2 has class 2, but the 2 classes are 0 to 1"):
        ClassSplit(["a", "b"], [0], [], [], [2])
    with pytest.raises(ValueError, match="two classes have the name 'a'"):
        ClassSplit(["a", "b", "a"], [0], [], [], [1])
