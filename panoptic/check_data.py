"""Look through a data set before training on it.

    python check_data.py coco /data/coco
    python check_data.py cityscapes /data/cityscapes --splits train --workers 8

Reads every image and every panoptic map as training and evaluation do, prints what is there, and
stops at the first fault that either would stop at. Exit code 0: no fault, 2: one sentence about it.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import dist
from common.config import run as run_command
from panoptic import data
from panoptic.config import SETS, Data
from panoptic.files.categories import Category

SPLITS = {"ade20k": ("training", "validation"), "vistas": ("training", "validation")}


def check(name: str, root: str | Path, *, splits: Sequence[str] = (), workers: int = 0) -> None:
    """Print the contents of a data set; raise ValueError for the first fault.

    name: coco, cityscapes, ade20k or vistas. splits: by default the two that train.py reads; all
    need the categories of the first.
    """
    categories: dict[int, Category] | None = None
    for split in splits or SPLITS.get(name, ("train", "val")):
        cfg = Data(name=name, root=str(root), train=split, val=split)
        # Of both kinds the second has more classes, and "val" is read without augmentation.
        dataset = data.build(cfg, "val", semantic="all", categories=categories)
        categories = dataset.categories
        counts, images, empty = Counter[tuple[int, int]](), 0, 0
        for segments in data.look_through(dataset, workers):
            images, empty = images + 1, empty + (not segments)
            counts.update((s["category_id"], s.get("iscrowd", 0)) for s in segments)
        print(f"\n{split}: {images} images ({empty} without segments)")
        _print_classes(categories, counts)
    if categories and not any(category.isthing for category in categories.values()):
        print("\nno class is a thing: of the networks only model.part=semantic can learn from it")
    print("\nno fault found")


def _print_classes(categories: dict[int, Category], counts: Counter[tuple[int, int]]) -> None:
    print(f"{'id':>6}  {'class':<30} {'kind':<5} {'segments':>9} {'crowds':>7}")
    for number, category in categories.items():
        crowds = counts[number, 1]
        kind = "thing" if category.isthing else "stuff"
        total = counts[number, 0] + crowds
        print(f"{number:>6}  {category.name:<30.30} {kind:<5} {total:>9} {crowds:>7}")


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python check_data.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=[name for name in SETS if name != "scenes"])
    parser.add_argument("root", type=Path)
    parser.add_argument("--splits", nargs="+", default=(), help="by default those of train.py")
    parser.add_argument("--workers", type=int, default=dist.cores(), help="processes that read")
    a = parser.parse_args(words)
    check(a.name, a.root, splits=a.splits, workers=a.workers)


if __name__ == "__main__":
    run_command(main)
