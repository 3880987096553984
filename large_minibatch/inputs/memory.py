"""Batches of images, and data sets held in memory as one tensor.

N images of a batch, S pixels a side; rows `u` of random numbers as in `augment`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .augment import CROP, DRAWS, Augment, pad, shift, uniforms


@dataclass
class Batch:
    """Images of one forward: `images` uint8 (N, 3, S, S), channels last; `labels` int64 (N,)."""

    images: Tensor
    labels: Tensor
    files: list[str]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the loader calls it where there is a GPU."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; copied while the processor goes on, where it is page-locked."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))


class InMemory:
    """Images of one split as one uint8 tensor (M, H, W, 3), where M < len means they repeat.

    `batch` cuts, shifts and flips a whole batch at once, on the device that has the tensor.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        files: Sequence[str],
        classes: list[str],
        augment: Augment,
        *,
        training: bool,
    ) -> None:
        self.labels, self.files, self.classes = labels, files, classes
        self.augment, self.training = augment, training
        padded = training and augment.crop == "pad"
        self.pixels = pad(pixels, augment.fill) if padded else pixels.contiguous()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "InMemory":
        """Move the images to `device`, unless their crops are resized, which a CPU does."""
        if not (self.training and self.augment.resamples):
            self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)
        return self

    def batch(self, indices: Sequence[int], u: Tensor | None = None) -> Batch:
        """The images `indices`, in training under their rows `u` (N, >= 10) of numbers."""
        index = torch.tensor(indices).to(self.pixels.device, non_blocking=True)
        picks = index % len(self.pixels)
        if u is None:
            images = self.pixels.index_select(0, picks)
        elif self.augment.crop == "pad":
            images = self.augment.finish(shift(self.pixels, picks, u), u)
        elif self.augment.resamples:
            images = self.augment.finish(self._crops(picks.tolist(), u.tolist()), u)
        else:
            images = self.augment.finish(self.pixels.index_select(0, picks), u)
        files = [self.files[i] for i in indices]
        return Batch(images.permute(0, 3, 1, 2), self.labels.index_select(0, index), files)

    def rows(self, keys: Sequence[tuple[int, int]], seed: int) -> Tensor:
        """The random numbers of (epoch, index) keys, see `augment.uniforms`."""
        epochs, indices = torch.tensor(keys).to(self.pixels.device, non_blocking=True).unbind(1)
        return uniforms(seed, epochs, indices, DRAWS if self.augment.resamples else CROP.start)

    def _crops(self, picks: list[int], u: list[list[float]]) -> Tensor:
        """Random crops (N, S, S, 3), resized one by one."""
        squares = []
        for pick, row in zip(picks, u, strict=True):
            view = self.augment.view(self.pixels.shape[1], self.pixels.shape[2], row)
            top, left, height, width = view.box
            box = self.pixels[pick, top : top + height, left : left + width]
            squares.append(view.cut(box, self.augment.interpolation))
        return torch.stack(squares)


def squares(images: Tensor, augment: Augment, *, training: bool) -> Tensor:
    """Images (M, 3, H, W) as (M, S, S, 3) centre crops, or uncropped where draws are cut out."""
    pixels = images.permute(0, 2, 3, 1).contiguous()
    if training and augment.resamples:
        return pixels
    view = augment.view(pixels.shape[1], pixels.shape[2])
    if view.scaled == tuple(pixels.shape[1:3]) == (view.size, view.size):
        return pixels
    return torch.stack([view.cut(image, augment.interpolation) for image in pixels])
