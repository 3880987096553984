"""Every option of the project; the defaults are the paper's.

Section, table and figure numbers are those of arXiv 1705.03633; "public code" is
facebookresearch/clevr-iep, whose values are named where they differ from the paper's.
"""

import re
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from common.config import require_choice, require_range
from program_execution.net.options import (
    EXECUTIONS,
    INITIALISATIONS,
    MALFORMED,
    NetworkOptions,
)

BASELINES = ("qtype_mode", "lstm", "cnn_lstm", "cnn_lstm_sa", "cnn_lstm_sa_mlp")
CUTS = r"short|long|(?:first|after)[1-9]\d*"  # parts of a split, see data.py
COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
BASELINE_KINDS = ("batch_ema", "per_type_ema", "self_critical", "none")  # of REINFORCE
STAGES = ("pg", "ee", "joint", "tune", "baseline")


@dataclass
class BuiltIn:
    """The built-in scenes and questions."""

    train_images: int = 3000
    val_images: int = 300
    per_image: int = 10  # questions of an image
    profile: str = "tiny"  # tiny: fast, short programs | full: the 90 templates of CLEVR
    features: str = "grid"  # grid: a map of the ground, objects known | pixels: rendered images
    objects: list[int] = field(default_factory=lambda: [3, 6])  # of a scene
    colors: list[str] = field(default_factory=lambda: list(COLORS))
    shapes: list[str] = field(default_factory=lambda: ["cube", "sphere", "cylinder"])
    materials: list[str] = field(default_factory=lambda: ["rubber", "metal"])
    sizes: list[str] = field(default_factory=lambda: ["small", "large"])
    attributes: list[str] = field(default_factory=list)  # that questions name; empty: all that vary
    families: list[str] = field(default_factory=list)  # zero_hop, same_relate/3; empty: all
    filters: int = 4  # attributes in a noun phrase at most; profile tiny
    grid: int = 8  # cells along either side of the map
    marks: float = 1.0  # factor on the map's values: stronger marks are noticed sooner
    height: int = 64  # pixels, of rendered images
    width: int = 64
    seed: int = 0  # of the world, not of the training

    def __post_init__(self) -> None:
        for name in ("train_images", "val_images", "per_image"):
            require_range(f"data.builtin.{name}", getattr(self, name), 1)
        require_choice("data.builtin.profile", self.profile, ("tiny", "full"))
        require_choice("data.builtin.features", self.features, ("grid", "pixels"))
        require_range("data.builtin.grid", self.grid, 4, 32)
        require_range("data.builtin.filters", self.filters, 1, 4)
        require_range("data.builtin.seed", self.seed, 0, 1_000_000)
        if len(self.objects) != 2:
            raise ValueError(
                f"data.builtin.objects={self.objects} is no range: give the least and the largest "
                "number, such as [3,6]."
            )


@dataclass
class Data:
    """What is read. A split is a name such as `train`, `valB` or `val:long`; see data.py."""

    name: str = "clevr"  # clevr: files that prepare.py made, or the public code's | builtin
    root: str = MISSING  # folder of those files; empty for builtin
    train: str = "train"  # split to train on
    val: str = "val"  # split to choose the best weights by, and to evaluate on
    also: list[str] = field(default_factory=list)  # further ones to evaluate on, as SPLIT_accuracy
    scenes: str = ""  # scenes JSON with {split} in its name, for metrics that need scene graphs
    programs: int = 0  # N: training questions whose programs are known; 0: all
    subset: str = "first"  # which ones: first (public code) | random | per_family: N of each
    questions: int = 0  # number of training questions used, the first ones; 0: all
    val_questions: int = 0  # questions of every split to evaluate on; 0: all
    short: float = 16.0  # families of fewer functions in the mean are short; the paper: unstated
    short_families: list[int] = field(default_factory=list)  # or these; empty: by `short`
    by_image: bool = False  # all questions about an image in one batch: it is computed once
    workers: int = 4  # loader processes per training process
    builtin: BuiltIn = field(default_factory=BuiltIn)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("clevr", "builtin"))
        require_choice("data.subset", self.subset, ("first", "random", "per_family"))
        for name in ("programs", "questions", "val_questions", "workers"):
            require_range(f"data.{name}", getattr(self, name), 0)
        for split in (self.train, self.val, *self.also):
            require_split("data", split)


@dataclass
class Model(NetworkOptions):
    """The networks, Sec. 3, or a baseline, Sec. 4; their options stand in net/options.py."""

    def __post_init__(self) -> None:
        require_choice("model.name", self.name, ("iep", *BASELINES))
        require_choice("model.engine", self.engine, ("neural", "symbolic"))
        require_choice("model.attention", self.attention, ("none", "dot"))
        require_choice("model.malformed", self.malformed, MALFORMED)
        require_choice("model.initialisation", self.initialisation, INITIALISATIONS)
        require_choice("model.execution", self.execution, EXECUTIONS)
        for name in ("embedding", "hidden", "layers", "module_dim", "classifier_proj"):
            require_range(f"model.{name}", getattr(self, name), 1)
        require_range("model.dropout", self.dropout, 0, 0.9)


@dataclass
class Stage:
    """How long a stage learns, and how fast."""

    steps: int = 0  # optimizer steps; 0: stage=all leaves it out
    lr: float = 5e-4  # of Adam, constant, Sec. 4
    batch_size: int = 64  # questions a step over all processes
    evaluate_every: int = 0  # steps between validations, whose best weights are kept; 0: the last
    schedule: str = "constant"  # constant | cosine: down to zero

    def __post_init__(self) -> None:
        require_choice("schedule", self.schedule, ("constant", "cosine"))
        require_range("steps", self.steps, 0)
        require_range("lr", self.lr, 0)
        require_range("batch_size", self.batch_size, 1)
        require_range("evaluate_every", self.evaluate_every, 0)


@dataclass
class Tune(Stage):
    """Fine-tuning by answers alone after the other stages, Sec. 4.3 to 4.5."""

    train: str = ""  # split to fine-tune on; empty: data.train
    val: str = ""  # split to choose the fine-tuned weights by; empty: data.val
    questions: int = 0  # number of questions used, the first ones; 0: all
    update: str = ""  # both | pg: baselines only their LSTM | ee; empty: reinforce.update

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("tune.update", self.update, ("", "both", "pg", "ee"))
        require_range("tune.questions", self.questions, 0)
        for split in filter(None, (self.train, self.val)):
            require_split("tune", split)


@dataclass
class Reinforce:
    """How the generator learns from answers alone, Sec. 3.4."""

    baseline: str = "batch_ema"  # batch_ema | per_type_ema | self_critical | none, see reinforce.py
    decay: float = 0.9  # of the moving average
    temperature: float = 1.0  # of the samples
    entropy: float = 0.0  # weight of an entropy bonus; the paper has none
    weight: float = 1.0  # of the generator's loss beside the engine's
    lr: float = 0.0  # of the generator, by answers; 0: the stage's, as for the engine
    grammar: bool = False  # sample only programs that can run
    official: bool = False  # the public code's sum over batch and tail instead of mean and mask
    update: str = "both"  # both | pg: the engine stays, as for CLEVR-Humans | ee

    def __post_init__(self) -> None:
        require_choice("reinforce.baseline", self.baseline, BASELINE_KINDS)
        require_choice("reinforce.update", self.update, ("both", "pg", "ee"))
        require_range("reinforce.decay", self.decay, 0, 1)
        require_range("reinforce.temperature", self.temperature, 1e-3)
        require_range("reinforce.entropy", self.entropy, 0)
        require_range("reinforce.weight", self.weight, 0)
        require_range("reinforce.lr", self.lr, 0)
        if self.official and self.grammar:
            raise ValueError(
                "reinforce.official=true samples on after END, where no grammar holds: drop one of "
                "it and reinforce.grammar=true."
            )


@dataclass
class Evaluate:
    """What is measured, and what is drawn."""

    batch_size: int = 256  # questions
    programs: str = "predicted"  # the engine's programs: predicted | ground_truth
    beam: int = 1  # width of the generator's search; 1: greedy, as in the paper
    grammar: bool = False  # let the generator write only programs that can run
    questions: int = 10_000  # of each validation in between; the paper's number
    pictures: int = 6  # programs drawn with the maps of their modules

    def __post_init__(self) -> None:
        require_choice("evaluate.programs", self.programs, ("predicted", "ground_truth"))
        require_range("evaluate.batch_size", self.batch_size, 1)
        require_range("evaluate.beam", self.beam, 1, 64)
        require_range("evaluate.questions", self.questions, 1)
        require_range("evaluate.pictures", self.pictures, 0, 100)


@dataclass
class Config:
    """One training run."""

    seed: int = 0
    stage: str = "all"  # pg | ee | joint | tune | baseline, or all that the model has, in turn
    ee_programs: str = "predicted"  # that the engine learns from: predicted | ground_truth: strong
    pg: Stage = field(default_factory=lambda: Stage(32_000, 5e-4, evaluate_every=1000))
    ee: Stage = field(default_factory=lambda: Stage(200_000, 1e-4, evaluate_every=10_000))
    joint: Stage = field(default_factory=lambda: Stage(100_000, 5e-5, evaluate_every=10_000))
    tune: Tune = field(default_factory=lambda: Tune(0, 5e-5, evaluate_every=500))
    baseline: Stage = field(default_factory=lambda: Stage(360_000, 5e-4, evaluate_every=10_000))
    beta2: float = 0.999  # of Adam, for the squares of gradients
    amp: bool = False  # bfloat16 in the networks; losses stay in float32
    clip: float = 0.0  # largest gradient norm; 0: no clipping, as in the paper
    keep_best: bool = True  # end with the weights of the best validation
    init: list[str] = field(default_factory=list)  # runs' folders or weight files to start from
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 1000  # steps
    only_evaluate: bool = False  # score `init`, or the folder's checkpoint, without training
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings trained beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    reinforce: Reinforce = field(default_factory=Reinforce)
    evaluate: Evaluate = field(default_factory=Evaluate)

    def __post_init__(self) -> None:
        require_choice("stage", self.stage, ("all", *STAGES))
        require_choice("ee_programs", self.ee_programs, ("predicted", "ground_truth"))
        require_range("beta2", self.beta2, 0, 0.99999)
        for name in ("clip", "threads"):
            require_range(name, getattr(self, name), 0)
        for name in ("log_every", "save_every"):
            require_range(name, getattr(self, name), 1)
        if self.only_evaluate and self.stage == "all":
            raise ValueError(
                "only_evaluate=true is for one stage: give it, such as stage=joint, and its folder "
                "by hydra.run.dir or init."
            )
        baseline = self.model.name in BASELINES
        if self.stage == "baseline" and not baseline:
            raise ValueError(
                f"stage=baseline needs a baseline: give model.name={BASELINES[3]}, or another of "
                f"{', '.join(BASELINES)}."
            )
        if baseline and self.stage in ("pg", "ee", "joint"):
            raise ValueError(
                f"model.name={self.model.name} has no stage {self.stage}: give stage=baseline, or "
                "model.name=iep."
            )
        if self.model.engine == "symbolic" and self.stage == "ee":
            raise ValueError(
                "model.engine=symbolic has nothing to learn in stage=ee: give stage=pg or joint."
            )

    def of_stage(self) -> Stage:
        """The stage's own settings."""
        stages = (self.pg, self.ee, self.joint, self.tune, self.baseline)
        return dict(zip(STAGES, stages, strict=True))[self.stage]

    def may_change(self) -> set[str]:
        """The options that may differ when the run of a stage is resumed."""
        free = (MAY_CHANGE | {*STAGES}) - {self.stage}  # those of other stages do nothing here
        if self.of_stage().schedule == "cosine":  # the learning rate depends on its length
            free -= {f"{self.stage}.steps"}
        return free


def require_split(option: str, split: str) -> None:
    """Raise ValueError unless `split` is a name, perhaps cut behind a colon."""
    name, colon, cut = split.partition(":")
    if not name or (colon and not re.fullmatch(CUTS, cut)):
        raise ValueError(
            f"{option}: the split {split!r} is not understood: give a name such as train or valB, "
            "or one cut by its programs, train:short or val:long, or by its images, "
            "valB:first3000 or valB:after3000."
        )


# What may differ when a run is resumed: its length, where and how fast it runs, what it prints.
# `init` too: it has been read, and under stage=all it follows from the folder's name.
MAY_CHANGE = {f"{stage}.{name}" for stage in STAGES for name in ("steps", "evaluate_every")}
MAY_CHANGE |= {"processes", "threads", "log_every", "save_every", "init", "only_evaluate"}
MAY_CHANGE |= {"keep_best", "evaluate", "model.execution", "model.share", "data.root", "data.val"}
MAY_CHANGE |= {"data.also", "data.val_questions", "data.scenes", "data.workers"}

ConfigStore.instance().store("schema", Config)
