"""Ours beside the per-sample reference: every speed that the README claims.

    python benchmark.py                                   # all; some minutes on two cores
    python benchmark.py what=demo batch=64 threads=1
    python benchmark.py what=paper device=cuda repeats=21 out=paper.json

The contestants run by turns in one process, each round another one first; networks have equal
weights, and their losses are checked to agree first. `theirs / ours` is the ratio of the medians:
above 1, ours is faster. Where other work shares the cores, OMP_WAIT_POLICY=PASSIVE keeps waiting
threads from blocking them.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor

from common import timing
from common.clevr import builtin, execute_batch
from common.clevr.arrays.scenes import pack
from common.clevr.execute import execute
from common.clevr.functions import ANSWERS, SPECIAL, TOKENS
from common.clevr.generation.generate import generate
from common.clevr.generation.tiny import generate_tiny
from common.clevr.programs import to_prefix, to_tree
from common.clevr.questions import Question
from common.config import read_options, require_range, to_dataclass
from common.config import run as run_command
from common.timing import Calls, Row
from program_execution.config import Config
from program_execution.engine import EngineOptions, ExecutionEngine
from program_execution.stages import build, datasets

PROGRAM_TOKENS = (*SPECIAL, *TOKENS)
ANSWER_TOKENS = (*SPECIAL, *ANSWERS)


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | demo | small | paper | symbolic | questions
    repeats: int = 9
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda
    batch: int = 0  # questions of a training step; 0: the default run's for `demo`, 64 elsewhere
    per_image: int = 10  # questions of an image, not of `demo`; 1: nothing but `scene` is shared
    channels: int = 24  # of the modules of `small`
    settings: list[str] = field(default_factory=list)  # of `demo`: overrides of the default run
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        require_range("batch", self.batch, 0)
        for name in ("per_image", "channels"):
            require_range(name, getattr(self, name), 1)


def demo(options: Options) -> Calls:
    """Training step of the default run: its engine, maps and questions, drawn from all images."""
    cfg = _default_run(options)
    training, _, _ = datasets(cfg)
    engine = build(cfg, training).engine
    assert engine is not None
    batch = training[np.random.default_rng(0).permutation(len(training))[: options.batch]]
    assert batch.programs is not None
    assert batch.features is not None
    inputs = Inputs(batch.programs, batch.answers, batch.features, batch.image_of)
    return _training_steps(engine, inputs, options)


def _default_run(options: Options) -> Config:
    """The settings in which the default run trains its engine."""
    given = ["stage=ee", "evaluate.programs=ground_truth", "versus={}", "output_dir=unused"]
    with initialize_config_dir(str(Path(__file__).with_name("conf")), version_base="1.3"):
        cfg: Config = to_dataclass(compose("config", [*given, *options.settings]))
    return cfg


def small(options: Options) -> Calls:
    """Training step on 8 x 8 maps: questions of profile tiny, several about an image."""
    data = _build_questions(options, "tiny")
    engine = ExecutionEngine(
        tokens=PROGRAM_TOKENS,
        feature_size=data.features.shape[1:],
        options=EngineOptions(
            stem_layers=1, module_dim=options.channels, classifier_proj=48, classifier_fc=[128]
        ),
    )
    inputs = _take_questions(data, torch.from_numpy(data.features), options)
    return _training_steps(engine, inputs, options)


def paper(options: Options) -> Calls:
    """Training step of the paper's engine: 1024 x 14 x 14 features, questions of 90 templates."""
    data = _build_questions(options, "full")
    features = torch.randn(len(data.features), 1024, 14, 14)
    engine = ExecutionEngine(tokens=PROGRAM_TOKENS)
    return _training_steps(engine, _take_questions(data, features, options), options)


def _build_questions(options: Options, profile: str) -> builtin.BuiltIn:
    images = -(-options.batch // options.per_image)
    # The full profile may find too few questions about a scene: more scenes than needed.
    return builtin.build(
        split="train", images=2 * images, per_image=options.per_image, profile=profile
    )


class Inputs(NamedTuple):
    """B questions about I images."""

    programs: Tensor  # int64 (B, L)
    answers: Tensor  # int64 (B,)
    features: Tensor  # float32 (I, C, H, W)
    image_of: Tensor  # int64 (B,)


def _take_questions(data: builtin.BuiltIn, features: Tensor, options: Options) -> Inputs:
    """The first questions, and the features of their images."""
    chosen = data.questions[: options.batch]
    images = torch.tensor([question.image_index for question in chosen])
    answers = torch.tensor([ANSWER_TOKENS.index(str(q.answer)) for q in chosen])
    programs = torch.from_numpy(encode(chosen))
    return Inputs(programs, answers, features[: int(images.max()) + 1], images)


def _training_steps(engine: ExecutionEngine, inputs: Inputs, options: Options) -> Calls:
    """A training step of each execution, returning its loss.

    The reference gets the features of an image once for every question about it, as the public code
    does.
    """
    programs, answers, features, images = (value.to(options.device) for value in inputs)
    repeated = features[images]

    def step(execution: str, share: bool) -> Callable[[], Tensor]:
        model = copy.deepcopy(engine).to(options.device)
        model.execution, model.share = execution, share
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-9, fused=True)

        def train() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            if execution == "reference":
                logits = model(repeated, programs)
            else:
                logits = model(features, programs, image_of=images)
            loss = F.cross_entropy(logits, answers)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return train

    return {
        "ours, grouped": step("grouped", True),
        "per-sample reference": step("reference", True),
        "ours, nothing shared": step("grouped", False),
        "ours, bmm": step("bmm", True),
    }


def encode(questions: Sequence[Question]) -> np.ndarray:
    """Prefix programs as token ids, START first and END last: int64 (questions, longest)."""
    ids = {token: i for i, token in enumerate(PROGRAM_TOKENS)}
    rows = []
    for question in questions:
        assert question.program is not None
        prefix = to_prefix(to_tree(question.program))
        rows.append([ids["<START>"], *(ids[token] for token in prefix), ids["<END>"]])
    programs = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, tokens in zip(programs, rows, strict=True):
        row[: len(tokens)] = tokens
    return programs


def symbolic(options: Options) -> Calls:
    """4096 programs of 90 templates on their scene graphs, all at once and one after the other."""
    data = builtin.build(split="train", images=460, per_image=10, profile="full")
    questions = data.questions[:4096]
    programs, scenes = encode(questions), pack(data.scenes)
    scene_of = np.array([question.image_index for question in questions])
    executor = execute_batch.BatchExecutor(PROGRAM_TOKENS, ANSWER_TOKENS)
    words = [[PROGRAM_TOKENS[i] for i in row[1:]] for row in programs]  # without START

    def at_once() -> list[str | None]:
        answers, _ = executor(programs, scenes, scene_of)
        return [ANSWER_TOKENS[i] for i in answers.tolist()]

    def one_by_one() -> list[str | None]:
        pairs = zip(words, scene_of.tolist(), strict=True)
        return [execute(tokens, data.scenes[scene]).answer for tokens, scene in pairs]

    return {"batched executor": at_once, "scalar executor": one_by_one}


def questions(options: Options) -> Calls:
    """400 questions about 40 scenes: profile tiny, and the 90 templates with the public rules."""
    scenes = builtin.build(split="train", images=40, per_image=1).scenes
    return {
        "profile tiny": lambda: len(generate_tiny(scenes)),
        "profile full": lambda: len(generate(scenes)),
    }


TRAINING = {"demo": demo, "small": small, "paper": paper}
BENCHMARKS = {**TRAINING, "symbolic": symbolic, "questions": questions}


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, after a check of the results; and notes on its rates."""
    torch.manual_seed(0)
    if what in TRAINING and not options.batch:
        size = _default_run(options).ee.batch_size if what == "demo" else 64
        options = replace(options, batch=size)
    calls = BENCHMARKS[what](options)
    results = {name: call() for name, call in calls.items()}
    first = next(iter(results.values()))
    if isinstance(first, Tensor):
        for loss in results.values():
            torch.testing.assert_close(loss, first, rtol=1e-4, atol=1e-5)
    elif what == "symbolic":
        assert all(answers == first for answers in results.values())
    device = options.device if what in TRAINING else "cpu"
    seconds = timing.by_turns(calls, options.repeats, device)
    rows = [Row(what, name, times) for name, times in seconds.items()]
    notes = []
    for row in rows:
        if what == "symbolic":
            amount, told = _nodes(), "nodes a second"
        elif what in TRAINING:
            amount, told = options.batch, f"questions a second, {options.batch} a step"
        else:
            amount, told = results[row.name], "questions a second"
        notes.append(f"- {what}, {row.name}: {amount / row.quartiles[1]:,.0f} {told}")
    return rows, notes


def _nodes() -> int:
    """Functions in the programs of `symbolic`."""
    data = builtin.build(split="train", images=460, per_image=10, profile="full")
    return int((encode(data.questions[:4096]) >= len(SPECIAL)).sum())


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    timing.compare(read_options(Options, words, usage=__doc__), BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
