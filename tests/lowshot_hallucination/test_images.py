"""Image problems from folders, ImageNet's lists, Omniglot and CIFAR-10."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import UnreadableImage
from lowshot_hallucination.features.images import ImageData, Images, build_images, drop_unreadable
from lowshot_hallucination.features.omniglot import read_zip

NAMES = ["e", "a", "d", "b", "c", "f"]  # not sorted, as the benchmark's are not


def write_png(path: Path, value: int) -> None:
    """A 40 x 30 image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 40, 3), value, np.uint8)).save(path)


def make_folder(root: Path, splits: tuple[str, ...] = ("",), count: int = 4) -> Path:
    """Six classes of `count` images, each of its own grey: 10 * class + i in sorted order."""
    for split in splits:
        for k, name in enumerate(sorted(NAMES)):
            for i in range(count):
                write_png(root / split / name / f"{i}.png", 10 * k + i)
    return root


def make_imagenet(root: Path) -> tuple[Path, Path]:
    """A folder of six classes as ImageNet's, and a label_idx.json."""
    make_folder(root, ("train", "val"))
    lists = {"base_classes_1": [0], "base_classes_2": [1, 2], "novel_classes_1": [3]}
    lists |= {"novel_classes_2": [4, 5], "base_classes": [0, 1, 2]}
    (root / "label_idx.json").write_text(json.dumps({"label_names": NAMES, **lists}))
    return root, root / "label_idx.json"


def test_a_folder_without_parts_is_parted_by_the_seed_without_overlap(tmp_path: Path) -> None:
    make_folder(tmp_path)
    options = ImageData(name="folder", root=str(tmp_path), size=16, resize=16)
    images = build_images(options)
    train, test = images.source.train, images.source.test
    names = [{pool[i] for i in range(len(pool))} for pool in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 24
    assert np.bincount(test.labels).tolist() == [1] * 6  # a quarter of four
    assert sorted(images.split.base + images.split.novel) == list(range(6))
    again = build_images(options)
    assert (again.source.test.names == test.names).all()
    assert any("data.split_seed" in note for note in images.notes)


def test_items_are_views_of_the_asked_classes_labelled_by_class_id(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "test"))
    options = ImageData(name="folder", root=str(tmp_path), size=16, resize=20)
    images = build_images(options)
    data = images.load("train", [1, 4], training=True, views=2)
    assert data.labels.tolist() == ([1] * 4 + [4] * 4) * 2
    for i in range(len(data)):
        view, label = data[i]
        assert view.shape == (3, 16, 16)
        assert view.dtype == torch.uint8
        assert label == data.labels[i]
        assert data.files[i].endswith(f"{sorted(NAMES)[label]}/{i % 4}.png")
    view, label = images.load("test", [4])[3]
    assert (view == 43).all()
    assert label == 4


def test_a_split_file_names_base_and_novel_classes(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"base": ["a", "b", "f"], "novel": ["c", "e"]}))
    images = build_images(
        ImageData(name="folder", root=str(tmp_path / "data"), split=str(split), size=16)
    )
    assert images.split.base == [0, 1, 5]
    assert images.split.novel == [2, 4]


def test_imagenet_class_ids_count_the_names_of_label_idx(tmp_path: Path) -> None:
    root, label_idx = make_imagenet(tmp_path)
    options = ImageData(name="imagenet", root=str(root), label_idx=str(label_idx))
    images = build_images(options)
    assert images.split.names == NAMES
    assert images.split.base == [0, 1, 2]
    train = images.source.train
    for i in range(len(train)):
        assert Path(train[i]).parent == root / "train" / NAMES[train.labels[i]]
    assert (images.view.size, images.view.resize, images.view.jitter) == (224, 256, 0.4)
    assert any("sorted file names" in note for note in images.notes)
    options = ImageData(
        name="imagenet", root=str(root), label_idx=str(label_idx), label_order="imagefolder"
    )
    other = build_images(options).split
    assert {other.names[k] for k in other.base} == set(sorted(NAMES)[:3])


def test_a_train_list_gives_the_rows_their_order(tmp_path: Path) -> None:
    root, label_idx = make_imagenet(tmp_path)
    rows = [(f"train/{name}/{i}.png", k) for k, name in enumerate(NAMES) for i in (2, 0, 3)]
    content = {"label_names": NAMES, "image_names": [r[0] for r in rows]}
    listed = tmp_path / "train.json"
    listed.write_text(json.dumps(content | {"image_labels": [r[1] for r in rows]}))
    options = ImageData(
        name="imagenet", root=str(root), label_idx=str(label_idx), train_list=str(listed)
    )
    train = build_images(options).source.train
    assert [train[i] for i in range(18)] == [str(root / name) for name, _ in rows]
    assert train.labels.tolist() == [k for _, k in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": sorted(NAMES)}, "other classes"),
        ({"image_labels": [0, 1, 2, 3, 4, 6]}, "image_labels"),
        ({"image_labels": [0]}, "6 images and 1 labels"),
        ({"image_labels": [0, 1, 2, 3, 4, 4]}, "5 of the 6 classes"),
        ({"image_names": ["../x.png"] * 6}, "leaves"),
        ({"image_names": ["/x.png"] * 6}, "leaves"),
        ({"image_names": ["train/e/9.png"] * 6}, "does not exist"),
        ({"image_names": None}, "no train.json"),
    ],
)
def test_a_train_list_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict, message: str
) -> None:
    root, label_idx = make_imagenet(tmp_path)
    content = {
        "label_names": NAMES,
        "image_names": [f"train/{name}/0.png" for name in NAMES],
        "image_labels": list(range(6)),
    }
    listed = tmp_path / "train.json"
    listed.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match=message):
        build_images(
            ImageData(
                name="imagenet", root=str(root), label_idx=str(label_idx), train_list=str(listed)
            )
        )


def test_folders_that_lack_something_are_refused_with_its_name(tmp_path: Path) -> None:
    def refuse(message: str, **options: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_images(ImageData(root=str(tmp_path), **options))

    with pytest.raises(ValueError, match=r"data.root=<folder>"):
        build_images(ImageData(name="folder"))
    refuse("no class folders", name="folder")
    refuse(r"data.label_idx", name="imagenet")
    refuse(r"images_background.zip", name="omniglot")
    make_folder(tmp_path / "train")
    refuse("neither test/ nor val/", name="folder")
    make_folder(tmp_path / "test")
    (tmp_path / "test" / "d").rename(tmp_path / "test" / "z")
    refuse("test/d is not a folder", name="folder")
    (tmp_path / "test" / "d").mkdir()
    refuse("class 'd' has no images", name="folder")


def test_a_folder_of_fewer_than_four_classes_is_named(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "only" / f"{number}.png")
    with pytest.raises(ValueError, match=r"has 1 classes \(only\): expected four or more"):
        build_images(ImageData(name="folder", root=str(tmp_path)))


def test_a_class_of_one_image_cannot_be_parted(tmp_path: Path) -> None:
    make_folder(tmp_path, count=1)
    with pytest.raises(ValueError, match=r"class 'a' has 1 image"):
        build_images(ImageData(name="folder", root=str(tmp_path)))


def test_images_that_cannot_be_read_show_before_training_or_are_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path, ("train", "test"))
    for name in ("train/a/0.png", "test/b/1.png"):
        (tmp_path / name).write_bytes(b"no image")

    def drop(**options: str | float) -> Images:
        data = ImageData(name="folder", root=str(tmp_path), size=16, **options)  # type: ignore
        return drop_unreadable(build_images(data))

    with pytest.raises(ValueError, match=r"1 of 24 images: .*a/0.png.*data.bad_images=skip"):
        drop()
    images = drop(bad_images="skip")
    for split, gone in (("train", "a/0.png"), ("test", "b/1.png")):
        data = images.load(split)
        assert len([*data]) == len(data) == 23  # all the others are read
        assert not any(str(data.files[i]).endswith(gone) for i in range(len(data)))
        assert any(f"1 of 24 {split} images left out" in note for note in images.notes)
    (tmp_path / "train" / "c" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 24 .*1 may be left out.*data.bad_share"):
        drop(bad_images="skip")


def test_omniglot_keeps_characters_of_both_zips_out_of_the_novel_classes(
    shared_data: Path,
) -> None:
    images = build_images(ImageData(name="omniglot", root=str(shared_data / "omniglot")))
    split, train, test = images.split, images.source.train, images.source.test
    # Of small2's 156 characters the 24 Greek and 26 Latin ones are in small1 too.
    assert (len(split.base), len(split.novel)) == (136, 106)
    assert [len(part) for part in (split.base_1, split.base_2)] == [68, 68]
    assert [len(part) for part in (split.novel_1, split.novel_2)] == [53, 53]
    assert (np.bincount(train.labels) == 15).all()
    assert (np.bincount(test.labels) == 5).all()
    assert any(note.startswith("50 characters") for note in images.notes)
    numbers = {int(train[i][-6:-4]) for i in range(len(train))}
    assert numbers == set(range(1, 16))
    assert train.pixels is not None
    assert train.pixels.shape == (3630, 1, 32, 32)
    assert train.pixels.mean() < 64  # ink is bright, paper black
    view, label = images.load("train", training=True)[20]
    assert view.shape == (3, 32, 32)
    assert label == 1


def test_a_damaged_omniglot_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    path.write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="damaged"):
        read_zip(path)
    drawing = BytesIO()
    Image.new("1", (9, 9)).save(drawing, "PNG")
    for data, error, message in (
        (drawing.getvalue(), ValueError, "1 drawings of Greek/character01"),
        (b"no image", UnreadableImage, "01_01.png cannot be read"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("set/Greek/character01/01_01.png", data)
        with pytest.raises(error, match=message):
            read_zip(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(ValueError, match=r"<alphabet>"):
        read_zip(path)


def test_cifar10_is_five_base_and_five_novel_classes_of_32_pixels(shared_data: Path) -> None:
    images = build_images(ImageData(name="cifar10", root=str(shared_data / "cifar10_jpeg")))
    assert (len(images.split.base), len(images.split.novel)) == (5, 5)
    assert (len(images.source.train), len(images.source.test)) == (10_000, 2_000)
    data = images.load("train", images.split.novel)
    assert torch.equal(data.labels.unique(), torch.tensor(images.split.novel))
    assert data[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "imagnet"}, "data.name=imagnet"),
        ({"crop": "centre"}, "data.crop=centre"),
        ({"label_order": "sorted"}, "data.label_order=sorted"),
        ({"bad_images": "drop"}, "data.bad_images=drop"),
        ({"base_share": 1.0}, "data.base_share=1.0"),
        ({"queries_share": 0.0}, "data.queries_share=0.0"),
        ({"name": "omniglot", "split": "a.json"}, "data.split is of data.name=folder"),
        ({"jitter": -0.1}, "data.jitter=-0.1"),
        ({"size": 300, "resize": 256}, "data.size=300, data.resize=256"),
    ],
)
def test_bad_image_options_are_refused_with_their_key(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**options)
