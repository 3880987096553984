"""ResNeXt-101 32xCd, Sec. 2, and its siblings: torchvision's networks, recomputable.

    net = ResNeXt(depths=(3, 4, 23, 3), groups=32, group_width=16, classes=1000)
    net.features(images)        # (N, 3, H, W) -> (N, 2048)

A state dict of torchvision's network of the same shape loads here strictly, and ours there.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet


class ResNeXt(resnet.ResNet):
    """torchvision's ResNet of bottlenecks whose blocks may be recomputed in the backward pass.

    depths: blocks of the four stages. groups, group_width: C of 32xCd is the group's width; 1 and
    64 give a ResNet. zero_gamma: every block starts as its shortcut.
    """

    def __init__(
        self,
        depths: Sequence[int],
        groups: int,
        group_width: int,
        *,
        classes: int,
        zero_gamma: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            resnet.Bottleneck,
            list(depths),
            classes,
            zero_init_residual=zero_gamma,
            groups=groups,
            width_per_group=group_width,
        )
        self.recompute = recompute

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> the pooled map (N, 2048)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return pool(run_stages(stages, x, recompute=self.recompute))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K)."""
        return self.fc(self.features(images))


def pool(x: Tensor) -> Tensor:
    """Mean over the map, (N, C, H, W) -> (N, C).

    The gradient keeps x's memory format, which that of `x.mean` would not.
    """
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)


def run_stages(stages: Sequence[nn.Module], x: Tensor, *, recompute: bool) -> Tensor:
    """The map behind all stages, each a sequence of blocks.

    recompute: keep the blocks' inputs alone for the backward pass, which computes the rest again.
    """
    for stage in stages:
        if not (recompute and torch.is_grad_enabled()):
            x = stage(x)
            continue
        for block in stage.children():
            if torch.compiler.is_compiling():  # has no second update of statistics to prevent
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = checkpoint(block, x, use_reentrant=False, context_fn=Contexts(block))
    return x


class Contexts:
    """What `checkpoint` enters for the first run of a block and for the second."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), kept_statistics(self.block)


@contextmanager
def kept_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms leave their running statistics as they are, which have this batch already."""
    norms = [each for each in block.modules() if isinstance(each, _BatchNorm)]
    before = [(each.momentum, each.num_batches_tracked) for each in norms]
    for each in norms:
        each.momentum, each.num_batches_tracked = 0.0, None  # a factor of 0 on this batch
    try:
        yield
    finally:
        for each, (momentum, count) in zip(norms, before, strict=True):
            each.momentum, each.num_batches_tracked = momentum, count
