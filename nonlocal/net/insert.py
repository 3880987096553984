"""Non-local blocks into networks that stand: torchvision's ResNets, and detectors around them.

A block becomes the child `nl` of the module that it follows, which runs it by a forward hook: the
names of all other tensors stay, so that weights of the network without blocks load as before. A
fresh block is the identity, so the network's outputs stay the same to the bit (Sec. 3.3).

Places are "res4.4", after residual block 4 (from 0) of res4; "1-block", "5-block" and "10-block",
the paper's sets (Sec. 4.1); "head.2", after convolution 2 (from 1) of a keypoint head (Sec. 5).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads

from ..block import Block, NonLocalBlock
from .resnet import BLOCKS, SETS

STAGES = {f"res{number}": f"layer{number - 1}" for number in range(2, 6)}  # ours -> torchvision's
# The paper's sets of places, by the numbers of residual blocks in res2, res3 and res4.
BY_SIZE = {BLOCKS[depth][:3]: sets for depth, sets in SETS.items()}
M = TypeVar("M", bound=nn.Module)


def insert(model: M, at: Sequence[str], block: Block | None = None) -> M:
    """Put a new block at each of these places of a model, in place; returns the model.

    model: a ResNet of torchvision, or whatever has one inside, such as a Mask or Keypoint R-CNN.
    Raises ValueError, and changes nothing, where a place is not there or has a block already.
    """
    if isinstance(at, str) or not all(isinstance(place, str) for place in at):
        raise ValueError(f'at={at!r} must be a list of places, such as ["res4.4"].')
    sizes = stage_sizes(model)
    places = [find(model, place) for place in expand(at, sizes)]
    for host, conv in places:
        nl = NonLocalBlock(conv.out_channels, block, positions=conv.weight.dim() - 2)
        host.add_module("nl", nl.to(conv.weight).train(host.training))
        host.register_forward_hook(run_block)
    return model


def run_block(host: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The forward hook: the host's own block on its output. A plain function, so that it pickles.

    Of no region the gradients are zeros, not missing: DDP would wait for them.
    """
    nl: Any = host.nl
    if len(output):
        return nl(output)
    return output + 0 * sum(each.sum() for each in nl.parameters())  # no statistics of nothing


def expand(at: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """Single places, with the paper's sets written out; sizes: residual blocks of each stage.

    Raises ValueError for a set that a network of these sizes does not have, and for repeats.
    """
    places: list[str] = []
    counts = [sizes.get(stage, 0) for stage in ("res2", "res3", "res4")]
    known = {"1-block": [f"res4.{counts[2] - 2}"]} if counts[2] > 1 else {}  # right before the last
    known |= BY_SIZE.get(tuple(counts), {})
    for place in at:
        if place.endswith("-block") and place not in known:
            raise ValueError(
                f"at={place} is not known for {'-'.join(map(str, counts))} residual blocks in "
                "res2, res3 and res4: name places such as res4.4."
            )
        places += known.get(place, [place])
    repeated = [place for number, place in enumerate(places) if place in places[:number]]
    if repeated:
        raise ValueError(f"at={','.join(at)} names {repeated[0]} twice: name each place once.")
    return places


def stage_sizes(model: nn.Module) -> dict[str, int]:
    """Residual blocks of each stage of the ResNet inside; empty where there is none."""
    trunk = find_trunk(model)
    if trunk is None:
        return {}
    stages = {name: getattr(trunk, layer, None) for name, layer in STAGES.items()}
    return {name: len(stage) for name, stage in stages.items() if isinstance(stage, nn.Sequential)}


def find_trunk(model: nn.Module) -> nn.Module | None:
    """The one module inside with stages layer1, layer2, ...; ValueError where there are several."""
    found = [
        each for each in model.modules() if isinstance(getattr(each, "layer1", None), nn.Sequential)
    ]
    if len(found) > 1:
        raise ValueError(f"the model has {len(found)} ResNets inside: hand over one of them.")
    return found[0] if found else None


def find(model: nn.Module, place: str) -> tuple[nn.Module, Any]:
    """The module that a block at this place follows, and the convolution whose channels it has.

    In a video network the convolution is a Conv3d.
    """
    part, _, number = place.partition(".")
    plain = number.isdecimal() and number == str(int(number))  # res4.04 would be a second res4.4
    if not plain or part not in (*STAGES, "head"):
        raise ValueError(
            f"at={place} is no place: give such as res4.4, 1-block, or head.2 of a keypoint head."
        )
    found = find_in_head(model, int(number)) if part == "head" else None
    sizes = stage_sizes(model)
    if part != "head" and int(number) < sizes.get(part, 0):
        host = getattr(find_trunk(model), STAGES[part])[int(number)]
        path = [each for name, each in host.named_children() if name != "downsample"]
        found = host, convolutions(*path)[-1]
    if found is None:
        ends = [f"{name}.0 to {name}.{size - 1}" for name, size in sizes.items()]
        heads = [f"head.1 to head.{count}" for count in [count_head(model)] if count]
        there = ", ".join([*ends, *heads]) or "no ResNet and no keypoint head"
        raise ValueError(f"at={place} is not in this {type(model).__name__}, which has {there}.")
    if hasattr(found[0], "nl"):
        raise ValueError(f"at={place} has a non-local block already: leave it out.")
    return found


def find_in_head(model: nn.Module, count: int) -> tuple[nn.Module, Any] | None:
    """The last child of the keypoint head before its next convolution: of torchvision, the ReLU."""
    seen: list[Any] = []
    last = None
    for child in head_children(model):
        inside = convolutions(child)
        if len(seen) + len(inside) > count:
            break
        seen, last = seen + inside, child
    return (last, seen[-1]) if last is not None and count and len(seen) == count else None


def head_children(model: nn.Module) -> list[nn.Module]:
    """The layers of the one keypoint head inside, in their order; none where there is no head."""
    names = [n for n, _ in model.named_modules() if n.split(".")[-1] == "keypoint_head"]
    if len(names) > 1:
        raise ValueError(f"the model has {len(names)} keypoint heads: hand over one detector.")
    if isinstance(model, KeypointRCNNHeads):
        return list(model.children())
    return list(model.get_submodule(names[0]).children()) if names else []


def count_head(model: nn.Module) -> int:
    """Convolutions of the keypoint head."""
    return sum(len(convolutions(child)) for child in head_children(model))


def convolutions(*modules: nn.Module) -> list[Any]:
    """All convolutions inside, of images or clips, but those of non-local blocks."""
    found: list[Any] = []
    for each in modules:
        if isinstance(each, nn.Conv2d | nn.Conv3d):
            found.append(each)
        elif not isinstance(each, NonLocalBlock):
            found += convolutions(*each.children())
    return found
