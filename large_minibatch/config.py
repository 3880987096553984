"""Every option of the project; the defaults are the paper's.

Section, table and remark numbers are those of arXiv 1706.02677v2. fb is facebook/fb.resnet.torch,
the code whose data augmentation and initialisation the paper uses.
"""

import math
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from common.config import require_choice, require_range


@dataclass
class Scenes:
    """The built-in images: one solid each, its shape and colour are the class."""

    train_images: int = 24576  # with mini.yaml's 16 epochs 768 steps of 512
    val_images: int = 4000
    size: int = 32  # pixels, both sides
    shapes: list[str] = field(
        default_factory=lambda: ["cube", "cylinder", "cone", "pyramid", "prism", "dome"]
    )
    colors: list[str] = field(default_factory=lambda: ["red", "blue", "green", "yellow"])
    distractors: list[int] = field(default_factory=lambda: [0, 0])  # unlabelled solids per image
    noise: float = 60.0  # standard deviation of the sensor's noise, in 0..255 levels
    seed: int = 0  # of the world, not of the training


@dataclass
class Data:
    """What is read and how it is augmented, Sec. 5.1."""

    name: str = "imagenet"  # imagenet | imagenet5k | folder | scenes | synthetic
    root: str = MISSING  # folder of the data set; empty for scenes and synthetic
    train: str = "train"  # sub-folder to train on
    val: str = "val"  # sub-folder to evaluate on
    classes: str = ""  # file, one class (wnid) a line: ImageNet-5k of Fig. 6; empty: all folders
    evaluated: str = ""  # file with the classes that evaluation chooses among; empty: all
    in_memory: bool = False  # decode once, keep all images as uint8 in memory
    crop: str = "fb"  # fb: fb.resnet.torch's | torchvision | pad: by 4 pixels, as for CIFAR | none
    interpolation: str = "bicubic"  # fb | bilinear: torchvision
    draft: bool = False  # decode large JPEGs at a half or less where the crop allows; other pixels
    size: int = 224  # pixels, of the crop
    resize: int = 256  # pixels, shorter side before the centre crop of the evaluation; 0: none
    area: list[float] = field(default_factory=lambda: [0.08, 1.0])  # share of the image
    flip: float = 0.5  # probability of a horizontal flip
    color_jitter: float = 0.0  # fb: 0.4; the paper does not name it
    lighting: float = 0.0  # fb: 0.1, PCA noise; the paper does not name it
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    bad_images: str = "raise"  # raise | skip: what happens at an unreadable image
    workers: int = 4  # loader processes per training process
    limit: int = 0  # training images of each class, the first ones; 0: all
    scenes: Scenes = field(default_factory=Scenes)

    def __post_init__(self) -> None:
        kinds = ("imagenet", "imagenet5k", "folder", "scenes", "synthetic")
        require_choice("data.name", self.name, kinds)
        for option in ("classes", "evaluated"):
            given = bool(getattr(self, option))
            if self.name == "imagenet5k" and not given:
                raise ValueError(
                    f"data.{option} is not set: give a file with one wnid a line, as no list of "
                    "ImageNet-5k's classes is public."
                )
            if self.name in ("scenes", "synthetic") and given:
                raise ValueError(f"data.{option} is for class folders: leave it out here.")
        require_choice("data.crop", self.crop, ("fb", "torchvision", "pad", "none"))
        require_choice("data.interpolation", self.interpolation, ("bicubic", "bilinear"))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        for option, count in (("mean", 3), ("std", 3), ("area", 2)):
            values = getattr(self, option)
            if len(values) != count:
                raise ValueError(f"data.{option}={values} has {len(values)} numbers: give {count}.")
        for value in self.mean:
            require_range("data.mean", value, 0, 1)
        if not min(self.std) > 0:
            raise ValueError(f"data.std={self.std}: give three numbers above 0, to divide by.")
        require_range("data.flip", self.flip, 0, 1)
        require_range("data.size", self.size, 8, 4096)
        for option in ("resize", "color_jitter", "lighting", "workers", "limit"):
            require_range(f"data.{option}", getattr(self, option), 0)


@dataclass
class Rate:
    """Learning rate, Sec. 2.1, 2.2, 5.1."""

    base: float = 0.1  # of a minibatch of `base_batch`
    base_batch: int = 256
    rule: str = "linear"  # linear | sqrt | fixed, Table 2a
    warmup: str = "gradual"  # gradual | constant | none, Table 1
    warmup_epochs: float = 5.0
    start: float = 0.1  # of the warm-up: the rate of a minibatch of 256, Sec. 2.2
    schedule: str = "step"  # step | cosine | linear
    milestones: list[float] = field(default_factory=lambda: [30, 60, 80])  # epochs, from the start
    factor: float = 0.1  # at each milestone

    def __post_init__(self) -> None:
        require_choice("rate.rule", self.rule, ("linear", "sqrt", "fixed"))
        require_choice("rate.warmup", self.warmup, ("gradual", "constant", "none"))
        require_choice("rate.schedule", self.schedule, ("step", "cosine", "linear"))
        require_range("rate.base", self.base, 0)
        require_range("rate.warmup_epochs", self.warmup_epochs, 0)


@dataclass
class Solver:
    """Momentum SGD, Sec. 3 and 5.1."""

    kind: str = "sgd"  # sgd | lars
    momentum: float = 0.9
    nesterov: bool = True  # of sgd; LARS has plain momentum
    form: str = "u"  # u: rate outside the buffer, Eq. 9 | v: rate inside, Eq. 10
    correction: bool = True  # momentum correction of form v, Remark 2
    weight_decay: float = 1e-4
    decay_bn: bool = False  # BN's gamma and beta are not decayed, Sec. 5.1
    decay_bias: bool = True  # Unstated: of the last layer; the paper excepts BN alone

    def __post_init__(self) -> None:
        require_choice("solver.kind", self.kind, ("sgd", "lars"))
        require_choice("solver.form", self.form, ("u", "v"))
        require_range("solver.momentum", self.momentum, 0, 1)


@dataclass
class Norm:
    """Batch normalisation, Sec. 2.3."""

    kind: str = "ghost"  # ghost: groups of `group` | worker: a process's forward | sync: all's
    group: int = 32  # n, images that share their statistics: part of the loss
    running: str = "mean"  # mean | first | sequential: what several groups add to the buffers
    evaluate: str = "mean"  # mean | rank0 | precise: whose statistics the evaluation uses
    precise_batches: int = 200  # batches of `evaluate=precise`

    def __post_init__(self) -> None:
        require_choice("norm.kind", self.kind, ("ghost", "worker", "sync"))
        require_choice("norm.running", self.running, ("mean", "first", "sequential"))
        require_choice("norm.evaluate", self.evaluate, ("mean", "rank0", "precise"))
        require_range("norm.group", self.group, 1)
        require_range("norm.precise_batches", self.precise_batches, 1)


@dataclass
class Model:
    """ResNet and its initialisation, Sec. 5.1; passed to `resnet` as it stands."""

    name: str = "resnet50"  # resnet18..152, resnext50_32x4d, ..., mini
    width: int = 8  # channels of the first stage of `mini`, 8 or more
    blocks: int = 1  # residual blocks of each of its three stages
    zero_gamma: bool = True  # gamma of the last BN of each block starts at 0, Table 2b
    fc_std: float = 0.01  # of the last layer's initial weights

    def __post_init__(self) -> None:
        require_range("model.width", self.width, 8)


@dataclass
class Config:
    """One training run."""

    seed: int = 0
    epochs: float = 90  # passes over the training set, for every batch size
    batch_size: int = 256  # kn: images an optimizer step over all processes
    per_forward: int = 256  # images a process computes at a time; the rest is accumulated
    smoothing: float = 0.0  # of the labels; the paper has none
    mixup: float = 0.0  # alpha of mixup; the paper has none
    ema: float = 0.0  # decay of averaged weights used in evaluation; 0: off
    amp: bool = False  # bfloat16 in the network; the loss stays in float32
    compile: bool = False
    allreduce: str = "ddp"  # ddp | ring | halving_doubling: who sums the gradients, Sec. 4
    overlap: bool = True  # gradients are summed while others are still computed, Sec. 4
    per_server: int = 1  # GPUs whose sum is formed first, the paper's three phases; not with ddp
    median_of: int = 5  # last epochs, whose median error is the run's, Sec. 5.1
    init: str = ""  # weights to start from
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 0  # steps; 0: once an epoch
    evaluate_every: int = 1  # epochs
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    rate: Rate = field(default_factory=Rate)
    solver: Solver = field(default_factory=Solver)
    norm: Norm = field(default_factory=Norm)
    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs={self.epochs} is out of range: give a number above 0.")
        counts = ("batch_size", "per_forward", "per_server", "median_of")
        for option in (*counts, "log_every", "evaluate_every"):
            require_range(option, getattr(self, option), 1)
        for option in ("seed", "mixup", "processes", "threads", "save_every"):
            require_range(option, getattr(self, option), 0)
        for option in ("smoothing", "ema"):
            require_range(option, getattr(self, option), 0, 1)
        require_choice("allreduce", self.allreduce, ("ddp", "ring", "halving_doubling"))
        if self.allreduce == "ddp" and (not self.overlap or self.per_server != 1):
            raise ValueError(
                "overlap=false and per_server are settings of our own sums: give allreduce=ring or "
                "allreduce=halving_doubling with them."
            )


# What may differ when a run is resumed: its length, where and how fast it runs, what it says.
MAY_CHANGE = (
    "epochs",
    "processes",
    "threads",
    "compile",
    "log_every",
    "save_every",
    "evaluate_every",
    "only_evaluate",
    "median_of",
    "norm.evaluate",
    "norm.precise_batches",
    "allreduce",
    "overlap",
    "per_server",
    "data.root",
    "data.val",
    "data.evaluated",
    "data.resize",
    "data.workers",
    "data.in_memory",
    "data.bad_images",
)

ConfigStore.instance().store("schema", Config)
