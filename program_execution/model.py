"""The networks of a run: program generator and execution engine (Fig. 2), or a baseline.

    question --generator--> program --engine, on the image's features--> answer

I images, B questions, L words or program tokens, A answers. Parts that a stage does not need are
None; in the state dict a part's name stands in front, `engine.stem.0.weight`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoding.beam import beam_search
from .decoding.decoder import Grammar
from .decoding.sample import greedy
from .engine import ExecutionEngine
from .net.baselines import CnnLstm, CnnLstmSA, Lstm, QTypeMode
from .net.options import NetworkOptions
from .net.seq2seq import ProgramGenerator

PARTS = ("generator", "engine", "baseline", "pixels")
TYPES = 13  # kinds of questions, by the function at a program's root


class BaselineInputs(Protocol):
    """What a baseline looks at: (B, L), (B,), (I, C, H, W), image of each question (B,)."""

    questions: Tensor
    types: Tensor
    features: Tensor | None
    image_of: Tensor


class Pixels(nn.Module):
    """Built-in images (I, 3, H, W), 0..1, to features (I, dim, H / 8, W / 8), learned.

    # Differs: the paper's features are those of a network that was trained on ImageNet, Sec. 3.3.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, dim, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        return self.convolutions(2 * images - 1)


class Modes(nn.Module):
    """`QTypeMode` as a part: the answer of each type of question, in the state dict."""

    modes: Tensor

    def __init__(self, mode: QTypeMode, types: int, answers: int) -> None:
        super().__init__()
        self.answers = answers
        self.register_buffer("modes", mode(torch.arange(-1, types)))  # (types + 1,), unknown first

    def forward(self, types: Tensor) -> Tensor:
        """Types (B,) -> 1 for the answer, 0 for the others, (B, A)."""
        return F.one_hot(self.modes[types + 1], self.answers).float()


class Network(nn.Module):
    """The parts that a stage needs, and how they work together."""

    def __init__(
        self,
        *,
        generator: ProgramGenerator | None = None,
        engine: ExecutionEngine | None = None,
        baseline: nn.Module | None = None,
        pixels: Pixels | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.engine = generator, engine
        self.baseline, self.pixels = baseline, pixels

    def parts(self) -> dict[str, nn.Module]:
        """The parts that are there, by name."""
        return {name: part for name, part in self.named_children() if name in PARTS}

    def side(self, name: str) -> list[nn.Module]:
        """What "pg" or "ee" trains: the generator, or the engine with the convolutions in front."""
        chosen = (self.generator,) if name == "pg" else (self.engine, self.pixels)
        return [part for part in chosen if part is not None]

    def question_part(self) -> list[nn.Module]:
        """The question encoder of a baseline, all that people's questions change."""
        return [self.baseline.rnn] if isinstance(self.baseline, Lstm | CnnLstm | CnnLstmSA) else []

    def see(self, features: Tensor) -> Tensor:
        """Features as the engine or the baseline takes them."""
        return features if self.pixels is None else self.pixels(features)

    def run(self, programs: Tensor, features: Tensor | None, image_of: Tensor) -> Tensor:
        """Logits (B, A) of the engine for programs (B, L) on their images."""
        assert self.engine is not None
        assert features is not None
        return self.engine(self.see(features), programs, image_of=image_of).float()

    def write(self, questions: Tensor, *, beam: int = 1, grammar: Grammar | None = None) -> Tensor:
        """The generator's programs (B, T) for questions (B, L), greedy or by beam search."""
        assert self.generator is not None
        if beam > 1:
            return beam_search(self.generator, questions, width=beam, grammar=grammar).programs
        return greedy(self.generator, questions, grammar=grammar).programs

    def guess(self, inputs: BaselineInputs) -> Tensor:
        """Logits (B, A) of the baseline."""
        match self.baseline:
            case Modes():
                return self.baseline(inputs.types)
            case Lstm():
                return self.baseline(inputs.questions).float()
        assert self.baseline is not None
        assert inputs.features is not None
        seen = self.see(inputs.features)
        return self.baseline(inputs.questions, seen, inputs.image_of).float()


def build(
    options: NetworkOptions,
    *,
    words: int,
    tokens: Sequence[str],
    answers: int,
    feature_size: tuple[int, int, int],
    writes: bool,
    runs: bool,
    pixels: bool = False,
    mode: QTypeMode | None = None,
) -> Network:
    """The network of a stage.

    words: size of the question vocabulary, tokens: the program vocabulary in its order, answers:
    size of that of answers. feature_size: (C, H, W) of the data. writes, runs: whether there is a
    program generator and an execution engine. pixels: the features are images. mode: the counted
    answers, for name="qtype_mode".
    """
    runs = runs and options.engine == "neural"
    sees = runs or options.name.startswith("cnn")
    front = Pixels(options.pixel_dim) if pixels and sees else None
    if front is not None:
        with torch.no_grad():
            seen = front(torch.zeros(1, *feature_size)).shape
        feature_size = (seen[1], seen[2], seen[3])
    if options.name != "iep":
        baseline = build_baseline(options, words, answers, feature_size, mode)
        return Network(baseline=baseline, pixels=front)
    generator = engine = None
    if writes:
        generator = ProgramGenerator(
            question_words=words,
            program_tokens=len(tokens),
            embedding=options.embedding,
            hidden=options.hidden,
            layers=options.layers,
            attention=options.attention,
            dropout=options.dropout,
        )
    if runs:
        engine = ExecutionEngine(
            tokens=tokens, answers=answers, feature_size=feature_size, options=options
        )
    return Network(generator=generator, engine=engine, pixels=front)


def build_baseline(
    options: NetworkOptions,
    words: int,
    answers: int,
    feature_size: tuple[int, int, int],
    mode: QTypeMode | None,
) -> nn.Module:
    """The network of `options.name`, one of the baselines of Sec. 4; see `build`."""
    sizes: dict[str, Any] = {"question_words": words, "answers": answers, "encoder": options}
    match options.name:
        case "qtype_mode":
            assert mode is not None
            return Modes(mode, TYPES, answers)
        case "lstm":
            return Lstm(**sizes, fc=options.baseline_fc)
        case "cnn_lstm":
            return CnnLstm(
                **sizes,
                feature_size=feature_size,
                cnn_proj=options.cnn_dim,
                fc=options.baseline_fc,
            )
    fc = options.baseline_fc if options.name == "cnn_lstm_sa_mlp" else ()
    return CnnLstmSA(**sizes, feature_size=feature_size, attention=options.attention_dim, fc=fc)
