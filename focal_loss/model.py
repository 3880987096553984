"""RetinaNet, Sec. 4 and Fig. 3 of arXiv 1708.02002: backbone, feature pyramid and two subnets.

Legend: N images, A anchors of all levels, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .net import backbone as backbones
from .net.anchors import Anchors
from .net.fpn import FPN
from .net.heads import NORMS, TOWER_INITS, Head, class_bias


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Options of `RetinaNet`; the defaults are the paper's."""

    num_classes: int  # K; there is no background class
    backbone: str = "resnet50"  # or another of `backbone.BACKBONES`
    width: int = 16  # channels of C2 of the mini backbone
    levels: Sequence[int] = (3, 7)  # first and last pyramid level
    channels: int = 256  # of the pyramid and the subnets' towers
    convs: int = 4  # of each tower
    scales: int = 3  # these and the four below: see `Anchors` (size, mode, offset there)
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    anchor_size: float = 4.0
    anchors: str = "exact"
    anchor_offset: float = 0.0
    prior: float = 0.01  # probability of an object that every logit starts with, Sec. 3.3; 0: off
    p6: str = "c5"  # what P6 is computed from, or "p5"
    backbone_norm: str = "frozen"  # this and the three below: see `ResNet`
    norm_eps: float = 1e-5
    freeze_at: int = 2
    stride_in_1x1: bool = False
    head_norm: str = "none"  # of the towers, or "gn", or "bn" (separate statistics per level)
    tower_init: str = "normal"  # N(0, 0.01) of Sec. 4.1, or "he" for towers of few channels
    softmax: bool = False  # K + 1 outputs, the background first, instead of K sigmoids
    shared_tower: bool = False  # one tower for both subnets
    class_specific_box: bool = False  # one box per class and anchor

    def __post_init__(self) -> None:
        levels = self.levels
        if self.num_classes < 1:
            raise ValueError(
                f"num_classes = {self.num_classes}: a detector needs at least one class."
            )
        if self.channels < 1 or self.convs < 0:
            raise ValueError(
                f"channels = {self.channels} must be positive, convs = {self.convs} not negative."
            )
        if len(levels) != 2 or not 2 <= levels[0] <= min(levels[1], 5):
            raise ValueError(
                f"levels = {tuple(levels)} must be (first, last): the first from 2 to 5, the last "
                "from the first to 7."
            )
        for name, choices in (("head_norm", NORMS), ("tower_init", TOWER_INITS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} = {value!r} is not one of {', '.join(choices)}.")


class RetinaNet(nn.Module):
    """Images -> class logits and box offsets of every anchor."""

    def __init__(self, options: Architecture):
        super().__init__()
        num_classes, levels = options.num_classes, options.levels
        self.num_classes = num_classes
        self.softmax = options.softmax
        self.class_specific_box = options.class_specific_box
        self.shared_tower = options.shared_tower
        self.head_norm = options.head_norm
        self.anchor_grid = Anchors(
            levels=tuple(levels),
            scales=options.scales,
            ratios=tuple(options.ratios),
            size=options.anchor_size,
            mode=options.anchors,
            offset=options.anchor_offset,
        )
        self.backbone = backbones.build(
            options.backbone,
            first=levels[0],
            last=min(levels[1], backbones.STAGES),
            norm=options.backbone_norm,
            eps=options.norm_eps,
            freeze_at=options.freeze_at,
            stride_in_1x1=options.stride_in_1x1,
            width=options.width,
        )
        self.fpn = FPN(self.backbone.channels, options.channels, levels=levels, p6=options.p6)
        cell = self.anchor_grid.per_cell
        bias = class_bias(num_classes, options.prior, options.softmax)
        boxes = 4 * num_classes if options.class_specific_box else 4
        head = partial(
            Head,
            options.channels,
            cell,
            levels=levels[1] - levels[0] + 1,
            norm=options.head_norm,
            init=options.tower_init,
        )
        self.classification = head(len(bias), bias=bias, convs=options.convs)
        self.regression = head(boxes, convs=0 if options.shared_tower else options.convs)

    def level_outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(N, 3, H, W) -> logits and offsets of each level: (N, A of the level, K) and (..., 4).

        What `forward` joins; a loss taken level by level saves the copy.
        """
        pyramid = self.fpn(self.backbone(images))
        features = self.classification.features(pyramid)
        logits = self.classification.outputs_of(features)
        if self.shared_tower:
            return logits, self.regression.outputs_of(features)
        return logits, self.regression(pyramid)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) normalised images -> class logits (N, A, K) and box offsets (N, A, 4).

        With `softmax` the logits are (N, A, 1 + K), the background first; with
        `class_specific_box` the offsets are (N, A, 4 K), those of class k at 4 k to 4 k + 3.
        """
        logits, offsets = self.level_outputs(images)
        return _join(logits), _join(offsets)

    def anchors(self, height: int, width: int) -> Tensor:  # (A, 4)
        """Anchors of images of this padded size, on the model's device; do not write to them."""
        return self.anchor_grid(height, width, self.classification.predict.weight.device)


def _join(levels: list[Tensor]) -> Tensor:
    return levels[0] if len(levels) == 1 else torch.cat(levels, dim=1)
