"""Figures of programs: each function of a program's tree above the map of its module's output.

A program is drawn from left to right, from `scene` to the root, behind its question's image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INCH = 1.25  # side of a map, inches like the others
HEAD = 0.32  # of a line of text
GAP, EDGE = 0.1, 0.15  # between functions, and around all
Spot = tuple[float, float]  # column and row
Thing = tuple[float, float, str, str, bool]  # of a scene, see `draw_ground`
LONGEST, LONGEST_PROGRAM = 90, 150  # characters of a question, of a program in one line
DIRECTIONS = "front is towards the viewer, lower in the image; behind is higher"
RIGHT, WRONG = "#1f7a3d", "#b3261e"  # colours of what is known to be so


@dataclass(frozen=True)
class Drawing:
    """One question with its program.

    image: uint8 (3, H, W). tokens: the N functions in the order they run, the root last; children:
    the places of each one's inputs, the left one first. maps: (N, h, w), not negative, or None.
    truth: the right answer, where it is known; true_program: the right program, as `expression`
    writes it, where it is known. A question without a program has no functions.
    """

    question: str
    image: Tensor
    tokens: Sequence[str]
    children: Sequence[Sequence[int]]
    answer: str
    truth: str | None = None
    maps: Tensor | None = None
    true_program: str | None = None

    @property
    def misread(self) -> bool:
        """Whether the program is known to be another than the true one."""
        known = self.true_program is not None and bool(self.tokens)
        return known and self.true_program != expression(self.tokens, self.children)


def expression(tokens: Sequence[str], children: Sequence[Sequence[int]]) -> str:
    """A program as one expression, `count(filter_color[red](scene))`."""

    def text(place: int) -> str:
        inputs = ", ".join(text(child) for child in children[place])
        return f"{tokens[place]}({inputs})" if inputs else tokens[place]

    return text(len(tokens) - 1)


def lay_out(children: Sequence[Sequence[int]]) -> list[Spot]:
    """Column and row of every function: a leaf is in column 0, in a row of its own.

    A function is one column behind its farthest input, in the middle of its inputs' rows.
    """
    spots: dict[int, Spot] = {}
    leaves = 0

    def visit(place: int) -> Spot:
        nonlocal leaves
        inputs = [visit(child) for child in children[place]]
        if inputs:
            row = sum(row for _, row in inputs) / len(inputs)
            spots[place] = 1 + max(column for column, _ in inputs), row
        else:
            spots[place] = 0.0, float(leaves)
            leaves += 1
        return spots[place]

    if children:
        visit(len(children) - 1)
    return [spots[place] for place in range(len(children))]


def draw_programs(path: str | Path, drawings: Sequence[Drawing], *, title: str = "") -> None:
    """Write a PNG with one strip per question: image, tree of functions, answer."""
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    if not drawings:
        raise ValueError("there is no program to draw")
    spots = [lay_out(drawing.children) for drawing in drawings]
    columns = 2.0 + max((column for strip in spots for column, _ in strip), default=0.0)
    rows = [1 + max((row for _, row in strip), default=0.0) for strip in spots]
    heights = [
        HEAD * (1.6 + 0.5 * drawing.misread) + count * (INCH + HEAD)
        for drawing, count in zip(drawings, rows, strict=True)
    ]
    width = max(columns * (INCH + GAP) + 2 * EDGE, 7.0)
    height = sum(heights) + (HEAD if title else 0)
    figure = Figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all, in inches: an axes a map takes seconds
    axes.set_axis_off()
    top = height
    if title:
        axes.text(EDGE, top - HEAD / 2, title, fontsize=10, va="center")
        top -= HEAD
    for drawing, strip, room in zip(drawings, spots, heights, strict=True):
        _strip(axes, drawing, strip, top)
        top -= room
    axes.set(xlim=(0, width), ylim=(0, height))
    part = Path(path).with_name(f".{Path(path).name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _strip(axes: Any, drawing: Drawing, strip: Sequence[Spot], top: float) -> None:
    """One question, whose uppermost line is `top` inches above the figure's foot."""
    question = drawing.question
    said = _cut(question, LONGEST)
    right = drawing.truth is None or drawing.truth == drawing.answer
    verdict = drawing.answer if right else f"{drawing.answer}, not {drawing.truth}"
    if drawing.truth is not None and right:
        verdict += " (right)"
    color = "black" if drawing.truth is None else (RIGHT if right else WRONG)
    if not drawing.answer and drawing.true_program is not None:  # only programs are written
        verdict = "another program" if drawing.misread else "the true program"
        color = WRONG if drawing.misread else RIGHT
    axes.text(EDGE, top - HEAD / 2, said, fontsize=9, va="center")
    axes.text(EDGE, top - HEAD * 1.15, f"→ {verdict}", fontsize=9, va="center", color=color)
    base = top - HEAD * (1.6 + 0.5 * drawing.misread)
    if drawing.misread:
        true = _cut(f"the true program is {drawing.true_program}", LONGEST_PROGRAM)
        axes.text(EDGE, top - HEAD * 1.75, true, fontsize=6.5, va="center", color=WRONG)
    for place, inputs in enumerate(drawing.children):
        for child in inputs:
            ends = [_corner(strip[child], base), _corner(strip[place], base)]
            xs = [ends[0][0] + INCH, ends[1][0]]
            axes.plot(xs, [y + INCH / 2 for _, y in ends], color="#777777", linewidth=1)
    _show(axes, (-1.0, 0.0), base, drawing.image.permute(1, 2, 0).numpy())
    for place, spot in enumerate(strip):
        if drawing.maps is None:
            shown = np.full((2, 2, 3), 0.94)
        else:
            shown = overlay(drawing.image, drawing.maps[place])
        _show(axes, spot, base, shown, drawing.tokens[place])


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _corner(spot: Spot, base: float) -> Spot:
    """Where the map at a column and row begins, left and below, in inches."""
    column, row = spot
    return EDGE + (column + 1) * (INCH + GAP), base - (row + 1) * (INCH + HEAD) + HEAD * 0.4


def _show(axes: Any, spot: Spot, base: float, image: np.ndarray, name: str = "") -> None:
    """An image (H, W, 3) at a column and row, below its name."""
    x, y = _corner(spot, base)
    axes.imshow(image, extent=(x, x + INCH, y, y + INCH), aspect="auto")
    axes.text(x + INCH / 2, y + INCH + 0.03, name, fontsize=6.5, ha="center", va="bottom")


def overlay(image: Tensor, strength: Tensor) -> np.ndarray:
    """The image, pale, under a map of 0 to its largest value; float (H, W, 3) of 0 to 1.

    image: uint8 (3, H, W); strength: (h, w), not negative.
    """
    strength = strength.detach().float()
    strength = strength / strength.max().clamp(min=1e-12)
    heat = F.interpolate(strength[None, None], image.shape[1:], mode="bilinear")[0, 0]
    gray = image.float().mean(0) / 255  # (H, W)
    pale = torch.stack([gray, gray, gray], -1) * 0.5 + 0.5 * (1 - heat[..., None])
    warm = torch.tensor([0.85, 0.15, 0.05])
    return ((1 - 0.75 * heat[..., None]) * pale + 0.75 * heat[..., None] * warm).clamp(0, 1).numpy()


def draw_ground(things: Sequence[Thing], *, side: int = 128) -> Tensor:
    """An image of a scene from above, uint8 (3, side, side), where none has been rendered.

    things: x to the right and y to the front, 0..1, shape, colour as any matplotlib name, large.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # as above

    marks = {"cube": "s", "sphere": "o", "cylinder": "H"}
    figure = Figure(figsize=(side / 64, side / 64), dpi=64)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1), facecolor="#d9d9d9")
    axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    for x, y, shape, color, large in things:
        size = side * (1.6 if large else 0.5)
        axis.scatter([x], [y], s=size, c=color, marker=marks.get(shape, "o"), edgecolors="black")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
