"""The built-in images: one solid each, its class the shape and the hue, 120 classes in all.

What a class leaves open is what makes features differ inside a class: place, size, turn, light,
floor, brightness, saturation and a little hue, pebbles and stains, another solid that may stand in
front, sensor noise. Images are rendered once, into the cache, and kept in memory.
"""

import colorsys
import hashlib
from dataclasses import dataclass, replace

import numpy as np

from common.scenes import Scene, World, render
from common.scenes.cache import cache_folder, fill, read_shard
from common.scenes.place import place_all
from common.scenes.render import RENDERER

from .pool import Pool, Source, as_names
from .splits import ClassSplit

VERSION = 1  # raise whenever images change: cached ones of other versions are not read
SHAPES = (
    "cube",
    "sphere",
    "cylinder",
    "cone",
    "pyramid",
    "torus",
    "prism",
    "octahedron",
    "ellipsoid",
    "capsule",
    "dome",
    "frustum",
)
HUES = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "violet", "purple", "pink")
NAMES = tuple(f"{hue} {shape}" for shape in SHAPES for hue in HUES)
BASE, NOVEL = (30, 30), (24, 36)  # classes of base_1 and base_2, of novel_1 and novel_2
MOST = 10_000  # images of a class: images keep their numbers as the counts change
STREAMS = {"train": 0, "test": 1}
SATURATION, VALUE = (0.4, 0.95), (0.4, 1.0)
_SHARD = 1000  # images
_BATCH = 64  # images rendered at a time


@dataclass
class Builtin:
    """How many images there are, and how hard they are."""

    seed: int = 0  # of the images and of the split into base and novel
    side: int = 32  # pixels
    train: int = 100  # images of a base class, for the trunk and the support
    support: int = 40  # images of a novel class that the support is drawn from
    queries: int = 30  # test images of each class
    hue_jitter: float = 0.03  # standard deviation; hues are 0.1 apart
    occluded: float = 0.4  # share of the images with a second solid, grey
    noise: float = 12.0  # of every pixel: standard deviation, in levels of 0..255

    def __post_init__(self) -> None:
        for name in ("train", "support", "queries"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(
                    f"data.builtin.{name}={getattr(self, name)}: choose 1 to {MOST} images."
                )
        if self.seed < 0 or self.side < 8:
            raise ValueError(
                f"data.builtin.seed={self.seed}, data.builtin.side={self.side}: choose a seed of "
                "0 or more and a side of 8 pixels or more."
            )
        if min(self.hue_jitter, self.noise) < 0 or not 0 <= self.occluded <= 1:
            raise ValueError(
                f"data.builtin.hue_jitter={self.hue_jitter}, noise={self.noise} and "
                f"occluded={self.occluded}: choose 0 or more, and occluded of at most 1."
            )


def builtin_source(options: Builtin) -> Source:
    """The built-in problem, rendered where it is missing in the cache."""
    split = draw_split(options.seed)
    base = {*split.base_1, *split.base_2}
    sizes = [options.train if k in base else options.support for k in range(len(NAMES))]
    train = make_pool(options, "train", sizes)
    return Source(split, train, make_pool(options, "test", [options.queries] * len(NAMES)))


def draw_split(seed: int) -> ClassSplit:
    """Classes drawn into base_1, base_2, novel_1 and novel_2."""
    order = np.random.Generator(np.random.PCG64((seed, len(NAMES)))).permutation(len(NAMES))
    ends = np.cumsum((*BASE, *NOVEL))[:-1]
    parts = (sorted(part.tolist()) for part in np.split(order, ends))
    return ClassSplit(list(NAMES), *parts)


def make_pool(options: Builtin, split: str, sizes: list[int]) -> Pool:
    """`sizes[k]` images of each class k, ordered by class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    places = np.concatenate([np.arange(size) for size in sizes])
    names = [f"builtin/{split}/{NAMES[k]}/{i}" for k, i in zip(labels, places, strict=True)]
    return Pool(as_names(names), labels, pixels=read_images(options, split, labels, places))


def read_images(options: Builtin, split: str, labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Images (N, 3, S, S) uint8 number `places` (N,) of the classes `labels` (N,)."""
    dtype = np.dtype([("image", "u1", (3, options.side, options.side))])
    shown = replace(options, train=1, support=1, queries=1)  # the counts are in `labels`
    described = (VERSION, RENDERER, make_world(options), shown, split, labels.tobytes())
    key = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    folder = cache_folder() / "lowshot_hallucination" / f"images-{key}"
    spans = [(i, min(i + _SHARD, len(labels))) for i in range(0, len(labels), _SHARD)]
    paths = {folder / f"{first}-{last}.npy": (first, last) for first, last in spans}

    def make(first: int, last: int) -> np.ndarray:
        out = np.empty(last - first, dtype)
        for i in range(first, last, _BATCH):
            rows = slice(i, min(i + _BATCH, last))
            scenes = draw_scenes(options, split, labels[rows], places[rows])
            out["image"][i - first : rows.stop - first] = render(
                make_world(options), scenes
            ).images.numpy()
        return out

    fill(paths, dtype, make)
    return np.concatenate(
        [read_shard(path, dtype, b - a)["image"] for path, (a, b) in paths.items()]
    )


def make_world(options: Builtin) -> World:
    """The family of scenes; the solid's shape and colour are put in by `dress`."""
    return World(
        width=options.side,
        height=options.side,
        shapes=SHAPES,
        materials=("rubber", "metal"),
        distractors=(0, 1),
        distractor_shapes=("hexagon",),
        radius=(0.4, 0.85),
        spread=0.8,
        distance=4.2,
        margin=0.2,
        min_gap=-0.2,
        min_visible=0,
        elevation=35,
        jitter=1.5,
        floor="noise",
        tint=1.0,
        clutter=(0, 3),
        noise=options.noise,
        antialias=False,  # a third of the time
    )


def draw_scenes(
    options: Builtin, split: str, labels: np.ndarray, places: np.ndarray
) -> list[Scene]:
    """The scenes of images number `places` of the classes `labels`; the same in any batch."""
    stream = STREAMS[split] * len(NAMES) + labels
    index = (stream * MOST + places).tolist()
    draws = [np.random.Generator(np.random.PCG64((options.seed, i, 23))) for i in index]
    scenes: dict[int, Scene] = {}
    world = make_world(options)
    occluded = [i for i, rng in zip(index, draws, strict=True) if rng.random() < options.occluded]
    for count, chosen in ((1, occluded), (0, sorted(set(index) - set(occluded)))):
        some = replace(world, objects=(1, 1), distractors=(count, count))
        scenes |= zip(chosen, place_all(some, options.seed, chosen), strict=True)
    return [
        dress(scenes[i], int(label), options, rng)
        for i, label, rng in zip(index, labels, draws, strict=True)
    ]


def dress(scene: Scene, label: int, options: Builtin, rng: np.random.Generator) -> Scene:
    """The scene with a solid of this class in the place of its first."""
    shape, hue = divmod(label, len(HUES))
    tone = hue / len(HUES) + options.hue_jitter * rng.standard_normal()
    red, green, blue = colorsys.hsv_to_rgb(tone % 1, rng.uniform(*SATURATION), rng.uniform(*VALUE))
    solid = replace(scene.objects[0], shape=SHAPES[shape], color=HUES[hue], rgb=(red, green, blue))
    grey = rng.uniform(0.2, 0.9)
    others = (
        other if other.shape != "hexagon" else replace(other, rgb=(grey, grey, grey))
        for other in scene.objects[1:]
    )
    return replace(scene, objects=(solid, *others))
