"""Ours beside the usual ways: every speed that the README claims.

    python benchmark.py                               # all; a minute on two cores
    python benchmark.py what=episode classes=60 width=64 rows=150
    python benchmark.py what=evaluation repeats=5 out=evaluation.json
    python benchmark.py what=episode device=cuda classes=389 width=512

The contestants run by turns in one process, each round another one first. The usual ways go through
the classes one by one. `theirs / ours` is the ratio of the medians: above 1, ours is faster.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import timing
from common.clevr.arrays.features import open_h5
from common.config import read_options, require_range
from common.config import run as run_command
from common.data import seed_everything
from common.timing import Calls, Row
from lowshot_hallucination.features.episodes import Episodes, Sampler
from lowshot_hallucination.features.formats import Features, write_hdf5
from lowshot_hallucination.features.problem import LowShot
from lowshot_hallucination.features.splits import ClassSplit
from lowshot_hallucination.hallucinate import (
    Hallucination,
    Support,
    augment_support,
    build_generator,
    joint_loss,
)
from lowshot_hallucination.model import Learner, PrototypeLearner
from lowshot_hallucination.protocol.draws import Draws, Problem, Test
from lowshot_hallucination.protocol.metrics import score

SHOTS = [1, 2, 5, 10, 20]
TRAIN, TEST = 150, 50  # rows of a class, of the evaluation


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | episode | sampling | evaluation | hallucination
    repeats: int = 9
    threads: int = 1  # of the CPU
    device: str = "cpu"  # cpu | cuda
    classes: int = 100  # of an episode and of the base; as many novel ones in the evaluation
    width: int = 128  # of a feature
    rows: int = 1300  # of a class that episodes are drawn from, as ImageNet has
    queries: int = 3  # of a class, in an episode
    n_aug: int = 5  # examples of a class, with the imagined ones
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        least = {"classes": 5, "width": 1, "queries": 1, "n_aug": 2}
        least["rows"] = max(SHOTS) + self.queries
        for name, low in least.items():
            require_range(name, getattr(self, name), low)


def episode(options: Options) -> list[Row]:
    """Training steps of prototypical networks with G: draw, imagine, loss, gradients, Adam.

    n of each class from 1, 2, 5, 10, 20. Theirs draws as below and imagines class by class, then
    embeds all examples at once.
    """
    with sampling_calls(options) as draws:
        calls: Calls = {
            name: partial(
                step if name == "ours" else step_by_class, draw, options, *make_all(options)
            )
            for name, draw in draws.items()
        }
        seconds = timing.by_turns(calls, options.repeats, options.device)
    title = f"episode of {options.classes} classes, d = {options.width}"
    return [Row(title, name, times) for name, times in seconds.items()]


def step(
    draw: Callable[[], tuple[Support, Tensor, Tensor]],
    options: Options,
    learner: PrototypeLearner,
    generate: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """Our step; its loss."""
    support, queries, labels = draw()
    loss = joint_loss(learner, generate, support, queries, labels, options.n_aug)
    return update(loss, optimizer)


def step_by_class(
    draw: Callable[[], tuple[list[Tensor], Tensor, Tensor]],
    options: Options,
    learner: PrototypeLearner,
    generate: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """The usual step; its loss."""
    examples, queries, labels = draw()
    filled = imagine_by_class(examples, options.n_aug, generate)
    return update(F.cross_entropy(classify_by_class(learner, filled, queries), labels), optimizer)


def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Gradients and a step; the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def sampling(options: Options) -> list[Row]:
    """The draw of an episode's support and queries, without replacement.

    Theirs looks each class up among all labels and reads its rows, as the benchmark authors' loop
    does: from memory, and from HDF5 as in their code, where h5py is installed.
    """
    with sampling_calls(options) as calls:
        seconds = timing.by_turns(calls, options.repeats, options.device)
    title = f"draw of {options.classes} classes, d = {options.width}"
    return [Row(title, name, times) for name, times in seconds.items()]


@contextmanager
def sampling_calls(options: Options) -> Iterator[Calls]:
    """The draw of an episode in every way, as long as the files are there."""
    rows = make_rows(options.classes, options.rows, options.width, seed=0)
    choice = Episodes(shots=SHOTS, queries=options.queries)
    sampler = Sampler(rows.values, rows.labels, range(options.classes), choice, options.device)
    calls: Calls = {
        "ours": partial(sampler.draw, 0),
        "class by class": partial(draw_by_class, rows.values, rows.labels, options),
    }
    with ExitStack() as stack:
        if find_spec("h5py"):
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "train.hdf5")
            write_hdf5(path, rows)
            values = stack.enter_context(open_h5(path))["all_feats"]
            calls["class by class, HDF5"] = partial(draw_by_class, values, rows.labels, options)
        yield calls


def evaluation(options: Options) -> list[Row]:
    """All 25 runs of a test, 5 draws of n = 1, 2, 5, 10, 20: support, imagine, classify, score.

    A base class has 100 real examples, every class 50 queries. Theirs goes through the classes to
    imagine and average, and ranks 1,000 queries at a time.
    """
    calls = evaluation_calls(options)
    seconds = timing.by_turns(calls, options.repeats, options.device)
    title = f"25 runs, {options.classes} + {options.classes} classes, d = {options.width}"
    return [Row(title, name, times) for name, times in seconds.items()]


def evaluation_calls(options: Options) -> Calls:
    """Top-5 of novel classes and of all, for all 25 runs, in the two ways."""
    classes = list(range(2 * options.classes))
    half = options.classes
    split = ClassSplit([str(each) for each in classes], [], classes[:half], [], classes[half:])
    train = make_rows(2 * half, TRAIN, options.width, seed=1)
    test = make_rows(2 * half, TEST, options.width, seed=2)
    lowshot = LowShot(train=train, test=test, split=split, picks=None, trunk="")
    draws = Draws(lowshot, "test", Test(shots=SHOTS), device=options.device)
    learner, generate = make_models(options)

    def ours(problem: Problem) -> tuple[float, float]:
        support = augment_support(problem.support, options.n_aug, generate)
        found = score(learner(support, problem.queries), problem.labels, problem.novel)
        return found["novel5"], found["all5"]

    def theirs(problem: Problem) -> tuple[float, float]:
        support = problem.support
        examples = [x[:n] for x, n in zip(support.features, support.counts.tolist(), strict=True)]
        filled = imagine_by_class(examples, options.n_aug, generate)
        hits = [0.0, 0.0]
        for first in range(0, len(problem.queries), 1000):
            labels = problem.labels[first : first + 1000]
            queries = problem.queries[first : first + 1000]
            logits = classify_by_class(learner, filled, queries)
            hits[1] += float((logits.topk(5).indices == labels[:, None]).sum())
            logits = logits.masked_fill(~problem.novel, -torch.inf)
            mine = problem.novel[labels]
            hits[0] += float((logits.topk(5).indices == labels[:, None])[mine].sum())
        count = int(problem.novel[problem.labels].sum())
        return 100 * hits[0] / count, 100 * hits[1] / len(problem.labels)

    @torch.no_grad()
    def run(way: Callable[[Problem], tuple[float, float]]) -> list[tuple[float, float]]:
        return [way(draws.problem(n, draw)) for n in SHOTS for draw in range(5)]

    return {"ours": partial(run, ours), "class by class": partial(run, theirs)}


def hallucination(options: Options) -> list[Row]:
    """Imagined examples of a support: classes with 1, 2, 5, 10, 20 real ones in turn, forward only.

    Theirs calls G once for every class.
    """
    seconds = timing.by_turns(hallucination_calls(options), options.repeats, options.device)
    title = f"imagine for {options.classes} classes, d = {options.width}"
    return [Row(title, name, times) for name, times in seconds.items()]


def hallucination_calls(options: Options) -> Calls:
    """The augmented support, as a list of classes, in the two ways."""
    rows = make_rows(options.classes, max(SHOTS), options.width, seed=3)
    features = torch.from_numpy(rows.values).to(options.device)
    features = features.view(options.classes, max(SHOTS), options.width)
    counts = [SHOTS[k % len(SHOTS)] for k in range(options.classes)]
    support = Support(features, torch.tensor(counts, device=options.device))
    examples = [x[:count] for x, count in zip(features, counts, strict=True)]
    _, generate = make_models(options)

    @torch.no_grad()
    def ours() -> Support:
        return augment_support(support, options.n_aug, generate)

    @torch.no_grad()
    def theirs() -> list[Tensor]:
        return imagine_by_class(examples, options.n_aug, generate)

    return {"ours": ours, "class by class": theirs}


def draw_by_class(
    values: Any, labels: np.ndarray, options: Options
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Examples (n_k, d) of each class, queries (m*queries, d), their labels (m*queries,).

    values: (rows, d), an array or a data set of HDF5, which wants rows in ascending order.
    """
    examples, queries = [], []
    for label in range(options.classes):
        n = np.random.choice(SHOTS)
        own = np.where(labels == label)[0]
        drawn = np.random.choice(own, n + options.queries, replace=False)
        examples.append(torch.from_numpy(values[np.sort(drawn[:n])]).to(options.device))
        queries.append(torch.from_numpy(values[np.sort(drawn[n:])]))
    wanted = torch.arange(options.classes).repeat_interleave(options.queries)
    return examples, torch.cat(queries).to(options.device), wanted.to(options.device)


def imagine_by_class(examples: list[Tensor], n_aug: int, generate: nn.Module) -> list[Tensor]:
    """Real and imagined examples (max(n_k, n_aug), d) of each class."""
    filled = []
    for real in examples:
        missing = n_aug - len(real)
        if missing > 0:
            seeds = real[torch.randint(len(real), (missing,), device=real.device)]
            alone = Support(real[None], torch.tensor([len(real)], device=real.device))
            owner = torch.zeros(missing, dtype=torch.int64, device=real.device)
            real = torch.cat([real, generate(seeds, alone, owner)])
        filled.append(real)
    return filled


def classify_by_class(learner: PrototypeLearner, examples: list[Tensor], queries: Tensor) -> Tensor:
    """Logits (Q, m) of prototypical networks, whose means are taken one by one."""
    embedded = learner.embed(torch.cat(examples)).split([len(each) for each in examples])
    means = torch.stack([each.mean(0) for each in embedded])
    return -torch.cdist(learner.embed(queries), means).square()


def make_models(options: Options) -> tuple[PrototypeLearner, nn.Module]:
    """Prototypical networks and G, the same weights at every call."""
    seed_everything(0)
    learner = PrototypeLearner(Learner(method="pn"), options.width).to(options.device)
    return learner, build_generator(Hallucination(), options.width).to(options.device)


def make_all(options: Options) -> tuple[PrototypeLearner, nn.Module, torch.optim.Optimizer]:
    """Models and Adam for both, whose rate of 0 leaves every round the same weights."""
    learner, generate = make_models(options)
    parameters = [*learner.parameters(), *generate.parameters()]
    return learner, generate, torch.optim.Adam(parameters, 0.0, fused=True)


def make_rows(classes: int, per_class: int, width: int, seed: int) -> Features:
    """Features like those of a ReLU, `per_class` for each class in the order of the classes."""
    centres = np.random.default_rng(0).standard_normal((classes, width), dtype=np.float32)
    labels = np.arange(classes).repeat(per_class)
    noise = np.random.default_rng(seed).standard_normal((len(labels), width), dtype=np.float32)
    return Features(np.maximum(centres[labels] + noise, 0), labels)


BENCHMARKS = {
    "episode": episode,
    "sampling": sampling,
    "evaluation": evaluation,
    "hallucination": hallucination,
}


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, and a note with episodes a second."""
    rows = BENCHMARKS[what](options)
    notes = [f"{row.name}: {1 / row.quartiles[1]:.1f} episodes/s" for row in rows]
    return rows, notes if what == "episode" else []


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    timing.compare(read_options(Options, words, usage=__doc__), BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
