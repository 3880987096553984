"""Where raw proposals come from: the learned generator, the questions of the beginning, or chance.

J images, R programs of each, L tokens of a program. Types are numbers 0..12, as in
common.clevr.accuracy.TYPES.
"""

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam
from tqdm import tqdm

from common import dist
from common.clevr.accuracy import TYPES
from common.clevr.arrays.encode import QuestionArrays
from common.clevr.dataset import Questions, training_batches
from common.clevr.functions import SPECIAL, START
from common.clevr.grammar import Grammar
from common.clevr.vocabulary import Vocabulary
from common.run.log import require_finite

from ..net.generator import ProgramLSTM, sample_uniform
from .propose import Draw, Generator

_START = SPECIAL.index(START)


def build_generator(options: Generator, words: Vocabulary, channels: int) -> ProgramLSTM:
    """The network of `generator.kind=lstm`, untrained; channels: of the feature maps."""
    return ProgramLSTM(
        tokens=len(words.program),
        types=len(TYPES),
        channels=channels,
        embed=options.embed,
        hidden=options.hidden,
        condition=options.condition,
    )


def build_draw(options: Generator, initial: Questions, model: ProgramLSTM | None) -> Draw:
    """What draws raw programs; `model`, trained, is for `generator.kind=lstm` alone."""
    assert initial.rows.types is not None
    types = find_types(options, initial.rows.types)
    grammar = Grammar(initial.words.tokens, level=options.level)  # type: ignore[arg-type]  # checked
    if options.kind == "typed":
        return draw_typed(grammar)
    if options.kind == "empirical":
        return draw_empirical(initial.rows, types if "type" in options.condition else None)
    if model is None:
        raise ValueError("generator.kind=lstm needs a trained model: see `train_generator`")
    return draw_learned(model, types, options.temperature, grammar if options.mask else None)


def find_types(options: Generator, known: np.ndarray) -> Tensor:
    """The types that are drawn, int64; ValueError for one that the beginning has no example of."""
    counts = np.bincount(known[known >= 0], minlength=len(TYPES))
    wanted = [TYPES.index(name) for name in options.types] or np.flatnonzero(counts).tolist()
    for number in wanted:
        if not counts[number]:
            raise ValueError(
                f"generator.types has {TYPES[number]}, but no question of the beginning is of that "
                "type: raise data.init, or leave the type out."
            )
    return torch.tensor(wanted)


def draw_learned(
    model: ProgramLSTM, types: Tensor, temperature: float, grammar: Grammar | None
) -> Draw:
    """Programs of the learned generator, for types that are drawn uniformly from `types`."""

    def draw(images: Tensor, maps: Tensor, count: int, generator: torch.Generator) -> Tensor:
        drawn = types[torch.randint(len(types), (len(images), count), generator=generator)]
        return model.sample(
            maps, drawn.to(maps.device),
            generator=generator, temperature=temperature, grammar=grammar,
        )[0]  # fmt: skip

    return draw


def draw_empirical(rows: QuestionArrays, types: Tensor | None) -> Draw:
    """Programs of known questions, about whichever image.

    types: the type is drawn uniformly from these first, then a question of it. None: a question.
    """
    assert rows.programs is not None
    assert rows.types is not None
    programs = torch.from_numpy(rows.programs.astype(np.int64))
    known = torch.from_numpy(rows.types.astype(np.int64))
    groups = [torch.arange(len(known))]
    if types is not None:
        groups = [(known == number).nonzero()[:, 0] for number in types.tolist()]
    order = torch.cat(groups)
    sizes = torch.tensor([len(group) for group in groups])
    starts = sizes.cumsum(0) - sizes

    def draw(images: Tensor, maps: Tensor, count: int, generator: torch.Generator) -> Tensor:
        shape = (len(images), count)
        group = torch.randint(len(groups), shape, generator=generator)
        place = torch.rand(shape, generator=generator, dtype=torch.float64) * sizes[group]
        chosen = order[starts[group] + place.long()]
        return programs[chosen]

    return draw


def draw_typed(grammar: Grammar) -> Draw:
    """Random programs of the grammar: each token any of those that may come next."""

    def draw(images: Tensor, maps: Tensor, count: int, generator: torch.Generator) -> Tensor:
        programs, _ = sample_uniform(
            grammar, len(images) * count, tokens=len(grammar.tokens), generator=generator
        )
        return programs.view(len(images), count, -1)

    return draw


def train_generator(
    model: ProgramLSTM, questions: Questions, options: Generator, *, seed: int
) -> float:
    """Maximum likelihood on (image, question) pairs; the mean loss of the last tenth of the steps.

    The loss is the cross entropy of a token in nats, END included. `questions` need programs and
    types, and features if the generator sees the image. In several processes each takes its share.
    """
    device = next(model.parameters()).device
    optimizer = Adam(model.parameters(), options.lr)
    network = dist.wrap(model)
    seen = questions if model.sees_image else questions.without_features()
    batches = training_batches(
        seen, batch_size=options.batch_size, seed=seed, start=0, stop=options.steps
    )
    hidden = None if dist.is_main() else True  # None: hidden unless there is a terminal
    last = torch.zeros((), device=device)
    tail = max(1, options.steps // 10)
    bar = tqdm(batches, desc="question generator", total=options.steps, disable=hidden)
    for step, batch in enumerate(bar, 1):
        batch = batch.to(device)
        assert batch.programs is not None
        log_p = network(batch.programs, batch.types, batch.features, batch.image_of)
        count = dist.total((batch.programs > _START).sum()) / dist.world_size()
        loss = -log_p.sum() / count
        require_finite({"generator": loss}, step, batch.names)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step > options.steps - tail:
            last += loss.detach() / tail
    return float(dist.mean(last))
