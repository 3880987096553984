"""The built-in clips: whether two solids have the same colour, which no single moment tells.

A solid stands on a grey floor for some frames and vanishes; later another one stands at a distant
place. The label is 1 where both have the same colour, in half of the clips. Every colour is as
frequent in either place and with either label, so that a sum over places and moments of what is
seen in each, as a network computes that looks at single moments, tells nothing. Grey solids that
come and go the same way distract.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.scenes import Scene, World, render
from common.scenes.annotate import visible_boxes
from common.scenes.cache import cache_folder, fill, read_shard
from common.scenes.place import place_all
from common.scenes.render import RENDERER
from common.scenes.scene import Solid
from common.scenes.world import color_rgb, hues

VERSION = 1  # raise whenever clips change: cached ones of other versions are not read
CLASSES = ["different", "same"]
APART = 1_000_000  # clips between the splits, so that each may grow without changing the other
MOST_FRAMES, MOST_SIDE = 512, 512
GREY = "#787878"
SIZES = (0.36, 0.5)  # radii of the solids, world units, at a side of `World.spread`
TRIES = 300  # pairs of places drawn for a clip; the first that lies far enough apart is taken
EDGE = 0.12  # of the side: how far inside the image the middle of a solid lies at least
_SHARD_BYTES = 4 << 20
_BATCH = 64  # clips rendered at a time


@dataclass
class Builtin:
    """What the clips show, and how many there are."""

    seed: int = 0
    train: int = 3000
    test: int = 1000
    frames: int = 8
    side: int = 32  # pixels
    colors: int = 3  # evenly spaced hues
    show: int = 2  # frames for which a solid stands there
    gap: int = 4  # frames at least from where the first solid appears to where the second does
    distance: float = 0.4  # of both solids at least, as a share of the side
    distractors: int = 0  # grey solids that come and go in each clip
    noise: float = 8.0  # of every frame: standard deviation, in levels of 0..255

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            if not 1 <= getattr(self, name) <= APART:
                raise ValueError(
                    f"data.builtin.{name}={getattr(self, name)}: choose 1 to {APART} clips."
                )
        for name, most in (("frames", MOST_FRAMES), ("side", MOST_SIDE)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(
                    f"data.builtin.{name}={getattr(self, name)}: choose 1 to {most}; clips are "
                    "rendered in memory."
                )
        if self.colors < 2:
            raise ValueError(f"data.builtin.colors={self.colors}: two solids that differ need 2.")
        if not 1 <= self.show <= self.gap or self.gap + self.show > self.frames:
            raise ValueError(
                f"data.builtin: solids that stand for show={self.show} frames, gap={self.gap} "
                f"frames apart, do not fit into frames={self.frames}: choose 1 <= show <= gap and "
                "gap + show <= frames."
            )
        if not 0 <= self.distance <= 0.6:
            raise ValueError(
                f"data.builtin.distance={self.distance}: choose a share of the side up to 0.6."
            )
        if not 0 <= self.distractors <= 8:
            raise ValueError(f"data.builtin.distractors={self.distractors}: choose 0 to 8.")


@dataclass(frozen=True)
class Truth:
    """Where and when the two solids of a clip stand."""

    boxes: Tensor  # (2, 4) int64: x1, y1, x2, y2 in pixels
    frames: Tensor  # (2, 2) int64: the first frame, and the one after the last
    colors: Tensor  # (2,) int64


class MatchClips(Dataset):
    """The clips of a split: (clip uint8 (3, T, H, W), 1 if both solids have the same colour).

    They are rendered once, cached on disk and memory-mapped.
    """

    def __init__(self, options: Builtin, split: str) -> None:
        self.options = options
        self.count, self.start = {"train": (options.train, 0), "test": (options.test, APART)}[split]
        self.names = CLASSES
        self._dtype = record_type(options)
        self._length = max(16, _SHARD_BYTES // self._dtype.itemsize)  # clips per shard
        shown = replace(options, train=1, test=1)  # how many there are changes no clip
        key = hashlib.sha256(repr((VERSION, RENDERER, make_world(options), shown)).encode())
        self.folder = cache_folder() / "nonlocal" / key.hexdigest()[:16]
        self._open: dict[int, np.ndarray] = {}
        shards = range(0, self.count, self._length)
        fill({self._path(i): self._span(i) for i in shards}, self._dtype, self._make)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        record = self._record(i)
        return torch.from_numpy(record["clip"].copy()), int(record["label"])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # workers map the shards themselves

    def truth(self, i: int) -> Truth:
        """Where and when the solids of clip i stand."""
        record = self._record(i)
        values = (record[name].astype(np.int64) for name in ("boxes", "frames", "colors"))
        return Truth(*(torch.from_numpy(value) for value in values))

    def _span(self, first: int) -> tuple[int, int]:
        """First clip and end, in the stream, of the shard that begins with item `first`."""
        return self.start + first, self.start + min(first + self._length, self.count)

    def _path(self, first: int) -> Path:
        begin, end = self._span(first)
        return self.folder / f"{begin}-{end}.npy"

    def _shard(self, first: int) -> np.ndarray:
        if first not in self._open:
            begin, end = self._span(first)
            self._open[first] = read_shard(self._path(first), self._dtype, end - begin)
        return self._open[first]

    def _record(self, i: int) -> np.void:
        if not -self.count <= i < self.count:
            raise IndexError(f"clip {i} of {self.count}")
        shard, place = divmod(i % self.count, self._length)
        return self._shard(shard * self._length)[place]

    def _make(self, first: int, last: int) -> np.ndarray:
        """Records of the clips first..last - 1 of the stream."""
        parts = []
        for begin in range(first, last, _BATCH):
            parts.append(make_clips(self.options, range(begin, min(begin + _BATCH, last))))
        return np.concatenate(parts)


def record_type(options: Builtin) -> np.dtype:
    """One clip as the cache stores it."""
    return np.dtype(
        [
            ("clip", "u1", (3, options.frames, options.side, options.side)),
            ("label", "u1"),
            ("boxes", "<i2", (2, 4)),
            ("frames", "<i2", (2, 2)),
            ("colors", "u1", (2,)),
        ]
    )


def make_world(options: Builtin) -> World:
    """An empty grey floor, seen from high above; what stands there is drawn by `draw_plan`."""
    return World(
        width=options.side,
        height=options.side,
        objects=(0, 0),
        shapes=("cube", "cylinder", "sphere"),
        colors=hues(options.colors),
        sizes=(("solid", max(SIZES)),),
        spread=2.0,
        distance=6.0,  # so near that only the places of `draw_spots` are in view
        elevation=55,
        jitter=0.3,
        tint=0.0,
    )


@dataclass(frozen=True)
class Plan:
    """What happens in a clip: solids 0 and 1 are to be compared, the others are grey."""

    solids: list[Solid]
    present: np.ndarray  # (T, solids) bool
    frames: np.ndarray  # (solids, 2) int: the first frame, and the one after the last
    colors: tuple[int, int]


def make_clips(options: Builtin, indices: range) -> np.ndarray:
    """Records of some clips of the stream; each is the same in any batch."""
    world = make_world(options)
    floors = place_all(world, options.seed, indices)
    streams = [np.random.Generator(np.random.PCG64((options.seed, index, 17))) for index in indices]
    plans = [
        draw_plan(options, world, floor, rng) for floor, rng in zip(floors, streams, strict=True)
    ]
    scenes: list[Scene] = []
    shown = np.empty((len(plans), options.frames), np.int64)  # the number of a frame's scene
    for n, (floor, plan) in enumerate(zip(floors, plans, strict=True)):
        sets, inverse = np.unique(plan.present, axis=0, return_inverse=True)
        shown[n] = len(scenes) + inverse.reshape(-1)
        scenes += [replace(floor, objects=pick(plan.solids, chosen)) for chosen in sets]
    rendered = render(world, scenes)
    out = np.zeros(len(plans), record_type(options))
    for n, (plan, rng) in enumerate(zip(plans, streams, strict=True)):
        frames = rendered.images.numpy()[shown[n]].transpose(1, 0, 2, 3)
        grain = rng.standard_normal(frames.shape, np.float32) * np.float32(options.noise)
        out["clip"][n] = np.clip(frames + grain + np.float32(0.5), 0, 255).astype(np.uint8)
        first = plan.frames[:2, 0]  # the solid to compare is object 0 there
        out["boxes"][n] = visible_boxes(rendered.ids.numpy()[shown[n, first]], 1)[0][:, 0]
        out["frames"][n] = plan.frames[:2]
        out["colors"][n] = plan.colors
        out["label"][n] = plan.colors[0] == plan.colors[1]
    return out


def pick(solids: list[Solid], chosen: np.ndarray) -> tuple[Solid, ...]:
    """Those solids that `chosen` (solids,) bool names."""
    return tuple(solid for solid, flag in zip(solids, chosen, strict=True) if flag)


def draw_plan(options: Builtin, world: World, floor: Scene, rng: np.random.Generator) -> Plan:
    """Draw solids, colours, places and frames of one clip."""
    first = int(rng.integers(options.colors))
    same = bool(rng.integers(2))
    other = int(rng.integers(options.colors - 1))
    second = first if same else other + (other >= first)
    spots = draw_spots(options, world, floor, rng)
    names = [world.colors[first], world.colors[second], *[GREY] * (len(spots) - 2)]
    solids = [draw_solid(world, name, spot, rng) for name, spot in zip(names, spots, strict=True)]
    begins = range(options.frames - options.gap - options.show + 1)
    pairs = [
        (a, b) for a in begins for b in range(a + options.gap, options.frames - options.show + 1)
    ]
    starts = [
        *pairs[rng.integers(len(pairs))],
        *rng.integers(options.frames - options.show + 1, size=len(solids) - 2),
    ]
    frames = np.stack((starts, np.add(starts, options.show)), -1)
    moments = np.arange(options.frames)[:, None]
    present = (moments >= frames[:, 0]) & (moments < frames[:, 1])
    return Plan(solids, present, frames, (first, second))


def draw_spots(
    options: Builtin, world: World, floor: Scene, rng: np.random.Generator
) -> np.ndarray:
    """Places on the floor (2 + distractors, 2): the first two far enough apart, the others free.

    Distances are those of the middles of the solids in the image.
    """
    spots = rng.uniform(-world.spread, world.spread, (2 * TRIES, 2))
    pixels = floor.camera.project(np.concatenate((spots, np.full((2 * TRIES, 1), 0.3)), 1))[:, :2]
    inside = (np.abs(pixels / options.side - 0.5) <= 0.5 - EDGE).all(1)
    spots, pixels = spots[inside], pixels[inside]
    half = len(spots) // 2
    apart = np.linalg.norm(pixels[:half] - pixels[half : 2 * half], axis=1)
    first = int(apart.clip(max=options.distance * options.side).argmax())  # else the farthest
    pair = [first, half + first]
    near = np.linalg.norm(pixels[:, None] - pixels[pair], axis=2).min(1)
    free = np.flatnonzero(near >= options.side / 4)[: options.distractors]
    return spots[[*pair, *free]]


def draw_solid(world: World, color: str, spot: np.ndarray, rng: np.random.Generator) -> Solid:
    """A solid of that colour at that place; its shape, size and material tell nothing."""
    rgb = np.clip(np.array(color_rgb(color)) / 255 * rng.uniform(0.85, 1.15), 0, 1)
    return Solid(
        shape=world.shapes[rng.integers(len(world.shapes))],
        color=color,
        material="rubber",
        size="solid",
        radius=float(rng.uniform(*SIZES)),
        x=float(spot[0]),
        y=float(spot[1]),
        rotation=float(rng.uniform(0, 360)),
        rgb=(float(rgb[0]), float(rgb[1]), float(rgb[2])),
    )
