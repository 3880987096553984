"""The program generator z = pi(q): a question in, a program out (Sec. 3.2 of the paper).

An LSTM reads the words of the question; its top state at the last word is the code h_q. A second
LSTM writes the program in prefix order. It starts from a zero state and sees, at every step, the
code and the token before it:

    h_q   = encoder(q_1 ... q_L)                          the top layer's output at q_L = <END>
    s_t   = decoder([h_q, embed(z_{t-1})], s_{t-1})       s_0 = 0, z_0 = <START>
    p(z_t | z_{<t}, q) = softmax(W s_t + b)

Sizes, initial values (PyTorch's own) and the names in the state dict are those of the public code,
so its checkpoints load. `attention="dot"` is not in the paper: s_t then also looks at every word,
as in Luong et al., "Effective Approaches to Attention-based Neural Machine Translation" (2015).

Shapes: B questions, L words, T program tokens, H hidden units, V program tokens in the vocabulary.
Ids are integers, padded at the end with `NULL`; questions and programs hold their START and END.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .recurrence import first_gates, top_outputs

NULL, START, END, UNK = range(4)  # the first four ids of every vocabulary
ATTENTIONS = ("none", "dot")


class Encoded(NamedTuple):
    """A batch of questions as the decoder needs them."""

    code: Tensor  # (B, H), h_q
    words: Tensor  # (B, L', H), the top layer's output at every word; L' is the longest question
    mask: Tensor  # (B, L') bool, True at words


class ProgramGenerator(nn.Module):
    """The sequence-to-sequence model; the defaults are the paper's, with 2,510,008 parameters.

    Args:
        question_words: size of the question vocabulary, the four special ids included.
        program_tokens: size of the program vocabulary, the four special ids included.
        embedding: size of the vectors of words and tokens.
        hidden: units of every LSTM layer.
        layers: LSTM layers of the encoder, and of the decoder.
        attention: "none", the paper's model, or "dot", attention over the words.
        dropout: share of the units dropped between two LSTM layers in training.

    """

    def __init__(
        self,
        *,
        question_words: int = 93,
        program_tokens: int = 44,
        embedding: int = 300,
        hidden: int = 256,
        layers: int = 2,
        attention: str = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(question_words, program_tokens) <= UNK:
            raise ValueError(
                f"question_words = {question_words} and program_tokens = {program_tokens}: both "
                "vocabularies begin with the four special ids, so give 4 or more."
            )
        if min(embedding, hidden, layers) < 1:
            raise ValueError(
                f"embedding = {embedding}, hidden = {hidden}, layers = {layers}: "
                "every one must be 1 or more."
            )
        if attention not in ATTENTIONS:
            raise ValueError(f"attention is {attention!r}; choose one of {', '.join(ATTENTIONS)}.")
        if not 0 <= dropout < 1 or (dropout > 0 and layers == 1):
            raise ValueError(
                f"dropout is {dropout} with layers = {layers}; it acts between two layers and is "
                "0 or more and less than 1."
            )
        self.encoder_embed = nn.Embedding(question_words, embedding)
        self.encoder_rnn = nn.LSTM(embedding, hidden, layers, dropout=dropout, batch_first=True)
        self.decoder_embed = nn.Embedding(program_tokens, embedding)
        self.decoder_rnn = nn.LSTM(
            hidden + embedding, hidden, layers, dropout=dropout, batch_first=True
        )
        self.decoder_linear = nn.Linear(hidden, program_tokens)
        self.attention_mix = (
            nn.Linear(2 * hidden, hidden, bias=False) if attention == "dot" else None
        )

    def encode(self, questions: Tensor) -> Encoded:
        """Codes of `questions` (B, L); what stands after a question's last word has no influence.

        Raises:
            ValueError: a question is empty or holds an id outside the vocabulary (with its row).

        """
        lengths = _lengths(questions, self.encoder_embed.num_embeddings, "question")
        packed = _pack(questions.long(), lengths)
        outputs = _outputs(self.encoder_rnn, self.encoder_embed, packed)
        words, _ = pad_packed_sequence(outputs, batch_first=True)
        lengths = lengths.to(questions.device)
        places = torch.arange(words.shape[1], device=questions.device)
        code = words[torch.arange(len(words), device=questions.device), lengths - 1]
        return Encoded(code, words, places < lengths.unsqueeze(1))

    def decode(self, encoded: Encoded, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `inputs` (B, T), START first.

        `lengths` (B,), on the CPU, says how many inputs of a row count; logits after them mean
        nothing. This is teacher forcing: all steps at once, the right token fed at each.
        """
        outputs = _outputs(
            self.decoder_rnn, self.decoder_embed, _pack(inputs, lengths), encoded.code
        )
        states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=inputs.shape[1])
        return self.read(states, encoded)

    def read(self, states: Tensor, encoded: Encoded) -> Tensor:
        """Logits (B, T, V) from the decoder's top `states` (B, T, H)."""
        if self.attention_mix is not None:
            scores = states @ encoded.words.transpose(1, 2)  # (B, T, L')
            weights = scores.masked_fill(~encoded.mask.unsqueeze(1), -torch.inf).softmax(-1)
            context = weights @ encoded.words
            states = torch.tanh(self.attention_mix(torch.cat([context, states], dim=-1)))
        return self.decoder_linear(states)

    def forward(self, questions: Tensor, programs: Tensor) -> Tensor:
        """Logits (B, T - 1, V): position t scores `programs[:, t + 1]`, given all before it.

        Raises:
            ValueError: a row of `questions` (B, L) or `programs` (B, T) is empty or holds an id
                outside its vocabulary, or the two differ in B.

        """
        if programs.dim() != 2 or len(programs) != len(questions):
            raise ValueError(
                f"programs have shape {tuple(programs.shape)} beside questions "
                f"{tuple(questions.shape)}; give one row per question."
            )
        lengths = _lengths(programs, self.decoder_embed.num_embeddings, "program", least=2)
        return self.decode(self.encode(questions), programs[:, :-1].long(), lengths - 1)

    def loss(self, questions: Tensor, programs: Tensor) -> Tensor:
        """Mean cross entropy of all program tokens of the batch, END included; see `forward`."""
        return program_loss(self(questions, programs), programs)


def program_loss(logits: Tensor, programs: Tensor) -> Tensor:
    """Mean cross entropy of `logits` (B, T - 1, V) and the tokens after START of `programs` (B, T).

    Padding costs nothing and gets no gradient. Computed in float32 or better.
    """
    targets = programs[:, 1:].long()
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype).flatten(0, 1), targets.flatten(), ignore_index=NULL)


def _pack(ids: Tensor, lengths: Tensor) -> PackedSequence:
    """Ids (B, T) as packed rows: a short sequence then costs its own steps only."""
    return pack_padded_sequence(ids, lengths, batch_first=True, enforce_sorted=False)


def _outputs(
    rnn: nn.LSTM, embed: nn.Embedding, packed: PackedSequence, code: Tensor | None = None
) -> PackedSequence:
    """Top outputs (N, H) for packed ids (N,), with `code` (B, H) beside every id's vector."""
    ids, sizes, order, inverse = packed
    assert order is not None
    owners = torch.cat([order[:size] for size in sizes.tolist()])  # (N,), the row of every id
    if (
        ids.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        gates = first_gates(rnn, embed.weight, ids, code, owners)
        outputs = top_outputs(rnn, gates, sizes.tolist())
        return PackedSequence(outputs, sizes, order, inverse)
    vectors = embed(ids)
    if code is not None:
        vectors = torch.cat([code.index_select(0, owners), vectors], dim=1)
    outputs, _ = rnn(PackedSequence(vectors, sizes, order, inverse))
    return outputs


def _lengths(ids: Tensor, size: int, what: str, *, least: int = 1) -> Tensor:
    """Last non-NULL position plus one, (B,) on the CPU, `least` or more; no id beyond `size`."""
    if ids.dim() != 2 or ids.is_floating_point() or 0 in ids.shape:
        raise ValueError(
            f"{what}s have shape {tuple(ids.shape)} and type {ids.dtype}; give integer ids, one "
            "padded row each."
        )
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    lengths = (places * (ids != NULL)).amax(1)
    lowest, highest = ids.amin(1), ids.amax(1)
    # One transfer for all three, as each would wait for the GPU.
    lengths, lowest, highest = torch.stack([lengths, lowest.long(), highest.long()]).cpu()
    wrong = (lowest < 0) | (highest >= size)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        bad = int(lowest[row]) if lowest[row] < 0 else int(highest[row])
        raise ValueError(
            f"the {what} in row {row} holds the id {bad}, but the vocabulary ends at {size - 1}: "
            "it was encoded with another vocabulary."
        )
    if (lengths < least).any():
        row = int((lengths < least).nonzero()[0])
        raise ValueError(
            f"the {what} in row {row} is empty: {int(lengths[row])} of its ids are not <NULL>, and "
            f"{least} are needed."
        )
    return lengths
