"""Every option of the project; the defaults are the paper's (or Detectron's, marked D1).

Section numbers are those of arXiv 1712.04440. What the paper leaves open is marked `Unstated:`
where it is used.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from common.config import require_choice, require_range
from data_distillation.distill import Merge, Transforms
from data_distillation.inputs.builtin import Builtin
from data_distillation.labels.choose import Labels
from data_distillation.model import Network

TASKS = ("keypoints", "boxes", "masks")


@dataclass
class Data:
    """The labelled images, and those that a teacher has labelled."""

    name: str = "coco"  # builtin | coco | coco_format
    root: str = MISSING  # folder of the data set; empty for the built-in images
    train: str = "train"  # labelled split; several are joined by +, as val2014+train2014
    val: str = "val"  # split to evaluate on; for coco: val is val2017 = minival
    unlabelled: str = "unlabeled2017"  # split, or folder of images, that the teacher labels
    truth: str = ""  # split with the true labels of these images, which no training sees
    automatic: str = ""  # "": none, supervised | teacher: its labels | FILE of annotate.py
    automatic_share: float = 1.0  # of the automatic images that are used, nested; figure
    ratio: list[int] = field(default_factory=lambda: [3, 2])  # manual : automatic, Sec. 4
    limit: int = 0  # use the first labelled images only, this many; 0: all
    flip: float = 0.5  # probability of a horizontal flip
    joint_offset: float = 0.5  # added to the joints of files; 0: D1, which learns pixel indices
    aspect_order: bool = True  # the images of a step are shared out by their aspect, for speed
    skip_empty: bool = True  # D1: labelled images without an object, or a joint, are left out
    strict: bool = False  # True: a box without area stops the run instead of being dropped
    bad_images: str = "raise"  # raise | skip: what an unreadable image does
    workers: int = 4  # loader processes per training process
    builtin: Builtin = field(default_factory=Builtin)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("builtin", "coco", "coco_format"))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        for name in ("flip", "automatic_share", "joint_offset"):
            require_range(f"data.{name}", getattr(self, name), 0, 1)
        for name in ("workers", "limit"):
            require_range(f"data.{name}", getattr(self, name), 0)
        if self.automatic and self.automatic_share == 0:
            raise ValueError("data.automatic_share=0 leaves no image: give data.automatic=''.")
        if len(self.ratio) != 2 or min(self.ratio) < 1:
            raise ValueError(
                f"data.ratio={self.ratio}: give two whole numbers from 1 up, manual and automatic "
                "images, or data.automatic='' for manual ones alone."
            )


@dataclass
class Test:
    """Evaluation, Sec. 4: COCO's AP, without transforms unless `tta`."""

    tta: bool = False  # the multi-transform inference of the teacher, at test time
    batch_size: int = 4  # images
    evaluator: str = "pycocotools"  # pycocotools | faster, the same figures sooner
    per_class: bool = False
    sigmas: list[float] = field(default_factory=list)  # of the joints, for OKS; none: COCO's 17
    images: int = 8  # to draw

    def __post_init__(self) -> None:
        require_choice("test.evaluator", self.evaluator, ("pycocotools", "faster"))
        require_range("test.batch_size", self.batch_size, 1)
        require_range("test.images", self.images, 0)
        if self.evaluator == "faster" and find_spec("faster_coco_eval") is None:
            raise ValueError(
                "test.evaluator=faster is not installed: run pip install -e '.[fast]', or take "
                "test.evaluator=pycocotools."
            )


@dataclass
class Config:
    """One training run: a teacher, a student, or the supervised control."""

    seed: int = 0
    task: str = "keypoints"  # keypoints | boxes | masks, which the paper does not have
    steps: int = 360_000  # optimizer steps, Sec. 5
    batch_size: int = 16  # images a step over all processes
    images_per_gpu: int = 2  # of the paper's GPUs, each of which averages its own losses
    optimizer: str = "sgd"  # sgd | adamw
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr: float = 2.0  # D1: biases learn twice as fast ...
    bias_decay: bool = False  # ... and without weight decay
    schedule: str = "multistep"  # multistep | one_cycle
    milestones: list[float] = field(default_factory=lambda: [0.7, 0.9])  # shares of steps, Sec. 4
    warmup: int = 500  # steps, D1
    warmup_start: float = 1 / 3  # share of the rate at step 0, D1
    clip: float = 0.0  # largest gradient norm; 0: no clipping, as in the paper
    amp: bool = False  # bfloat16 in the network
    automatic_weight: float = 1.0  # of the losses of automatic images; 1: as manual ones, Sec. 3
    init: str = "imagenet"  # imagenet | teacher: fine-tuned | a run's folder | FILE | "": random
    teacher: list[str] = field(default_factory=list)  # its settings, where they differ
    rounds: int = 1  # of labelling and training; each student is the next one's teacher
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: only at the end
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    transforms: Transforms = field(default_factory=Transforms)
    merge: Merge = field(default_factory=Merge)
    labels: Labels = field(default_factory=Labels)
    test: Test = field(default_factory=Test)

    def __post_init__(self) -> None:
        require_choice("task", self.task, TASKS)
        require_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        require_choice("schedule", self.schedule, ("multistep", "one_cycle"))
        for name in ("steps", "batch_size", "images_per_gpu", "log_every", "save_every", "rounds"):
            require_range(name, getattr(self, name), 1)
        for name in ("lr", "bias_lr", "weight_decay", "clip", "warmup", "automatic_weight"):
            require_range(name, getattr(self, name), 0)
        for name in ("threads", "evaluate_every"):
            require_range(name, getattr(self, name), 0)
        require_range("momentum", self.momentum, 0, 0.99999)
        require_range("warmup_start", self.warmup_start, 0, 1)
        for share in self.milestones:
            require_range("milestones", share, 0, 1)


# What a run may be resumed with otherwise: its length, where and how fast it runs, what it says,
# and, see `may_change`, what its data set does not read.
MAY_CHANGE = (
    "steps",
    "processes",
    "threads",
    "log_every",
    "save_every",
    "evaluate_every",
    "only_evaluate",
    "test",
    "network.score",
    "network.nms",
    "network.detections",
    "data.root",
    "data.val",
    "data.truth",
    "data.workers",
    "data.bad_images",
    "data.strict",
)
OF_STUDENTS = (  # what a run without automatic labels does not read
    "transforms",
    "merge",
    "labels",
    "teacher",
    "rounds",
    "automatic_weight",
    "data.unlabelled",
    "data.automatic_share",
    "data.ratio",
)


def may_change(cfg: Config) -> tuple[str, ...]:
    """The options that a run may be resumed with otherwise."""
    files = () if cfg.data.name == "builtin" else ("data.builtin",)
    # Labels are in the file that `data.automatic` names; how they were made is of no concern.
    made = () if cfg.data.automatic else OF_STUDENTS
    return (*MAY_CHANGE, *files, *made)


ConfigStore.instance().store("schema", Config)
