"""Labels for images that have none, by a trained detector: boxes, masks or keypoints.

    python annotate.py images=DIR teacher=RUN labelled=train.json out=auto.json

The teacher finds objects in each image under several transforms and merges what it finds, Sec. 3;
the surest become labels, as many an image as `labelled` has. out= is a file in COCO's format to
train on: python train.py data.automatic=auto.json. Beside it are a picture of some labels, out with
.png, and all that was found, in the folder out without .json. A command that was stopped goes on
where it was when it is given again.

    images=DIR | FILE.json          a folder with images at any depth, or a list in COCO's format,
                                    as image_info_unlabeled2017.json; root=DIR: of its images
    teacher=RUN | FILE | torchvision:NAME      a run of train.py, weights of torchvision's
                                    architecture=NAME in a file, or those that torchvision publishes
    labelled=FILE.json              what a labelled set looks like, whose categories are taken
    categories=FILE.json            {"teacher's name": "labelled name"} where they differ
    truth=FILE.json                 true labels of the images, by which the AP of ours is printed;
                                    sigmas=[..] of its joints, unless they are COCO's 17
    joint_offset=0                  for weights that learned joints as the pixel indices of files;
                                    of a run it is known, by its data.joint_offset
    shard=0/8                       the first of 8 shares, for 8 processes on as many GPUs or
                                    machines; the last one to end writes out=
    bad_images=skip                 leave out images that cannot be read
    amp=true                        bfloat16 in the network
    examples=16                     images in the picture
    transforms.scales=[400,600]  transforms.flip=false  transforms.max_size=2000
    merge.nms=0.5  merge.vote=0.9  merge.heatmaps=logit
    labels.factor=2  labels.match=fixed labels.score=0.7  labels.per_class=true  labels.ignore=0.3

Other thresholds need no network; what is not given has its default, files are those of before,
root=DIR is where the images are now if they were moved:

    python annotate.py threshold out=auto.json labels.factor=2

Exit code 0: done, or this shard is; 2: bad data or options, in one sentence.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from common import dist, draw, files
from common.coco.files import first_missing, short_path
from common.config import read_options, require_choice, require_range
from common.config import run as run_command
from data_distillation.distill import Merge, Transforms
from data_distillation.figures.labels import draw_labels
from data_distillation.inputs.photos import find_photos
from data_distillation.labels.choose import Labels, choose
from data_distillation.labels.counts import (
    LabelledCounts,
    count_labelled,
    keep_sound,
    read_content,
)
from data_distillation.labels.inputs import recall, remember, require_categories
from data_distillation.labels.quality import label_quality, restrict_truth
from data_distillation.labels.records import Records, annotate, describe, read_records
from data_distillation.labels.shards import parse_shard, read_info, require_same
from data_distillation.labels.transforms import name_equal, without_flips
from data_distillation.net.inference import own_size
from data_distillation.weights.teacher import load_teacher

SHOWN = ("AP", "AP50", "AP75")


@dataclass
class Threshold:
    """Words of `threshold`; what is empty is as it was when the images were labelled."""

    out: str = MISSING
    labelled: str = ""
    root: str = ""
    truth: str = ""
    sigmas: list[float] = field(default_factory=list)
    examples: int = 16
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        require_range("examples", self.examples, 0)


@dataclass
class Options:
    """Words of the command."""

    images: str = MISSING
    teacher: str = MISSING
    labelled: str = MISSING
    out: str = MISSING
    root: str = ""
    architecture: str = ""
    categories: str = ""
    truth: str = ""
    sigmas: list[float] = field(default_factory=list)
    joint_offset: float | None = None  # that of the teacher
    shard: str = "0/1"
    bad_images: str = "raise"
    amp: bool = False
    examples: int = 16
    transforms: Transforms = field(default_factory=Transforms)
    merge: Merge = field(default_factory=Merge)
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        require_choice("bad_images", self.bad_images, ("raise", "skip"))
        require_range("examples", self.examples, 0)
        if self.joint_offset is not None:
            require_range("joint_offset", self.joint_offset, 0, 1)
        numbers = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard)
        if not numbers or int(numbers[1]) >= int(numbers[2]):
            raise ValueError(f"shard={self.shard}: give one of 0/N to N-1/N.")


@dataclass
class Truth:
    """What the labels are compared with; no content: nothing."""

    content: dict[str, Any] | None
    sigmas: list[float]
    where: str  # truth=FILE, for messages


def main() -> None:
    """Do what the command line says."""
    words = sys.argv[1:]
    if words[:1] == ["threshold"]:
        choose_again(read_options(Threshold, words[1:], usage=__doc__, least=1))
    else:
        label(read_options(Options, words, usage=__doc__, least=1))


def label(options: Options) -> None:
    """Label the images of a shard; the last one chooses the labels."""
    out, folder = find_places(options.out, options.labelled, options.truth, options.images)
    content = read_content(options.labelled)
    teacher = load_teacher(
        options.teacher, content, architecture=options.architecture, categories=options.categories
    )
    labelled = count_labelled(keep_sound(content, options.labelled, teacher.kind), options.labelled)
    require_labels(labelled, options.labels, teacher.kind)
    photos = find_photos(options.images, options.root, options.bad_images)
    truth = read_truth(options.truth, options.sigmas, teacher.kind, labelled)
    if truth.content:
        listed = zip(photos.ids, photos.files, strict=True)
        entries = [{"id": number, "file_name": file} for number, file in listed]
        restrict_truth(truth.content, entries, truth.where)
    if dropped := dict.fromkeys(teacher.dropped):  # N/A is ten of COCO's
        print(f"{options.labelled} lacks {', '.join(dropped)}: these are not labelled.")
    transforms, note = without_flips(options.transforms, teacher.kind, teacher.mirrored)
    if note:
        print(f"warning: {note}")
    shard = parse_shard(options.shard)
    require_same(
        folder, describe(teacher, photos, transforms, options.merge, shard, amp=options.amp)
    )
    if any(folder.glob("shard-*.jsonl")):
        require_categories(folder, teacher.category_ids, recall(folder), labelled)
    sizes = photos.check(range(shard[0], len(photos), shard[1]))
    if equal := name_equal(sizes, transforms, *own_size(teacher.model)):
        print(f"warning: {equal}")
    paths = {"labelled": options.labelled, "truth": options.truth}
    offset = teacher.joint_offset if options.joint_offset is None else options.joint_offset
    remember(folder, paths, options.sigmas, labelled.categories, offset)
    annotate(
        teacher,
        photos,
        transforms,
        options.merge,
        folder,
        shard=shard,
        device=dist.device(),
        amp=options.amp,
    )
    try:
        read_info(folder)
    except ValueError as missing:
        print(f"shard {options.shard} is done. {missing}")
        return
    records = read_records(folder)
    records.info["folder"] = str(photos.root.resolve())  # they may have been moved
    records.shift_joints(offset)
    write_labels(out, records, labelled, truth, options)


def choose_again(options: Threshold) -> None:
    """Choose labels from the records of an earlier command."""
    out, folder = find_places(options.out, options.labelled, options.truth)
    info, before = read_info(folder), recall(folder)
    file = options.labelled or before.get("labelled", "")
    if not file:
        raise ValueError(f"{folder} does not say which file was labelled: give labelled=FILE.")
    labelled = count_labelled(keep_sound(read_content(file), file, info["kind"]), file)
    truth = read_truth(
        options.truth or before.get("truth", ""),
        options.sigmas or before.get("sigmas", []),
        info["kind"],
        labelled,
    )
    require_categories(folder, info["category_ids"], before, labelled)
    records = read_records(folder)
    records.shift_joints(before.get("joint_offset", 0.5))
    if options.root:
        records.info["folder"] = str(Path(options.root).resolve())
        if missing := find_missing(records):
            raise ValueError(f"root={options.root} has no {missing}: give the images' folder.")
    write_labels(out, records, labelled, truth, options)


def find_missing(records: Records) -> str:
    """The first image that is not where the records say; empty: all are there."""
    root = Path(records.info["folder"])
    return short_path(first_missing(str(root / image.file) for image in records.images) or "")


def find_places(word: str, *others: str) -> tuple[Path, Path]:
    """The file to write and the folder of the records; ValueError where it is another file's."""
    out = Path(word)
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"out={word}: give the name of a file that ends in .json.")
    if any(other and Path(other).resolve() == out.resolve() for other in others):
        raise ValueError(f"out={word} is a file that is read: give another name.")
    return out, out.with_suffix("") / "records"


def require_labels(labelled: LabelledCounts, labels: Labels, kind: str) -> None:
    """Raise ValueError where a labelled set without objects, or joints, would leave no label."""
    what = "instance with a visible joint (v > 0)" if kind == "keypoints" else "instance"
    if labels.match == "count" and not labelled.total:
        raise ValueError(
            f"{labelled.where} has no {what}, so that no label would be kept: give another "
            "labelled=, or labels.match=fixed labels.score=."
        )


def read_truth(file: str, sigmas: list[float], kind: str, labelled: LabelledCounts) -> Truth:
    """The content of the truth; ValueError where it cannot be compared with."""
    joints = max((len(entry.get("keypoints") or ()) for entry in labelled.categories), default=0)
    if file and kind == "keypoints" and len(sigmas or range(17)) != joints:
        raise ValueError(f"truth={file} has {joints} joints: give sigmas=[...], one for each.")
    return Truth(read_content(file) if file else None, sigmas, f"truth={file}")


def write_labels(
    out: Path,
    records: Records,
    labelled: LabelledCounts,
    truth: Truth,
    options: Options | Threshold,
) -> None:
    """Write the file and the picture, and say what is in it; nothing where the input is bad."""
    kind = records.info["kind"]
    content, report = choose(records, labelled, options.labels, kind)
    scores: dict[str, float] = {}
    if truth.content:
        listed = [{"id": image.id, "file_name": image.file} for image in records.images]
        real = restrict_truth(truth.content, listed, truth.where)
        scores = label_quality(content, real, kind, truth.sigmas or None)
    wanted = options.examples and content["annotations"]
    missing = find_missing(records) if wanted else ""
    sheet = draw_labels(content, options.examples) if wanted and not missing else None
    files.write_text(out, json.dumps(content, allow_nan=False))
    print(report)
    if truth.content:
        known = (f"{name} {scores[name]:.1f}" for name in SHOWN if not math.isnan(scores[name]))
        print(f"against the truth: {', '.join(known)}")
    print(out)
    picture = out.with_suffix(".png")
    if sheet is not None:
        draw.save_png(sheet, picture)
        print(picture)
    elif options.examples:
        picture.unlink(missing_ok=True)  # of earlier labels
    if missing:
        print(
            f"warning: no picture, as {missing} is not here: python annotate.py threshold "
            f"out={out} root=DIR draws the images of another folder."
        )


if __name__ == "__main__":
    run_command(main)
