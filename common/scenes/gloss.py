"""Light on solids: Lambert's, highlights, and the sky that metal mirrors.

Linear light 0..1 in float32 arrays (n,), IEEE arithmetic only (see primitives.py).
"""

import math

import numpy as np

from .cast import KINDS, Rays, Stage, by_kind
from .ground import linear
from .place import AZIMUTH
from .primitives import Array, Polyhedron, Triple
from .scene import Scene
from .shapes import SOLIDS

AMBIENT, _FILL, _BACK = (np.float32(v) for v in (0.36, 0.20, 0.18))
_FLAT = np.array([isinstance(SOLIDS[kind], Polyhedron) for kind in KINDS])


def solid_color(
    where: Stage,
    scenes: list[Scene],
    rays: Rays,
    points: Triple,
    solid: Array,
    key: tuple[Triple, Array],
    free: Array,
) -> list[Array]:
    """Linear light of the solids (n,) that n rays meet at `points`.

    key: unit vectors to the key lamp, and its strength; free: (n,) 1 where it shines.
    """
    image = rays.image
    normal = _normals(where, points, solid)
    view = (-rays.x, -rays.y, -rays.z)
    inverse = 1 / np.sqrt(dot(view, view))
    view = (view[0] * inverse, view[1] * inverse, view[2] * inverse)
    objects = [scenes[i].objects[j] for i, j in zip(where.image, where.slot, strict=True)]
    rgb = np.array([linear(o.rgb) for o in objects], np.float32).reshape(-1, 3)
    metal = np.array([o.material == "metal" for o in objects], bool)[solid]
    albedo = [rgb[:, i][solid] for i in range(3)]

    low = np.clip(points[2] / (np.float32(1.5) * where.radius[solid]), 0, 1)
    toward, strength = key
    matt = _matt(where, image, normal, low, dot(normal, toward) * strength, free)
    shine, sharp = _highlights(normal, toward, view)
    flat = _FLAT[where.kind[solid]]  # a whole face may catch the lamp: keep its colour
    white = free * np.where(metal, np.where(flat, np.float32(0.1), 1) * sharp, 0.1 * shine)
    tinted = free * np.float32(0.8) * sharp
    mirror = _mirror(scenes, image, normal, view, low)
    rim = 1 - np.clip(dot(normal, view), 0, 1)
    rim = rim * rim * rim * np.float32(0.5)
    out = []
    for i in range(3):
        steel = albedo[i] * (np.float32(0.22) * matt + np.float32(1.5) * mirror[i])
        steel = steel + (rim + np.float32(0.04)) * mirror[i] + tinted * albedo[i]
        out.append(np.where(metal, steel, albedo[i] * matt * np.float32(1.08)) + white)
    return out


def _matt(where: Stage, image: Array, normal: Triple, low: Array, key: Array, free: Array) -> Array:
    """Lambert's light from the key lamp's share `key`, two far lamps and the sky."""
    light = np.maximum(key, np.float32(0)) * free
    lamps = where.lamps.astype(np.float32)
    lamps = lamps / np.sqrt((lamps * lamps).sum(-1, keepdims=True))
    for i, power in ((1, _FILL), (2, _BACK)):
        cosine = dot(normal, some(tuple(lamps[:, i].T), image))
        light = light + power * np.maximum(cosine, np.float32(0))
    open_sky = np.float32(0.675) + np.float32(0.325) * normal[2]
    return light + AMBIENT * open_sky * (np.float32(0.55) + np.float32(0.45) * low)


def _mirror(
    scenes: list[Scene], image: Array, normal: Triple, view: Triple, low: Array
) -> list[Array]:
    """What metal reflects: the sky with a window of light in it, or the floor."""
    twice = 2 * dot(normal, view)
    x, y, z = (twice * n - v for n, v in zip(normal, view, strict=True))
    tones = np.array([linear(s.tone) for s in scenes], np.float32)
    up = np.clip(z * np.float32(6) + np.float32(0.5), 0, 1)
    fall = 1 - np.clip(z, 0, 1)
    ceiling = np.float32(0.22) + np.float32(0.75) * fall * fall  # brightest at the horizon
    c, s = behind()
    side = s * x - c * y  # to the right of the nominal camera
    window = _window(z, 0.42, 0.86) * _window(side, -0.8, -0.15)
    ceiling = ceiling + np.float32(0.8) * window
    fade = np.float32(0.25) + np.float32(0.95) * low
    return [
        tones[:, i][image] * fade * (1 - up) + up * ceiling * np.float32(t)
        for i, t in enumerate((0.96, 1.0, 1.06))
    ]


def _normals(where: Stage, points: Triple, solid: Array) -> Triple:
    """Unit normals of solids (n,) at points (n,)."""
    order = np.argsort(where.kind[solid], kind="stable")
    k = solid[order]
    c, s, scale = where.cos[k], where.sin[k], 1 / where.radius[k]
    x, y, z = ((points[i][order] - where.center[k, i]) * scale for i in range(3))
    x, y = c * x + s * y, c * y - s * x
    n = np.zeros((3, len(k)), np.float32)
    for body, part in by_kind(where.kind[k]):
        n[:, part] = np.stack(body.normal(x[part], y[part], z[part]))
    turned = np.empty_like(n)
    inverse = 1 / np.sqrt(np.maximum(n[0] * n[0] + n[1] * n[1] + n[2] * n[2], np.float32(1e-12)))
    turned[0, order] = (c * n[0] - s * n[1]) * inverse
    turned[1, order] = (s * n[0] + c * n[1]) * inverse
    turned[2, order] = n[2] * inverse
    return turned[0], turned[1], turned[2]


def _highlights(normal: Triple, toward: Triple, view: Triple) -> tuple[Array, Array]:
    """Blinn's highlight to the power 16 (rubber) and 64 (metal)."""
    half = toward[0] + view[0], toward[1] + view[1], toward[2] + view[2]
    shine = np.maximum(dot(normal, half), np.float32(0)) / np.sqrt(dot(half, half))
    for _ in range(4):
        shine = shine * shine
    sharp = shine * shine
    return shine, sharp * sharp


def _window(x: Array, low: float, high: float) -> Array:
    """1 between `low` and `high`, 0 outside, with soft edges."""
    edge = np.float32(0.08)
    return np.clip((x - np.float32(low)) / edge, 0, 1) * np.clip(
        (np.float32(high) - x) / edge, 0, 1
    )


def behind() -> tuple[np.float32, np.float32]:
    """The nominal camera's direction over the floor."""
    angle = math.radians(AZIMUTH)
    return np.float32(-math.cos(angle)), np.float32(-math.sin(angle))


def dot(a: Triple, b: Triple) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def some(values: Triple, index: Array) -> Triple:
    return values[0][index], values[1][index], values[2][index]
