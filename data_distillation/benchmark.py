"""Ours beside the usual ways: every speed that the README claims.

    python benchmark.py                                    # all; some minutes on two cores
    python benchmark.py what=labels size=400 persons=10 repeats=3
    python benchmark.py what=decode sides=[64,400] out=decode.json
    python benchmark.py what=labels device=cuda            # 400 to 1200 pixels

The contestants run by turns in one process, each round another one first, after a check that they
give the same results. `theirs / ours` is the ratio of the medians: above 1, ours is faster. Where
other work shares the cores, OMP_WAIT_POLICY=PASSIVE keeps waiting threads from blocking them.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.models.detection.transform import resize_boxes
from torchvision.utils import save_image

from common import timing
from common.config import read_options, require_range, to_dataclass
from common.config import run as run_command
from common.data import train_loader
from common.images import read_image
from common.sampling import SampleStream
from common.timing import Calls, Row, version_of
from data_distillation.config import Config
from data_distillation.data import Examples, Labelled, Mixture, collate, locate
from data_distillation.distill import (
    Merge,
    Swap,
    Transforms,
    View,
    distill,
    flip_boxes,
    flip_maps,
    make_views,
    mirrored_joints,
)
from data_distillation.net.decode import decode_keypoints
from data_distillation.net.inference import resized
from data_distillation.optimizer import build_optimizer
from data_distillation.train import build

JOINTS = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"]
STEPS = 10  # of a call of `mixture`
Found = dict[str, Tensor]  # of an image: boxes, scores, labels, keypoints


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | labels | decode | mixture
    repeats: int = 5
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda
    size: int = 0  # shorter side of the untransformed pass; 0: 192 on a CPU, 800 on a GPU
    persons: int = 4  # of the image of `labels`: each costs ours and theirs a keypoint head
    regions: int = 100  # of `decode`
    sides: list[int] = field(default_factory=lambda: [32, 256])  # of these, fewest and most pixels
    peak: float = 8.0  # logits by which a joint stands out from noise of 0.5; 0: all is noise
    settings: list[str] = field(default_factory=list)  # of `mixture`: overrides of the run
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        require_range("size", self.size, 0)
        for name in ("persons", "regions"):
            require_range(name, getattr(self, name), 1)
        if len(self.sides) != 2 or not 1 <= self.sides[0] <= self.sides[1]:
            raise ValueError(f"sides={self.sides}: give the fewest and the most, like [32,256].")


def labels(options: Options) -> Calls:
    """Labels of one JPEG: 9 scales, 1/2 to 3/2 of `size`, with and without a flip.

    Keypoint R-CNN R-50-FPN with random weights and COCO's ratios of sizes. Theirs decodes the file
    and runs torchvision's whole model for each transform, on the first pass's boxes.
    """
    model = build_teacher(options).to(options.device).eval()
    folder = tempfile.TemporaryDirectory(prefix="data_distillation-")
    file = write_photo(Path(folder.name) / "photo.jpg", options.size)
    scales = [options.size * eighths // 8 for eighths in range(4, 13)]
    transforms = Transforms(scales, max_size=options.size * 5 // 2)  # 400 to 1200, 2000 for 800
    swap, views = mirrored_joints(JOINTS), make_views(transforms, options.size)

    def ours() -> Found:
        assert folder.name  # keeps the file for as long as this function
        return distill(model, [read_image(file) / 255], transforms, Merge(), swap)[0]

    theirs = partial(run_whole, model, file, views, transforms.max_size, swap)
    return {"ours": ours, version_of("torchvision"): theirs}


@torch.no_grad()
def run_whole(model: Any, file: Path, views: Sequence[View], max_size: int, swap: Swap) -> Found:
    """Labels of a file by `model(images)` for each view, the usual way: the passes share nothing.

    model: a Keypoint R-CNN in evaluation mode. All of it runs in each pass; then the boxes that it
    found give way to those of the first pass, so that its maps can be averaged. Returns boxes
    (M, 4), scores and labels (M,), keypoints (M, J, 3: x, y, confidence) on the CPU.
    """
    heads, device = model.roi_heads, next(model.parameters()).device
    find, logits, first = heads.postprocess_detections, list[Tensor](), Found()

    def find_same(*inputs: Any) -> Any:
        found = find(*inputs)
        if not first:
            return found
        own = flip_boxes(first["boxes"], image.shape[2]) if view.flip else first["boxes"]
        boxes = resize_boxes(own, image.shape[1:], inputs[3][0])
        return [boxes], [first["scores"]], [first["labels"]]

    heads.postprocess_detections = find_same
    with heads.keypoint_predictor.register_forward_hook(lambda *call: logits.append(call[2])):
        for view in views:
            image = read_image(file).to(device) / 255
            with resized(model, view.short, max_size):
                (found,) = model([image.flip(2) if view.flip else image])
            first = first or found
    del heads.postprocess_detections  # the class has its own
    maps = [each.flatten(2).softmax(-1).view_as(each) for each in logits]
    pairs = zip(views, maps, strict=True)
    mean = torch.stack([flip_maps(m, swap) if view.flip else m for view, m in pairs]).mean(0)
    points = heatmaps_to_keypoints(mean, first["boxes"])[0][..., :2]
    keypoints = torch.cat((points, mean.amax((2, 3))[..., None]), -1)
    known = {name: first[name] for name in ("boxes", "scores", "labels")}
    return {name: each.cpu() for name, each in (known | {"keypoints": keypoints}).items()}


def build_teacher(options: Options) -> nn.Module:
    """Torchvision's model, which finds as many persons as it may."""
    torch.manual_seed(0)
    size, count = options.size, options.persons
    sides = {"min_size": size, "max_size": size * 5 // 3, "box_detections_per_img": count}
    return detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sides)


def write_photo(file: Path, size: int) -> Path:
    """Soft blobs in a JPEG of 4:3, 640 x 480 for 800."""
    blobs = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(blobs, (size * 3 // 5, size * 4 // 5), mode="bilinear")
    save_image(large, file)
    return file


def decode(options: Options) -> Calls:
    """Joints of `regions` boxes, by maps of probabilities 17 x 56 x 56; sides are log-uniform."""
    maps, boxes = (each.to(options.device) for each in make_maps(options))
    return {
        "ours": lambda: decode_keypoints(maps, boxes)[0],
        version_of("torchvision"): lambda: heatmaps_to_keypoints(maps, boxes)[0][..., :2],
    }


def make_maps(options: Options) -> tuple[Tensor, Tensor]:
    """Maps (R, 17, 56, 56) of a peak 1 to 4 cells wide in noise, and boxes (R, 4)."""
    generator = torch.Generator().manual_seed(0)
    rand = partial(torch.rand, generator=generator)
    count, m = options.regions, 56
    low, high = options.sides
    sides = low * (high / low) ** rand(count, 2)
    corners = 100 * rand(count, 2)
    x, y, width = rand(3, count, len(JOINTS), 1, 1).unbind()
    cells = (torch.arange(m) + 0.5) / m
    distance = (cells - x) ** 2 + (cells[:, None] - y) ** 2  # squared, sides of a map
    noise = 0.5 * torch.randn(count, len(JOINTS), m, m, generator=generator)
    logits = options.peak * torch.exp(-distance / (2 * ((1 + 3 * width) / m) ** 2)) + noise
    maps = logits.flatten(2).softmax(-1).view_as(logits)
    return maps, torch.cat((corners, corners + sides), 1)


def mixture(options: Options) -> Calls:
    """10 batches of labelled and automatic images of the built-in data, and 10 steps of a student.

    The plain loader draws from all of these as one set. The student is that of the default run on a
    CPU, and the paper's ResNet-50 with images of 800 pixels on a GPU.
    """
    cfg = student_run(options)
    manual, automatic, both = (
        Labelled(*locate(cfg.data, split, cfg.task), cfg.data, cfg.task, training=True)
        for split in ("train", "hidden", "train+hidden")
    )
    training = Mixture(manual, automatic, 1.0)
    plain = SampleStream(len(both), cfg.batch_size, seed=cfg.seed)

    def draw_mixed() -> list[Examples]:
        batches = training.batches(cfg, 0, STEPS)
        return [(piece.images, piece.targets) for pieces in batches for piece in pieces]

    def draw_plain() -> list[Examples]:
        workers = cfg.data.workers
        return list(train_loader(both, plain, 0, STEPS, workers=workers, collate=collate))

    torch.manual_seed(0)
    device = torch.device(options.device)
    model = build(cfg, training).to(device).train()
    optimizer, _ = build_optimizer(model, cfg)
    pieces = next(iter(training.batches(cfg, 0, 1)))

    def train() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            for piece in pieces:
                with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                    losses = model(*piece.to(device))
                (torch.stack(list(losses.values())).sum() * piece.share).backward()
            optimizer.step()

    return {"ours": draw_mixed, "one plain set": draw_plain, "steps of the student": train}


def student_run(options: Options) -> Config:
    """The settings of the student; its images are not flipped, which would part the loaders."""
    small = options.device == "cpu"
    given = ["experiment=mini"] if small else ["experiment=paper", "amp=true"]
    given += ["data.automatic=''", "data.flip=0", "init=''", "output_dir=unused"]
    with initialize_config_dir(str(Path(__file__).with_name("conf")), version_base="1.3"):
        cfg: Config = to_dataclass(compose("config", [*given, *options.settings]))
    return cfg


BENCHMARKS = {"labels": labels, "decode": decode, "mixture": mixture}


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, after a check of the results; and notes on its rates."""
    options = replace(options, size=options.size or (192 if options.device == "cpu" else 800))
    calls = BENCHMARKS[what](options)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # whose rounding moves joints
        require_same(what, [call() for call in calls.values()])
    contest = dict(list(calls.items())[:2])
    seconds = timing.by_turns(contest, options.repeats, options.device)
    for name in calls.keys() - contest.keys():  # apart: the next in turn would find cold caches
        seconds |= timing.by_turns({name: calls[name]}, options.repeats, options.device)
    rows = [Row(what, name, times) for name, times in seconds.items()]
    medians = [row.quartiles[1] for row in rows]
    notes = []
    if what == "labels":
        ours, theirs = (options.persons / median for median in medians)
        notes = [f"- labels a second: {ours:.3g} beside {theirs:.3g}"]
    if what == "mixture":
        mixed, one, _ = seconds.values()
        more = statistics.median(a - b for a, b in zip(mixed, one, strict=True))
        notes = [f"- the mixture costs {100 * more / medians[2]:+.2f} % of the student's steps"]
    return rows, notes


def require_same(what: str, results: list) -> None:
    """Stop unless the results of the first two are the same: joints to 1e-3 pixels.

    Of `mixture` the images that both drew, with their boxes and joints.
    """
    first, other = results[:2]
    if what == "mixture":
        ours, theirs = by_file(first), by_file(other)
        both = ours.keys() & theirs.keys()
        assert both
        first, other = ([each[file] for file in both] for each in (ours, theirs))
    rtol, atol = (0, 1e-3) if what == "decode" else (1e-4, 1e-4)
    torch.testing.assert_close(other, first, rtol=rtol, atol=atol)


def by_file(batches: list[Examples]) -> dict[str, list[Tensor]]:
    """Image, boxes and joints of each file."""
    examples = [pair for batch in batches for pair in zip(*batch, strict=True)]
    return {each["file"]: [image, each["boxes"], each["keypoints"]] for image, each in examples}


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    timing.compare(read_options(Options, words, usage=__doc__), BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
