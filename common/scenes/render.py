"""Scenes drawn by ray casting: images, id maps, stuff regions and depth of a whole batch.

Two passes: a ray through every pixel centre, then, where the first image has contrast, four
more rays per pixel, each with its own point on the key lamp, which smooths outlines and shadows.
Ids, regions and depth are those of the pixel centres.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .cast import (
    Stage,
    grid_rays,
    ids_of,
    shadow_pairs,
    shift_rays,
    solid_pairs,
    stage,
    subrays,
)
from .primitives import Array
from .scene import Scene
from .shade import View, spot_pairs
from .world import World

RENDERER = 3  # raise whenever pixels change: cached images of other versions are not read
_PIXELS = 40_000  # per chunk: its arrays stay in the processor's cache
_SUBPIXEL = np.array([(-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375)])
_LAMP = np.array(  # points on the key lamp, four for even pixels, four for odd ones
    [
        (-0.4, -0.9),
        (0.9, -0.4),
        (-0.9, 0.4),
        (0.4, 0.9),
        (-0.1, -0.45),
        (0.45, -0.1),
        (-0.45, 0.1),
        (0.1, 0.45),
    ]
)
_LAMP_SIZE = 0.07  # of the lamp's height, at most
_PENUMBRA = 7.0  # over the image's width: so that the penumbra stays about as wide as two pixels
_CONTRAST = 10.0  # levels of 0..255 between neighbours that call for more rays


@dataclass(frozen=True)
class Rendered:
    """N scenes as images."""

    images: Tensor  # (N, 3, H, W) uint8
    ids: Tensor  # (N, H, W) uint8: 0 no solid, i + 1 object i of the scene
    regions: Tensor  # (N, H, W) uint8: index in world.REGIONS of the ground, also behind solids
    depth: Tensor  # (N, H, W) float32 along the optical axis, world units; sky 1e4


def render(world: World, scenes: Sequence[Scene]) -> Rendered:
    """Render scenes of `world`; each image is the same in any batch."""
    if not scenes:
        raise ValueError("render needs at least one scene")
    for scene in scenes:
        if len(scene.objects) > 255:
            raise ValueError(f"a scene of {len(scene.objects)} solids: 255 at most have an id")
        if tuple(patch.kind for patch in scene.patches) != world.patches:
            raise ValueError(f"scene {scene.index} was not made for patches={world.patches}")
    camera = scenes[0].camera
    size = max(1, _PIXELS // (camera.height * camera.width))
    parts = [_chunk(world, list(scenes[i : i + size])) for i in range(0, len(scenes), size)]
    images, ids, regions, depth = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Rendered(*(torch.from_numpy(array) for array in (images, ids, regions, depth)))


def _chunk(world: World, scenes: list[Scene]) -> tuple[Array, Array, Array, Array]:
    """Images (N, 3, H, W) uint8, ids, regions and depth (N, H, W) of a few scenes."""
    where = stage(scenes)
    shape = (len(scenes), where.height, where.width)
    lamps = _lamp_points(where)
    solids, spots = solid_pairs(where), spot_pairs(where, scenes)
    shadows = shadow_pairs(where, lamps) if world.shadows else None
    rays = grid_rays(where)
    view = View(world, scenes, where, lamps.reshape(-1, 3).astype(np.float32))
    points = lamps.shape[1]
    color, solid, region, depth, free = view.trace(
        rays, solids, shadows, spots, rays.image * points
    )
    if world.antialias:
        edge = _contrast(color.reshape(3, *shape)) | _penumbra(free.reshape(shape))
        chosen = np.flatnonzero(edge)
        fine = shift_rays(where, rays, chosen, _SUBPIXEL)
        odd = (chosen % where.width + chosen // where.width) % 2
        lamp = 1 + 4 * np.repeat(odd, 4) + np.tile(np.arange(4), len(chosen))
        solids, spots = (subrays(p, chosen, len(rays.x), 4) for p in (solids, spots))
        if shadows is not None:
            shadows = subrays(shadows, chosen, len(rays.x), 4)
        split = view.trace(fine, solids, shadows, spots, fine.image * points + lamp)[0]
        split = split.reshape(3, -1, 4)
        color[:, chosen] = (split[..., 0] + split[..., 1] + split[..., 2] + split[..., 3]) / 4
    images = _quantise(world, scenes, color.reshape(3, *shape))
    ids = ids_of(where, solid).reshape(shape)
    return images, ids, region.reshape(shape), depth.reshape(shape)


def _lamp_points(where: Stage) -> Array:
    """Points on the key lamps (N, 9, 3): the middle, four for even and four for odd pixels."""
    key = where.lamps[:, 0]
    points = np.repeat(key[:, None], 9, 1)
    size = min(_LAMP_SIZE, _PENUMBRA / where.width)
    points[:, 1:, :2] += size * key[:, None, 2:] * _LAMP
    return points


def _penumbra(free: Array) -> Array:
    """Pixels (N, H, W) bool within two of a shadow's outline, of 1 in light, 0 in shadow."""
    edge = _both_sides(free[:, :, 1:] != free[:, :, :-1], free[:, 1:] != free[:, :-1])
    return _both_sides(edge[:, :, 1:] | edge[:, :, :-1], edge[:, 1:] | edge[:, :-1])


def _contrast(color: Array) -> Array:
    """Pixels (N, H, W) bool that differ from a neighbour, of levels (3, N, H, W)."""
    gray = color[0] * np.float32(0.3) + color[1] * np.float32(0.55) + color[2] * np.float32(0.15)
    return _both_sides(
        np.abs(gray[:, :, 1:] - gray[:, :, :-1]) > _CONTRAST,
        np.abs(gray[:, 1:] - gray[:, :-1]) > _CONTRAST,
    )


def _both_sides(across: Array, down: Array) -> Array:
    """Pixels (N, H, W) at borders `across` (N, H, W - 1) and `down` (N, H - 1, W)."""
    edge = np.zeros((len(across), across.shape[1], down.shape[2]), bool)
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return edge


def _quantise(world: World, scenes: list[Scene], color: Array) -> Array:
    """Levels (3, N, H, W) to uint8 (N, 3, H, W), with sensor noise."""
    levels = color.transpose(1, 0, 2, 3)
    if world.noise:
        for i, scene in enumerate(scenes):
            rng = np.random.Generator(np.random.PCG64((scene.seed, scene.index, scene.frame, 77)))
            grain = rng.standard_normal(levels.shape[1:], np.float32)
            levels[i] += np.float32(world.noise) * grain
    return np.clip(levels + np.float32(0.5), 0, 255).astype(np.uint8)
