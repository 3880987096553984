"""Check the questions and features of a folder before training on them.

    python check_data.py /data/clevr
    python check_data.py /data/cogent --splits trainA valA valB
    python check_data.py /data/clevr --splits humans_train humans_val --without-programs

Reads every question and every feature map, prints what is there, and stops at the first fault at
which training or evaluation would. Exit code 0: no fault, 2: one sentence about it.

    python check_data.py questions=FILE.json scenes=FILE.json    # are the answers right?
    python check_data.py questions=FILE.json scenes=FILE.json unique=first

Runs the programs of a questions file on its scene graphs. Exit code 0: all give their answers, 1:
some do not, 2: one sentence about the files.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.clevr import questions, scene_graph, vocabulary
from common.clevr.accuracy import TYPES, TypeAccuracy
from common.clevr.arrays import encode
from common.clevr.arrays.scenes import pack
from common.clevr.dataset import UNK, Questions
from common.clevr.execute_batch import BatchExecutor
from common.config import read_options, require_choice
from common.config import run as run_command
from program_execution import data
from program_execution.config import Data
from program_execution.execution.symbolic import FAILURES, SymbolicEngine

AT_ONCE = 256  # feature maps in memory
NEEDS = {
    "answers": "neither training nor evaluation can use it",
    "programs": "give --without-programs where only stage=tune or stage=baseline will use it",
}


def check_folder(
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
        _require_finite(dataset)
    print("\nno fault found")


def _describe(dataset: Questions) -> None:
    """Counts of questions, of each type, and of what is unusual."""
    rows = dataset.rows
    assert dataset.features is not None
    size = " x ".join(map(str, dataset.features.shape[1:]))
    images = len(np.unique(rows.image_idxs))
    print(f"\n{dataset.split}: {len(rows)} questions about {images} images, features {size}")
    unknown = (rows.questions == UNK).any(1).sum()
    print(f"{unknown} with a word that the vocabulary lacks")
    if dataset.programs is None or rows.types is None:
        print("without programs, so of unknown types")
        return
    malformed = SymbolicEngine(dataset.words).find_malformed(torch.tensor(dataset.programs[:, 1:]))
    print(f"{int(malformed.sum())} with a program that is no well-typed tree")
    for kind, name in enumerate(TYPES):
        print(f"  {name:<15} {(rows.types == kind).sum():>8}")


def _require_finite(dataset: Questions) -> None:
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


@dataclass
class Files:
    """Questions with programs, and the scenes that they are about."""

    questions: str = ""  # a questions file with programs
    scenes: str = ""  # the scenes file of its split, or a folder with a file for each scene
    unique: str = "strict"  # strict | first

    def __post_init__(self) -> None:
        require_choice("unique", self.unique, ("strict", "first"))
        if not self.questions or not self.scenes:
            raise ValueError("give questions=FILE.json and scenes=FILE.json.")


def check_programs(options: Files) -> dict[str, float]:
    """Accuracy of the programs of a file in percent; prints what failed, the first of each kind."""
    asked = questions.read_questions(options.questions)
    graphs = scene_graph.read_scenes(options.scenes)
    place = {graph.image_index: i for i, graph in enumerate(graphs)}
    lacking = next((q for q in asked if q.image_index not in place), None)
    if lacking is not None:
        raise ValueError(
            f"{options.scenes} has no scene of image {lacking.image_index}, which question "
            f"{lacking.index} of {options.questions} asks about: give the scenes of its split."
        )
    for q in asked:
        name = graphs[place[q.image_index]].image_filename
        if name != q.image_filename:
            raise ValueError(
                f"image {q.image_index} is {name} in {options.scenes}, but question {q.index} of "
                f"{options.questions} asks about {q.image_filename}: give the scenes of its split."
            )
    words = vocabulary.build(asked)
    with questions.naming(options.questions):
        rows = encode.encode(asked, words)
    if rows.programs is None or rows.answers is None:
        raise ValueError(f"{options.questions} has no programs or no answers to check.")
    scene_of = np.array([place[q.image_index] for q in asked])
    executor = BatchExecutor(words.tokens, words.answers)
    found, failures = executor(rows.programs, pack(graphs), scene_of, unique=options.unique)  # type: ignore
    right = found == rows.answers
    accuracy = TypeAccuracy()
    assert rows.types is not None
    accuracy.update(right, rows.types)
    reasons = Counter(
        "another answer" if failure < 0 else str(FAILURES[failure])
        for failure in failures[~right].tolist()
    )
    figures = accuracy.compute()
    print(f"{len(asked)} questions, {figures['overall']:.2f} % as their answers say")
    for reason, count in reasons.most_common():
        print(f"  {count} x {reason}")
    for i in np.flatnonzero(~right)[:5].tolist():
        given = words.answers[int(found[i])] if failures[i] < 0 else FAILURES[failures[i]]
        print(
            f"  question {asked[i].index}: {asked[i].text!r} gives {given}, not {asked[i].answer}"
        )
    return figures


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if words is None else words)
    if given and "=" in given[0] and not Path(given[0]).exists():
        if check_programs(read_options(Files, given, usage=__doc__))["overall"] < 100:
            raise SystemExit(1)
        return
    parser = argparse.ArgumentParser(prog="python check_data.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("root", type=Path, help="data.root of train.py")
    parser.add_argument("--splits", nargs="+", default=("train", "val"), help="training first")
    parser.add_argument("--without-programs", action="store_true", help="they need none")
    a = parser.parse_args(given)
    check_folder(a.root, splits=a.splits, programs=not a.without_programs)


if __name__ == "__main__":
    run_command(main)
