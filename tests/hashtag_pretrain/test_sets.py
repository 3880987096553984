"""Targets: the layouts of their folders and lists, and what is wrong with them."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hashtag_pretrain.targets.images import Images, Listing, centre_view, random_view
from hashtag_pretrain.targets.sets import read_names, read_target

from .small_target import READING, small_target, write_images


def touch(path, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cub(root, split="1 1\n2 0\n3 1\n"):
    for name in ("001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Auklet/c.jpg"):
        touch(root / "images" / name)
    write(root / "images.txt", "1 001.Albatross/a.jpg\n2 001.Albatross/b.jpg\n3 002.Auklet/c.jpg\n")
    write(root / "image_class_labels.txt", "1 1\n2 1\n3 2\n")
    write(root / "train_test_split.txt", split)
    write(root / "classes.txt", "1 001.Albatross\n2 002.Auklet\n")
    return root


def places(root, label=1):
    touch(root / "data_256_standard/a/airfield/1.jpg")
    touch(root / "data_256_standard/b/bar/2.jpg")
    touch(root / "val_256/Places365_val_1.jpg")
    write(root / "categories_places365.txt", "/a/airfield 0\n/b/bar 1\n")
    write(root / "places365_train_standard.txt", "/a/airfield/1.jpg 0\n/b/bar/2.jpg 1\n")
    write(root / "places365_val.txt", f"Places365_val_1.jpg {label}\n")
    return root


def imagenet(root):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537", "n02132136"):
            touch(root / split / wnid / "x.JPEG")
    return root


def test_a_folder_of_classes_gives_labels_by_sorted_name(tmp_path):
    target = small_target(tmp_path)
    assert target.classes == ["blue", "green", "red"]
    assert (len(target.train), len(target.test)) == (18, 12)
    path, label = target.train[17]
    assert (path.parent.name, label, path.is_file()) == ("red", 2, True)
    assert target.train.only(torch.tensor([17, 0]))[0] == (path, label)


def test_the_validation_split_is_the_test_of_a_set_without_one(tmp_path):
    write_images(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    assert read_target("folder", tmp_path).test.folder == tmp_path / "val"


def test_imagenet_takes_the_classes_of_a_file_in_its_order(tmp_path):
    write(tmp_path / "five.txt", "n02132136\nn01440764\n")
    target = read_target("imagenet", imagenet(tmp_path), classes=tmp_path / "five.txt")
    assert target.classes == ["n02132136", "n01440764"]
    assert target.train.labels.tolist() == [0, 1]
    assert target.train[0][0].parent.name == "n02132136"


def test_cub_follows_its_three_lists(tmp_path):
    target = read_target("cub", cub(tmp_path))
    assert target.classes == ["001.Albatross", "002.Auklet"]
    assert [(path.name, label) for path, label in target.train] == [("a.jpg", 0), ("c.jpg", 1)]
    assert [(path.name, label) for path, label in target.test] == [("b.jpg", 0)]


def test_places_follow_their_lists(tmp_path):
    target = read_target("places365", places(tmp_path))
    assert target.classes == ["a/airfield", "b/bar"]
    assert target.train.labels.tolist() == [0, 1]
    assert target.test[0] == (tmp_path / "val_256/Places365_val_1.jpg", 1)


def test_cifar10_is_a_folder_of_ten_classes(shared_data):
    target = read_target("cifar10", shared_data / "cifar10_jpeg")
    assert target.classes[:3] == ["airplane", "automobile", "bird"]
    assert len(target.classes) == 10
    assert not set(target.train.names) - {name for name in target.train.names if b"/" in name}


def flat_val(root):
    imagenet(root)
    touch(root / "val/ILSVRC2012_val_00000001.JPEG")


def packed(root):
    imagenet(root)
    write(root / "train/n01440764.tar", "")


def no_val(root):
    touch(root / "train/n01440764/x.JPEG")


def missing_class(root):
    imagenet(root)
    (root / "val/n02132136/x.JPEG").unlink()
    (root / "val/n02132136").rmdir()


def empty_class(root):
    imagenet(root)
    (root / "val/n02132136/x.JPEG").unlink()


def one_more(root):
    imagenet(root)
    touch(root / "val/n02132320/x.JPEG")


def one_class(root):
    for split in ("train", "test"):
        touch(root / split / "cat/x.png")


def odd_name(root):
    imagenet(root)
    touch(root / "train/cat/x.JPEG")
    touch(root / "val/cat/x.JPEG")


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("imagenet", flat_val, "prepare.py sort_val"),
        ("imagenet", packed, "unpack"),
        ("imagenet", no_val, "val is not a folder"),
        ("imagenet", missing_class, "'n02132136'"),
        ("imagenet", empty_class, "has no images"),
        ("imagenet", one_more, "n02132320 is a class that .*train has not"),
        ("imagenet", odd_name, "WordNet id"),
        ("cifar10", imagenet, "CIFAR-10 has 10"),
        ("cub", lambda root: cub(root, "1 1\n2 0\n"), "image 3"),
        ("cub", lambda root: cub(root, "1 1\n2 0\n3\n"), "line 3"),
        ("cub", lambda root: cub(root, "1 1\n2 1\n3 1\n"), "without images"),
        ("cub", imagenet, "images.txt"),
        ("cub", lambda root: cub(root, "1 1\n2 1\n3 0\n"), "no training image of the class '002"),
        ("folder", one_class, "has one class, 'cat'"),
        ("places365", lambda root: places(root, label=2), "beyond the 2"),
        ("places365", imagenet, "categories_places365.txt cannot be read"),
        ("birds", imagenet, "target.name=birds"),
    ],
)
def test_a_fault_of_the_layout_is_one_sentence(tmp_path, name, spoil, said):
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said):
        read_target(name, tmp_path)


def test_a_list_of_classes_that_are_not_there_is_refused(tmp_path):
    imagenet(tmp_path)
    write(tmp_path / "list.txt", "n01440764\nn09999999\n")
    with pytest.raises(ValueError, match="'n09999999'"):
        read_target("imagenet", tmp_path, classes=tmp_path / "list.txt")
    write(tmp_path / "list.txt", "n01440764\nn01440764\n")
    with pytest.raises(ValueError, match="twice"):
        read_target("imagenet", tmp_path, classes=tmp_path / "list.txt")


def test_duplicated_test_images_are_listed_by_name(tmp_path):
    root = write_images(tmp_path / "images")
    write(tmp_path / "list.txt", f"green/1.png\n{root}/test/red/0.png\n")
    assert read_target("folder", root, duplicates=tmp_path / "list.txt").duplicates == {5, 8}
    write(tmp_path / "list.txt", "")
    assert read_target("folder", root, duplicates=tmp_path / "list.txt").duplicates == frozenset()
    assert read_target("folder", root).duplicates is None
    write(tmp_path / "list.txt", "green/9.png\n")
    with pytest.raises(ValueError, match=r"green/9\.png"):
        read_target("folder", root, duplicates=tmp_path / "list.txt")


def test_the_view_of_a_test_image_is_torchvisions_centre_crop():
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    expected = v2.functional.center_crop(v2.functional.resize(image, [32], antialias=True), [28])
    assert torch.equal(centre_view(28, 32)(image), expected)


@pytest.mark.parametrize("augment", ["crop", "shift", "none"])
def test_a_view_of_a_training_image_has_the_size_asked_for(augment):
    image = torch.randint(0, 256, (3, 37, 50), dtype=torch.uint8)
    view = random_view(32, augment)(image)
    assert (view.shape, view.dtype) == ((3, 32, 32), torch.uint8)


def test_views_go_round_the_list(tmp_path):
    target = small_target(tmp_path)
    images = Images(target.train, centre_view(16, 16), views=2)
    assert len(images) == 36
    assert torch.equal(images[20][0], images[2][0])
    assert images[20][1] == images[2][1]


def test_images_are_normalised_by_mean_and_std():
    image = torch.tensor([0, 127.5, 255]).to(torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([-2, (127 / 255 - 0.5) * 4, 2])
    assert torch.allclose(READING.normalise(image).flatten(), expected)


def test_a_listing_keeps_names_of_any_characters(tmp_path):
    listing = Listing(tmp_path, ["ä/ö ü.png", "b/c.png"], [1, 0])
    assert listing[0] == (tmp_path / "ä/ö ü.png", 1)
    assert [path.name for path, _ in listing] == ["ö ü.png", "c.png"]


def test_a_list_of_names_says_which_line_is_wrong(tmp_path):
    write(tmp_path / "names.txt", "\none\n\ntwo words\n")
    with pytest.raises(ValueError, match=r"every line needs one word \(line 4\)"):
        read_names(tmp_path / "names.txt")
    write(tmp_path / "names.txt", "one\n\none\n")
    with pytest.raises(ValueError, match=r"lists 'one' twice: give each name once"):
        read_names(tmp_path / "names.txt")
