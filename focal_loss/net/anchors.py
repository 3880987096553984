"""Anchor boxes of RetinaNet, Sec. 4 of arXiv 1708.02002.

Legend: l level with stride 2**l, A anchors of all levels, a anchors of a cell, H x W cells.
Order: level, row, column, anchor of the cell; the heads write their outputs in the same order.
Boxes are float32 `x1, y1, x2, y2` in pixels of the (padded) input image. Anchors that reach over
the border are kept.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MODES = ("exact", "torchvision", "detectron")
_CACHED_SIZES = 64  # image sizes whose anchors are remembered: about 3 MB each at 800 x 1344


@dataclass(frozen=True)
class Anchors:
    """All anchors of an image size: `Anchors(levels=(3, 7))(height, width, device)` -> (A, 4).

    levels: first and last pyramid level, inclusive; the paper uses 3 to 7.
    scales: k sizes 2**(i/k), i < k, per octave (Table 1c); the paper uses 3.
    ratios: height / width, in the order of a cell's anchors; the paper's set is {1/2, 1, 2}.
    size: side of the smallest square anchor, in strides; the paper's 32 px on P3 is 4.
    mode: "exact" keeps real numbers, size outer and ratio inner (the order of detectron2);
        "torchvision" repeats its generator bit by bit: sizes cut to integers, half sides rounded,
        ratio outer and size inner, strides that are the image over the map, rounded down;
        "detectron" repeats Detectron: ratios rounded at stride size, corners that are the first
        and last pixel inside (width = x2 - x1 + 1), size outer and ratio inner.
    offset: centre of the first cell in strides, for mode "exact" only.
        # Unstated: the paper does not say; 0, the pixel a stride-2 convolution is centred on, is
        # detectron2's and torchvision's choice, 0.5 (the cell's middle) is Detectron's.
    """

    levels: Sequence[int] = (3, 7)
    scales: int = 3
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    size: float = 4.0
    mode: str = "exact"
    offset: float = 0.0
    _cache: OrderedDict[tuple[int, int, str], Tensor] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if len(self.levels) != 2 or not 0 <= self.levels[0] <= self.levels[1]:
            raise ValueError(f"levels = {self.levels} must be (first, last), first <= last.")
        if self.scales < 1:
            raise ValueError(f"scales = {self.scales} anchor sizes per octave: use 1 or more.")
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"ratios = {self.ratios} must be positive heights over widths.")
        if self.size <= 0:
            raise ValueError(f"size = {self.size} strides must be a positive anchor side.")
        if self.mode not in MODES:
            raise ValueError(f"mode = {self.mode!r} is not one of {', '.join(MODES)}.")
        if not 0 <= self.offset < 1:
            raise ValueError(f"offset = {self.offset} strides must be at least 0 and below 1.")

    @property
    def per_cell(self) -> int:
        """Anchors of one cell: 9 in the paper."""
        return self.scales * len(self.ratios)

    @property
    def order(self) -> list[tuple[int, float]]:
        """(index of the scale, ratio) of each of the cell's anchors, in order."""
        if self.mode == "torchvision":
            return [(i, ratio) for ratio in self.ratios for i in range(self.scales)]
        return [(i, ratio) for i in range(self.scales) for ratio in self.ratios]

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of each level's map; halves are rounded up as by the convolutions."""
        sides = [2**level for level in range(self.levels[0], self.levels[1] + 1)]
        return [(-(-height // side), -(-width // side)) for side in sides]

    def counts(self, height: int, width: int) -> list[int]:
        """Anchors of each level; their sum is A."""
        return [rows * columns * self.per_cell for rows, columns in self.grids(height, width)]

    def __call__(
        self, height: int, width: int, device: torch.device | str | None = None
    ) -> Tensor:  # (A, 4)
        """Anchors of images of `height` x `width` pixels; shared, so do not write to it."""
        device = torch.device("cpu" if device is None else device)
        key = (height, width, str(device))
        if key not in self._cache:
            levels = range(self.levels[0], self.levels[1] + 1)
            maps = zip(levels, self.grids(height, width), strict=True)
            with torch.inference_mode(False):  # remembered ones serve training too
                boxes = [self._level(level, grid, (height, width)) for level, grid in maps]
                self._cache[key] = torch.cat(boxes).to(device)
            if len(self._cache) > _CACHED_SIZES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def cell(self, level: int) -> Tensor:  # (a, 4)
        """Anchors around the origin; mode "detectron" puts the origin into the cell's corner."""
        stride = 2**level
        size = self.size * stride
        match self.mode:
            case "torchvision":
                steps = (2 ** (i / self.scales) for i in range(self.scales))
                sizes = torch.tensor([float(int(size * step)) for step in steps])
                roots = torch.tensor(self.ratios, dtype=torch.float32).sqrt()[:, None]
                widths, heights = (1 / roots) * sizes, roots * sizes  # (ratios, scales)
                sides = torch.stack([widths.flatten(), heights.flatten()], 1)  # (a, 2)
                return (torch.cat([-sides, sides], 1) / 2).round()
            case "detectron":
                boxes = []
                for i, ratio in self.order:
                    width = round(math.sqrt(stride * stride / ratio))
                    height = round(width * ratio)
                    scale = self.size * 2 ** (i / self.scales)
                    x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
                    centre = (stride - 1) / 2
                    boxes.append([centre - x, centre - y, centre + x, centre + y])
                return torch.tensor(boxes)
            case _:
                boxes = []
                for i, ratio in self.order:
                    wide = math.sqrt((size * 2 ** (i / self.scales)) ** 2 / ratio)
                    tall = ratio * wide
                    boxes.append([-wide / 2, -tall / 2, wide / 2, tall / 2])
                return torch.tensor(boxes)

    def best_overlap(self, boxes: Tensor, sizes: Tensor) -> Tensor:  # (M,)
        """Largest IoU of each of (M, 4) boxes with an anchor of its image.

        sizes: (M, 2) padded height and width of the image that the box is in. Of the anchors of one
        shape the one whose centre is nearest overlaps most, so the others are not looked at.
        """
        best = boxes.new_zeros(len(boxes))
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]  # (M, 1, 2)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None]  # (M, 1)
        for level in range(self.levels[0], self.levels[1] + 1):
            cell = self.cell(level).to(boxes)  # (a, 4)
            size = sizes.flip(1)[:, None]  # (M, 1, 2) width, height
            count = -(-size // 2**level)
            step = size // count if self.mode == "torchvision" else torch.full_like(size, 2**level)
            first = (cell[:, :2] + cell[:, 2:]) / 2 + self._start * step  # (M, a, 2)
            number = ((centres - first) / step).round().clamp(min=0).minimum(count - 1)
            anchors = cell + ((number + self._start) * step).repeat(1, 1, 2)  # (M, a, 4)
            low = torch.maximum(anchors[..., :2], boxes[:, None, :2])
            high = torch.minimum(anchors[..., 2:], boxes[:, None, 2:])
            common = (high - low).clamp(min=0).prod(2)  # (M, a)
            union = area + (cell[:, 2:] - cell[:, :2]).prod(1) - common
            best = torch.maximum(best, (common / union).amax(1))
        return best

    @property
    def _start(self) -> float:
        """Place of the first cell's anchors in strides."""
        return self.offset if self.mode == "exact" else 0.0

    def _level(self, level: int, grid: tuple[int, int], image: tuple[int, int]) -> Tensor:
        """(rows * columns * a, 4) anchors of one level."""
        rows, columns = grid
        down: float = 2**level  # pixels from row to row
        right = down
        if self.mode == "torchvision":  # 800 px over 13 rows of P6: 61, not 64
            down, right = image[0] // rows, image[1] // columns
        y = (torch.arange(rows, dtype=torch.float32) + self._start) * down
        x = (torch.arange(columns, dtype=torch.float32) + self._start) * right
        y, x = torch.meshgrid(y, x, indexing="ij")  # each (H, W)
        centres = torch.stack([x, y, x, y], 2)  # (H, W, 4)
        return (centres[:, :, None] + self.cell(level)).reshape(-1, 4)
