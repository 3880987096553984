"""The built-in world: ray casting against brute force, placement rules, labels, cache, clips."""

import io
import json
import math
import pickle
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.scenes import Scene, Scenes, World, clips, place, render
from common.scenes.annotate import KEYPOINT_FLIP, KEYPOINTS, clevr_scene, keypoints, relationships
from common.scenes.clip import MOTIONS
from common.scenes.place import place_all
from common.scenes.scene import Camera, Patch, Solid
from common.scenes.shapes import BOX
from common.scenes.world import COGENT_A, COGENT_B, FLOORS, REGIONS, SHAPES, SKIES, WALLS, hues
from tests.commands import Commands

HALF = math.sqrt(0.5)


def inside(shape: str, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Whether points lie in a solid of radius 1 about the middle of its height: its definition."""
    rho = np.hypot(x, y)
    match shape:
        case "cube":
            return np.maximum(np.maximum(abs(x), abs(y)), abs(z)) <= HALF
        case "sphere":
            return x**2 + y**2 + z**2 <= 1
        case "cylinder":
            return (rho <= 1) & (abs(z) <= 1)
        case "cone":
            return (rho <= (0.95 - z) / 1.9) & (abs(z) <= 0.95)
        case "pyramid":
            return (np.maximum(abs(x), abs(y)) <= 0.8 * (0.75 - z) / 1.5) & (abs(z) <= 0.75)
        case "torus":
            return np.hypot(rho - 0.69, z) <= 0.31
        case "prism":
            return (abs(x) <= 0.85) & (abs(y) <= 0.62 * (0.55 - z) / 1.1) & (abs(z) <= 0.55)
        case "hexagon":
            turns = [
                x * math.cos(k * math.pi / 3) + y * math.sin(k * math.pi / 3) for k in range(6)
            ]
            return (np.max(turns, 0) <= 0.9 * math.cos(math.pi / 6)) & (abs(z) <= 0.7)
        case "octahedron":
            return abs(x) + abs(y) + abs(z) <= 1
        case "ellipsoid":
            return (rho / 0.62) ** 2 + z**2 <= 1
        case "capsule":
            return np.hypot(rho, np.maximum(abs(z) - 0.6, 0)) <= 0.45
        case "dome":
            return (rho**2 + (z + 0.5) ** 2 <= 1) & (z >= -0.5)
        case "frustum":
            return (rho <= 1 - 0.45 * (z + 0.65) / 1.3) & (abs(z) <= 0.65)
    raise ValueError(shape)


def solid(shape: str = "cube", x: float = 0.0, y: float = 0.0, **changes: object) -> Solid:
    values = {"color": "red", "material": "rubber", "size": "large", "radius": 0.7}
    values |= {"rotation": 0.6, "rgb": (0.6, 0.1, 0.1), **changes}
    return Solid(shape=shape, x=x, y=y, **values)  # type: ignore[arg-type]


def scene_of(*solids: Solid, world: World | None = None, camera: Camera | None = None) -> Scene:
    """A scene of hand-placed solids with the camera and lamps that `world` draws."""
    drawn = place(replace(world or World(), objects=(1, 1)), 0, 0)
    return replace(drawn, objects=solids, camera=camera or drawn.camera)


def brute_rays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Origin (3,) and directions (H * W, 3), of depth 1 along the axis, straight from geometry."""
    origin = np.array(camera.position)
    forward = np.array(camera.target) - origin
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    j, i = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    u, v = (j - camera.width / 2) / camera.focal, (camera.height / 2 - i) / camera.focal
    return origin, (forward + u[..., None] * right + v[..., None] * up).reshape(-1, 3)


def contains(thing: Solid, points: np.ndarray) -> np.ndarray:
    """Whether world points (..., 3) lie in a solid."""
    p = (points - thing.center) / thing.radius
    c, s = math.cos(thing.yaw), math.sin(thing.yaw)
    return inside(
        thing.shape, c * p[..., 0] + s * p[..., 1], c * p[..., 1] - s * p[..., 0], p[..., 2]
    )


def rim(mask: np.ndarray) -> np.ndarray:
    """Pixels (H, W) of a mask's outline, on both sides."""
    padded = np.pad(mask, 1, mode="edge")
    shifts = [padded[1 + a : mask.shape[0] + 1 + a, 1 + b : mask.shape[1] + 1 + b]
              for a in (-1, 0, 1) for b in (-1, 0, 1)]  # fmt: skip
    return np.max(shifts, 0) != np.min(shifts, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_id_map_and_depth_of_every_shape_equal_sampling_its_definition(shape: str) -> None:
    world = World(height=36, width=48, spread=0.5, antialias=False)
    thing = solid(shape, 0.1, -0.05)
    scene = scene_of(thing, world=world)
    rendered = render(world, [scene])
    origin, rays = brute_rays(scene.camera)
    middle = np.linalg.norm(np.array(thing.center) - origin)
    t = np.linspace(middle - 1.3, middle + 1.3, 900)
    within = contains(thing, origin + t[None, :, None] * rays[:, None])
    hit = within.any(1).reshape(36, 48)
    ids = rendered.ids[0].numpy()
    wrong = (ids == 1) != hit
    assert hit.sum() > 60
    assert not (wrong & ~rim(hit)).any()
    assert wrong.sum() <= 3
    first = t[within.argmax(1)].reshape(36, 48)
    sure = hit & (ids == 1) & ~rim(hit)
    assert np.abs(rendered.depth[0].numpy() - first)[sure].max() < 2 * (t[1] - t[0])


def test_the_nearer_of_two_solids_hides_the_other() -> None:
    world = World(height=48, width=64, antialias=False)
    near, far = solid("sphere", 1.2, -1.0), solid("cylinder", 0.0, 0.2)
    scene = scene_of(near, far, world=world)
    origin, rays = brute_rays(scene.camera)
    t = np.linspace(6, 14, 1500)
    points = origin + t[None, :, None] * rays[:, None]
    depth = [
        np.where(c.any(1), t[c.argmax(1)], np.inf)
        for c in (contains(o, points) for o in (near, far))
    ]
    expected = np.where(np.isinf(np.min(depth, 0)), 0, 1 + np.argmin(depth, 0)).reshape(48, 64)
    ids = render(world, [scene]).ids[0].numpy()
    assert (ids != expected).mean() < 0.003
    assert set(np.unique(ids)) == {0, 1, 2}


@pytest.mark.parametrize("shape", ["cube", "torus", "cone", "capsule"])
def test_shadows_on_the_floor_are_where_a_solid_hides_the_key_lamp(shape: str) -> None:
    world = World(height=48, width=64, spread=1.0, antialias=False)
    thing = solid(shape)
    scene = scene_of(thing, world=world)
    bright, dark = (render(replace(world, shadows=s), [scene]) for s in (False, True))
    darker = (bright.images.int() - dark.images.int()).sum(1)[0].numpy() > 0
    origin, rays = brute_rays(scene.camera)
    floor = origin - rays * (origin[2] / rays[:, 2:])
    steps = np.linspace(0.001, 0.6, 1500)[None, :, None]
    hidden = contains(thing, floor[:, None] + steps * (np.array(scene.lamps[0]) - floor[:, None]))
    expected = hidden.any(1).reshape(48, 64)
    bare = dark.ids[0].numpy() == 0
    assert (expected & bare).sum() > 10
    wrong = (darker != expected) & bare
    assert not (wrong & ~rim(expected)).any()
    assert wrong.sum() <= 4


def test_images_do_not_depend_on_the_batch() -> None:
    world = World(shapes=SHAPES, clutter=(2, 4), noise=3.0, floor="noise", patches=("water",))
    scenes = place_all(world, 3, range(7))
    together = render(world, scenes)
    backwards = render(world, scenes[::-1])
    for i in range(7):
        alone = render(world, [scenes[i]])
        for name in ("images", "ids", "regions", "depth"):
            expected = getattr(alone, name)[0]
            assert torch.equal(getattr(together, name)[i], expected)
            assert torch.equal(getattr(backwards, name)[6 - i], expected)


def test_scenes_depend_on_seed_and_index_alone() -> None:
    world = World(objects=(6, 10))
    assert place_all(world, 5, [4, 9, 2])[1] == place(world, 5, 9)
    assert place(world, 5, 9) != place(world, 5, 10)
    assert place(world, 5, 9) != place(world, 6, 9)


def test_placement_keeps_gap_margin_count_and_visibility() -> None:
    world = World(objects=(3, 8), margin=0.45, min_gap=0.3, min_visible=40)
    scenes = place_all(world, 0, range(30))
    ids = render(world, scenes).ids
    for image, scene in zip(ids, scenes, strict=True):
        assert 3 <= len(scene.objects) <= 8
        directions = scene.camera.directions()
        for i, a in enumerate(scene.objects):
            assert (image == i + 1).sum() >= 40
            assert max(abs(a.x), abs(a.y)) <= world.spread
            assert a.center[2] == pytest.approx(a.radius * BOX[a.shape][2])
            for b in scene.objects[:i]:
                assert math.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius >= 0.3 - 1e-9
                for name in ("right", "behind"):
                    way = np.dot(np.subtract(a.center, b.center)[:2], directions[name][:2])
                    assert abs(way) >= 0.45 - 1e-9


def test_relations_are_complementary_antisymmetric_orders() -> None:
    for scene in place_all(World(), 1, range(20)):
        graph = clevr_scene(scene, "val")
        count = len(graph["objects"])
        for name, opposite in (("left", "right"), ("front", "behind")):
            a, b = graph["relationships"][name], graph["relationships"][opposite]
            for i in range(count):
                assert sorted(a[i] + b[i] + [i]) == list(range(count))
                assert all(i in b[j] for j in a[i])
            assert sorted(len(row) for row in a) == list(range(count))  # a strict total order


def test_relations_follow_coordinates_and_the_tolerance() -> None:
    axes = {
        "left": (-1.0, 0, 0),
        "right": (1.0, 0, 0),
        "front": (0, -1.0, 0),
        "behind": (0, 1.0, 0),
    }
    found = relationships(np.array([(0, 0, 0.7), (1, 0.1, 0.7), (3, -1, 0.3)]), axes)
    assert found["right"] == [[1, 2], [2], []]
    assert found["left"] == [[], [0], [0, 1]]
    assert found["behind"] == [[], [], [0, 1]]  # 0.1 is within the tolerance of 0.2
    assert found["front"] == [[2], [2], []]


def test_scene_graph_follows_clevr_and_survives_json() -> None:
    scene = place(World(distractors=(1, 1)), 0, 4)
    graph = json.loads(json.dumps(clevr_scene(scene, "train")))
    assert len(graph["objects"]) == len(scene.objects) - 1
    assert graph["image_filename"] == "CLEVR_train_000004.png"
    assert set(graph["directions"]) == {"left", "right", "front", "behind", "above", "below"}
    right, behind = np.array(graph["directions"]["right"]), np.array(graph["directions"]["behind"])
    assert right @ behind == pytest.approx(0)
    assert np.cross(right, behind) == pytest.approx([0, 0, 1])


def test_pixel_coordinates_are_where_the_solid_is_drawn() -> None:
    world = World(objects=(1, 1), shapes=("sphere",))
    for scene in place_all(world, 2, range(8)):
        x, y, depth = clevr_scene(scene, "val")["objects"][0]["pixel_coords"]
        rendered = render(world, [scene])
        rows, columns = torch.nonzero(rendered.ids[0] == 1).float().T
        assert columns.mean().item() + 0.5 == pytest.approx(x, abs=1.1)
        assert rows.mean().item() + 0.5 == pytest.approx(y, abs=1.1)
        surface = rendered.depth[0][int(y), int(x)].item()
        assert depth - scene.objects[0].radius - 0.02 < surface < depth


def test_the_default_view_is_clevrs() -> None:
    right = np.mean([place(World(), 0, i).camera.directions()["right"] for i in range(40)], 0)
    assert right == pytest.approx([0.656, 0.755, 0], abs=0.02)
    still = World(jitter=0.0, light_jitter=0.0)
    assert place(still, 0, 0).camera == place(still, 1, 7).camera


def test_boxes_are_tight_and_masks_disjoint(tmp_path: Path) -> None:
    world = World(objects=(3, 9), distractors=(1, 3), clutter=(1, 4))
    scenes = Scenes(world, count=12, cache=tmp_path, masks=True)
    for i in range(12):
        _, target = scenes[i]
        masks, ids = target["masks"], scenes.ids(i)
        assert masks.sum(0).max() == 1
        assert torch.equal(masks.sum((1, 2)).float(), target["area"])
        assert len(masks) == sum(o.labelled for o in scenes.scene(i).objects)
        for mask, (x1, y1, x2, y2) in zip(masks, target["boxes"].int().tolist(), strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            for line in (mask[y1], mask[y2 - 1], mask[:, x1], mask[:, x2 - 1]):
                assert line.any()
        labelled = len(masks)
        assert not masks.any(0)[ids > labelled].any()
        assert (ids > labelled).any()  # distractors are drawn and numbered, not labelled


def test_labels_agree_with_the_scene(tmp_path: Path) -> None:
    by = ("shape", "color", "material", "size")
    world = World(shapes=SHAPES)
    scenes = Scenes(world, count=10, cache=tmp_path, classes_by=by, start=5)
    for i in range(10):
        solids = scenes.scene(i).objects
        labels = scenes[i][1]["labels"].tolist()
        words = [f"{o.size} {o.color} {o.material} {o.shape}" for o in solids]
        assert [scenes.names[label] for label in labels] == words
        assert scenes[i][1]["image_id"] == 5 + i
    biggest = [scenes[i][1]["labels"][scenes[i][1]["area"].argmax()].item() for i in range(10)]
    assert scenes.labels().tolist() == biggest
    assert torch.equal(scenes.images()[3], scenes[3][0])


def test_regions_cover_the_image_with_all_stuff() -> None:
    world = World(wall="brick", sky="clouds", patches=("rug", "water"), floor="planks")
    assert world.stuff == ("floor", "wall", "sky", "rug", "water")
    regions = render(world, place_all(world, 0, range(6))).regions
    seen = {REGIONS[value] for value in regions.unique().tolist()}
    assert seen == set(world.stuff)


def test_a_rug_is_where_its_rectangle_lies_on_the_floor() -> None:
    world = World(patches=("rug",))
    scene = replace(place(world, 0, 0), patches=(Patch("rug", 0.3, -0.2, 1.5, 0.8, 0.7),))
    origin, rays = brute_rays(scene.camera)
    floor = origin - rays * (origin[2] / rays[:, 2:])
    dx, dy = floor[:, 0] - 0.3, floor[:, 1] + 0.2
    u, v = math.cos(0.7) * dx + math.sin(0.7) * dy, math.cos(0.7) * dy - math.sin(0.7) * dx
    expected = ((abs(u) < 1.5) & (abs(v) < 0.8)).reshape(96, 128)
    rendered = render(world, [scene])
    assert ((rendered.regions[0].numpy() == REGIONS.index("rug")) != expected).sum() <= 2
    bare = rendered.ids[0].numpy() == 0
    depth = (-origin[2] / rays[:, 2]).reshape(96, 128)
    assert rendered.depth[0].numpy()[bare] == pytest.approx(depth[bare], rel=1e-4)


@pytest.mark.parametrize("floor", FLOORS)
def test_every_ground_renders_with_every_wall_and_sky(floor: str) -> None:
    for wall in WALLS:
        for sky in SKIES:
            world = World(
                floor=floor, wall=wall, sky=sky, clutter=(3, 6), tint=1.0, color_jitter=0.3
            )
            image = render(world, [place(world, 0, 1)]).images.float()
            assert 40 < image.mean() < 215
            assert image.std() > 8


def known_camera() -> Camera:
    """At (0, -10, 1), looking along +y; 100 pixels per unit of x / depth."""
    return Camera((0.0, -10.0, 1.0), (0.0, 0.0, 1.0), 100.0, 60, 80)


def test_keypoints_of_a_cube_under_a_known_camera() -> None:
    half = 0.5
    cube = solid(radius=half / HALF, rotation=math.radians(10))
    scene = scene_of(cube, camera=known_camera())
    (points,) = keypoints([scene])
    top = points[0, KEYPOINTS.index("top")]
    assert top == pytest.approx([40, 30, 1 + 1 * (top[2] == 2)], abs=1e-3)  # 1 high: the horizon
    corner = math.radians(-45 + 10)  # the corner nearest the camera: lower right of -y
    near = math.radians(-135 + 10)
    front = near if math.sin(near) < math.sin(corner) else corner
    x, y = half / HALF * math.cos(front), half / HALF * math.sin(front)
    expected = (40 + 100 * x / (10 + y), 30 + 100 * 1 / (10 + y))
    assert points[0, KEYPOINTS.index("lower front"), :2] == pytest.approx(expected, abs=1e-3)
    assert points[0, KEYPOINTS.index("lower front"), 2] == 2
    assert points[0, KEYPOINTS.index("lower back"), 2] == 1
    left, right = (points[0, KEYPOINTS.index(f"lower {s}"), 0] for s in ("left", "right"))
    assert left < 40 < right


def test_keypoints_are_hidden_by_solids_and_dropped_outside_the_image() -> None:
    ball = solid("sphere", 0, 2)
    wall = solid("cube", 0, 0, radius=2.0, rotation=0.0)
    beside = solid("sphere", 20, 2)
    alone, behind = keypoints(
        [scene_of(ball, camera=known_camera()), scene_of(ball, wall, beside, camera=known_camera())]
    )
    assert set(alone[0, :, 2]) == {1, 2}
    assert set(behind[0, :, 2]) == {1}
    assert (behind[2] == 0).all()
    assert (alone[0, :, :2] == behind[0, :, :2]).all()


def test_keypoints_of_a_mirrored_image_swap_left_and_right() -> None:
    for name, i in zip(KEYPOINTS, KEYPOINT_FLIP, strict=True):
        swap = {"left": "right", "right": "left"}
        assert KEYPOINTS[i] == " ".join(swap.get(word, word) for word in name.split())


def test_visible_keypoints_lie_on_their_solid_and_hidden_ones_behind_a_surface() -> None:
    world = World(height=192, width=256, shapes=SHAPES, objects=(5, 8))
    scenes = place_all(world, 0, range(10))
    rendered = render(world, scenes)
    checked = 0
    for scene, points, ids in zip(scenes, keypoints(scenes), rendered.ids, strict=True):
        for i, rows in enumerate(points):
            for x, y, flag in rows.tolist():
                around = ids[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
                hole = scene.objects[i].shape == "torus"  # its top floats over the hole
                if flag == 2 and not hole:
                    assert (around == i + 1).any(), (scene.objects[i].shape, x, y)
                    checked += 1
                if flag == 1:
                    assert (around > 0).any()
    assert checked > 200


def test_cogent_keeps_shapes_and_colours_apart() -> None:
    for combos in (COGENT_A, COGENT_B):
        world = World(combos=combos)
        allowed = dict(combos)
        pairs = {(o.shape, o.color) for s in place_all(world, 0, range(40)) for o in s.objects}
        assert all(color in allowed[shape] for shape, color in pairs)
        assert len(pairs) == 16
        assert world.classes(("shape", "color")) == World().classes(("shape", "color"))


def test_more_than_a_hundred_classes(tmp_path: Path) -> None:
    world = World(
        height=32,
        width=32,
        spread=0.8,
        objects=(1, 1),
        shapes=SHAPES[:12],
        colors=hues(10),
    )
    names = world.classes(("shape", "color"))
    assert len(set(names)) == 120
    scenes = Scenes(world, count=400, cache=tmp_path, classes_by=("shape", "color"))
    assert len(scenes.labels().unique()) > 110


def test_continuous_radii_fill_their_range_evenly_in_the_logarithm() -> None:
    world = World(radius=(0.2, 0.8), objects=(4, 6), min_visible=0)
    radii = [o.radius for s in place_all(world, 0, range(60)) for o in s.objects]
    assert 0.2 <= min(radii) < 0.25
    assert 0.7 < max(radii) <= 0.8
    assert np.mean(np.log(radii)) == pytest.approx(np.log(0.4), abs=0.08)
    assert {o.size for o in place(world, 0, 0).objects} <= {"small", "large"}


def test_attributes_are_drawn_evenly() -> None:
    solids = [o for s in place_all(World(min_visible=0), 9, range(120)) for o in s.objects]
    for name in ("shape", "color", "material", "size"):
        counts = np.unique([getattr(o, name) for o in solids], return_counts=True)[1]
        expected = len(solids) / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 3 * len(counts) + 6


def test_noise_has_the_asked_deviation() -> None:
    world = World(antialias=False)
    scene = place(world, 0, 0)
    clean, noisy = (render(replace(world, noise=n), [scene]).images.float() for n in (0.0, 6.0))
    assert (noisy - clean).std().item() == pytest.approx(6, abs=0.2)


def test_cached_images_equal_rendered_ones_also_after_pickling(tmp_path: Path) -> None:
    world = World(objects=(1, 3))
    scenes = Scenes(world, count=70, seed=2, start=10, cache=tmp_path, keypoints=True)
    again = pickle.loads(pickle.dumps(scenes))
    assert len(pickle.dumps(scenes)) < 4000
    for i in (0, 63, 64, 69, -1):
        image, target = again[i]
        scene = scenes.scene(i)
        assert scene == place(world, 2, 10 + i % 70)
        rendered = render(world, [scene])
        assert torch.equal(image, rendered.images[0])
        assert torch.equal(again.regions(i), rendered.regions[0])
        assert torch.equal(target["keypoints"], torch.from_numpy(keypoints([scene])[0]))
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    with pytest.raises(IndexError):
        scenes[70]


FILL = """
import sys
from pathlib import Path
from common.scenes import Scenes, World
Scenes(World(height=64, width=64, noise=2.0), count=130, seed=1, cache=Path(sys.argv[1]))
"""


def test_processes_that_fill_one_cache_leave_whole_equal_shards(
    commands: Commands, tmp_path: Path
) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    (tmp_path / "fill.py").write_text(FILL)
    running = [commands.start(tmp_path, str(together), script="fill.py") for _ in range(2)]
    scenes = Scenes(World(height=64, width=64, noise=2.0), count=130, seed=1, cache=alone)
    assert [run.wait() for run in running] == [0, 0]
    files = sorted(path.relative_to(alone) for path in alone.rglob("*.npy"))
    assert len(files) >= 2
    assert files == sorted(path.relative_to(together) for path in together.rglob("*.npy"))
    assert all((alone / f).read_bytes() == (together / f).read_bytes() for f in files)
    assert [path for path in scenes.folder.iterdir() if path.suffix not in (".npy", "")] == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_shard_is_named_and_rendered_again(tmp_path: Path, damage: str) -> None:
    world = World(height=16, width=16, objects=(1, 2))
    first = Scenes(world, count=3, cache=tmp_path)
    (path,) = first.folder.glob("*.npy")
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(good) // 2] ^= 1
    path.write_bytes(
        {"flip": bytes(bad), "cut": good[:-40], "empty": b"", "other": b"x" * 90}[damage]
    )
    with pytest.warns(RuntimeWarning, match=rf"{path.name}.*damaged"):
        again = Scenes(world, count=3, cache=tmp_path)
    assert path.read_bytes() == good
    assert torch.equal(again[2][0], render(world, [place(world, 0, 2)]).images[0])


def test_the_cache_follows_the_environment_and_names_a_folder_it_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(height=16, width=16, objects=(1, 1))
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path / "here"))
    scenes = Scenes(world, count=2)
    assert scenes.folder.is_relative_to(tmp_path / "here")
    other = Scenes(replace(world, noise=1.0), count=2)
    assert other.folder != scenes.folder
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="FAIR_VISION_CACHE"):
        Scenes(world, count=2)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside pycocotools
def test_coco_ground_truth_loads_and_scores_itself_perfectly(tmp_path: Path) -> None:
    scenes = Scenes(World(), count=6, start=3, cache=tmp_path, masks=True, keypoints=True)
    truth = COCO()
    with redirect_stdout(io.StringIO()):
        for kind in ("boxes", "masks", "keypoints"):
            truth = COCO()
            truth.dataset = json.loads(json.dumps(scenes.coco(kind)))
            truth.createIndex()
            assert sorted(truth.imgs) == list(range(3, 9))
            if kind == "boxes":
                continue
            if kind == "masks":
                rows = truth.loadAnns(truth.getAnnIds([4]))
                masks = np.stack([truth.annToMask(row) for row in rows])
                assert (masks == scenes[1][1]["masks"].numpy()).all()
                found = truth.loadRes([{**a, "score": 1.0} for a in truth.dataset["annotations"]])
                score = COCOeval(truth, found, "segm")
                score.evaluate()
                score.accumulate()
                score.summarize()
                assert score.stats[0] == pytest.approx(1)
            else:
                row = truth.loadAnns(truth.getAnnIds([3]))[0]
                assert len(row["keypoints"]) == 3 * len(KEYPOINTS)
                assert truth.cats[1]["keypoints"] == list(KEYPOINTS)
    with pytest.raises(ValueError, match="boxes, masks, keypoints"):
        scenes.coco("polygons")


def test_scenes_without_solids_have_empty_targets(tmp_path: Path) -> None:
    world = World(height=32, width=32, objects=(0, 1), spread=0.8)
    scenes = Scenes(world, count=20, cache=tmp_path, masks=True, keypoints=True)
    empty = [i for i in range(20) if not scenes.scene(i).objects]
    assert 0 < len(empty) < 20
    target = scenes[empty[0]][1]
    shapes = {name: tuple(target[name].shape) for name in ("boxes", "masks", "keypoints")}
    assert shapes == {"boxes": (0, 4), "masks": (0, 32, 32), "keypoints": (0, 9, 3)}
    assert scenes.labels()[empty[0]] == -1
    alone = scenes.scene(empty[0])
    assert torch.equal(render(world, [alone]).images[0], scenes[empty[0]][0])
    assert clips(world, 0, empty[0], 2).motions == []
    assert clevr_scene(alone, "val")["relationships"]["left"] == []
    assert Scenes(replace(world, objects=(0, 0)), count=1, cache=tmp_path)[0][1][
        "labels"
    ].shape == (0,)


def test_a_clip_starts_with_the_still_and_keeps_ids_and_distances() -> None:
    world = World(height=48, width=64, objects=(3, 6), noise=2.0, shapes=SHAPES)
    drawn = set()
    for index in range(8):
        clip = clips(world, 0, index, 17)
        still = render(world, [place(world, 0, index)])
        assert torch.equal(clip.frames[0], still.images[0])
        assert torch.equal(clip.ids[0], still.ids[0])
        assert torch.equal(clips(world, 0, index, 3).frames, clip.frames[:3])
        assert len(clip.motions) == len(clip.scenes[0].objects)
        drawn |= set(clip.motions)
        for i, motion in enumerate(clip.motions):
            path = [scene.objects[i] for scene in clip.scenes]
            assert len({(o.shape, o.color, o.radius) for o in path}) == 1
            moved = any(o != path[0] for o in path)
            assert moved == (motion != "still")
            assert path[16].center == pytest.approx(path[0].center, abs=1e-6)
        for scene in clip.scenes:
            for i, a in enumerate(scene.objects):
                for b in scene.objects[:i]:
                    assert math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
    assert drawn == set(MOTIONS)


def test_mistakes_are_named() -> None:
    for changes, words in (
        ({"shapes": ("cubes",)}, "did you mean 'cube'"),
        ({"floor": "chequer"}, "checker"),
        ({"colors": ("redd",)}, "#rrggbb"),
        ({"objects": (5, 2)}, "objects"),
        ({"objects": (1, 300)}, "255"),
        ({"distractors": (1, 1), "distractor_shapes": ("cube",)}, "cube"),
        ({"fov": 200.0}, "fov"),
    ):
        with pytest.raises(ValueError, match=words):
            World(**changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="raise spread"):
        place(World(objects=(10, 10), spread=0.7), 0, 0)
    with pytest.raises(ValueError, match="count"):
        Scenes(World(), count=0)
    with pytest.raises(ValueError, match="motions"):
        clips(World(), 0, 0, 4, motions=("fly",))
    with pytest.raises(ValueError, match="patches"):
        render(World(patches=("rug",)), [place(World(), 0, 0)])
    with pytest.raises(ValueError, match="depend on"):
        World().classes(("weight",))


def test_a_world_from_lists_equals_one_from_tuples() -> None:
    world = World(shapes=["cube"], objects=[1, 2], sizes={"tiny": 0.2})  # type: ignore[arg-type]
    assert world == World(shapes=("cube",), objects=(1, 2), sizes=(("tiny", 0.2),))
    assert hash(world)
