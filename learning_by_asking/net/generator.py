"""The generator g(q | I, type): an LSTM that composes programs, as a caption model does words.

Its first state comes from the image, averaged over all positions on purpose: the generator supplies
variety, and whether a question fits the image is for the relevance model to say. Its first input is
a token for the type of question, then START.

I images, R programs of each, N = I R; L tokens of a program from START on; V tokens in the
vocabulary, K types. Programs are int64 in prefix order: START, tokens, END, NULL up to the end.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

NULL, START, END, UNK = range(4)
LENGTH = 27  # START, the 25 functions of CLEVR's longest program, END
ROWS, ROWS_CPU = 65_536, 2048  # programs that are decoded at a time; a CPU's cache is small
CONDITIONS = ("image_type", "image", "type", "none")
State = tuple[Tensor, ...]  # of n programs, each (n, ...)


class Grammar(Protocol):
    """Which tokens may come next; `common.clevr.grammar.Grammar` is one."""

    def start(self, batch: int, *, device: Any = None) -> Tensor:
        """States (n,) of empty programs."""

    def mask(self, state: Tensor) -> Tensor:
        """Whether each token may come next, bool (n, V)."""

    def advance(self, state: Tensor, ids: Tensor) -> Tensor:
        """States (n,) after the tokens `ids` (n,)."""


class ProgramLSTM(nn.Module):
    """p(program | image, type); `condition` says which of the two it is told.

    channels: of the feature maps.
    """

    def __init__(
        self,
        *,
        tokens: int,
        types: int,
        channels: int,
        embed: int = 300,
        hidden: int = 512,
        condition: str = "image_type",
    ) -> None:
        super().__init__()
        if condition not in CONDITIONS:
            raise ValueError(f"condition is {condition!r}: choose {', '.join(CONDITIONS)}")
        self.tokens, self.hidden = tokens, hidden
        self.sees_image, self.told_type = "image" in condition, "type" in condition
        self.embed = nn.Embedding(tokens + (types if self.told_type else 0), embed)
        self.image = nn.Linear(channels, hidden) if self.sees_image else None
        self.rnn = nn.LSTM(embed, hidden, batch_first=True)
        self.head = nn.Linear(hidden, tokens)

    def log_likelihood(
        self,
        programs: Tensor,
        types: Tensor,
        features: Tensor | None,
        image_of: Tensor | None = None,
    ) -> Tensor:
        """Log-likelihood (B,) of programs (B, L), END included: the sum over their tokens.

        types: int64 (B,), 0..K-1. features: (I, C, H, W), may be None where the image is not seen.
        image_of: int64 (B,), the image of each program; None: I = B, in this order.
        """
        first = self._start(types, features, image_of)
        state = tuple(part[None] for part in first)
        out, _ = self.rnn(self.embed(programs[:, :-1]), state)  # (B, L - 1, hidden)
        targets = programs[:, 1:]
        log_p = _without_special(self.head(out)).log_softmax(-1)
        chosen = log_p.gather(2, targets[..., None])[..., 0]
        return chosen.masked_fill(targets == NULL, 0).sum(1)

    forward = log_likelihood  # what DistributedDataParallel calls

    @torch.no_grad()
    def sample(
        self,
        features: Tensor | None,
        types: Tensor,
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        grammar: Grammar | None = None,
        length: int = LENGTH,
    ) -> tuple[Tensor, Tensor]:
        """Programs (I, R, length) int64 for types (I, R), and their log p (I, R) float64.

        features: (I, C, H, W). log p is that of the distribution that was drawn from, with its
        temperature and grammar. See `decode`.
        """
        image_of = torch.arange(len(types), device=types.device).repeat_interleave(types.shape[1])
        state = self._start(types.flatten(), features, image_of)

        def step(ids: Tensor, state: State) -> tuple[Tensor, State]:
            out, (h, c) = self.rnn(self.embed(ids)[:, None], tuple(part[None] for part in state))
            return _without_special(self.head(out[:, 0])), (h[0], c[0])

        draws = torch.rand(types.numel(), length, generator=generator, dtype=torch.float64)
        rows = ROWS_CPU if types.device.type == "cpu" else ROWS
        parts = [
            decode(
                step,
                tuple(part[some] for part in state),
                draws[some].to(types.device),
                temperature=temperature,
                grammar=grammar,
            )
            for some in torch.arange(len(draws)).split(rows)
        ]
        programs, log_p = (torch.cat(each) for each in zip(*parts, strict=True))
        return programs.view(*types.shape, length), log_p.view(types.shape)

    def _start(self, types: Tensor, features: Tensor | None, image_of: Tensor | None) -> State:
        """States (N, hidden) before START: h_0 = tanh(W mean(F) + b), c_0 = 0, then the type."""
        h = self.head.weight.new_zeros(len(types), self.hidden)
        if self.image is not None:
            if features is None:
                raise ValueError("this generator sees the image: give the features")
            h = torch.tanh(self.image(features.mean((2, 3))))  # (I, hidden)
            h = h if image_of is None else h[image_of]
        c = torch.zeros_like(h)
        if not self.told_type:
            return h, c
        token = self.embed(self.tokens + types)[:, None]  # (N, 1, embed)
        _, (h, c) = self.rnn(token, (h[None], c[None]))
        return h[0], c[0]


def _without_special(logits: Tensor) -> Tensor:
    """Logits (..., V) of what may be said at all: functions and END."""
    never = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    never[[NULL, START, UNK]] = True
    return logits.masked_fill(never, -torch.inf)


def decode(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    draws: Tensor,
    *,
    temperature: float = 1.0,
    grammar: Grammar | None = None,
) -> tuple[Tensor, Tensor]:
    """Programs (N, L) drawn token by token, and log p (N,) float64 of each.

    step: the last tokens (n,) and the state -> logits (n, V) and the next state. draws: float64
    (N, L), uniform in 0..1, one for each token, so that a row does not depend on the others.
    grammar: only what it allows is drawn, the other probabilities keep their proportions. A row
    leaves the batch at its END; one that has none within L tokens stays without.
    """
    rows, length = draws.shape
    device = draws.device
    programs = torch.full((rows, length), NULL, device=device)
    programs[:, 0] = START
    log_p = torch.zeros(rows, device=device, dtype=torch.float64)
    running, ids = torch.arange(rows, device=device), programs[:, 0]
    place: Any = None if grammar is None else grammar.start(rows, device=device)
    for column in range(1, length):
        logits, state = step(ids, state)
        if grammar is not None:
            logits = logits.masked_fill(~grammar.mask(place), -torch.inf)
        log_each = (logits / temperature).log_softmax(1)
        # The first token whose cumulated probability exceeds the draw: never one of p = 0.
        cumulated = log_each.double().exp().cumsum(1)
        ids = (cumulated <= draws[running, column, None] * cumulated[:, -1:]).sum(1)
        programs[running, column] = ids
        log_p[running] += log_each.gather(1, ids[:, None])[:, 0].double()
        if grammar is not None:
            place = grammar.advance(place, ids)
        going = (ids != END).nonzero()[:, 0]
        if len(going) < len(ids):
            running, ids = running[going], ids[going]
            state = tuple(part[going] for part in state)
            place = None if place is None else place[going]
        if not len(going):
            break
    return programs, log_p


def sample_uniform(
    grammar: Grammar, rows: int, *, tokens: int, generator: torch.Generator, length: int = LENGTH
) -> tuple[Tensor, Tensor]:
    """Programs (N, length) whose every token is any that `grammar` allows, and log p (N,)."""
    draws = torch.rand(rows, length, generator=generator, dtype=torch.float64)

    def step(ids: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.zeros(len(ids), tokens), state

    return decode(step, (), draws, grammar=grammar)
