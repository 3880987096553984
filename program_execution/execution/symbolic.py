"""Programs run on scene graphs instead of images: what a perfect execution engine would answer.

`model.engine=symbolic` puts it into the place of the engine: with true programs an upper bound,
with the generator's what is lost by the programs alone.
"""

import numpy as np
import torch
from torch import Tensor

from common.clevr.arrays.scenes import PackedScenes
from common.clevr.execute import Failure
from common.clevr.execute_batch import BatchExecutor
from common.clevr.vocabulary import Vocabulary

FAILURES = list(Failure)
# What makes a program malformed, whatever the scene.
MALFORMED = [FAILURES.index(f) for f in Failure if not f.name.startswith("UNIQUE")]
NOWHERE = PackedScenes(
    np.zeros((1, 0, 4), np.int8), np.zeros((1, 0), bool), np.zeros((1, 4, 0, 0), bool)
)


class SymbolicEngine:
    """Answers of programs on scene graphs, in vocabulary indices."""

    def __init__(self, words: Vocabulary) -> None:
        self.execute = BatchExecutor(words.tokens, words.answers)

    def __call__(self, programs: Tensor, scenes: PackedScenes, scene_of: np.ndarray) -> Tensor:
        """Answers (B,) of programs (B, L), 0 where there is none; scene_of: (B,)."""
        answers, _ = self.execute(programs, scenes, scene_of)
        return torch.from_numpy(answers).to(programs.device)

    def find_malformed(self, programs: Tensor) -> Tensor:
        """Which programs (B, L) are no complete, well-typed tree that ends with END: bool (B,)."""
        nowhere = np.zeros(len(programs), np.int64)
        _, failures = self.execute(programs, NOWHERE, nowhere, require_end=True)
        return torch.from_numpy(np.isin(failures, MALFORMED)).to(programs.device)
