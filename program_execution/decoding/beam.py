"""Programs from a program generator by beam search.

The paper decodes greedily; this is the usual search beside it. A beam's score is log p of its
program, without a correction for length, so width 1 is the greedy program.

Shapes: B questions, W beams, T steps, V tokens; Q questions are those not finished.
"""

import torch
from torch import Tensor

from ..net.seq2seq import END, NULL, START, Encoded, ProgramGenerator
from .decoder import MAX_LENGTH, Decoded, Decoder, Grammar, as_sampled, forbid, mask_next


def beam_search(
    model: ProgramGenerator,
    questions: Tensor,
    *,
    width: int = 5,
    grammar: Grammar | None = None,
    max_length: int = MAX_LENGTH,
) -> Decoded:
    """The best program that a beam search of `width` finds; width 1 is `greedy`.

    A question is finished when its best beam has ended: log p only falls, so no other can pass it.
    """
    if width < 1 or max_length < 1:
        raise ValueError(f"width = {width} and max_length = {max_length}: give 1 or more of both.")
    with torch.no_grad(), as_sampled(model, questions):
        encoded = model.encode(questions)
        B, V = len(questions), model.decoder_embed.num_embeddings
        device = questions.device
        programs = torch.full((B, max_length), NULL, device=device)
        log_probs = encoded.code.new_zeros(B, max_length)
        rows = torch.arange(B, device=device)  # questions not finished
        beams = _Front(model, encoded, grammar, V)
        step = 0
        for step in range(max_length):
            beams.extend(width)
            done = beams.ended[:, 0]
            if step == max_length - 1:
                done = torch.ones_like(done)
            if done.any():
                found = done.nonzero().squeeze(1)
                programs[rows[found], : step + 1] = beams.tokens[found, 0]
                log_probs[rows[found], : step + 1] = beams.log_probs[found, 0]
                left = (~done).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                rows = rows[left]
                beams.select(left)
    programs, log_probs = programs[:, : step + 1], log_probs[:, : step + 1]
    ends = (programs == END).long()
    return Decoded(programs, log_probs, ends.cumsum(1) - ends == 0)


class _Front:
    """The beams of Q unfinished questions; W grows from 1 to the width of the search."""

    def __init__(
        self, model: ProgramGenerator, encoded: Encoded, grammar: Grammar | None, V: int
    ) -> None:
        Q, device = len(encoded.code), encoded.code.device
        self.V = V
        self.grammar = grammar
        self.state = None if grammar is None else grammar.start(Q)  # (Q W,)
        self.decoder = Decoder(model, encoded)
        self.ids = torch.full((Q, 1), START, device=device)
        self.scores = encoded.code.new_zeros(Q, 1)
        self.ended = torch.zeros(Q, 1, dtype=torch.bool, device=device)
        self.tokens = torch.empty(Q, 1, 0, dtype=torch.long, device=device)
        self.log_probs = encoded.code.new_empty(Q, 1, 0)

    def extend(self, width: int) -> None:
        """One more token: the best `width` continuations of every question, best first."""
        Q, W = self.scores.shape
        log_p = self._log_p().view(Q, W, self.V)
        totals = (self.scores.unsqueeze(2) + log_p).flatten(1)  # (Q, W V)
        self.scores, chosen = totals.topk(min(width, W * self.V))
        parents = chosen // self.V
        empty = self.scores == -torch.inf  # fewer continuations than beams
        self.ids = (chosen % self.V).masked_fill(empty, NULL)
        self.ended = self.ended.gather(1, parents) | (self.ids == END) | empty
        rows = (W * torch.arange(Q, device=parents.device).unsqueeze(1) + parents).flatten()
        self.decoder.select(rows)
        past = [each.flatten(0, 1)[rows].view(*parents.shape, -1) for each in self._history()]
        tokens = torch.cat([past[0], self.ids.unsqueeze(2)], dim=2)
        self.tokens = tokens.masked_fill(empty.unsqueeze(2), NULL)
        self.log_probs = torch.cat([past[1], log_p.flatten(1).gather(1, chosen).unsqueeze(2)], 2)
        if self.grammar is not None and self.state is not None:
            self.state = self.state[rows.to(self.state.device)]
            running = (~self.ended).flatten().nonzero().squeeze(1)
            if len(running) > 0:
                ids, running = self.ids.flatten()[running], running.to(self.state.device)
                state = self.grammar.advance(self.state[running], ids.to(self.state.device))
                self.state[running] = state

    def select(self, questions: Tensor) -> None:
        """Go on with these questions (Q',)."""
        W = self.scores.shape[1]
        rows = (W * questions.unsqueeze(1) + torch.arange(W, device=questions.device)).flatten()
        self.decoder.select(rows)
        if self.state is not None:
            self.state = self.state[rows.to(self.state.device)]
        self.tokens, self.log_probs = (each[questions] for each in self._history())
        self.ids, self.scores = self.ids[questions], self.scores[questions]
        self.ended = self.ended[questions]

    def _history(self) -> tuple[Tensor, Tensor]:
        return self.tokens, self.log_probs

    def _log_p(self) -> Tensor:
        """Log p (Q W, V) of the next token; a beam that has ended goes on with NULL for certain."""
        logits = self.decoder(self.ids.flatten())
        ended = self.ended.flatten()
        if self.grammar is None or self.state is None:
            log_p = logits.log_softmax(1)
        else:
            running = (~ended).nonzero().squeeze(1)
            allowed = torch.ones_like(logits, dtype=torch.bool)
            state = self.state[running.to(self.state.device)]
            allowed[running] = mask_next(self.grammar, state, self.V).to(logits.device)
            log_p = forbid(logits, allowed).log_softmax(1).masked_fill(~allowed, -torch.inf)
        log_p[ended] = -torch.inf
        log_p[ended, NULL] = 0.0
        return log_p
