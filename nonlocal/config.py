"""Every option of the project; the defaults are the paper's (or the official code's, where marked).

Section numbers are those of arXiv 1711.07971. "Official" is facebookresearch/video-nonlocal-net.
"""

import math
from dataclasses import dataclass, field
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from common.config import require_choice, require_range
from nonlocal_.block import Block
from nonlocal_.inputs.builtin import Builtin
from nonlocal_.model import Network
from nonlocal_.net.detectors import Detector

TASKS = ("classification", "multi_label", "detection")


@dataclass
class Data:
    """The clips, or for `task=detection` the photos, to train and to evaluate on."""

    name: str = "videos"  # builtin | videos | coco
    root: str = MISSING  # folder that the names in the lists are relative to; empty for builtin
    train: str = "train.csv"  # list of videos, or a folder with a folder a class; of coco: a split
    val: str = "val.csv"
    classes: str = ""  # file of class names, one a line, where the lists give names
    class_by: str = "folder"  # folder | file: what is a class where `train` is a folder
    clip_labels: bool = True  # Unstated: with times in the list, a clip has the labels it shows
    reader: str = "auto"  # auto | pyav | torchcodec, of video files
    damaged: str = "raise"  # raise | play: what a video does that breaks off
    train_part: list[float] = field(default_factory=lambda: [0.0, 1.0])  # of each video, shares
    val_part: list[float] = field(default_factory=lambda: [0.0, 1.0])
    bad_videos: str = "raise"  # raise | skip: what a video does that cannot be read
    bad_images: str = "raise"  # raise | skip: likewise a photo
    limit: int = 0  # use the first training examples only, this many; 0: all
    workers: int = 8  # loader processes per training process
    builtin: Builtin = field(default_factory=Builtin)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("builtin", "videos", "coco"))
        require_choice("data.class_by", self.class_by, ("folder", "file"))
        require_choice("data.reader", self.reader, ("auto", "pyav", "torchcodec"))
        require_choice("data.damaged", self.damaged, ("raise", "play"))
        require_choice("data.bad_videos", self.bad_videos, ("raise", "skip"))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        for name in ("limit", "workers"):
            require_range(f"data.{name}", getattr(self, name), 0)
        for name in ("train_part", "val_part"):
            part = getattr(self, name)
            if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
                raise ValueError(
                    f"data.{name}={part}: give the start and the end as shares of a video, as in "
                    "[0,0.5]."
                )


@dataclass
class Clip:
    """How a training clip is cut from a video, Sec. 4."""

    frames: int = 32
    stride: int = 2  # of the frames
    jitter: list[int] = field(default_factory=lambda: [256, 320])  # shorter side in pixels, uniform
    crop: int = 224  # pixels a side
    resample: int = 0  # pixels that the crop is resized to; Charades: 288; 0: as it is
    flip: float = 0.5  # probability of a horizontal flip

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "crop"):
            require_range(f"clip.{name}", getattr(self, name), 1)
        require_range("clip.resample", self.resample, 0)
        require_range("clip.flip", self.flip, 0, 1)
        if len(self.jitter) != 2 or not self.crop <= self.jitter[0] <= self.jitter[1]:
            raise ValueError(
                f"clip.jitter={self.jitter}: give the least and the largest shorter side, from "
                f"clip.crop={self.crop} up."
            )


@dataclass
class Test:
    """Evaluation, Sec. 4: probabilities averaged over the views of a video."""

    # Differs: the text has 10 clips and whole frames; three crops are the official code's way.
    clips: int = 10  # evenly spaced in a video
    crops: int = 3  # 1: centre | 3: along the longer side, official | 0: the whole frame, the text
    mirror: bool = False  # official: each view mirrored too, 60 in all
    size: int = 256  # shorter side in pixels
    sampler: str = "official"  # official: start n k / 10, wraps | ends: SlowFast, clamps | center
    fuse: str = "mean"  # mean | max, of the views; max: SlowFast, for Charades
    batch_size: int = 8  # views, or photos
    images: int = 4  # clips to draw with what they attend to
    evaluator: str = "pycocotools"  # of photos: pycocotools | faster, the same figures sooner

    def __post_init__(self) -> None:
        require_choice("test.sampler", self.sampler, ("official", "ends", "center"))
        require_choice("test.fuse", self.fuse, ("mean", "max"))
        require_choice("test.evaluator", self.evaluator, ("pycocotools", "faster"))
        for name in ("clips", "size", "batch_size"):
            require_range(f"test.{name}", getattr(self, name), 1)
        if self.crops not in (0, 1, 3):
            raise ValueError(f"test.crops={self.crops}: choose 1, 3 or, for whole frames, 0.")
        if self.sampler == "center" and self.clips != 1:
            raise ValueError("test.sampler=center is one clip a video: give test.clips=1, too.")
        require_range("test.images", self.images, 0)
        if self.evaluator == "faster" and find_spec("faster_coco_eval") is None:
            raise ValueError(
                "test.evaluator=faster is not installed: run pip install -e '.[fast]', or take "
                "test.evaluator=pycocotools."
            )


@dataclass
class Config:
    """One training run."""

    seed: int = 0
    task: str = "classification"  # classification | multi_label: Charades | detection: COCO
    steps: int = 400_000  # optimizer steps, Sec. 4
    batch_size: int = 64  # clips or photos a step over all processes
    per_gpu: int = 8  # of the paper's GPUs, each of which has its own batch norm
    optimizer: str = "sgd"  # sgd, with Nesterov's momentum | adamw
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4  # of all but batch norm
    schedule: str = "multistep"  # multistep | one_cycle
    milestones: list[float] = field(default_factory=lambda: [0.375, 0.75])  # 150k and 300k of 400k
    warmup: int = 0  # steps
    warmup_start: float = 1 / 3  # share of the rate at step 0
    clip_norm: float = 0.0  # largest gradient norm; 0: no clipping, as in the paper
    precise_norm: int = 200  # official: batches that batch norm is measured on; 0: its running mean
    amp: bool = False  # bfloat16 in the network
    init: str = "imagenet"  # imagenet: inflated | a run's folder | FILE | "": random
    new_classifier: bool = False  # official: long clips learn it anew, whatever `init` holds
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: only at the end
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    clip: Clip = field(default_factory=Clip)
    network: Network = field(default_factory=Network)
    block: Block = field(default_factory=Block)
    detector: Detector = field(default_factory=Detector)
    test: Test = field(default_factory=Test)

    def __post_init__(self) -> None:
        require_choice("task", self.task, TASKS)
        require_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        require_choice("schedule", self.schedule, ("multistep", "one_cycle"))
        for name in ("steps", "batch_size", "per_gpu", "log_every", "save_every"):
            require_range(name, getattr(self, name), 1)
        for name in ("lr", "weight_decay", "clip_norm", "warmup", "precise_norm"):
            require_range(name, getattr(self, name), 0)
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: give a finite number.")
        for name in ("threads", "evaluate_every"):
            require_range(name, getattr(self, name), 0)
        require_range("momentum", self.momentum, 0, 0.99999)
        require_range("warmup_start", self.warmup_start, 0, 1)
        for share in self.milestones:
            require_range("milestones", share, 0, 1)
        if (self.task == "detection") != (self.data.name == "coco"):
            raise ValueError(
                f"task={self.task} does not go with data.name={self.data.name}: photos of COCO are "
                "for task=detection, clips for the others."
            )
        if self.task == "multi_label" and self.data.name == "builtin":
            raise ValueError("task=multi_label: the built-in clips have one label each.")
        require_effect(self)


def require_effect(cfg: Config) -> None:
    """Raise ValueError for an option that its run would not read, with the one to give instead."""
    photos = cfg.task == "detection"
    if photos and cfg.network.at:
        raise ValueError(
            f"network.at={cfg.network.at} has no effect with task=detection: give detector.at."
        )
    if cfg.detector.at and not photos:
        raise ValueError(
            f"detector.at={cfg.detector.at} has no effect with task={cfg.task}: give network.at."
        )
    if cfg.new_classifier and photos:
        raise ValueError(
            "new_classifier=true has no effect with task=detection, whose heads are new wherever "
            "the classes are others: leave it out."
        )
    if cfg.new_classifier and cfg.init == "imagenet":
        raise ValueError(
            "new_classifier=true is for a network that knows clips: give init=RUN or "
            "init=FILE, or new_classifier=false to start from ImageNet."
        )
    if cfg.network.res3_group and cfg.block.over == "space":
        raise ValueError(
            f"network.res3_group={cfg.network.res3_group} has no effect with block.over=space, "
            "where a frame attends to itself: give network.res3_group=0, or another block.over."
        )
    if cfg.warmup and cfg.schedule == "one_cycle":
        raise ValueError(
            f"warmup={cfg.warmup} has no effect with schedule=one_cycle, which has one of its own: "
            "give warmup=0, or schedule=multistep."
        )
    if cfg.data.limit and cfg.data.name == "builtin":
        raise ValueError("data.limit is for files; of the built-in clips give data.builtin.train.")


def count_pieces(cfg: Config, processes: int) -> int:
    """The pieces of `per_gpu` examples, one after the other, that a process has in each step.

    Raises ValueError, with what to give, where the processes cannot share the batch out so.
    """
    batch, piece = cfg.batch_size, cfg.per_gpu
    if batch % (piece * processes) == 0:
        return batch // (piece * processes)
    ways = [f"batch_size={math.ceil(batch / (piece * processes)) * piece * processes}"]
    if batch % processes == 0:
        ways.insert(0, f"per_gpu={math.gcd(piece, batch // processes)}")
    if batch % piece == 0:
        fewer = max(n for n in range(1, processes) if batch % (piece * n) == 0)
        ways.insert(0, f"processes={fewer}")
    share = f"per_gpu={piece}" + (f" times {processes} processes" if processes > 1 else "")
    raise ValueError(f"batch_size={batch} is no multiple of {share}: give {' or '.join(ways)}.")


# What a run may be resumed with otherwise: its length, where and how fast it runs, what it says,
# and, see `may_change`, what its task does not read.
MAY_CHANGE = (
    "steps",
    "processes",
    "threads",
    "log_every",
    "save_every",
    "evaluate_every",
    "only_evaluate",
    "test",
    "detector.score",
    "detector.nms",
    "detector.detections",
    "network.flat_2d",
    "data.root",
    "data.val",
    "data.val_part",
    "data.reader",
    "data.workers",
    "data.bad_images",
    "data.bad_videos",
)


def may_change(cfg: Config) -> tuple[str, ...]:
    """The options that a run may be resumed with otherwise."""
    files = () if cfg.data.name == "builtin" else ("data.builtin",)
    return (*MAY_CHANGE, *files, *(("network",) if cfg.task == "detection" else ("detector",)))


ConfigStore.instance().store("schema", Config)
