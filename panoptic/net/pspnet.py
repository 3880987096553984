"""The semantic network of the paper's Cityscapes baseline: PSPNet, arXiv 1612.01105 (Sec. 7).

Legend: N images of H x W pixels, C classes, things and stuff alike; C4 and C5 the body's maps at
output stride 8.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from . import padding
from .backbone import NormLayer, body, norm_layer
from .padding import Prediction, Result, Size, Targets, Wanted

BINS = (1, 2, 3, 6)  # a side, PSPNet Sec. 3.2


class PyramidPooling(nn.Module):
    """The map beside its averages over b x b bins for each b in `bins`, brought back to its size.

    inputs: channels, of which each bin's part has `inputs / len(bins)`; twice `inputs` come out.
    """

    def __init__(self, inputs: int, bins: Sequence[int], norm: NormLayer):
        super().__init__()
        self.bins = tuple(bins)
        outputs = inputs // len(self.bins)
        self.branches = nn.ModuleList(_conv_norm(inputs, outputs, 1, norm) for _ in self.bins)
        self.channels = inputs + outputs * len(self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, channels, h, w)."""
        parts = [x]
        for size, branch in zip(self.bins, self.branches, strict=True):
            average = branch(F.adaptive_avg_pool2d(x, size))  # (N, inputs / 4, size, size)
            # Unstated: corners are not aligned.
            parts.append(F.interpolate(average, size=x.shape[2:], mode="bilinear"))
        return torch.cat(parts, 1)


class PSPNet(nn.Module):
    """Images -> losses in training, logits of all classes in evaluation.

    classes: C. backbone: one of `backbone.BACKBONES` with bottlenecks, or "mini" (stride 2).
    norm: of the whole network, "bn" as in PSPNet, "gn" for small batches, or "frozen".
    dropout, auxiliary_weight: PSPNet's Secs. 5.1 and 3.3.
    """

    def __init__(
        self,
        classes: int,
        *,
        backbone: str = "resnet50",
        norm: str = "bn",
        dropout: float = 0.1,
        auxiliary_weight: float = 0.4,
    ):
        super().__init__()
        if not 1 <= classes <= 255:
            raise ValueError(f"classes is {classes}: choose 1 to 255, for 255 is void.")
        width = 32 if backbone == "mini" else 512  # before the classifier
        self.classes, self.norm, self.auxiliary_weight = classes, norm, auxiliary_weight
        # Differs: torchvision's ResNet begins with one 7x7 convolution, PSPNet's with three 3x3.
        self.body = body(backbone, norm=norm, freeze_at=0, dilated=True)
        layer = norm_layer(norm)
        c4, c5 = self.body.channels[-2:]
        self.pooling = PyramidPooling(c5, BINS, layer)
        self.classifier = _classifier(self.pooling.channels, width, classes, layer, dropout)
        self.auxiliary = _classifier(c4, width // 2, classes, layer, dropout)
        self.counts = dict.fromkeys(("semantic", "auxiliary"), torch.tensor(0))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.body.conv1.weight.device

    @property
    def stride(self) -> int:
        """Output stride: 8, or 2 of the mini backbone."""
        return self.body.strides[-1]

    def forward(
        self, images: Sequence[Tensor], targets: Targets = None, *, sizes: Wanted = None
    ) -> Result:
        """Losses in training, predictions in evaluation.

        images: N of (3, H, W), red, green, blue, uint8 or float in 0..1, of any sizes.
        targets: `semantic` (H, W) in 0..C-1, 255 for void. sizes: of the predictions.
        Losses: `semantic`, and `auxiliary` with its weight in it. Predictions: `semantic` logits
        (C, *size). ValueError for what does not fit. `counts` then holds how many pixels each loss
        is the mean over.
        """
        if self.training:
            truth = padding.check_targets(images, targets, self.device, classes=self.classes)
            if len(images) == 1 and self.norm == "bn":
                raise ValueError(
                    "PSPNet's batch norm sees one value a channel where one image is pooled to "
                    "1 x 1: train on 2 or more images at a time, or with norm gn"
                )
            batch = padding.pad(images, self.stride, self.device)
            self.counts = dict.fromkeys(self.counts, padding.count_labelled(truth))
            logits, auxiliary = self.logits(batch.tensors)
            assert auxiliary is not None
            return {
                "semantic": padding.semantic_loss(logits, truth),
                "auxiliary": self.auxiliary_weight * padding.semantic_loss(auxiliary, truth),
            }
        return padding.predict_by_size(images, sizes, self._predict, self.stride, self.device)

    def _predict(self, batch: ImageList, sizes: Sequence[Size]) -> list[Prediction]:
        logits, _ = self.logits(batch.tensors)
        return [
            {"semantic": padding.crop_and_resize(one, own, size)}
            for one, own, size in zip(logits, batch.image_sizes, sizes, strict=True)
        ]

    def logits(self, batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, 3, H, W) -> the classifier's (N, C, H, W), and in training the auxiliary one's."""
        *_, c4, c5 = self.body(batch)
        logits = self._enlarge(self.classifier(self.pooling(c5)))
        return logits, self._enlarge(self.auxiliary(c4)) if self.training else None

    def _enlarge(self, logits: Tensor) -> Tensor:
        return F.interpolate(
            logits.float(), scale_factor=self.stride, mode="bilinear", align_corners=False
        )


def _conv_norm(inputs: int, outputs: int, kernel: int, norm: NormLayer) -> nn.Sequential:
    """Convolution without bias, norm, ReLU; the size stays."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, norm(outputs), nn.ReLU(inplace=True))


def _classifier(
    inputs: int, width: int, classes: int, norm: NormLayer, dropout: float
) -> nn.Sequential:
    """3x3 convolution to `width`, dropout of whole channels, 1x1 to the classes."""
    return nn.Sequential(
        *_conv_norm(inputs, width, 3, norm), nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1)
    )
