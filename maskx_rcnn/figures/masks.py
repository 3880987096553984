"""Masks beside the truth: of a run, and of the B classes under several mask heads.

Truth and detections are COCO's dictionaries, with masks as polygons or run lengths; boxes there are
x, y, width, height. M masks of an image of H x W pixels.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.v2.functional import InterpolationMode, resize

from common.coco.masks import decode_mask
from common.draw import Color, grid

SCORE = 0.5  # from which a detection is drawn
SIDE = 192  # pixels of the shorter side of a drawn image
LINES = 6  # of images that compare several heads
LINE = 3  # pixels, the width of an outline
A_COLOR, B_COLOR = (70, 70, 70), (225, 0, 120)
Entry = Mapping[str, Any]
Read = Callable[[int], Tensor]  # number of an image -> uint8 (3, H, W)


def draw_run(
    truth: Entry, detections: Iterable[Entry], read: Read, b_classes: Collection[int], count: int
) -> Tensor:
    """The first images, each beside its true masks and those found; (3, h, w) uint8.

    b_classes: category ids, whose masks have outlines of their own colour.
    """
    cells: list[Tensor] = []
    real, found = by_image(truth["annotations"]), by_image(detections, SCORE)
    shown = truth["images"][:count]
    for number, image in enumerate(shown):
        pixels = read(number)
        cells.append(enlarge(pixels))
        for entries in (real, found):
            each = [e for e in entries.get(image["id"], []) if e.get("segmentation")]
            colors = [B_COLOR if e["category_id"] in b_classes else A_COLOR for e in each]
            cells.append(cut_out(pixels, each, colors))
    titles = ["image", "truth, B in magenta", "found, B in magenta"] * len(shown)
    return grid(cells, columns=6, titles=titles)


def draw_versus(
    truth: Entry, runs: Mapping[str, Sequence[Entry]], read: Read, b_classes: Collection[int]
) -> Tensor:
    """Masks of the B classes, a column for each of several runs; (3, h, w) uint8.

    Shown are the images whose foreground is least clear, see `choose`. runs: name -> detections.
    """
    of_b = [e for e in truth["annotations"] if e["category_id"] in b_classes]
    found = {
        name: by_image((e for e in entries if e["category_id"] in b_classes), SCORE)
        for name, entries in runs.items()
    }
    columns = {"truth of B": by_image(of_b), **found}
    cells: list[Tensor] = []
    titles: list[str] = []
    for number in choose(truth, list(found.values()), b_classes)[:LINES]:
        pixels, image = read(number), truth["images"][number]["id"]
        cells.append(enlarge(pixels))
        for entries in columns.values():
            each = [e for e in entries.get(image, []) if e.get("segmentation")]
            cells.append(cut_out(pixels, each, [B_COLOR] * len(each)))
        titles += [""] * len(cells[len(titles) :]) if titles else ["image", *columns]
    return grid(cells, columns=1 + len(columns), titles=titles)


def choose(
    truth: Entry, found: Sequence[Mapping[int, list[Entry]]], b_classes: Collection[int]
) -> list[int]:
    """Numbers of the images, those first whose masks tell most; the masks found play no part.

    Best is an object of B whose box is also that of an object of A (IoU of 0.5), as what belongs to
    it then depends on its class, and which every run has found; both count alike.
    """
    of_image, ranks = by_image(truth["annotations"]), []
    for image in truth["images"]:
        entries = of_image.get(image["id"], [])
        inside = [e for e in entries if e["category_id"] in b_classes]
        others = [e for e in entries if e["category_id"] not in b_classes]
        best = 0
        for entry in inside:
            known = [
                [d for d in run.get(image["id"], []) if d["category_id"] == entry["category_id"]]
                for run in found
            ]
            seen = all(overlap(entry, each) >= 0.5 for each in known)
            best = max(best, 1 + seen + (overlap(entry, others) >= 0.5))
        ranks.append(best)
    return sorted(range(len(ranks)), key=lambda number: -ranks[number])


def overlap(entry: Entry, others: Sequence[Entry]) -> float:
    """Largest IoU of the box of an entry with those of others; 0 without any."""
    if not others:
        return 0.0
    boxes = torch.tensor([e["bbox"] for e in (entry, *others)], dtype=torch.float64)
    boxes = box_convert(boxes, "xywh", "xyxy")
    return float(box_iou(boxes[:1], boxes[1:]).max())


def by_image(entries: Iterable[Entry], score: float = 0.0) -> dict[int, list[Entry]]:
    """Annotations, or detections of at least that score, of each image; crowds are left out."""
    found: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.get("score", 1.0) >= score and not entry.get("iscrowd"):
            found.setdefault(entry["image_id"], []).append(entry)
    return found


def cut_out(image: Tensor, entries: Sequence[Entry], colors: Sequence[Color]) -> Tensor:
    """The image, pale but for the masks of the entries, and a line around each; enlarged."""
    height, width = image.shape[1:]
    large = enlarge(image).float()
    decoded = [torch.from_numpy(decode_mask(e["segmentation"], height, width)) for e in entries]
    masks = [enlarge(each[None].byte(), exact=True)[0].bool() for each in decoded]
    inside = torch.zeros(large.shape[1:], dtype=torch.bool)
    for mask in masks:
        inside |= mask
    pale = 0.25 * large.mean(0, keepdim=True) + 0.75 * 255
    drawn = torch.where(inside, large, pale)
    for mask, color in zip(masks, colors, strict=True):
        drawn[:, outline(mask)] = torch.tensor(color, dtype=torch.float32)[:, None]
    return drawn.round().byte()


def outline(mask: Tensor) -> Tensor:
    """The pixels just outside of a mask (H, W), bool (H, W)."""
    grown = F.max_pool2d(mask[None].float(), 2 * LINE + 1, 1, LINE)[0] > 0
    return grown & ~mask


def enlarge(image: Tensor, side: int = SIDE, *, exact: bool = False) -> Tensor:
    """An image uint8 (C, H, W) whose shorter side is `side`; exact: without new values."""
    height, width = image.shape[1:]
    factor = side / min(height, width)
    kind = InterpolationMode.NEAREST_EXACT if exact else InterpolationMode.BICUBIC
    return resize(image, [round(factor * height), round(factor * width)], kind, antialias=not exact)


def paint(image: Tensor, masks: Tensor, colors: Sequence[Color]) -> Tensor:
    """An image uint8 (3, H, W) under masks bool (M, H, W), half transparent and outlined."""
    drawn = image.float()
    for mask, color in zip(masks, colors, strict=True):
        ink = torch.tensor(color, dtype=torch.float32)[:, None]
        drawn[:, mask] = (drawn[:, mask] + ink) / 2
        drawn[:, outline(mask)] = ink
    return drawn.round().byte()
