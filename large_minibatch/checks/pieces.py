"""The doctor's check of a step that the loop itself cuts into pieces: Remark 3."""

import torch
from torch import Tensor

from .probe import batch_of, change, fit, gradient, matrices, prepare, require_model, weights
from .step import TOLERANCE, Verdict, alone
from .subject import Batch, Loop, NotExamined


def divisor(loop: Loop) -> Verdict:
    """Each piece of a share counts by its images: as many pieces as its loss is divided by."""
    subject = prepare(loop)
    if subject.per_process is None:
        raise NotExamined("`per_process` is not given.")
    batch = batch_of(subject, subject.per_process)
    before, sizes = weights(subject), []
    model = require_model(subject)
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    moved = change(subject, "share", batch)
    hook.remove()
    whole = subject.per_process
    if sum(sizes) != whole:
        return True, f"Of the {whole} images of a process {sum(sizes)} are computed, all expected."
    causes = [gradient(prepare(loop), piece) for piece in _cut(batch, sizes)]
    *counts, _ = fit(moved, [*causes, before], matrices(before))
    once = alone(loop)
    shares = torch.tensor(counts) / once
    expected = torch.tensor(sizes) / whole
    worst = int((shares / expected - 1).abs().argmax())
    text = (
        f"The {whole} images of a process are computed in {len(sizes)} pieces, and the loss of one "
        f"of {sizes[worst]} is divided by {1 / shares[worst]:.3g}, {1 / expected[worst]:.3g} "
        "expected."
    )
    return bool((shares / expected - 1).abs()[worst] > TOLERANCE), text


def _cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    """The pieces of a batch; NotExamined where it is no tuple of tensors, an image an entry."""
    if not isinstance(batch, tuple | list) or not all(
        isinstance(part, Tensor) and len(part) == sum(sizes) for part in batch
    ):
        raise NotExamined("`batch` does not return a tuple of tensors, which can be cut.")
    return list(zip(*(part.split(sizes) for part in batch), strict=True))
