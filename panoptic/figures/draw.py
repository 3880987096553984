"""Panoptic maps as images: segments in colour within their boundaries, and what is wrong.

H x W pixels, s the scale. Images are uint8 (3, H, W), ids (H, W) whole numbers with 0 for void.
"""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files.categories import Category
from ..metric.matching import Matching

Color = tuple[int, int, int]

BOUNDARY: Color = (25, 25, 25)
VOID: Color = (150, 150, 150)
SHADES = 0, 0.2, -0.2, 0.1, -0.1  # of things of a class in turn, towards white or black
ERRORS: dict[str, Color] = {  # in the order of a legend
    "found (TP)": (40, 160, 95),
    "found, but not these pixels": (245, 200, 60),
    "invented (FP)": (228, 80, 55),
    "missed (FN)": (45, 120, 215),
    "invented and missed": (140, 60, 170),
    "void, crowd or ignored": VOID,
}
FOUND, BORDER, INVENTED, MISSED, BOTH, IGNORED = range(len(ERRORS))


def colors_of(
    segments: Sequence[Mapping[str, Any]], categories: Mapping[int, Category]
) -> dict[int, Color]:
    """A colour for each segment id: that of its class, a little lighter or darker for more things.

    The hue is always the class's, so that it can be read off a legend.
    """
    seen: dict[int, int] = {}
    colors = {}
    for segment in segments:
        category = categories[segment["category_id"]]
        number = seen[category.id] = seen.get(category.id, -1) + 1
        share = SHADES[number % len(SHADES)] if category.isthing else 0
        end = 255 if share > 0 else 0
        shaded = [round(v + abs(share) * (end - v)) for v in color_of(category, categories)]
        colors[int(segment["id"])] = (shaded[0], shaded[1], shaded[2])
    return colors


def color_of(category: Category, categories: Mapping[int, Category]) -> Color:
    """The colour of a class: its own, or by its place among the others where it has none."""
    return category.color if any(category.color) else hue(list(categories).index(category.id))


def hue(number: int) -> Color:
    """A colour for the class in this place, where its data set gives it none."""
    red, green, blue = colorsys.hls_to_rgb(0.61803399 * number % 1, 0.5, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: Tensor,
    ids: Tensor,
    segments: Sequence[Mapping[str, Any]],
    categories: Mapping[int, Category],
    *,
    alpha: float = 0.7,
    scale: int = 1,
) -> Tensor:
    """The grey image under its segments, dark boundaries between them; (3, H * s, W * s).

    Void is plain grey. alpha: opacity of the colours.
    """
    paint = torch.tensor(VOID, dtype=torch.float32)[:, None, None].repeat(1, *ids.shape)
    opacity = torch.ones(ids.shape)
    for number, color in colors_of(segments, categories).items():
        mask = ids == number
        paint[:, mask] = torch.tensor(color, dtype=torch.float32)[:, None]
        opacity[mask] = alpha
    return _compose(image, ids, paint, opacity, scale)


def errors(
    image: Tensor,
    prediction: Tensor,
    truth: Tensor,
    matching: Matching,
    *,
    alpha: float = 0.75,
    scale: int = 1,
) -> Tensor:
    """The outcome of each pixel over the grey image, coloured as `ERRORS`; (3, H * s, W * s).

    prediction, truth: ids (H, W). matching: what `PanopticQuality.update` returns. The
    boundaries are those of the prediction.
    """
    invented = _among(prediction, [outcome.prediction for outcome in matching.fp])
    missed = _among(truth, [outcome.truth for outcome in matching.fn])
    kind = torch.full(truth.shape, IGNORED)
    for pair in matching.tp:
        kind[(prediction == pair.prediction) ^ (truth == pair.truth)] = BORDER
    kind[truth == 0] = IGNORED  # such pixels are taken out of the prediction
    kind[invented] = INVENTED
    kind[missed] = MISSED
    kind[invented & missed] = BOTH
    for pair in matching.tp:  # last, as the border of one lies within others
        kind[(prediction == pair.prediction) & (truth == pair.truth)] = FOUND
    paint = torch.tensor([*ERRORS.values()], dtype=torch.float32)[kind].permute(2, 0, 1)
    return _compose(image, prediction, paint, torch.full(truth.shape, alpha), scale)


def enlarge(image: Tensor, scale: int) -> Tensor:
    """The image alone, (3, H * s, W * s)."""
    size = [scale * side for side in image.shape[1:]]
    large = F.interpolate(image[None].float(), size, mode="bicubic")[0]
    return large.clamp(0, 255).round().byte()


def _among(ids: Tensor, wanted: list[int]) -> Tensor:
    """Where a map (H, W) has one of these ids."""
    return torch.isin(ids, torch.tensor(wanted, dtype=ids.dtype))


def _compose(image: Tensor, ids: Tensor, paint: Tensor, alpha: Tensor, scale: int) -> Tensor:
    """`paint` (3, H, W) over the grey image, opacity `alpha` (H, W), and boundaries of `ids`."""
    if image.shape[1:] != ids.shape:
        raise ValueError(f"ids {tuple(ids.shape)} do not fit the image {tuple(image.shape)}")
    under = enlarge(image, scale).float().mean(0, keepdim=True)  # its colours would mix in
    paint, opacity, ids = (
        part.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
        for part in (paint, alpha, ids)
    )
    painted = opacity * paint + (1 - opacity) * under
    border = torch.zeros(ids.shape, dtype=torch.bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    painted[:, border] = torch.tensor(BOUNDARY, dtype=torch.float32)[:, None]
    return painted.round().byte()
