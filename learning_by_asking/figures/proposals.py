"""What was asked, to look at: images, questions in words, replies, what the answerer thought.

Images are uint8 (3, H, W). A map is what a perfect detector says, float (C, G, G), see
common/clevr/arrays/grid.py; it is drawn from above, front below, right to the right.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, resize

from common import draw
from common.clevr.arrays.features import Features
from common.clevr.arrays.grid import channels
from common.clevr.execute import Failure, check_program
from common.clevr.functions import ATTRIBUTES
from common.draw import TEXT_HEIGHT, Color
from common.images import read_image
from common.scenes.world import color_rgb

from ..asking.history import Asked, read_history
from ..config import Config
from ..data import options_of
from ..language.sentences import sentence

COUNT = 10  # questions in the picture
COLUMNS = 5
SIDE = 200  # pixels of an image
SHARP = 4  # maps are drawn so much larger first
LINE = TEXT_HEIGHT + 4
BLACK: Color = (0, 0, 0)
GREEN: Color = (25, 130, 60)
RED: Color = (190, 40, 30)
GREY: Color = (110, 110, 110)
GROUND: Color = (217, 217, 217)
UNSEEN: Color = (255, 255, 255)  # of a thing whose colour the map does not show
REASONS: Final = {
    Failure.UNIQUE_EMPTY.value: "there is no such thing",
    Failure.UNIQUE_MANY.value: "there are several such things",
}
RADII: Final = {"small": 0.045, "large": 0.085}  # shares of the map's side


class Line(NamedTuple):
    """Text, and its colour."""

    text: str
    ink: Color = BLACK


def draw_run(folder: str | Path, cfg: Config, features: Features) -> None:
    """Write questions.png of a run: ten of its questions, from the first to the last."""
    history = read_history(folder)
    if history:
        draw_asked(Path(folder, "questions.png"), history, find_images(cfg, features))


def draw_asked(
    path: Path, history: Sequence[Asked], image_of: Callable[[int], Tensor], count: int = COUNT
) -> None:
    """Write a PNG of `count` questions at equal distances, invalid ones included."""
    cells, titles = [], []
    for place in choose_places(len(history), count):
        asked = history[place]
        picture = image_of(asked.image_index)
        text = write_lines(describe(asked), max(SIDE, picture.shape[2]))
        cells.append(torch.cat([pad(picture, text.shape[2]), text], 1))
        titles.append(f"reply {place + 1} of {len(history)}")
    draw.save_png(draw.grid(cells, COLUMNS, titles=titles, padding=10), path)


def choose_places(total: int, count: int) -> list[int]:
    """`count` places of 0 .. total - 1 at equal distances, all where there are fewer."""
    count = min(count, total)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


def describe(asked: Asked) -> list[Line]:
    """The question, the reply, and the answerer's probability of it before it learned from it."""
    lines = [Line(spell(asked.program))]
    if not asked.valid:
        return [*lines, Line(explain(asked.reason), RED)]
    lines.append(Line(f"{asked.reply}", GREEN))
    if asked.v_prob_answer is not None:
        lines.append(Line(f"the answerer gave it {100 * asked.v_prob_answer:.0f} %", GREY))
    return lines


def explain(reason: str) -> str:
    """Why there is no answer, in words where it is the image's fault."""
    return f"no answer: {REASONS.get(reason, reason)}"


def spell(program: Sequence[str]) -> str:
    """The program's sentence; its tokens where it has none."""
    if isinstance(check_program(program), Failure):
        return " ".join(program)
    return sentence(program)


def find_images(cfg: Config, features: Features) -> Callable[[int], Tensor]:
    """What shows image i: its file (oracle.images), its pixels, or its map from above.

    Where a run has neither, a card with the number.
    """
    world = cfg.data.builtin
    if cfg.oracle.images:
        return lambda i: shrink(read_image(cfg.oracle.images.format(i)))
    if features.dtype == np.uint8 and features.shape[1] == 3:
        return lambda i: enlarge((features[[i]][0] * 255).round().byte())
    if cfg.data.name == "builtin":
        names = channels(options_of(world, "").world(world.height, world.width, rendered=False))
        return lambda i: draw_map(features[[i]][0], names)
    return lambda i: write_lines([Line(f"image {i}", GREY)], SIDE)


def shrink(image: Tensor) -> Tensor:
    """The image with SIDE pixels along its shorter side."""
    return resize(image, [SIDE], antialias=True)


def enlarge(image: Tensor) -> Tensor:
    """The image with each pixel repeated, as often as SIDE allows."""
    times = max(1, SIDE // image.shape[2])
    return image.repeat_interleave(times, 1).repeat_interleave(times, 2)


def draw_map(features: Tensor, names: Sequence[str]) -> Tensor:
    """A map (C, G, G) from above: shapes in their colours, metal with a glint, (3, SIDE, SIDE).

    names: of its channels. Things whose colour is not shown are white, those without a shape have
    a question mark.
    """
    maps, G = features.numpy(), features.shape[-1]
    place = {name: i for i, name in enumerate(names)}
    sheet = Image.new("RGB", (SIDE * SHARP, SIDE * SHARP), GROUND)
    canvas = ImageDraw.Draw(sheet)
    for row, column in np.argwhere(maps[place["object"]] > 0.5).tolist():
        cell = maps[:, row, column]
        on = {name for name, i in place.items() if cell[i] > 0.5}
        shown = {k: v for k, values in ATTRIBUTES.items() for v in values if f"{k}={v}" in on}
        x = (column + 0.5 + cell[place["right"]]) / G
        y = 1 - (row + 0.5 + cell[place["behind"]]) / G
        _draw_thing(canvas, float(x), float(y), shown)
    return pil_to_tensor(sheet.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _draw_thing(canvas: ImageDraw.ImageDraw, x: float, y: float, shown: dict[str, str]) -> None:
    """One thing at x, y, shares of the side, by the attributes that are known of it."""
    radius = RADII.get(shown.get("size", ""), 0.065) * SIDE * SHARP
    x, y = x * SIDE * SHARP, y * SIDE * SHARP
    fill = color_rgb(shown["color"]) if "color" in shown else UNSEEN
    box = (x - radius, y - radius, x + radius, y + radius)
    match shown.get("shape"):
        case "cube":
            canvas.rectangle(box, fill, "black", SHARP)
        case "cylinder":
            canvas.regular_polygon((x, y, radius * 1.15), 6, 0, fill, "black", SHARP)
        case _:
            canvas.ellipse(box, fill, "black", SHARP)
    if "shape" not in shown:
        canvas.text((x, y), "?", "black", ImageFont.load_default(TEXT_HEIGHT * SHARP), anchor="mm")
    if shown.get("material") == "metal":
        glint = radius / 4
        left, top = x - radius / 3 - glint, y - radius / 3 - glint
        canvas.ellipse((left, top, left + 2 * glint, top + 2 * glint), "white")


def pad(image: Tensor, width: int) -> Tensor:
    """The image in the middle of white, `width` wide."""
    sheet = torch.full((3, image.shape[1], max(width, image.shape[2])), 255, dtype=torch.uint8)
    left = (sheet.shape[2] - image.shape[2]) // 2
    sheet[:, :, left : left + image.shape[2]] = image
    return sheet


def write_lines(lines: Sequence[Line], width: int) -> Tensor:
    """Text on white, broken into lines of at most `width` pixels, (3, h, width)."""
    font = ImageFont.load_default(TEXT_HEIGHT)
    broken = [Line(part, line.ink) for line in lines for part in wrap(line.text, width, font)]
    sheet = Image.new("RGB", (width, LINE * len(broken) + 4), "white")
    canvas = ImageDraw.Draw(sheet)
    for number, (text, ink) in enumerate(broken):
        canvas.text((2, 2 + LINE * number), text, ink, font)
    return pil_to_tensor(sheet)


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most `width` pixels less a margin, but for a word that is longer."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width - 4:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]
