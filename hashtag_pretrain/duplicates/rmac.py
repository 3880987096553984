"""R-MAC, the descriptor by which the paper looks for duplicates.

Tolias et al., ICLR 2016: maxima of the last map over squares of several sizes, each a unit vector,
summed, a unit vector again. The squares are those of the public code of Radenovic et al.,
filipradenovic/cnnimageretrieval-pytorch.

N images, C channels, H, W height and width of the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OVERLAP = 0.4  # wanted between neighbours, a share of a square's side
LEVELS = 3

Square = tuple[int, int, int]  # top, left, side in cells of the map


def regions(height: int, width: int, levels: int = LEVELS) -> list[Square]:
    """The squares of a map: 1 + 4 + 9 of a square one, more along the longer side of another.

    Those of level l = 1..levels have the side 2 min(H, W) / (l + 1), and l of them fit the shorter
    side. The longer side has as many more, 1..6, as bring the largest squares' overlap nearest to
    40 %. Levels whose squares would have no cell are left out.
    """
    short, long = min(height, width), max(height, width)
    more = 0
    if long > short:
        # b cells between the largest squares overlap by 1 - b / short, where there are n + 1.
        more = min(range(1, 7), key=lambda n: abs(1 - (long - short) / n / short - OVERLAP))
    squares = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side:
            tops = _starts(height - side, level + (more if height > width else 0))
            lefts = _starts(width - side, level + (more if width > height else 0))
            squares += [(top, left, side) for top in tops for left in lefts]
    return squares


def _starts(room: int, count: int) -> list[int]:
    """Where `count` squares begin that share `room` cells evenly."""
    return [i * room // (count - 1) if count > 1 else 0 for i in range(count)]


def rmac(maps: Tensor, *, levels: int = LEVELS, whole: bool = False) -> Tensor:
    """Maps (N, C, H, W) -> unit descriptors, float32 (N, C).

    whole: the maximum over all of the map counts too, as in the public code.
    """
    height, width = maps.shape[-2:]
    maps = maps.float()
    tiles = [maps[..., y : y + s, x : x + s] for y, x, s in regions(height, width, levels)]
    if whole:
        tiles.append(maps)
    # Differs: no PCA whitening, which is learnt from other images; copies are near without it.
    return F.normalize(torch.stack([F.normalize(tile.amax((2, 3))) for tile in tiles]).sum(0))


@torch.inference_mode()
def describe(
    model: nn.Module, images: Tensor, *, levels: int = LEVELS, whole: bool = False
) -> Tensor:
    """R-MAC of normalised images (N, 3, H, W) by a network with torchvision's names of stages.

    The model is in the evaluation's mode. The map is that of its last stage, layer4 of a ResNet.
    """
    assert not model.training, "a descriptor is to depend on its own image alone: call eval()"
    stages = [stage for name, stage in model.named_children() if name.startswith("layer")]
    maps: list[Tensor] = []
    block = list(stages[-1].children())[-1]
    handle = block.register_forward_hook(lambda module, inputs, output: maps.append(output))
    try:
        model(images)
    finally:
        handle.remove()
    return rmac(maps[0], levels=levels, whole=whole)
