"""What a perfect detector would say of scenes, as maps of the ground.

I images, C channels, G cells along either side. A map shows the ground as the camera sees it, rows
from front to behind, columns from left to right. Channels, see `channels`: whether an object is in
the cell, its attributes as one-hot vectors, and how far from the cell's middle it really stands, to
the right and to behind, in cells. No two objects share a row or a column: where they would, they
move to the nearest cells that keep their order, so that every relation can be read off the map.
"""

from collections.abc import Sequence

import numpy as np

from ...scenes.world import World
from ..functions import ATTRIBUTES
from ..scene_graph import SceneGraph


def channels(world: World) -> tuple[str, ...]:
    """Names of the channels of a map of this world."""
    values = [f"{name}={value}" for name in ATTRIBUTES for value in world.values(name)]
    return ("object", *values, "right", "behind")


def grid_map(scenes: Sequence[SceneGraph], world: World, grid: int) -> np.ndarray:
    """Maps (I, C, G, G) float32 of the ground, see above.

    The map's middle is the world's; its side is the diagonal of the square of centres, so that
    nothing falls out whichever way the camera looks.
    """
    names = channels(world)
    place = {name: i for i, name in enumerate(names)}
    maps = np.zeros((len(scenes), len(names), grid, grid), np.float32)
    side = 2 * np.sqrt(2) * world.spread / grid  # of a cell, in world units
    for i, scene in enumerate(scenes):
        points = np.array([thing.position for thing in scene.things]).reshape(-1, 3)
        spots = [points @ np.array(scene.directions[name]) for name in ("right", "behind")]
        columns, rows = (_separate(spot / side + grid / 2, grid) for spot in spots)
        for j, thing in enumerate(scene.things):
            cell = maps[i, :, rows[j], columns[j]]
            cell[0] = 1
            for attribute in ATTRIBUTES:
                cell[place[f"{attribute}={getattr(thing, attribute)}"]] = 1
            cell[-2] = spots[0][j] / side + grid / 2 - columns[j] - 0.5
            cell[-1] = spots[1][j] / side + grid / 2 - rows[j] - 0.5
    return maps


def _separate(positions: np.ndarray, cells: int) -> np.ndarray:
    """A cell of its own for each of n <= `cells` positions, in their order and close to them.

    The middle between moving those in the way up and moving them down.
    """
    order = np.argsort(positions, kind="stable")
    n = np.arange(len(order))
    wanted = np.floor(positions[order]).astype(int)
    up = np.maximum.accumulate(wanted - n) + n
    down = np.minimum.accumulate((wanted - n)[::-1])[::-1] + n
    out = np.empty(len(order), int)
    out[order] = np.clip((up + down) // 2, n, cells - len(order) + n)
    return out
