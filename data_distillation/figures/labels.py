"""Automatic labels on their images, and what a teacher and its student find beside the truth."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from common.draw import Color, grid, legend
from common.images import read_image

from ..labels.report import say_count
from .instances import (
    BOX,
    COLORS,
    IGNORED,
    OFF,
    Caption,
    Entry,
    draw_boxes,
    draw_errors,
    draw_joints,
    enlarge,
    joints_of,
    read_skeleton,
    tint,
)
from .match import Measure, measure_of

SCORE = 0.5  # from which a detection is drawn
COLUMNS = 4  # of a grid of labels
SIDES = {f"{side} joint": color for side, color in COLORS.items()}
Read = Callable[[int], Tensor]  # number of an image -> uint8 (3, H, W)
Categories = Mapping[int, Entry]  # by id


def draw_labels(content: Entry, count: int, folder: Path | None = None) -> Tensor:
    """Labelled images, evenly out of all, under their labels: (3, h, w) uint8.

    A caption holds the class, if there are several, the score and how many joints are labelled.
    content: of a COCO-format file; folder: of its images, else the one that its `info` names.
    """
    root = folder or Path(content["info"]["folder"])
    categories = {each["id"]: each for each in content["categories"]}
    objects = by_image(content["annotations"])
    step = max(1, len(content["images"]) // count)
    cells: list[Tensor] = []
    titles: list[str] = []
    for image in content["images"][::step][:count]:
        entries = objects.get(image["id"], [])
        cells.append(draw_objects(read_image(root / image["file_name"]), entries, categories))
        number = sum(not entry.get("iscrowd") for entry in entries)
        name = to_ascii(Path(image["file_name"]).name, f"image {image['id']}")
        titles.append(f"{name}: {say_count(number, 'object')}")
    colors = dict(SIDES) if any(e.get("keypoints") for e in content["annotations"]) else {}
    if any(entry.get("iscrowd") for entry in content["annotations"]):
        colors["ignored region"] = IGNORED
    sentence = f"{len(cells)} of {say_count(len(content['images']), 'image')} with their labels"
    return add_legend(grid(cells, COLUMNS, titles=titles), sentence, colors)


def draw_compare(
    truth: Entry,
    runs: Mapping[str, Sequence[Entry]],
    read: Read,
    count: int,
    *,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """The truth beside what several runs find; (3, h, w) uint8.

    Shown are the images where the second run gains most on the first, as the line above says (see
    `choose`); a title gives the mean OKS, or IoU of boxes and masks, over the true objects. From a
    joint whose part of OKS is below 0.5 a line leads to its true place.

    truth: in COCO's format. runs: name -> detections in COCO's results format, the teacher's first,
    then the student's, then any others. sigmas: of each joint, unless they are COCO's 17.
    """
    measure = measure_of(truth, sigmas)
    categories = {each["id"]: each for each in truth["categories"]}
    real = by_image(entry for entry in truth["annotations"] if is_comparable(entry))
    found = {name: by_image(entries, SCORE) for name, entries in runs.items()}
    chosen = choose(truth, real, list(found.values()), measure)[:count]
    cells: list[Tensor] = []
    titles: list[str] = []
    for number in chosen:
        image, pixels = truth["images"][number], read(number)
        entries = real[image["id"]]
        cells.append(draw_objects(pixels, entries, categories))
        titles.append(f"truth, image {image['id']}")
        for name, objects in found.items():
            others = objects.get(image["id"], [])
            pairs, value = measure.match(entries, others, image)
            matched = [None if k is None else others[k] for k in pairs]
            rest = [other for k, other in enumerate(others) if k not in pairs]
            cells.append(draw_found(pixels, entries, matched, rest, categories, measure))
            titles.append(f"{name}: {measure.name} {value:.2f}")
    colors = dict(SIDES) if measure.kind == "keypoints" else {}
    colors |= {"missed, or off by the line": OFF, "no true object": IGNORED}
    sheet = grid(cells, 1 + len(runs), titles=titles)
    return add_legend(sheet, reason(list(runs), len(chosen), len(real), measure), colors)


def reason(names: Sequence[str], chosen: int, images: int, measure: Measure) -> str:
    """How the images of a comparison are chosen, in a sentence."""
    start = f"{chosen} of {say_count(images, 'image')}"
    if len(names) == 1:
        return start
    first, second = names[:2]
    return (
        f"{start}: those where {second} gains most on {first} in {measure.name}, preferably with "
        "every object found by both"
    )


def choose(
    truth: Entry,
    real: Mapping[int, list[Entry]],
    found: Sequence[Mapping[int, list[Entry]]],
    measure: Measure,
) -> list[int]:
    """Numbers of the images with a true object, by how much the second run gains on the first.

    Those come first where both find all objects: what they gain is not a matter of a score's limit.
    """
    ranks = {}
    for number, image in enumerate(truth["images"]):
        entries = real.get(image["id"])
        if entries:
            fits = [measure.match(entries, each.get(image["id"], []), image) for each in found[:2]]
            complete = all(None not in pairs for pairs, _ in fits)
            ranks[number] = (complete, fits[-1][1] - fits[0][1])
    return sorted(ranks, key=lambda number: ranks[number], reverse=True)


def is_comparable(entry: Entry) -> bool:
    """Whether COCO counts a true object: it is no crowd and, if it may have joints, has one."""
    return not entry.get("iscrowd") and entry.get("num_keypoints") != 0


def by_image(entries: Iterable[Entry], score: float = 0.0) -> dict[int, list[Entry]]:
    """Annotations, or detections of at least that score, of each image id."""
    found: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.get("score", 1.0) >= score:
            found.setdefault(entry["image_id"], []).append(entry)
    return found


def draw_objects(image: Tensor, entries: Sequence[Entry], categories: Categories) -> Tensor:
    """The image, enlarged, under its labels."""
    drawn, canvas, factor = open_canvas(image, [e for e in entries if not e.get("iscrowd")])
    captions = [
        Caption(e["bbox"], describe(e, categories), IGNORED if e.get("iscrowd") else BOX)
        for e in entries
    ]
    draw_boxes(canvas, captions, factor)
    for entry in entries:
        skeleton = read_skeleton(categories[entry["category_id"]])
        if entry.get("keypoints") and not entry.get("iscrowd"):
            draw_joints(canvas, joints_of(entry), skeleton, factor)
    return pil_to_tensor(drawn)


def draw_found(
    image: Tensor,
    truth: Sequence[Entry],
    matched: Sequence[Entry | None],
    rest: Sequence[Entry],
    categories: Categories,
    measure: Measure,
) -> Tensor:
    """The image, enlarged, under what is found: matched has an object per true one, or none.

    Of joints those are drawn that are marked in the truth, as the others do not count.
    """
    fitting = [entry for entry in matched if entry]
    drawn, canvas, factor = open_canvas(image, [*fitting, *rest])
    captions = [Caption(e["bbox"], describe(e, categories), IGNORED) for e in rest]
    captions += [Caption(e["bbox"], describe(e, categories)) for e in fitting]
    pairs = list(zip(truth, matched, strict=True))
    captions += [Caption(real["bbox"], "missed", OFF) for real, entry in pairs if entry is None]
    draw_boxes(canvas, captions, factor)
    for real, entry in pairs:
        if entry and measure.kind == "keypoints":
            there = joints_of(real)[:, 2] > 0
            points = torch.cat([joints_of(entry)[:, :2], 2.0 * there[:, None]], 1)
            off = there & (measure.closeness([real], [entry])[0, 0] < 0.5)
            draw_joints(canvas, points, read_skeleton(categories[entry["category_id"]]), factor)
            draw_errors(canvas, points, joints_of(real), off, factor)
    return pil_to_tensor(drawn)


def open_canvas(
    image: Tensor, entries: Sequence[Entry]
) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    """The image, enlarged, under the masks of some entries; how to draw on it; the factor."""
    height, width = image.shape[1:]
    large, factor = enlarge(image)
    masks = [entry for entry in entries if entry.get("segmentation") and "keypoints" not in entry]
    drawn = to_pil_image(tint(large, masks, (height, width)))
    return drawn, ImageDraw.Draw(drawn), factor


def describe(entry: Entry, categories: Categories) -> str:
    """The caption of an object: its class, if there are several, its score, its joints if few."""
    number = entry["category_id"]
    words = [to_ascii(str(categories[number]["name"]), f"class {number}")] * (len(categories) > 1)
    if entry.get("iscrowd"):
        words = ["ignored"]
    if "score" in entry:
        words.append(f"{entry['score']:.2f}")
    if entry.get("source") == "auto" and entry.get("keypoints") and not entry.get("iscrowd"):
        points = joints_of(entry)
        words.append(f"{int((points[:, 2] > 0).sum())}/{len(points)}")
    return " ".join(words)


def to_ascii(text: str, otherwise: str) -> str:
    """A text without accents, which the font of pictures lacks; `otherwise` of another script."""
    letters = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return plain if plain.isascii() else otherwise


def add_legend(sheet: Tensor, sentence: str, colors: Mapping[str, Color]) -> Tensor:
    """The sheet below a sentence and, if there are any, the names of its colours."""
    parts = [legend([name], colors=[color]) for name, color in colors.items()]
    row = [grid(parts, len(parts), titles=[""] * len(parts), padding=0)] if parts else []
    return grid([sheet, *row], 1, titles=[sentence, *[""] * len(row)], padding=0)
