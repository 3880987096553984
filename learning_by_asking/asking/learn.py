"""Learning to answer from given questions, and the accuracy of what was learned.

The same loop serves the answerer on the questions of the beginning, fresh answerers of any
architecture on everything that was bought, and answerers that learn from the data set instead:
with the same number of steps, whatever the source.

B questions of a batch; `form` says what an answerer reads, `program` its tokens or `text` words.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common import dist
from common.clevr.accuracy import TYPES, TypeAccuracy
from common.clevr.dataset import Batch, Questions, in_order, training_batches
from common.clevr.functions import SPECIAL
from common.run.log import require_finite

FORMS = ("program", "text")


def answer(network: nn.Module, batch: Batch, form: str) -> Tensor:
    """Logits (B, 32) of the questions of a batch, as float32."""
    rows = batch.programs if form == "program" else batch.questions
    return network(rows, batch.features, batch.image_of).float()


def train_answerer(
    model: nn.Module,
    questions: Questions,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    weight_decay: float = 0.0,
    form: str = "program",
    workers: int = 0,
) -> float:
    """Train an answerer on the device where it is, with Adam; the mean loss of the last tenth.

    batch_size: questions a step over all processes.
    Raises ValueError for questions without answers or programs, Diverged for a loss that is not
    finite.
    """
    _require_known(questions, form)
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr, weight_decay=weight_decay)
    batches = training_batches(
        questions,
        batch_size=batch_size,
        seed=seed,
        start=0,
        stop=steps,
        workers=workers,
    )
    network, training, last = dist.wrap(model), model.training, []
    model.train()
    hidden = None if dist.is_main() else True  # None: hidden unless there is a terminal
    for step, batch in enumerate(tqdm(batches, "answerer", total=steps, disable=hidden), 1):
        batch = batch.to(device)
        loss = F.cross_entropy(answer(network, batch, form), batch.answers)
        require_finite({"answer": loss}, step, batch.names)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if 10 * step > 9 * steps:
            last.append(loss.detach())
    model.train(training)
    return float(torch.stack(last).mean()) if last else float("nan")


def accuracy(
    model: nn.Module, questions: Questions, *, form: str = "program", batch_size: int = 512
) -> dict[str, float]:
    """Right answers in percent, the same on every process; each question counts once.

    "accuracy" is that of all questions, "macro" the mean of the types that occur; further those of
    the 13 types and of CLEVR's groups, nan where none occurs.
    """
    counts = TypeAccuracy()
    for batch, logits in _answer_all(model, questions, form, batch_size):
        counts.update(logits.argmax(1) == batch.answers, batch.types)
    found = counts.compute()
    types = np.array([found[kind] for kind in TYPES])
    macro = float(types[~np.isnan(types)].mean()) if not np.isnan(types).all() else float("nan")
    return {"accuracy": found.pop("overall"), "macro": macro} | found


def losses_by_type(
    model: nn.Module, questions: Questions, *, form: str = "program", batch_size: int = 512
) -> dict[str, float]:
    """Mean cross entropy of each of the 13 types, nan where none occurs: what is left to learn."""
    sums = torch.zeros(2, len(TYPES), dtype=torch.float64)
    for batch, logits in _answer_all(model, questions, form, batch_size):
        typed = batch.types >= 0
        losses = F.cross_entropy(logits, batch.answers, reduction="none")[typed].cpu().double()
        types = batch.types[typed].cpu()
        sums[0].index_add_(0, types, losses)
        sums[1].index_add_(0, types, torch.ones_like(losses))
    sums = dist.total(sums.to(dist.device())).cpu()
    return dict(zip(TYPES, (sums[0] / sums[1]).tolist(), strict=True))


@torch.no_grad()
def _answer_all(
    model: nn.Module, questions: Questions, form: str, batch_size: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of this process's share of the questions with their logits, in eval mode."""
    _require_known(questions, form)
    device, training = next(model.parameters()).device, model.training
    model.eval()
    for batch in in_order(questions, batch_size):
        batch = batch.to(device)
        yield batch, answer(model, batch, form)
    model.train(training)


def _require_known(questions: Questions, form: str) -> None:
    """ValueError unless the questions can be learned from and tested on in this form."""
    if form not in FORMS:
        raise ValueError(f"question_form={form} is not one of {', '.join(FORMS)}.")
    answers = questions.rows.answers
    if answers is None:
        raise ValueError(f"the split {questions.split!r} has no answers: name one that has.")
    if form == "program" and questions.programs is None:
        raise ValueError(
            f"the split {questions.split!r} has no programs: give question_form=text, or another."
        )
    special = np.flatnonzero(answers < len(SPECIAL))
    if len(special):
        raise ValueError(
            f"question {questions.rows.orig_idxs[special[0]]} of the split {questions.split!r} has "
            f"the answer {answers[special[0]]}, which is none: leave invalid questions out."
        )
