"""The built-in data: rendered solids with hashtags, written once as shards and target folders.

A concept is a shape of a colour, 36 in all. In the images with hashtags concepts follow a Zipf law,
as words do, and the tags are what people might have written: one may be missing, one may be wrong,
and each has several names in several spellings. The target is another task: one solid in an image,
each concept equally often, few labelled images. From there on all is read as real data are.

    shards/{000000..}.tar                     images with raw hashtags, see `shards.writer`
    vocabulary_{fine,shape,hue}.json          36, 6 and 6 canonical tags, see `words.vocabulary`
    target/{train,test}/red_cube/000000.png   one folder a class
"""

import hashlib
import io
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from common.scenes import Scene, World, render
from common.scenes.cache import cache_folder, fill, read_shard
from common.scenes.place import place_all
from common.scenes.render import RENDERER
from common.scenes.world import color_rgb, hues

from ..shards.writer import Sample, write_shards
from ..words.vocabulary import Vocabulary

VERSION = 1  # raise whenever images or tags change: cached ones of other versions are not read
APART = 10_000_000  # images between the sets, so that each may grow without changing another
STREAMS = {"shards": 0, "train": 1, "test": 2}
SHAPES = {  # as `common.scenes` calls them: what people write
    "cube": ("cube", "box"),
    "sphere": ("sphere", "ball"),
    "cylinder": ("cylinder", "drum"),
    "cone": ("cone", "funnel"),
    "torus": ("torus", "ring"),
    "capsule": ("capsule", "pill"),
}
HUES = {  # in the order of `hues`
    "red": ("red", "crimson"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "aqua"),
    "blue": ("blue", "azure"),
    "magenta": ("magenta", "fuchsia"),
}
CONCEPTS = [(hue, shape) for shape in SHAPES for hue in HUES]
VOCABULARIES = ("fine", "shape", "hue")
BRIGHTNESS = (0.6, 1.2)  # of a solid's colour
_SHARD_BYTES = 4 << 20
_BATCH = 64  # images rendered at a time


@dataclass
class Builtin:
    """What the images show, how they are tagged, and how many there are."""

    seed: int = 0
    images: int = 24_000  # with hashtags
    side: int = 32  # pixels
    zipf: float = 1.6  # the k-th most frequent concept is there k ** -zipf as often as the first
    two: float = 0.3  # share of the images with two solids
    tagged: float = 0.75  # share of the solids whose concept is among the tags
    spurious: float = 0.3  # share of the images with a tag of any concept besides
    noise: float = 6.0  # of every pixel: standard deviation, in levels of 0..255
    per_shard: int = 1000  # images
    target_train: int = 12  # images of each class
    target_test: int = 100

    def __post_init__(self) -> None:
        for name in ("images", "per_shard", "target_train", "target_test"):
            if not 1 <= getattr(self, name) <= APART // len(CONCEPTS):
                raise ValueError(
                    f"data.builtin.{name}={getattr(self, name)}: choose 1 to "
                    f"{APART // len(CONCEPTS)} images."
                )
        for name in ("two", "tagged", "spurious"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"data.builtin.{name}={getattr(self, name)}: choose a share from 0 to 1."
                )
        if self.zipf < 0:
            raise ValueError(f"data.builtin.zipf={self.zipf}: choose 0 (all alike) or more.")


def write_builtin(options: Builtin) -> Path:
    """The folder of these data in the cache, written where it is missing.

    It appears whole or not at all. Processes that want it at once share the rendering, which takes
    the time (see `common.scenes.cache`); each then writes files, and the first folder stays.
    """
    key = hashlib.sha256(repr((VERSION, RENDERER, make_world(options), options)).encode())
    folder = cache_folder() / "hashtag_pretrain" / key.hexdigest()[:16]
    if folder.is_dir():
        return folder
    counts = {
        "shards": options.images,
        "train": options.target_train * len(CONCEPTS),
        "test": options.target_test * len(CONCEPTS),
    }
    records = {split: read_records(options, split, count) for split, count in counts.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            write_folder(part, records, options)
            part.chmod(0o755)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            raise OSError(
                f"cannot write the built-in images to {folder.parent} ({error.strerror}): "
                "set FAIR_VISION_CACHE to a folder with room."
            ) from error
    return folder


def write_folder(folder: Path, records: dict[str, np.ndarray], options: Builtin) -> None:
    """Write the shards, their vocabularies and the target's folders."""
    tags = [draw_tags(options, i, row["concepts"]) for i, row in enumerate(records["shards"])]
    images = records["shards"]["image"]
    samples = (
        Sample(f"{i:08d}", encode_png(image), "png", each)
        for i, (image, each) in enumerate(zip(images, tags, strict=True))
    )
    write_shards(samples, folder / "shards", per_shard=options.per_shard)
    for kind in VOCABULARIES:
        make_vocabulary(kind, tags).write(folder / f"vocabulary_{kind}.json")
    for split in ("train", "test"):
        names = [folder / "target" / split / "_".join(concept) for concept in CONCEPTS]
        for name in names:
            name.mkdir(parents=True)
        for i, row in enumerate(records[split]):
            place, concept = divmod(i, len(CONCEPTS))
            (names[concept] / f"{place:06d}.png").write_bytes(encode_png(row["image"]))


def encode_png(image: np.ndarray) -> bytes:
    """The file of an image (3, H, W) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# ---- what the images show


def make_world(options: Builtin) -> World:
    """The family of scenes; what stands in them is drawn by `draw_concepts`."""
    return World(
        width=options.side,
        height=options.side,
        shapes=tuple(SHAPES),
        colors=hues(len(HUES)),
        radius=(0.42, 0.8),
        spread=0.8,
        distance=4.2,
        margin=0.2,
        min_gap=0.05,
        min_visible=0,
        elevation=35,
        jitter=1.0,
        floor="noise",
        tint=1.0,
        clutter=(0, 2),
        noise=options.noise,
        antialias=False,  # a third of the time
    )


def zipf_law(options: Builtin) -> np.ndarray:
    """How likely each concept is to be drawn: (36,) float64 that sums to 1; ranks are random."""
    law = np.arange(1, len(CONCEPTS) + 1) ** -options.zipf
    order = np.random.Generator(np.random.PCG64((options.seed, 36))).permutation(len(CONCEPTS))
    return law[order] / law.sum()


def draw_concepts(options: Builtin, split: str, i: int) -> list[int]:
    """The concepts of the solids of image i: one, or two that may be alike."""
    if split != "shards":
        return [i % len(CONCEPTS)]
    rng = np.random.Generator(np.random.PCG64((options.seed, i, 17)))
    count = 1 + int(rng.random() < options.two)
    return rng.choice(len(CONCEPTS), count, p=zipf_law(options)).tolist()


def draw_scenes(options: Builtin, split: str, first: int, concepts: list[list[int]]) -> list[Scene]:
    """The scenes of images first, first + 1, ...; each is the same in any batch."""
    world = make_world(options)
    index = [APART * STREAMS[split] + first + k for k in range(len(concepts))]
    scenes: dict[int, Scene] = {}
    for count in (1, 2):
        chosen = [i for i, each in zip(index, concepts, strict=True) if len(each) == count]
        empty = replace(world, objects=(count, count))
        scenes |= zip(chosen, place_all(empty, options.seed, chosen), strict=True)
    return [
        dress(world, scenes[i], each, np.random.Generator(np.random.PCG64((options.seed, i, 18))))
        for i, each in zip(index, concepts, strict=True)
    ]


def dress(world: World, scene: Scene, concepts: list[int], rng: np.random.Generator) -> Scene:
    """The scene with these concepts in the place of its solids."""
    solids = list(scene.objects)
    for k, concept in enumerate(concepts):
        shape, hue = divmod(concept, len(HUES))
        color = world.colors[hue]
        red, green, blue = (
            float(v)
            for v in np.clip(np.array(color_rgb(color)) / 255 * rng.uniform(*BRIGHTNESS), 0, 1)
        )
        solids[k] = replace(
            solids[k], shape=world.shapes[shape], color=color, rgb=(red, green, blue)
        )
    return replace(scene, objects=tuple(solids))


def record_type(options: Builtin) -> np.dtype:
    """One image as the cache stores it; a concept that is not there is -1."""
    return np.dtype([("image", "u1", (3, options.side, options.side)), ("concepts", "i1", (2,))])


def read_records(options: Builtin, split: str, count: int) -> np.ndarray:
    """The first `count` images of a split, from the cache, rendered where they are missing."""
    dtype = record_type(options)
    shown = replace(options, images=1, target_train=1, target_test=1, per_shard=1)
    key = hashlib.sha256(repr((VERSION, RENDERER, make_world(options), shown)).encode())
    folder = cache_folder() / "hashtag_pretrain" / f"images-{key.hexdigest()[:16]}"
    length = _SHARD_BYTES // dtype.itemsize
    spans = [(i, min(i + length, count)) for i in range(0, count, length)]
    paths = {folder / f"{split}-{first}-{last}.npy": (first, last) for first, last in spans}

    def make(first: int, last: int) -> np.ndarray:
        batches = range(first, last, _BATCH)
        return np.concatenate(
            [make_images(options, split, i, min(i + _BATCH, last)) for i in batches]
        )

    fill(paths, dtype, make)
    return np.concatenate([read_shard(path, dtype, b - a) for path, (a, b) in paths.items()])


def make_images(options: Builtin, split: str, first: int, last: int) -> np.ndarray:
    """Records of the images first..last - 1 of a split."""
    concepts = [draw_concepts(options, split, i) for i in range(first, last)]
    out = np.full(last - first, -1, record_type(options))
    scenes = draw_scenes(options, split, first, concepts)
    out["image"] = render(make_world(options), scenes).images.numpy()
    for record, each in zip(out, concepts, strict=True):
        record["concepts"][: len(each)] = each
    return out


# ---- what people write


def draw_tags(options: Builtin, i: int, concepts: np.ndarray) -> list[str]:
    """The raw hashtags of image i, which shows these concepts (-1: none); one at least.

    Each concept is tagged with probability `tagged`; with probability `spurious` the image has a
    tag that is drawn without a look at it.
    """
    rng = np.random.Generator(np.random.PCG64((options.seed, i, 19)))
    present = [int(concept) for concept in concepts if concept >= 0]
    chosen = [concept for concept in present if rng.random() < options.tagged]
    if rng.random() < options.spurious:
        chosen.append(int(rng.choice(len(CONCEPTS), p=zipf_law(options))))
    return [spell(*pick(rng, concept), rng) for concept in chosen or present[:1]]


def pick(rng: np.random.Generator, concept: int) -> tuple[str, str]:
    """One of the concept's names, as two words."""
    names = synonyms(*CONCEPTS[concept])
    return names[rng.integers(len(names))]


def synonyms(hue: str, shape: str) -> list[tuple[str, str]]:
    """The names of a concept: red cube, crimson cube, red box."""
    (plain, other), (name, second) = HUES[hue], SHAPES[shape]
    return [(plain, name), (other, name), (plain, second)]


def spell(hue: str, shape: str, rng: np.random.Generator) -> str:
    """Two words as one hashtag."""
    forms = (
        f"#{hue}{shape}",
        f"{hue}_{shape}",
        f"#{hue.title()}{shape.title()}",
        f"{hue.upper()}-{shape.upper()}",
    )
    return forms[rng.integers(len(forms))]


def make_vocabulary(kind: str, tags: list[list[str]]) -> Vocabulary:
    """The canonical tags of a kind (fine: all concepts; shape, hue), counted in images."""
    labels = {"fine": CONCEPTS, "shape": SHAPES, "hue": HUES}[kind]
    names = ["".join(label) for label in labels]
    members: dict[str, int] = {}
    for hue, shape in CONCEPTS:
        name = {"fine": hue + shape, "shape": shape, "hue": hue}[kind]
        for words in synonyms(hue, shape):
            members["".join(words)] = names.index(name)
    vocabulary = Vocabulary(names, members, [[] for _ in names], [0] * len(names))
    counts = Counter(label for each in tags for label in vocabulary.look_up(each))
    return replace(vocabulary, counts=[counts[i] for i in range(len(names))])
