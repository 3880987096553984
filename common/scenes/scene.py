"""What one scene is made of: solids, a camera, lamps and the ground. Plain values."""

import math
from dataclasses import dataclass

import numpy as np

from .shapes import BOX

Vector = tuple[float, float, float]


def axes_of(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Right, up and forward (N, 3, 3) of cameras at `position` (N, 3) that look at `target`."""
    x, y, z = (target - position).T
    ground = np.sqrt(x * x + y * y)
    length = np.sqrt(x * x + y * y + z * z)
    x, y, cos, sin = x / ground, y / ground, ground / length, z / length
    right = np.stack((y, -x, np.zeros_like(x)), -1)
    up = np.stack((-x * sin, -y * sin, cos), -1)
    return np.stack((right, up, np.stack((x * cos, y * cos, sin), -1)), 1)


@dataclass(frozen=True)
class Solid:
    """One solid standing on the floor (or `lift` above it).

    As in CLEVR, `rotation` is a number in [0, 360) that the renderer reads as *radians*.
    """

    shape: str
    color: str
    material: str
    size: str
    radius: float  # the size drawn; a cube's half side is radius / sqrt(2)
    x: float
    y: float
    rotation: float
    rgb: Vector  # sRGB 0..1, after jitter
    labelled: bool = True
    lift: float = 0.0

    @property
    def center(self) -> Vector:
        """World position of the middle of its bounding box."""
        return self.x, self.y, self.lift + self.radius * BOX[self.shape][2]

    @property
    def yaw(self) -> float:
        """Rotation about the vertical in radians, [0, 2 pi)."""
        return self.rotation % (2 * math.pi)


@dataclass(frozen=True)
class Stain:
    """A soft dark spot on the floor."""

    x: float
    y: float
    radius: float
    darkness: float  # 0..1 in its middle


@dataclass(frozen=True)
class Patch:
    """A part of the ground of another kind: a rug (rectangle), water or grass (ellipse)."""

    kind: str
    x: float
    y: float
    half_x: float
    half_y: float
    yaw: float


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; pixel (column j, row i) has its centre at (j + 0.5, i + 0.5)."""

    position: Vector
    target: Vector
    focal: float  # pixels
    height: int
    width: int

    def axes(self) -> np.ndarray:
        """Rows right, up, forward: orthonormal, (3, 3) float64."""
        return axes_of(np.array([self.position]), np.array([self.target]))[0]

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) to (..., 3): x, y in pixels, depth along the optical axis."""
        axes = self.axes()
        local = (np.asarray(points, np.float64) - self.position) @ axes.T
        depth = local[..., 2]
        x = self.width / 2 + self.focal * local[..., 0] / depth
        y = self.height / 2 - self.focal * local[..., 1] / depth
        return np.stack((x, y, depth), -1)

    def directions(self) -> dict[str, Vector]:
        """CLEVR's six unit directions: left, right, front, behind on the floor, above, below."""
        right, _, forward = self.axes()
        behind = np.array((forward[0], forward[1], 0.0))
        behind /= math.sqrt(float(behind @ behind))
        named = {"left": -right, "right": right, "front": -behind, "behind": behind}
        named |= {"above": np.array((0.0, 0.0, 1.0)), "below": np.array((0.0, 0.0, -1.0))}
        return {
            name: (float(d[0]) + 0.0, float(d[1]) + 0.0, float(d[2]) + 0.0)
            for name, d in named.items()
        }


@dataclass(frozen=True)
class Scene:
    """One scene: labelled solids first, then distractors, then pebbles."""

    seed: int
    index: int
    objects: tuple[Solid, ...]
    camera: Camera
    lamps: tuple[Vector, Vector, Vector]  # key (casts shadows), fill, back
    tone: Vector  # the floor's sRGB 0..1
    wall_tone: Vector
    drift: tuple[float, float] = (0.0, 0.0)  # where the textures of floor, wall and sky begin
    stains: tuple[Stain, ...] = ()
    patches: tuple[Patch, ...] = ()
    frame: int = 0  # of a clip; only the sensor noise depends on it
