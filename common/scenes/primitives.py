"""Ray intersection and normals of the bodies that shapes are made of.

`hit` gives the distance t (n,) at which each ray enters, infinite for a miss; `normal` the outward
direction at points of the surface, not normalised. Rays are o + t d in separate float32 arrays.
Only + - * / sqrt and comparisons are used: IEEE arithmetic, so that a pixel's value does not depend
on what else is in the array, on the number of threads or on the processor.
"""

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Triple = tuple[Array, Array, Array]
Rays = tuple[Array, Array, Array, Array, Array, Array]  # ox, oy, oz, dx, dy, dz
MISS = np.float32(np.inf)


@dataclass(frozen=True)
class Ellipsoid:
    """|x / a|^2 <= 1 around (0, 0, `middle`), of which only z >= `cut` is kept."""

    a: tuple[float, float, float]
    middle: float = 0.0
    cut: float | None = None

    def hit(self, rays: Rays) -> Array:
        ox, oy, oz, dx, dy, dz = rays
        ax, ay, az = (1 / a for a in self.a)
        sx, sy, sz = ox * ax, oy * ay, (oz - self.middle) * az
        ex, ey, ez = dx * ax, dy * ay, dz * az
        a = ex * ex + ey * ey + ez * ez
        b = sx * ex + sy * ey + sz * ez
        c = sx * sx + sy * sy + sz * sz - 1
        root = b * b - a * c
        inside = root > 0
        root = np.sqrt(np.maximum(root, 0))
        near, far = (-b - root) / a, (root - b) / a
        if self.cut is not None:
            rise = _nonzero(dz)
            t = (self.cut - oz) / rise
            near = np.where(rise > 0, np.maximum(near, t), near)
            far = np.where(rise < 0, np.minimum(far, t), far)
        return np.where(inside & (near < far), near, MISS)

    def normal(self, x: Array, y: Array, z: Array) -> Triple:
        a, b, c = (1 / s**2 for s in self.a)
        n = x * a, y * b, (z - self.middle) * c
        if self.cut is not None:
            flat = z < self.cut + 2e-3
            return np.where(flat, 0, n[0]), np.where(flat, 0, n[1]), np.where(flat, -1, n[2])
        return n


@dataclass(frozen=True)
class Frustum:
    """x^2 + y^2 <= (bottom..top, linear in z)^2 for |z| <= h: cylinder, cone, bucket."""

    bottom: float
    top: float
    h: float

    def hit(self, rays: Rays) -> Array:
        ox, oy, oz, dx, dy, dz = rays
        middle, slope = (self.bottom + self.top) / 2, (self.top - self.bottom) / (2 * self.h)
        start, end = _slab(oz, dz, self.h)
        width, change = middle + slope * oz, slope * dz
        a = dx * dx + dy * dy - change * change
        b = ox * dx + oy * dy - change * width
        c = ox * ox + oy * oy - width * width
        at_start = (a * start + 2 * b) * start + c
        root = b * b - a * c
        real = root > 0
        root = np.sqrt(np.maximum(root, 0))
        q = _nonzero(-(b + np.where(b < 0, -root, root)))
        first, second = q / _nonzero(a), c / q
        low, high = np.minimum(first, second), np.maximum(first, second)
        side = np.where(low >= start, low, high)
        t = np.where(at_start <= 0, start, side)
        good = (start < end) & ((at_start <= 0) | (real & (side >= start) & (side <= end)))
        return np.where(good, t, MISS)

    def normal(self, x: Array, y: Array, z: Array) -> Triple:
        slope = (self.top - self.bottom) / (2 * self.h)
        rho = np.sqrt(x * x + y * y) + np.float32(1e-12)
        edge = (self.bottom + self.top) / 2 + slope * z
        cap = (self.h - np.abs(z)) < np.abs(edge - rho) / math.sqrt(1 + slope * slope)
        up = np.where(z > 0, np.float32(1), np.float32(-1))
        return (
            np.where(cap, 0, x / rho),
            np.where(cap, 0, y / rho),
            np.where(cap, up, np.float32(-slope)),
        )


@dataclass(frozen=True)
class Polyhedron:
    """n . x <= e for every plane (nx, ny, nz, e), n of length 1."""

    planes: tuple[tuple[float, float, float, float], ...]

    def hit(self, rays: Rays) -> Array:
        ox, oy, oz, dx, dy, dz = rays
        near, far = np.full_like(ox, -np.inf), np.full_like(ox, np.inf)
        for plane in self.planes:
            toward = _nonzero(_dot(plane, dx, dy, dz))
            t = (plane[3] - _dot(plane, ox, oy, oz)) / toward
            near = np.where(toward < 0, np.maximum(near, t), near)
            far = np.where(toward > 0, np.minimum(far, t), far)
        return np.where(near < far, near, MISS)

    def normal(self, x: Array, y: Array, z: Array) -> Triple:
        best = np.full_like(x, -np.inf)
        n = [np.zeros_like(x) for _ in range(3)]
        for plane in self.planes:
            value = _dot(plane, x, y, z) - plane[3]
            better = value > best
            best = np.where(better, value, best)
            n = [np.where(better, np.float32(plane[i]), n[i]) for i in range(3)]
        return n[0], n[1], n[2]


@dataclass(frozen=True)
class Capsule:
    """All points within `a` of the segment |z| <= h on the axis."""

    a: float
    h: float

    def hit(self, rays: Rays) -> Array:
        ox, oy, oz, dx, dy, dz = rays
        ball = Ellipsoid((self.a, self.a, self.a))
        top = ball.hit((ox, oy, oz - np.float32(self.h), dx, dy, dz))
        bottom = ball.hit((ox, oy, oz + np.float32(self.h), dx, dy, dz))
        middle = Frustum(self.a, self.a, self.h).hit(rays)
        return np.minimum(np.minimum(top, bottom), middle)

    def normal(self, x: Array, y: Array, z: Array) -> Triple:
        return x, y, z - np.clip(z, -self.h, self.h)


@dataclass(frozen=True)
class Torus:
    """All points within `a` of the circle of radius `ring` in z = 0, by sphere tracing."""

    ring: float
    a: float
    steps: int = 160

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Signed distance to the surface."""
        rho = np.sqrt(x * x + y * y) - np.float32(self.ring)
        return np.sqrt(rho * rho + z * z) - np.float32(self.a)

    def hit(self, rays: Rays) -> Array:
        start, end = _slab(rays[2], rays[5], self.a * 1.01)
        outer = Ellipsoid((self.ring + self.a,) * 3).hit(rays)
        hit = np.full_like(rays[0], MISS)
        live = np.flatnonzero((start < end) & (outer < MISS))
        t, stop = np.maximum(start, outer)[live], end[live]
        ray = tuple(v[live] for v in rays)
        speed = 1 / np.sqrt(ray[3] * ray[3] + ray[4] * ray[4] + ray[5] * ray[5])
        for _ in range(self.steps):
            gap = self.distance(ray[0] + t * ray[3], ray[1] + t * ray[4], ray[2] + t * ray[5])
            close = gap < 5e-4
            hit[live[close]] = t[close] + gap[close] * speed[close]
            t = t + gap * speed
            go = ~close & (t < stop)
            live, t, stop, speed = live[go], t[go], stop[go], speed[go]
            ray = tuple(v[go] for v in ray)
            if not len(live):
                break
        return hit

    def normal(self, x: Array, y: Array, z: Array) -> Triple:
        rho = np.sqrt(x * x + y * y) + np.float32(1e-12)
        shrink = 1 - np.float32(self.ring) / rho
        return x * shrink, y * shrink, z


def _dot(plane: tuple[float, ...], x: Array, y: Array, z: Array) -> Array:
    """Product n . (x, y, z), leaving out the zeros of n."""
    terms = [np.float32(n) * v for n, v in zip(plane, (x, y, z), strict=False) if n]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _nonzero(x: Array) -> Array:
    """`x` with values too small to divide by moved to +-1e-9, sign kept."""
    tiny = np.float32(1e-9)
    return np.where(np.abs(x) < tiny, np.where(x < 0, -tiny, tiny), x)


def _slab(oz: Array, dz: Array, h: float) -> tuple[Array, Array]:
    """The interval of t in which |z| <= h."""
    inverse = 1 / _nonzero(dz)
    a, b = (-h - oz) * inverse, (h - oz) * inverse
    return np.minimum(a, b), np.maximum(a, b)
