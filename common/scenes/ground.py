"""Colours of what is not a solid: floor, wall, sky and patches, with procedural textures.

All functions map float32 arrays (n,) of world coordinates to albedo, linear light 0..1, in IEEE
arithmetic only (see primitives.py), so that a pixel does not depend on its neighbours in the array.
"""

import numpy as np

from .primitives import Array
from .scene import Vector

Color = tuple[Array, Array, Array]
HORIZON, ZENITH = (0.74, 0.80, 0.86), (0.16, 0.33, 0.68)  # linear light


def linear(rgb: Vector) -> Vector:
    """Linear light of sRGB 0..1, with gamma 2: the square root leads back."""
    return rgb[0] ** 2, rgb[1] ** 2, rgb[2] ** 2


def floor_factor(name: str, x: Array, y: Array, depth: Array) -> Array:
    """Texture of the floor: what its tone is multiplied by."""
    match name:
        case "checker":
            odd = (np.floor(x) + np.floor(y)) % 2
            return np.where(odd > 0, np.float32(1.1), np.float32(0.42))
        case "noise":
            fade = 1 / (1 + depth * depth * np.float32(0.004))
            coarse = value_noise(x * 0.9, y * 0.9, 1) - 0.5
            fine = value_noise(x * 3.7, y * 3.7, 2) - 0.5
            return 1 + fade * (np.float32(0.7) * coarse + np.float32(0.6) * fine)
        case "planks":
            row = np.floor(y * 1.25)
            along = x * np.float32(0.28) + row * np.float32(0.37)
            tone = np.float32(0.55) + np.float32(0.6) * cell(np.floor(along), row, 3)
            grain = value_noise(x * 1.2, y * 14, 4)
            seam = (y * 1.25 - row < 0.05) | (along - np.floor(along) < 0.012)
            return np.where(seam, np.float32(0.3), tone * (np.float32(0.8) + 0.4 * grain))
        case "tiles":
            u, v = x * np.float32(0.8), y * np.float32(0.8)
            column, row = np.floor(u), np.floor(v)
            seam = (u - column < 0.06) | (v - row < 0.06)
            tone = np.float32(0.75) + np.float32(0.4) * cell(column, row, 5)
            return np.where(seam, np.float32(0.35), tone)
    return np.ones_like(x)


def wall_factor(name: str, x: Array, z: Array) -> Array:
    """Texture of the wall at `x` along it and height `z`: what its tone is multiplied by."""
    match name:
        case "brick":
            v = z * np.float32(3.2)
            row = np.floor(v)
            u = x * np.float32(1.3) + np.float32(0.5) * (row % 2)
            seam = (u - np.floor(u) < 0.07) | (v - row < 0.14)
            tone = np.float32(0.6) + np.float32(0.45) * cell(np.floor(u), row, 6)
            return np.where(seam, np.float32(1.25), tone)
        case "panels":
            u = x * np.float32(0.7)
            inset = np.abs(u - np.floor(u) - np.float32(0.5))
            return np.where(inset > 0.45, np.float32(0.6), 1 - np.float32(0.25) * inset)
    return np.ones_like(x)


def sky_color(name: str, x: Array, y: Array, z: Array, drift: Array) -> Color:
    """Light from direction (x, y, z), not normalised, z >= 0; drift (n, 2) moves the clouds."""
    ground = np.sqrt(x * x + y * y) + np.float32(1e-6)
    rise = np.clip(z / ground, 0, 1.5)
    blend = rise / (rise + np.float32(0.35))
    if name == "plain":
        blend = np.full_like(blend, 0.4)
    color: list[Array] = [
        np.float32(low) + np.float32(high - low) * blend
        for low, high in zip(HORIZON, ZENITH, strict=True)
    ]
    if name == "clouds":
        flat = z + np.float32(0.15) * ground
        u, v = x / flat + drift[:, 0], y / flat + drift[:, 1]
        cloud: Array = value_noise(u * 1.1, v * 1.1, 7) * np.float32(0.65)
        cloud = cloud + np.float32(0.35) * value_noise(u * 2.9, v * 2.9, 8)
        cover = np.clip((cloud - np.float32(0.45)) * 4, 0, 1) * np.float32(0.85)
        color = [c + cover * (np.float32(0.95) - c) for c in color]
    return color[0], color[1], color[2]


def patch_place(table: Array, x: Array, y: Array, square: bool) -> tuple[Array, Array, Array]:
    """Coordinates u, v in -1..1 over a patch and whether points of the floor lie on it.

    table: (n, 6) x, y, cos, sin, 1 / half_x, 1 / half_y of the patch in each point's scene.
    """
    dx, dy, c, s = x - table[:, 0], y - table[:, 1], table[:, 2], table[:, 3]
    u = (c * dx + s * dy) * table[:, 4]
    v = (c * dy - s * dx) * table[:, 5]
    if square:
        return u, v, (np.abs(u) < 1) & (np.abs(v) < 1)
    wobble = value_noise(u * 2.1 + 7, v * 2.1, 9) - np.float32(0.5)
    return u, v, u * u + v * v < 1 + np.float32(0.7) * wobble


def patch_color(kind: str, u: Array, v: Array, x: Array, y: Array) -> Color:
    """Albedo of a rug, water or grass at patch coordinates (u, v) and floor place (x, y)."""
    match kind:
        case "rug":
            edge = np.maximum(np.abs(u), np.abs(v))
            weave = np.float32(0.85) + np.float32(0.3) * cell(np.floor(x * 9), np.floor(y * 9), 10)
            border = (edge > 0.8) & (edge < 0.92)
            stripe = np.abs(u * 4 - np.floor(u * 4) - np.float32(0.5)) < 0.17
            pale = border | (stripe & (edge < 0.8))
            return (
                weave * np.where(pale, np.float32(0.62), np.float32(0.33)),
                weave * np.where(pale, np.float32(0.50), np.float32(0.07)),
                weave * np.where(pale, np.float32(0.33), np.float32(0.09)),
            )
        case "water":
            wave = value_noise(x * 1.3 + y * 0.5, y * 4.5, 11)
            glint = np.clip((wave - np.float32(0.62)) * 4, 0, 1) * np.float32(0.35)
            return (
                np.float32(0.03) + glint,
                np.float32(0.15) + np.float32(0.10) * wave + glint,
                np.float32(0.28) + np.float32(0.16) * wave + glint,
            )
    blades = value_noise(x * 6, y * 6, 12) * np.float32(0.6) + np.float32(0.4) * value_noise(
        x * 17, y * 17, 13
    )
    return (
        np.float32(0.05) + np.float32(0.16) * blades,
        np.float32(0.14) + np.float32(0.32) * blades,
        np.float32(0.02) + np.float32(0.08) * blades,
    )


def cell(column: Array, row: Array, salt: int) -> Array:
    """A fixed pseudo-random number in [0, 1) per integer cell."""
    h = column.astype(np.int64).astype(np.uint32) * np.uint32(374761393)
    h = h + row.astype(np.int64).astype(np.uint32) * np.uint32(668265263)
    h = h + np.uint32(salt * 974711 % 2**32)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h = h ^ (h >> np.uint32(16))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def value_noise(x: Array, y: Array, salt: int) -> Array:
    """Smooth noise in [0, 1) with a feature size of 1."""
    column, row = np.floor(x), np.floor(y)
    u, v = x - column, y - row
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    a, b = cell(column, row, salt), cell(column + 1, row, salt)
    c, d = cell(column, row + 1, salt), cell(column + 1, row + 1, salt)
    top, bottom = a + (b - a) * u, c + (d - c) * u
    return top + (bottom - top) * v
