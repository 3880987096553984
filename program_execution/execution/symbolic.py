"""Programs run on scene graphs instead of pictures: what a perfect execution engine would answer.

    python symbolic.py questions=FILE.json scenes=FILE.json    # do all programs give their answers?
    python symbolic.py questions=FILE.json scenes=FILE.json unique=first

Exit code 0: all give them, 1: some do not, 2: one sentence about the files.

`model.engine=symbolic` puts it into the place of the engine: with true programs an upper bound,
with the generator's what is lost by the programs alone.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from common.clevr import questions, scene_graph, vocabulary
from common.clevr.accuracy import TypeAccuracy
from common.clevr.arrays import encode
from common.clevr.batch import BatchExecutor, PackedScenes, pack
from common.clevr.execute import Failure
from common.config import require_choice, typed
from common.config import run as run_command

FAILURES = list(Failure)
# What makes a program malformed, whatever the scene.
MALFORMED = [FAILURES.index(f) for f in Failure if not f.name.startswith("UNIQUE")]
NOWHERE = PackedScenes(
    np.zeros((1, 0, 4), np.int8), np.zeros((1, 0), bool), np.zeros((1, 4, 0, 0), bool)
)


class SymbolicEngine:
    """Answers of programs on scene graphs, in vocabulary indices.

    words: the vocabulary. unique: "strict", CLEVR's rule, or "first" object of several.
    """

    def __init__(self, words: vocabulary.Vocabulary, *, unique: str = "strict") -> None:
        require_choice("unique", unique, ("strict", "first"))
        self.execute = BatchExecutor(words.tokens, words.answers)
        self.unique = unique

    def __call__(self, programs: Tensor, scenes: PackedScenes, scene_of: np.ndarray) -> Tensor:
        """Answers (B,) of programs (B, L), 0 where there is none; scene_of: (B,)."""
        answers, _ = self.execute(programs, scenes, scene_of, unique=self.unique)  # type: ignore
        return torch.from_numpy(answers).to(programs.device)

    def malformed(self, programs: Tensor) -> Tensor:
        """Which programs (B, L) are no complete, well-typed tree that ends with END: bool (B,)."""
        nowhere = np.zeros(len(programs), np.int64)
        _, failures = self.execute(programs, NOWHERE, nowhere, require_end=True)
        return torch.from_numpy(np.isin(failures, MALFORMED)).to(programs.device)


@dataclass
class Options:
    """Words of the command line."""

    questions: str = ""  # a questions file with programs
    scenes: str = ""  # the scenes file of its split, or a folder with a file for each scene
    unique: str = "strict"  # strict | first

    def __post_init__(self) -> None:
        require_choice("unique", self.unique, ("strict", "first"))
        if not self.questions or not self.scenes:
            raise ValueError("give questions=FILE.json and scenes=FILE.json.")


def check(options: Options) -> dict[str, float]:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        return
    options = OmegaConf.structured(Options)
    options.merge_with_dotlist(given)
    if check(typed(options))["overall"] < 100:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
