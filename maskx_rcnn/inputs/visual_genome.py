"""Visual Genome as data with boxes of 3,000 classes, Sec. 5, in COCO's format.

The classes of COCO come first, so that the rows of a box head that T learns from are its first
ones. Which objects, classes and images are taken is the official code's choice (SET).
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from common import files
from common.coco.fields import category_names, excerpt, is_number, read_annotations
from common.coco.files import find_split, first_missing, read_json, whole

from .stream import read_entries

CLASSES = 3000  # most frequent synsets
TEST = 5000  # images
EXPECTED = (
    "expected ROOT/objects.json, ROOT/image_data.json and the images in ROOT/VG_100K and "
    "ROOT/VG_100K_2, as Visual Genome is downloaded"
)

# The synset of each of COCO's classes is the most frequent one of its name ("truck.n.01" is called
# "truck"), but for these 18, as SET has them; `python prepare.py vg ... synsets=FILE.json` replaces
# entries. Some are what Visual Genome's annotators meant, not what WordNet says.
SYNSETS = {
    "cell phone": "cellular_telephone.n.01",
    "couch": "sofa.n.01",
    "dining table": "dinner_table.n.01",
    "donut": "doughnut.n.02",
    "fire hydrant": "water_faucet.n.01",
    "hair drier": "hand_blower.n.01",
    "handbag": "bag.n.04",
    "hot dog": "hotdog.n.01",
    "orange": "orange.n.01",
    "potted plant": "plant.n.01",
    "remote": "remote_control.n.01",
    "skis": "ski.n.01",
    "sports ball": "ball.n.01",
    "stop sign": "sign.n.02",
    "suitcase": "bag.n.06",
    "teddy bear": "teddy.n.01",
    "tv": "television.n.01",
    "wine glass": "wineglass.n.01",
}


def build(
    root: Path, coco: Path, *, synsets: str = "", classes: int = CLASSES, test: int = TEST
) -> None:
    """Write `root/annotations/instances_vg3k_{train,val,test}.json`, and print what is in them.

    root, coco: folders of Visual Genome and COCO; synsets: a JSON file {COCO class: synset}.
    Raises ValueError, naming file and entry, where something does not fit.
    """
    for name in ("image_data.json", "objects.json"):
        if not (root / name).is_file():
            raise ValueError(f"{root / name} does not exist; {EXPECTED}")
    names, minival = read_coco(coco)
    table = SYNSETS | read_synsets(synsets, names)
    images = read_images(root / "image_data.json")
    splits = split_images(images, minival, test)
    counts = count_synsets(root / "objects.json", images)
    frequent = [synset for synset, _ in counts.most_common(classes)]
    of_coco = match_classes(names, frequent, table)
    ordered = [*of_coco, *sorted(set(frequent) - set(of_coco))]
    print(f"{len(ordered):,} classes, the first {len(of_coco)} are COCO's")
    for name, synset in zip(names, of_coco, strict=True):
        if synset not in frequent:
            print(f"  {name} ({synset}) gets no boxes: it is not among the frequent ones")
    ids = {synset: number for number, synset in enumerate(ordered, 1)}
    categories = [
        {"id": number, "name": synset + (".coco" if number <= len(of_coco) else "")}
        for synset, number in ids.items()
    ]
    used = {synset: ids[synset] for synset in frequent}
    left_out: Counter[str] = Counter()
    (root / "annotations").mkdir(exist_ok=True)
    for split, chosen in splits.items():
        path = root / f"annotations/instances_vg3k_{split}.json"
        boxes = find_boxes(root / "objects.json", images, chosen, used, left_out)
        count = write_split(path, [images[each] for each in chosen], categories, boxes)
        print(f"{path}: {len(chosen):,} images, {count:,} boxes")
    for reason, count in left_out.most_common():
        print(f"  left out: {count:,} objects {reason}")


def read_coco(root: Path) -> tuple[list[str], set[int]]:
    """Names of COCO's classes by rising id, and the ids of the images of its val2017."""
    content = read_annotations(find_split(root, "val")[1])
    return list(category_names(content["categories"]).values()), {
        image["id"] for image in content["images"]
    }


def read_images(path: Path) -> dict[int, dict[str, Any]]:
    """COCO's entries of all images by id, with their `coco_id` or None.

    Raises ValueError where an image has no size or address, is listed twice or does not exist.
    """
    images: dict[int, dict[str, Any]] = {}
    for entry in read_entries(path):
        number: Any = entry.get("image_id")
        url: Any = entry.get("url")
        found = re.search(r"[^/]+/[^/]+$", url) if isinstance(url, str) else None
        sides = [entry.get("width"), entry.get("height")]
        if not whole(number) or number in images:
            raise ValueError(f"{path}: image_id {excerpt(number)} is no number, or listed twice")
        if found is None or not all(whole(side) and side for side in sides):
            raise ValueError(
                f"{path}: image {number} has width and height {sides} and url {excerpt(url)}: "
                "it needs whole numbers of pixels, and an address that ends in FOLDER/FILE"
            )
        images[number] = {
            "id": number,
            "width": sides[0],
            "height": sides[1],
            "file_name": found[0],
            "coco_id": entry.get("coco_id"),
        }
    missing = first_missing(str(path.parent / image["file_name"]) for image in images.values())
    if missing:
        raise ValueError(f"{missing} is listed in {path}, but does not exist; {EXPECTED}")
    return images


def split_images(
    images: Mapping[int, Mapping[str, Any]], minival: Collection[int], test: int
) -> dict[str, list[int]]:
    """Ids of each split's images: val is COCO's, test the last of those that COCO has not."""
    val = [number for number, image in images.items() if image["coco_id"] in minival]
    outside = [number for number, image in images.items() if image["coco_id"] is None]
    tested = outside[-test:]
    taken = {*val, *tested}
    train = [number for number in images if number not in taken]
    splits = {"train": train, "val": val, "test": tested}
    empty = [split for split, chosen in splits.items() if not chosen]
    if empty:
        raise ValueError(
            f"no image of Visual Genome is left for {empty[0]}: of {len(images)}, {len(val)} are "
            f"of COCO's val2017 by their coco_id and {len(outside)} not of COCO; take whole files"
        )
    return splits


def count_synsets(path: Path, images: Collection[int]) -> Counter[str]:
    """How often each synset is named, over all synsets of all objects."""
    counts = Counter(
        synset for _, each in read_objects(path, images) for synset in each.get("synsets") or []
    )
    if not counts:
        raise ValueError(f"{path} names no synsets: take that of version 1.2 or 1.4")
    return counts


def read_synsets(file: str, names: Sequence[str]) -> dict[str, str]:
    """{COCO class: synset} of a JSON file; empty without a file."""
    content = read_json(file) if file else {}
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise ValueError(f'{file} names no synsets: write {{"couch": "sofa.n.01", ...}}')
    for name in content:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            advice = f"did you mean {near[0]}?" if near else "it is left out there."
            raise ValueError(f"{file}: {name!r} is no class of COCO; {advice}")
    return content


def match_classes(
    names: Sequence[str], frequent: Sequence[str], synsets: Mapping[str, str]
) -> list[str]:
    """The synset of each class of COCO: that of the table, else the most frequent of its name.

    frequent: synsets by falling frequency.
    """
    called: dict[str, str] = {}
    for synset in frequent:
        called.setdefault(synset.rsplit(".", 2)[0].replace("_", " "), synset)
    found: dict[str, str] = {}
    for name in names:
        synset = synsets.get(name, called.get(name, ""))
        if not synset:
            raise ValueError(
                f"COCO's class {name!r} has no synset among the {len(frequent)} most frequent: "
                f'name one by synsets=FILE.json with {{"{name}": "SYNSET.n.01"}}'
            )
        if synset in found:
            raise ValueError(
                f"COCO's classes {found[synset]!r} and {name!r} are both {synset}: give one of "
                "them another by synsets=FILE.json"
            )
        found[synset] = name
    return list(found)


def find_boxes(
    path: Path,
    images: Mapping[int, Mapping[str, Any]],
    chosen: Iterable[int],
    ids: Mapping[str, int],
    left_out: Counter[str],
) -> Iterator[dict[str, Any]]:
    """COCO's annotations of the chosen images, one by one: objects of exactly one synset.

    ids: category id of each synset. Boxes are clipped to the image; `left_out` counts the others.
    """
    own, number = set(chosen), 0
    for image, each in read_objects(path, images):
        if image not in own:
            continue
        synsets = each.get("synsets") or []
        box = clip_box(each, images[image], path)
        if len(synsets) != 1:
            left_out["of several synsets" if synsets else "without a synset"] += 1
        elif synsets[0] not in ids:
            left_out["of rarer synsets"] += 1
        elif box is None:
            left_out["without an area in the image"] += 1
        else:
            number += 1  # the file's own ids are not needed, and a 0 would mislead pycocotools
            yield {
                "id": number,
                "image_id": image,
                "category_id": ids[synsets[0]],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }


def clip_box(each: Mapping[str, Any], image: Mapping[str, Any], path: Path) -> list | None:
    """The x, y, width, height of an object within its image; None where nothing is left."""
    box: list[Any] = [each.get(key) for key in "xywh"]
    if not all(map(is_number, box)):
        raise ValueError(
            f"{path}: object {excerpt(each.get('object_id'))} of image {image['id']} has "
            f"x, y, w, h {box}, which must be finite numbers of pixels"
        )
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + w, image["width"]), min(y + h, image["height"])
    if right <= left or bottom <= top:
        return None
    return [left, top, right - left, bottom - top]


def write_split(
    path: Path,
    images: list[Mapping[str, Any]],
    categories: list[dict[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
) -> int:
    """Write a file in COCO's format, an annotation at a time; returns how many there are."""
    count = 0

    def fill(file: IO[bytes]) -> None:
        nonlocal count
        start = {"images": images, "categories": categories}
        file.write(json.dumps(start)[:-1].encode() + b', "annotations": [')
        for count, each in enumerate(annotations, 1):
            file.write((",\n" if count > 1 else "\n").encode() + json.dumps(each).encode())
        file.write(b"]}\n")

    files.write(path, fill)
    return count


def read_objects(path: Path, images: Collection[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object with the id of its image."""
    for entry in read_entries(path):
        number: Any = entry.get("image_id")
        objects: Any = entry.get("objects")
        if not whole(number) or number not in images:
            raise ValueError(f"{path}: image {excerpt(number)} is not listed in image_data.json")
        if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
            raise ValueError(f"{path}: image {number} has no list of `objects`")
        yield from ((number, each) for each in objects)
