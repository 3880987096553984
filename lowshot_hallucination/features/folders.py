"""Low-shot problems from folders of images: any, and ImageNet as the benchmark splits it."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from common.images import ImageFolder, find_images

from .pool import Pool, Source, as_names
from .splits import load_json, read_class_split, read_label_idx, split_at_random


def folder_source(
    root: str, split_file: str, *, seed: int, base_share: float, queries_share: float
) -> Source:
    """Images at root/{train,test}/<class>/, or val for test, or all at root/<class>/.

    split_file: JSON of base and novel classes (`read_class_split`); "": drawn by seed, base_share
    of them base. queries_share: of each class of root/<class>/, drawn by seed too.
    """
    notes: tuple[str, ...] = ()
    if (Path(root) / "train").is_dir():
        found = ImageFolder(Path(root) / "train")
        names, train = found.classes, _pool(found.files, found.labels)
        test = list_classes(_test_folder(Path(root)), names)
    else:
        found = ImageFolder(root)
        names = found.classes
        train, test = part(_pool(found.files, found.labels), names, queries_share, seed)
        notes = (
            f"{queries_share:.0%} of the images of each class are queries, by data.split_seed",
        )
    if len(names) < 4:
        raise ValueError(
            f"{root} has {len(names)} classes ({', '.join(names)}): expected four or more of "
            f"{root}/<class>/<image>, two of them base and two novel."
        )
    if split_file:
        split = read_class_split(split_file, names, seed)
    else:
        split = split_at_random(names, seed, base_share)
        notes += ("base and novel classes are drawn by data.split_seed",)
    return Source(split, train, test, notes)


def imagenet_source(root: str, label_idx: str, order: str, train_list: str) -> Source:
    """ImageNet at root/{train,val}/<wnid>/, split by the benchmark's label_idx.json.

    train_list: the benchmark's train.json, whose rows its split files count; "": sorted file names.
    """
    if not label_idx:
        raise ValueError(
            "data.name=imagenet needs data.label_idx=<label_idx.json>, the benchmark's classes."
        )
    split = read_label_idx(label_idx, order)
    notes = [f"the lists of label_idx.json are read with data.label_order={order}"]
    if train_list:
        train = read_train_list(train_list, Path(root), split.names)
    else:
        train = list_classes(Path(root) / "train", split.names)
        notes.append(
            "without data.train_list the rows of the split files count sorted file names, so the "
            "support differs from the benchmark's"
        )
    return Source(split, train, list_classes(_test_folder(Path(root)), split.names), tuple(notes))


def list_classes(folder: Path, names: Sequence[str]) -> Pool:
    """The images at folder/<name>/, class by class; every class must have some."""
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{folder / missing[0]} is not a folder ({len(missing)} of {len(names)} classes are "
            f"missing): expected {folder}/<class>/<image>."
        )
    files: list[str] = []
    labels: list[int] = []
    for label, (name, found) in enumerate(find_images(folder, names)):
        if not found:
            raise ValueError(f"class {name!r} has no images in {folder / name}: add some.")
        files += found
        labels += [label] * len(found)
    return _pool(files, labels)


def part(pool: Pool, names: Sequence[str], share: float, seed: int) -> tuple[Pool, Pool]:
    """Support pool and queries: of each class `share` of the images are queries, one at least."""
    query = np.zeros(len(pool), bool)
    for label, name in enumerate(names):
        rows = np.flatnonzero(pool.labels == label)
        if len(rows) < 2:
            raise ValueError(
                f"class {name!r} has {len(rows)} image: give two at least, one of them a query."
            )
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        query[np.random.default_rng((seed, label)).permutation(rows)[:count]] = True
    return pool.rows(~query), pool.rows(query)


def read_train_list(path: str, root: Path, names: Sequence[str]) -> Pool:
    """The rows of the benchmark's train.json, in its order, as files below root."""
    content = load_json(path)
    keys = ("label_names", "image_names", "image_labels")
    if not isinstance(content, dict) or any(not isinstance(content.get(k), list) for k in keys):
        raise ValueError(f"{path} is no train.json: expected lists {', '.join(keys)}.")
    listed, files, labels = (content[key] for key in keys)
    if listed != list(names):
        raise ValueError(
            f"{path} numbers other classes than label_idx.json: take both from one release."
        )
    if len(files) != len(labels) or not files:
        raise ValueError(f"{path} has {len(files)} images and {len(labels)} labels: download it.")
    if any(type(k) is not int or not 0 <= k < len(names) for k in labels):
        raise ValueError(f"{path}: image_labels must be 0 to {len(names) - 1}: download it.")
    for name in files:
        if (
            not isinstance(name, str)
            or ".." in (parts := PurePosixPath(name).parts)
            or "/" in parts
        ):
            raise ValueError(f"{path} has the image {name!r}, which leaves {root}: download it.")
    _, first = np.unique(labels, return_index=True)
    if len(first) < len(names):
        raise ValueError(f"{path} has images of {len(first)} of the {len(names)} classes.")
    for i in first:  # one of each class; a missing one of the others is named when it is read
        if not (root / files[i]).is_file():
            raise ValueError(f"{root / files[i]} of {path} does not exist: check data.root.")
    return Pool(as_names(files), np.array(labels, np.int64), root)


def _pool(files: Sequence[str], labels: Sequence[int]) -> Pool:
    return Pool(as_names(files), np.array(labels, np.int64))


def _test_folder(root: Path) -> Path:
    """root/test or root/val."""
    for name in ("test", "val"):
        if (root / name).is_dir():
            return root / name
    raise ValueError(
        f"{root} has neither test/ nor val/ beside its training images: expected "
        f"{root}/{{train,test}}/<class>/<image>."
    )
