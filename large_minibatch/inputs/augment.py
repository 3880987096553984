"""Augmentation of Sec. 5.1: random crop, flip and, off by default, colour; the evaluation's crop.

Images are uint8 RGB with channels last: one (H, W, 3), N of a batch (N, H, W, 3). Each random
choice is made from a number in [0, 1); an image has a row `u` of them, in the columns below, and
what becomes of it is a function of its row. `uniforms` makes rows from (seed, epoch, index) alone.
fb is facebook/fb.resnet.torch, whose augmentation the paper uses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

FLIP = 0
SHIFT = slice(1, 3)  # top, left
COLOR = slice(3, 7)  # order, brightness, contrast, saturation
LIGHT = slice(7, 10)  # the three principal components
CROP = slice(10, 60)  # ten tries of area, aspect, exchange of the sides, top, left
DRAWS = 60  # columns of a row

PADDING = 4  # pixels around a CIFAR image, as in fb
_TRIES, _PER_TRY = 10, 5
_GREY = (0.299, 0.587, 0.114)
# Principal components of ImageNet's colours in 0..1, as printed in fb.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (  # of red, green, blue
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)

Box = tuple[int, int, int, int]  # top, left, height, width in pixels of the image


@dataclass(frozen=True)
class View:
    """A square out of an image: `box` is resized to `scaled`, of which `corner` begins the square.

    scaled: height, width. corner: top, left. The square has `size` pixels a side.
    """

    box: Box
    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: int

    def cut(self, pixels: Tensor, interpolation: str = "bicubic") -> Tensor:
        """The square (size, size, 3) from the pixels (h, w, 3) of the box."""
        top, left = self.corner
        scaled = resample(pixels, self.scaled, interpolation)
        return scaled[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class Augment:
    """The options of the augmentation, and what they do to one image or a batch.

    crop: "fb", "torchvision", or "pad" and "none", which begin from the evaluation's crop.
    interpolation: "bicubic" or "bilinear". resize: shorter side before a centre crop, 0: as it is.
    area: share of the image that a random crop may have. flip: probability. color_jitter: most
    relative change of brightness, contrast, saturation. lighting: standard deviation of PCA noise.
    fill: RGB, 0..255, around padded images.
    """

    size: int = 224
    crop: str = "fb"
    interpolation: str = "bicubic"
    resize: int = 256
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    color_jitter: float = 0.0
    lighting: float = 0.0
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area={self.area}: give 0 < low <= high <= 1, shares of the image")
        if 0 < self.resize < self.size:
            raise ValueError(
                f"resize={self.resize} is less than the crop's size={self.size}: give resize >= "
                "size, or 0 to leave the images as they are"
            )

    @property
    def resamples(self) -> bool:
        """Whether every draw of an image is cut out and resized anew."""
        return self.crop in ("fb", "torchvision")

    def view(self, height: int, width: int, u: Sequence[float] | None = None) -> View:
        """The random crop of an image by its row `u`; without one the evaluation's crop."""
        if u is None or not self.resamples:
            rounding = "torchvision" if self.crop == "torchvision" else "fb"
            return centre_view(height, width, self.size, resize=self.resize, rounding=rounding)
        if self.crop == "torchvision":
            box = crop_torchvision(height, width, u[CROP], self.area)
            return View(box, (self.size, self.size), (0, 0), self.size)
        found = crop_fb(height, width, u[CROP], self.area)
        if found is None:
            return centre_view(height, width, self.size, resize=self.size)
        return View(found, (self.size, self.size), (0, 0), self.size)

    def finish(self, images: Tensor, u: Tensor) -> Tensor:
        """Flip and recolour squares (N, S, S, 3) by their rows (N, >= 10); may work in place."""
        if self.flip:
            images = flip(images, u[:, FLIP] < self.flip)
        if self.color_jitter or self.lighting:
            images = recolour(images, u, jitter=self.color_jitter, lighting=self.lighting)
        return images


def crop_fb(height: int, width: int, u: Sequence[float], area: tuple[float, float]) -> Box | None:
    """Crop of fb: area uniform, aspect uniform in 3/4..4/3, sides exchanged every other time.

    None where ten tries did not fit; fb then takes the centre of the image at size `size`.
    """
    for k in range(0, _TRIES * _PER_TRY, _PER_TRY):
        target = (area[0] + (area[1] - area[0]) * u[k]) * height * width
        aspect = 3 / 4 + (4 / 3 - 3 / 4) * u[k + 1]
        w = math.floor(math.sqrt(target * aspect) + 0.5)
        h = math.floor(math.sqrt(target / aspect) + 0.5)
        if u[k + 2] < 0.5:
            w, h = h, w
        if 0 < h <= height and 0 < w <= width:
            return _at(height, width, h, w, u[k + 3], u[k + 4])
    return None


def crop_torchvision(height: int, width: int, u: Sequence[float], area: tuple[float, float]) -> Box:
    """Crop of torchvision: log aspect uniform; after ten tries the centre, cut to 3/4..4/3."""
    for k in range(0, _TRIES * _PER_TRY, _PER_TRY):
        target = (area[0] + (area[1] - area[0]) * u[k]) * height * width
        aspect = math.exp(math.log(3 / 4) + math.log(16 / 9) * u[k + 1])
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < h <= height and 0 < w <= width:
            return _at(height, width, h, w, u[k + 3], u[k + 4])
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def _at(height: int, width: int, h: int, w: int, top: float, left: float) -> Box:
    """A box of h x w pixels somewhere in the image, each place equally likely."""
    return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w


def centre_view(height: int, width: int, size: int, *, resize: int, rounding: str = "fb") -> View:
    """The whole image with shorter side `resize` (0: as it is), and the square in its centre.

    An odd margin is larger at the top left under rounding "fb", even pixels under "torchvision".
    """
    short = min(height, width)
    scaled = (height * resize // short, width * resize // short) if resize else (height, width)
    if min(scaled) < size:
        raise ValueError(
            f"an image of {width} x {height} pixels is smaller than the crop of {size}: choose a "
            "smaller size, or resize the images first"
        )
    margins = [side - size for side in scaled]
    if rounding == "torchvision":
        corner = (round(margins[0] / 2), round(margins[1] / 2))
    else:
        corner = (-(-margins[0] // 2), -(-margins[1] // 2))
    return View((0, 0, height, width), scaled, corner, size)


def resample(pixels: Tensor, scaled: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """An image (h, w, 3) resized to (height, width, 3), antialiased; Pillow's pixels +- 1.

    # Differs: fb's bicubic reads four pixels a side, without antialiasing, corners on corners.
    """
    if tuple(pixels.shape[:2]) == scaled:
        return pixels
    channels_last = pixels[None].permute(0, 3, 1, 2)
    resized = F.interpolate(channels_last, scaled, mode=interpolation, antialias=True)
    return resized.permute(0, 2, 3, 1)[0]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Images (N, H, W, 3), those chosen by `which` (N,) bool mirrored left to right; in place."""
    if images.is_cuda:  # without waiting for the device to count them
        return images.copy_(torch.where(which[:, None, None, None], images.flip(2), images))
    chosen = which.nonzero()[:, 0]
    return images.index_copy_(0, chosen, images.index_select(0, chosen).flip(2))


def pad(images: Tensor, fill: Sequence[int]) -> Tensor:
    """Images (N, H, W, 3) with `PADDING` pixels of the colour `fill` on all sides.

    fb pads with zeros after normalising, which is the mean colour.
    """
    N, H, W, _ = images.shape
    color = torch.tensor(fill, dtype=images.dtype, device=images.device)
    padded = color.repeat(N, H + 2 * PADDING, W + 2 * PADDING, 1)
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = images
    return padded


def shift(padded: Tensor, picks: Tensor, u: Tensor) -> Tensor:
    """Random crops (N, H, W, 3) of the images `picks` (N,) int64 among padded ones, by rows `u`.

    padded: (M, H + 2 PADDING, W + 2 PADDING, 3), contiguous.
    """
    _, height, width, C = padded.shape
    H, W = height - 2 * PADDING, width - 2 * PADDING
    top, left = (u[:, SHIFT] * (2 * PADDING + 1)).long().unbind(1)
    first = ((picks * height + top) * width + left) * C
    rows = first[:, None] + torch.arange(H, device=padded.device) * (width * C)
    # All runs of W pixels, wherever they begin, as the rows of one overlapping view.
    runs = padded.view(-1).as_strided((padded.numel() - W * C + 1, W * C), (1, 1))
    return runs.index_select(0, rows.flatten()).view(len(picks), H, W, C)


def recolour(images: Tensor, u: Tensor, *, jitter: float, lighting: float) -> Tensor:
    """Colour jitter and PCA lighting of fb, of images (N, H, W, 3) by their rows (N, >= 10).

    # Differs: clipped to 0..255 and rounded at the end; fb goes on with real numbers.
    """
    x, u = images.float() / 255, u.float()
    if jitter:
        order, *draws = u[:, COLOR].unbind(1)
        alphas = [(1 + jitter * (2 * draw - 1))[:, None, None, None] for draw in draws]
        number = (order * 6).long()
        for n, steps in enumerate(permutations(range(3))):
            chosen = number == n
            if chosen.any():
                part = x[chosen]
                for step in steps:
                    part = torch.lerp(_reference(part, step), part, alphas[step][chosen])
                x[chosen] = part
    if lighting:
        normal = torch.special.ndtri(u[:, LIGHT].clamp(1e-7, 1 - 1e-7)) * lighting  # (N, 3)
        change = (normal * x.new_tensor(_EIGENVALUES)) @ x.new_tensor(_EIGENVECTORS).T
        x = x + change[:, None, None]
    return (x * 255).round_().clamp_(0, 255).to(torch.uint8)


def _reference(x: Tensor, step: int) -> Tensor:
    """What brightness (0), contrast (1) and saturation (2) mix images (N, H, W, 3) with."""
    if step == 0:
        return torch.zeros_like(x)
    grey = (x * x.new_tensor(_GREY)).sum(3, keepdim=True)
    return (grey.mean((1, 2), keepdim=True) if step == 1 else grey).expand_as(x)


def mixup(images: Tensor, labels: Tensor, alpha: float, classes: int) -> tuple[Tensor, Tensor]:
    """Each image (N, 3, H, W) blended with another one of its batch, and its targets.

    Zhang et al., arXiv 1710.09412; the paper does not use it. labels: int64 (N,). The share is
    drawn once a batch from Beta(alpha, alpha). Targets are probabilities (N, classes), or with
    alpha = 0 the labels as they are.
    """
    if alpha == 0:
        return images, labels
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(len(labels)).to(labels.device)
    own = F.one_hot(labels, classes).to(images.dtype)
    return images.lerp(images[other], 1 - share), own.lerp(own[other], 1 - share)


def uniforms(seed: int, epochs: Tensor, indices: Tensor, count: int = DRAWS) -> Tensor:
    """Rows (N, count) float64 of numbers in [0, 1): a hash of (seed, epoch, index, column).

    epochs, indices: int64 (N,). The same on every device, for any batch and in any order. The
    columns of a row are SplitMix64's sequence (Steele et al. 2014) from a hash of the other three.
    """
    start = torch.tensor(seed, dtype=torch.int64, device=indices.device)
    state = _scramble(_scramble(_scramble(start) + epochs) + indices)
    steps = torch.arange(1, count + 1, device=indices.device) * _GAMMA
    return ((_scramble(state[:, None] + steps) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def _as_signed(value: int) -> int:
    """The 64-bit pattern of `value` as a signed number."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _as_signed(0x9E3779B97F4A7C15)
_FACTORS = (_as_signed(0xBF58476D1CE4E5B9), _as_signed(0x94D049BB133111EB))


def _scramble(z: Tensor) -> Tensor:
    """SplitMix64's bijection of 64-bit patterns; products wrap around."""
    for bits, factor in ((30, _FACTORS[0]), (27, _FACTORS[1])):
        z = (z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))) * factor
    return z ^ ((z >> 31) & ((1 << 33) - 1))
