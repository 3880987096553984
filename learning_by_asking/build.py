"""The agent at its first weights: its networks, its memory, and where its questions come from."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import dist
from common.clevr.accuracy import TYPES
from common.clevr.arrays.encode import QuestionArrays
from common.clevr.functions import SPECIAL, signature
from common.clevr.vocabulary import Vocabulary
from common.data import seed_everything
from common.weights import pickles
from common.weights.formats import tensors_by_name
from learning_by_asking.agent import FIRST, LEARNED, Agent, Peek
from learning_by_asking.ask import Progress
from learning_by_asking.asking.draws import build_draw, build_generator
from learning_by_asking.asking.memory import Memory
from learning_by_asking.asking.propose import Asked
from learning_by_asking.asking.relevance import Calibrated, Known
from learning_by_asking.asking.sources import OwnQuestions, passive_order
from learning_by_asking.config import Config
from learning_by_asking.data import World
from learning_by_asking.model import Answerer, build_answerer, build_relevance, load_iep
from learning_by_asking.net.attention import StackedAttentionNet
from learning_by_asking.net.generator import ProgramLSTM
from learning_by_asking.oracle.replies import possible_answers


def build_agent(
    cfg: Config,
    world: World,
    device: torch.device,
    *,
    peek: Peek,
    generated: Callable[[], QuestionArrays],
) -> Agent:
    """The agent at its first weights.

    peek: replies at no cost, for the upper bounds relevance.kind=oracle and
    policy.score=oracle_loss. generated: makes the questions of source=generator_passive, whose
    maker sees the scenes.
    """
    seed_everything(cfg.seed)
    answerer = new_answerer(cfg.answerer, world, cfg.question_form).to(device)
    if cfg.init:
        if not isinstance(answerer, StackedAttentionNet):
            raise ValueError(f"init={cfg.init} reads maps, and data.root has images: remove init.")
        report = load_iep(answerer, read_baseline(cfg.init))
        if dist.is_main():
            print(f"{cfg.init}: {len(report.taken)} weights taken; left: {report.left or 'none'}")
    generator: ProgramLSTM | None = None
    relevance: Calibrated | Known | None = None
    draw: Any = None
    asked = Asked(world.words)
    if cfg.source == "lba":
        if cfg.generator.kind == "lstm":
            channels = world.feature_size[0]
            generator = build_generator(cfg.generator, world.words, channels).to(device)
        draw = build_draw(cfg.generator, world.init, generator)
        if cfg.relevance.kind == "oracle":
            relevance = Known(
                lambda images, rows: np.array([reply.valid for reply in peek(images, rows)])
            )
        elif cfg.relevance.kind in LEARNED:
            network = build_relevance(
                cfg.answerer,
                tokens=len(world.words.tokens),
                feature_size=world.feature_size,
                images=world.shows_images,
            )
            relevance = Calibrated(network).to(device)
    rows = generated() if cfg.source == "generator_passive" else world.pool.rows
    order = np.zeros(0, np.int64)
    if cfg.source in ("passive", "passive_images", "generator_passive"):
        by = "images" if cfg.source == "passive_images" else "pairs"
        order = passive_order(rows, cfg.budget, by=by, seed=cfg.seed)
    progress = Progress(cfg.policy, budget=cfg.budget, possible=possible_pairs(world.words))
    memory = Memory(world.init.rows, free_invalid=not cfg.oracle.cost_invalid)
    assert world.init.rows.programs is not None
    asked.add(world.init.rows.image_idxs, world.init.rows.programs)
    own = OwnQuestions(rows, asked) if cfg.source == "passive_active" else None
    score = cfg.policy.score == "oracle_loss"
    return Agent(
        cfg, world, device, answerer, generator, relevance, progress, memory, asked, draw, rows,
        order, own, peek if score else None,
    )  # fmt: skip


def new_answerer(options: Answerer, world: World, form: str) -> nn.Module:
    """An answerer at its first weights, for programs or words."""
    words = world.words
    tokens = len(words.tokens) if form == "program" else len(words.words)
    return build_answerer(
        options,
        tokens=tokens,
        answers=len(words.answers),
        feature_size=world.feature_size,
        images=world.shows_images,
        arity=arities(words.tokens) if form == "program" else None,
    )


def read_baseline(path: str) -> dict[str, Tensor]:
    """The weights of a CNN+LSTM+SA checkpoint of the public code of program_execution's paper."""
    content = pickles.read(path)
    if not isinstance(content, dict) or content.get("baseline_type") != "CNN+LSTM+SA":
        raise ValueError(f"init={path} is no checkpoint of CNN+LSTM+SA: name one of that baseline.")
    return tensors_by_name(content["baseline_state"])


def arities(tokens: Sequence[str]) -> list[int]:
    """How many values each program token takes, -1 of a special one."""
    return [-1 if token in SPECIAL else len(signature(token).inputs) for token in tokens]


def possible_pairs(words: Vocabulary) -> Tensor:
    """Which answers each type can have, bool (13, 28): others promise nothing."""
    answers = words.answers[FIRST:]
    rows = [[text in possible_answers(kind) for text in answers] for kind in TYPES]
    return torch.tensor(rows)
