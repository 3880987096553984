"""Short clips: the solids of a scene slide, orbit, spin or hop while the camera stands still."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from .place import place
from .render import render
from .scene import Scene, Solid
from .shapes import ROUND
from .world import World

MOTIONS = ("still", "slide", "orbit", "spin", "hop")
PERIOD = 16  # frames until a solid is back where it began
_STEP = 2 * math.pi / PERIOD


@dataclass(frozen=True)
class Clip:
    """A clip of T frames."""

    frames: Tensor  # (T, 3, H, W) uint8
    ids: Tensor  # (T, H, W) uint8: i + 1 is object i in every frame
    motions: list[str]  # of every labelled solid, in the order of `scene.objects`
    scenes: list[Scene]  # T; the first is the still `place(world, seed, index)`


@dataclass(frozen=True)
class _Path:
    """How one solid moves: a motion, the angle it starts at, its extent and its sense."""

    motion: str
    angle: float = 0.0
    extent: float = 0.0
    sense: int = 1

    def at(self, solid: Solid, frame: int) -> Solid:
        """The solid in `frame`; frame 0 is the solid itself."""
        phase = self.sense * _STEP * frame
        if frame == 0 or self.motion == "still":
            return solid
        if self.motion == "spin":
            return replace(solid, rotation=(solid.yaw + phase) % (2 * math.pi))
        if self.motion == "hop":
            return replace(solid, lift=solid.lift + self.extent * abs(math.sin(phase)))
        c, s = math.cos(self.angle), math.sin(self.angle)
        if self.motion == "slide":
            way = self.extent * math.sin(phase)
            return replace(solid, x=solid.x + way * c, y=solid.y + way * s)
        half = self.extent / 2  # orbit: a circle through the start
        x = solid.x + half * (math.cos(self.angle + phase) - c)
        return replace(solid, x=x, y=solid.y + half * (math.sin(self.angle + phase) - s))


def clips(
    world: World, seed: int, index: int, frames: int, *, motions: Sequence[str] = MOTIONS
) -> Clip:
    """The scene `place(world, seed, index)` in motion, in `frames` frames.

    Every labelled solid draws one of `motions` and comes back after PERIOD frames; paths keep
    solids apart. Solids without room to move do something on the spot, and round ones never spin,
    as nobody could see it. The first frames of a longer clip are the shorter clip.
    """
    unknown = set(motions) - set(MOTIONS)
    if unknown or not motions:
        raise ValueError(f"motions {list(motions)}: choose among {', '.join(MOTIONS)}")
    if frames < 1:
        raise ValueError(f"a clip needs at least one frame, not {frames}")
    first = place(world, seed, index)
    rng = np.random.Generator(np.random.PCG64((seed, index, 0, 101)))
    paths = _paths(world, first.objects, motions, rng)
    scenes = [
        replace(
            first,
            objects=tuple(p.at(o, t) for p, o in zip(paths, first.objects, strict=True)),
            frame=t,
        )
        for t in range(frames)
    ]
    rendered = render(world, scenes)
    labelled = [p.motion for p, o in zip(paths, first.objects, strict=True) if o.labelled]
    return Clip(rendered.images, rendered.ids, labelled, scenes)


def _paths(
    world: World, solids: Sequence[Solid], motions: Sequence[str], rng: np.random.Generator
) -> list[_Path]:
    """A path per solid; the floor that one may sweep is a disc that meets no other's."""
    reach = [solid.radius for solid in solids]  # of the disc that holds the whole path
    paths = []
    for i, solid in enumerate(solids):
        angle, share = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1)
        sense = 1 if rng.uniform() < 0.5 else -1
        pick, again = (int(rng.integers(1 << 30)) for _ in range(2))
        if not solid.labelled:
            paths.append(_Path("still"))
            continue
        usable = [m for m in motions if m != "spin" or solid.shape not in ROUND] or ["still"]
        motion = usable[pick % len(usable)]
        gaps = [
            math.hypot(solid.x - other.x, solid.y - other.y) - solid.radius - reach[j]
            for j, other in enumerate(solids)
            if j != i
        ]
        edge = 1.2 * world.spread - max(abs(solid.x), abs(solid.y))
        room = share * min(0.9 * min(gaps, default=edge), edge, 2.5 * solid.radius)
        if motion in ("slide", "orbit") and room < 0.25 * solid.radius:
            here = [m for m in usable if m not in ("slide", "orbit")] or ["still"]
            motion = here[again % len(here)]
        if motion in ("slide", "orbit"):
            reach[i] += room
        extent = share * 2 * solid.radius if motion == "hop" else room
        paths.append(_Path(motion, angle, extent, sense))
    return paths
