"""RetinaNet, Sec. 4 and Fig. 3 of arXiv 1708.02002: backbone, feature pyramid and two subnets.

Legend: N images, A anchors of all levels, K classes.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .net import backbone as backbones
from .net.anchors import Anchors
from .net.fpn import FPN
from .net.heads import NORMS, TOWER_INITS, Head, class_bias


class RetinaNet(nn.Module):
    """Images -> class logits and box offsets of every anchor; the defaults are the paper's.

    num_classes: K; there is no background class.
    backbone: resnet18, 34, 50, 101, 152, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, mini.
    width: channels of C2 of the mini backbone.
    levels: first and last pyramid level, (3, 7) in the paper.
    channels, convs: of the pyramid and of each subnet's tower.
    scales, ratios, anchor_size, anchors, anchor_offset: see `Anchors` (size, mode, offset there).
    prior: probability pi of an object that every class logit starts with, Sec. 3.3; 0 is off.
    p6: what P6 is computed from, "c5" or "p5".
    backbone_norm, norm_eps, freeze_at, stride_in_1x1: see `ResNet`.
    head_norm: of the towers: "none", "gn" or "bn" (separate statistics per level).
    tower_init: "normal", N(0, 0.01) of Sec. 4.1, or "he" for towers of few channels.
    softmax: K + 1 outputs, the background first, instead of K sigmoids.
    shared_tower: one tower for both subnets.
    class_specific_box: one box per class and anchor.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet50",
        width: int = 16,
        levels: Sequence[int] = (3, 7),
        channels: int = 256,
        convs: int = 4,
        scales: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchor_size: float = 4.0,
        anchors: str = "exact",
        anchor_offset: float = 0.0,
        prior: float = 0.01,
        p6: str = "c5",
        backbone_norm: str = "frozen",
        norm_eps: float = 1e-5,
        freeze_at: int = 2,
        stride_in_1x1: bool = False,
        head_norm: str = "none",
        tower_init: str = "normal",
        softmax: bool = False,
        shared_tower: bool = False,
        class_specific_box: bool = False,
    ):
        super().__init__()
        _check(num_classes, channels, convs, levels, head_norm, tower_init)
        self.num_classes = num_classes
        self.softmax = softmax
        self.class_specific_box = class_specific_box
        self.shared_tower = shared_tower
        self.head_norm = head_norm
        self.anchor_grid = Anchors(
            levels=tuple(levels),
            scales=scales,
            ratios=tuple(ratios),
            size=anchor_size,
            mode=anchors,
            offset=anchor_offset,
        )
        self.backbone = backbones.build(
            backbone,
            first=levels[0],
            last=min(levels[1], backbones.STAGES),
            norm=backbone_norm,
            eps=norm_eps,
            freeze_at=freeze_at,
            stride_in_1x1=stride_in_1x1,
            width=width,
        )
        self.fpn = FPN(self.backbone.channels, channels, levels=levels, p6=p6)
        count = levels[1] - levels[0] + 1
        head = partial(Head, levels=count, norm=head_norm, init=tower_init)
        cell = self.anchor_grid.per_cell
        bias = class_bias(num_classes, prior, softmax)
        boxes = 4 * num_classes if class_specific_box else 4
        self.classification = head(channels, cell, len(bias), bias=bias, convs=convs)
        self.regression = head(channels, cell, boxes, convs=0 if shared_tower else convs)

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


def _check(
    num_classes: int,
    channels: int,
    convs: int,
    levels: Sequence[int],
    head_norm: str,
    tower_init: str,
) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: a detector needs at least one class.")
    if channels < 1 or convs < 0:
        raise ValueError(f"channels = {channels} must be positive, convs = {convs} not negative.")
    if len(levels) != 2 or not 2 <= levels[0] <= min(levels[1], 5):
        raise ValueError(
            f"levels = {tuple(levels)} must be (first, last): the first from 2 to 5, the last from "
            "the first to 7."
        )
    if head_norm not in NORMS:
        raise ValueError(f"head_norm = {head_norm!r} is not one of {', '.join(NORMS)}.")
    if tower_init not in TOWER_INITS:
        raise ValueError(f"tower_init = {tower_init!r} is not one of {', '.join(TOWER_INITS)}.")
