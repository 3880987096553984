"""Three ways to run the modules of a batch; their results and gradients are the same.

I images, B programs, C channels, H x W pixels, T tokens in use.

`run_per_sample` is what the paper describes, read off the public code's behaviour: every program by
recursion, a module on one map at a time. It is the reference. `run_fused` runs the groups of a
schedule instead, each in one call (fused.py). `run_by_module` runs the same groups through the
modules themselves, for those with batch normalisation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .fused import Call, Fused, Weights
from .schedule import NULL, Language, Schedule

# On a CPU a call of oneDNN costs as much as some ten million multiplications beside its work:
# smaller groups take the product with neighbourhoods.
SMALL = 3e7


class ModuleOutput(NamedTuple):
    """One module that ran: position in the program (-1: completed), token, output (1, C, H, W)."""

    position: int
    token: str
    output: Tensor


def run_per_sample(
    modules: Mapping[str, nn.Module],
    language: Language,
    maps: Tensor,
    rows: Sequence[Sequence[int]],
    image_of: Sequence[int],
) -> tuple[Tensor, list[list[ModuleOutput]]]:
    """Outputs of the root modules (B, C, H, W) and every step of every program, first run first.

    maps: (I, C, H, W), the stem's output. rows, image_of: token ids and image of each program.
    """
    outputs, steps = [], []
    for row, image in zip(rows, image_of, strict=True):
        ran: list[ModuleOutput] = []
        output, _ = _run(modules, language, maps[image : image + 1], row, 0, ran)
        outputs.append(output)
        steps.append(ran)
    if not outputs:
        return maps[:0], steps
    return torch.cat(outputs), steps


def _run(
    modules: Mapping[str, nn.Module],
    language: Language,
    image: Tensor,
    row: Sequence[int],
    position: int,
    ran: list[ModuleOutput],
) -> tuple[Tensor, int]:
    """Output (1, C, H, W) of the tree that starts at `position`, and the position behind it."""
    while position < len(row) and row[position] == language.start:
        position += 1
    here = position if position < len(row) else -1
    token = row[position] if here >= 0 else language.scene
    if language.tokens[token] == NULL:
        token = language.scene
    position += 1
    inputs = [] if language.arities[token] else [image]
    while len(inputs) < language.arities[token]:
        result, position = _run(modules, language, image, row, position, ran)
        inputs.append(result)
    name = language.tokens[token]
    output = modules[name](*inputs)
    ran.append(ModuleOutput(here, name, output))
    return output, position


def run_by_module(
    modules: Mapping[str, nn.Module], language: Language, maps: Tensor, schedule: Schedule
) -> Tensor:
    """Outputs of the root modules (executed, C, H, W): each group in one call of its module."""
    pool: list[Tensor] = []
    for group in schedule.groups:
        if group.arity:
            inputs = [torch.stack([pool[i] for i in rows.tolist()]) for rows in group.inputs]
        else:
            inputs = [maps.index_select(0, group.inputs[0])]
        pool += modules[language.tokens[group.tokens[0]]](*inputs).unbind()
    if not pool:
        return maps[:0]
    return torch.stack([pool[i] for i in schedule.roots.tolist()])


def run_fused(
    modules: Mapping[str, nn.Module], language: Language, maps: Tensor, schedule: Schedule
) -> Tensor:
    """Outputs of the root modules (executed, C, H, W), one call for every group of the schedule.

    A group of one token takes its weights, a mixed one a weight for each of its nodes.
    """
    used = sorted({token for group in schedule.groups for token in group.tokens})
    if not used:
        return maps[:0]
    weights, slots, binary_slots = _stack_weights(modules, language, maps, used)
    work = maps[0].numel() * 9 * maps.shape[1]  # multiplications a map
    calls = []
    for group in schedule.groups:
        single = len(set(group.tokens)) == 1
        place: list[int | Tensor] = []
        for numbers in (slots, binary_slots) if group.arity == 2 else (slots,):
            each = [numbers[token] for token in group.tokens]
            place.append(each[0] if single else torch.tensor(each, device=maps.device))
        few = maps.device.type == "cpu" and work * len(group.tokens) < SMALL
        calls.append(Call(group, place[0], place[-1], few or not single))
    nhwc = maps.permute(0, 2, 3, 1).to(weights.first.dtype)
    output = Fused.apply(nhwc, schedule, calls, *weights)
    return output.permute(0, 3, 1, 2)


def _stack_weights(
    modules: Mapping[str, nn.Module], language: Language, maps: Tensor, used: list[int]
) -> tuple[Weights, dict[int, int], dict[int, int]]:
    """Weights of the tokens in use, and the place of each token in them and in `proj`.

    Tokens that no program has are left out, so their parameters get no gradient at all, as when
    they are not called: Adam leaves them alone.
    """
    binary = [token for token in used if language.arities[token] == 2]
    blocks: list[Any] = []
    projections: list[Any] = []
    for token in used:
        module: Any = modules[language.tokens[token]]
        blocks.append(module.res_block if language.arities[token] == 2 else module)
        if language.arities[token] == 2:
            projections.append(module.proj)
    dtype = maps.dtype
    kind = maps.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).to(dtype)

    empty = maps.new_zeros(0, dtype=dtype)
    weights = Weights(
        stack([block.conv1.weight for block in blocks]).permute(0, 1, 3, 4, 2).contiguous(),
        stack([block.conv1.bias for block in blocks]),
        stack([block.conv2.weight for block in blocks]).permute(0, 1, 3, 4, 2).contiguous(),
        stack([block.conv2.bias for block in blocks]),
        stack([proj.weight.flatten(1) for proj in projections]) if binary else empty,
        stack([proj.bias for proj in projections]) if binary else empty,
    )
    return weights, {t: i for i, t in enumerate(used)}, {t: i for i, t in enumerate(binary)}
