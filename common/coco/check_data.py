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
from common.coco.files import find_split, has_split
from common.images import ImageFolder, image_size

KINDS = ("coco", "coco_format", "image_folder")
SMALL = 64  # square pixels, as of a box of 8 x 8


def check_coco(root: Path, splits: Sequence[str], kind: str, *, decode: bool) -> None:
    """Print the contents of these splits; ValueError for the first missing or bad file.

    kind: "boxes", "masks" or "keypoints". decode: every pixel instead of every header.
    """
    categories = None
    for split in splits:
        folders, files = find_split(root, split, kind=kind)
        print(f"\n{split}: {', '.join(map(str, files))}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = CocoDataset(folders, files, kind=kind, categories=categories)
        for warning in caught:
            print(f"warning: {warning.message}")
        categories = dataset.categories  # which the next split must follow
        _describe(dataset)
        if not len(dataset.sides()):
            if split.startswith("train"):
                raise ValueError(f"{dataset.where} has nothing to train on: no instance but crowds")
            print(f"{split} has no objects: AP will be left out.")
        _open_all(dataset, decode)


def find_splits(kind: str, root: Path, annotations: str) -> list[str]:
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
    rows = zip(dataset.category_ids, dataset.names, per_class.tolist(), strict=True)
    for label, (category, name, (n, c)) in enumerate(rows):
        print(f"{label:>5} {category:>6}  {name:<30} {n:>8} {c:>8}")
    areas = dataset.sides().prod(1)
    if (areas < SMALL).any():
        print(
            f"{(areas < SMALL).sum()} of {len(areas)} objects are smaller than {SMALL} square "
            "pixels: a detector's anchors may meet none of them"
        )


def check_folder(root: Path, *, decode: bool) -> None:
    """The same for a folder of images in a folder per class."""
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
        if a.kind == "image_folder":
            check_folder(a.root, decode=a.decode)
        else:
            splits = a.splits or find_splits(a.kind, a.root, a.annotations)
            check_coco(a.root, splits, a.annotations, decode=a.decode)
    except (ValueError, OSError) as error:
        print(f"bad data: {error}", file=sys.stderr)
        return 2
    print("\nno fault found" + ("" if a.decode else "; damaged pixels show with --decode only"))
    return 0


if __name__ == "__main__":
    with spawn.ending_at_once():
        sys.exit(main())
