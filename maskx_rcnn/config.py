"""Every option of the project; the defaults are the paper's (or the official code's, marked SET).

SET is ronghanghu/seg_every_thing, the authors' release, D1 the Detectron that it is built on.
Section and table numbers are those of arXiv 1711.10370v2.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from common.config import require_choice, require_range
from maskx_rcnn import grabcut
from maskx_rcnn.inputs.paint import World
from maskx_rcnn.model import KINDS, MaskBranch, Network
from maskx_rcnn.transfer import ACTIVATIONS, INITS, INPUTS, MATCHES, TRAIN_BOXES

STAGES = ("detector", "masks", "e2e")
LARGE = 1e4  # what is more is a slip, as is inf


@dataclass
class Paintings(World):
    """The built-in images, whose foreground is ambiguous unless the class is known."""

    train_images: int = 1500
    val_images: int = 250
    seed: int = 0  # of the images, not of the training

    def __post_init__(self) -> None:
        for name in ("train_images", "val_images"):
            require_range(f"data.paintings.{name}", getattr(self, name), 1)
        require_range("data.paintings.classes", self.classes, 2, 360)
        require_range("data.paintings.seed", self.seed, 0)
        require_range("data.paintings.jitter", self.jitter, 0, self.classes)
        require_range("data.paintings.noise", self.noise, 0, 1)
        require_range("data.paintings.stretch", self.stretch, -1, 1)
        if len(self.radius) != 2 or not 5 <= self.radius[0] <= self.radius[1]:
            raise ValueError(
                f"data.paintings.radius={self.radius}: give the least and the most, from 5 pixels."
            )
        require_range("data.paintings.side", self.side, max(24, 2 * self.radius[1]), LARGE)
        require_range("data.paintings.shift", self.shift, 0, self.radius[0])


@dataclass
class Data:
    """What is read, and which of its masks are known."""

    name: str = "coco"  # paintings | coco | coco_format
    root: str = MISSING  # folder of the data set; empty for the built-in images
    train: str = "train"  # split to train on; for coco: train is train2017
    val: str = "val"  # split to evaluate on; for coco: val is val2017 = minival
    masks: Any = "voc"  # A, the classes with masks: voc | nonvoc | random20_1 | even | ... | FILE
    all_masks: bool = False  # the oracle: the masks of B are known too
    mask_share: float = 1.0  # of the objects of A that keep their mask, chosen by their number
    boxes_only: list[str] = field(default_factory=list)  # further JSON:FOLDER pairs without masks
    flip: float = 0.5  # probability of a horizontal flip, the only augmentation, SET
    aspect_groups: bool = True  # D1: the images of a GPU are all wide or all tall
    skip_empty: bool = True  # D1: images without a box are not trained on
    strict: bool = False  # True: a box without area stops the run instead of being dropped
    bad_images: str = "raise"  # raise | skip: what an unreadable image does
    workers: int = 4  # loader processes per training process
    limit: int = 0  # train on the first images, this many; 0: all
    paintings: Paintings = field(default_factory=Paintings)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("paintings", "coco", "coco_format"))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        if not isinstance(self.masks, str):
            raise ValueError(
                f"data.masks={self.masks} is no split: write the classes with masks into a file, "
                '{"A": ["cat", "dog"]}, and give data.masks=FILE.json.'
            )
        for name in ("flip", "mask_share"):
            require_range(f"data.{name}", getattr(self, name), 0, 1)
        for name in ("workers", "limit"):
            require_range(f"data.{name}", getattr(self, name), 0)


@dataclass
class Test:
    """Evaluation, Sec. 4: AP on A, on B and on all classes."""

    batch_size: int = 4  # images
    evaluator: str = "pycocotools"  # pycocotools | faster, the same figures sooner
    per_class: bool = False
    images: int = 8  # to draw, the truth beside the masks found
    grabcut: bool = False  # masks by GrabCut inside the boxes found, which need no mask branch

    def __post_init__(self) -> None:
        require_choice("test.evaluator", self.evaluator, ("pycocotools", "faster"))
        require_range("test.batch_size", self.batch_size, 1)
        require_range("test.images", self.images, 0)
        if self.evaluator == "faster" and find_spec("faster_coco_eval") is None:
            raise ValueError(
                "test.evaluator=faster is not installed: run pip install -e '.[fast]', or take "
                "test.evaluator=pycocotools."
            )
        if self.grabcut and not grabcut.is_installed():
            raise ValueError(f"test.grabcut=true: {grabcut.INSTALL}")


@dataclass
class Config:
    """One training run."""

    seed: int = 0
    stage: str = "e2e"  # e2e | detector: boxes only | masks: the branch on a frozen detector
    steps: int = 90_000  # optimizer steps
    batch_size: int = 16  # images a step over all processes
    images_per_gpu: int = 2  # of the paper's GPUs, each of which averages its own losses
    optimizer: str = "sgd"  # sgd | adamw
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr: float = 2.0  # D1: biases learn twice as fast ...
    bias_decay: bool = False  # ... and without weight decay
    schedule: str = "multistep"  # multistep | one_cycle
    milestones: list[float] = field(default_factory=lambda: [2 / 3, 8 / 9])  # 60k and 80k of 90k
    warmup: int = 500  # steps, D1
    warmup_start: float = 1 / 3  # share of the rate at step 0, D1
    clip: float = 0.0  # largest gradient norm; 0: no clipping, as in the paper
    amp: bool = False  # bfloat16 in the network; T and the losses stay in float32
    cached_rois: int = 0  # stage=masks: regions a step from features computed once; 0: from images
    init: str = ""  # weights to start from: a run's folder, a file, or `imagenet`
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: only at the end
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    detector: list[str] = field(default_factory=list)  # stage=masks without init: its settings
    detector_init: str = ""  # weights that this detector starts from
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    branch: MaskBranch = field(default_factory=MaskBranch)
    test: Test = field(default_factory=Test)

    def __post_init__(self) -> None:
        require_choice("stage", self.stage, STAGES)
        require_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        require_choice("schedule", self.schedule, ("multistep", "one_cycle"))
        for name in ("steps", "batch_size", "images_per_gpu", "log_every", "save_every"):
            require_range(name, getattr(self, name), 1)
        for name in ("lr", "bias_lr", "weight_decay", "clip"):
            require_range(name, getattr(self, name), 0, LARGE)
        for name in ("warmup", "cached_rois", "threads", "evaluate_every"):
            require_range(name, getattr(self, name), 0)
        require_range("momentum", self.momentum, 0, 0.99999)
        require_range("warmup_start", self.warmup_start, 0, 1)
        for share in self.milestones:
            require_range("milestones", share, 0, 1)
        check_network(self.network, self.branch)
        if (self.branch.source == "embedding") != bool(self.branch.embeddings):
            raise ValueError(
                "branch.source=embedding and branch.embeddings (FILE.npy, FILE.txt, random or "
                "hues) belong together: give both."
            )
        if self.stage == "masks" and not self.init and not self.detector:
            raise ValueError(
                "stage=masks trains on a frozen detector: name its run by init=FOLDER, or its "
                "settings by \"detector=['stage=detector']\"."
            )


def check_network(network: Network, branch: MaskBranch) -> None:
    """Raise ValueError for a choice that is unknown, or a number out of range."""
    for name, choices in (
        ("kind", KINDS),
        ("source", INPUTS),
        ("activation", ACTIVATIONS),
        ("init", INITS),
        ("train_boxes", TRAIN_BOXES),
        ("match", MATCHES),
    ):
        require_choice(f"branch.{name}", getattr(branch, name), choices)
    require_range("branch.layers", branch.layers, 1, 3)
    require_range("branch.mlp", branch.mlp, 0, 3)
    require_range("branch.mlp_pool", branch.mlp_pool, 1, network.mask_size)
    require_range("branch.hidden", branch.hidden, 0)
    require_range("branch.init_scale", branch.init_scale, 0, LARGE)
    for side in network.anchors:
        require_range("network.anchors", side, 1, LARGE)
    for ratio in network.ratios or [0]:
        require_range("network.ratios", ratio, 1 / LARGE, LARGE)


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
    "data.workers",
    "data.bad_images",
    "data.strict",
)
OF_FILES = ("data.train", "data.boxes_only", "data.skip_empty", "data.aspect_groups")


def may_change(cfg: Config) -> tuple[str, ...]:
    """The options that a run may be resumed with otherwise."""
    painted = cfg.data.name == "paintings"
    return (*MAY_CHANGE, *(OF_FILES if painted else ("data.paintings",)))


ConfigStore.instance().store("schema", Config)
# Fig. 3: each seed draws a set of classes of its own, data.masks="random20_${trial:${seed}}".
OmegaConf.register_new_resolver("trial", lambda seed: seed + 1, replace=True)
