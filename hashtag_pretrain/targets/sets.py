"""The data sets that a trunk is transferred to: classes, training images, test images.

K classes. A target's images are listed and its folders checked when it is read; the images of the
test split are opened only by what measures the final accuracy, once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.images import IMAGE_SUFFIXES, find_images

from .images import Listing

NAMES = ("folder", "imagenet", "cub", "places365", "cifar10")


@dataclass(frozen=True)
class Target:
    """A classification task.

    duplicates: numbers of the test images that have a copy among the images of pretraining; None
    where nobody looked for them.
    """

    name: str
    classes: list[str]  # K, by label
    train: Listing
    test: Listing
    duplicates: frozenset[int] | None = None


def read_target(
    name: str, root: str | Path, *, classes: str | Path = "", duplicates: str | Path = ""
) -> Target:
    """The target `name` in the folder `root`; ValueError, with the remedy, where it is not whole.

    folder: root/train/CLASS/... and root/test (or root/val). imagenet: the same with WordNet ids as
    classes, root/val. cub: the folder CUB_200_2011. places365: lists and image folders as
    torchvision's Places365 expects them. cifar10: a folder of its images.

    classes: a file with a class a line, for some of the folders (ImageNet-1k or 5k of the 9k); its
    order numbers the labels. duplicates: a file with a test image a line, see `read_duplicates`.
    """
    root = Path(root)
    if name not in NAMES:
        raise ValueError(f"target.name={name} is unknown: choose one of {', '.join(NAMES)}.")
    if not root.is_dir():
        raise ValueError(f"target.root={root} is not a folder: give that of the images.")
    if classes and name in ("cub", "places365"):
        raise ValueError(f"target.classes is for folders of classes, not for target.name={name}.")
    if name == "cub":
        target = read_cub(root)
    elif name == "places365":
        target = read_places(root)
    else:
        target = read_folders(name, root, classes)
    require_classes(target, root)
    if not duplicates:
        return target
    return replace(target, duplicates=read_duplicates(duplicates, target.test))


def read_folders(name: str, root: Path, classes: str | Path = "") -> Target:
    """A target of one folder per class in root/train and root/test, or root/val."""
    test = root / "test" if name != "imagenet" and (root / "test").is_dir() else root / "val"
    if name != "imagenet" and not test.is_dir():
        test = root / "test"  # the name to speak of
    there = class_folders(root / "train")
    wanted = read_names(classes) if classes else there
    require_there(wanted, there, str(classes), root / "train")
    odd = [c for c in wanted if name == "imagenet" and not is_wnid(c)]
    if odd:
        raise ValueError(
            f"{root / 'train' / odd[0]} is not named by a WordNet id such as n01440764 ({len(odd)} "
            "such folders): take it away, or set target.name=folder."
        )
    if name == "cifar10" and len(wanted) != 10:
        raise ValueError(
            f"{root / 'train'} has {len(wanted)} class folders, CIFAR-10 has 10: complete them, or "
            "set target.name=folder."
        )
    tested = class_folders(test)
    require_there(wanted, tested, str(classes or root / "train"), test)
    more = [] if classes else sorted(set(tested) - set(wanted))
    if more:
        raise ValueError(
            f"{test / more[0]} is a class that {root / 'train'} has not ({len(more)} such): "
            "complete the one, take away the other, or give target.classes=FILE."
        )
    return Target(name, wanted, list_images(root / "train", wanted), list_images(test, wanted))


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders; ValueError where images or archives lie beside them."""
    tree = f"{folder}/<class>/<image>"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: expected {tree}.")
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    loose = sorted(e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES))
    if loose:
        raise ValueError(
            f"{folder / loose[0]} lies outside a class folder ({len(loose)} such images): expected "
            f"{tree}. ILSVRC's validation images come unsorted: sort them by the devkit's mapping, "
            f"python large_minibatch/prepare.py sort_val {folder} MAPPING."
        )
    packed = sorted(e.name for e in entries if e.name.lower().endswith(".tar"))
    if packed:
        raise ValueError(
            f"{folder / packed[0]} is still packed ({len(packed)} such archives): unpack each into "
            f"a folder of its own, expected {tree}."
        )
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise ValueError(f"{folder} has no class folders: expected {tree}.")
    return names


def list_images(folder: Path, classes: Sequence[str]) -> Listing:
    """All images below the class folders; ValueError for a class without any."""
    names: list[str] = []
    labels: list[int] = []
    for label, (name, found) in enumerate(find_images(folder, classes)):
        if not found:
            raise ValueError(
                f"class {name!r} has no images in {folder / name}: complete it, or leave the class "
                "out by target.classes=FILE."
            )
        names += [os.path.relpath(file, folder) for file in found]
        labels += [label] * len(found)
    return Listing(folder, names, labels)


def read_cub(root: Path) -> Target:
    """CUB-200-2011: 5,994 training and 5,794 test images by its own three lists."""
    names = dict(read_rows(root / "images.txt", 2))
    labels = dict(read_rows(root / "image_class_labels.txt", 2))
    split = dict(read_rows(root / "train_test_split.txt", 2))
    classes = dict(read_rows(root / "classes.txt", 2))
    numbers = {number: label for label, number in enumerate(classes)}
    for number in names:
        if labels.get(number) not in numbers or split.get(number) not in ("0", "1"):
            raise ValueError(
                f"{root / 'images.txt'}: image {number} has no class in image_class_labels.txt or "
                "is in no part of train_test_split.txt: unpack CUB_200_2011.tgz again."
            )
    parts = []
    for part in ("1", "0"):
        mine = [number for number in names if split[number] == part]
        files = [names[number] for number in mine]
        parts.append(Listing(root / "images", files, [numbers[labels[number]] for number in mine]))
    require_files(parts, root / "images")
    return Target("cub", list(classes.values()), parts[0], parts[1])


def read_places(root: Path) -> Target:
    """Places365-Standard: 1.8 million training and 36,500 validation images by its lists."""
    rows = read_rows(root / "categories_places365.txt", 2)
    classes = [row[0].removeprefix("/") for row in sorted(rows, key=lambda row: int(row[1]))]
    parts = []
    for file, folders in (
        ("places365_train_standard.txt", ("data_256_standard", "data_256", "data_large_standard")),
        ("places365_val.txt", ("val_256", "val_large")),
    ):
        there = [root / folder for folder in folders if (root / folder).is_dir()]
        if not there:
            raise ValueError(f"{root} has none of the folders {', '.join(folders)}: unpack one.")
        rows = read_rows(root / file, 2)
        labels = [int(row[1]) for row in rows]
        if not set(labels) <= set(range(len(classes))):
            raise ValueError(
                f"{root / file} names a class beyond the {len(classes)} of "
                "categories_places365.txt: take both from the same release."
            )
        parts.append(Listing(there[0], [row[0].lstrip("/") for row in rows], labels))
    require_files(parts, root)
    return Target("places365", classes, parts[0], parts[1])


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """The words of each line of a text file, `columns` in each."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list ({error}).") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    odd = [number for number, row in rows if len(row) != columns]
    if odd or not rows:
        where = f"line {odd[0]}" if odd else "it is empty"
        words = "one word" if columns == 1 else f"{columns} words"
        raise ValueError(f"{path}: every line needs {words} ({where}).")
    return [row for _, row in rows]


def read_names(path: str | Path) -> list[str]:
    """The names in a file, one a line, each once."""
    names = [row[0] for row in read_rows(Path(path), 1)]
    known: set[str] = set()
    for name in names:
        if name in known:
            raise ValueError(f"{path} lists {name!r} twice: give each name once.")
        known.add(name)
    return names


def read_duplicates(path: str | Path, test: Listing) -> frozenset[int]:
    """Numbers of the test images that a file lists, one a line: paths as below the test folder."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of test images ({error}).") from error
    number = {os.fsdecode(name): i for i, name in enumerate(test.names)}
    found = set()
    for line in filter(None, map(str.strip, lines)):
        name = os.path.relpath(line, test.folder) if os.path.isabs(line) else line
        if name not in number:
            raise ValueError(
                f"{path} lists {line}, which is no test image of {test.folder}: make the list for "
                "this target by prepare.py duplicates."
            )
        found.add(number[name])
    return frozenset(found)


def require_there(names: Sequence[str], there: Sequence[str], what: str, where: Path) -> None:
    """ValueError unless each of `names`, which `what` has, is among those `there`, in `where`."""
    known = set(there)
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{what} has the class {missing[0]!r}, but {where} does not ({len(missing)} such of "
            f"{len(names)}): correct the list or complete the folder."
        )


def require_classes(target: Target, root: Path) -> None:
    """ValueError where there are not two classes, or one has no image to learn it from."""
    if len(target.classes) < 2:
        raise ValueError(
            f"{root} has one class, {target.classes[0]!r}, so that there is nothing to tell apart: "
            "give a target of two or more."
        )
    counts = torch.bincount(target.train.labels, minlength=len(target.classes))
    empty = [name for name, n in zip(target.classes, counts.tolist(), strict=True) if not n]
    if empty:
        raise ValueError(
            f"{root}: its lists have no training image of the class {empty[0]!r} ({len(empty)} "
            "such): complete them, or take the class out."
        )


def require_files(parts: Sequence[Listing], where: Path) -> None:
    """ValueError where a part of a target is empty, or its first or last image is not there."""
    for part in parts:
        if not len(part):
            raise ValueError(f"{where}: its lists leave one split without images.")
        for path, _ in (part[0], part[len(part) - 1]):
            if not path.is_file():
                raise ValueError(f"{path} is listed but not there: unpack the images into {where}.")


def is_wnid(name: str) -> bool:
    """Whether a name is a WordNet id such as n01440764."""
    return len(name) == 9 and name[0] == "n" and name[1:].isascii() and name[1:].isdigit()
