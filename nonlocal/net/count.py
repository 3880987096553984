"""Parameters and multiply-adds of a network, as the paper's tables count them."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..block import NonLocalBlock


@dataclass(frozen=True)
class Counts:
    """What a network costs; printing it gives millions and billions, as in Table 2e."""

    parameters: int  # those that learn: of frozen norms none
    multiply_adds: int  # of one clip, forward: convolutions and products of matrices

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.3g} M parameters, {self.multiply_adds / 1e9:.3g} G "
            "multiply-adds a clip"
        )


def count(model: nn.Module, frames: int, height: int, width: int) -> Counts:
    """Counts for a clip (1, 3, frames, height, width); nothing is computed, the model untouched.

    Blocks count with their whole matrix of weights, as in the paper, however they are computed.
    """
    parameters = sum(value.numel() for value in model.parameters())
    hollow = copy.deepcopy(model).to("meta").eval()
    for each in hollow.modules():
        if isinstance(each, NonLocalBlock):
            each.block = replace(each.block, algorithm="naive")
    # Shapes alone, but not on "meta", which knows no autocast; blocks leave it
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        hollow.to_empty(device="cpu")
        with FlopCounterMode(display=False) as counter:
            hollow(torch.empty(1, 3, frames, height, width))
    return Counts(parameters, counter.get_total_flops() // 2)
