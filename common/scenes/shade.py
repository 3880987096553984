"""What colour a ray sees: solids (gloss.py), the sky, and floor and wall with soft contact shadows.

Linear light 0..1 in float32 arrays (n,), IEEE arithmetic only (see primitives.py); gamma 2 at the
end.
"""

import math
from dataclasses import dataclass

import numpy as np

from . import ground
from .cast import KINDS, Pairs, Rays, Stage, first_hits, lit, pairs_in
from .gloss import AMBIENT, behind, dot, solid_color, some
from .place import nominal_distance
from .primitives import Array, Triple
from .scene import Scene
from .shapes import BOX
from .world import REGIONS, World

FLOOR, WALL, SKY = (REGIONS.index(name) for name in ("floor", "wall", "sky"))
SKY_DEPTH = np.float32(1e4)
_KEY = np.float32(0.80)
_CONTACT = 2.2  # how far a solid dims the floor around it, in radii
_HEIGHTS = np.array([BOX[kind][2] for kind in KINDS], np.float32)


@dataclass
class View:
    """Some scenes, ready to be seen along any rays."""

    world: World
    scenes: list[Scene]
    where: Stage
    lamps: Array  # (N * S, 3) float32: S points on the key lamp of every scene

    def trace(
        self, rays: Rays, solids: Pairs, shadows: Pairs | None, spots: Pairs, lamp: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """What each of n rays sees.

        lamp: (n,) int, the row of `lamps` that lights each ray. Returns levels (3, n) 0..255,
        solid (n,) or -1, region (n,) uint8, depth (n,), and (n,) 1 where the key lamp shines.
        """
        solid, near = first_hits(self.where, solids, rays)
        region, far = self._ground(rays)
        depth = np.minimum(near, far)
        bare = solid < 0
        sky = bare & (region == SKY)
        points = self._points(rays, np.where(sky, np.float32(0), depth))
        free = np.ones(len(solid), np.float32)
        if shadows is not None:
            free = lit(self.where, shadows, points, np.where(sky, -2, solid), self.lamps, lamp)
        color = np.empty((3, len(solid)), np.float32)

        index = np.flatnonzero(bare & (region == WALL))
        color[:, index] = self._wall(rays.image[index], some(points, index), free[index])
        index = np.flatnonzero(sky)
        color[:, index] = self._sky(rays.image[index], *some((rays.x, rays.y, rays.z), index))
        index = np.flatnonzero(bare & (region != WALL) & (region != SKY))
        dim = self._dimming(spots, points, len(solid))[index]
        color[:, index] = self._floor(
            rays.image[index], some(points, index), region[index], depth[index], free[index], dim
        )
        index = np.flatnonzero(~bare)
        here, part = rays.pick(index), some(points, index)
        key = self._key(here.image, part)
        color[:, index] = solid_color(
            self.where, self.scenes, here, part, solid[index], key, free[index]
        )
        return _levels(color), solid, region, depth, free

    def _points(self, rays: Rays, depth: Array) -> Triple:
        eye = self.where.position.astype(np.float32)[rays.image]
        return eye[:, 0] + depth * rays.x, eye[:, 1] + depth * rays.y, eye[:, 2] + depth * rays.z

    def _ground(self, rays: Rays) -> tuple[Array, Array]:
        """Region (n,) uint8 and depth (n,) of what lies behind the solids."""
        eye = self.where.position.astype(np.float32)[rays.image]
        down = np.minimum(rays.z, np.float32(-1e-6))
        t = np.where(rays.z < -1e-4, eye[:, 2] / -down, SKY_DEPTH)
        t = np.minimum(t, SKY_DEPTH)
        region = np.where(t < SKY_DEPTH, np.uint8(FLOOR), np.uint8(SKY))
        if self.world.wall != "none":
            far, height = wall_place(self.world)
            c, s = behind()
            along = np.maximum(c * rays.x + s * rays.y, np.float32(1e-6))
            to_wall = (np.float32(far) - (c * eye[:, 0] + s * eye[:, 1])) / along
            top = eye[:, 2] + to_wall * rays.z
            wall, beyond = (to_wall < t) & (top < height), (to_wall < t) & (top >= height)
            region = np.where(wall, np.uint8(WALL), np.where(beyond, np.uint8(SKY), region))
            t = np.where(wall, to_wall, np.where(beyond, SKY_DEPTH, t))
        if self.world.patches:
            self._patch(rays, region, t)
        return region, t

    def _patch(self, rays: Rays, region: Array, depth: Array) -> None:
        """Write the regions of patches over the floor's."""
        index = np.flatnonzero(region == FLOOR)
        floor = rays.pick(index)
        x, y, _ = self._points(floor, depth[index])
        for patch, table in self._patch_tables():
            _, _, on = ground.patch_place(table[floor.image], x, y, patch == "rug")
            region[index[on]] = REGIONS.index(patch)

    def _patch_tables(self) -> list[tuple[str, Array]]:
        """Per kind of patch a table (N, 6): x, y, cos, sin, 1 / half_x, 1 / half_y."""
        tables = []
        for i, kind in enumerate(self.world.patches):
            rows = [
                (p.x, p.y, math.cos(p.yaw), math.sin(p.yaw), 1 / p.half_x, 1 / p.half_y)
                for p in (scene.patches[i] for scene in self.scenes)
            ]
            tables.append((kind, np.array(rows, np.float32)))
        return tables

    def _key(self, image: Array, points: Triple) -> tuple[Triple, Array]:
        """Unit vectors to the key lamp's middle, and its strength there."""
        lamp = self.where.lamps[:, 0].astype(np.float32)
        toward = tuple(lamp[:, i][image] - points[i] for i in range(3))
        inverse = 1 / np.sqrt(dot(toward, toward))
        strength = np.sqrt((lamp * lamp)[:, 0] + (lamp * lamp)[:, 1] + (lamp * lamp)[:, 2])
        return tuple(v * inverse for v in toward), _KEY * strength[image] * inverse

    def _sky(self, image: Array, x: Array, y: Array, z: Array) -> Triple:
        """The sky; behind a wall its horizon is the wall's upper edge."""
        if self.world.wall != "none":
            far, height = wall_place(self.world)
            distance = nominal_distance(self.world)
            slope = math.radians(self.world.elevation)
            drop = 0.6 * self.world.largest + distance * math.sin(slope) - height
            z = z + np.sqrt(x * x + y * y) * np.float32(drop / (distance * math.cos(slope) + far))
        drift = self._drift()[image]
        return ground.sky_color(self.world.sky, x, y, np.maximum(z, np.float32(0)), drift)

    def _drift(self) -> Array:
        return np.array([scene.drift for scene in self.scenes], np.float32)

    def _floor(
        self, image: Array, points: Triple, region: Array, depth: Array, free: Array, dim: Array
    ) -> list[Array]:
        x, y, _ = points
        tones = np.array([ground.linear(s.tone) for s in self.scenes], np.float32)
        drift = self._drift()
        far_x, far_y = x + drift[:, 0][image], y + drift[:, 1][image]
        factor = ground.floor_factor(self.world.floor, far_x, far_y, depth)
        color = [tones[:, i][image] * factor for i in range(3)]
        for kind, table in self._patch_tables():
            on = np.flatnonzero(region == REGIONS.index(kind))
            u, v, _ = ground.patch_place(table[image[on]], x[on], y[on], kind == "rug")
            for i, value in enumerate(ground.patch_color(kind, u, v, far_x[on], far_y[on])):
                color[i][on] = value
        toward, strength = self._key(image, points)
        light = AMBIENT * dim + strength * toward[2] * free * (np.float32(0.35) + 0.65 * dim)
        color = [c * light for c in color]
        if self.world.wall == "none":
            color = self._haze(color, depth)
        return color

    def _haze(self, color: list[Array], depth: Array) -> list[Array]:
        """The far floor fades into the horizon."""
        far = np.float32(1 / (3.2 * nominal_distance(self.world)) ** 2)
        share = depth * depth * far
        share = share * share
        share = share / (1 + share)
        return [c + share * (np.float32(h) - c) for c, h in zip(color, ground.HORIZON, strict=True)]

    def _wall(self, image: Array, points: Triple, free: Array) -> list[Array]:
        x, y, z = points
        c, s = behind()
        tones = np.array([ground.linear(scene.wall_tone) for scene in self.scenes], np.float32)
        along = c * y - s * x + self._drift()[:, 0][image]
        factor = ground.wall_factor(self.world.wall, along, z)
        toward, strength = self._key(image, points)
        facing = np.maximum(-(c * toward[0] + s * toward[1]), np.float32(0))
        corner = z / (z + np.float32(0.25))
        light = AMBIENT * (np.float32(0.45) + np.float32(0.55) * corner) + strength * facing * free
        return [tones[:, i][image] * factor * light for i in range(3)]

    def _dimming(self, spots: Pairs, points: Triple, count: int) -> Array:
        """Share (n,) of ambient light that solids and stains leave at points of the floor."""
        table = spot_table(self.where, self.scenes)[0]
        x, y, reach, size, height, dark = (table[:, i][spots.item] for i in range(6))
        dx, dy = points[0][spots.ray] - x, points[1][spots.ray] - y
        flat = dx * dx + dy * dy
        window = np.maximum(1 - flat / (reach * reach), np.float32(0))
        apart = flat + height * height
        ball = height * size * size / (apart * np.sqrt(apart))
        loss = window * window * np.where(dark > 0, dark, np.float32(0.9) * ball)
        total = np.bincount(spots.ray, loss, count).astype(np.float32)
        return np.maximum(1 - total, np.float32(0.15))


def spot_table(where: Stage, scenes: list[Scene]) -> tuple[Array, Array]:
    """What dims the floor: rows x, y, reach, size, height, darkness (Q, 6); its scene (Q,)."""
    shade = np.zeros((len(where.image), 6), np.float32)
    shade[:, :2] = where.center[:, :2]
    shade[:, 2] = _CONTACT * where.radius
    shade[:, 3] = where.radius * np.minimum(_HEIGHTS[where.kind], np.float32(0.9))
    shade[:, 4] = np.maximum(where.center[:, 2], shade[:, 3])
    stains = [
        (i, stain.x, stain.y, stain.radius, 1.0, 1.0, stain.darkness)
        for i, scene in enumerate(scenes)
        for stain in scene.stains
    ]
    rows = np.array(stains, np.float32).reshape(-1, 7)
    image = np.concatenate((where.image, rows[:, 0].astype(np.int64)))
    return np.concatenate((shade, rows[:, 1:])), image


def spot_pairs(where: Stage, scenes: list[Scene]) -> Pairs:
    """Pairs of every solid or stain with the pixels of floor that it may dim."""
    table, image = spot_table(where, scenes)
    signs = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    square = np.zeros((len(table), 4, 3))
    square[..., :2] = table[:, None, :2] + table[:, None, 2:3] * signs
    return pairs_in(where.rectangles(image, square), image, where.height, where.width)


def wall_place(world: World) -> tuple[float, float]:
    """The wall's distance behind the centre and its height."""
    far = world.spread * math.sqrt(2) + 1.6 * world.largest + 0.2
    return far, 0.17 * nominal_distance(world)


def _levels(color: Array) -> Array:
    """Linear light to 0..255: a soft shoulder above 0.7, gamma 2."""
    over = np.maximum(color - np.float32(0.7), np.float32(0))
    color = np.minimum(color, np.float32(0.7)) + over / (1 + over * np.float32(3.2))
    return np.sqrt(np.clip(color, 0, 1)) * np.float32(255)
