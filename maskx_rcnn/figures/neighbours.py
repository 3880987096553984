"""Which classes with masks are near a class without, where T reads them and where it writes.

A classes have masks, B boxes only. Nearness is the cosine of two classes' numbers: in w_det, and in
w_seg = T(w_det). What B can borrow is what its neighbours in A have learned.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from common import files

NEAREST = 3  # of A for each class of B
NAMED = 80  # classes at most whose names are written along an axis

Spaces = Mapping[str, Tensor]  # "w_det", "w_seg" -> (K, D) of the classes, without the background


def cosines(weights: Tensor, a: Sequence[int], b: Sequence[int]) -> Tensor:
    """Cosines of the B classes with the A classes, (B, A), from numbers (K, D) of all."""
    unit = F.normalize(weights.detach().float().cpu(), dim=1)
    return unit[list(b)] @ unit[list(a)].T


def nearest(
    spaces: Spaces, names: Sequence[str], a: Sequence[int], b: Sequence[int]
) -> dict[str, Any]:
    """{space: {class of B: [[nearest class of A, cosine], ...]}}, the nearest first."""
    found: dict[str, Any] = {}
    for space, weights in spaces.items():
        values, order = cosines(weights, a, b).topk(min(NEAREST, len(a)), 1)
        found[space] = {
            names[label]: [
                [names[a[column]], round(value, 4)]
                for column, value in zip(columns, row, strict=True)
            ]
            for label, columns, row in zip(b, order.tolist(), values.tolist(), strict=True)
        }
    return found


def draw(
    path: Path, spaces: Spaces, names: Sequence[str], a: Sequence[int], b: Sequence[int]
) -> None:
    """Write a PNG of the cosines, a panel for each space, classes in the order of their labels.

    For the paintings that is the order of hues. A dot marks the nearest class of A in each line.
    """
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    wide, high = (min(12.0, max(3.0, 0.3 * len(side))) for side in (a, b))
    size = (1.8 + len(spaces) * wide, 1.2 + high)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, len(spaces), squeeze=False)[0]
    for axes, (space, weights) in zip(panels, spaces.items(), strict=True):
        table = cosines(weights, a, b)
        shades = axes.imshow(table.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.plot(table.argmax(1).numpy(), range(len(b)), "wo", markersize=5, mec="black")
        axes.set(title=f"cosine in {space}", xlabel="classes with masks (A)")
        small = 9 if max(len(a), len(b)) <= 20 else 6
        for axis, side in ((axes.xaxis, a), (axes.yaxis, b)):
            labels = [names[label] for label in side] if len(side) <= NAMED else []
            axis.set_ticks(range(len(labels)), labels, fontsize=small)
        axes.tick_params(axis="x", rotation=90)
    for axes in panels[1:]:
        axes.set_yticklabels([])
    panels[0].set_ylabel("classes with boxes only (B)")
    figure.colorbar(shades, ax=list(panels), aspect=40)
    files.write(path, lambda file: figure.savefig(file, format="png"))
