"""What a position of a clip attends to in a block of a network: the input of the pictures."""

from typing import Any

import torch
from torch import Tensor, nn

from ..block import NonLocalBlock
from .attention import Attention, Place, cell_of, middle_of, size_of

Query = tuple[int, int, int]  # frame, row and column of a map


def blocks_of(model: nn.Module) -> dict[str, NonLocalBlock]:
    """The non-local blocks of a network by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, NonLocalBlock)}


@torch.no_grad()
def look(
    model: nn.Module,
    block: NonLocalBlock,
    clip: Tensor,
    *,
    at: Place | None = None,
    title: str = "",
) -> Attention:
    """What a block of `model` attends to in one clip uint8 (3, T, H, W).

    at: the place to look from; None: where the block changes the features most.
    """
    seen: dict[str, Tensor] = {}

    def keep(_: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.update(x=inputs[0], change=(output - inputs[0]).norm(dim=1)[0])

    handle, training = block.register_forward_hook(keep), model.training
    try:
        model.eval()(clip[None])
    finally:
        handle.remove()
        model.train(training)
    length, cells = size_of(clip[0]), size_of(seen["change"])
    number = int(seen["change"].argmax()) if at is None else cell_of(at, length, cells)
    query = (number // (cells[1] * cells[2]), number // cells[2] % cells[1], number % cells[2])
    weights = key_weights(block, seen["x"], query)
    place = middle_of(number, length, cells) if at is None else at
    return Attention(clip.cpu(), weights.cpu(), place, title)


def key_weights(block: NonLocalBlock, x: Tensor, query: Query) -> Tensor:
    """The weights (T, H', W') of all keys for one query of a map x (1, C, T, H, W).

    0 for the keys that `over` or `group` keeps apart from it; H', W' are those of the pooled map.
    """
    t, row, column = query
    _, _, frames, height, width = x.shape
    weights, options = block.attention(x), block.block
    if options.over == "time":
        whole = x.new_zeros(frames, height, width)
        whole[:, row, column] = weights[row * width + column, t]
        return whole
    group = 1 if options.over == "space" else min(options.group or frames, frames)
    # An axis of one position is not pooled
    shape = (max(1, height // 2), max(1, width // 2)) if options.pool else (height, width)
    part, place = t // group, ((t % group) * height + row) * width + column
    whole = x.new_zeros(frames, *shape)
    whole[part * group : (part + 1) * group] = weights[part, place].view(-1, *shape)
    return whole
