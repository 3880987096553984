"""The built-in data: rendered scenes as a folder in COCO's format, written once.

From there on they are read, labelled and mixed as any real data are. Few images are labelled; the
truth of the others is kept apart, to tell how good automatic labels are and what all labels would
give. A second set of unlabelled images shows another domain, as Sports-1M's frames do.

    images/{train,val,unlabelled,shifted}/000001.png ...
    annotations/{train,val}.json       labelled images
    annotations/unlabelled.json        images alone, as in COCO's image_info files
    annotations/hidden.json            the same with their truth
    annotations/{shifted,hidden_shifted}.json  likewise of the other domain

Ids of images and annotations differ between the splits, so that several can be read as one set.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.draw import save_png
from common.files import write_text
from common.scenes import Scenes, World
from common.scenes.annotate import KEYPOINTS
from common.scenes.cache import cache_folder
from common.scenes.render import RENDERER

LAYOUT = 1  # of the folder; another one has other names
APART = 1_000_000  # scenes between the splits, so that each may grow without changing another

# A corner of a solid is known to a fraction of a pixel, so no spread of annotators can be measured
# as COCO's was: each joint has the mean of COCO's 17, and OKS is as strict as there on the whole.
SIGMAS = (0.067,) * len(KEYPOINTS)


@dataclass
class Builtin:
    """What the images show, and how many there are."""

    seed: int = 0
    labelled: int = 150
    unlabelled: int = 600
    test: int = 300
    side: int = 64  # pixels
    objects: list[int] = field(default_factory=lambda: [1, 3])  # fewest and most in an image
    shapes: list[str] = field(
        default_factory=lambda: ["cube", "pyramid", "frustum", "prism", "hexagon"]
    )
    classes: str = "solid"  # solid: all are of one class; shape: each shape is one
    hidden_joints: bool = False  # joints behind a solid are labelled, with visibility 1
    min_visible: int = 60  # pixels of each object
    clutter: int = 3  # most pebbles and stains in an image
    noise: float = 8.0  # standard deviation, in levels of 0..255

    def __post_init__(self) -> None:
        if self.classes not in ("solid", "shape"):
            raise ValueError(
                f"data.builtin.classes={self.classes} is not known: choose solid or shape."
            )
        if len(self.objects) != 2:
            raise ValueError(
                f"data.builtin.objects={self.objects}: give the fewest and the most, like [1, 3]."
            )
        for name in ("labelled", "unlabelled", "test"):
            if not 1 <= getattr(self, name) <= APART:
                raise ValueError(
                    f"data.builtin.{name}={getattr(self, name)}: choose 1 to {APART} images."
                )


def write_builtin(options: Builtin) -> Path:
    """The folder of these images in the cache, written where it is missing.

    It appears whole or not at all. Processes that want it at once share the rendering, which takes
    the time (see `common.scenes.cache`); each then writes files, and the first folder stays.
    """
    key = hashlib.sha256(repr((LAYOUT, RENDERER, make_worlds(options), options)).encode())
    folder = cache_folder() / "data_distillation" / key.hexdigest()[:16]
    if folder.is_dir():
        return folder
    scenes = {name: render(options, name) for name in ("train", "val", "unlabelled", "shifted")}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            write_folder(part, scenes, options)
            part.chmod(0o755)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            raise OSError(
                f"cannot write the built-in images to {folder.parent} ({error.strerror}): "
                "set FAIR_VISION_CACHE to a folder with room."
            ) from error
    return folder


def make_worlds(options: Builtin) -> tuple[World, World]:
    """The domain of the labelled images, and the other one."""
    world = World(
        width=options.side,
        height=options.side,
        objects=(options.objects[0], options.objects[1]),
        shapes=tuple(options.shapes),
        clutter=(0, options.clutter),
        min_visible=options.min_visible,
        noise=options.noise,
        floor="noise",
        tint=0.5,
        color_jitter=0.2,
        sizes=(("large", 0.8), ("small", 0.5)),
        spread=1.0,
        elevation=35,
    )
    shifted = replace(
        world,
        floor="checker",
        wall="brick",
        tint=1.0,
        colors=("orange", "pink", "lime", "navy", "teal", "white"),
        sizes=(("large", 0.65), ("small", 0.4)),
        elevation=28,
    )
    return world, shifted


def render(options: Builtin, split: str) -> Scenes:
    """The scenes of a split; an image's id is its index in the stream of scenes."""
    count, number = {
        "train": (options.labelled, 0),
        "val": (options.test, 1),
        "unlabelled": (options.unlabelled, 2),
        "shifted": (options.unlabelled, 3),
    }[split]
    by = () if options.classes == "solid" else ("shape",)
    world = make_worlds(options)[split == "shifted"]
    start = 1 + APART * number
    return Scenes(world, count=count, seed=options.seed, start=start, classes_by=by)


def write_folder(folder: Path, scenes: dict[str, Scenes], options: Builtin) -> None:
    """Write images and annotations of every split."""
    annotations = folder / "annotations"
    annotations.mkdir()
    for split, each in scenes.items():
        truth = describe(each, split, options)
        for image, entry in zip(each.images(), truth["images"], strict=True):
            save_png(image, folder / "images" / entry["file_name"])
        hidden = {"unlabelled": "hidden", "shifted": "hidden_shifted"}.get(split)
        if hidden:
            alone = {"info": truth["info"], "images": truth["images"]}
            write_text(annotations / f"{split}.json", json.dumps(alone))
        write_text(annotations / f"{hidden or split}.json", json.dumps(truth))


def describe(scenes: Scenes, split: str, options: Builtin) -> dict:
    """Boxes, joints and masks of a split in COCO's format."""
    truth, masks = scenes.coco("keypoints"), scenes.coco("masks")
    for number, image in enumerate(truth["images"], 1):
        image["file_name"] = f"{split}/{number:06d}.png"
    for each, other in zip(truth["annotations"], masks["annotations"], strict=True):
        each["id"] += scenes.start
        each["segmentation"] = other["segmentation"]
        if not options.hidden_joints:
            leave_out_hidden(each)
    if options.classes == "solid":
        truth["categories"][0]["name"] = "solid"
    truth["info"] = {"description": f"rendered scenes, seed {options.seed}, split {split}"}
    return truth


def leave_out_hidden(annotation: dict) -> None:
    """Set the joints of visibility 1 to 0, 0, 0, as those that an annotator does not mark."""
    points = annotation["keypoints"]
    for start in range(0, len(points), 3):
        if points[start + 2] == 1:
            points[start : start + 3] = [0.0, 0.0, 0.0]
    annotation["num_keypoints"] = sum(flag > 0 for flag in points[2::3])
