"""What can be read off rendered scenes: boxes, areas, keypoints, CLEVR's scene graph."""

from collections.abc import Mapping, Sequence

import numpy as np

from .cast import KINDS, Stage, stage, strike, turn
from .primitives import Array
from .scene import Scene
from .shapes import POINTS, ROUND

KEYPOINTS = (
    "top",
    *(f"upper {side}" for side in ("front", "right", "back", "left")),
    *(f"lower {side}" for side in ("front", "right", "back", "left")),
)
KEYPOINT_FLIP = (0, 1, 4, 3, 2, 5, 8, 7, 6)  # order of the keypoints in a mirrored image
SKELETON = tuple(  # pairs of keypoints that an edge joins, numbers from 1 as in COCO
    [(1, 2 + k) for k in range(4)]
    + [(2 + k, 6 + k) for k in range(4)]
    + [(6 + k, 6 + (k + 1) % 4) for k in range(4)]
)
_POINTS = np.array([POINTS.get(kind, np.zeros((9, 3))) for kind in KINDS], np.float64)
_ROUND = np.array([kind in ROUND for kind in KINDS])
EPS = 0.2  # how much further j must lie than i, in world units, to be e.g. left of it
_TOLERANCE = 0.02  # of the radius: how far behind a surface a keypoint still counts as on it


def visible_boxes(ids: Array, objects: int) -> tuple[Array, Array]:
    """Tight boxes (N, objects, 4) int64 xyxy and areas (N, objects) of the visible pixels.

    ids: (N, H, W) uint8, object i drawn as i + 1. A box's x2, y2 are one past the last pixel; an
    object without a pixel has area 0 and the box 0, 0, 0, 0.
    """
    count, height, width = ids.shape
    flat = ids.reshape(-1)
    pixel = np.flatnonzero((flat > 0) & (flat <= objects))
    image, place = np.divmod(pixel, height * width)
    y, x = np.divmod(place, width)
    owner = image * objects + flat[pixel] - 1
    low = np.full((2, count * objects), max(height, width))
    high = np.zeros((2, count * objects), np.int64)
    for i, value in enumerate((x, y)):
        np.minimum.at(low[i], owner, value)
        np.maximum.at(high[i], owner, value + 1)
    areas = np.bincount(owner, minlength=count * objects)
    boxes = np.stack((low[0], low[1], high[0], high[1]), -1) * (areas > 0)[:, None]
    return boxes.reshape(count, objects, 4), areas.reshape(count, objects)


def keypoints(scenes: list[Scene]) -> list[Array]:
    """Per scene the keypoints (objects, 9, 3) float32 of its solids: x, y in pixels, flag.

    The flag is COCO's: 2 visible, 1 hidden by a solid, 0 outside the image (then x = y = 0).
    Front, right, back and left are as seen from the camera, so they are learnable for solids that
    look the same from all sides; a pixel's centre is at + 0.5.
    """
    where = stage(scenes)
    points = _points(where)
    seen = where.project(where.image, points)
    x, y, depth = (seen[..., i] for i in range(3))
    inside = (depth > 0) & (x >= 0) & (x < where.width) & (y >= 0) & (y < where.height)
    flag = np.where(inside, np.where(_hidden(where, points, depth), 1, 2), 0)
    table = np.stack((np.where(inside, x, 0), np.where(inside, y, 0), flag), -1)
    out = [np.zeros((len(s.objects), len(KEYPOINTS), 3), np.float32) for s in scenes]
    for row, image, slot in zip(table, where.image, where.slot, strict=True):
        out[image][slot] = row
    return out


def _points(where: Stage) -> Array:
    """World positions (K, 9, 3) of all keypoints, rings starting at the camera's side."""
    local = _POINTS[where.kind] * where.radius[:, None, None]
    center = where.center.astype(np.float64)
    toward = where.position[where.image][:, :2] - center[:, :2]
    toward = toward / np.sqrt((toward * toward).sum(-1, keepdims=True))
    round_ = _ROUND[where.kind]
    cos = np.where(round_, toward[:, 0], where.cos)[:, None]
    sin = np.where(round_, toward[:, 1], where.sin)[:, None]
    points = turn(local, cos, sin)
    facing = points[:, 5:, 0] * toward[:, :1] + points[:, 5:, 1] * toward[:, 1:]
    first = np.where(round_, 0, facing.argmax(1))
    ring = (np.arange(4) + first[:, None]) % 4
    order = np.concatenate((np.zeros_like(ring[:, :1]), 1 + ring, 5 + ring), 1)
    return center[:, None] + np.take_along_axis(points, order[..., None], 1)


def _hidden(where: Stage, points: Array, depth: Array) -> Array:
    """Whether some solid lies between the camera and each point: (K, 9) bool."""
    count = points.shape[1]
    solid, owner = np.nonzero(where.image[:, None] == where.image)  # solid ascending
    solid, owner = np.repeat(solid, count), np.repeat(owner, count)
    ray = owner * count + np.tile(np.arange(count), len(owner) // count)
    eye = where.position[where.image]
    toward = (points - eye[:, None]).reshape(-1, 3).astype(np.float32)
    start = (eye - where.center).astype(np.float32)
    t = strike(  # in shares of the way to the point
        where,
        solid,
        (start[:, 0][solid], start[:, 1][solid], start[:, 2][solid]),
        (toward[:, 0][ray], toward[:, 1][ray], toward[:, 2][ray]),
    )
    slack = (_TOLERANCE * where.radius[:, None] / np.maximum(depth, 1e-6)).reshape(-1)
    hidden = np.zeros(len(toward), bool)
    hidden[ray[(t > 0) & (t < 1 - slack[ray])]] = True
    return hidden.reshape(depth.shape)


def clevr_scene(scene: Scene, split: str) -> dict:
    """The scene as one entry of CLEVR's scenes JSON: labelled solids and their relations.

    `relationships[r][i]` lists every j that is r of i.
    """
    solids = [solid for solid in scene.objects if solid.labelled]
    centers = np.array([solid.center for solid in solids]).reshape(-1, 3)
    pixels = scene.camera.project(centers)
    directions = scene.camera.directions()
    return {
        "split": split,
        "image_index": scene.index,
        "image_filename": f"CLEVR_{split}_{scene.index:06d}.png",
        "directions": {name: list(direction) for name, direction in directions.items()},
        "objects": [
            {
                "shape": solid.shape,
                "size": solid.size,
                "material": solid.material,
                "color": solid.color,
                "3d_coords": list(solid.center),
                "pixel_coords": [round(float(x)), round(float(y)), float(depth)],
                "rotation": solid.rotation,
            }
            for solid, (x, y, depth) in zip(solids, pixels, strict=True)
        ],
        "relationships": relationships(centers, directions),
    }


def relationships(
    centers: Array, directions: Mapping[str, Sequence[float]]
) -> dict[str, list[list[int]]]:
    """CLEVR's relations of centres (M, 3): the list [r][i] holds every j that is r of i.

    That is where (p_j - p_i) . direction_r > EPS, as in the public generator. In scenes that keep
    CLEVR's margin of 0.4 each pair has exactly one of left and right, and one of behind and front.
    """
    apart = centers[None] - centers[:, None]  # (M, M, 3): from i to j
    return {
        name: [np.flatnonzero(row).tolist() for row in apart @ np.array(directions[name]) > EPS]
        for name in ("left", "right", "front", "behind")
    }
