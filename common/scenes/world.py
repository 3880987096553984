"""`World`: everything that may vary in the built-in scenes, as one hashable value.

Lengths are in world units (a large CLEVR solid has radius 0.7), angles in degrees, the floor is
z = 0. Attributes, radii and placement rules follow CLEVR (arXiv 1612.06890 and its generator).
"""

import colorsys
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import product

COLORS: dict[str, tuple[int, int, int]] = {  # sRGB, 0..255
    "gray": (87, 87, 87),  # the first eight are CLEVR's
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
    "orange": (240, 120, 20),
    "pink": (245, 130, 180),
    "lime": (140, 220, 40),
    "navy": (25, 30, 95),
    "teal": (15, 125, 125),
    "white": (235, 235, 230),
}
CLEVR_COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
CLEVR_SHAPES = ("cube", "sphere", "cylinder")
SHAPES = (
    *CLEVR_SHAPES,
    "cone",
    "pyramid",
    "torus",
    "prism",
    "hexagon",
    "octahedron",
    "ellipsoid",
    "capsule",
    "dome",
    "frustum",
)
MATERIALS = ("rubber", "metal")
REGIONS = ("floor", "wall", "sky", "rug", "water", "grass")  # the values of a region map
FLOORS = ("plain", "checker", "noise", "planks", "tiles")
WALLS = ("none", "plain", "brick", "panels")
SKIES = ("plain", "gradient", "clouds")
PATCHES = ("rug", "water", "grass")
ATTRIBUTES = ("shape", "color", "material", "size")

Combos = tuple[tuple[str, tuple[str, ...]], ...]
_A, _B = ("gray", "blue", "brown", "yellow"), ("red", "green", "purple", "cyan")
COGENT_A: Combos = (("cube", _A), ("cylinder", _B), ("sphere", CLEVR_COLORS))
COGENT_B: Combos = (("cube", _B), ("cylinder", _A), ("sphere", CLEVR_COLORS))


def hues(count: int, *, saturation: float = 0.8, value: float = 0.85) -> tuple[str, ...]:
    """`count` colours evenly spaced in hue, as `#rrggbb` names that `World.colors` accepts."""
    rgb = (colorsys.hsv_to_rgb(i / count, saturation, value) for i in range(count))
    return tuple("#" + "".join(f"{round(255 * c):02x}" for c in color) for color in rgb)


def color_rgb(name: str) -> tuple[int, int, int]:
    """Red, green, blue (sRGB 0..255) of a name in `COLORS` or of `#rrggbb`."""
    if name in COLORS:
        return COLORS[name]
    try:
        if len(name) != 7 or name[0] != "#":
            raise ValueError(name)
        return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
    except ValueError:
        raise ValueError(
            f"colour {name!r} is neither #rrggbb nor one of {', '.join(COLORS)}"
        ) from None


@dataclass(frozen=True)
class World:
    """A family of scenes; the defaults are CLEVR's rules at 128 x 96 pixels.

    Fewer, larger solids: lower `spread` (half the side of the square of centres) and the camera
    comes closer by itself, e.g. `World(height=32, width=32, objects=(1, 2), spread=0.8)`.
    """

    height: int = 96  # pixels
    width: int = 128
    objects: tuple[int, int] = (3, 10)  # labelled solids per scene, both ends included
    shapes: tuple[str, ...] = CLEVR_SHAPES
    colors: tuple[str, ...] = CLEVR_COLORS  # names in COLORS, or #rrggbb (see `hues`)
    materials: tuple[str, ...] = MATERIALS
    sizes: tuple[tuple[str, float], ...] = (("small", 0.35), ("large", 0.7))  # name, radius
    radius: tuple[float, float] | None = None  # log-uniform; a size name is then the nearest one
    combos: Combos = ()  # allowed colours per shape (COGENT_A, COGENT_B); empty: all
    color_jitter: float = 0.0  # each solid's r, g, b times 1 +- this
    distractors: tuple[int, int] = (0, 0)  # unlabelled solids
    distractor_shapes: tuple[str, ...] = ("torus", "cone")
    clutter: tuple[int, int] = (0, 0)  # pebbles and stains, unlabelled
    floor: str = "plain"  # one of FLOORS
    wall: str = "none"  # one of WALLS; "none": the floor runs to the horizon
    sky: str = "gradient"  # one of SKIES
    patches: tuple[str, ...] = ()  # further ground, each of PATCHES: one patch per scene and name
    tint: float = 0.0  # how far floor and wall may be coloured, 0..1
    shadows: bool = True
    antialias: bool = True  # four rays in pixels with contrast
    noise: float = 0.0  # sensor noise, standard deviation in levels of 0..255
    spread: float = 3.0  # centres lie in [-spread, spread]^2
    margin: float = 0.4  # least distance of two centres along left/right and front/behind
    min_gap: float = 0.25  # least free distance between two solids; may be negative
    min_visible: float = 200 / (480 * 320)  # per labelled solid: share of the image, or pixels
    jitter: float = 0.5  # camera position, per axis, at CLEVR's camera distance
    light_jitter: float = 1.0  # lamp position, likewise
    fov: float = 49.1  # degrees over the width
    elevation: float = 28.3  # degrees above the floor
    distance: float | None = None  # camera to scene centre; None: the square fills the image

    def __post_init__(self) -> None:
        for field in fields(self):  # lists and dicts, as configuration files give them
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        self._check_choices()
        for name in ("objects", "distractors", "clutter"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"World.{name}={(low, high)}: give 0 <= low <= high")
        if self.objects[1] + self.distractors[1] + self.clutter[1] > 255:
            raise ValueError("a World may hold 255 solids per scene at most (ids are one byte)")
        if self.height < 8 or self.width < 8:
            raise ValueError(f"an image of {self.width} x {self.height} is too small: 8 x 8 least")
        if self.radius is not None and not 0 < self.radius[0] <= self.radius[1]:
            raise ValueError(f"World.radius={self.radius}: give 0 < low <= high, or None")
        if any(radius <= 0 for _, radius in self.sizes):
            raise ValueError(f"World.sizes={self.sizes}: every radius must be positive")
        for name in ("color_jitter", "tint", "noise", "margin", "min_visible", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"World.{name}={getattr(self, name)} must not be negative")
        if self.spread <= 0 or not 5 <= self.elevation <= 85 or not 5 <= self.fov <= 120:
            raise ValueError(
                f"World needs spread > 0 (is {self.spread}), elevation in 5..85 "
                f"(is {self.elevation}) and fov in 5..120 (is {self.fov})"
            )

    def _check_choices(self) -> None:
        several: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("shapes", SHAPES),
            ("distractor_shapes", SHAPES),
            ("materials", MATERIALS),
            ("patches", PATCHES),
        )
        for name, allowed in several:
            chosen = getattr(self, name)
            for value in chosen:
                _require(f"World.{name}", value, allowed)
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"World.{name}={chosen} names one twice")
        for name, allowed in (("floor", FLOORS), ("wall", WALLS), ("sky", SKIES)):
            _require(f"World.{name}", getattr(self, name), allowed)
        for name in ("shapes", "colors", "materials", "sizes"):
            if not getattr(self, name):
                raise ValueError(f"World.{name} must not be empty")
        for color in self.colors:
            color_rgb(color)
        for shape, colors in self.combos:
            _require("World.combos", shape, self.shapes)
            for color in colors:
                _require(f"World.combos[{shape}]", color, self.colors)
        both = set(self.shapes) & set(self.distractor_shapes)
        if self.distractors[1] and both:
            raise ValueError(
                f"World.distractor_shapes may not repeat labelled shapes: drop {sorted(both)}"
            )

    def colors_of(self, shape: str) -> tuple[str, ...]:
        """Colours a labelled `shape` may have; empty where `combos` leaves the shape out."""
        return dict(self.combos).get(shape, ()) if self.combos else self.colors

    @property
    def largest(self) -> float:
        """Largest radius of a labelled solid."""
        return self.radius[1] if self.radius else max(radius for _, radius in self.sizes)

    @property
    def min_pixels(self) -> int:
        """Least number of visible pixels of every labelled solid."""
        share = self.min_visible * self.height * self.width
        return math.ceil(share if self.min_visible < 1 else self.min_visible)

    @property
    def stuff(self) -> tuple[str, ...]:
        """Names out of `REGIONS` that can occur; without a wall the sky may be out of view."""
        walls = () if self.wall == "none" else ("wall",)
        return ("floor", *walls, "sky", *(name for name in PATCHES if name in self.patches))

    def classes(self, by: tuple[str, ...] = ("shape",)) -> list[str]:
        """Names of all classes, e.g. `by=("shape", "color")` -> ["gray cube", "red cube", ...].

        The last attribute of `by` varies fastest; the list does not depend on `combos`.
        """
        return [
            " ".join(value for _, value in sorted(zip(by, values, strict=True), key=_word_order))
            for values in product(*(self.values(name) for name in by))
        ]

    def values(self, attribute: str) -> tuple[str, ...]:
        """All values of shape, color, material or size."""
        match attribute:
            case "shape":
                return self.shapes
            case "color":
                return self.colors
            case "material":
                return self.materials
            case "size":
                return tuple(name for name, _ in self.sizes)
        raise ValueError(f"a class can depend on {', '.join(ATTRIBUTES)}, not on {attribute!r}")


def _frozen(value: object) -> object:
    """`value` with lists turned into tuples and mappings into tuples of items."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value


def _word_order(item: tuple[str, str]) -> int:
    return ("size", "color", "material", "shape").index(item[0])


def _require(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what}: {value!r} is not one of {', '.join(allowed)}{hint}")
