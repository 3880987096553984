"""Where the modules of a program look, Fig. 4: a map for each, by the norm of its gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..engine import ExecutionEngine


class ModuleMap(NamedTuple):
    """Where a module mattered: its position in the program (-1: completed), token, map (H, W)."""

    position: int
    token: str
    map: Tensor


def module_maps(engine: ExecutionEngine, features: Tensor, program: Tensor) -> list[ModuleMap]:
    """For each module of one program the pixels its answer depends on, first run first.

    features: (1, *feature_size). program: token ids (L,). A map is the norm over channels of the
    gradient of the summed logits with respect to the module's output (Fig. 4), 0 or more.
    """
    with torch.enable_grad():
        given = features.detach().requires_grad_()
        logits, steps = engine(given, program[None], return_intermediates=True)
        outputs = [step.output for step in steps[0]]
        if not outputs:
            return []
        gradients = torch.autograd.grad(logits.sum(), outputs)
    return [
        ModuleMap(step.position, step.token, gradient[0].norm(dim=0))
        for step, gradient in zip(steps[0], gradients, strict=True)
    ]
