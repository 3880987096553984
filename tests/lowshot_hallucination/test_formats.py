"""Feature files: what is read equals what was written, and what is wrong with a file is said."""

import json

import h5py
import numpy as np
import pytest

from lowshot_hallucination.features.formats import (
    Features,
    new_folder,
    read_features,
    read_folder,
    write_hdf5,
)
from lowshot_hallucination.features.splits import ClassSplit
from tests.lowshot_hallucination.small import write_folder

SPLIT = ClassSplit(["a", "b", "c", "d"], [0], [2], [1], [3])


def table(rows=70, width=5, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return Features(rng.random((rows, width)).astype(dtype), np.arange(rows) % 4)


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def test_hdf5_is_padded_to_blocks_of_64_rows_and_read_without_the_padding(tmp_path):
    written = table(rows=70)
    write_hdf5(tmp_path / "a.hdf5", written)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert {name: file[name].shape for name in file} == {
            "all_feats": (128, 5),
            "all_labels": (128,),
            "count": (1,),
        }
        assert file["all_feats"].dtype == np.float32
        assert not file["all_feats"][70:].any()
        assert not file["all_labels"][70:].any()
        assert file["count"][0] == 70
    read = read_features(tmp_path / "a.hdf5")
    assert np.array_equal(read.values, written.values)
    assert np.array_equal(read.labels, written.labels)


def test_padding_of_class_0_never_counts_as_rows_of_class_0(tmp_path):
    values = np.ones((64, 2), np.float32)
    write_h5(tmp_path / "a.h5", all_feats=values, all_labels=np.zeros(64, int), count=[3])
    assert len(read_features(tmp_path / "a.h5")) == 3


def test_the_other_name_of_the_features_a_missing_count_and_a_scalar_count_are_read(tmp_path):
    values, labels = np.eye(3, dtype=np.float16), np.array([2, 0, 1])
    write_h5(tmp_path / "a.h5", all_features=values, all_labels=labels)
    write_h5(tmp_path / "b.h5", all_features=values, all_labels=labels, count=2)
    read = read_features(tmp_path / "a.h5")
    assert read.values.dtype == np.float16
    assert np.array_equal(read.values, values)
    assert np.array_equal(read_features(tmp_path / "b.h5").labels, [2, 0])


def test_npy_is_mapped_and_takes_its_labels_from_beside_it_or_from_a_named_file(tmp_path):
    written = table(dtype=np.float16)
    np.save(tmp_path / "x.npy", written.values)
    np.save(tmp_path / "x_labels.npy", written.labels)
    np.save(tmp_path / "other.npy", written.labels[::-1].astype(np.float64))
    read = read_features(tmp_path / "x.npy")
    assert isinstance(read.values, np.memmap)
    assert read.values.dtype == np.float16
    assert np.array_equal(read.values, written.values)
    assert np.array_equal(read.labels, written.labels)
    other = read_features(tmp_path / "x.npy", tmp_path / "other.npy")
    assert np.array_equal(other.labels, written.labels[::-1])
    assert other.labels.dtype == np.int64


def test_npz_is_read_and_double_precision_becomes_single(tmp_path):
    written = table(dtype=np.float64)
    np.savez(tmp_path / "x.npz", features=written.values, labels=written.labels, more=[None])
    read = read_features(tmp_path / "x.npz")
    assert read.values.dtype == np.float32
    assert np.array_equal(read.values, written.values.astype(np.float32))


def save(values, labels=(0, 1)):
    def make(folder):
        np.save(folder / "x.npy", np.asarray(values))
        np.save(folder / "x_labels.npy", np.asarray(labels))
        return folder / "x.npy"

    return make


def h5(**arrays):
    def make(folder):
        write_h5(folder / "x.h5", **arrays)
        return folder / "x.h5"

    return make


def text(name, content=b"nothing"):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


ONES, TWO = np.ones((2, 3), np.float32), np.arange(2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (save([[0.0, np.nan], [1, 1]]), "x.npy: feature 1 of row 0 is nan"),
        (save([[0.0, 1], [1, -np.inf]]), "x.npy: feature 1 of row 1 is -inf"),
        (save([[0.0, 1], [1e39, 1]]), "x.npy: feature 0 of row 1 is inf"),
        (save(np.ones((2, 0))), r"x.npy: features of shape \(2, 0\)"),
        (save(np.ones(2)), r"x.npy: features of shape \(2,\)"),
        (save(np.ones((0, 3)), ()), r"x.npy: features of shape \(0, 3\)"),
        (save(ONES, [0, 1, 2]), r"x.npy has 2 rows, but its labels have the shape \(3,\)"),
        (save(ONES, [[0], [1]]), r"labels have the shape \(2, 1\)"),
        (save(ONES, 0), r"labels have the shape \(1,\)"),
        (save(ONES, [0, -1]), "x_labels.npy: row 1 has class -1"),
        (save(ONES, [0, 0.5]), "x_labels.npy holds float64 labels that are not whole"),
        (save(ONES, [0, np.inf]), "x_labels.npy holds float64 labels that are not whole"),
        (save(ONES, ["a", "b"]), "x_labels.npy holds <U1 labels that are not whole"),
        (save(ONES.astype(complex)), "x.npy holds complex128"),
        (text("x.npy"), "x.npy is not a .npy file"),
        (text("x.npz"), "x.npz is not a .npz file"),
        (text("x.npz", b""), "x.npz is not a .npz file"),
        (text("x.h5"), "x.h5 is not an H5 file"),
        (text("x.mat"), "x.mat has the suffix '.mat'"),
        (h5(all_feats=ONES, all_labels=TWO, count=[3]), r"x.h5: count is \[3\], but there are 2"),
        (h5(all_feats=ONES, all_labels=TWO, count=[0]), r"x.h5: count is \[0\]"),
        (h5(all_feats=ONES, all_labels=TWO[:1], count=[2]), "2 rows and 1 labels"),
        (h5(all_feats=ONES, all_labels=TWO[:1]), "x.h5 has 2 rows, but"),
        (h5(all_labels=TWO), "x.h5 has no array named all_feats, all_features"),
        (h5(all_feats=ONES), "x.h5 has no array named all_labels"),
        (lambda folder: folder / "x.npy", "x.npy does not exist"),
        (lambda folder: folder / "x.npz", "x.npz does not exist"),
        (lambda folder: folder / "x.h5", "x.h5 does not exist"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, make, said):
    with pytest.raises(ValueError, match=said):
        read_features(make(tmp_path))


def test_labels_missing_or_given_twice_stop(tmp_path):
    np.save(tmp_path / "x.npy", ONES)
    with pytest.raises(ValueError, match=r"there is no .*x_labels.npy, give labels=FILE"):
        read_features(tmp_path / "x.npy")
    write_hdf5(tmp_path / "x.h5", table())
    with pytest.raises(ValueError, match="holds its own labels"):
        read_features(tmp_path / "x.h5", tmp_path / "labels.npy")


def test_a_truncated_file_stops(tmp_path):
    np.savez(tmp_path / "x.npz", features=ONES, labels=TWO)
    write_hdf5(tmp_path / "x.h5", table())
    for name in ("x.npz", "x.h5"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=name):
            read_features(path)


def test_a_feature_folder_comes_back_as_it_was_written_and_mapped(tmp_path):
    train, test = table(dtype=np.float16), table(rows=8, dtype=np.float16, seed=1)
    trunk = {"folder": "runs/trunk", "options": {"name": "small"}}
    write_folder(tmp_path / "out" / "f", train, test, SPLIT, trunk, ["a note"])
    read_train, read_test, content = read_folder(tmp_path / "out" / "f")
    for read, written in ((read_train, train), (read_test, test)):
        assert isinstance(read.values, np.memmap)
        assert np.array_equal(read.values, written.values)
        assert np.array_equal(read.labels, written.labels)
    assert content == {**SPLIT.lists(), "trunk": trunk, "notes": ["a note"]}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["f"]


def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path):
    def fail():
        with new_folder(tmp_path / "f") as part:
            (part / "train.npy").write_text("half")
            raise KeyError("interrupted")

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="f is there already"):
        write_folder(tmp_path / "f", table(), table(), SPLIT, {})
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["mine.txt"]


def test_a_folder_of_hdf5_files_train_and_val_is_read_without_classes(tmp_path):
    write_hdf5(tmp_path / "train.hdf5", table())
    write_hdf5(tmp_path / "val.hdf5", table(rows=8))
    train, test, content = read_folder(tmp_path)
    assert (len(train), len(test), content) == (70, 8, {})


def test_a_folder_that_is_not_whole_stops(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        read_folder(tmp_path / "nowhere")
    write_hdf5(tmp_path / "train.h5", table())
    with pytest.raises(ValueError, match=r"needs one file test or val .* it has neither"):
        read_folder(tmp_path)
    write_hdf5(tmp_path / "test.h5", table())
    (tmp_path / "classes.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"classes.json holds no JSON object"):
        read_folder(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps(SPLIT.lists())[:-9])
    with pytest.raises(ValueError, match=r"classes.json cannot be read as JSON"):
        read_folder(tmp_path)
