"""Every option; the defaults are those of ResNet-10 features and prototypical networks with G.

Section numbers are those of arXiv 1801.05401. The paper publishes no value of its meta-training:
what is marked `Unstated` was chosen here, on the cross-validation classes.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from common.config import require_choice, require_range
from lowshot_hallucination.backbone.loop import Backbone
from lowshot_hallucination.baselines.analogies import Analogies
from lowshot_hallucination.baselines.logistic import Logistic
from lowshot_hallucination.features.episodes import Episodes
from lowshot_hallucination.features.images import ImageData
from lowshot_hallucination.hallucinate import Hallucination
from lowshot_hallucination.model import Learner
from lowshot_hallucination.net.trunks import Trunk
from lowshot_hallucination.protocol.draws import Test

FITTED = ("logistic",)  # learners that are fitted to the support of each test
STAGES = ("meta", "test", "backbone", "features")


@dataclass
class Problem:
    """Features from files: which classes are base and novel, and which rows are queries."""

    split: str = ""  # JSON of the classes, {"base": [...], "novel": [...]}; "": half each, drawn
    split_files: str = ""  # folder of the benchmark's splitfile_{1..5}.json; "": drawn examples
    queries_share: float = 0.25  # of each class's rows, where the file has no test part
    seed: int = 0  # of what is drawn
    rescale: bool = (
        False  # divide all features by the mean of the base features, in every row alike
    )

    def __post_init__(self) -> None:
        if not 0 < self.queries_share < 1:
            raise ValueError(f"problem.queries_share={self.queries_share}: give a share in 0..1.")
        require_range("problem.seed", self.seed, 0)


@dataclass
class Config:
    """One run of one stage."""

    # meta: train learner and G on base classes, then test | test: `init` alone | backbone: train a
    # trunk on the base classes | features: write those of a trunk into the run's folder
    stage: str = "meta"
    seed: int = 0
    features: str = ""  # a folder of stage=features, or .npy, .npz, .hdf5; "": from the images
    labels: str = ""  # of a .npy: its labels, .npy
    steps: int = 40_000  # Unstated: of the meta-learner
    lr: float = 1e-3  # Unstated; a half cosine to 0
    weight_decay: float = 1e-4  # Unstated
    clip_norm: float = 5.0  # Unstated; 0: none
    init: str = ""  # a run's folder, or its checkpoint, to take learner and G from
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    amp: bool = False  # bfloat16 in the trunk
    log_every: int = 100  # steps
    save_every: int = 1000  # steps
    versus: dict[str, list[str]] = field(default_factory=dict)  # other settings beside it
    output_dir: str = "${hydra:runtime.output_dir}"
    data: ImageData = field(default_factory=ImageData)
    trunk: Trunk = field(default_factory=Trunk)
    backbone: Backbone = field(default_factory=Backbone)
    problem: Problem = field(default_factory=Problem)
    episodes: Episodes = field(default_factory=Episodes)
    learner: Learner = field(default_factory=Learner)
    hallucination: Hallucination = field(default_factory=Hallucination)
    logistic: Logistic = field(default_factory=Logistic)
    analogies: Analogies = field(default_factory=Analogies)
    test: Test = field(default_factory=Test)

    def __post_init__(self) -> None:
        require_choice("stage", self.stage, STAGES)
        for name in ("steps", "log_every", "save_every"):
            require_range(name, getattr(self, name), 1)
        for name in ("lr", "weight_decay", "clip_norm", "processes", "threads"):
            require_range(name, getattr(self, name), 0)
        if self.labels and not self.features:
            raise ValueError(f"labels={self.labels} goes with features=FILE.npy: give both.")
        views = self.features or self.data.views or self.stage not in ("meta", "test")
        if self.hallucination.kind == "views" and not views:
            raise ValueError(
                "hallucination.kind=views needs data.views=4, the random views of each image."
            )
        if self.stage == "test" and not (self.init or self.is_fixed()):
            raise ValueError("stage=test needs init=RUN, the folder of a run to test.")
        untrained = self.is_fixed() and self.hallucination.trained == "jointly"
        if self.hallucination.kind == "learned" and untrained and not self.init:
            raise ValueError(
                f"learner.method={self.learner.method} trains no G: give hallucination.kind=none, "
                "another kind, or hallucination.trained=RUN."
            )

    def is_fixed(self) -> bool:
        """Whether nothing is meta-trained."""
        return self.learner.method in FITTED or self.learner.method == "nearest"


# What a run may be resumed with otherwise: where and how fast it runs, what it says and scores.
MAY_CHANGE = (
    "stage",
    "processes",
    "threads",
    "log_every",
    "save_every",
    "features",
    "labels",
    "data.root",
    "data.views",
    "data.workers",
    "data.bad_images",
    "data.bad_share",
    "test",
)

ConfigStore.instance().store("schema", Config)
