"""What a position attends to, over the frames of a clip or in an image: Fig. 3.

Positions of features are cells: those of a map of size (T', H', W') share out the frames and pixels
of a clip. Weights of dot product and concatenation need not sum to 1, and the former have a sign:
pictures are scaled per query by the strongest weight, red for positive ones, blue for negative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from common.draw import Color, grid, legend

STRONGEST = 20  # arrows at most, as in Fig. 3
FAINT = 0.15  # of the strongest weight: weaker ones get no arrow
SIDE = 120  # pixels of a frame's shorter side
FRAMES = 8  # drawn at most, evenly out of all
GAP = 4  # pixels between frames
FINE = 3  # times the size at which lines are drawn, for smooth edges
QUERY: Color = (255, 220, 0)
POSITIVE: Color = (230, 30, 30)
NEGATIVE: Color = (30, 90, 240)
DARK: Color = (20, 20, 20)

Size = tuple[int, int, int]  # frames, height, width
Place = tuple[float, float, float]  # frame, y, x: the middle of the first pixel is 0.5, 0.5, 0.5


@dataclass(frozen=True)
class Attention:
    """The weights of one query in a clip; an image is a clip of one frame."""

    clip: Tensor  # (3, T, H, W) uint8
    weights: Tensor  # (T', H', W') of the keys
    query: Place
    title: str = ""

    @property
    def size(self) -> Size:
        """Frames, height and width of the clip."""
        return size_of(self.clip[0])

    @property
    def shown(self) -> list[int]:
        """The frames that are drawn, ascending; the query's is one of them."""
        count = self.size[0]
        step = max(1, math.ceil(count / FRAMES))
        return list(range(int(self.query[0]) % step, count, step))


def size_of(volume: Tensor) -> Size:
    """The three lengths of (T, H, W)."""
    t, h, w = volume.shape
    return t, h, w


def cell_of(place: Place, clip: Size, cells: Size) -> int:
    """The number of the cell, of a map of size `cells`, that holds a place of the clip."""
    t, y, x = (
        min(int(at * count / length), count - 1)
        for at, length, count in zip(place, clip, cells, strict=True)
    )
    return (t * cells[1] + y) * cells[2] + x


def middle_of(number: int, clip: Size, cells: Size) -> Place:
    """The middle, in the clip, of a cell of a map of size `cells`."""
    moment, rest = divmod(number, cells[1] * cells[2])
    t, y, x = (
        (index + 0.5) * length / count
        for index, length, count in zip((moment, *divmod(rest, cells[2])), clip, cells, strict=True)
    )
    return t, y, x


def shares_of(weights: Tensor) -> Tensor:
    """The weights over the largest magnitude: -1..1, or all 0."""
    weights = weights.detach().double().cpu()
    return weights / weights.abs().max().clamp(min=torch.finfo(torch.double).tiny)


def strongest(weights: Tensor, count: int = STRONGEST) -> list[tuple[int, float]]:
    """Cells with the largest magnitudes, and their share of the largest, that one first."""
    flat = shares_of(weights).reshape(-1)
    top = flat.abs().topk(min(count, len(flat))).indices.tolist()
    return [(i, float(flat[i])) for i in top if abs(flat[i]) >= FAINT]


def draw_attention(entries: Sequence[Attention], note: str = "") -> Tensor:
    """For each entry two rows of frames, (3, h, w) uint8: arrows from query to keys, and heat.

    The circle is the query. Arrows lead to the keys with the largest weights, the wider the larger;
    the colour below them is the stronger the larger the weight. `note` stands under all.
    """
    parts: list[Tensor] = []
    titles: list[str] = []
    for entry in entries:
        rows = (draw_arrows(entry), draw_heat(entry))
        gap = rows[0].new_full((3, GAP, rows[0].shape[2]), 255)
        parts.append(torch.cat((rows[0], gap, rows[1]), 1))
        titles.append(entry.title)
    signed = any(bool((entry.weights < 0).any()) for entry in entries)
    colors = {"the query": QUERY, "positive weight" if signed else "what it attends to": POSITIVE}
    colors |= {"negative weight": NEGATIVE} if signed else {}
    swatches = [legend([name], colors=[color]) for name, color in colors.items()]
    row = grid(swatches, len(swatches), titles=[""] * len(swatches), padding=0)
    return grid([*parts, row], 1, titles=[*titles, note], padding=0)


def draw_arrows(entry: Attention) -> Tensor:
    """The frames in a row, with arrows from the query to its strongest keys."""
    strip, scale = lay_out(list(entry.clip[:, entry.shown].unbind(1)))
    height, width = FINE * strip.shape[1], FINE * strip.shape[2]
    image = to_pil_image(strip).resize((width, height), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(image, "RGBA")
    radius = FINE * SIDE / 12
    start = locate(entry, entry.query, scale)
    for number, share in reversed(strongest(entry.weights)):
        end = locate(entry, end_of(entry, number), scale)
        draw_arrow(canvas, start, end, radius, share)
    draw_ring(canvas, start, radius)
    return pil_to_tensor(image.resize((width // FINE, height // FINE), Image.Resampling.BOX))


def end_of(entry: Attention, number: int) -> Place:
    """Where in the clip the arrow to a key ends: in the middle of its cell.

    Of the frames that are drawn and that the cell covers it is the one in which the cell looks
    least like its mean over all frames, so that a key that stands for a thing points at it.
    """
    cells = size_of(entry.weights)
    t, y, x = middle_of(number, entry.size, cells)
    frames = [f for f in entry.shown if cell_of((f + 0.5, y, x), entry.size, cells) == number]
    if not frames:
        return t, y, x
    spans = (
        slice(int(at - length / count / 2), math.ceil(at + length / count / 2))
        for at, length, count in zip((y, x), entry.size[1:], cells[1:], strict=True)
    )
    pixels = entry.clip[:, :, *spans].float()
    change = (pixels - pixels.mean(1, keepdim=True)).abs().mean((0, 2, 3))
    return frames[int(change[frames].argmax())] + 0.5, y, x


def draw_heat(entry: Attention) -> Tensor:
    """The frames in a row, dark and grey, under the colour of the weights in each."""
    t, h, w = entry.size
    shares = shares_of(entry.weights).float()
    moments = [frame * len(shares) // t for frame in entry.shown]
    heat = F.interpolate(shares[moments, None], (h, w), mode="bilinear")  # (frames, 1, H, W)
    grey = 0.6 * entry.clip[:, entry.shown].float().mean(0)[:, None]
    colors = torch.tensor([POSITIVE, NEGATIVE], dtype=torch.float32)[:, :, None, None]
    color = torch.where(heat < 0, colors[1], colors[0])
    alpha = 0.9 * heat.abs() ** 0.7  # so that smaller weights are seen
    frames = (grey * (1 - alpha) + color * alpha).round().byte()
    strip, scale = lay_out(list(frames))
    image = to_pil_image(strip)
    x, y = locate(entry, entry.query, scale)
    draw_ring(ImageDraw.Draw(image), (x / FINE, y / FINE), SIDE / 12)
    return pil_to_tensor(image)


def lay_out(frames: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Frames (3, H, W) uint8 in a row on white, their shorter side SIDE, and how much larger."""
    short = min(frames[0].shape[1:])
    scale = SIDE / short
    size = [round(scale * length) for length in frames[0].shape[1:]]
    mode = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    row: list[Tensor] = []
    for frame in frames:
        large = pil_to_tensor(to_pil_image(frame.cpu()).resize((size[1], size[0]), mode))
        row += [large, torch.full((3, size[0], GAP), 255, dtype=torch.uint8)]
    return torch.cat(row[:-1], 2), scale


def locate(entry: Attention, place: Place, scale: float) -> tuple[float, float]:
    """x, y of a place of the clip in the row of frames, at FINE times its size.

    A place between two frames that are drawn is shown in the earlier one.
    """
    column = max(0, sum(frame <= place[0] for frame in entry.shown) - 1)
    left = column * (round(scale * entry.size[2]) + GAP)
    return FINE * (left + scale * place[2]), FINE * scale * place[1]


def draw_ring(canvas: ImageDraw.ImageDraw, place: tuple[float, float], radius: float) -> None:
    """A circle around a place, with a dark edge."""
    x, y = place
    for size, width, color in ((1.15, 0.5, DARK), (1.05, 0.3, QUERY)):
        r = size * radius
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=color, width=round(width * radius))


def draw_arrow(
    canvas: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
    share: float,
) -> None:
    """An arrow from the edge of the query's circle to `end`, as wide and opaque as |share|."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    color = (*(NEGATIVE if share < 0 else POSITIVE), round(70 + 185 * abs(share)))
    width = max(2, round(0.3 * radius * abs(share)))
    head = 2.5 * width + 2
    if length <= radius + head:  # the query's own cell, or one beside it
        canvas.ellipse((end[0] - width, end[1] - width, end[0] + width, end[1] + width), color)
        return
    dx, dy = dx / length, dy / length
    neck = (end[0] - head * dx, end[1] - head * dy)
    canvas.line((start[0] + radius * dx, start[1] + radius * dy, *neck), color, width)
    wing = 0.6 * head
    sides = [(neck[0] - side * wing * dy, neck[1] + side * wing * dx) for side in (1, -1)]
    canvas.polygon([end, *sides], color)
