"""Regions of Mask R-CNN on torchvision's parts: anchors, RoIAlign, box and mask heads, pasting.

Legend: N images, R regions, C channels, T thing classes (label 0 is the background here), S the
side of a pooled region. Two conventions exist for where a pixel is: detectron2's (`aligned`), in
which pixel i covers i..i+1, anchors are not rounded and lie exactly one stride apart; and
torchvision's, half a pixel off. Weights want the one they were trained with.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import roi_align

CPU = torch.device("cpu")
CHUNK = 2**26  # pixels of pasted masks held in float at a time


class Anchors(AnchorGenerator):
    """Anchors of one size and some ratios (height / width) a level, as (A, 4) for each image."""

    def __init__(
        self,
        sizes: Sequence[int],
        ratios: Sequence[float],
        strides: Sequence[int],
        *,
        aligned: bool,
    ):
        self.aligned, self.strides = aligned, list(strides)
        super().__init__(tuple((size,) for size in sizes), (tuple(ratios),) * len(sizes))

    def generate_anchors(
        self,
        scales: Sequence[int],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> Tensor:
        """One cell's anchors around the origin, (len(ratios), 4)."""
        if not self.aligned:
            return super().generate_anchors(scales, aspect_ratios, dtype, device)
        size = torch.tensor(scales, dtype=dtype, device=device)
        ratio = torch.tensor(aspect_ratios, dtype=dtype, device=device)
        half_width, half_height = size / ratio.sqrt() / 2, size * ratio.sqrt() / 2
        return torch.stack([-half_width, -half_height, half_width, half_height], 1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of each image, finest level first; in float32 also under autocast."""
        grids = [list(features.shape[-2:]) for features in feature_maps]
        strides = [[stride, stride] for stride in self.strides]
        if not self.aligned:  # torchvision divides, so P6 of odd maps has other strides
            height, width = image_list.tensors.shape[-2:]
            strides = [[height // h, width // w] for h, w in grids]
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        anchors = torch.cat(self.grid_anchors(grids, strides))  # type: ignore[arg-type]
        return [anchors for _ in image_list.image_sizes]


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's, which also remembers how many it drew: what the mean losses are means over.

    drawn: of the last batch. positive: those of them on instances.
    """

    drawn = torch.tensor(0)
    positive = torch.tensor(0)

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positive and of the negative ones drawn, for each image."""
        positive, negative = super().__call__(matched_idxs)
        self.positive = torch.stack([mask.sum() for mask in positive]).sum()
        self.drawn = self.positive + torch.stack([mask.sum() for mask in negative]).sum()
        return positive, negative


class ProposalHead(RPNHead):
    """torchvision's, whose outputs stay float32 under autocast: boxes need more than 8 bits."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (N, C, H, W) -> logits (N, A, H, W) and offsets (N, 4 A, H, W)."""
        logits, offsets = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in offsets]


class RoIAlign(nn.Module):
    """Pool regions, each from the pyramid's level that suits its size (FPN, Eq. 1).

    side: S. strides: of the levels "0", "1", ... that are pooled from.
    products: pool by matrix products, which is several times faster on a CPU where maps are small;
        False takes torchvision's operator. Both give the same up to rounding.
    """

    def __init__(self, side: int, strides: Sequence[int], *, aligned: bool, products: bool):
        super().__init__()
        self.side, self.strides, self.aligned = side, list(strides), aligned
        self.samples = 0 if aligned else 2  # a bin and axis; 0: as many as it has pixels
        self.products = products

    def forward(
        self,
        features: Mapping[str, Tensor],
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Boxes [(R_n, 4)] in pixels -> (sum of R_n, C, S, S). `image_sizes` is not used."""
        rois = torch.cat(
            [F.pad(box, (1, 0), value=float(number)) for number, box in enumerate(boxes)]
        )
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        first = self.strides[0].bit_length() - 1
        level = torch.floor(4 + torch.log2(side / 224) + 1e-6) - first
        level = level.clamp(0, len(self.strides) - 1)
        some = features["0"]
        out = some.new_zeros(len(rois), some.shape[1], self.side, self.side)
        for number, stride in enumerate(self.strides):
            places = torch.where(level == number)[0]
            if not len(places):
                continue
            maps, chosen = features[str(number)], rois[places]
            if self.products:
                pooled = pool_by_products(maps, chosen, self.side, stride, self.samples)
            else:
                pooled = roi_align(maps, chosen, self.side, 1 / stride, self.samples, self.aligned)
            out = out.index_copy(0, places, pooled.to(out.dtype))
        return out


def pool_by_products(maps: Tensor, rois: Tensor, side: int, stride: int, samples: int) -> Tensor:
    """Aligned RoIAlign of (R, 5) regions, sorted by image, as matrix products: (R, C, S, S).

    Sampling bilinearly and averaging over a bin are linear, and so are their two axes apart: with
    a matrix for the rows and one for the columns a region is rows @ map @ columns^T. The cost
    grows with the map, whose every cell takes part: this is for small ones.
    """
    counts = torch.bincount(rois[:, 0].long(), minlength=len(maps)).tolist()
    x1, y1, x2, y2 = (rois[:, 1:] / stride - 0.5).unbind(1)  # centres of cells are whole numbers
    rows = _bins(y1, y2, maps.shape[2], side, samples).to(maps.dtype)  # (R, S, H)
    columns = _bins(x1, x2, maps.shape[3], side, samples).to(maps.dtype)  # (R, S, W)
    out = []
    for one, high, wide in zip(maps, rows.split(counts), columns.split(counts), strict=True):
        C, H, W = one.shape
        halfway = high.flatten(0, 1) @ one.transpose(0, 1).reshape(H, C * W)  # (R S, C W)
        pooled = halfway.view(-1, side * C, W) @ wide.mT  # (R, S C, S)
        out.append(pooled.view(-1, side, C, side).transpose(1, 2))
    return torch.cat(out)


def _bins(low: Tensor, high: Tensor, cells: int, side: int, samples: int) -> Tensor:
    """(R, side, cells): how much each cell counts in each bin of low..high."""
    width = (high - low) / side  # of a bin, (R,)
    counts = torch.full_like(width, samples) if samples else width.ceil().clamp(min=1)
    sample = torch.arange(int(counts.max()), device=low.device)
    within = (sample + 0.5) / counts[:, None]  # (R, samples)
    bins = torch.arange(side, device=low.device)
    at = low[:, None, None] + width[:, None, None] * (bins[:, None] + within[:, None])
    used = (sample < counts[:, None])[:, None] & (at >= -1) & (at <= cells)  # beyond: 0
    share = used / counts[:, None, None]
    at = at.clamp(0, cells - 1)
    hats = (1 - (at[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    return (share[..., None] * hats).sum(2)


class RegionHeads(RoIHeads):
    """torchvision's sampling and selection; losses in float32, mask targets aligned as asked."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image in evaluation, losses `label`, `box`, `mask` in training.

        Detections have `boxes` (R, 4), `labels` (R,) from 1, `scores` (R,) and `masks`
        (R, 1, 28, 28), probabilities within the box.
        """
        if not self.training:
            return self._detections(features, proposals, image_shapes), {}
        assert targets is not None, "training without targets"
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        logits, deltas = self._boxes(features, proposals, image_shapes)
        label_loss, box_loss = fastrcnn_loss(logits, deltas, labels, offsets)
        positive = [torch.where(label > 0)[0] for label in labels]
        proposals = [box[keep] for box, keep in zip(proposals, positive, strict=True)]
        matched = [index[keep] for index, keep in zip(matched, positive, strict=True)]
        classes = torch.cat([x[keep] for x, keep in zip(labels, positive, strict=True)])
        masks = self._masks(features, proposals, image_shapes)  # (R, T + 1, 28, 28)
        truth = self.mask_targets(proposals, matched, targets, masks.shape[-1])
        chosen = masks[torch.arange(len(classes), device=masks.device), classes]
        mask_loss = F.binary_cross_entropy_with_logits(chosen, truth, reduction="sum")
        mask_loss = mask_loss / max(1, truth.numel())
        return [], {"label": label_loss, "box": box_loss, "mask": mask_loss}

    def mask_targets(
        self,
        boxes: list[Tensor],
        matched: list[Tensor],
        targets: list[dict[str, Tensor]],
        side: int,
    ) -> Tensor:
        """The instances' masks cut out by the boxes, (R, side, side) in 0..1."""
        cut = []
        aligned = self.box_roi_pool.aligned
        for box, index, target in zip(boxes, matched, targets, strict=True):
            masks = target["masks"][:, None].to(box.dtype)
            rois = torch.cat([index[:, None].to(box.dtype), box], 1)
            cut.append(roi_align(masks, rois, side, 1.0, -1, aligned)[:, 0])
        truth = torch.cat(cut)
        return (truth >= 0.5).to(truth.dtype) if aligned else truth

    def _boxes(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, boxes, sizes)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float()

    def _masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Tensor:
        assert self.mask_roi_pool is not None
        assert self.mask_head is not None
        assert self.mask_predictor is not None
        pooled = self.mask_roi_pool(features, boxes, sizes)
        return self.mask_predictor(self.mask_head(pooled)).float()

    def _detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, deltas = self._boxes(features, proposals, sizes)
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, sizes)
        masks = maskrcnn_inference(self._masks(features, boxes, sizes), labels)
        return [
            {"boxes": box, "labels": label, "scores": score, "masks": mask}
            for box, label, score, mask in zip(boxes, labels, scores, masks, strict=True)
        ]


def paste(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (R, S, S) within their boxes (R, 4) -> (R, H, W) bool: at least 0.5 at the pixel.

    Bilinear between the centres of the S x S cells, 0 beyond them. Interpolation is separable:
    with the weights of each row and column as matrices a mask is rows @ mask @ columns^T.
    """
    count, side = probabilities.shape[:2]
    out = torch.zeros(count, *size, dtype=torch.bool, device=boxes.device)
    step = max(1, CHUNK // max(1, size[0] * size[1]))
    for start in range(0, count, step):
        chunk = slice(start, start + step)
        x1, y1, x2, y2 = boxes[chunk].unbind(1)
        rows, columns = _hats(y1, y2, size[0], side), _hats(x1, x2, size[1], side)
        out[chunk] = rows @ probabilities[chunk] @ columns.mT >= 0.5
    return out


def _hats(low: Tensor, high: Tensor, pixels: int, side: int) -> Tensor:
    """(R, pixels, side): how much each cell of low..high counts at each pixel's centre."""
    centres = torch.arange(pixels, device=low.device) + 0.5
    cell = (centres - low[:, None]) / (high - low)[:, None] * side - 0.5  # (R, pixels)
    cells = torch.arange(side, device=low.device)
    return (1 - (cell[:, :, None] - cells).abs()).clamp(min=0)
