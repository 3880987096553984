"""Look through a data set before training on it.

    python -m common.coco.check_data coco /data/coco
    python -m common.coco.check_data coco_format /data/cells --decode
    python -m common.coco.check_data image_folder /data/imagenet/train

Prints what is there, and the first missing or bad file. Exit code 0: good, 2: bad.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from common import spawn
from common.coco.dataset import CocoDataset
from common.coco.fields import Categories
from common.coco.files import find_split, has_split
from common.images import ImageFolder, image_size

KINDS = ("coco", "coco_format", "image_folder")
SMALL = 64  # square pixels, as of a box of 8 x 8


def check(
    kind: str,
    root: str | Path,
    *,
    splits: Sequence[str] | None = None,
    annotations: str = "boxes",
    decode: bool = False,
) -> None:
    """Print the contents of a data set; raise ValueError for the first missing or bad file.

    kind: "coco" (2017 or 2014: train and val), "coco_format" (those of train, val and test that
    are there), "image_folder" (one folder per class). splits: these instead, all of them needed.
    annotations: "boxes", "masks" or "keypoints". decode: every pixel instead of every header.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "image_folder":
        _check_folder(root, decode)
    else:
        categories = None
        for split in splits or _splits(kind, Path(root), annotations):
            categories = _check_split(root, split, annotations, categories, decode)
    print("\nno fault found" + ("" if decode else "; damaged pixels show with --decode only"))


def _check_split(
    root: str | Path, split: str, kind: str, categories: Categories | None, decode: bool
) -> Categories:
    """Look through one split, which must follow `categories` of the one before; its own."""
    folders, files = find_split(root, split, kind=kind)
    print(f"\n{split}: {', '.join(map(str, files))}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = CocoDataset(folders, files, kind=kind, categories=categories)
    for warning in caught:
        print(f"warning: {warning.message}")
    _describe(dataset)
    if not len(dataset.sides()):
        if split.startswith("train"):
            raise ValueError(f"{dataset.where} has nothing to train on: no instance but crowds")
        print(f"{split} has no objects: AP will be left out.")
    _open_all(dataset, decode)
    return dataset.categories


def _splits(kind: str, root: Path, annotations: str) -> list[str]:
    """The splits to look through; where there are none, the one to miss."""
    if kind == "coco":
        of_2014 = list((root / "annotations").glob("instances_*2014.json"))
        of_2017 = list((root / "annotations").glob("instances_*2017.json"))
        return ["trainval35k", "minival"] if of_2014 and not of_2017 else ["train2017", "val2017"]
    names = ["train", "val", "test"]
    return [name for name in names if has_split(root, name, kind=annotations)] or ["train"]


def _describe(dataset: CocoDataset) -> None:
    """Counts, and a table of the classes."""
    per_image, per_class = dataset.counts()
    boxes, crowds = per_class.sum(0).tolist()
    print(
        f"{len(dataset)} images ({(per_image == 0).sum()} without instances), "
        f"{boxes} instances ({crowds} crowds) of {len(dataset.names)} classes"
    )
    print(f"{'label':>5} {'id':>6}  {'class':<30} {'all':>8} {'crowds':>8}")
    for label, (category, name) in enumerate(zip(dataset.category_ids, dataset.names, strict=True)):
        n, c = per_class[label].tolist()
        print(f"{label:>5} {category:>6}  {name:<30} {n:>8} {c:>8}")
    areas = dataset.sides().prod(1)
    if (areas < SMALL).any():
        print(
            f"{(areas < SMALL).sum()} of {len(areas)} objects are smaller than {SMALL} square "
            "pixels: a detector's anchors may meet none of them"
        )


def _check_folder(root: str | Path, decode: bool) -> None:
    dataset = ImageFolder(root)
    counts = Counter(dataset.labels)
    print(f"{len(dataset)} images of {len(dataset.classes)} classes")
    for label, name in enumerate(dataset.classes):
        print(f"{label:>5}  {name:<30} {counts[label]:>8}")
    _open_all(dataset, decode)


def _open_all(dataset: CocoDataset | ImageFolder, decode: bool) -> None:
    """Open every image; compare its height and width with those listed, if they are."""
    doing = "decoding" if decode else "opening"
    for i in tqdm(range(len(dataset)), doing, unit="file", disable=None):
        if decode:
            dataset[i]
        elif isinstance(dataset, CocoDataset):
            dataset.check_image(i)
        else:
            image_size(dataset.files[i])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m common.coco.check_data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--splits", nargs="+", help="for example: train2017 val2017")
    parser.add_argument("--annotations", default="boxes", choices=("boxes", "masks", "keypoints"))
    parser.add_argument("--decode", action="store_true", help="read all pixels, not the headers")
    a = parser.parse_args(arguments)
    try:
        check(a.kind, a.root, splits=a.splits, annotations=a.annotations, decode=a.decode)
    except (ValueError, OSError) as error:
        print(f"bad data: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    with spawn.ending_at_once():
        sys.exit(main())
