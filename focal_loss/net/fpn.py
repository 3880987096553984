"""Feature pyramid of RetinaNet: Sec. 4 and its footnote on P6 and P7.

Legend: N images, C channels, Cl and Pl the backbone's and the pyramid's map of stride 2**l.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

TOP = 7  # the paper's coarsest level


class FPN(nn.Module):
    """Backbone maps [C_first, ...] -> pyramid [P_first, ..., P_last], each (N, channels, ...).

    inputs: channels of C_first to C_min(last, 5).
    levels: (first, last) pyramid level; 3 to 7 in the paper. P6 and P7 are stride-2 convolutions.
    p6: what P6 is computed from: "c5" as in the paper, or "p5" as in torchvision's first RetinaNet.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int = 256,
        *,
        levels: Sequence[int] = (3, 7),
        p6: str = "c5",
    ):
        super().__init__()
        first, last = levels
        if p6 not in ("c5", "p5"):
            raise ValueError(f'p6 = {p6!r} must be "c5" or "p5".')
        if last > TOP:
            raise ValueError(f"levels = {tuple(levels)} must end at P{TOP} or before.")
        assert len(inputs) == min(last, 5) - first + 1, (inputs, levels)
        self.p6_from = p6
        self.last = last
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)
        if last >= 6:
            top = inputs[-1] if p6 == "c5" else channels
            self.p6 = nn.Conv2d(top, channels, 3, stride=2, padding=1)
        if last >= 7:
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # the "XavierFill" of Caffe2
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[C_first, ...] -> [P_first, ..., P_last]; no norm, no activation after a convolution."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            above = F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
            merged[i] = merged[i] + above
        pyramid = [output(x) for output, x in zip(self.output, merged, strict=True)]
        if self.last >= 6:
            pyramid.append(self.p6(maps[-1] if self.p6_from == "c5" else pyramid[-1]))
        if self.last >= 7:
            pyramid.append(self.p7(F.relu(pyramid[-1])))
        return pyramid
