"""Placing solids by CLEVR's rules: uniform attributes, gaps, margins, visibility, restarts.

CLEVR (arXiv 1612.06890), the generator's render_images.py: 50 tries per solid, then the scene is
started again; the camera moves by +-0.5 and the lamps by +-1 per axis.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .cast import scene_ids
from .scene import Camera, Patch, Scene, Solid, Stain, Vector
from .shapes import PEBBLE
from .world import World, color_rgb

TRIES = 50  # positions per solid before the scene is restarted
RESTARTS = 400  # before a World is called too crowded
_REFERENCE = 11.26  # CLEVR's distance from camera to scene centre
AZIMUTH = -41.0  # degrees, the camera's direction from the centre in CLEVR's base scene
_TONES = {"plain": (0.64, 0.63, 0.62), "planks": (0.66, 0.53, 0.42), "tiles": (0.66, 0.65, 0.62)}
_PASS = 32  # scenes checked for visibility at a time


def place(world: World, seed: int, index: int) -> Scene:
    """Scene `index` of the stream `seed`: depends on nothing but its three arguments."""
    return place_all(world, seed, [index])[0]


def place_all(world: World, seed: int, indices: Sequence[int]) -> list[Scene]:
    """`[place(world, seed, i) for i in indices]`, checking visibility for many at a time."""
    if seed < 0 or any(i < 0 for i in indices):
        raise ValueError(f"seed ({seed}) and index must not be negative")
    done: dict[int, Scene] = {}
    attempts = dict.fromkeys(indices, 0)
    while attempts:
        batch = list(attempts)[:_PASS]
        scenes = []
        for index in batch:
            scene, attempts[index] = _attempt(world, seed, index, attempts[index])
            scenes.append(scene)
        for index, scene, good in zip(batch, scenes, _visible(world, scenes), strict=True):
            if good:
                done[index] = scene
                del attempts[index]
    return [done[index] for index in indices]


def _visible(world: World, scenes: list[Scene]) -> list[bool]:
    """Whether every labelled solid of each scene shows at least `min_pixels` pixels."""
    if world.min_pixels == 0:
        return [True] * len(scenes)
    good = []
    for scene, ids in zip(scenes, scene_ids(scenes), strict=True):
        labelled = sum(solid.labelled for solid in scene.objects)
        seen = np.bincount(ids.reshape(-1), minlength=labelled + 1)[1 : labelled + 1]
        good.append(bool((seen >= world.min_pixels).all()))
    return good


def _attempt(world: World, seed: int, index: int, attempt: int) -> tuple[Scene, int]:
    """The first scene from `attempt` on whose solids fit, and the attempt after it."""
    while attempt < RESTARTS:
        rng = np.random.Generator(np.random.PCG64((seed, index, attempt)))
        attempt += 1
        scene = _draw(world, seed, index, rng)
        if scene is not None:
            return scene, attempt
    raise ValueError(
        f"scene {index} of seed {seed}: {RESTARTS} tries found no room for up to "
        f"{world.objects[1]} solids with spread={world.spread}, margin={world.margin}, "
        f"min_gap={world.min_gap} and min_visible={world.min_visible}: "
        "lower objects, margin, min_gap or min_visible, or raise spread"
    )


def _draw(world: World, seed: int, index: int, rng: np.random.Generator) -> Scene | None:
    """One try at a whole scene; None where some solid found no place."""
    camera, lamps = _camera(world, rng)
    counts = [
        int(rng.integers(low, high + 1))
        for low, high in (world.objects, world.distractors, world.clutter)
    ]
    directions = camera.directions()
    axes = np.array([directions["right"][:2], directions["behind"][:2]])
    solids: list[Solid] = []
    for number in range(counts[0] + counts[1]):
        labelled = number < counts[0]
        solid = _solid(world, rng, labelled)
        spot = _spot(world, rng, solid.radius, solids, axes if labelled else None)
        if spot is None:
            return None
        solids.append(replace(solid, x=float(spot[0]), y=float(spot[1])))
    pebbles, stains = _clutter(world, rng, counts[2], solids)
    tone, wall_tone = _tones(world, rng)
    drift = rng.uniform(0, 50, 2)
    return Scene(
        seed,
        index,
        objects=(*solids, *pebbles),
        camera=camera,
        lamps=lamps,
        tone=tone,
        wall_tone=wall_tone,
        drift=(float(drift[0]), float(drift[1])),
        stains=stains,
        patches=_patches(world, rng),
    )


def nominal_distance(world: World) -> float:
    """Distance of the unjittered camera to the scene's centre."""
    if world.distance is not None:
        return world.distance
    reach = 1.04 * (world.spread * math.sqrt(2) + world.largest)
    wide = max(1.0, 0.66 * world.width / world.height)
    return reach * wide / math.tan(math.radians(world.fov) / 2)


def _camera(world: World, rng: np.random.Generator) -> tuple[Camera, tuple[Vector, Vector, Vector]]:
    distance = nominal_distance(world)
    scale = distance / _REFERENCE
    azimuth, elevation = math.radians(AZIMUTH), math.radians(world.elevation)
    toward = np.array((math.cos(azimuth), math.sin(azimuth), 0.0))  # from the centre, on the floor
    right = np.array((-toward[1], toward[0], 0.0))
    up = np.array((0.0, 0.0, 1.0))
    target = 0.6 * world.largest * up
    position = target + distance * (math.cos(elevation) * toward + math.sin(elevation) * up)
    position = position + world.jitter * scale * rng.uniform(-1, 1, 3)
    lamps = scale * np.stack(
        (
            -5.0 * right + 3.5 * toward + 9.0 * up,  # key: from the left, in front
            7.0 * right + 4.0 * toward + 4.0 * up,  # fill
            1.0 * right - 7.0 * toward + 6.0 * up,  # back
        )
    )
    lamps = lamps + world.light_jitter * scale * rng.uniform(-1, 1, (3, 3))
    focal = world.width / 2 / math.tan(math.radians(world.fov) / 2)
    camera = Camera(_vector(position), _vector(target), focal, world.height, world.width)
    return camera, (_vector(lamps[0]), _vector(lamps[1]), _vector(lamps[2]))


def _solid(world: World, rng: np.random.Generator, labelled: bool) -> Solid:
    """A solid with attributes drawn as in CLEVR (size, shape, colour, yaw, material); x = y = 0."""
    if world.radius is None:
        size, radius = world.sizes[rng.integers(len(world.sizes))]
    else:
        low, high = (math.log(r) for r in world.radius)
        radius = math.exp(rng.uniform(low, high))
        size = min(world.sizes, key=lambda item: abs(math.log(item[1] / radius)))[0]
    shapes = world.shapes if labelled else world.distractor_shapes
    if labelled and world.combos:
        shapes = tuple(shape for shape in shapes if world.colors_of(shape))
    shape = shapes[rng.integers(len(shapes))]
    colors = world.colors_of(shape) if labelled else world.colors
    color = colors[rng.integers(len(colors))]
    rotation = float(rng.uniform(0, 360))
    material = world.materials[rng.integers(len(world.materials))]
    rgb = np.array(color_rgb(color)) / 255
    if world.color_jitter:
        rgb = np.clip(rgb * (1 + world.color_jitter * rng.uniform(-1, 1, 3)), 0, 1)
    return Solid(
        shape=shape,
        color=color,
        material=material,
        size=size,
        radius=float(radius),
        x=0.0,
        y=0.0,
        rotation=rotation,
        rgb=_vector(rgb),
        labelled=labelled,
    )


def _spot(
    world: World,
    rng: np.random.Generator,
    radius: float,
    solids: list[Solid],
    axes: np.ndarray | None,
) -> np.ndarray | None:
    """The first of `TRIES` places with the gap to all solids and the margin along both `axes`."""
    spots = rng.uniform(-world.spread, world.spread, (TRIES, 2))
    if not solids:
        return spots[0]
    others = np.array([(s.x, s.y, s.radius) for s in solids])
    dx, dy = (spots[:, i, None] - others[:, i] for i in range(2))
    gap = np.sqrt(dx * dx + dy * dy) - radius - others[:, 2]
    good = (gap >= world.min_gap).all(1)
    if axes is not None and world.margin:
        for axis in axes:
            good &= (np.abs(dx * axis[0] + dy * axis[1]) >= world.margin).all(1)
    first = int(good.argmax())
    return spots[first] if good[first] else None


def _clutter(
    world: World, rng: np.random.Generator, count: int, solids: list[Solid]
) -> tuple[list[Solid], tuple[Stain, ...]]:
    """Pebbles where they touch no solid (else left out), and stains, half and half."""
    pebbles: list[Solid] = []
    stains: list[Stain] = []
    for _ in range(count):
        x, y = rng.uniform(-1.25 * world.spread, 1.25 * world.spread, 2)
        share, shade, rotation = rng.uniform(size=3)
        if rng.uniform() < 0.5:
            radius = world.largest * (0.5 + 0.9 * share)
            stains.append(Stain(float(x), float(y), float(radius), float(0.25 + 0.45 * shade)))
            continue
        radius = world.largest * (0.07 + 0.16 * share)
        if all(math.hypot(s.x - x, s.y - y) > s.radius + radius for s in solids):
            gray = 0.25 + 0.45 * shade
            pebble = Solid(
                shape=PEBBLE,
                color="",
                material="rubber",
                size="",
                radius=float(radius),
                x=float(x),
                y=float(y),
                rotation=float(rotation * 360),
                rgb=(float(gray), float(gray * 0.95), float(gray * 0.88)),
                labelled=False,
            )
            pebbles.append(pebble)
    return pebbles, tuple(stains)


def _tones(world: World, rng: np.random.Generator) -> tuple[Vector, Vector]:
    """Floor and wall colour, moved by `tint`."""
    floor, wall = np.array(_TONES.get(world.floor, _TONES["plain"])), np.array((0.66, 0.63, 0.58))
    if world.tint:
        floor = np.clip(floor + 0.3 * world.tint * rng.uniform(-1, 1, 3), 0.1, 0.9)
        wall = np.clip(wall + 0.3 * world.tint * rng.uniform(-1, 1, 3), 0.1, 0.9)
    return _vector(floor), _vector(wall)


def _patches(world: World, rng: np.random.Generator) -> tuple[Patch, ...]:
    """One patch of every kind in `World.patches`, anywhere on the square of centres."""
    patches = []
    for kind in world.patches:
        x, y = rng.uniform(-0.8, 0.8, 2) * world.spread
        half_x, half_y = rng.uniform(0.45, 0.85, 2) * world.spread
        yaw = rng.uniform(0, math.pi)
        patches.append(Patch(kind, float(x), float(y), float(half_x), float(half_y), float(yaw)))
    return tuple(patches)


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z
