"""Every option of the project; the defaults are Panoptic FPN's on COCO, R-50 1x.

The paper trains no network of its own (Sec. 7 merges the outputs of others), so the recipes are
those of the networks it names. D2 is facebookresearch/detectron2 (COCO-PanopticSegmentation), PSP
is PSPNet (arXiv 1612.01105), MRCNN is Mask R-CNN (arXiv 1703.06870). Section and table numbers
without a name are those of arXiv 1801.00868.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from common.config import require_choice, require_range

from .model import NETWORKS, PARTS, Options
from .net.backbone import NORMS

SETS = ("scenes", "coco", "cityscapes", "ade20k", "vistas")
NEEDS: dict[str, set[str]] = {  # prediction source -> parts of the network that it is made of
    "merged": {"semantic", "instance"},
    "unfiltered": {"semantic", "instance"},
    "separate": set(),  # what there is
    "components": {"semantic"},
    "oracle_semantic": {"instance"},
    "oracle_instances": {"semantic"},
    "human": set(),  # no network
}


@dataclass
class Scenes:
    """The built-in images: crowded solids before a wall, of sizes for the miniature."""

    train_images: int = 800
    val_images: int = 200
    height: int = 64  # pixels
    width: int = 96  # pixels
    objects: list[int] = field(default_factory=lambda: [4, 8])  # things, an image
    shapes: list[str] = field(
        default_factory=lambda: ["cube", "sphere", "cylinder", "cone", "torus", "pyramid"]
    )  # the classes of things
    together: int = 2  # shapes in one image: the fewer, the oftener two of a class touch
    clutter: list[int] = field(default_factory=lambda: [0, 4])  # pebbles, which are void
    radius: list[float] = field(default_factory=lambda: [0.35, 0.8])  # world units, log-uniform
    min_gap: float = -0.15  # between two solids; negative: they may reach into one another
    margin: float = 0.05  # least distance of two centres along either axis of the floor
    spread: float = 1.6  # centres lie within this distance of the middle, in world units
    min_visible: int = 12  # pixels of each thing, at least 1
    elevation: float = 28.3  # of the camera above the floor, degrees
    floor: str = "noise"
    wall: str = "brick"  # or plain | panels: floor, wall and sky are stuff ...
    patches: list[str] = field(default_factory=lambda: ["water"])  # ... and so are these
    tint: float = 0.6  # how far floor and wall may be coloured, 0..1
    color_jitter: float = 0.3  # of each solid
    noise: float = 12.0  # standard deviation of the sensor's noise, in 0..255 levels
    seed: int = 0  # of the world, not of the training

    def __post_init__(self) -> None:
        require_range("data.scenes.train_images", self.train_images, 1)
        require_range("data.scenes.val_images", self.val_images, 1)
        require_range("data.scenes.together", self.together, 1, len(self.shapes))
        require_range("data.scenes.min_visible", self.min_visible, 1)
        require_range("data.scenes.seed", self.seed, 0, 1_000_000)


@dataclass
class Data:
    """What is read, and how images are changed before a network learns from them."""

    name: str = "coco"  # scenes | coco | cityscapes | ade20k | vistas
    root: str = MISSING  # folder of the data set; empty for the built-in scenes
    train: str = "train"  # split to train on; for coco: train is train2017
    val: str = "val"  # split to evaluate on
    resize: bool = True  # False: images keep their own size, short_side and the like do nothing
    short_side: list[int] = field(default_factory=lambda: [640, 672, 704, 736, 768, 800])  # D2
    long_side: int = 1333  # pixels, upper bound, D2
    test_short_side: int = 800  # pixels, D2
    test_long_side: int = 1333
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])  # PSP: a factor of 0.5 to 2
    rotate: float = 0.0  # PSP: up to 10 degrees to either side
    blur: float = 0.0  # PSP: probability of a Gaussian blur; it does not say which, 0.5 in ours
    crop: int = 0  # PSP: side of a random square in pixels, 713 on Cityscapes; 0: none
    flip: float = 0.5  # probability of a mirror image
    aspect_groups: bool = True  # D2: wide and tall images go into separate batches
    bad_images: str = "raise"  # raise | skip: what an unreadable image does
    workers: int = 4  # loader processes per training process
    limit: int = 0  # images to train on, the first ones; 0: all
    val_limit: int = 0  # images to evaluate on, the first ones; 0: all
    scenes: Scenes = field(default_factory=Scenes)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, SETS)
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        for name in ("flip", "blur"):
            require_range(f"data.{name}", getattr(self, name), 0, 1)
        require_range("data.rotate", self.rotate, 0, 180)
        require_range("data.crop", self.crop, 0)
        for name in ("workers", "limit", "val_limit"):
            require_range(f"data.{name}", getattr(self, name), 0)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"data.scale={self.scale} is no range: give the least and the largest factor, "
                "such as [0.5,2]."
            )
        if self.resize and (not self.short_side or min(self.short_side) < 1):
            raise ValueError(
                f"data.short_side={self.short_side} names no size: give pixels such as [800], or "
                "data.resize=false to keep the images' own."
            )


@dataclass
class Merge:
    """How instances and semantics become one map, Sec. 7; the defaults are the official script's.

    The paper finds its thresholds by a grid search, `merging/search.py`, and does not state them.
    """

    confidence: float = 0.5  # instances of a lower score are dropped
    overlap: float = 0.5  # instances are discarded that are hidden to a larger share
    stuff_area: float = 4096  # pixels; smaller stuff segments become void
    scale_stuff_area: bool = False  # True: stuff_area is meant for 640 x 480, others in proportion

    def __post_init__(self) -> None:
        require_range("merge.confidence", self.confidence, 0, 1)
        require_range("merge.overlap", self.overlap, 0, 1)
        require_range("merge.stuff_area", self.stuff_area, 0)


@dataclass
class Predict:
    """What the evaluation compares with the truth, and what it leaves behind."""

    source: str = "merged"  # or another of NEEDS, see merging/sources.py
    also: list[str] = field(default_factory=list)  # further sources, their figures as SOURCE_PQ_th
    component_area: int = 0  # pixels; smaller components are no thing
    human_shift: float = 1.3  # pixels by which the borders of source `human` are off, standard dev.
    rules: str = "official"  # official | paper: void and crowds, see quality.py
    threshold: float = 0.5  # IoU that a match has to exceed
    scales: list[float] = field(default_factory=lambda: [1.0])  # of semantics, PSP 0.5..1.75
    flip: bool = False  # the semantic part also sees the mirror image
    ap: bool = False  # also AP and AP_no, without overlaps, of the instances, Table 3
    miou: bool = False  # also the semantic part's mean IoU, Table 4
    batch_size: int = 8  # images a process has in hand
    per_class: bool = False  # also PQ of every class, as PQ/NAME
    save: bool = False  # write the predictions as COCO panoptic files
    pictures: int = 12  # images of predictions and their errors

    def __post_init__(self) -> None:
        require_choice("predict.source", self.source, NEEDS)
        for name in self.also:
            require_choice("predict.also", name, NEEDS)
        require_choice("predict.rules", self.rules, ("official", "paper"))
        require_range("predict.threshold", self.threshold, 0, 0.999)
        require_range("predict.batch_size", self.batch_size, 1)
        require_range("predict.pictures", self.pictures, 0)
        require_range("predict.human_shift", self.human_shift, 0)
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"predict.scales={self.scales}: give factors above 0, such as [1].")


@dataclass
class Model(Options):
    """The network; its options and their defaults are `model.Options`."""

    def __post_init__(self) -> None:
        require_choice("model.name", self.name, NETWORKS)
        require_choice("model.norm", self.norm, NORMS)
        require_choice("model.semantic_norm", self.semantic_norm, NORMS)
        require_choice("model.part", self.part, PARTS)
        if self.part != "both" and self.name != "separate":
            raise ValueError(
                f"model.part={self.part} is for model.name=separate: Panoptic FPN is one network."
            )


@dataclass
class Config:
    """One training run."""

    seed: int = 0
    steps: int = 90_000  # optimizer steps, D2 1x; 270,000 is 3x
    batch_size: int = 16  # images a step over all processes
    lr: float = 0.02
    semantic_lr: float = 0.0  # of the semantic network of model.name=separate; 0: lr
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_decay: bool = False  # D2: scales and shifts of norms are not decayed
    schedule: str = "step"  # step | poly: (1 - done / steps) ^ 0.9 as in PSP
    milestones: list[float] = field(default_factory=lambda: [2 / 3, 8 / 9])  # 60k and 80k of 90k
    warmup: int = 1000  # steps, D2; none with poly
    warmup_start: float = 1e-3  # share of the rate at step 0, D2
    clip: float = 0.0  # largest gradient norm; 0: no clipping
    accumulate: int = 1  # forward and backward passes an optimizer step
    sync_bn: bool = True  # batch norm over all GPUs, as PSP; concerns norms of kind bn
    amp: bool = False  # bfloat16 in the network
    init: str = ""  # weights to start from: a file, a run's folder, or `imagenet` (torchvision)
    init_also: str = ""  # a second file, after it: the other half of the pair
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: only at the end
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    merge: Merge = field(default_factory=Merge)
    predict: Predict = field(default_factory=Predict)

    def __post_init__(self) -> None:
        require_choice("schedule", self.schedule, ("step", "poly"))
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            require_range(name, getattr(self, name), 1)
        for name in ("lr", "semantic_lr", "weight_decay", "warmup", "clip"):
            require_range(name, getattr(self, name), 0)
        for name in ("threads", "evaluate_every"):
            require_range(name, getattr(self, name), 0)
        require_range("momentum", self.momentum, 0, 0.99999)
        require_range("warmup_start", self.warmup_start, 0, 1)
        for share in self.milestones:
            require_range("milestones", share, 0, 1)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be split into accumulate={self.accumulate} "
                "equal parts: choose a divisor."
            )
        self._require_sources()

    def _require_sources(self) -> None:
        """A prediction source needs the part of the network that it is made of."""
        part = self.model.part
        had = {"semantic", "instance"} if part == "both" else {part}
        also = [("predict.also", source) for source in self.predict.also]
        for name, source in [("predict.source", self.predict.source), *also]:
            if source == "components" and self.model.name != "separate":
                raise ValueError(
                    f"{name}=components needs a semantic network that tells the things' "
                    "classes apart: take model.name=separate."
                )
            if NEEDS[source] - had:
                raise ValueError(
                    f"{name}={source} needs a part that model.part={part} does "
                    f"not have: take {name}=separate."
                )


# What a run may be resumed with otherwise: its length, where and how fast it runs, what it says.
MAY_CHANGE = (
    "steps",
    "processes",
    "threads",
    "log_every",
    "save_every",
    "evaluate_every",
    "only_evaluate",
    "merge",
    "predict",
    "data.root",
    "data.val",
    "data.val_limit",
    "data.test_short_side",
    "data.test_long_side",
    "data.workers",
    "data.bad_images",  # the run stops at a bad image, or goes on without it
)

ConfigStore.instance().store("schema", Config)
