"""Which pitfalls of large minibatches does a training loop have?

    python doctor.py my_loop.py     examine the loop that build() of the file returns
    python doctor.py example        examine an example: a loop without pitfalls
    python doctor.py                print what build() returns, and the example

The loop may be anything in PyTorch. Its file shows it in parts, each of which may be left out:

    from large_minibatch.doctor import Subject

    def build():
        model = MyNet()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4)
        def step(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
        return Subject(model=model, optimizer=optimizer, step=step, per_forward=32)

The doctor runs the parts on random images and compares what they do with the closed form of the
paper; the source is never read. Checks that lack a part are "not examined", never "ok". Exit code:
0 no pitfall, 1 some, 2 the file cannot be used. In a program: `examine(build)`.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import inspect
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from common.config import run as run_command
from large_minibatch.checks import data, pieces, step
from large_minibatch.checks.subject import (
    FileBuild,
    Finding,
    Loop,
    NotExamined,
    Subject,
    generators_put_back,
)

__all__ = ["Finding", "Subject", "examine"]
EXAMPLE = Path(__file__).with_name("checks") / "example.py"


@dataclass(frozen=True)
class Check:
    """One pitfall: what is looked for, where the paper speaks of it, what cures it."""

    name: str
    section: str
    examine: Callable[[Loop], tuple[bool, str]]
    remedy: str
    advice: bool = False  # worth knowing, no mistake


CHECKS = [
    Check(
        "rate, not loss, is scaled",
        "Sec. 3, Remark 1",
        step.decay_scale,
        "Use the mean loss and multiply the learning rate: scaling the loss leaves the weight "
        "decay behind. (Clipped gradients look the same: show the step without clipping.)",
    ),
    Check(
        "momentum correction",
        "Sec. 3, Remark 2",
        step.momentum_correction,
        "The rate is inside the momentum buffer: multiply the buffer by new rate / old rate when "
        "the rate changes, or use torch.optim.SGD.",
    ),
    Check(
        "mean over micro-batches",
        "Sec. 3, Remark 3",
        step.accumulation,
        "Divide the mean loss of each of a micro-batches by a, once; clear the gradients before "
        "the first of them only.",
    ),
    Check(
        "divided by number of pieces",
        "Sec. 3, Remark 3",
        pieces.divisor,
        "Accumulated gradients are divided by another number than there are pieces: count the "
        "pieces that your loader makes, not those that you planned, and weigh a smaller last one "
        "by its images.",
    ),
    Check(
        "mean over workers",
        "Sec. 3, Remark 3",
        step.aggregation,
        "Mean loss of the worker's images and an average over workers, which DDP takes already; "
        "or a sum over workers of losses divided by kn.",
    ),
    Check(
        "new order every epoch",
        "Sec. 3, Remark 4",
        data.new_order,
        "Shuffle, and call sampler.set_epoch(epoch) before every epoch.",
    ),
    Check(
        "one shuffle for all workers",
        "Sec. 3, Remark 4",
        data.one_shuffle,
        "Permute the whole set once an epoch, under the same seed on all workers, then divide it.",
    ),
    Check(
        "each image once an epoch",
        "Sec. 3, Remark 4",
        data.once,
        "Divide one permutation over the workers and drop its tail: "
        "DistributedSampler(..., drop_last=True).",
    ),
    Check(
        "BN over n images",
        "Sec. 2.3",
        step.norm_group,
        "n belongs to the loss: normalise groups of n images, whatever one call of the model "
        "computes (`GhostBatchNorm2d` in ghost.py).",
    ),
    Check(
        "BN within a worker",
        "Sec. 2.3",
        step.norm_workers,
        "Do not share statistics over workers: plain BatchNorm2d with n images, no SyncBatchNorm.",
    ),
    Check(
        "no decay of gamma, beta",
        "Sec. 5.1",
        step.norm_decay,
        "Put BN's parameters into a group with weight_decay=0 (`decay_split` in sgd.py).",
    ),
    Check(
        "linear scaling rule",
        "Sec. 2.1",
        data.linear_rule,
        "Peak rate = base_lr * batch_size / base_batch, with the batch of all workers.",
    ),
    Check(
        "gradual warm-up",
        "Sec. 2.2",
        data.warmup,
        "Rate of step t < T: base_lr + (peak - base_lr) * t / T, T = 5 epochs of steps; base_lr is "
        "that of kn = 256, and t grows with every iteration (`Schedule` in recipe.py).",
    ),
    Check(
        "schedule from the start",
        "Sec. 2.2, 5.1",
        data.schedule,
        "Count the milestones from the first epoch, the warm-up included.",
    ),
    Check(
        "evaluation, images once",
        "Sec. 5.1",
        data.evaluation_once,
        "Give rank r the images r, r + world, ... without padding, and sum counts over ranks.",
    ),
    Check(
        "evaluation, mean of images",
        "Sec. 5.1",
        data.evaluation_mean,
        "Sum right answers and images over all batches, divide once.",
    ),
    Check(
        "last gamma 0",
        "Sec. 5.1, Table 2b",
        step.last_gamma,
        "Start gamma of the last BN of every residual block at 0.",
        advice=True,
    ),
    Check(
        "last layer N(0, 0.01)",
        "Sec. 5.1",
        step.last_layer,
        "nn.init.normal_(fc.weight, std=0.01), nn.init.zeros_(fc.bias).",
        advice=True,
    ),
]


def examine(build: Callable[..., Subject], *, only: Collection[str] = ()) -> list[Finding]:
    """Make the checks on fresh subjects of `build`, which returns a new one at each call.

    only: names of the checks to make; all by default.

    The states of all random generators are put back. Raises LoopError (a ValueError) where a part
    of the loop fails.
    """
    names = [check.name for check in CHECKS]
    unknown = set(only) - set(names)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no checks: choose from {', '.join(names)}.")
    with generators_put_back():
        loop = Loop(build)
        return [_finding(check, loop) for check in CHECKS if not only or check.name in only]


def _finding(check: Check, loop: Loop) -> Finding:
    try:
        found, text = check.examine(loop)
    except NotExamined as reason:
        status, text = "not examined", str(reason)
    else:
        status = ("advice" if check.advice else "found") if found else "ok"
    return Finding(check.name, status, text[0].upper() + text[1:], check.section, check.remedy)


def table(findings: list[Finding], width: int = 100) -> str:
    """The findings as text of at most `width` columns, remedies below what was found."""
    lines = []
    for finding in findings:
        head = f"{finding.status:<13}{finding.check:<29}{finding.section}"
        texts = [finding.text]
        if finding.status in ("found", "advice"):
            texts.append(f"Remedy: {finding.remedy}")
        lines.append(head)
        for text in texts:
            lines += textwrap.wrap(text, width, initial_indent=" " * 13, subsequent_indent=" " * 13)
    counts = Counter(finding.status for finding in findings)
    summary = ", ".join(
        f"{counts[each]} {each}" for each in ("found", "advice", "ok", "not examined")
    )
    return "\n".join([*lines, "", summary])


def usage() -> str:
    """What the command does, what `build()` returns, and a complete example."""
    return (
        f"{__doc__}\n{'-' * 80}\n\n{inspect.getsource(Subject)}\n"
        f"{'-' * 80}\nA complete file:\n\n{EXAMPLE.read_text()}"
    )


def main() -> None:
    """Examine the file that the command line names."""
    words = sys.argv[1:]
    if not words:
        print(usage())
        return
    if len(words) > 1:
        raise ValueError("usage: python doctor.py [FILE | example]")
    path = EXAMPLE if words[0] == "example" else Path(words[0])
    with generators_put_back():
        findings = examine(FileBuild(path))
    print(table(findings))
    if any(finding.status == "found" for finding in findings):
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
