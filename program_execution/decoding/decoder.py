"""The decoder one token at a time, and what every way of decoding shares.

Shapes: B questions, T steps, V tokens, H hidden units; R rows are those that still run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..net.seq2seq import Encoded, ProgramGenerator

MAX_LENGTH = 30  # tokens, END included, as in the public code; CLEVR's longest program has 26


class Grammar(Protocol):
    """Which tokens may come next; `common.clevr.grammar.Grammar` is one.

    A state is an integer per row. Only rows that have not ended are asked about and advanced.
    """

    def start(self, batch: int) -> Tensor:
        """States (batch,) before the first token."""

    def mask(self, state: Tensor) -> Tensor:
        """(R, V) bool, True where a token may come next."""

    def advance(self, state: Tensor, ids: Tensor) -> Tensor:
        """States (R,) after the tokens `ids` (R,)."""


class Decoded(NamedTuple):
    """Programs (START is left out) and how likely each of their tokens was."""

    programs: Tensor  # (B, T) int64, NULL after END
    log_probs: Tensor  # (B, T), log p of every token; 0 after END
    mask: Tensor  # (B, T) bool, True up to and including END
    entropy: Tensor | None = None  # (B, T), of each step; from `sample` with gradients


class Decoder:
    """The decoder one step at a time, for the rows that still run."""

    def __init__(self, model: ProgramGenerator, encoded: Encoded) -> None:
        rnn = model.decoder_rnn
        H, layers = rnn.hidden_size, rnn.num_layers
        weights = rnn.all_weights  # per layer: from below, from the last step, their two biases
        self.inward = [each[0].t() for each in weights]
        self.onward = [each[1].t() for each in weights]
        self.biases = [each[2] + each[3] for each in weights]
        first = weights[0][0]  # (4 H, H + E), the code's columns come first
        self.model = model
        self.encoded = encoded
        self.tokens = F.linear(model.decoder_embed.weight, first[:, H:])  # (V, 4 H)
        self.code = F.linear(encoded.code, first[:, :H], self.biases[0])  # (R, 4 H)
        zero = encoded.code.new_zeros(layers, len(encoded.code), H)
        self.hidden, self.cell = list(zero), list(zero)  # one (R, H) per layer

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (R, V) after one more token, `ids` (R,)."""
        gates = self.code + self.tokens[ids]
        for layer, (hidden, cell) in enumerate(zip(self.hidden, self.cell, strict=True)):
            if layer > 0:
                gates = torch.addmm(self.biases[layer], self.hidden[layer - 1], self.inward[layer])
            gates.addmm_(hidden, self.onward[layer])
            take, keep, new, show = gates.chunk(4, dim=1)  # PyTorch's order of the gates
            cell = keep.sigmoid_() * cell + take.sigmoid_() * new.tanh_()
            self.cell[layer] = cell
            self.hidden[layer] = show.sigmoid_() * cell.tanh()
        return self.model.read(self.hidden[-1].unsqueeze(1), self.encoded).squeeze(1)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows (R',), which may repeat."""
        self.code = self.code[rows]
        self.hidden = [each[rows] for each in self.hidden]
        self.cell = [each[rows] for each in self.cell]
        if self.model.attention_mix is not None:
            self.encoded = Encoded(*(each[rows] for each in self.encoded))


def mask_next(grammar: Grammar, state: Tensor, V: int) -> Tensor:
    """The grammar's mask (R, V); ValueError where it does not fit, or allows a row no token."""
    allowed = grammar.mask(state)
    if allowed.shape != (len(state), V):
        raise ValueError(
            f"the grammar knows {allowed.shape[-1]} tokens, but the program generator has {V}: "
            "build it from the vocabulary the model was trained with."
        )
    if not allowed.any(1).all():
        raise ValueError("the grammar allows no token in a state that it has led to.")
    return allowed


def forbid(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits whose softmax is exactly 0 where a token is not allowed, with finite log p."""
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)


@contextmanager
def as_sampled(model: ProgramGenerator, questions: Tensor) -> Iterator[None]:
    """No dropout and no reduced precision, so that log p is that of the tokens as drawn."""
    networks = (model.encoder_rnn, model.decoder_rnn)
    shares = [network.dropout for network in networks]
    try:
        # Not .eval(): cuDNN has no backward pass for it.
        for network in networks:
            network.dropout = 0.0
        with torch.autocast(questions.device.type, enabled=False):
            yield
    finally:
        for network, share in zip(networks, shares, strict=True):
            network.dropout = share
