"""Every option of the project; the defaults are the paper's (or the official code's, marked D1).

D1 is facebookresearch/Detectron, the authors' own release. Section, table and equation numbers are
those of arXiv 1708.02002v2.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from common.config import require_choice, require_range


@dataclass
class Scenes:
    """The built-in images: few labelled solids among unlabelled ones; sizes of the miniature."""

    train_images: int = 3000
    val_images: int = 1200
    height: int = 96  # pixels
    width: int = 96  # pixels
    objects: list[int] = field(default_factory=lambda: [1, 1])  # labelled, an image
    shapes: list[str] = field(default_factory=lambda: ["cube", "sphere", "cylinder"])  # labelled
    classes: list[str] = field(default_factory=lambda: ["shape"])  # and "color", "material", ...
    distractors: list[int] = field(default_factory=lambda: [5, 7])  # unlabelled, an image
    distractor_shapes: list[str] = field(default_factory=lambda: ["cone", "pyramid", "torus"])
    clutter: list[int] = field(default_factory=lambda: [8, 14])  # pebbles, an image
    radius: list[float] = field(default_factory=lambda: [0.3, 0.65])  # world units, log-uniform
    spread: float = 2.2  # largest distance of a centre from the middle along either axis
    margin: float = 0.1  # least distance of two centres along either axis of the floor
    min_gap: float = 0.05  # least free distance between two solids
    elevation: float = 45.0  # of the camera above the floor, degrees
    floor: str = "noise"
    tint: float = 0.5  # how far the floor may be coloured, 0..1
    noise: float = 4.0  # standard deviation of the sensor's noise, in 0..255 levels
    seed: int = 0  # of the world, not of the training

    def __post_init__(self) -> None:
        require_range("data.scenes.train_images", self.train_images, 1)
        require_range("data.scenes.val_images", self.val_images, 1)
        if len(self.objects) != 2 or not 0 <= self.objects[0] <= self.objects[1] >= 1:
            raise ValueError(
                f"data.scenes.objects={self.objects} leaves nothing to find: give the least and "
                "the largest number of an image, such as [1,1]."
            )


@dataclass
class Data:
    """What is read and how it is resized; the paper's ablations use 600 pixels, Sec. 5."""

    name: str = "coco"  # scenes | coco | coco_format
    root: str = MISSING  # folder of the data set; empty for the built-in scenes
    train: str = "train"  # split to train on; for coco: train is train2017 = trainval35k
    val: str = "val"  # split to evaluate on; for coco: val is val2017 = minival
    short_side: list[int] = field(default_factory=lambda: [600])  # pixels; several: drawn, Table 2
    long_side: int = 1000  # pixels, upper bound; 1333 with 800
    test_short_side: int = 600  # pixels
    resize: bool = True  # False: images are used in their own size
    flip: float = 0.5  # probability of a horizontal flip, the only augmentation, Sec. 4.1
    pad_multiple: int = 128  # D1 pads to 128 for P7; torchvision and detectron2 to 32
    aspect_groups: bool = True  # D1: wide and tall images go into separate batches
    skip_empty: bool = True  # D1: images without a box are not trained on
    strict: bool = False  # True: a box without area stops the run instead of being dropped
    bad_images: str = "raise"  # raise | skip: what an unreadable image does
    bgr: bool = False  # pixels as blue, green, red in 0..255, for D1 and detectron2 weights
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    workers: int = 4  # loader processes per training process
    limit: int = 0  # train on this many images, the first ones; 0: all
    scenes: Scenes = field(default_factory=Scenes)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("scenes", "coco", "coco_format"))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        require_range("data.flip", self.flip, 0, 1)
        require_range("data.pad_multiple", self.pad_multiple, 1, 1024)
        for name in ("long_side", "test_short_side"):
            require_range(f"data.{name}", getattr(self, name), 1)
        for name in ("workers", "limit"):
            require_range(f"data.{name}", getattr(self, name), 0)
        if self.resize and (not self.short_side or min(self.short_side) < 1):
            raise ValueError(
                f"data.short_side={self.short_side} names no size: give pixels such as [600], or "
                "data.resize=false to keep the images' own."
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"data.{name}={getattr(self, name)} is not of three channels: give three "
                    "numbers."
                )
        if min(self.std) <= 0:
            raise ValueError(f"data.std={self.std} is not positive: give numbers above 0.")


@dataclass
class Model:
    """RetinaNet, Sec. 4; passed to `RetinaNet` as it stands."""

    backbone: str = "resnet50"  # resnet18..152, resnext101_32x8d, ..., mini
    width: int = 16  # channels of the first stage of `mini`, 8 or more
    levels: list[int] = field(default_factory=lambda: [3, 7])  # P3..P7
    channels: int = 256  # of the pyramid and the heads
    convs: int = 4  # in each head before the prediction
    scales: int = 3  # anchors: 2^0, 2^(1/3), 2^(2/3), Table 1c
    ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])  # height / width
    anchor_size: float = 4.0  # in strides: 32 pixels on P3
    anchors: str = "exact"  # exact | torchvision | detectron, to suit loaded weights
    anchor_offset: float = 0.0  # in strides: 0 as in torchvision and detectron2
    prior: float = 0.01  # pi, Sec. 3.3; 0: off, every logit starts at 0
    p6: str = "c5"  # c5 (paper) | p5 (torchvision's first version)
    backbone_norm: str = "frozen"  # frozen (D1) | bn | gn
    freeze_at: int = 2  # D1: the stem and the first stage stay as they were pre-trained
    head_norm: str = "none"  # none (paper) | gn | bn
    tower_init: str = "normal"  # normal: N(0, 0.01), Sec. 4.1 | he, for narrow heads
    softmax: bool = False  # D1's option: K + 1 logits and a softmax
    shared_tower: bool = False  # D1's option: both heads use the same convolutions
    class_specific_box: bool = False  # D1's option: one box per class
    stride_in_1x1: bool = False  # True for MSRA and D1 weights, False for torchvision's

    def __post_init__(self) -> None:
        require_range("model.width", self.width, 8)


@dataclass
class Loss:
    """Classification loss, assignment and box loss, Sec. 3 and 4.1; passed to `DetectionLoss`."""

    kind: str = "focal"  # focal | focal_star | softmax_focal | hinge | ohem
    alpha: float = 0.25  # weight of the rare class, Eq. 3; -1: no weights
    gamma: float = 2.0  # focusing, Eq. 4; 0 is cross entropy
    beta: float = 0.0  # shift of FL*, Eq. 10
    normalizer: str = "image"  # image (paper) | gpu (D1) | gpu_plus_n | ema (detectron2) | world
    box: str = "smooth_l1"  # smooth_l1 | l1 | giou | diou | ciou
    box_beta: float = 1 / 9  # where smooth L1 turns linear, D1 0.11
    box_weight: float = 1.0
    positive_iou: float = 0.5  # Sec. 4
    negative_iou: float = 0.4
    low_quality: str = "d1"  # none | d1 | any: which best anchors of an object are rescued
    ignore_crowds: bool = False  # True: anchors on crowd regions contribute nothing
    mining_batch: int = 128  # anchors kept by OHEM, Table 1d
    mining_nms: float = 0.7  # IoU of the suppression among anchors
    mining_ratio: int = 0  # 3: one positive to three negatives, "OHEM 1:3"; 0: off


@dataclass
class Test:
    """Inference, Sec. 4.1."""

    score: float = 0.05
    topk: int = 1000  # per level, before suppression
    nms: float = 0.5
    nms_kind: str = "hard"  # hard | soft_linear | soft_gaussian
    class_agnostic: bool = False
    detections: int = 100  # per image
    flip: bool = False  # test-time augmentation
    short_sides: list[int] = field(default_factory=list)  # test-time scales; empty: one scale
    batch_size: int = 8
    evaluator: str = "pycocotools"  # pycocotools | faster, the same figures sooner
    per_class: bool = False
    pictures: int = 12  # images to draw, the truth beside the detections

    def __post_init__(self) -> None:
        require_choice("test.nms_kind", self.nms_kind, ("hard", "soft_linear", "soft_gaussian"))
        require_choice("test.evaluator", self.evaluator, ("pycocotools", "faster"))
        for name in ("score", "nms"):
            require_range(f"test.{name}", getattr(self, name), 0, 1)
        for name in ("topk", "detections", "batch_size"):
            require_range(f"test.{name}", getattr(self, name), 1)
        require_range("test.pictures", self.pictures, 0)
        for side in self.short_sides:
            require_range("test.short_sides", side, 1)
        if self.evaluator == "faster" and find_spec("faster_coco_eval") is None:
            raise ValueError(
                "test.evaluator=faster is not installed: run pip install -e '.[fast]', or take "
                "test.evaluator=pycocotools."
            )


@dataclass
class Config:
    """One training run."""

    seed: int = 0
    steps: int = 90_000  # optimizer steps; 135,000 for Table 2
    batch_size: int = 16  # images a step over all processes
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr: float = 2.0  # D1: biases learn twice as fast ...
    bias_decay: bool = False  # ... and without weight decay
    milestones: list[float] = field(default_factory=lambda: [2 / 3, 8 / 9])  # 60k and 80k of 90k
    warmup: int = 500  # steps, D1
    warmup_start: float = 1 / 3  # share of the rate at step 0, D1
    clip: float = 0.0  # largest gradient norm; 0: no clipping, as in the paper
    ema: float = 0.0  # decay of averaged weights used in evaluation; 0: off
    accumulate: int = 1  # backward passes an optimizer step
    amp: bool = False  # bfloat16 in the network; the losses stay in float32
    compile: bool = False
    init: str = ""  # weights to start from: a file, or `imagenet` for torchvision's backbone
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: only at the end
    evaluate_images: int = 0  # then score only this many, as AP_first_300, ...; 0: all, as AP
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    test: Test = field(default_factory=Test)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            require_range(name, getattr(self, name), 1)
        for name in ("lr", "bias_lr", "weight_decay", "clip", "warmup"):
            require_range(name, getattr(self, name), 0)
        for name in ("threads", "evaluate_every", "evaluate_images"):
            require_range(name, getattr(self, name), 0)
        for name in ("momentum", "ema"):
            require_range(name, getattr(self, name), 0, 0.99999)
        require_range("warmup_start", self.warmup_start, 0, 1)
        for share in self.milestones:
            require_range("milestones", share, 0, 1)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be split into accumulate={self.accumulate} "
                "equal parts: choose a divisor."
            )


# What may differ when a run is resumed: its length, where and how fast it runs, what it prints.
MAY_CHANGE = (
    "steps",
    "processes",
    "threads",
    "compile",
    "log_every",
    "save_every",
    "evaluate_every",
    "evaluate_images",
    "only_evaluate",
    "test",
    "data.root",
    "data.val",
    "data.test_short_side",
    "data.workers",
    "data.bad_images",  # the run stops at bad data, or goes on without it
    "data.strict",
)

ConfigStore.instance().store("schema", Config)
