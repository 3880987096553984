"""Ours beside the plain loop: every speed that the README claims.

    python benchmark.py                               # all; a minute on two cores
    python benchmark.py what=asking images=64 raw=32 kept=8
    python benchmark.py what=oracle programs=65536 out=oracle.json
    python benchmark.py what=asking sizes=paper device=cuda

The contestants run by turns in one process, each round another one first, after a check that they
give the same results where both compute them. `theirs / ours` is the ratio of the medians: above 1,
ours is faster.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import timing
from common.clevr import builtin, vocabulary
from common.clevr.accuracy import TYPES
from common.clevr.arrays import encode
from common.clevr.execute import execute
from common.clevr.functions import SPECIAL
from common.clevr.grammar import Grammar
from common.clevr.programs import canonical
from common.config import read_options, require_choice, require_range
from common.config import run as run_command
from common.timing import Calls, Row
from learning_by_asking.ask import Policy, Progress, choose, score_proposals
from learning_by_asking.asking.draws import build_generator, draw_learned
from learning_by_asking.asking.propose import Asked, Draw, Generator, propose, types_of
from learning_by_asking.asking.relevance import Calibrated
from learning_by_asking.model import Answerer, build_answerer, build_relevance
from learning_by_asking.oracle.oracles import Symbolic
from learning_by_asking.oracle.replies import NO_ANSWER, Reply

FIRST = len(SPECIAL)  # id of the first answer
WORLD = builtin.Options(objects=(3, 5))
SIZES = {
    "small": (Answerer(embed=64, hidden=128, layers=1, attention=64, fc=[128]), 64, 128),
    "paper": (Answerer(), 300, 512),
}  # of answerer and relevance; embed and hidden of the generator


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | asking | oracle
    repeats: int = 5
    threads: int = 1  # of the CPU
    device: str = "cpu"  # cpu | cuda, of `asking`
    sizes: str = "small"  # small: grid maps of 6 x 6 | paper: 1024 x 14 x 14 features
    images: int = 128  # of a round
    plain: int = 2  # of these, how many the plain loop asks about
    raw: int = 64  # programs drawn for an image
    kept: int = 16  # proposals that remain of them
    programs: int = 8192  # of `oracle`
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        require_choice("sizes", self.sizes, SIZES)
        for name in ("images", "raw", "programs"):
            require_range(name, getattr(self, name), 1)
        require_range("plain", self.plain, 1, self.images)
        require_range("kept", self.kept, 1, self.raw)


# Asking


@dataclass(frozen=True)
class Agent:
    """What asks, with random weights, and who replies."""

    draw: Draw
    answerer: nn.Module
    relevance: Calibrated
    oracle: Symbolic
    words: vocabulary.Vocabulary
    maps: Tensor  # (I, C, H, W)
    generator: Generator


def asking(options: Options) -> list[Row]:
    """The time of one question: `raw` programs drawn, `kept` of them scored, one asked.

    Ours does all images of a round at once. The plain loop draws, filters, answers and asks program
    by program, with the same networks. The relevance model lets everything pass.
    """
    agent = build_agent(options)
    tokens = propose_all(agent, torch.arange(options.plain), 0).tokens
    torch.testing.assert_close(
        answer_all(agent, agent.maps[: options.plain], tokens), answer_each(agent, tokens)
    )
    counts = {"ours": options.images, "plain loop": options.plain}
    calls: Calls = {
        "ours": partial(ask_all, agent, options.images),
        "plain loop": partial(ask_each, agent, options.plain),
    }
    seconds = timing.by_turns(calls, options.repeats, options.device)
    title = f"asking, {options.sizes}, {options.images} images a round"
    return [Row(title, name, [t / counts[name] for t in seconds[name]]) for name in calls]


def build_agent(options: Options) -> Agent:
    """Networks of the sizes wished for, and a built-in world."""
    torch.manual_seed(0)
    sizes, embed, hidden = SIZES[options.sizes]
    data = builtin.build(
        split="train",
        images=options.images,
        per_image=1,
        options=WORLD,
        features=builtin.FeatureOptions(grid=6),
    )
    maps = torch.from_numpy(data.features)
    if options.sizes == "paper":
        maps = torch.randn(options.images, 1024, 14, 14)
    C, H, W = maps.shape[1:]
    words = vocabulary.standard()
    generator = Generator(embed=embed, hidden=hidden, raw=options.raw, kept=options.kept)
    device = options.device
    network = build_generator(generator, words, C).to(device)
    grammar = Grammar(words.tokens)
    draw = draw_learned(network, torch.arange(len(TYPES)), generator.temperature, grammar)
    tokens = len(words.program)
    answerer = build_answerer(sizes, tokens=tokens, feature_size=(C, H, W)).to(device).eval()
    judge = build_relevance(sizes, tokens=tokens, feature_size=(C, H, W))
    return Agent(
        draw=draw,
        answerer=answerer,
        relevance=Calibrated(judge).to(device),
        oracle=Symbolic(data.scenes, words),
        words=words,
        maps=maps.to(device),
        generator=generator,
    )


def propose_all(agent: Agent, images: Tensor, seed: int) -> Any:
    """Proposals for images (I,), nothing having been asked before."""
    return propose(
        agent.draw,
        images,
        agent.maps[images],
        Asked(agent.words),
        agent.generator,
        generator=torch.Generator().manual_seed(seed),
        relevance=agent.relevance,
    )


@torch.no_grad()
def answer_all(agent: Agent, maps: Tensor, tokens: Tensor) -> Tensor:
    """Probabilities (I, P, 28) for programs (I, P, L), each map projected once."""
    images, proposals = tokens.shape[:2]
    image_of = torch.arange(images, device=maps.device).repeat_interleave(proposals)
    projected = agent.answerer.project(maps)  # type: ignore[operator]
    logits = agent.answerer.answer(tokens.flatten(0, 1), projected, image_of)  # type: ignore[operator]
    return logits[:, FIRST:].softmax(-1).view(images, proposals, -1)


@torch.no_grad()
def answer_each(agent: Agent, tokens: Tensor) -> Tensor:
    """The same for the first images, question by question."""
    rows = [
        [answer_one(agent, agent.maps[i : i + 1], row[None]) for row in tokens[i]]
        for i in range(len(tokens))
    ]
    return torch.stack([torch.cat(row) for row in rows])


def answer_one(agent: Agent, map_: Tensor, tokens: Tensor) -> Tensor:
    """Probabilities (1, 28) of one program (1, L) about one map (1, C, H, W)."""
    place = torch.zeros(1, dtype=torch.int64, device=map_.device)
    return agent.answerer(tokens, map_, place)[:, FIRST:].softmax(-1)


def ask_all(agent: Agent, count: int) -> list[Reply]:
    """A round: one question about each of the first images."""
    images = torch.arange(count)
    proposals = propose_all(agent, images, 0)
    probs = answer_all(agent, agent.maps[images], proposals.tokens)
    picks = pick(probs, proposals.types, proposals.allowed)
    chosen = proposals.tokens[torch.arange(count, device=picks.device), picks]
    return agent.oracle.ask(images.numpy(), chosen.cpu().numpy())


@torch.no_grad()
def ask_each(agent: Agent, count: int) -> list[Reply]:
    """The plain loop: one question about each of the first images, nothing in batches."""
    generator = torch.Generator().manual_seed(0)
    replies = []
    for image in range(count):
        place, map_ = torch.tensor([image]), agent.maps[image : image + 1]
        programs: dict[tuple[str, ...], Tensor] = {}  # (1, 1, L), by what makes them the same
        for _ in range(agent.generator.raw):
            program = agent.draw(place, map_, 1, generator)
            types = types_of(program, agent.words)
            chance = agent.relevance.probabilities(place, program, types, map_)
            if agent.relevance.keep(chance, types):
                text = agent.words.decode_program(program.flatten().tolist())
                programs.setdefault(canonical(text), program)
        kept = list(programs.values())[: agent.generator.kept]
        probs = torch.cat([answer_one(agent, map_, program[0]) for program in kept])
        types = torch.cat([types_of(program, agent.words) for program in kept], 1)
        best = int(pick(probs[None], types, torch.ones_like(types, dtype=torch.bool))[0])
        replies += agent.oracle.ask(place.numpy(), kept[best][0].cpu().numpy())
    return replies


def pick(probs: Tensor, types: Tensor, allowed: Tensor) -> Tensor:
    """The chosen proposals (I,) by expected improvement, as it is at the beginning."""
    policy, generator = Policy(), torch.Generator().manual_seed(0)
    progress = Progress(policy, budget=1000)
    scores = score_proposals(probs, types, policy, progress, generator=generator)
    return choose(scores, allowed, policy.epsilon, generator)[0]


# The oracle


def oracle(options: Options) -> list[Row]:
    """Programs executed on scene graphs, half of them on another one than they were made for.

    Ours runs all at once; the plain loop one after the other.
    """
    calls = oracle_calls(options.programs)
    ours, theirs = (call() for call in calls.values())
    assert ours == theirs, "the oracle in batches differs from the plain loop"
    seconds = timing.by_turns(calls, options.repeats, "cpu")
    title = f"oracle, {options.programs:,} programs"
    return [Row(title, name, times) for name, times in seconds.items()]


def oracle_calls(count: int) -> dict[str, Callable[[], list[Reply]]]:
    """The replies in the two ways."""
    data = builtin.build(split="train", images=max(2, -(-count // 10)), options=WORLD)
    words = vocabulary.standard()
    rows = encode.encode(data.questions[:count], words)
    assert rows.programs is not None
    programs = np.resize(rows.programs, (count, rows.programs.shape[1]))
    images = np.resize(rows.image_idxs, count)
    images[::2] = (images[::2] + 1) % len(data.scenes)
    symbolic = Symbolic(data.scenes, words)
    texts = [words.decode_program(row) for row in programs]

    def one_by_one() -> list[Reply]:
        replies = []
        for image, text in zip(images.tolist(), texts, strict=True):
            found = execute(text, data.scenes[image])
            if found.answer is None:
                replies.append(Reply(NO_ANSWER, False, str(found.failure)))
            else:
                replies.append(Reply(words.encode_answer(found.answer), True, ""))
        return replies

    return {"ours": partial(symbolic.ask, images, programs), "plain loop": one_by_one}


BENCHMARKS = {"asking": asking, "oracle": oracle}


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, and its rates."""
    rows = BENCHMARKS[what](options)
    amount, told = (1, "questions asked") if what == "asking" else (options.programs, "programs")
    return rows, [
        f"- {what}, {row.name}: {amount / row.quartiles[1]:,.1f} {told} a second" for row in rows
    ]


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    timing.compare(read_options(Options, words, usage=__doc__), BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
