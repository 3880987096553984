"""A photo in, boxes and masks of all classes out: `python demo.py RUN photo.jpg`.

RUN is the folder of a run or a checkpoint, torchvision's weights of Mask R-CNN in a file, or the
word `torchvision`, which downloads those. Without a photo the first validation image of the run is
taken. The picture is written into the current folder, as photo_masks.png (demo_masks.png without a
photo); classes without masks in training say (B). Further words:

    score=0.5                            least score of what is drawn, 0 to 1
    out=FILE.png                         another place for the picture
    classes=[person,dog]                 masks of these classes alone, boxes of all
    boxes=[[10,20,50,80,person],...]     masks of these boxes instead (x1, y1, x2, y2 in pixels)
    add=RUN rows=[81,90]                 classes of another detector on the same features besides,
                                         by their rows in its box head, 0 is its background
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from PIL import ImageFont
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.utils import draw_bounding_boxes

from common import dist, draw
from common.coco.dataset import Categories
from common.config import run as run_command
from common.config import to_dataclass
from common.images import read_image
from common.run import checkpoint
from common.weights import formats, pickles
from maskx_rcnn import data
from maskx_rcnn.config import Config
from maskx_rcnn.figures import masks
from maskx_rcnn.inputs.splits import find_labels, split_classes
from maskx_rcnn.model import MaskBranch, Network, mask_rcnn, segment
from maskx_rcnn.transfer import append_classes
from maskx_rcnn.weights.formats import BOX, MASK, convert
from maskx_rcnn.weights.initialise import weights_file

USAGE = (
    "usage: python demo.py RUN [photo.jpg] [score=0.5] [out=FILE.png] [classes=[...]] [boxes=[...]]"
    " [add=RUN rows=[...]]"
)
OPTIONS = ("score", "out", "classes", "boxes", "add", "rows")
SCORE = 0.5  # from which a detection is drawn
SIDE = 480  # pixels at least of the shorter side of the picture


@dataclass
class Trained:
    """A network in evaluation, its classes, the labels of B, the settings of its run."""

    model: MaskRCNN
    categories: Categories
    boxes_only: list[int]
    cfg: Config | None = None


@torch.no_grad()
def main() -> None:
    """Read the words of the command line, segment, draw."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    run, photo, options = read_words(sys.argv[1:])
    trained = load(run)
    if "add" in options:
        trained = add_classes(trained, options["add"], options["rows"])
    image = read_photo(photo, run, trained.cfg)
    found = find(trained, image, options)
    out = Path(options.get("out", f"{Path(photo).stem or 'demo'}_masks.png"))
    draw.save_png(picture(image, found, trained), out)
    names = class_names(trained)
    if not len(found["labels"]):
        print(f"Nothing has a score of {options.get('score', SCORE)}: give a lower score=.")
    for number, label in enumerate(found["labels"].tolist()):
        score = f"{found['scores'][number]:.2f}" if "scores" in found else "given"
        corners = " ".join(f"{side:.1f}" for side in found["boxes"][number].tolist())
        print(f"{names[label]:>16} {score}  {corners}")
    print(out)


def read_words(words: list[str]) -> tuple[str, str, dict[str, Any]]:
    """The run, the photo ("" without one) and the options; ValueError for what is none of them."""
    # A run of a sweep has "=" in its name
    plain = [word for word in words if "=" not in word or os.path.exists(word)]
    given = [word for word in words if word not in plain]
    strange = [word for word in given if word.partition("=")[0] not in OPTIONS]
    if strange:
        raise ValueError(f"{strange[0]} is unknown; {USAGE}")
    if not 1 <= len(plain) <= 2:
        raise ValueError(USAGE)
    try:
        options: Any = OmegaConf.to_container(OmegaConf.from_dotlist(given))
    except yaml.YAMLError:
        raise ValueError(
            f"a list does not end, or holds a sign that needs quotes; {USAGE}"
        ) from None
    check_options(options)
    return plain[0], "".join(plain[1:]), options


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for a value that cannot be meant."""
    for name in ("classes", "boxes", "rows"):
        if name in options and not (isinstance(options[name], list) and options[name]):
            raise ValueError(f"{name}={options[name]} is no list with entries: write {name}=[...].")
    if ("add" in options) != ("rows" in options):
        raise ValueError("add=RUN and rows=[...] belong together: give both.")
    score = options.get("score", SCORE)
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(f"score={score} is no score: give a number from 0 to 1.")
    out = Path(str(options.get("out", "demo.png")))
    if out.suffix.lower() != ".png" or out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"out={out} is no place for a PNG: give FILE.png in a folder that exists.")


def load(run: str) -> Trained:
    """The network of a run, a checkpoint, or torchvision's weights."""
    if run == "torchvision":
        weights = get_model_weights("maskrcnn_resnet50_fpn")["COCO_V1"]
        return load_torchvision(weights.get_state_dict(check_hash=True), run)
    if Path(run).is_dir() and not list(Path(run).glob("checkpoint-*.pt")):
        raise ValueError(f"{run} has no checkpoint: give the folder of one run, RUN/transfer say.")
    path = weights_file(run)
    content = pickles.read(path)
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not {"options", "categories"} <= set(parts):
        return load_torchvision(formats.tensors_by_name(content), run)
    cfg = read_settings(parts["options"])
    if cfg.stage == "detector":
        raise ValueError(f"{run} is a detector, which has no masks: give a run of stage=masks.")
    categories = Categories(**parts["categories"], where=str(path))
    embeddings = parts["model"].get(f"{MASK}embeddings")
    model = mask_rcnn(
        len(categories.ids),
        cfg.network,
        cfg.branch,
        embeddings=None if embeddings is None else embeddings[1:],
    )
    checkpoint.load_matching(model, parts["model"])
    kept = parts["options"].get(data.B_IDS)  # runs of before may have none
    if kept is None:
        _, boxes_only = split_classes(cfg.data.masks, categories)
    else:
        boxes_only = [label for label, number in enumerate(categories.ids) if number in kept]
    return Trained(model.to(dist.device()).eval(), categories, boxes_only, cfg)


def read_settings(options: dict[str, Any]) -> Config:
    """The settings of a run as its checkpoint has them; options of other versions are left out."""
    cfg = OmegaConf.structured(Config)
    for name, value in options.items():
        if OmegaConf.select(cfg, name, throw_on_missing=False) is not None or name == "data.root":
            OmegaConf.update(cfg, name, value)
    cfg.output_dir = ""
    assert isinstance(cfg, DictConfig)
    return to_dataclass(cfg)


def load_torchvision(state: formats.State, run: str) -> Trained:
    """Mask R-CNN with the masks of all of COCO's classes."""
    tensors = convert(state, run).tensors
    names = get_model_weights("maskrcnn_resnet50_fpn")["COCO_V1"].meta["categories"]
    model = mask_rcnn(len(names) - 1, Network(), MaskBranch(kind="specific"))
    counters = "num_batches_tracked"
    try:
        checkpoint.load_matching(
            model, {name: value for name, value in tensors.items() if not name.endswith(counters)}
        )
    except checkpoint.CheckpointError as error:
        raise ValueError(
            f"{run} is no run, nor torchvision's maskrcnn_resnet50_fpn: {error}"
        ) from None
    categories = Categories(range(1, len(names)), names[1:], run)
    return Trained(model.to(dist.device()).eval(), categories, [])


def add_classes(trained: Trained, add: str, rows: list[Any]) -> Trained:
    """The network with the classes `rows` of another box head as its last ones."""
    predictor = trained.model.roi_heads.mask_predictor
    if predictor.kind == "specific" or predictor.embeddings is not None:
        raise ValueError(
            "add= needs masks that follow from the box head, or one mask for all classes: give a "
            "run of branch.kind=transfer or agnostic, without embeddings."
        )
    path = weights_file(add)
    content = pickles.read(path)
    tensors = convert(formats.tensors_by_name(content), add).tensors
    heads = {name.removeprefix(BOX): value for name, value in tensors.items() if BOX in name}
    count, width = heads["cls_score.weight"].shape if heads else (0, 0)
    for row in rows:
        if not isinstance(row, int) or not 0 < row < count:
            raise ValueError(
                f"rows: {row} is no class of {add}: give numbers from 1 to {count - 1}."
            )
    other = FastRCNNPredictor(width, count).to(dist.device())
    checkpoint.load_matching(other, heads)
    append_classes(trained.model.roi_heads.box_predictor, other, rows)
    parts = content.get("parts", {}) if isinstance(content, dict) else {}
    known = parts.get("categories", {}).get("names") or [f"row {k + 1}" for k in range(count - 1)]
    ids, names = list(trained.categories.ids), list(trained.categories.names or [])
    wider = Categories(
        [*ids, *range(max(ids) + 1, max(ids) + 1 + len(rows))],
        [*names, *(f"{known[row - 1]} (added)" for row in rows)],
        trained.categories.where,
    )
    return replace(trained, categories=wider)


def read_photo(photo: str, run: str, cfg: Config | None) -> Tensor:
    """The photo, or the first validation image of the run, uint8 (3, H, W)."""
    if photo:
        return read_image(photo)
    if cfg is None:
        raise ValueError(f"{run} has no images of its own: give a photo; {USAGE}")
    return data.PartialMasks(replace(cfg.data, masks="all"), False)[0][0]


def find(trained: Trained, image: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    """What is drawn: boxes (n, 4), labels (n,) from 0, has_mask (n,), masks bool (n, H, W).

    And scores (n,), unless the boxes were given.
    """
    model, device = trained.model, dist.device()
    if "classes" in options:
        labels = find_labels(options["classes"], trained.categories, "classes")
        model.roi_heads.output_classes = {label + 1 for label in labels}
    pixels = image.to(device).float() / 255
    if "boxes" in options:
        boxes, labels = read_boxes(options["boxes"], trained.categories, image)
        chosen = torch.tensor(labels, device=device)
        own = segment(model, [pixels], [boxes.to(device)], [chosen + 1])[0]
        allowed = model.roi_heads.allowed(chosen + 1, model.roi_heads.output_classes)
        found = {"boxes": boxes, "labels": chosen, "masks": own, "has_mask": allowed}
        return {name: value.cpu() for name, value in found.items()}
    found = model([pixels])[0]
    found["masks"] = found["masks"][:, 0] >= 0.5
    found["labels"] = found["labels"] - 1
    keep = found["scores"] >= options.get("score", SCORE)
    return {name: value[keep].cpu() for name, value in found.items()}


def read_boxes(given: list[Any], categories: Categories, image: Tensor) -> tuple[Tensor, list[int]]:
    """Boxes (n, 4) and labels from 0 of [[x1, y1, x2, y2, class], ...]."""
    height, width = image.shape[1:]
    for entry in given:
        whole = isinstance(entry, list) and len(entry) == 5
        if not whole or not all(isinstance(side, int | float) for side in entry[:4]):
            raise ValueError(f"boxes: {entry} is no [x1, y1, x2, y2, class]: give just these.")
        x1, y1, x2, y2 = entry[:4]
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise ValueError(
                f"boxes: {entry} is no box within the image's {width} x {height} pixels."
            )
    labels = find_labels([entry[4] for entry in given], categories, "boxes")
    return torch.tensor([entry[:4] for entry in given], dtype=torch.float32), labels


def class_names(trained: Trained) -> list[str]:
    """Names by label; those of B say so."""
    names = enumerate(trained.categories.names or [])
    return [f"{name} (B)" if label in trained.boxes_only else name for label, name in names]


def picture(image: Tensor, found: dict[str, Tensor], trained: Trained) -> Tensor:
    """The image with masks, boxes, names and scores; uint8 (3, h, w)."""
    short = min(image.shape[1:])
    side = max(SIDE, short)
    shown = found["has_mask"]
    labels = found["labels"].tolist()
    shades = draw.palette(max(labels, default=0) + 1)
    large = masks.enlarge(found["masks"][shown].byte(), side, exact=True).bool()
    colors = [shades[label] for label in found["labels"][shown].tolist()]
    drawn = masks.paint(masks.enlarge(image, side), large, colors)
    boxes = found["boxes"] * (side / short)
    if labels:
        lines = [shades[label] for label in labels]
        drawn = draw_bounding_boxes(drawn, boxes, colors=lines, width=2)  # type: ignore[arg-type]
    names, scores = class_names(trained), found.get("scores")
    score = "" if scores is None else " 0.00"  # all are of this width
    captions = [names[label] + score for label in labels]
    places = find_places(boxes[:, :2], captions, drawn.shape[2])
    return draw.boxes(drawn, places, labels=labels, scores=scores, names=names, width=1)


def find_places(corners: Tensor, captions: Sequence[str], width: int) -> Tensor:
    """Boxes (n, 4) of no size whose captions start at the corners (n, 2) and hide no other one.

    A caption that would lie on an earlier one moves down. width: pixels of the image.
    """
    font, height = ImageFont.load_default(draw.TEXT_HEIGHT), draw.TEXT_HEIGHT + 3
    taken: list[tuple[float, float, float]] = []  # left, right and lower edge
    for (x, y), caption in zip(corners.tolist(), captions, strict=True):
        length = font.getlength(caption) + 5
        left, low = max(0.0, min(x, width - length)), max(y, height)
        while any(
            abs(low - other) < height and left < end and start < left + length
            for start, end, other in taken
        ):
            low += height
        taken.append((left, left + length, low))
    return torch.tensor([[left, low, left, low] for left, _, low in taken]).reshape(-1, 4)


if __name__ == "__main__":
    run_command(main)
