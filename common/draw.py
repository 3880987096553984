"""Figures: boxes drawn on images, grids of images with titles and legends, curves and bars.

An image is a uint8 tensor (3, H, W); every function returns a new one and leaves its input alone.
"""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from . import files

Color = tuple[int, int, int]
Line = tuple[Sequence[float], Sequence[float]]

PALETTE: list[Color] = [
    (228, 80, 55), (45, 120, 215), (40, 160, 95), (245, 170, 20),
    (140, 90, 210), (20, 175, 185), (230, 85, 155), (160, 200, 40),
    (140, 105, 75), (125, 185, 245), (245, 165, 130), (95, 110, 130),
]  # fmt: skip
TEXT_HEIGHT = 12  # pixels


def palette(count: int) -> list[Color]:
    """`count` colours, always the same ones; beyond the hand-picked, hues a golden angle apart."""
    spread = [
        colorsys.hls_to_rgb(0.61803399 * i % 1, (0.45, 0.62, 0.35)[i % 3], 0.65)
        for i in range(count - len(PALETTE))
    ]
    return (PALETTE + [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in spread])[:count]


def boxes(
    image: Tensor,
    boxes: Tensor,
    *,
    labels: Tensor | Sequence[int],
    names: Sequence[str],
    scores: Tensor | Sequence[float] | None = None,
    scale: int = 1,
    width: int = 0,
) -> Tensor:
    """The image with its boxes, (M, 4) x1, y1, x2, y2, each captioned with its class and score.

    labels: (M) numbers of `names`, which also choose the colours. scale: enlarges the image before
    anything is drawn, so that text stays readable; the boxes are given in pixels of the small one.
    width: of lines in pixels; 0: half of `scale`. Returns (3, H * scale, W * scale).
    """
    canvas_image = to_pil_image(image.cpu())
    size = (canvas_image.width * scale, canvas_image.height * scale)
    canvas_image = canvas_image.resize(size, Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(canvas_image)
    corners = (boxes.detach().float().cpu() * scale).tolist()
    classes = [int(label) for label in labels]
    shades = palette(max(classes, default=0) + 1)
    for corner, label in zip(corners, classes, strict=True):
        canvas.rectangle(corner, outline=shades[label], width=width or max(1, round(scale / 2)))
    for i, label in enumerate(classes):  # after all outlines, so that none crosses a caption
        caption = names[label] if scores is None else f"{names[label]} {float(scores[i]):.2f}"
        _caption(canvas, size, corners[i][:2], caption, shades[label])
    return pil_to_tensor(canvas_image)


def _caption(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    shade: Color,
) -> None:
    """Write `text` on a plate of colour `shade` above the corner, within an image of this size."""
    font = ImageFont.load_default(TEXT_HEIGHT)
    width, height = int(font.getlength(text)) + 4, TEXT_HEIGHT + 3
    x = max(0, min(int(corner[0]), size[0] - width))
    y = int(corner[1]) - height if corner[1] >= height else int(corner[1])
    y = max(0, min(y, size[1] - height))
    bright = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 140  # BT.601 luma
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=shade)
    ink = "black" if bright else "white"
    canvas.text((x + 2, y + height / 2), text, ink, font, anchor="lm")


def grid(
    images: Sequence[Tensor], columns: int, *, titles: Sequence[str], padding: int = 4
) -> Tensor:
    """Images of any sizes side by side, `columns` to a line, on white, each below its title.

    A line is as high as its highest image, a column as wide as its widest.
    """
    font = ImageFont.load_default(TEXT_HEIGHT)
    head = TEXT_HEIGHT + 6
    columns = min(columns, len(images))
    wide = [max(image.shape[2] for image in images[i::columns]) for i in range(columns)]
    for i, title in enumerate(titles):
        wide[i % columns] = max(wide[i % columns], int(font.getlength(title)) + 2)
    starts = range(0, len(images), columns)
    high = [max(image.shape[1] for image in images[i : i + columns]) + head for i in starts]
    size = (sum(wide) + padding * (columns + 1), sum(high) + padding * (len(high) + 1))
    sheet = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(sheet)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        line, column = divmod(i, columns)
        x, y = (padding * (k + 1) + sum(z[:k]) for k, z in ((column, wide), (line, high)))
        place = (x + (wide[column] - image.shape[2]) // 2, y + head)
        sheet.paste(to_pil_image(image.cpu()), place)
        canvas.text((x + wide[column] / 2, y + head / 2), title, "black", font, anchor="mm")
    return pil_to_tensor(sheet)


def legend(names: Sequence[str], *, colors: Sequence[Color]) -> Tensor:
    """A column of colour swatches with their names, to stand in a grid beside the images."""
    font = ImageFont.load_default(TEXT_HEIGHT)
    width = int(max((font.getlength(name) for name in names), default=0)) + TEXT_HEIGHT + 16
    line = TEXT_HEIGHT + 6
    sheet = Image.new("RGB", (width, line * len(names) + 4), "white")
    canvas = ImageDraw.Draw(sheet)
    for i, (name, shade) in enumerate(zip(names, colors, strict=True)):
        top = 4 + i * line
        canvas.rectangle((4, top, 4 + TEXT_HEIGHT, top + TEXT_HEIGHT), fill=shade)
        canvas.text((TEXT_HEIGHT + 10, top + TEXT_HEIGHT / 2), name, "black", font, anchor="lm")
    return pil_to_tensor(sheet)


def curves(path: Path, lines: Mapping[str, Line], *, xlabel: str, ylabel: str) -> None:
    """Write a PNG of the lines, label -> (xs, ys)."""
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for (label, (xs, ys)), color in zip(lines.items(), _fractions(len(lines)), strict=True):
        axes.plot(xs, ys, label=label, color=color, linewidth=1.6, marker="." * (len(xs) == 1))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)


def bars(path: Path, panels: Mapping[str, Mapping[str, float | None]]) -> None:
    """Write a PNG with one panel per quantity, {quantity: {name: value}}, and the values in words.

    A quantity that no name has is left out.
    """
    from matplotlib.figure import Figure  # as above

    panels = {title: bars for title, bars in panels.items() if set(bars.values()) != {None}}
    names = list(next(iter(panels.values()), {}))
    size = (2.2 + 2.4 * len(panels), 1.0 + 0.42 * len(names))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    for number, (title, values) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number, title=title)
        lengths = [value or 0.0 for value in values.values()]
        drawn = axes.barh(range(len(names)), lengths, color=_fractions(len(names)))
        words = ["–" if value is None else f"{value:.1f}" for value in values.values()]
        axes.bar_label(drawn, words, padding=3)
        axes.set_yticks(range(len(names)), names if number == 1 else [""] * len(names))
        axes.invert_yaxis()
        axes.margins(x=0.2)  # for the words
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path, *, dpi: float | str = "figure") -> None:
    """Write a figure of matplotlib as a PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def _fractions(count: int) -> list[list[float]]:
    """The palette as matplotlib takes it."""
    return [[channel / 255 for channel in shade] for shade in palette(count)]


def save_png(image: Tensor, path: Path) -> None:
    """Write the image as a PNG; its folder is made, and the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: to_pil_image(image.cpu()).save(file, format="png"))
