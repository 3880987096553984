"""Which solid a ray meets first, for all rays of a batch of scenes at once.

N scenes, K solids over all scenes, n rays, m pairs (ray, solid). A pair exists only where the ray's
pixel lies in the rectangle that bounds the solid (or its shadow) in the image. Solids are sorted
by shape, so one shape's pairs are one slice and one vectorised intersection. Results per ray depend
on its own scene alone. Rays have direction d with d . forward = 1: t is depth along the axis.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .primitives import MISS, Array, Triple
from .scene import Scene, axes_of
from .shapes import BOX, REACH2, SOLIDS, Body

KINDS = tuple(SOLIDS)
_BOXES = np.array([BOX[kind] for kind in KINDS])
_REACH2 = np.array([REACH2[kind] for kind in KINDS], np.float32)
_SIGNS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_FAR = np.uint64(2**64 - 1)


@dataclass
class Stage:
    """The solids and cameras of N scenes of one image size as arrays."""

    height: int
    width: int
    image: Array  # (K,) int64, which scene
    slot: Array  # (K,) int64, number in the scene's objects, from 0
    kind: Array  # (K,) int64, index in KINDS, ascending
    center: Array  # (K, 3) float32
    radius: Array  # (K,) float32
    cos: Array  # (K,) float32, of the yaw
    sin: Array  # (K,) float32
    corners: Array  # (K, 8, 3) float64, of the bounding box
    position: Array  # (N, 3) float64
    axes: Array  # (N, 3, 3) float64: right, up, forward
    focal: Array  # (N,) float64
    lamps: Array  # (N, 3, 3) float64: key, fill, back

    def project(self, image: Array, points: Array) -> Array:
        """x, y, depth (..., 3) of world points (K, ..., 3) seen by cameras `image` (K,)."""
        extra = (1,) * (points.ndim - 2)
        p = points - self.position[image].reshape(-1, *extra, 3)
        axes = self.axes[image].reshape(-1, *extra, 3, 3)
        x, y, z = (
            p[..., 0] * axes[..., i, 0] + p[..., 1] * axes[..., i, 1] + p[..., 2] * axes[..., i, 2]
            for i in range(3)
        )
        safe = np.where(z > 1e-6, z, 1e-6)
        focal = self.focal[image].reshape(-1, *extra)
        return np.stack(
            (self.width / 2 + focal * x / safe, self.height / 2 - focal * y / safe, z), -1
        )

    def rectangles(self, image: Array, points: Array) -> Array:
        """Pixel rectangles (K, 4) int64 x0, y0, x1, y1 (ends excluded) around points (K, P, 3)."""
        seen = self.project(image, points)
        low, high = seen[..., :2].min(1) - 1.5, seen[..., :2].max(1) + 1.5
        near = (seen[..., 2].min(1) < 0.05)[:, None]
        size = np.array((self.width, self.height))
        low = np.where(near, 0, np.clip(np.ceil(low), 0, size)).astype(np.int64)
        high = np.where(near, size, np.clip(np.ceil(high), 0, size)).astype(np.int64)
        return np.concatenate((low, np.maximum(high, low)), 1)


def stage(scenes: list[Scene]) -> Stage:
    """Gather scenes of one image size."""
    camera = scenes[0].camera
    height, width = camera.height, camera.width
    if any((s.camera.height, s.camera.width) != (height, width) for s in scenes):
        raise ValueError("scenes rendered together must share one image size")
    rows = [
        (i, j, KINDS.index(o.shape), *o.center, o.radius, math.cos(o.yaw), math.sin(o.yaw))
        for i, scene in enumerate(scenes)
        for j, o in enumerate(scene.objects)
    ]
    table = np.array(rows, np.float64).reshape(-1, 9)
    table = table[np.argsort(table[:, 2], kind="stable")]
    image, slot, kind = table[:, :3].astype(np.int64).T
    center, radius, cos, sin = table[:, 3:6], table[:, 6], table[:, 7], table[:, 8]
    local = _BOXES[kind][:, None] * _SIGNS * radius[:, None, None]
    position = np.array([s.camera.position for s in scenes])
    target = np.array([s.camera.target for s in scenes])
    return Stage(
        height=height,
        width=width,
        image=image,
        slot=slot,
        kind=kind,
        center=center.astype(np.float32),
        radius=radius.astype(np.float32),
        cos=cos.astype(np.float32),
        sin=sin.astype(np.float32),
        corners=turn(local, cos[:, None], sin[:, None]) + center[:, None],
        position=position,
        axes=axes_of(position, target),
        focal=np.array([s.camera.focal for s in scenes]),
        lamps=np.array([s.lamps for s in scenes]),
    )


@dataclass
class Pairs:
    """Pairs (item, ray): which solid, stain, ... may matter to which ray."""

    item: Array  # (m,) int64
    ray: Array  # (m,) int64

    def only(self, keep: Array) -> "Pairs":
        """The pairs for which `keep` (m,) holds."""
        index = np.flatnonzero(keep)
        return Pairs(self.item[index], self.ray[index])


def pairs_in(rectangles: Array, image: Array, height: int, width: int) -> Pairs:
    """All (item, pixel) with the pixel in the item's rectangle; rays are numbered image, y, x."""
    x0, y0, x1, y1 = rectangles.T
    columns = x1 - x0
    areas = columns * (y1 - y0)
    ends = np.cumsum(areas)
    total = int(ends[-1]) if len(ends) else 0
    item = np.repeat(np.arange(len(areas), dtype=np.int32), areas)
    place = np.arange(total, dtype=np.int32)
    place -= np.repeat((ends - areas).astype(np.int32), areas)
    across = np.repeat(columns.astype(np.int32), areas)
    row = place // np.maximum(across, 1)
    corner = (image * height + y0) * width + x0
    ray = np.repeat(corner.astype(np.int32), areas) + row * width + (place - row * across)
    return Pairs(item, ray)


def subrays(pairs: Pairs, chosen: Array, rays: int, copies: int) -> Pairs:
    """The pairs of the `chosen` rays, each ray now split in `copies`, renumbered from 0."""
    number = np.full(rays, -1, np.int32)
    number[chosen] = np.arange(len(chosen), dtype=np.int32)
    kept = pairs.only(number[pairs.ray] >= 0)
    ray = number[kept.ray][:, None] * np.int32(copies) + np.arange(copies, dtype=np.int32)
    return Pairs(np.repeat(kept.item, copies), ray.reshape(-1))


@dataclass
class Rays:
    """n rays: image (n,) and directions (n,) float32; all rays of an image start at its camera."""

    image: Array
    x: Array
    y: Array
    z: Array

    def pick(self, index: Array) -> "Rays":
        """The rays with these numbers."""
        return Rays(self.image[index], self.x[index], self.y[index], self.z[index])


def grid_rays(where: Stage) -> Rays:
    """One ray through every pixel centre, numbered image, y, x."""
    count = len(where.focal)
    x = (np.arange(where.width) + 0.5 - where.width / 2)[None, None] / where.focal[:, None, None]
    y = (where.height / 2 - np.arange(where.height) - 0.5)[None, :, None]
    y = y / where.focal[:, None, None]
    image = np.repeat(np.arange(count, dtype=np.int32), where.height * where.width)
    x, y = x.astype(np.float32), y.astype(np.float32)
    axes = where.axes.astype(np.float32)[:, :, :, None, None]
    x, y, z = ((axes[:, 2, i] + y * axes[:, 1, i]) + x * axes[:, 0, i] for i in range(3))
    return Rays(image, x.reshape(-1), y.reshape(-1), z.reshape(-1))


def shift_rays(where: Stage, rays: Rays, chosen: Array, offsets: Array) -> Rays:
    """S rays for each of the `chosen` ones, moved right and down by `offsets` (S, 2) pixels."""
    count = len(offsets)
    image = np.repeat(rays.image[chosen], count)
    focal = where.focal.astype(np.float32)[image]
    right = np.tile(offsets[:, 0].astype(np.float32), len(chosen)) / focal
    up = np.tile(-offsets[:, 1].astype(np.float32), len(chosen)) / focal
    axes = where.axes.astype(np.float32)
    x, y, z = (
        (np.repeat(v[chosen], count) + up * axes[image, 1, i]) + right * axes[image, 0, i]
        for i, v in enumerate((rays.x, rays.y, rays.z))
    )
    return Rays(image, x, y, z)


def by_kind(kinds: Array) -> Iterator[tuple[Body, slice]]:
    """The bodies of ascending `kinds` (n,), each with its part of them."""
    bounds = np.searchsorted(kinds, np.arange(len(KINDS) + 1))
    for kind, (low, high) in zip(KINDS, pairwise(bounds), strict=True):
        if low < high:
            yield SOLIDS[kind], slice(low, high)


def turn(points: Array, cos: Array, sin: Array) -> Array:
    """Points (..., 3) turned about the vertical."""
    x, y, z = (points[..., i] for i in range(3))
    return np.stack((cos * x - sin * y, sin * x + cos * y, z), -1)


def strike(where: Stage, solid: Array, start: Triple, toward: Triple) -> Array:
    """Distance t (m,) float32 at which ray `start` + t `toward` enters its solid; inf for a miss.

    `start` is relative to the solid's centre; a value below 0 means that it lies behind.
    """
    scale = 1 / where.radius
    c, s = (where.cos * scale)[solid], (where.sin * scale)[solid]
    scale = scale[solid]
    dx, dy, dz = toward
    ox, oy, oz = start
    dx, dy, dz = c * dx + s * dy, c * dy - s * dx, dz * scale
    ox, oy, oz = c * ox + s * oy, c * oy - s * ox, oz * scale
    closest = -(ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
    ox, oy, oz = ox + closest * dx, oy + closest * dy, oz + closest * dz
    near = np.flatnonzero(ox * ox + oy * oy + oz * oz < _REACH2[where.kind][solid])
    rays = [v[near] for v in (ox, oy, oz, dx, dy, dz)]
    t = np.full(len(near), MISS)
    for body, part in by_kind(where.kind[solid[near]]):
        ox, oy, oz, dx, dy, dz = (v[part] for v in rays)
        t[part] = body.hit((ox, oy, oz, dx, dy, dz))
    out = np.full(len(solid), MISS)
    out[near] = t + closest[near]
    return out


def first_hits(where: Stage, pairs: Pairs, rays: Rays) -> tuple[Array, Array]:
    """Solid (n,) int64 (-1: none) that each camera ray meets first, and its depth (n,) float32."""
    eye = where.position.astype(np.float32)
    start = (eye[where.image] - where.center).astype(np.float32)
    start_at = tuple(start[:, i][pairs.item] for i in range(3))
    toward = (rays.x[pairs.ray], rays.y[pairs.ray], rays.z[pairs.ray])
    t = strike(where, pairs.item, start_at, toward)
    good = np.flatnonzero((t > 1e-3) & (t < MISS))
    # Positive floats order like their bits: depth above, solid below, in one integer minimum.
    key = t[good].view(np.uint32).astype(np.uint64) << np.uint64(32)
    key |= pairs.item[good].astype(np.uint64)
    nearest = np.full(len(rays.x), _FAR)
    np.minimum.at(nearest, pairs.ray[good], key)
    found = nearest != _FAR
    solid = np.where(found, (nearest & np.uint64(2**32 - 1)).astype(np.int64), -1)
    depth = (nearest >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return solid, np.where(found, depth, MISS)


def lit(where: Stage, pairs: Pairs, points: Triple, own: Array, lamps: Array, lamp: Array) -> Array:
    """1 where the key lamp sees a point, else 0: (n,) float32.

    own: the solid (n,) that the point lies on (it casts no shadow on itself) or -1; -2 leaves the
    point out. lamps: (L, 3) float32 positions, of which `lamp` (n,) picks one per point.
    """
    mine = own[pairs.ray]
    pairs = pairs.only((mine != pairs.item) & (mine != -2))
    p = [v[pairs.ray] for v in points]
    source = lamp[pairs.ray]
    toward = tuple(lamps[:, i][source] - p[i] for i in range(3))
    start = tuple(p[i] - where.center[:, i][pairs.item] for i in range(3))
    t = strike(where, pairs.item, start, toward)
    free = np.ones(len(own), np.float32)
    free[pairs.ray[(t > 1e-4) & (t < 1)]] = 0
    return free


def solid_pairs(where: Stage) -> Pairs:
    """Pairs of every solid with the pixels of its bounding rectangle."""
    rectangles = where.rectangles(where.image, where.corners)
    return pairs_in(rectangles, where.image, where.height, where.width)


def shadow_pairs(where: Stage, lamps: Array) -> Pairs:
    """Pairs of every solid with the pixels its shadow can reach, for key lamps (N, L, 3)."""
    source = lamps[where.image][:, :, None]
    corners = where.corners[:, None]
    drop = np.maximum(source[..., 2:] - corners[..., 2:], 1e-3)
    cast = source + (corners - source) * (source[..., 2:] / drop)
    hull = np.concatenate((where.corners, cast.reshape(len(cast), 8 * lamps.shape[1], 3)), 1)
    rectangles = where.rectangles(where.image, hull)
    return pairs_in(rectangles, where.image, where.height, where.width)


def scene_ids(scenes: list[Scene]) -> Array:
    """Id maps (N, H, W) uint8: 0 where no solid is, else 1 + number in `scene.objects`."""
    where = stage(scenes)
    solid, _ = first_hits(where, solid_pairs(where), grid_rays(where))
    return ids_of(where, solid).reshape(len(scenes), where.height, where.width)


def ids_of(where: Stage, solid: Array) -> Array:
    """Ids (n,) uint8 of the solids (n,) that `first_hits` found."""
    table = np.append(where.slot + 1, 0).astype(np.uint8)
    return table[solid]
