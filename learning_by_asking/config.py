"""Every option; the defaults are the paper's where they are known.

No code was released, and hardly a constant of the paper (arXiv 1712.01238) is confirmed: the others
are marked `Unstated`, and are options all the same. For want of its text no section is cited.
"""

import math
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from common.config import require_choice, require_range
from learning_by_asking.ask import Policy
from learning_by_asking.asking.propose import Generator
from learning_by_asking.asking.relevance import Relevance
from learning_by_asking.asking.sources import SOURCES
from learning_by_asking.model import Answerer
from learning_by_asking.oracle.oracles import Oracle

COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")


def require_rate(name: str, value: float) -> None:
    """ValueError unless it is a learning rate."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: give a rate above 0.")


@dataclass
class BuiltIn:
    """The built-in scenes and questions."""

    train_images: int = 2000
    val_images: int = 300
    per_image: int = 10  # questions of an image, which passive data are drawn from
    profile: str = "tiny"  # tiny: fast, short programs | full: the 90 templates of CLEVR
    features: str = "grid"  # grid: a map of the ground, objects known | pixels: rendered images
    objects: list[int] = field(default_factory=lambda: [3, 5])  # of a scene
    colors: list[str] = field(default_factory=lambda: list(COLORS))
    shapes: list[str] = field(default_factory=lambda: ["cube", "sphere", "cylinder"])
    materials: list[str] = field(default_factory=lambda: ["rubber", "metal"])
    sizes: list[str] = field(default_factory=lambda: ["small", "large"])
    attributes: list[str] = field(default_factory=list)  # that questions name; empty: all that vary
    families: list[str] = field(default_factory=list)  # zero_hop, same_relate/3; empty: all
    filters: int = 4  # attributes in a noun phrase at most; profile tiny
    grid: int = 6  # cells along either side of the map
    height: int = 64  # pixels, of rendered images
    width: int = 64
    # Attributes that the map does not show and that no question uses to describe objects. Nobody
    # can learn to answer questions that ask for them.
    hidden: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)  # types that are asked, but not in the test
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
        for name in self.hidden:
            require_choice("data.builtin.hidden", name, ("size", "color", "material", "shape"))
        if self.hidden and self.features == "pixels":
            raise ValueError("data.builtin.hidden is for data.builtin.features=grid.")


@dataclass
class Data:
    """The images that are asked about, and the questions that the result is tested on."""

    name: str = "clevr"  # clevr: files of `program_execution`'s prepare.py, or the public code's
    root: str = ""  # folder of those files; empty for builtin
    train: str = "train"  # split whose images are asked about
    val: str = "val"  # split of the test
    also: list[str] = field(default_factory=list)  # further ones to test on, as SPLIT_accuracy
    finetune: str = ""  # split that offline answerers go on to learn from: humans_train
    scenes: str = ""  # scenes JSON with {split} in its name, for the oracle
    init: int = 70_000  # Unstated: questions with answers to begin with, drawn at random
    init_images: str = "all"  # images asked about: all, or `others` than those of the beginning
    images: int = 0  # that are asked about, the first ones; 0: all
    val_questions: int = 0  # of the test, the first ones; 0: all
    workers: int = 0  # loader processes per training process
    builtin: BuiltIn = field(default_factory=BuiltIn)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, ("clevr", "builtin"))
        require_choice("data.init_images", self.init_images, ("all", "others"))
        require_range("data.init", self.init, 1)
        for name in ("images", "val_questions", "workers"):
            require_range(f"data.{name}", getattr(self, name), 0)
        if self.name == "builtin" and self.root:
            raise ValueError(f"data.root={self.root} has no effect with data=builtin.")


@dataclass
class Learn:
    """How an answerer learns from given questions."""

    steps: int = 0
    lr: float = 5e-4  # Unstated: of Adam, fixed
    batch_size: int = 128  # Unstated
    weight_decay: float = 0.0

    def check(self, name: str) -> None:
        """ValueError for a bad value of the group `name`."""
        for key, least in (("steps", 0), ("batch_size", 1), ("weight_decay", 0)):
            require_range(f"{name}.{key}", getattr(self, key), least)
        require_rate(f"{name}.lr", self.lr)


@dataclass
class Rounds:
    """Images, replies and updates of a round."""

    images: int = 128  # Unstated: that are asked about in a round, one question each
    updates: int = 1  # Unstated: steps of the answerer after a round
    lr: float = 5e-4
    batch_size: int = 128  # of an update
    replay: float = 0.5  # share of the batch from earlier rounds and the beginning

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            require_range(f"rounds.{name}", getattr(self, name), 1)
        require_range("rounds.updates", self.updates, 0)
        require_rate("rounds.lr", self.lr)
        require_range("rounds.replay", self.replay, 0, 1)


@dataclass
class Config:
    """One agent with its budget, or one source of questions instead of it."""

    seed: int = 0
    budget: int = 630_000  # Unstated: answers that are bought
    # lba: composed by the agent | passive: questions of the data set | passive_active: the agent
    # chooses among these | generator_passive: the public generator's way of asking
    source: str = "lba"
    question_form: str = "program"  # program: tokens in prefix order | text: words
    init: str = ""  # a public CNN+LSTM+SA checkpoint that the answerer, then sa, starts from
    offline: Learn = field(
        default_factory=lambda: Learn(steps=150_000)
    )  # fresh, on all that is known
    finetune: Learn = field(
        default_factory=lambda: Learn(steps=2_000, lr=5e-5)  # Unstated
    )  # of `data.finetune`
    offline_at: list[int] = field(default_factory=list)  # budgets; empty: the whole one
    offline_learners: int = (
        1  # whose mean is taken: in miniature they differ by their first weights
    )
    models: list[str] = field(default_factory=lambda: ["sa"])  # answerers that learn offline
    start: Learn = field(default_factory=lambda: Learn(steps=15_000))  # on the beginning
    evaluate_every: int = 0  # rounds between tests of the answerer as it stands; 0: at the end
    export: bool = False  # write what was learned from as a data.root of program_execution
    log_every: int = 20  # rounds
    save_every: int = 100  # rounds
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: Data = field(default_factory=Data)
    rounds: Rounds = field(default_factory=Rounds)
    generator: Generator = field(default_factory=Generator)
    relevance: Relevance = field(default_factory=Relevance)
    policy: Policy = field(default_factory=Policy)
    answerer: Answerer = field(default_factory=Answerer)
    oracle: Oracle = field(default_factory=Oracle)

    def __post_init__(self) -> None:
        self.start.check("start")
        self.offline.check("offline")
        self.finetune.check("finetune")
        require_choice("source", self.source, SOURCES)
        require_choice("question_form", self.question_form, ("program", "text"))
        for name in ("budget", "evaluate_every", "processes", "threads"):
            require_range(name, getattr(self, name), 0)
        for name in ("log_every", "save_every", "offline_learners"):
            require_range(name, getattr(self, name), 1)
        if self.init and self.answerer.name != "sa":
            raise ValueError(f"init={self.init} is for answerer.name=sa, not {self.answerer.name}.")
        if self.relevance.kind == "oracle" and not self.oracle.relevance_free:
            raise ValueError("relevance.kind=oracle needs oracle.relevance_free=true.")
        if self.policy.score == "oracle_loss" and not self.oracle.relevance_free:
            raise ValueError("policy.score=oracle_loss needs oracle.relevance_free=true.")
        if self.export and "train" in (self.data.val, *self.data.also):
            raise ValueError("export=true writes what was asked as `train`: test on other splits.")
        for value in self.offline_at:
            require_range("offline_at", value, 0, self.budget)


# What a run may be resumed with otherwise: where and how fast it runs, what it says and tests.
MAY_CHANGE = (
    "processes",
    "threads",
    "log_every",
    "save_every",
    "evaluate_every",
    "oracle.images",
    "oracle.file",
    "data.root",
    "data.scenes",
    "data.also",
    "data.val_questions",
    "data.finetune",
    "data.workers",
    "offline",
    "finetune",
    "offline_at",
    "offline_learners",
    "models",
    "export",
)

ConfigStore.instance().store("schema", Config)
