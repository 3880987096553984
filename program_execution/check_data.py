"""Look through the questions and features of a folder before training on them.

    python check_data.py /data/clevr
    python check_data.py /data/cogent --splits trainA valA valB
    python check_data.py /data/clevr --splits humans_train humans_val --without-programs

Reads every question and every feature map, prints what is there, and stops at the first fault at
which training or evaluation would. Exit code 0: no fault, 2: one sentence about it. Whether the
programs give their answers on the scenes is what symbolic.py checks.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.clevr import batches
from common.clevr.accuracy import TYPES
from common.config import run as run_command
from program_execution import data
from program_execution.config import Data
from program_execution.execution.symbolic import SymbolicEngine

AT_ONCE = 256  # feature maps in memory
NEEDS = {
    "answers": "neither training nor evaluation can use it",
    "programs": "give --without-programs where only stage=tune or stage=baseline will use it",
}


def check(
    root: str | Path, *, splits: Sequence[str] = ("train", "val"), programs: bool = True
) -> None:
    """Print the contents of a folder; raise ValueError for the first fault.

    splits: the training split first. programs: whether all must have programs.
    """
    cfg = Data(name="clevr", root=str(root))
    words = data.vocabulary_of(cfg, *splits)
    needs = {part: NEEDS[part] for part in NEEDS if part == "answers" or programs}
    first = None
    for split in splits:
        dataset = data.build(cfg, split, words)
        first = first or dataset
        data.require_ready(dataset, needs, like=first)
        _describe(dataset)
        _look_at_features(dataset)
    print("\nno fault found")


def _describe(dataset: batches.Questions) -> None:
    """Counts of questions, of each type, and of what is unusual."""
    rows = dataset.rows
    assert dataset.features is not None
    size = " x ".join(map(str, dataset.features.shape[1:]))
    images = len(np.unique(rows.image_idxs))
    print(f"\n{dataset.split}: {len(rows)} questions about {images} images, features {size}")
    unknown = (rows.questions == batches.UNK).any(1).sum()
    print(f"{unknown} with a word that the vocabulary lacks")
    if dataset.programs is None or rows.types is None:
        print("without programs, so of unknown types")
        return
    malformed = SymbolicEngine(dataset.words).malformed(torch.tensor(dataset.programs[:, 1:]))
    print(f"{int(malformed.sum())} with a program that is no well-typed tree")
    for kind, name in enumerate(TYPES):
        print(f"  {name:<15} {(rows.types == kind).sum():>8}")


def _look_at_features(dataset: batches.Questions) -> None:
    """Raise ValueError naming the first image asked about whose map is not finite."""
    features, images = dataset.features, np.unique(dataset.rows.image_idxs)
    assert features is not None
    for start in tqdm(range(0, len(images), AT_ONCE), "features", leave=False, disable=None):
        chosen = images[start : start + AT_ONCE]
        finite = features[chosen].flatten(1).isfinite().all(1)
        if not finite.all():
            raise ValueError(
                f"{features.path}: the map of image {chosen[int(finite.int().argmin())]} holds "
                "numbers that are not finite: extract it again, with prepare.py features --float32."
            )


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python check_data.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("root", type=Path, help="data.root of train.py")
    parser.add_argument("--splits", nargs="+", default=("train", "val"), help="training first")
    parser.add_argument("--without-programs", action="store_true", help="they need none")
    a = parser.parse_args(sys.argv[1:] if words is None else words)
    check(a.root, splits=a.splits, programs=not a.without_programs)


if __name__ == "__main__":
    run_command(main)
