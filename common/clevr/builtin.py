"""The built-in CLEVR: scenes of this repository's world, questions about them, and features.

I images, C channels, G cells along either side of the map, H x W pixels. Two kinds of features:

- `grid`: what a perfect detector would say, float32 (I, C, G, G), see arrays/grid.py.
- `pixels`: the rendered images, uint8 (I, 3, H, W).
"""

import hashlib
import os
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from ..scenes import Scenes, World
from ..scenes.annotate import clevr_scene
from ..scenes.cache import cache_folder
from ..scenes.place import place_all
from ..scenes.world import CLEVR_COLORS, CLEVR_SHAPES, COGENT_A, COGENT_B, MATERIALS, Combos
from .arrays.grid import grid_map
from .functions import ATTRIBUTES, COLORS, MOST_OBJECTS, SHAPES, SIZES
from .generation import realise
from .generation.generate import generate
from .generation.options import KINDS, Kind
from .generation.tiny import generate_tiny
from .questions import Question, read_questions, write_questions
from .scene_graph import SceneGraph, read_scenes, scenes_of, write_scenes

SPLITS: Final = ("train", "val", "test")
COMBOS: Final[dict[str, Combos]] = {"": (), "A": COGENT_A, "B": COGENT_B}
_VERSION = 2  # of what `build` makes, raised with every change of it; part of the key of the cache
_RADII = dict(World().sizes)


@dataclass(frozen=True)
class BuiltIn:
    """A split. Questions with image_index i are about row i of `features` and `scenes[i]`."""

    questions: list[Question]
    scenes: list[SceneGraph]
    features: np.ndarray


@dataclass(frozen=True)
class Options:
    """What may be in the scenes, and what is asked about them.

    Attributes that no question mentions are still in the features.
    """

    objects: tuple[int, int] = (3, 6)  # of a scene, both ends included
    colors: tuple[str, ...] = CLEVR_COLORS
    shapes: tuple[str, ...] = CLEVR_SHAPES
    materials: tuple[str, ...] = MATERIALS
    sizes: tuple[str, ...] = SIZES
    combos: str = ""  # CoGenT's A or B: colours that cubes and cylinders may have; empty: all
    attributes: tuple[str, ...] | None = None  # asked about; None: those of more than one value
    families: tuple[str | int, ...] | None = None  # see catalogue.select; None: the profile's
    filters: int = 4  # most attributes of a noun phrase, in the profile tiny

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

    def topics(self) -> tuple[str, ...]:
        """The attributes that questions mention."""
        if self.attributes is not None:
            return self.attributes
        values = (self.sizes, self.colors, self.materials, self.shapes)
        pairs = zip(ATTRIBUTES, values, strict=True)
        return tuple(attribute for attribute, choices in pairs if len(choices) > 1)


@dataclass(frozen=True)
class FeatureOptions:
    """What the features are, and the size of the images."""

    kind: str = "grid"  # grid | pixels
    grid: int = 8  # cells along either side of the map
    height: int = 64  # pixels
    width: int = 64

    def __post_init__(self) -> None:
        if self.kind not in ("grid", "pixels"):
            raise ValueError(f"features {self.kind!r} is not one of grid, pixels")


def build(
    *,
    split: str,
    images: int,
    per_image: int = 10,
    seed: int = 0,
    profile: str = "tiny",
    paraphrase: bool = False,
    options: Options | None = None,
    features: FeatureOptions | None = None,
    cache: Path | None = None,
) -> BuiltIn:
    """Make, or read from the cache, the `split` (train | val | test) of a built-in CLEVR.

    Splits of one seed share no scene. per_image: questions about each image. profile: "tiny", short
    questions of a few families made fast, or "full", the 90 templates by the rules of the public
    generator. paraphrase: ask in words that no other split has, as people may do. cache: folder for
    scenes and questions; None: that of the rendered images.

    A small world that a network learns sooner: Options(objects=(3, 5), colors=("red", "green",
    "blue", "yellow"), attributes=("color", "shape"), filters=2) and FeatureOptions(grid=6).
    """
    options, features = options or Options(), features or FeatureOptions()
    if split not in SPLITS:
        raise ValueError(f"the built-in split {split!r} is not one of {', '.join(SPLITS)}")
    if images < 1 or per_image < 1 or seed < 0:
        raise ValueError(
            f"images={images} and per_image={per_image} must be at least 1, seed={seed} 0"
        )
    if profile not in ("tiny", "full"):
        raise ValueError(f"profile {profile!r} is not one of tiny, full")
    pixels, grid = features.kind == "pixels", features.grid
    if not pixels and grid < options.objects[1]:
        raise ValueError(
            f"a map of {grid} x {grid} cells cannot keep {options.objects[1]} objects in rows and "
            f"columns of their own: give grid={options.objects[1]} or fewer objects"
        )
    world = options.world(features.height, features.width, rendered=pixels)
    stream = len(SPLITS) * seed + SPLITS.index(split)
    content = (_VERSION, world, options, split, images, per_image, stream, profile, paraphrase)
    key = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    folder = (cache or cache_folder()) / "clevr" / key
    cached = _read(folder)
    if cached is None:
        scenes = _scenes(world, stream, split, images)
        questions = _questions(scenes, options, profile, per_image, stream)
        if paraphrase:
            questions = _reword(questions, stream)
        _keep(folder, scenes, questions)
    else:
        scenes, questions = cached
    if pixels:
        rendered = Scenes(world, count=images, seed=stream, cache=cache).images().numpy()
        return BuiltIn(questions, scenes, rendered)
    return BuiltIn(questions, scenes, grid_map(scenes, world, grid))


def _scenes(world: World, stream: int, split: str, images: int) -> list[SceneGraph]:
    placed = place_all(world, stream, range(images))
    return scenes_of({"scenes": [clevr_scene(scene, split) for scene in placed]})


def _questions(
    scenes: list[SceneGraph], options: Options, profile: str, per_image: int, seed: int
) -> list[Question]:
    settings: dict[str, Any] = {
        "per_image": per_image,
        "seed": seed,
        "families": options.families,
        "attributes": options.topics(),
        "kinds": options.kinds(),
        "progress": True,
    }
    if profile == "tiny":
        return generate_tiny(scenes, filters=options.filters, **settings)
    return generate(scenes, **settings)


def _reword(questions: list[Question], seed: int) -> list[Question]:
    random = Random(f"paraphrase {seed}")
    return [
        replace(question, text=realise.paraphrase(question.text, random)) for question in questions
    ]


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
