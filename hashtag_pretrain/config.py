"""Every option of pretraining; the defaults are the paper's, of ResNeXt-101 32x16d.

Section numbers are those of arXiv 1805.00932, recalled; what no text confirms is marked `Unstated`.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from common.config import require_choice, require_range
from hashtag_pretrain.hashtags import RULES
from hashtag_pretrain.inputs.augment import Augment
from hashtag_pretrain.inputs.builtin import Builtin
from hashtag_pretrain.model import Network
from hashtag_pretrain.targets.finetune import FineTune
from hashtag_pretrain.targets.probe import Probe

PROTOCOLS = ("probe", "finetune")


@dataclass
class Data:
    """The tagged images: tar files with an index beside each, and the vocabulary of their tags."""

    name: str = "shards"  # shards | builtin
    root: str = MISSING  # folder of the shards and the vocabulary; empty for builtin
    shards: str = "shards"  # folder of tar files, in `root`
    vocabulary: str = "vocabulary.json"  # in `root`, or a path; `prepare.py vocabulary` writes one
    held_out: float = 0.001  # share of the images, by their keys, that hashtags are scored on
    share: float = 1.0  # Fig. 2: train on this share of the others; smaller ones lie in larger ones
    exclude: str = ""  # file of keys, one a line, never trained on: `prepare.py duplicates`
    noise: float = 0.0  # Fig. 3: share of the tags that are replaced by any other
    noise_seed: int = 0
    window: int = 8  # shards that are mixed with each other
    bad_images: str = "raise"  # raise | skip: what an image does that cannot be read
    bad_share: float = 0.001  # of the images, that may be skipped; one at least
    workers: int = 8  # loader processes per training process
    builtin: Builtin = field(default_factory=Builtin)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("shards", "builtin"))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        require_range("data.held_out", self.held_out, 0, 0.5)
        require_range("data.noise", self.noise, 0, 1)
        require_range("data.bad_share", self.bad_share, 0, 1)
        require_range("data.window", self.window, 1)
        for name in ("workers", "noise_seed"):
            require_range(f"data.{name}", getattr(self, name), 0)
        if not 0 < self.share <= 1:
            raise ValueError(f"data.share={self.share}: give a share above 0, up to 1.")
        if self.bad_images == "skip" and not self.bad_share:
            raise ValueError(
                "data.bad_share=0 lets no image be skipped: give data.bad_images=raise, or a share."
            )
        if self.name == "builtin" and self.root:
            raise ValueError(
                f"data.root={self.root} has no effect with the built-in images: give data=shards."
            )
        if self.noise_seed and not self.noise:
            raise ValueError(
                f"data.noise_seed={self.noise_seed} has no effect without data.noise: leave it out."
            )


@dataclass
class Sampling:
    """How often an image is seen, by the rarest of its tags: Sec. 3 and Fig. 4."""

    rule: str = "square_root"  # natural | square_root | uniform
    # Unstated: how t was set. A tag as frequent as this keeps its frequency: a number, or max, that
    # of the most frequent tag.
    threshold: str = "max"
    length: float = 0.0  # instead: the length of an epoch, in multiples of the images; 0: by t
    most: float = 1000.0  # largest factor; uniform sampling would repeat one image without end

    def __post_init__(self) -> None:
        require_choice("sampling.rule", self.rule, RULES)
        require_range("sampling.most", self.most, 1)
        if self.length and self.length < 1:
            raise ValueError(
                f"sampling.length={self.length}: each image is there once at least, so give 1 or "
                "more, or 0 to go by sampling.threshold."
            )
        if self.length and self.rule == "natural":
            raise ValueError("sampling.length is for square_root and uniform: natural has 1.")
        if self.threshold != "max" and (self.length or self.rule == "natural"):
            other = "sampling.length" if self.length else "sampling.rule=natural"
            raise ValueError(
                f"sampling.threshold={self.threshold} has no effect with {other}: give one of them."
            )
        if self.threshold != "max":
            try:
                good = 0 < float(self.threshold) <= 1
            except ValueError:
                good = False
            if not good:
                raise ValueError(
                    f"sampling.threshold={self.threshold}: give max, or a share above 0, up to 1."
                )


@dataclass
class Loss:
    """What is minimised, Sec. 3: the softmax, or the sigmoid that the paper found worse."""

    kind: str = "softmax"  # softmax, 1/k on each of an image's k tags | sigmoid
    over: str = "mean"  # of the sigmoid: mean or sum over the tags of the vocabulary
    prior_bias: bool = False  # the last layer begins with the frequencies of the tags

    def __post_init__(self) -> None:
        require_choice("loss.kind", self.kind, ("softmax", "sigmoid"))
        require_choice("loss.over", self.over, ("mean", "sum"))
        if self.kind == "softmax" and self.over != "mean":
            raise ValueError("loss.over is for loss.kind=sigmoid.")


@dataclass
class TargetData:
    """What the trunk is tried on at the end."""

    name: str = ""  # folder | imagenet | cub | places365 | cifar10 | builtin; "": nothing
    root: str = ""
    classes: str = ""  # file of class folders, one a line: the 5k or 9k of ImageNet

    def __post_init__(self) -> None:
        names = ("", "folder", "imagenet", "cub", "places365", "cifar10", "builtin")
        require_choice("target.name", self.name, names)
        if self.name not in ("", "builtin") and not self.root:
            raise ValueError(f"target.name={self.name} needs target.root=FOLDER.")
        if self.name in ("", "builtin") and (self.root or self.classes):
            raise ValueError(
                f"target.root={self.root}, target.classes={self.classes} have no effect with "
                f"target.name={self.name or '(none)'}: give a target.name."
            )


@dataclass
class Test:
    """Evaluation on held-out hashtags."""

    images: int = 50_000  # at most
    batch_size: int = 64
    drawn: int = 12  # images drawn with their tags and what was predicted

    def __post_init__(self) -> None:
        require_range("test.batch_size", self.batch_size, 1)
        for name in ("images", "drawn"):
            require_range(f"test.{name}", getattr(self, name), 0)


@dataclass
class Config:
    """One pretraining run."""

    seed: int = 0
    images: int = 0  # that are processed; 0: by the size of the data, hashtags.images_processed
    batch_size: int = 8064  # images a step over all processes, Sec. 2: 336 GPUs of 24
    per_gpu: int = 24  # of the paper's GPUs, each of which has its own batch norm
    lr: float = 0.1  # of 256 images; a batch of 8064 has 3.15
    warmup_lr: float = 0.1  # the rate at the first step
    warmup_images: float = 6.4e6  # Unstated: 5 epochs of ImageNet, as Goyal et al. have
    warmup_most: float = 0.05  # of the run: a short one warms up sooner
    drops: int = 10  # at equal distances: 11 plateaus
    gamma: float = 0.5  # of each drop
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay_norm: bool = False  # Unstated: Goyal et al. do not decay batch norm
    ema: float = 0.0  # decay of a mean of the weights, which is then scored; 0: none, as the paper
    amp: bool = False  # bfloat16 in the network; the paper's precision is not known
    parallel: str = "ddp"  # ddp | zero1: the optimizer is shared out | fsdp: the weights, too
    compress: bool = False  # gradients travel as bfloat16
    init: str = ""  # a run's folder, or FILE, to go on from; "": random
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 1000  # steps
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    protocols: list[str] = field(default_factory=list)  # probe, finetune: of `target`, at the end
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    sampling: Sampling = field(default_factory=Sampling)
    loss: Loss = field(default_factory=Loss)
    network: Network = field(default_factory=Network)
    test: Test = field(default_factory=Test)
    target: TargetData = field(default_factory=TargetData)
    probe: Probe = field(default_factory=Probe)
    finetune: FineTune = field(default_factory=FineTune)

    def __post_init__(self) -> None:
        require_choice("parallel", self.parallel, ("ddp", "zero1", "fsdp"))
        for name in ("batch_size", "per_gpu", "log_every", "save_every"):
            require_range(name, getattr(self, name), 1)
        for name in ("lr", "warmup_lr", "warmup_images", "weight_decay", "drops", "threads"):
            require_range(name, getattr(self, name), 0)
        if self.images < -1:
            raise ValueError(
                f"images={self.images}: give a number, 0 for the paper's, or -1: none."
            )
        require_range("momentum", self.momentum, 0, 0.99999)
        require_range("warmup_most", self.warmup_most, 0, 1)
        require_range("gamma", self.gamma, 0, 1)
        require_range("ema", self.ema, 0, 0.999999)
        if self.warmup_lr > self.peak_lr():
            raise ValueError(
                f"warmup_lr={self.warmup_lr} is above {self.peak_lr():g}, the rate of a batch of "
                f"{self.batch_size} by lr={self.lr}: lower it."
            )
        if self.ema and self.parallel == "fsdp":
            raise ValueError("ema does not go with parallel=fsdp: take ddp or zero1.")
        for name in self.protocols:
            require_choice("protocols", name, PROTOCOLS)
        if self.protocols and not self.target.name:
            raise ValueError(
                f"protocols={self.protocols} needs a target: give target.name, or protocols=[]."
            )
        if self.target.name == "builtin" and self.data.name != "builtin":
            raise ValueError("target.name=builtin goes with data=builtin alone.")

    def peak_lr(self) -> float:
        """The rate after the warm-up: linear in the batch, Sec. 2."""
        return self.lr * self.batch_size / 256


# What a run may be resumed with otherwise: where and how fast it runs, what it says and scores.
MAY_CHANGE = (
    "processes",
    "threads",
    "log_every",
    "save_every",
    "only_evaluate",
    "parallel",
    "network.checkpoint",
    "network.memory_format",
    "network.compile",
    "data.root",
    "data.shards",
    "data.vocabulary",
    "data.exclude",
    "data.workers",
    "data.bad_images",
    "data.bad_share",
    "test",
    "protocols",
    "target",
    "probe",
    "finetune",
)

ConfigStore.instance().store("schema", Config)
