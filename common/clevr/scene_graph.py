"""Scene graphs, which say what stands where in an image, and CLEVR's files of them.

Positions are x, y, z in world units with the floor at z = 0. Pixel coordinates refer to the
released images of 480 x 320; their third value is the depth along the optical axis.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..coco.files import read_json, refuse_repeated, whole
from ..run import sealed
from ..scenes.annotate import relationships
from .functions import ATTRIBUTES, RELATIONS

EXPECTED = """expected ROOT/scenes/CLEVR_{train,val}_scenes.json (CoGenT: {trainA,valA,valB}), or a
folder ROOT/scenes/{train,val} with a file for each scene"""

Vector = tuple[float, float, float]
Relations = dict[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Thing:
    """One object. `rotation` is as the files give it: degrees by their documentation."""

    size: str
    color: str
    material: str
    shape: str
    position: Vector
    pixel: Vector | None = None  # x, y, depth
    rotation: float = 0.0


@dataclass(frozen=True)
class SceneGraph:
    """The objects of an image; `relations[r][i]` lists every j that is r of object i."""

    image_index: int
    image_filename: str
    split: str
    things: tuple[Thing, ...]
    relations: Relations
    directions: dict[str, Vector]  # unit vectors; left, right, behind, front and maybe more

    def __len__(self) -> int:
        return len(self.things)


def relations_of(
    positions: np.ndarray | Sequence[Sequence[float]],
    directions: Mapping[str, Sequence[float]],
) -> Relations:
    """Which objects are left of, right of, behind and in front of each, from positions (n, 3)."""
    lists = relationships(np.asarray(positions, dtype=float).reshape(-1, 3), directions)
    return {name: tuple(map(tuple, lists[name])) for name in RELATIONS}


def read_scenes(path: str | Path, *, check: bool = True) -> list[SceneGraph]:
    """The scenes of a file (CLEVR_val_scenes.json or a single scene) or of a folder of single ones.

    They come in the order of the file; those of a folder in the order of their image index. check:
    recompute the relations from the coordinates; ValueError where they differ.

    ValueError names the file, the scene and the object.
    """
    path = Path(path)
    if not path.is_dir():
        return scenes_of(read_json(path), str(path), check=check)
    files = sorted(path.glob("*.json"))
    if not files:
        raise ValueError(f"{path} has no .json files: name a scenes file, or a folder of scenes")
    graphs = []
    for file in files:
        document = read_json(file)
        if isinstance(document, dict) and "scenes" in document:
            raise ValueError(f"{path} holds whole splits: name one of its files, such as {file}")
        graphs += scenes_of(document, str(file), check=check)
    graphs.sort(key=lambda graph: (graph.split, graph.image_index))
    _refuse_repeated(graphs, str(path))
    return graphs


def find_scenes(root: str | Path, split: str) -> Path:
    """The file, or the folder of files, with the scenes of a split of CLEVR or CoGenT.

    What executes programs on a download starts here. ValueError shows the expected tree; the
    released test splits have no scenes.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; {EXPECTED}")
    file, folder = root / "scenes" / f"CLEVR_{split}_scenes.json", root / "scenes" / split
    for path in (file, folder, root / file.name):
        if path.exists():
            return path
    raise ValueError(f"no scenes of {split!r}: {file} does not exist; {EXPECTED}")


def scenes_of(document: Any, where: str = "scenes", *, check: bool = True) -> list[SceneGraph]:
    """The scenes of a document in CLEVR's JSON form.

    where: the name of the document in errors; all else as in `read_scenes`.
    """
    rows = document.get("scenes", [document]) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{where} is not a scenes file: expected an object with a list `scenes`")
    graphs = [_graph(row, f"{where}: scene {i}", check) for i, row in enumerate(rows)]
    _refuse_repeated(graphs, where)
    return graphs


def write_scenes(path: str | Path, graphs: Sequence[SceneGraph]) -> None:
    """Write a scenes file in the released form; all scenes must be of one split."""
    splits = sorted({graph.split for graph in graphs})
    if len(splits) > 1:
        raise ValueError(f"{path}: a scenes file holds one split, not {', '.join(splits)}")
    info = {"split": "".join(splits), "version": "1.0", "date": "", "license": ""}
    document = {"info": info, "scenes": [_row(graph) for graph in graphs]}
    sealed.write(Path(path), lambda file: file.write(json.dumps(document).encode()))


def check_file_name(name: Any, where: str) -> str:
    """Return `name` if it names an image inside its folder; else raise ValueError."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no `image_filename`")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ValueError(f"{where}: image_filename {name!r} leads out of the folder of images")
    return name


def _refuse_repeated(graphs: Sequence[SceneGraph], where: str) -> None:
    keys = (f"{graph.split} {graph.image_index}".strip() for graph in graphs)
    refuse_repeated(keys, f"{where}: image index")


def _graph(row: Any, where: str, check: bool) -> SceneGraph:
    """One entry of a scenes file."""
    if not isinstance(row, dict) or not isinstance(row.get("objects"), list):
        raise ValueError(f"{where} is not a scene: it has no list `objects`")
    index: Any = row.get("image_index")
    if not whole(index):
        raise ValueError(f"{where} has no whole `image_index`: {index!r}")
    name = check_file_name(row.get("image_filename"), where)
    where = f"{where} ({name})"
    things = tuple(_thing(o, f"{where}, object {j}") for j, o in enumerate(row["objects"]))
    directions = _directions(row.get("directions"), where)
    # The note that comes with the data calls it "relations", and `split` "spit".
    given = row.get("relationships", row.get("relations"))
    if given is None and not directions:
        raise ValueError(f"{where} has neither `relationships` nor `directions`")
    relations = None if given is None else _relations(given, len(things), where)
    if directions and (check or relations is None):
        computed = relations_of([thing.position for thing in things], directions)
        if relations is not None and relations != computed:
            raise ValueError(_difference(relations, computed, where))
        relations = computed
    assert relations is not None, where
    split = str(row.get("split") or row.get("spit") or "")
    return SceneGraph(index, name, split, things, relations, directions)


def _thing(row: Any, where: str) -> Thing:
    """One entry of `objects`."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not an object {{...}}")
    for attribute, values in ATTRIBUTES.items():
        if row.get(attribute) not in values:
            raise ValueError(
                f"{where}: {attribute} {row.get(attribute)!r} is not one of {', '.join(values)}"
            )
    pixel, rotation = row.get("pixel_coords"), row.get("rotation", 0.0)
    return Thing(
        **{attribute: row[attribute] for attribute in ATTRIBUTES},
        position=_vector(row.get("3d_coords"), f"{where}: 3d_coords"),
        pixel=None if pixel is None else _vector(pixel, f"{where}: pixel_coords"),
        rotation=_vector([rotation, 0, 0], f"{where}: rotation")[0],
    )


def _vector(values: Any, where: str) -> Vector:
    numbers = values if isinstance(values, list | tuple) else []
    sound = all(isinstance(v, int | float) and abs(v) <= sys.float_info.max for v in numbers)
    if len(numbers) != 3 or not sound:
        raise ValueError(f"{where} must be three finite numbers, not {values!r:.80}")
    return tuple(numbers)


def _directions(values: Any, where: str) -> dict[str, Vector]:
    """The directions of a scene; none where the file has none."""
    if values is None:
        return {}
    missing = [r for r in RELATIONS if not isinstance(values, dict) or r not in values]
    if missing:
        raise ValueError(f"{where}: `directions` lacks {', '.join(missing)}")
    return {name: _vector(v, f"{where}: direction {name}") for name, v in values.items()}


def _relations(values: Any, count: int, where: str) -> Relations:
    """The relations of the file, each list sorted."""
    relations = {}
    for name in RELATIONS:
        lists = values.get(name) if isinstance(values, dict) else None
        if not isinstance(lists, list) or len(lists) != count:
            raise ValueError(f"{where}: relation {name} needs one list for each of {count} objects")
        for i, others in enumerate(lists):
            known = isinstance(others, list) and all(whole(j) and j < count for j in others)
            if not known or i in others or len(set(others)) != len(others):
                raise ValueError(
                    f"{where}: relation {name} of object {i} must list other objects, each once, "
                    f"by their number below {count}, not {others!r}"
                )
        relations[name] = tuple(tuple(sorted(others)) for others in lists)
    return relations


def _difference(given: Relations, computed: Relations, where: str) -> str:
    """Name the first relation that the coordinates contradict."""
    name, i = next(
        (name, i)
        for name in RELATIONS
        for i, (a, b) in enumerate(zip(given[name], computed[name], strict=True))
        if a != b
    )
    return (
        f"{where}: the file says that objects {list(given[name][i])} are {name} of object {i}, its "
        f"coordinates say {list(computed[name][i])}: correct it, or read it with check=False"
    )


def _row(graph: SceneGraph) -> dict[str, Any]:
    """The scene as the released files have it."""
    objects = []
    for thing in graph.things:
        row: dict[str, Any] = {attribute: getattr(thing, attribute) for attribute in ATTRIBUTES}
        row |= {"3d_coords": list(thing.position), "rotation": thing.rotation}
        if thing.pixel is not None:
            row["pixel_coords"] = list(thing.pixel)
        objects.append(row)
    row = {
        "split": graph.split,
        "image_index": graph.image_index,
        "image_filename": graph.image_filename,
        "objects": objects,
        "relationships": {r: [list(js) for js in lists] for r, lists in graph.relations.items()},
    }
    return row | ({"directions": graph.directions} if graph.directions else {})
