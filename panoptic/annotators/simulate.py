"""Two simulated annotators of the same images, for the consistency study of Sec. 6.

The doubly annotated images of the paper were never released, so `study.py` without files looks at
these: people who draw borders a little differently, overlook objects, the smaller the likelier, and
now and then name one wrongly. They draw the maps that `study.py` gives them, of the built-in images
or of the plain shapes of `scenes`. H x W pixels; maps are ids (H, W) int32, 0 void, with segments.
Everything follows from the seed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from ..files.categories import Category

Segments = list[dict[str, Any]]
Annotated = tuple[np.ndarray, Segments]  # ids (H, W) int32, and what they are

CATEGORIES = {
    number: Category(number, name, number <= 6, color, "solid" if number <= 6 else "ground")
    for number, (name, color) in enumerate(
        {
            "disc": (228, 80, 55),
            "square": (45, 120, 215),
            "triangle": (245, 170, 20),
            "hexagon": (140, 90, 210),
            "cross": (230, 85, 155),
            "ring": (20, 175, 185),
            "grass": (125, 180, 90),
            "sand": (225, 205, 150),
            "water": (125, 165, 215),
            "stone": (150, 150, 155),
        }.items(),
        start=1,
    )
}


class Annotator(NamedTuple):
    """How one person errs; pixels, and probabilities for each thing."""

    shift: float = 1.3  # standard deviation of a border's displacement along each axis
    smooth: float = 4.0  # over how many pixels the displacement stays alike
    overlook: float = 0.02  # things of any size
    overlook_small: float = 0.6  # ... and this / sqrt(area) more
    confuse: float = 0.03  # things named as another class of things


def scene(generator: np.random.Generator, *, height: int = 96, width: int = 128) -> Annotated:
    """Map and segments of a scene: four regions of stuff, before them 8 to 14 solids.

    Radii are log-uniform from 2.5 to 18 pixels; the larger solids lie behind. What is hidden
    has no segment.
    """
    noise = generator.standard_normal((4, height, width))
    regions = ndimage.gaussian_filter(noise, (0, 14, 14)).argmax(0)
    ids = (7 + regions).astype(np.int32)  # for now, the category
    radii = np.exp(generator.uniform(np.log(2.5), np.log(18), generator.integers(8, 15)))
    kinds = dict(zip(range(7, 11), range(7, 11), strict=True))
    y, x = np.mgrid[:height, :width].astype(float)
    for number, radius in enumerate(np.sort(radii)[::-1], 11):
        middle, angle = generator.uniform(size=2) * (width, height), generator.uniform(0, 2 * np.pi)
        kind = int(generator.integers(1, 7))
        u, v = (x - middle[0]) / radius, (y - middle[1]) / radius
        turned = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        ids[SHAPES[kind - 1](*turned)] = number
        kinds[number] = kind
    return ids, _list_segments(ids, kinds)


def _polygon(corners: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Inside a regular polygon of the area of the unit circle."""
    size = np.sqrt(np.pi / (corners * np.tan(np.pi / corners)))  # from the centre to a side

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        sides = 2 * np.pi * np.arange(corners)[:, None, None] / corners
        return (u * np.cos(sides) + v * np.sin(sides)).max(0) < size

    return inside


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u**2 + v**2 < 1


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.minimum(abs(u), abs(v)) < 0.4) & (np.maximum(abs(u), abs(v)) < 1.1)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return abs(np.hypot(u, v) - 0.8) < 0.4


SHAPES = (_disc, _polygon(4), _polygon(3), _polygon(6), _cross, _ring)  # of categories 1 to 6


def annotate(
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    generator: np.random.Generator,
    *,
    categories: Mapping[int, bool],
    annotator: Annotator = Annotator(),  # noqa: B008 (immutable)
) -> Annotated:
    """The map as one person would draw it, with the ids of the segments that are left.

    categories: id -> whether it is a thing. What is overlooked goes to the nearest segment that is
    not. Stuff is named rightly, and crowds and void are drawn like the rest.
    """
    kinds = {int(s["id"]): int(s["category_id"]) for s in segments}
    crowds = {int(s["id"]) for s in segments if s.get("iscrowd", 0)}
    things = [category for category, thing in categories.items() if thing]
    areas = dict(zip(*(side.tolist() for side in np.unique(ids, return_counts=True)), strict=True))
    overlooked = []
    for number, kind in kinds.items():
        chance, error = generator.uniform(size=2)  # drawn for each, so that none moves another's
        other = int(generator.integers(max(1, len(things) - 1)))
        if not categories[kind] or number in crowds or number not in areas:
            continue
        if chance < annotator.overlook + annotator.overlook_small / np.sqrt(areas[number]):
            overlooked.append(number)
        elif error < annotator.confuse and len(things) > 1:
            kinds[number] = [category for category in things if category != kind][other]
    drawn = ids
    missing = np.isin(ids, overlooked)
    if missing.any() and not missing.all():
        nearest = ndimage.distance_transform_edt(
            missing, return_distances=False, return_indices=True
        )
        drawn = ids[tuple(nearest)]
    field = ndimage.gaussian_filter(
        generator.standard_normal((2, *ids.shape)), (0, annotator.smooth, annotator.smooth)
    )
    field *= annotator.shift / np.maximum(field.std((1, 2), keepdims=True), 1e-12)
    places = [
        np.clip(np.rint(grid + shift), 0, size - 1).astype(int)
        for grid, shift, size in zip(np.indices(ids.shape), field, ids.shape, strict=True)
    ]
    drawn = drawn[tuple(places)]
    return drawn, _list_segments(drawn, kinds, crowds)


def _list_segments(
    ids: np.ndarray, kinds: Mapping[int, int], crowds: set[int] | None = None
) -> Segments:
    """Segments that are seen in the map."""
    return [
        {"id": number, "category_id": kinds[number], "iscrowd": int(number in (crowds or ()))}
        for number in np.unique(ids).tolist()
        if number
    ]


def scenes(count: int = 60, *, seed: int = 0) -> Iterator[Annotated]:
    """`count` plain scenes, none of which depends on how many there are."""
    return (scene(np.random.default_rng([seed, i, 0])) for i in range(count))


def pairs(
    truths: Iterable[Annotated], *, seed: int = 0, categories: Mapping[int, bool]
) -> Iterator[tuple[Annotated, Annotated]]:
    """Each map as the first and as the second annotator draws it.

    The errors follow from the seed and the place of the map. categories: see `annotate`.
    """
    for place, truth in enumerate(truths):
        first, second = (
            annotate(*truth, np.random.default_rng([seed, place, person]), categories=categories)
            for person in (1, 2)
        )
        yield first, second
