"""Pictures: boxes, masks, maps and keypoints drawn on images, grids of images, curves and charts.

Shapes: H x W pixels, M instances, J keypoints. An image is a uint8 tensor (3, H, W); every function
returns a new one and leaves its input alone. Boxes are x1, y1, x2, y2 in pixels of the image given.
`scale=4` enlarges a small picture fourfold before anything is drawn, so that text stays readable;
coordinates are given for the picture before it was enlarged.
"""

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F
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
    labels: Tensor | Sequence[int] | None = None,
    scores: Tensor | Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
    scale: int = 1,
    width: int = 0,
) -> Tensor:
    """The image with its boxes (M, 4), each captioned with its class and score where given.

    `labels` (M) index `names`; the colour follows the label, or the instance where there is none,
    unless `colors` names one per box. Lines are `width` pixels wide; 0: half of `scale`. Returns
    (3, H * scale, W * scale).
    """
    picture = _enlarged(image, scale)
    if boxes.shape[1:] != (4,) or boxes.dim() != 2:
        raise ValueError(f"boxes must be (M, 4), not {tuple(boxes.shape)}")
    corners = (boxes.detach().float().cpu() * scale).tolist()
    classes = None if labels is None else [int(label) for label in labels]
    confidence = None if scores is None else [float(score) for score in scores]
    for what, given in (("labels", classes), ("scores", confidence)):
        if given is not None and len(given) != len(corners):
            raise ValueError(f"{len(corners)} boxes come with {len(given)} {what}")
    shades = _colors(classes, len(corners), colors)
    canvas = ImageDraw.Draw(picture)
    captions = []
    for i, (x1, y1, x2, y2) in enumerate(corners):
        if not (x1 <= x2 and y1 <= y2):
            raise ValueError(f"box {i} is {boxes[i].tolist()}: x1 <= x2 and y1 <= y2 are needed")
        line = width or max(1, round(scale / 2))
        canvas.rectangle((x1, y1, x2, y2), outline=shades[i], width=line)
        words = []
        if classes is not None:
            words.append(names[classes[i]] if names is not None else str(classes[i]))
        if confidence is not None:
            words.append(f"{confidence[i]:.2f}")
        captions.append(" ".join(words))
    for caption, (x1, y1, *_), shade in zip(captions, corners, shades, strict=True):
        if caption:  # after all outlines, so that none crosses a caption
            _caption(canvas, picture.size, (x1, y1), caption, shade)
    return pil_to_tensor(picture)


def masks(
    image: Tensor,
    masks: Tensor,
    *,
    labels: Tensor | Sequence[int] | None = None,
    colors: Sequence[Color] | None = None,
    alpha: float = 0.5,
    scale: int = 1,
) -> Tensor:
    """The image with its masks, bool (M, H, W), as see-through colour within a solid contour.

    Later masks lie over earlier ones; colours are chosen as in `boxes`.
    """
    if masks.dim() != 3 or masks.shape[1:] != image.shape[1:]:
        raise ValueError(f"masks {tuple(masks.shape)} do not fit the image {tuple(image.shape)}")
    picture = pil_to_tensor(_enlarged(image, scale))
    if len(masks) == 0:
        return picture
    classes = None if labels is None else [int(label) for label in labels]
    shades = _colors(classes, len(masks), colors)
    areas = masks.detach().cpu().bool()
    areas = areas.repeat_interleave(scale, 1).repeat_interleave(scale, 2)  # (M, H*scale, W*scale)
    painted = picture.float()
    contours = _contours(areas, max(1, scale // 2))
    for area, contour, shade in zip(areas, contours, shades, strict=True):
        paint = torch.tensor(shade, dtype=torch.float32)[:, None]
        painted[:, area] = alpha * paint + (1 - alpha) * painted[:, area]
        painted[:, contour] = paint
    return painted.round().byte()


def label_map(
    ids: Tensor,
    *,
    image: Tensor | None = None,
    colors: Sequence[Color] | None = None,
    alpha: float = 0.6,
    scale: int = 1,
) -> Tensor:
    """A map of ids (H, W) in colours, over `image` where given; negative ids are left unpainted.

    The colour of id i is number i of `colors` (or of the palette, which starts again after 256), so
    one label looks alike in all pictures; different neighbours are parted by a dark line.
    """
    ids = ids.detach().cpu().long()
    if ids.dim() != 2:
        raise ValueError(f"a map of ids is (H, W), not {tuple(ids.shape)}")
    table = torch.tensor(list(colors) if colors is not None else palette(256), dtype=torch.float32)
    under = torch.full((3, *ids.shape), 255, dtype=torch.uint8) if image is None else image
    if under.shape[1:] != ids.shape:
        raise ValueError(f"ids {tuple(ids.shape)} do not fit the image {tuple(under.shape)}")
    picture = pil_to_tensor(_enlarged(under, scale)).float()
    ids = ids.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    paint = table[ids.clamp(min=0) % len(table)].permute(2, 0, 1)  # (3, H*scale, W*scale)
    opacity = 1.0 if image is None else alpha
    picture = torch.where(ids >= 0, opacity * paint + (1 - opacity) * picture, picture)
    border = torch.zeros_like(ids, dtype=torch.bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    picture[:, border] = 30
    return picture.round().clamp(0, 255).byte()


def keypoints(
    image: Tensor,
    keypoints: Tensor,
    *,
    skeleton: Sequence[tuple[int, int]] = (),
    colors: Sequence[Color] | None = None,
    scale: int = 1,
) -> Tensor:
    """The image with keypoints (M, J, 3) = x, y, v and the `skeleton`'s limbs, pairs of joints.

    As in COCO v = 0 is not labelled (not drawn), 1 is hidden (a ring), 2 is visible (a disc).
    """
    if keypoints.dim() != 3 or keypoints.shape[2] != 3:
        raise ValueError(f"keypoints must be (M, J, 3), not {tuple(keypoints.shape)}")
    picture = _enlarged(image, scale)
    canvas = ImageDraw.Draw(picture)
    shades = _colors(None, len(keypoints), colors)
    radius = max(2.0, 0.008 * max(picture.size))
    for person, shade in zip(keypoints.detach().cpu().tolist(), shades, strict=True):
        joints = [(x * scale, y * scale) if v > 0 else None for x, y, v in person]
        for a, b in skeleton:
            start, end = joints[a], joints[b]
            if start is not None and end is not None:
                canvas.line((*start, *end), fill=shade, width=max(1, round(0.8 * radius)))
        for (_, _, v), joint in zip(person, joints, strict=True):
            if joint is not None:
                fill = shade if v > 1 else (255, 255, 255)
                outline = (255, 255, 255) if v > 1 else shade
                canvas.circle(joint, radius, fill, outline, width=1 if v > 1 else 2)
    return pil_to_tensor(picture)


def grid(
    images: Sequence[Tensor],
    columns: int,
    *,
    titles: Sequence[str] | None = None,
    padding: int = 4,
) -> Tensor:
    """Images of any sizes side by side, `columns` to a line, on white, each below its title.

    A line is as high as its highest image, a column as wide as its widest.
    """
    if not images:
        raise ValueError("a grid needs at least one image")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} images come with {len(titles)} titles")
    font = ImageFont.load_default(TEXT_HEIGHT)
    head = TEXT_HEIGHT + 6 if titles is not None else 0
    texts = [font.getlength(title) for title in titles or ()]
    columns = min(columns, len(images))
    wide = [max(image.shape[2] for image in images[i::columns]) for i in range(columns)]
    wide = [max(w, *(int(t) + 2 for t in texts[i::columns]), 1) for i, w in enumerate(wide)]
    starts = range(0, len(images), columns)
    high = [max(image.shape[1] for image in images[i : i + columns]) + head for i in starts]
    size = (sum(wide) + padding * (columns + 1), sum(high) + padding * (len(high) + 1))
    sheet = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        line, column = divmod(i, columns)
        x, y = (padding * (k + 1) + sum(z[:k]) for k, z in ((column, wide), (line, high)))
        sheet.paste(_enlarged(image, 1), (x + (wide[column] - image.shape[2]) // 2, y + head))
        if titles is not None:
            middle = (x + wide[column] / 2, y + head / 2)
            canvas.text(middle, titles[i], "black", font, anchor="mm")
    return pil_to_tensor(sheet)


def legend(names: Sequence[str], *, colors: Sequence[Color] | None = None) -> Tensor:
    """A column of colour swatches with their names, to stand in a grid beside the pictures."""
    font = ImageFont.load_default(TEXT_HEIGHT)
    shades = _colors(None, len(names), colors)
    width = int(max((font.getlength(name) for name in names), default=0)) + TEXT_HEIGHT + 16
    line = TEXT_HEIGHT + 6
    sheet = Image.new("RGB", (width, line * len(names) + 4), "white")
    canvas = ImageDraw.Draw(sheet)
    for i, (name, shade) in enumerate(zip(names, shades, strict=True)):
        top = 4 + i * line
        canvas.rectangle((4, top, 4 + TEXT_HEIGHT, top + TEXT_HEIGHT), fill=shade)
        canvas.text((TEXT_HEIGHT + 10, top + TEXT_HEIGHT / 2), name, "black", font, anchor="lm")
    return pil_to_tensor(sheet)


def curves(
    path: Path | str,
    lines: dict[str, Line],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
) -> None:
    """Write a PNG of the lines, label -> (xs, ys); `log` makes the upward axis logarithmic."""
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shades = palette(len(lines))
    for (label, (xs, ys)), shade in zip(lines.items(), shades, strict=True):
        color = [channel / 255 for channel in shade]
        axes.plot(xs, ys, label=label, color=color, linewidth=1.6, marker="." * (len(xs) == 1))
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(frameon=False)
    _write(Path(path), lambda file: figure.savefig(file, format="png"))


def bars(path: Path | str, panels: dict[str, dict[str, float | None]]) -> None:
    """Write a PNG with one panel per quantity, {quantity: {name: value}}, and the values in words.

    A quantity that no name has is left out.
    """
    from matplotlib.figure import Figure  # as above

    panels = {title: bars for title, bars in panels.items() if set(bars.values()) != {None}}
    names = list(next(iter(panels.values()), {}))
    size = (2.2 + 2.4 * len(panels), 1.0 + 0.42 * len(names))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    colors = [[channel / 255 for channel in shade] for shade in palette(len(names))]
    for number, (title, values) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number, title=title)
        drawn = axes.barh(range(len(names)), [v or 0.0 for v in values.values()], color=colors)
        axes.bar_label(
            drawn, ["–" if v is None else f"{v:.1f}" for v in values.values()], padding=3
        )
        axes.set_yticks(range(len(names)), names if number == 1 else [""] * len(names))
        axes.invert_yaxis()
        axes.margins(x=0.2)  # for the words
        axes.spines[["top", "right"]].set_visible(False)
    _write(Path(path), lambda file: figure.savefig(file, format="png"))


def save_png(image: Tensor, path: Path | str) -> None:
    """Write the image as a PNG; its folder is made, and the file appears whole or not at all."""
    picture = _enlarged(image, 1)
    _write(Path(path), lambda file: picture.save(file, format="png"))


def _write(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Let `save` write the file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, save)


def _enlarged(image: Tensor, scale: int) -> Image.Image:
    """The image as a PIL picture of its own, `scale` times as large."""
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"uint8 (3, H, W) is needed, not {image.dtype} {tuple(image.shape)}")
    picture = to_pil_image(image.detach().cpu())
    if scale == 1:
        return picture
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _colors(
    labels: Sequence[int] | None, count: int, colors: Sequence[Color] | None
) -> list[Color]:
    """One colour per instance: the given ones, else by label, else by place."""
    if colors is not None:
        if len(colors) != count:
            raise ValueError(f"{count} instances come with {len(colors)} colors")
        return list(colors)
    numbers = range(count) if labels is None else labels
    shades = palette(max(numbers, default=0) + 1)
    return [shades[number] for number in numbers]


def _caption(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    shade: Color,
) -> None:
    """Write `text` on a plate of colour `shade` above the corner, within a picture of this size."""
    font = ImageFont.load_default(TEXT_HEIGHT)
    width, height = int(font.getlength(text)) + 4, TEXT_HEIGHT + 3
    x = max(0, min(int(corner[0]), size[0] - width))
    y = int(corner[1]) - height if corner[1] >= height else int(corner[1])
    y = max(0, min(y, size[1] - height))
    bright = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 140  # BT.601 luma
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=shade)
    ink = "black" if bright else "white"
    canvas.text((x + 2, y + height / 2), text, ink, font, anchor="lm")


def _contours(areas: Tensor, width: int) -> Tensor:
    """The pixels of each area within `width` of its edge; bool (M, H, W) -> bool (M, H, W)."""
    outside = F.pad((~areas).float()[:, None], [width] * 4, value=1.0)
    near = F.max_pool2d(outside, 2 * width + 1, stride=1)[:, 0]  # (M, H, W)
    return areas & (near > 0)
