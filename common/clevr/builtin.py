"""The built-in CLEVR: scenes of this repository's world, questions about them, and features.

I pictures, C channels, G cells along either side of the map, H x W pixels. Two kinds of features:

`grid`: what a perfect detector would say, float32 (I, C, G, G): the ground as the camera sees it,
rows from front to behind, columns from left to right. Channels, see `channels`: whether an object
is in the cell, its attributes as one-hot vectors, and how far from the cell's middle it really
stands, to the right and to behind, in cells. No two objects share a row or a column: where they
would, they move to the nearest cells that keep their order, so that every relation can be read off
the map.

`pixels`: the rendered pictures, uint8 (I, 3, H, W).
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from ..scenes import Scenes, World
from ..scenes.annotate import clevr_scene
from ..scenes.cache import cache_folder
from ..scenes.place import place_all
from ..scenes.world import CLEVR_COLORS, CLEVR_SHAPES, COGENT_A, COGENT_B, MATERIALS, Combos
from .functions import ATTRIBUTES, COLORS, MOST_OBJECTS, SHAPES, SIZES
from .generation.generate import generate
from .generation.options import KINDS, Kind
from .generation.realise import paraphrase as in_other_words
from .generation.tiny import generate_tiny
from .questions import Question, read_questions, write_questions
from .scene_graph import SceneGraph, read_scenes, scenes_of, write_scenes

SPLITS: Final = ("train", "val", "test")
COMBOS: Final[dict[str, Combos]] = {"": (), "A": COGENT_A, "B": COGENT_B}
_VERSION = 2  # of what `build` makes, raised with every change of it; part of the cache's key
_RADII = dict(World().sizes)


@dataclass(frozen=True)
class BuiltIn:
    """A split. Row i of `features` and `scenes[i]` are what questions with image_index i ask of."""

    questions: list[Question]
    scenes: list[SceneGraph]
    features: np.ndarray


@dataclass(frozen=True)
class Options:
    """What may be in the scenes, and what is asked about them.

    Attributes that are not spoken of are still in the features.
    """

    objects: tuple[int, int] = (3, 6)  # of a scene, both ends included
    colors: tuple[str, ...] = CLEVR_COLORS
    shapes: tuple[str, ...] = CLEVR_SHAPES
    materials: tuple[str, ...] = MATERIALS
    sizes: tuple[str, ...] = SIZES
    combos: str = ""  # CoGenT's A or B: colours that cubes and cylinders may have; empty: all
    attributes: tuple[str, ...] | None = None  # spoken of; None: those of more than one value
    families: tuple[str | int, ...] | None = None  # see catalogue.select; None: the profile's
    filters: int = 4  # most attributes of a noun phrase; profile tiny

    def __post_init__(self) -> None:
        if self.combos not in COMBOS:
            raise ValueError(f"combos {self.combos!r} is neither A nor B of CoGenT, nor empty: all")
        for name, known in (("sizes", SIZES), ("colors", COLORS), ("shapes", SHAPES)):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown:
                raise ValueError(f"{name}: {unknown[0]!r} is not one of CLEVR's {', '.join(known)}")
        low, high = self.objects
        if not 1 <= low <= high <= MOST_OBJECTS:
            raise ValueError(f"objects={self.objects}: give 1 <= low <= high <= {MOST_OBJECTS}")

    def world(self, height: int, width: int, *, rendered: bool) -> World:
        """The world of these scenes; visibility is checked where they are rendered."""
        allowed = tuple(
            (shape, kept)
            for shape, colors in COMBOS[self.combos]
            if shape in self.shapes and (kept := tuple(c for c in colors if c in self.colors))
        )
        if self.combos and not allowed:
            raise ValueError(
                f"no shape of {self.shapes} has a colour of {self.colors} in CoGenT "
                f"{self.combos}: name more colours"
            )
        world = World(
            height=height,
            width=width,
            objects=self.objects,
            shapes=self.shapes,
            colors=self.colors,
            materials=self.materials,
            sizes=tuple((size, _RADII[size]) for size in self.sizes),
            combos=allowed,
        )
        return world if rendered else replace(world, min_visible=0)

    def kinds(self) -> tuple[Kind, ...]:
        """All objects that can occur."""
        allowed = dict(COMBOS[self.combos])
        return tuple(
            (size, color, material, shape)
            for size, color, material, shape in KINDS
            if size in self.sizes
            and material in self.materials
            and shape in self.shapes
            and color in self.colors
            and color in allowed.get(shape, COLORS)
        )

    def spoken(self) -> tuple[str, ...]:
        """The attributes that questions speak of."""
        if self.attributes is not None:
            return self.attributes
        values = (self.sizes, self.colors, self.materials, self.shapes)
        named = zip(ATTRIBUTES, values, strict=True)
        return tuple(attribute for attribute, known in named if len(known) > 1)


def build(
    *,
    split: str,
    images: int,
    per_image: int = 10,
    seed: int = 0,
    profile: str = "tiny",
    features: str = "grid",
    objects: tuple[int, int] = (3, 6),
    colors: tuple[str, ...] = CLEVR_COLORS,
    shapes: tuple[str, ...] = CLEVR_SHAPES,
    materials: tuple[str, ...] = MATERIALS,
    sizes: tuple[str, ...] = SIZES,
    combos: str = "",
    attributes: tuple[str, ...] | None = None,
    families: tuple[str | int, ...] | None = None,
    filters: int = 4,
    grid: int = 8,
    height: int = 64,
    width: int = 64,
    paraphrase: bool = False,
    cache: Path | None = None,
) -> BuiltIn:
    """Make, or read from the cache, the `split` (train | val | test) of a built-in CLEVR.

    Splits of one seed share no scene. profile: "tiny", short questions of a few families made
    fast, or "full", the 90 templates by the public generator's rules. objects .. filters: see
    `Options`. grid: cells along a side of the map; height, width: pixels of a picture.
    paraphrase: ask in words that no other split has, as people may do (realise.paraphrase).
    cache: folder for scenes and questions; None: the one of the rendered pictures.

    A small world that a network learns sooner: objects=(3, 5), colors=("red", "green", "blue",
    "yellow"), attributes=("color", "shape"), filters=2, grid=6.
    """
    if split not in SPLITS:
        raise ValueError(f"the built-in split {split!r} is not one of {', '.join(SPLITS)}")
    if images < 1 or per_image < 1 or seed < 0:
        raise ValueError(
            f"images={images} and per_image={per_image} must be at least 1, seed={seed} 0"
        )
    for name, value, known in (
        ("profile", profile, ("tiny", "full")),
        ("features", features, ("grid", "pixels")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
    options = Options(
        *(objects, colors, shapes, materials, sizes, combos, attributes, families, filters)
    )
    if features == "grid" and grid < options.objects[1]:
        raise ValueError(
            f"a map of {grid} x {grid} cells cannot keep {options.objects[1]} objects in rows and "
            f"columns of their own: give grid={options.objects[1]} or fewer objects"
        )
    world = options.world(height, width, rendered=features == "pixels")
    stream = len(SPLITS) * seed + SPLITS.index(split)
    made = (_VERSION, world, options, split, images, per_image, stream, profile, paraphrase)
    key = hashlib.sha256(repr(made).encode()).hexdigest()[:16]
    folder = (cache or cache_folder()) / "clevr" / key
    cached = _read(folder)
    if cached is None:
        scenes = _scenes(world, stream, split, images)
        questions = _questions(scenes, options, profile, per_image, stream)
        if paraphrase:
            random = Random(f"paraphrase {stream}")
            questions = [replace(q, text=in_other_words(q.text, random)) for q in questions]
        _keep(folder, scenes, questions)
    else:
        scenes, questions = cached
    if features == "pixels":
        pictures = Scenes(world, count=images, seed=stream, cache=cache).images().numpy()
        return BuiltIn(questions, scenes, pictures)
    return BuiltIn(questions, scenes, grid_map(scenes, world, grid))


def _scenes(world: World, stream: int, split: str, images: int) -> list[SceneGraph]:
    placed = place_all(world, stream, range(images))
    return scenes_of({"scenes": [clevr_scene(scene, split) for scene in placed]})


def _questions(
    scenes: list[SceneGraph], options: Options, profile: str, per_image: int, seed: int
) -> list[Question]:
    attributes, kinds = options.spoken(), options.kinds()
    if profile == "tiny":
        return generate_tiny(
            scenes,
            per_image=per_image,
            seed=seed,
            families=options.families,
            attributes=attributes,
            filters=options.filters,
            kinds=kinds,
            progress=True,
        )
    return generate(
        scenes,
        per_image=per_image,
        seed=seed,
        families=options.families,
        attributes=attributes,
        kinds=kinds,
        progress=True,
    )


def _read(folder: Path) -> tuple[list[SceneGraph], list[Question]] | None:
    """Scenes and questions of the cache; None where they are absent or damaged."""
    files = folder / "scenes.json", folder / "questions.json"
    if not all(file.exists() for file in files):
        return None
    try:
        return read_scenes(files[0], check=False), read_questions(files[1])
    except (OSError, ValueError) as error:
        warnings.warn(f"{error}; making it again", RuntimeWarning, stacklevel=3)
        return None


def _keep(folder: Path, scenes: list[SceneGraph], questions: list[Question]) -> None:
    """Put both files into the cache at once, whatever other processes do the same."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        write_scenes(new / "scenes.json", scenes)
        write_questions(new / "questions.json", questions)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        with suppress(OSError):  # another process was first, with the same bytes
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def channels(world: World) -> tuple[str, ...]:
    """Names of the channels of a map of this world."""
    values = [f"{name}={value}" for name in ATTRIBUTES for value in world.values(name)]
    return ("object", *values, "right", "behind")


def grid_map(scenes: Sequence[SceneGraph], world: World, grid: int) -> np.ndarray:
    """Maps (I, C, G, G) float32 of the ground, see the top of this file.

    The map's middle is the world's; its side is the diagonal of the square of centres, so that
    nothing falls out whichever way the camera looks.
    """
    names = channels(world)
    place = {name: i for i, name in enumerate(names)}
    maps = np.zeros((len(scenes), len(names), grid, grid), np.float32)
    side = 2 * np.sqrt(2) * world.spread / grid  # of a cell, in world units
    for i, scene in enumerate(scenes):
        points = np.array([thing.position for thing in scene.things]).reshape(-1, 3)
        spots = [points @ np.array(scene.directions[name]) for name in ("right", "behind")]
        columns, rows = (_apart(spot / side + grid / 2, grid) for spot in spots)
        for j, thing in enumerate(scene.things):
            cell = maps[i, :, rows[j], columns[j]]
            cell[0] = 1
            for attribute in ATTRIBUTES:
                cell[place[f"{attribute}={getattr(thing, attribute)}"]] = 1
            cell[-2] = spots[0][j] / side + grid / 2 - columns[j] - 0.5
            cell[-1] = spots[1][j] / side + grid / 2 - rows[j] - 0.5
    return maps


def _apart(positions: np.ndarray, cells: int) -> np.ndarray:
    """A cell of its own for each of n <= `cells` positions, in their order and close to them.

    The middle between moving those in the way up and moving them down.
    """
    order = np.argsort(positions, kind="stable")
    n = np.arange(len(order))
    wanted = np.floor(positions[order]).astype(int)
    up = np.maximum.accumulate(wanted - n) + n
    down = np.minimum.accumulate((wanted - n)[::-1])[::-1] + n
    out = np.empty(len(order), int)
    out[order] = np.clip((up + down) // 2, n, cells - len(order) + n)
    return out
