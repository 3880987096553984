"""Every shape in a frame where radius = 1: its body, bounds and keypoints.

A solid is centred on the middle of its height, z up.
"""

import math

from .primitives import Capsule, Ellipsoid, Frustum, Polyhedron, Torus

PEBBLE = "pebble"  # clutter: flat ellipsoid, never labelled


def _planes(*rows: tuple[float, float, float, float]) -> Polyhedron:
    """A polyhedron from planes whose normals have any length."""
    lengths = [math.sqrt(a * a + b * b + c * c) for a, b, c, _ in rows]
    return Polyhedron(
        tuple((a / n, b / n, c / n, e / n) for (a, b, c, e), n in zip(rows, lengths, strict=True))
    )


_CUBE = math.sqrt(0.5)  # CLEVR divides a cube's scale by sqrt(2)
_BASE, _TIP = 0.8, 0.75  # pyramid: half side of the base, half height
_LONG, _WIDE, _RIDGE = 0.85, 0.62, 0.55  # prism (a tent): half length, half width, half height
_HEX = 0.9 * math.sqrt(0.75)  # hexagon: distance of a side face
_LOW = 0.7  # hexagon: half height

Body = Ellipsoid | Frustum | Polyhedron | Capsule | Torus
SOLIDS: dict[str, Body] = {
    "cube": _planes(
        *[(s * (i == 0), s * (i == 1), s * (i == 2), _CUBE) for i in range(3) for s in (1, -1)]
    ),
    "sphere": Ellipsoid((1, 1, 1)),
    "cylinder": Frustum(1, 1, 1),
    "cone": Frustum(1, 0, 0.95),
    "pyramid": _planes(
        (0, 0, -1, _TIP),
        *[
            (x * 2 * _TIP, y * 2 * _TIP, _BASE, _BASE * _TIP)
            for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ],
    ),
    "torus": Torus(0.69, 0.31),
    "prism": _planes(
        (0, 0, -1, _RIDGE),
        (1, 0, 0, _LONG),
        (-1, 0, 0, _LONG),
        (0, 2 * _RIDGE, _WIDE, _WIDE * _RIDGE),
        (0, -2 * _RIDGE, _WIDE, _WIDE * _RIDGE),
    ),
    "hexagon": _planes(
        (0, 0, 1, _LOW),
        (0, 0, -1, _LOW),
        *[(math.cos(math.pi * k / 3), math.sin(math.pi * k / 3), 0, _HEX) for k in range(6)],
    ),
    "octahedron": _planes(*[(x, y, z, 1) for x in (1, -1) for y in (1, -1) for z in (1, -1)]),
    "ellipsoid": Ellipsoid((0.62, 0.62, 1)),
    "capsule": Capsule(0.45, 0.6),
    "dome": Ellipsoid((1, 1, 1), middle=-0.5, cut=-0.5),
    "frustum": Frustum(1, 0.55, 0.65),
    PEBBLE: Ellipsoid((1, 0.75, 0.5)),
}

# Half of the bounding box in x, y, z; the solid stands on the floor when its middle is at BOX z.
BOX: dict[str, tuple[float, float, float]] = {
    "cube": (_CUBE, _CUBE, _CUBE),
    "sphere": (1, 1, 1),
    "cylinder": (1, 1, 1),
    "cone": (1, 1, 0.95),
    "pyramid": (_BASE, _BASE, _TIP),
    "torus": (1, 1, 0.31),
    "prism": (_LONG, _WIDE, _RIDGE),
    "hexagon": (_HEX, 0.9, _LOW),
    "octahedron": (1, 1, 1),
    "ellipsoid": (0.62, 0.62, 1),
    "capsule": (0.45, 0.45, 1.05),
    "dome": (1, 1, 0.5),
    "frustum": (1, 1, 0.65),
    PEBBLE: (1, 0.75, 0.5),
}
_BALL = {"sphere": 1.0, "ellipsoid": 1.0, "octahedron": 1.0, PEBBLE: 1.0, "torus": 1.0}
REACH2 = {  # squared radius of a sphere about the middle that holds the solid and a little more
    shape: 1.01 * (_BALL.get(shape) or sum(half * half for half in box))
    for shape, box in BOX.items()
}


def _ring(radius: float, z: float, first: float) -> tuple[tuple[float, float, float], ...]:
    """Four points a quarter turn apart, counter-clockwise from above, from `first` degrees."""
    angles = [math.radians(first + 90 * k) for k in range(4)]
    return tuple((radius * math.cos(a), radius * math.sin(a), z) for a in angles)


_HEX_RING = ((_HEX, 0.0), (0.0, 0.9), (-_HEX, 0.0), (0.0, -0.9))
_TENT = ((_LONG, _WIDE), (-_LONG, _WIDE), (-_LONG, -_WIDE), (_LONG, -_WIDE))
ROUND = ("sphere", "cylinder", "cone", "torus", "ellipsoid", "capsule", "dome", "frustum")
# Top, then an upper and a lower ring of four points on the surface.
POINTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "cube": ((0, 0, _CUBE), *_ring(1, _CUBE, 45), *_ring(1, -_CUBE, 45)),
    "sphere": ((0, 0, 1), *_ring(0.8, 0.6, 0), *_ring(0.8, -0.6, 0)),
    "cylinder": ((0, 0, 1), *_ring(1, 1, 0), *_ring(1, -1, 0)),
    "cone": ((0, 0, 0.95), *_ring(0.5, 0, 0), *_ring(1, -0.95, 0)),
    "pyramid": (
        (0, 0, _TIP),
        *_ring(_BASE * math.sqrt(0.5), 0, 45),
        *_ring(_BASE * math.sqrt(2), -_TIP, 45),
    ),
    "torus": ((0, 0, 0.31), *_ring(0.69, 0.31, 0), *_ring(1, 0, 0)),  # top: above the hole
    "prism": (
        (0, 0, _RIDGE),
        *[(x, y / 2, 0.0) for x, y in _TENT],
        *[(x, y, -_RIDGE) for x, y in _TENT],
    ),
    "hexagon": (
        (0, 0, _LOW),
        *[(x, y, _LOW) for x, y in _HEX_RING],
        *[(x, y, -_LOW) for x, y in _HEX_RING],
    ),
    "octahedron": ((0, 0, 1), *_ring(0.5, 0.5, 0), *_ring(1, 0, 0)),
    "ellipsoid": ((0, 0, 1), *_ring(0.62 * 0.8, 0.6, 0), *_ring(0.62 * 0.8, -0.6, 0)),
    "capsule": ((0, 0, 1.05), *_ring(0.45, 0.6, 0), *_ring(0.45, -0.6, 0)),
    "dome": ((0, 0, 0.5), *_ring(0.8, 0.1, 0), *_ring(1, -0.5, 0)),
    "frustum": ((0, 0, 0.65), *_ring(0.55, 0.65, 0), *_ring(1, -0.65, 0)),
}
