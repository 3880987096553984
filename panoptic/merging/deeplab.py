"""Bottom-up panoptic maps as in Panoptic-DeepLab: centres, offsets, and a majority vote.

Cheng et al., "Panoptic-DeepLab", arXiv 1911.10194, Sec. 3.2; not in the paper, beside `merge.py`
the other way from network outputs to a panoptic map. Shapes: H x W pixels, K centres. A heat map
has its peaks at the centres of things; `offsets` (2, H, W) lead from each pixel to the centre of
its object: down, right, in pixels. Every thing pixel goes to the centre nearest to where its offset
leads, each group takes the class that most of its pixels have, stuff fills what is left.
"""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..merge import add_stuff

CHUNK = 2**24  # distances held at a time


def find_centers(
    heatmap: Tensor, *, threshold: float = 0.1, kernel: int = 7, top: int | None = 200
) -> tuple[Tensor, Tensor]:
    """Centres (K, 2) int64 as row, column, and their heat (K,), the hottest first.

    heatmap: (H, W) or (1, H, W), finite. A centre is above `threshold` and nowhere below its
    neighbours within a window of `kernel` pixels, an odd number; of equal neighbours both stay. At
    most `top` are kept.
    """
    if heatmap.dim() == 3 and len(heatmap) == 1:
        heatmap = heatmap[0]
    if heatmap.dim() != 2:
        raise ValueError(f"the heat map must be (H, W), not {tuple(heatmap.shape)}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: the window must have an odd number of pixels")
    heat = heatmap.detach().float()
    highest = F.max_pool2d(heat[None, None], kernel, stride=1, padding=kernel // 2)[0, 0]
    centers = ((heat == highest) & (heat > threshold)).nonzero()  # (K, 2)
    found = heat[centers[:, 0], centers[:, 1]]
    order = found.argsort(descending=True, stable=True)[:top]
    return centers[order], found[order]


def group_pixels(centers: Tensor, offsets: Tensor, chosen: Tensor) -> Tensor:
    """Map (H, W) int32: k + 1 where a chosen pixel belongs to centre k, 0 elsewhere.

    centers: (K, 2); offsets: (2, H, W); chosen: (H, W) bool, the thing pixels. Of centres equally
    near the first is taken.
    """
    if offsets.dim() != 3 or offsets.shape != (2, *chosen.shape):
        raise ValueError(
            f"offsets must be (2, H, W) for a map {tuple(chosen.shape)}, not {tuple(offsets.shape)}"
        )
    groups = torch.zeros(chosen.shape, dtype=torch.int32, device=chosen.device)
    if len(centers) == 0:
        return groups
    places = chosen.nonzero()  # (P, 2)
    leads = places + offsets.detach().float()[:, chosen].T  # (P, 2)
    nearest = [
        torch.cdist(part, centers.float(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        for part in leads.split(max(1, CHUNK // len(centers)))
    ]
    groups[chosen] = torch.cat(nearest).int() + 1 if nearest else groups[chosen]
    return groups


def merge_centers(
    semantic: Tensor,
    heatmap: Tensor,
    offsets: Tensor,
    *,
    things: Collection[int],
    threshold: float = 0.1,
    kernel: int = 7,
    top: int | None = 200,
    stuff_area: float = 2048,
    void: Collection[int] = (),
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Panoptic map (H, W) int32, 0 void, and its segments, numbered from 1: things, then stuff.

    semantic: (H, W) category ids, `things` those that have instances, `void` values that stand for
    nothing. The "score" of a thing is the heat of its centre. Thing pixels stay void where no
    centre was found. `stuff_area` is 2048 for Cityscapes and 4096 for COCO.
    """
    if semantic.dim() != 2 or semantic.is_floating_point():
        raise ValueError(
            f"semantic must be whole category ids (H, W), not {semantic.dtype} "
            f"{tuple(semantic.shape)}: take the argmax of logits first"
        )
    listed = torch.tensor(sorted(things), dtype=torch.int64, device=semantic.device)
    chosen = torch.isin(semantic, listed)
    centers, heat = find_centers(heatmap, threshold=threshold, kernel=kernel, top=top)
    groups = group_pixels(centers, offsets, chosen)
    place = torch.searchsorted(listed, semantic[chosen].long())  # class among the things
    votes = torch.zeros(len(centers) + 1, max(1, len(listed)), dtype=torch.int64)
    votes = votes.to(semantic.device)
    votes.index_put_((groups[chosen].long(), place), torch.ones_like(place), accumulate=True)
    segments: list[dict[str, Any]] = []
    table = torch.zeros(len(centers) + 1, dtype=torch.int32)
    for k, (row, score) in enumerate(zip(votes[1:].tolist(), heat.tolist(), strict=True), 1):
        if sum(row) == 0:
            continue  # a centre that no pixel leads to
        table[k] = len(segments) + 1
        category = int(listed[row.index(max(row))])  # of equal votes the lower id
        segment = {"id": len(segments) + 1, "category_id": category, "iscrowd": 0}
        segments.append({**segment, "area": sum(row), "score": score})
    ids = table.to(semantic.device)[groups.long()]
    skipped, first = {*things, *void}, len(segments) + 1
    ids, stuff = add_stuff(ids, semantic, stuff_area=stuff_area, things=skipped, first=first)
    return ids, segments + stuff
