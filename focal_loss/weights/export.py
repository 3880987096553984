"""Our RetinaNet under the names of torchvision's."""

import re
from dataclasses import replace

from ..model import RetinaNet
from .formats import TORCHVISION_HEADS, State, permute_channels


def torchvision_state(model: RetinaNet) -> State:
    """The model's tensors under torchvision's names, anchors in torchvision's order.

    Loads into `torchvision.models.detection.RetinaNet` with the same backbone, pyramid and heads.
    Boxes agree to the pixel only if the model's own anchors are "torchvision".
    """
    if not model.backbone.name.startswith("res") or model.shared_tower or model.softmax:
        raise ValueError(
            "torchvision's RetinaNet has a ResNet, two towers and sigmoids: a mini backbone, "
            "shared_tower and softmax cannot be exported."
        )
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    grid = model.anchor_grid
    theirs = replace(grid, mode="torchvision", offset=0.0, ratios=tuple(sorted(grid.ratios)))
    order = [grid.order.index(anchor) for anchor in theirs.order]
    for head in ("classification", "regression"):
        for kind in ("weight", "bias"):
            name = f"{head}.predict.{kind}"
            state[name] = permute_channels(state[name], order)
    return torchvision_names(state)


def torchvision_names(state: State) -> State:
    """Our names -> those of torchvision's RetinaNet of today."""
    parts = [
        (r"backbone\.(.*)", r"backbone.body.\1"),
        (r"fpn\.lateral\.(\d)\.(.*)", r"backbone.fpn.inner_blocks.\1.0.\2"),
        (r"fpn\.output\.(\d)\.(.*)", r"backbone.fpn.layer_blocks.\1.0.\2"),
        (r"fpn\.(p[67]\..*)", r"backbone.fpn.extra_blocks.\1"),
    ]
    for ours, head, last in TORCHVISION_HEADS:
        parts += [
            (rf"{ours}\.predict\.(.*)", rf"head.{head}.{last}.\1"),
            (rf"{ours}\.tower\.(\d)\.conv\.(.*)", rf"head.{head}.conv.\1.0.\2"),
            (rf"{ours}\.tower\.(\d)\.norm\.(.*)", rf"head.{head}.conv.\1.1.\2"),
        ]
    renamed = {}
    for name, value in state.items():
        match = next(found for p, new in parts if (found := re.fullmatch(p, name) and (p, new)))
        renamed[re.sub(*match, name)] = value
    return renamed
