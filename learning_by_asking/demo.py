"""What an agent would ask about one image: proposals with relevance, score, answer and reply.

    python demo.py run=outputs/demo/TIME/asking
    python demo.py run=RUN image=17 proposals=20

RUN is the folder of a run whose agent chooses among proposals; its newest checkpoint is taken. What
it asked about the image already is not proposed again. The table has the highest score first, which
is what the agent would ask; `oracle` is what the scene graph says, where there is one. The picture
is written to proposals.png. Further words:

    image=17              row of the features; by default the run's first image
    ask="What size is the red cube?"   your own question instead, in the words of our sentences
    proposals=10          how many
    seed=0                another draw
    out=FILE.png          another place for the picture
    root=PATH, scenes=PATH   where the run's data.root and data.scenes are now
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import MISSING, OmegaConf
from torch import Tensor, nn

from common import dist, draw
from common.clevr.functions import SPECIAL
from common.config import read_options, require_range, to_dataclass
from common.config import run as run_command
from common.run import checkpoint
from common.tables.markdown import markdown
from learning_by_asking import data
from learning_by_asking.agent import Agent
from learning_by_asking.asking.propose import Proposals
from learning_by_asking.build import build_agent
from learning_by_asking.config import Config
from learning_by_asking.figures.proposals import (
    BLACK,
    GREEN,
    GREY,
    RED,
    Line,
    explain,
    find_images,
    spell,
    write_lines,
)
from learning_by_asking.language.parser import parse
from learning_by_asking.oracle.oracles import Symbolic
from learning_by_asking.oracle.replies import Reply

CHOOSES = ("lba", "passive_active")  # sources whose agent chooses among proposals
WIDTH = 520  # pixels of the text beside the image


@dataclass
class Options:
    """Words of the command."""

    run: str = MISSING
    image: int = -1
    ask: str = ""
    proposals: int = 10
    seed: int = 0
    out: str = "proposals.png"
    root: str = ""
    scenes: str = ""

    def __post_init__(self) -> None:
        require_range("image", self.image, -1)
        require_range("proposals", self.proposals, 1, 1000)
        require_range("seed", self.seed, 0, 1_000_000)


class Proposal(NamedTuple):
    """One proposal about the image."""

    question: str
    relevance: float  # nan where nothing filters
    score: float
    answer: str  # what the answerer says
    probability: float  # of that answer
    truth: str  # the oracle's reply in words
    wrong: bool  # whether the oracle does not say the same


def main() -> None:
    """Restore, propose, print, draw."""
    options: Options = read_options(Options, usage=str(__doc__), least=1)
    agent, oracle, step = restore(options)
    image = options.image if options.image >= 0 else int(agent.world.images[0])
    assert agent.world.init.features is not None
    count = len(agent.world.init.features)
    if image >= count:
        raise ValueError(f"image={image}: name one of the run's images, 0 to {count - 1}.")
    if options.ask:
        found = [answer_own(agent, oracle, image, options.ask)]
    else:
        found = propose(agent, oracle, image, step + 1 + options.seed)
    if not found:
        print(f"There is nothing new and relevant to ask about image {image}: try another image=.")
        return
    print(f"Image {image}, by the agent of round {step}\n\n{format_table(found)}")
    picture = find_images(agent.cfg, agent.world.init.features)(image)
    text = write_lines(describe(found), WIDTH)
    draw.save_png(draw.grid([picture, text], 2, titles=[f"image {image}", ""]), Path(options.out))
    print(f"\n{options.out}")


def restore(options: Options) -> tuple[Agent, Symbolic | None, int]:
    """The agent of a run's newest checkpoint, the oracle of its images, and the round.

    A run whose questions people answered may have no scenes: then there is no oracle.
    """
    folder = Path(options.run)
    found = sorted(folder.glob("checkpoint-*[0-9].pt"))
    if not found:
        inner = sorted({str(path.parent) for path in folder.glob("*/checkpoint-*[0-9].pt")})
        remedy = f"name one of {', '.join(inner)}" if inner else "train that run first"
        raise ValueError(f"run={folder} has no checkpoint: {remedy}.")
    content = checkpoint.load(found[-1])
    cfg = read_config(content["parts"]["options"], options)
    if cfg.source not in CHOOSES:
        raise ValueError(
            f"run={folder} does not choose its questions (source={cfg.source}): name a run with "
            f"source={' or '.join(CHOOSES)}."
        )
    world = data.build(cfg.data, cfg.seed, text=cfg.question_form == "text")
    oracle: Symbolic | None = None
    if cfg.data.name == "builtin" or cfg.data.scenes or cfg.oracle.kind not in ("human", "cached"):
        oracle = Symbolic(data.scenes_of(cfg.data, cfg.data.train), world.words)

    agent = build_agent(
        cfg,
        world,
        dist.device(),
        peek=lambda images, programs: oracle.ask(images, programs) if oracle else [],
        generated=lambda: data.generate_questions(cfg, world),
    )
    for name, part in agent.parts().items():
        state = content["parts"][name]
        if isinstance(part, nn.Module):
            checkpoint.load_matching(part, state)
        else:
            part.load_state_dict(state)
    agent.restore()
    return agent, oracle, int(content["meta"]["step"])


def read_config(stored: dict[str, Any], options: Options) -> Config:
    """The settings of a checkpoint, with as many proposals as are asked for."""
    settings = OmegaConf.structured(Config(data=data.Data(name="builtin")))
    for name, value in stored.items():
        if OmegaConf.select(settings, name, default=MISSING) is not MISSING:
            OmegaConf.update(settings, name, value)
    settings.data.root = options.root or settings.data.root
    settings.data.scenes = options.scenes or settings.data.scenes
    settings.output_dir = options.run
    settings.generator.kept = options.proposals
    settings.generator.raw = max(options.proposals, settings.generator.raw)
    cfg: Config = to_dataclass(settings)
    return replace(cfg, versus={})


@torch.no_grad()
def propose(agent: Agent, oracle: Symbolic | None, image: int, step: int) -> list[Proposal]:
    """New proposals about an image, the highest score first; step: says which are drawn."""
    images = np.array([image])
    proposals = agent.propose(step, images)
    probabilities = agent.answer(proposals).cpu()  # (1, P, 28)
    scores = agent.score(step, proposals, probabilities)[0]  # (P,)
    places = proposals.allowed[0].cpu().nonzero()[:, 0]
    order = places[scores[places].argsort(descending=True, stable=True)]
    programs = proposals.tokens[0].cpu()[order].numpy()
    if not len(programs):
        return []
    replies: Sequence[Reply | None] = [None] * len(programs)
    if oracle is not None:
        replies = oracle.ask(images.repeat(len(programs)), programs)
    return [
        _proposal(agent, program, proposals.relevance[0, p], scores[p], probabilities[0, p], reply)
        for p, program, reply in zip(order.tolist(), programs, replies, strict=True)
    ]


@torch.no_grad()
def answer_own(agent: Agent, oracle: Symbolic | None, image: int, text: str) -> Proposal:
    """A user's question about an image, read by the parser; ValueError for one that it cannot."""
    text = text.strip()
    tokens = parse(text[:1].upper() + text[1:])
    program = np.array([agent.world.words.encode_program(tokens)], np.int64)
    images, types = torch.tensor([image]), torch.zeros(1, 1, dtype=torch.int64)
    own = Proposals.empty(images, 1, program.shape[1], agent.device)
    own.tokens[0, 0] = torch.from_numpy(program[0]).to(agent.device)
    own.types, own.allowed = types.to(agent.device), torch.ones_like(own.allowed)
    chances = agent.answer(own)[0, 0].cpu()
    nothing = torch.tensor(torch.nan)
    reply = oracle.ask(np.array([image]), program)[0] if oracle else None
    return _proposal(agent, program[0], nothing, nothing, chances, reply)


def _proposal(
    agent: Agent,
    program: np.ndarray,
    relevance: Tensor,
    score: Tensor,
    probabilities: Tensor,
    reply: Reply | None,
) -> Proposal:
    words, best = agent.world.words, int(probabilities.argmax())
    truth = "–"
    if reply is not None:
        truth = words.decode_answer(reply.answer) if reply.valid else explain(reply.reason)
    return Proposal(
        question=spell(words.decode_program(program)),
        relevance=float(relevance),
        score=float(score),
        answer=words.decode_answer(best + len(SPECIAL)),
        probability=float(probabilities[best]),
        truth=truth,
        wrong=reply is not None and reply.answer != best + len(SPECIAL),
    )


def format_table(found: Sequence[Proposal]) -> str:
    """A Markdown table of the proposals."""
    head = ["question", "relevance", "score", "answer", "sure of it", "oracle"]
    lines = [
        [
            each.question,
            "–" if np.isnan(each.relevance) else f"{each.relevance:.2f}",
            "–" if np.isnan(each.score) else f"{each.score:.3f}",
            each.answer,
            f"{100 * each.probability:.0f} %",
            each.truth,
        ]
        for each in found
    ]
    return markdown(head, lines)


def describe(found: Sequence[Proposal]) -> list[Line]:
    """The proposals for the picture: the first is what would be asked."""
    lines = []
    for number, each in enumerate(found):
        score = "" if np.isnan(each.score) else f"{each.score:.3f}  "
        lines.append(Line(f"{score}{each.question}", GREEN if number == 0 else BLACK))
        says = f"answerer: {each.answer} ({100 * each.probability:.0f} %)"
        lines.append(Line(f"{says}, oracle: {each.truth}", RED if each.wrong else GREY))
    return lines


if __name__ == "__main__":
    run_command(main)
