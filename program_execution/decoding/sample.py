"""Programs from a program generator: greedy or sampled; by beam search see beam.py.

All run the decoder one step at a time, without gradients and without dropout, and prepare its
weights once per call: what a token contributes to the first layer's gates is a row of a table, what
the question contributes is computed once. Rows leave the batch as soon as they emit END, so a batch
costs as many steps as its programs have tokens. Where gradients are wanted, `sample` then scores
all sampled tokens in a single pass of teacher forcing, whose log p carries the graph.

A `grammar` restricts every step to the tokens that can still lead to a well-formed program; log p
is then that of the restricted distribution, from which the program was drawn.

Shapes: B questions, T steps until the last program has ended (at most `max_length`), V tokens;
R rows are those that still run.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..net.seq2seq import END, NULL, START, Encoded, ProgramGenerator
from .decoder import MAX_LENGTH, Decoded, Decoder, Grammar, as_sampled, forbid, mask_next


def greedy(
    model: ProgramGenerator,
    questions: Tensor,
    *,
    grammar: Grammar | None = None,
    max_length: int = MAX_LENGTH,
) -> Decoded:
    """The most probable token at every step, for `questions` (B, L)."""
    with torch.no_grad(), as_sampled(model, questions):
        encoded = model.encode(questions)
        path = _unroll(
            model, encoded, lambda log_p, rows, step: log_p.argmax(1), grammar, max_length
        )
    return Decoded(path.programs(), path.log_probs, path.mask)


def sample(
    model: ProgramGenerator,
    questions: Tensor,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    grammar: Grammar | None = None,
    max_length: int = MAX_LENGTH,
    keep_sampling: bool = False,
) -> Decoded:
    """Programs drawn from p(z | q), with log p and entropy that carry gradients if these are on.

    With DistributedDataParallel call this inside the `forward` of the wrapped module.

    Args:
        model: the program generator; dropout is off, as log p is that of the network sampled from.
        questions: (B, L).
        temperature: logits are divided by it, more than 0; log p is of the resulting distribution.
        generator: source of the random numbers, on the CPU or the model's device. A row's draws
            depend on the generator, B and `max_length`, not on when other rows end.
        grammar: allows only some tokens.
        max_length: steps at most, END included.
        keep_sampling: go on after END until every row has ended, as the public code does.
            `programs` and `mask` are as ever; `log_probs` and `entropy` hold the tail too.

    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give more than 0, or use `greedy`.")
    if keep_sampling and grammar is not None:
        raise ValueError("no grammar covers the steps after END: drop `keep_sampling` or it.")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; give 1 or more.")
    device = questions.device if generator is None else generator.device
    draws = torch.rand(max_length, len(questions), generator=generator, device=device)
    draws = draws.to(questions.device, torch.float64)

    def choose(log_p: Tensor, rows: Tensor, step: int) -> Tensor:
        # The first token whose cumulated probability exceeds the draw. In float64, where a draw
        # below 1 stays below the total, so that neither the end nor a token of p = 0 is chosen.
        cumulated = log_p.double().exp().cumsum(1)
        return (cumulated <= draws[step, rows].unsqueeze(1) * cumulated[:, -1:]).sum(1)

    with as_sampled(model, questions):
        encoded = model.encode(questions)
        with torch.no_grad():
            path = _unroll(
                model, encoded, choose, grammar, max_length,
                temperature=temperature, keep_sampling=keep_sampling,
            )  # fmt: skip
        if not torch.is_grad_enabled():
            return Decoded(path.programs(), path.log_probs, path.mask)
        return _score(model, encoded, path, temperature, keep_sampling)


class _Path(NamedTuple):
    """What a decoding emitted; after END whatever was drawn there, or NULL."""

    tokens: Tensor  # (B, T)
    log_probs: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool, True up to and including END
    allowed: Tensor | None  # (B, T, V) bool, with a grammar

    def programs(self) -> Tensor:
        return self.tokens.where(self.mask, NULL)


def _unroll(
    model: ProgramGenerator,
    encoded: Encoded,
    choose: Callable[[Tensor, Tensor, int], Tensor],
    grammar: Grammar | None,
    max_length: int,
    *,
    temperature: float = 1.0,
    keep_sampling: bool = False,
) -> _Path:
    """Decode until every row has ended; `choose` takes log p (R, V), the rows (R,) and the step."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; give 1 or more.")
    B, device = len(encoded.code), encoded.code.device
    V = model.decoder_embed.num_embeddings
    rows = torch.arange(B, device=device)
    ids = torch.full((B,), START, device=device)
    tokens = torch.full((B, max_length), NULL, device=device)
    log_probs = encoded.code.new_zeros(B, max_length)
    mask = torch.zeros(B, max_length, dtype=torch.bool, device=device)
    allowed = None
    if grammar is not None:
        allowed = torch.ones(B, max_length, V, dtype=torch.bool, device=device)
        state = grammar.start(B)
    running = torch.ones(B, dtype=torch.bool, device=device)  # of `rows`
    decoder, step = Decoder(model, encoded), 0
    for step in range(max_length):
        logits = decoder(ids)
        if temperature != 1:
            logits = logits / temperature
        if grammar is not None and allowed is not None:
            allowed[rows, step] = possible = mask_next(grammar, state, V).to(device)
            logits = forbid(logits, possible)
        log_p = logits.log_softmax(1)
        ids = choose(log_p, rows, step)
        tokens[rows, step] = ids
        log_probs[rows, step] = log_p.gather(1, ids.unsqueeze(1)).squeeze(1)
        mask[rows, step] = running
        running = running & (ids != END)
        alive = running.nonzero().squeeze(1)
        if len(alive) == 0:
            break
        if len(alive) < len(rows) and not keep_sampling:
            rows, ids, running = rows[alive], ids[alive], running[alive]
            decoder.select(alive)
            if grammar is not None:
                state = state[alive.to(state.device)]
        if grammar is not None:
            state = grammar.advance(state, ids.to(state.device))
    T = step + 1
    cut = None if allowed is None else allowed[:, :T]
    return _Path(tokens[:, :T], log_probs[:, :T], mask[:, :T], cut)


def _score(
    model: ProgramGenerator,
    encoded: Encoded,
    path: _Path,
    temperature: float,
    keep_sampling: bool,
) -> Decoded:
    """Log p and entropy of every step of a path, with gradients, by teacher forcing."""
    start = torch.full_like(path.tokens[:, :1], START)
    counted = torch.ones_like(path.mask) if keep_sampling else path.mask
    inputs = torch.cat([start, path.tokens[:, :-1]], dim=1)
    logits = model.decode(encoded, inputs, counted.sum(1).cpu())
    if temperature != 1:
        logits = logits / temperature
    if path.allowed is not None:
        logits = forbid(logits, path.allowed)
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(2, path.tokens.unsqueeze(2)).squeeze(2)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return Decoded(
        path.programs(),
        chosen.masked_fill(~counted, 0.0),
        path.mask,
        entropy.masked_fill(~counted, 0.0),
    )
