"""Objects drawn on an image: boxes, joints with their skeleton, masks.

Objects are dictionaries of COCO's format: `bbox` is x, y, width, height, `keypoints` holds x, y and
a flag per joint, where x and y count pixel centres from 0 and a flag of 0 means that there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from common.coco.masks import decode_mask
from common.draw import TEXT_HEIGHT, Color, palette

SIDE = 256  # pixels of the shorter side of a drawn image
RADIUS = 4  # pixels of a joint
COLORS: dict[str, Color] = {
    "left": (40, 140, 255),
    "right": (255, 90, 30),
    "middle": (250, 215, 40),
}
BOX: Color = (255, 255, 255)
IGNORED: Color = (150, 150, 150)
OFF: Color = (255, 0, 200)  # from a wrong joint to its true place
Entry = Mapping[str, Any]


class Caption(NamedTuple):
    """A box x, y, width, height of the image itself, and the text at it; empty: none."""

    box: Sequence[float]
    text: str
    color: Color = BOX


@dataclass(frozen=True)
class Skeleton:
    """Joints of a category: the side of each, and the pairs that an edge joins, from 0."""

    sides: list[str]
    edges: list[tuple[int, int]]

    def edge_color(self, start: int, end: int) -> Color:
        """That of a side if one end is on it and the other is not on the opposite one."""
        found = {self.sides[start], self.sides[end]} - {"middle"}
        return COLORS[found.pop() if len(found) == 1 else "middle"]


def read_skeleton(category: Entry) -> Skeleton:
    """The skeleton of an entry of COCO's `categories`; left and right are told by the names."""
    names = [str(name).lower() for name in category.get("keypoints", ())]
    sides = [next((side for side in ("left", "right") if side in name), "middle") for name in names]
    return Skeleton(sides, [(a - 1, b - 1) for a, b in category.get("skeleton", ())])


def enlarge(image: Tensor) -> tuple[Tensor, float]:
    """An image uint8 (C, H, W) whose shorter side is `SIDE`, and the factor."""
    height, width = image.shape[1:]
    factor = SIDE / min(height, width)
    size = [round(factor * height), round(factor * width)]
    return resize(image, size, InterpolationMode.BICUBIC, antialias=True), factor


def tint(image: Tensor, entries: Sequence[Entry], size: tuple[int, int]) -> Tensor:
    """An enlarged image (3, h, w) under the masks of some entries, half transparent.

    size: height and width of the image itself, which the masks have.
    """
    drawn = image.float()
    for entry, color in zip(entries, palette(len(entries)), strict=True):
        mask = torch.from_numpy(decode_mask(entry["segmentation"], *size))[None].byte()
        large = resize(mask, list(image.shape[1:]), InterpolationMode.NEAREST_EXACT)[0].bool()
        drawn[:, large] = (drawn[:, large] + torch.tensor(color)[:, None]) / 2
    return drawn.round().byte()


def draw_boxes(canvas: ImageDraw.ImageDraw, objects: Sequence[Caption], factor: float) -> None:
    """Boxes x, y, width, height of the image itself, and captions above them where there is room.

    No caption lies on another, unless the image is full of them.
    """
    font, high = ImageFont.load_default(TEXT_HEIGHT), TEXT_HEIGHT + 2
    edges = [[float(value) * factor for value in each.box] for each in objects]
    for (x, y, width, height), each in zip(edges, objects, strict=True):
        right, bottom = max(x, x + width - 1), max(y, y + height - 1)
        canvas.rectangle((x, y, right, bottom), outline=each.color)
    taken: list[tuple[float, float, float]] = []
    for (x, y, _, height), (_, text, color) in zip(edges, objects, strict=True):
        if text:
            wide = font.getlength(text) + 4
            x = max(0.0, min(x, canvas.im.size[0] - wide))
            above = y - high - 2 * RADIUS  # clear of joints on the edge
            y = above if above >= 0 else min(y + height + 2 * RADIUS, canvas.im.size[1] - high)
            beside = [top for left, top, right in taken if left < x + wide and x < right]
            y = find_room(y, beside, high, canvas.im.size[1])
            taken.append((x, y, x + wide))
            canvas.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
            canvas.text((x + 2, y + high / 2), text, "black", font, anchor="lm")


def find_room(wanted: float, tops: Sequence[float], high: int, bottom: int) -> float:
    """Top edge nearest to the wanted one for a caption that meets none of those with these tops.

    high: of each caption, in pixels; bottom: of the image. As wanted where there is no room.
    """
    places = [wanted, *(top + step for top in tops for step in (-high, high))]
    free = [
        place
        for place in places
        if 0 <= place <= bottom - high and all(abs(place - top) >= high for top in tops)
    ]
    return min(free, key=lambda place: abs(place - wanted), default=wanted)


def draw_joints(
    canvas: ImageDraw.ImageDraw, points: Tensor, skeleton: Skeleton, factor: float
) -> None:
    """Joints (J, 3) x, y, flag and the edges between those that are there.

    A joint of flag 1, hidden in the image, is a ring, any other a disc.
    """
    x, y = place(points, factor)
    there = (points[:, 2] > 0).tolist()
    for start, end in skeleton.edges:
        if there[start] and there[end]:
            line = (x[start], y[start], x[end], y[end])
            canvas.line(line, fill=skeleton.edge_color(start, end), width=2)
    for j, side in enumerate(skeleton.sides):
        if there[j]:
            hidden = points[j, 2] == 1
            inside = None if hidden else COLORS[side]
            edge = COLORS[side] if hidden else (0, 0, 0)
            canvas.circle((x[j], y[j]), RADIUS, fill=inside, outline=edge, width=2 if hidden else 1)


def draw_errors(
    canvas: ImageDraw.ImageDraw, points: Tensor, truth: Tensor, off: Tensor, factor: float
) -> None:
    """A line from each joint (J, 3) that is `off` (J,) to a cross at its true place (J, 3)."""
    (x, y), (u, v) = place(points, factor), place(truth, factor)
    for j in off.nonzero()[:, 0].tolist():
        canvas.line((x[j], y[j], u[j], v[j]), fill=OFF, width=2)
        for across in (-RADIUS, RADIUS):
            line = (u[j] - RADIUS, v[j] - across, u[j] + RADIUS, v[j] + across)
            canvas.line(line, fill=OFF, width=2)


def place(points: Tensor, factor: float) -> tuple[list[float], list[float]]:
    """Where joints (J, 3) are in the enlarged image: x and y, which count pixel centres from 0."""
    moved = (points[:, :2] + 0.5) * factor - 0.5
    return moved[:, 0].tolist(), moved[:, 1].tolist()


def joints_of(entry: Entry) -> Tensor:
    """Keypoints (J, 3) float64 of an entry; (0, 3) where it has none."""
    return torch.tensor(entry.get("keypoints", ()), dtype=torch.float64).view(-1, 3)
