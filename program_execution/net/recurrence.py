"""Training an LSTM on a CPU in about half the time of `torch.nn.LSTM`, to the same numbers.

Three things are saved. The words and tokens that go into the first layer are few, so their part of
its gates is a row of a table and needs no matrix product per step. Backward, the gradient of the
recurrent weights is one product over all steps instead of one per step. And the elementwise part
runs in place. On a GPU cuDNN is faster than any of this.

Rows are packed as by `torch.nn.utils.rnn.pack_padded_sequence`: sequences sorted by length, longest
first, and step after step one row of each sequence that still runs.

Shapes: N packed rows, H hidden units, `sizes` rows of each step. The gates are in PyTorch's order:
input, forget, new, output.
"""

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def first_gates(
    rnn: nn.LSTM, embedding: Tensor, ids: Tensor, code: Tensor | None, owners: Tensor
) -> Tensor:
    """What the inputs contribute to the first layer's gates (N, 4 H), biases included.

    An input is the vector `embedding[id]` (V, E) of one of `ids` (N,). If there is a `code` (B, C),
    one for each sequence, it stands before the vector; `owners` (N,) are the sequences of the ids.
    """
    below, _, bias, other_bias = rnn.all_weights[0]
    E = embedding.shape[1]
    gates = F.embedding(ids, F.linear(embedding, below[:, -E:], bias + other_bias))
    if code is not None:
        gates = gates + F.linear(code, below[:, :-E]).index_select(0, owners)
    return gates


def top_outputs(rnn: nn.LSTM, gates: Tensor, sizes: list[int]) -> Tensor:
    """Outputs (N, H) of the top layer, from a zero state.

    `gates` (N, 4 H) is what the inputs contribute to the gates of the first layer, biases included.
    """
    layers = rnn.all_weights  # per layer: from below, from the last step, their two biases
    outputs = _Layer.apply(gates, layers[0][1], sizes)
    for below, last, bias, other_bias in layers[1:]:
        outputs = F.dropout(outputs, rnn.dropout, rnn.training)
        gates = F.linear(outputs, below, bias + other_bias)
        outputs = _Layer.apply(gates, last, sizes)
    return outputs


class _Layer(torch.autograd.Function):
    """One layer: outputs (N, H) from `gates` (N, 4 H) and `weight` (4 H, H), the recurrent one."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        gates = gates.clone()
        N, H = len(gates), weight.shape[1]
        outputs, cells = gates.new_empty(N, H), gates.new_empty(N, H)
        onward, start, before = weight.t(), 0, 0
        for step, size in enumerate(sizes):
            rows = slice(start, start + size)
            gate, cell = gates[rows], cells[rows]
            if step > 0:
                gate.addmm_(outputs[before : before + size], onward)
            take, keep, new, show = gate.chunk(4, dim=1)
            gate[:, : 2 * H].sigmoid_()
            new.tanh_()
            show.sigmoid_()
            torch.mul(take, new, out=cell)
            if step > 0:
                cell.addcmul_(keep, cells[before : before + size])
            torch.tanh(cell, out=outputs[rows]).mul_(show)
            before, start = start, start + size
        ctx.save_for_backward(gates, weight, outputs, cells)
        ctx.sizes = sizes
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gates, weight, outputs, cells = ctx.saved_tensors
        sizes, H = ctx.sizes, weight.shape[1]
        grad = grad.clone()  # of the outputs; what flows back from later steps is added
        grad_gates = torch.empty_like(gates)
        starts = [0, *accumulate(sizes[:-1])]
        grad_cell = grad.new_zeros(sizes[0], H)  # of the cells of this step, from later ones
        for step in reversed(range(len(sizes))):
            size, rows = sizes[step], slice(starts[step], starts[step] + sizes[step])
            take, keep, new, show = gates[rows].chunk(4, dim=1)
            to_take, to_keep, to_new, to_show = grad_gates[rows].chunk(4, dim=1)
            shown, to_output, to_cell = cells[rows].tanh(), grad[rows], grad_cell[:size]
            # d/dx sigmoid = s (1 - s), d/dx tanh = 1 - t^2
            torch.mul(to_output, shown, out=to_show).mul_(show - show * show)
            to_cell.addcmul_(to_output.mul_(show), 1 - shown * shown)
            torch.mul(to_cell, new, out=to_take).mul_(take - take * take)
            torch.mul(to_cell, take, out=to_new).mul_(1 - new * new)
            if step == 0:
                to_keep.zero_()
                break
            before = slice(starts[step - 1], starts[step - 1] + size)
            torch.mul(to_cell, cells[before], out=to_keep).mul_(keep - keep * keep)
            to_cell.mul_(keep)
            grad[before].addmm_(grad_gates[rows], weight)
        # The rows of step t follow on those of step t - 1, of which the first `sizes[t]` go on.
        ranges = [torch.arange(a, a + n) for a, n in zip(starts[:-1], sizes[1:], strict=True)]
        if not ranges:
            return grad_gates, torch.zeros_like(weight), None
        return grad_gates, grad_gates[sizes[0] :].t() @ outputs[torch.cat(ranges)], None
